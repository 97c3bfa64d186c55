//! Putting a node's data aside, and other data in its place, so that a crash at any moment leaves the old or the new.
//!
//! New data is first written in full below `next/`. One durable file, `changing.json`, says what is to be moved; once it
//! is there, the change happens: [`finish`] moves what has not been moved yet, and is called before the data is used.
//! The last-known-good policy stays where it is: it is what this node enforces meanwhile. Nothing is ever deleted; what
//! was there before lies below `old/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, PRIVATE, PUBLIC};
use crate::identity::Layout;

/// Where new data waits.
const NEXT: &str = "next";

/// Where old data is kept.
const OLD: &str = "old";

/// Says what is being moved.
const NOTE: &str = "changing.json";

/// Name of the node's id among the data that was put aside.
const NODE_ID: &str = "node_id";

/// Where a node that was told to join anew is to knock.
pub const JOINING: &str = "joining.json";

/// What is never put aside: the policy that is enforced, and what says what is going on.
const STAYS: [&str; 5] = ["lkg", NEXT, OLD, NOTE, JOINING];

/// What is being moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Directory that takes the old data, below the data directory.
    aside: PathBuf,
    /// Names in the data directory that go there.
    away: Vec<String>,
    /// Whether the node's id goes there as well.
    identity: bool,
    /// Names in `next/` that take their place.
    install: Vec<String>,
}

/// Which of the old data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// What the new data replaces, name by name. The node stays who it is.
    Replaced,
    /// All of it, and who the node is.
    Everything,
}

/// An empty directory for new data. What an earlier attempt left there is removed.
///
/// # Errors
/// Whatever the file system says.
pub fn prepare(layout: &Layout) -> io::Result<PathBuf> {
    let next = layout.data_dir.join(NEXT);
    if next.exists() {
        fs::remove_dir_all(&next)?;
    }
    durable::create_directory(&next)?;
    Ok(next)
}

/// Puts what is there aside under `label`, and what was written to [`prepare`]'s directory in its place. Returns where
/// the old data is now.
///
/// # Errors
/// Whatever the file system says. Once the change has begun it is made up for by [`finish`].
pub fn replace(layout: &Layout, label: &str, away: Away) -> io::Result<PathBuf> {
    let data_dir = &layout.data_dir;
    let next = data_dir.join(NEXT);
    let install = match next.exists() {
        true => names(&next)?,
        false => Vec::new(),
    };
    for name in &install {
        sync_tree(&next.join(name))?;
    }
    if next.exists() {
        durable::sync_directory(&next)?;
    }
    let there = names(data_dir)?;
    let goes = |name: &String| match away {
        Away::Replaced => install.contains(name),
        Away::Everything => !STAYS.contains(&name.as_str()),
    };
    let note = Note {
        away: there.into_iter().filter(goes).collect(),
        identity: away == Away::Everything && layout.node_id_path.exists(),
        aside: free_name(data_dir, label),
        install,
    };
    if !note.away.is_empty() || note.identity {
        durable::create_directory(&data_dir.join(&note.aside))?;
    }
    let text = serde_json::to_vec_pretty(&note).expect("names and flags are JSON");
    durable::replace(&data_dir.join(NOTE), &text, PRIVATE)?;
    carry_out(layout, &note)?;
    Ok(data_dir.join(note.aside))
}

/// Whether the node has neither data nor an identity.
///
/// # Errors
/// The directory cannot be read.
pub fn is_vacant(layout: &Layout) -> io::Result<bool> {
    let data_dir = &layout.data_dir;
    let there = match data_dir.exists() {
        true => names(data_dir)?,
        false => Vec::new(),
    };
    let data = there.iter().any(|name| !STAYS.contains(&name.as_str()));
    Ok(!data && !layout.node_id_path.exists())
}

/// Ends a change that a crash has interrupted. Called before anything in the data directory is used.
///
/// # Errors
/// Whatever the file system says; a note that cannot be read is [`io::ErrorKind::InvalidData`].
pub fn finish(layout: &Layout) -> io::Result<()> {
    let text = match fs::read(layout.data_dir.join(NOTE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let note = serde_json::from_slice(&text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    carry_out(layout, &note)
}

fn carry_out(layout: &Layout, note: &Note) -> io::Result<()> {
    let data_dir = &layout.data_dir;
    let (aside, next) = (data_dir.join(&note.aside), data_dir.join(NEXT));
    for name in &note.away {
        // What lies there was moved before a crash; what stands in its place now is new.
        if !aside.join(name).exists() && data_dir.join(name).exists() {
            fs::rename(data_dir.join(name), aside.join(name))?;
        }
    }
    if note.identity && layout.node_id_path.exists() {
        // It may be on another file system.
        let id = fs::read(&layout.node_id_path)?;
        durable::replace(&aside.join(NODE_ID), &id, PUBLIC)?;
        fs::remove_file(&layout.node_id_path)?;
    }
    if aside.exists() {
        durable::sync_directory(&aside)?;
    }
    for name in &note.install {
        if next.join(name).exists() {
            fs::rename(next.join(name), data_dir.join(name))?;
        }
    }
    if next.exists() {
        fs::remove_dir(&next)?;
    }
    durable::sync_directory(data_dir)?;
    fs::remove_file(data_dir.join(NOTE))?;
    durable::sync_directory(data_dir)
}

/// A directory below `old/` that is not taken.
fn free_name(data_dir: &Path, label: &str) -> PathBuf {
    let numbered = (2..).map(|n| Path::new(OLD).join(format!("{label}-{n}")));
    std::iter::once(Path::new(OLD).join(label))
        .chain(numbered)
        .find(|name| !data_dir.join(name).exists())
        .expect("one of infinitely many is free")
}

/// Names in a directory, sorted.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for item in fs::read_dir(directory)? {
        names.push(item?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Syncs every directory in a tree; its files were synced when they were written.
fn sync_tree(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    for item in fs::read_dir(path)? {
        sync_tree(&item?.path())?;
    }
    durable::sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &Path) -> Layout {
        let layout = Layout {
            data_dir: root.join("cluster"),
            node_id_path: root.join("node_id"),
        };
        fs::create_dir_all(layout.data_dir.join("lkg")).expect("creates");
        fs::write(layout.data_dir.join("lkg/policy-a"), "policy").expect("writes");
        for name in ["raft.redb", "meta.json", "peers.json"] {
            fs::write(layout.data_dir.join(name), "old").expect("writes");
        }
        fs::write(&layout.node_id_path, "1").expect("writes");
        layout
    }

    fn read(layout: &Layout, name: &str) -> Option<String> {
        fs::read_to_string(layout.data_dir.join(name)).ok()
    }

    #[test]
    fn everything_goes_but_the_policy_in_force() {
        let root = tempfile::tempdir().expect("a directory");
        let layout = layout(root.path());
        let aside = replace(&layout, "lineage-1", Away::Everything).expect("moves");
        assert_eq!(names(&layout.data_dir).expect("lists"), ["lkg", "old"]);
        assert!(!layout.node_id_path.exists());
        assert_eq!(
            names(&aside).expect("lists"),
            ["meta.json", "node_id", "peers.json", "raft.redb"]
        );
        fs::write(layout.data_dir.join("raft.redb"), "again").expect("writes");
        let second = replace(&layout, "lineage-1", Away::Everything).expect("moves");
        assert_ne!(second, aside, "nothing is ever overwritten");
    }

    #[test]
    fn new_data_takes_the_place_of_old() {
        let root = tempfile::tempdir().expect("a directory");
        let layout = layout(root.path());
        let next = prepare(&layout).expect("creates");
        for name in ["raft.redb", "snapshots"] {
            fs::write(next.join(name), "new").expect("writes");
        }
        let aside = replace(&layout, "x", Away::Replaced).expect("moves");
        assert_eq!(read(&layout, "raft.redb").as_deref(), Some("new"));
        assert_eq!(read(&layout, "snapshots").as_deref(), Some("new"));
        assert_eq!(read(&layout, "meta.json").as_deref(), Some("old"));
        assert_eq!(names(&aside).expect("lists"), ["raft.redb"]);
        assert!(layout.node_id_path.exists());
        finish(&layout).expect("has nothing to do");
    }

    /// Cuts the change off after each step, by doing its steps by hand.
    #[test]
    fn a_change_that_was_cut_off_anywhere_is_finished() {
        for steps in 0..=4 {
            let root = tempfile::tempdir().expect("a directory");
            let layout = layout(root.path());
            let data_dir = &layout.data_dir;
            let next = prepare(&layout).expect("creates");
            for name in ["raft.redb", "meta.json"] {
                fs::write(next.join(name), "new").expect("writes");
            }
            let note = Note {
                aside: "old/x".into(),
                away: vec!["meta.json".into(), "raft.redb".into()],
                identity: false,
                install: vec!["meta.json".into(), "raft.redb".into()],
            };
            fs::create_dir_all(data_dir.join("old/x")).expect("creates");
            fs::write(
                data_dir.join(NOTE),
                serde_json::to_vec(&note).expect("is JSON"),
            )
            .expect("writes");
            let moves = [
                ("meta.json", "old/x/meta.json"),
                ("raft.redb", "old/x/raft.redb"),
                ("next/meta.json", "meta.json"),
                ("next/raft.redb", "raft.redb"),
            ];
            for (from, to) in &moves[..steps] {
                fs::rename(data_dir.join(from), data_dir.join(to)).expect("moves");
            }
            finish(&layout).expect("finishes");
            for (name, content) in [
                ("meta.json", "new"),
                ("raft.redb", "new"),
                ("old/x/meta.json", "old"),
                ("old/x/raft.redb", "old"),
                ("peers.json", "old"),
            ] {
                assert_eq!(
                    read(&layout, name).as_deref(),
                    Some(content),
                    "{name} after {steps} steps"
                );
            }
            assert!(!data_dir.join(NOTE).exists() && !data_dir.join(NEXT).exists());
        }
    }
}
