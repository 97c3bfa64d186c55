//! Power loss for one process: a preloaded library (`preload/unsynced.c`) remembers what was written and not synced,
//! and [`Unsynced::revert`] takes that back after the kill.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str;

use anyhow::{Context, Result, ensure};

use crate::run::Run;
use crate::tool;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/preload/unsynced.c");
/// Bytes of a record before its text and data.
const HEAD: usize = 64;

const WRITTEN: u32 = 1;
const CREATED: u32 = 2;
const RENAMED: u32 = 3;
const SYNCED: u32 = 4;

/// What one process did below its root, by the library's log.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Writes.
    pub written: usize,
    /// Syncs of a file or a directory.
    pub synced: usize,
    /// Changes that no sync covered, which were taken back.
    pub lost: usize,
}

/// The library, built, and the log of one process.
#[derive(Debug)]
pub struct Unsynced {
    library: PathBuf,
    log: PathBuf,
    root: PathBuf,
}

impl Unsynced {
    /// Builds the library for a process that keeps its files below `root`.
    ///
    /// # Errors
    /// When there is no C compiler, or it refuses.
    pub fn build(run: &Run, root: &Path) -> Result<Unsynced> {
        tool::require(&["cc"])?;
        let name = root
            .file_name()
            .context("the root has a name")?
            .to_string_lossy()
            .into_owned();
        let library = run.dir().join(format!("{name}.unsynced.so"));
        let flags = [
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
        ];
        tool::run(Command::new("cc").args(flags).arg(&library).args([
            SOURCE,
            "-ldl",
            "-lpthread",
        ]))?;
        Ok(Unsynced {
            library,
            log: run.dir().join(format!("{name}.unsynced")),
            root: root.canonicalize()?,
        })
    }

    /// Makes `command` load the library, with an empty log.
    ///
    /// # Errors
    /// When an old log cannot be removed.
    pub fn preload(&self, command: &mut Command) -> Result<()> {
        File::create(&self.log)?;
        command.env("LD_PRELOAD", &self.library);
        command
            .env("NWK_UNSYNCED_ROOT", &self.root)
            .env("NWK_UNSYNCED_LOG", &self.log);
        Ok(())
    }

    /// Takes back, newest first, everything that no sync covered. The process must be gone.
    ///
    /// # Errors
    /// When a file cannot be written, or the log is not one.
    pub fn revert(&self) -> Result<Seen> {
        let log = fs::read(&self.log)?;
        let records = parse(&log)?;
        let lost = unsynced(&records);
        let mut inodes = HashMap::new();
        index(&self.root, &mut inodes)?;
        for record in lost.iter().rev() {
            undo(record, &mut inodes)
                .with_context(|| format!("cannot take back record {}", record.sequence))?;
        }
        File::create(&self.log)?;
        let count = |kind| records.iter().filter(|record| record.kind == kind).count();
        Ok(Seen {
            written: count(WRITTEN),
            synced: count(SYNCED),
            lost: lost.len(),
        })
    }
}

/// One change, as the library wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record<'a> {
    kind: u32,
    sequence: u64,
    /// Device and inode.
    file: (u64, u64),
    directory: u64,
    offset: u64,
    size: u64,
    text: &'a [u8],
    data: &'a [u8],
}

/// All whole records. A last one that was cut off by the kill describes a change that was not made.
fn parse(mut log: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while log.len() >= HEAD {
        let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().expect("eight bytes"));
        let (kind, text) = (word(0) as u32, (word(0) >> 32) as usize);
        ensure!(
            (WRITTEN..=SYNCED).contains(&kind),
            "not a log of unsynced writes: kind {kind}"
        );
        let data = usize::try_from(word(56))?;
        let Some(whole) = log.get(HEAD..HEAD + text + data) else {
            break;
        };
        records.push(Record {
            kind,
            sequence: word(8),
            file: (word(16), word(24)),
            directory: word(32),
            offset: word(40),
            size: word(48),
            text: &whole[..text],
            data: &whole[text..],
        });
        log = &log[HEAD + text + data..];
    }
    Ok(records)
}

/// The changes that no later sync made durable, oldest first.
fn unsynced<'a>(records: &[Record<'a>]) -> Vec<Record<'a>> {
    let mut durable: HashMap<(u64, u64), u64> = HashMap::new();
    for record in records.iter().filter(|record| record.kind == SYNCED) {
        let upto = durable.entry(record.file).or_default();
        *upto = record.size.max(*upto);
    }
    let covered =
        |file: (u64, u64), sequence: u64| durable.get(&file).is_some_and(|&upto| sequence <= upto);
    records
        .iter()
        .filter(|record| {
            let by_directory = covered((record.file.0, record.directory), record.sequence);
            match record.kind {
                WRITTEN => !covered(record.file, record.sequence),
                CREATED => !covered(record.file, record.sequence) && !by_directory,
                RENAMED => !by_directory,
                _ => false,
            }
        })
        .cloned()
        .collect()
}

/// Where each file below `dir` is now.
fn index(dir: &Path, inodes: &mut HashMap<(u64, u64), PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let status = entry.metadata()?;
        if status.is_dir() {
            index(&entry.path(), inodes)?;
        } else {
            inodes.insert((status.dev(), status.ino()), entry.path());
        }
    }
    Ok(())
}

fn undo(record: &Record<'_>, inodes: &mut HashMap<(u64, u64), PathBuf>) -> Result<()> {
    match record.kind {
        WRITTEN => {
            // A file that was removed since needs nothing.
            let Some(path) = inodes.get(&record.file) else {
                return Ok(());
            };
            let file = File::options().write(true).open(path)?;
            file.set_len(record.size)?;
            file.write_all_at(record.data, record.offset)?;
        }
        CREATED => {
            if let Some(path) = inodes.remove(&record.file) {
                fs::remove_file(path)?;
            }
        }
        _ => {
            let end = record
                .text
                .iter()
                .position(|&byte| byte == 0)
                .context("two paths")?;
            let from = Path::new(str::from_utf8(&record.text[..end])?);
            let to = Path::new(str::from_utf8(&record.text[end + 1..])?);
            // The kill may have come between the record and the rename.
            if inodes.get(&record.file).is_some_and(|path| path == to) {
                fs::rename(to, from)?;
                inodes.insert(record.file, from.to_owned());
                if record.size == 1 {
                    File::create(to)?.write_all(record.data)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library and a directory for one shell script, without the lab.
    fn check(before: &[(&str, &str)], script: &str, after: &[(&str, &str)]) {
        let dir = std::env::temp_dir().join(format!(
            "unsynced-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let root = dir.join("root");
        fs::create_dir_all(&root).unwrap();
        for (name, content) in before {
            fs::write(root.join(name), content).unwrap();
        }
        let unsynced = Unsynced {
            library: dir.join("lib.so"),
            log: dir.join("log"),
            root: root.canonicalize().unwrap(),
        };
        let flags = ["-shared", "-fPIC", "-O2", "-o"];
        tool::run(
            Command::new("cc")
                .args(flags)
                .arg(&unsynced.library)
                .args([SOURCE, "-ldl"]),
        )
        .unwrap();
        let mut command = Command::new("sh");
        unsynced
            .preload(command.args(["-c", script]).current_dir(&root))
            .unwrap();
        tool::run(&mut command).unwrap();
        unsynced.revert().unwrap();
        let mut left: Vec<(String, String)> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read_to_string(entry.path()).unwrap(),
                )
            })
            .collect();
        left.sort();
        fs::remove_dir_all(&dir).unwrap();
        let after: Vec<_> = after
            .iter()
            .map(|&(name, content)| (name.to_owned(), content.to_owned()))
            .collect();
        assert_eq!(left, after, "{script}");
    }

    #[test]
    fn what_was_not_synced_is_taken_back() {
        let old = [("f", "old text")];
        check(&old, "printf NEW | dd of=f conv=notrunc status=none", &old);
        check(
            &old,
            "printf NEW | dd of=f conv=notrunc,fsync status=none",
            &[("f", "NEW text")],
        );
        check(
            &old,
            "printf NEW | dd of=f conv=notrunc,fdatasync status=none",
            &[("f", "NEW text")],
        );
        check(
            &old,
            "printf longer-than-it-was | dd of=f status=none",
            &old,
        );
        check(
            &old,
            "printf NEW | dd of=f status=none conv=fsync",
            &[("f", "NEW")],
        );
        check(
            &old,
            "printf x | dd of=f bs=1 seek=20 conv=notrunc status=none",
            &old,
        );
        check(&[], "printf NEW | dd of=g status=none", &[]);
        check(
            &[],
            "printf NEW | dd of=g conv=fsync status=none",
            &[("g", "NEW")],
        );
    }

    #[test]
    fn a_rename_needs_a_sync_of_its_directory() {
        let old = [("f", "old")];
        let replace = "printf NEW | dd of=g conv=fsync status=none; mv -T g f";
        check(&old, replace, &[("f", "old"), ("g", "NEW")]);
        check(&old, &format!("{replace}; sync ."), &[("f", "NEW")]);
        check(
            &old,
            "printf NEW | dd of=g status=none; mv -T g f; sync .",
            &[("f", "")],
        );
    }

    #[test]
    fn a_record_that_was_cut_off_counts_for_nothing() {
        let mut log = Vec::new();
        for word in [u64::from(WRITTEN), 1, 8, 9, 0, 0, 4, 4] {
            log.extend_from_slice(&word.to_le_bytes());
        }
        log.extend_from_slice(b"text");
        assert_eq!(parse(&log).unwrap().len(), 1);
        assert_eq!(parse(&log[..log.len() - 1]).unwrap().len(), 0);
        assert!(parse(&[9; 64]).is_err());
    }
}
