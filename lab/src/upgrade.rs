//! The older version that a cluster is rolled from: built from the commit that `lab/upgrade-from` names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tool;

/// The binary of the older version, built if that was not done before. Its sources and what is built of them are kept
/// below `target/upgrade-from`.
///
/// # Errors
/// When the commit is not in this clone: the message says how to fetch it; and what the tools say.
pub fn older_binary() -> Result<PathBuf> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let commit = older_commit(include_str!("../upgrade-from"))?;
    let kept = target_dir()?.join("upgrade-from").join(commit);
    let binary = kept.join("target/debug/neuwerk");
    if binary.is_file() {
        return Ok(binary);
    }
    let git = || {
        let mut git = Command::new("git");
        git.arg("-C").arg(root);
        git
    };
    let known = git()
        .args(["cat-file", "-e", &format!("{commit}^{{commit}}")])
        .status()
        .context("cannot start git")?;
    ensure!(
        known.success(),
        "commit {commit}, which lab/upgrade-from names, is not in this clone; fetch it with: git fetch --depth 1 \
         origin {commit}"
    );
    let sources = kept.join("sources");
    fs::create_dir_all(&sources)?;
    let archive = kept.join("sources.tar");
    tool::run(
        git()
            .args(["archive", "--output"])
            .arg(&archive)
            .arg(commit),
    )?;
    tool::run(
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&sources),
    )?;
    tool::run(
        cargo()
            .current_dir(&sources)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .args(["build", "--locked", "--package", "neuwerk", "--target-dir"])
            .arg(kept.join("target")),
    )?;
    ensure!(binary.is_file(), "{} was not built", binary.display());
    Ok(binary)
}

/// The commit in the file: its only line that is no comment.
fn older_commit(file: &str) -> Result<&str> {
    let commit = file
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .context("lab/upgrade-from names no commit")?;
    ensure!(
        commit.len() == 40 && commit.chars().all(|digit| digit.is_ascii_hexdigit()),
        "lab/upgrade-from: {commit:?} is not a full commit id"
    );
    Ok(commit)
}

/// Where this very program was built.
fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let deps = own.parent().context("a program lies in a directory")?;
    let profile = match deps.ends_with("deps") {
        true => deps
            .parent()
            .context("deps lies in the profile's directory")?,
        false => deps,
    };
    Ok(profile
        .parent()
        .context("the profile's directory lies in target")?
        .to_owned())
}

/// The cargo that started this program, without what it told it about its own package.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_a_commit() {
        older_commit(include_str!("../upgrade-from")).expect("names one");
        for wrong in ["", "# nothing\n", "main\n", "c98d818\n"] {
            assert!(older_commit(wrong).is_err(), "{wrong:?}");
        }
    }
}
