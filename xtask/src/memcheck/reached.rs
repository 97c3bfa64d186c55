//! Whether the tests that valgrind watches come by all unsafe code: they are run once more under callgrind, which writes
//! down every line that was executed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::sites::{Kind, Site};

/// What callgrind is told, beside where to write.
pub(super) const OPTIONS: [&str; 7] = [
    "--tool=callgrind",
    "--quiet",
    "--dump-line=yes",
    "--compress-strings=no",
    "--compress-pos=no",
    "--fair-sched=yes",
    "--child-silent-after-fork=yes",
];

/// Where callgrind writes what one process did.
pub(super) fn output(directory: &Path) -> OsString {
    let mut option = OsString::from("--callgrind-out-file=");
    option.push(directory.join("lines.%p"));
    option
}

/// The lines that were executed, by file.
#[derive(Debug, Default)]
pub(super) struct Executed(BTreeMap<PathBuf, BTreeSet<usize>>);

impl Executed {
    /// Reads what all processes wrote into a directory.
    pub(super) fn read(directory: &Path) -> Result<Executed> {
        let mut executed = Executed::default();
        for entry in directory.read_dir()? {
            let path = entry?.path();
            let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
            executed.add(&String::from_utf8_lossy(&text));
        }
        Ok(executed)
    }

    /// Takes in what one process did, in callgrind's format: names of files, each before the lines that belong to it.
    fn add(&mut self, profile: &str) {
        let mut file = None;
        for line in profile.lines() {
            if let Some(name) = ["fl=", "fi=", "fe="]
                .iter()
                .find_map(|key| line.strip_prefix(key))
            {
                file = name
                    .ends_with(".rs")
                    .then(|| self.0.entry(name.into()).or_default());
            } else if let (Some(lines), Some((number, _))) = (&mut file, line.split_once(' '))
                && let Ok(number) = number.parse()
            {
                lines.insert(number);
            }
        }
    }

    /// Whether a line of a site was; or the one behind it, since a block of one line that is inlined altogether leaves no
    /// instruction to its own line.
    pub(super) fn reaches(&self, site: &Site) -> bool {
        let (first, last) = site.lines;
        let last = last + usize::from(first == last);
        self.0.iter().any(|(file, lines)| {
            file.ends_with(&site.file) && lines.range(first..=last).next().is_some()
        })
    }
}

/// Code that no line was executed of.
pub(super) fn missing<'a>(sites: &'a [Site], executed: &Executed) -> Vec<&'a Site> {
    let code = sites.iter().filter(|site| site.kind == Kind::Code);
    code.filter(|site| !executed.reaches(site)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executed_lines_belong_to_the_file_named_before_them() {
        let profile = "\
version: 1
positions: line
events: Ir

fl=/w/crates/mem/src/slab.rs
fn=mem::slab::new
16 400
fi=/rustc/library/core/ptr.rs
40 2
fe=/w/crates/mem/src/slab.rs
cfn=other
calls=1 50
18 3
fl=???
20 1
";
        let mut executed = Executed::default();
        executed.add(profile);
        let site = |file: &str, lines, kind| Site {
            file: file.into(),
            lines,
            kind,
        };
        let sites = [
            site("crates/mem/src/slab.rs", (15, 16), Kind::Code),
            site("crates/mem/src/slab.rs", (18, 18), Kind::Code),
            site("crates/mem/src/slab.rs", (20, 40), Kind::Code),
            site("crates/mem/src/slab.rs", (15, 15), Kind::Code),
            site("crates/mem/src/slab.rs", (41, 41), Kind::Declaration),
            site("crates/io/src/slab.rs", (15, 16), Kind::Code),
        ];
        assert_eq!(missing(&sites, &executed), [&sites[2], &sites[5]]);
    }
}
