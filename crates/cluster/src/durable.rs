//! Replacing a small file so that a crash leaves either the old content or the new, never a mixture.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Permissions of what only root may read.
pub const PRIVATE: u32 = 0o600;

/// Permissions of what everybody may read.
pub const PUBLIC: u32 = 0o644;

/// What the temporary name of a file that is being replaced ends with.
pub const UNFINISHED: &str = ".new";

/// Writes `content` under a temporary name beside `path`, syncs it, renames it over `path` and syncs the directory.
///
/// # Errors
/// Whatever the file system says; `path` then still holds what it held, or already the new content.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_parts(path, [content], mode)
}

/// [`replace`] with content in several parts.
///
/// # Errors
/// As [`replace`].
pub fn replace_parts<'a>(
    path: &Path,
    parts: impl IntoIterator<Item = &'a [u8]>,
    mode: u32,
) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"))?;
    let mut temporary = name.to_os_string();
    temporary.push(UNFINISHED);
    let temporary = directory.join(temporary);
    // A leftover of a crash may have other permissions: begin afresh.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    // The mode above is subject to the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// Makes a directory and its parents, for root only where it is new, and syncs the parent.
///
/// # Errors
/// Whatever the file system says.
pub fn create_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => Ok(()),
    }
}

/// Syncs a directory, so that names made or removed in it survive a loss of power.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_permissions_are_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        for (content, mode) in [("one", PUBLIC), ("longer than one", PRIVATE), ("", PUBLIC)] {
            replace(&path, content.as_bytes(), mode).expect("replaces");
            assert_eq!(fs::read(&path).expect("is there"), content.as_bytes());
            let found = fs::metadata(&path).expect("is there").permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_leftover_of_a_crash_is_in_nobodys_way() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("key.new"), "half").expect("writes");
        let path = directory.path().join("key");
        replace(&path, b"whole", PRIVATE).expect("replaces");
        assert_eq!(fs::read(&path).expect("is there"), b"whole");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, PRIVATE);
    }

    #[test]
    fn directories_are_made_for_root_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b");
        create_directory(&path).expect("creates");
        create_directory(&path).expect("is there");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
