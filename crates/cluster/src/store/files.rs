//! Small files that are replaced as a whole: snapshots, last-known-good policy, metadata.
//!
//! After a loss of power there is the old content or the new one, never a mixture.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::durable::{self, PRIVATE, UNFINISHED};

/// A flat directory of such files.
pub trait Directory: Send + Sync + 'static {
    /// Replaces a file, durably.
    fn write(&self, name: &str, parts: &[Bytes]) -> io::Result<()>;

    /// The content of a file; none if there is none.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a file if it is there.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A directory on disk, readable by its owner only.
#[derive(Debug, Clone)]
pub struct DiskDirectory {
    path: PathBuf,
}

impl DiskDirectory {
    /// Opens the directory, creating it if need be, and removes what an interrupted write has left.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        durable::create_directory(&path)?;
        for item in std::fs::read_dir(&path)? {
            let item = item?;
            if item.file_name().to_string_lossy().ends_with(UNFINISHED) {
                std::fs::remove_file(item.path())?;
            }
        }
        Ok(DiskDirectory { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directory for DiskDirectory {
    fn write(&self, name: &str, parts: &[Bytes]) -> io::Result<()> {
        let parts = parts.iter().map(|part| &part[..]);
        durable::replace_parts(&self.path.join(name), parts, PRIVATE)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(&self.path)? {
            let item = item?;
            let name = item.file_name().to_string_lossy().into_owned();
            if item.file_type()?.is_file() && !name.ends_with(UNFINISHED) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Ok(()) => durable::sync_directory(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A directory in memory, for tests and the simulator. Clones share the content.
#[derive(Debug, Clone, Default)]
pub struct MemoryDirectory {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl MemoryDirectory {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.files
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Directory for MemoryDirectory {
    fn write(&self, name: &str, parts: &[Bytes]) -> io::Result<()> {
        self.files().insert(name.into(), parts.concat());
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files().get(name).cloned())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(directory: &impl Directory) {
        assert_eq!(directory.read("a").expect("reads"), None);
        directory
            .write(
                "a",
                &[Bytes::from_static(b"one"), Bytes::from_static(b" two")],
            )
            .expect("writes");
        directory.write("b", &[]).expect("writes");
        assert_eq!(
            directory.read("a").expect("reads").as_deref(),
            Some(&b"one two"[..])
        );
        directory
            .write("a", &[Bytes::from_static(b"x")])
            .expect("replaces");
        assert_eq!(
            directory.read("a").expect("reads").as_deref(),
            Some(&b"x"[..])
        );
        assert_eq!(directory.list().expect("lists"), ["a", "b"]);
        directory.remove("a").expect("removes");
        directory.remove("a").expect("is gone already");
        assert_eq!(directory.list().expect("lists"), ["b"]);
    }

    #[test]
    fn both_directories_do_the_same() {
        let temporary = tempfile::tempdir().expect("a directory");
        check(&DiskDirectory::open(temporary.path().join("new")).expect("opens"));
        check(&MemoryDirectory::default());
    }

    #[test]
    fn an_interrupted_write_leaves_nothing() {
        let temporary = tempfile::tempdir().expect("a directory");
        std::fs::write(temporary.path().join("a.new"), b"half").expect("writes");
        let directory = DiskDirectory::open(temporary.path()).expect("opens");
        assert!(directory.list().expect("lists").is_empty());
        assert!(!temporary.path().join("a.new").exists());
    }
}
