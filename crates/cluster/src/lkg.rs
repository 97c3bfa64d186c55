//! The last-known-good policy: what this node enforced when it stopped, and enforces again before anything else.
//!
//! Kept twice, each copy with its checksum. A directory in which neither copy is intact is an error and not "no policy":
//! a node that has enforced one must not quietly fall back to another.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Digest, Lineage};
use crate::replay::Target;
use crate::store::files::{Directory, DiskDirectory};

/// Directory below the cluster's data directory.
const DIRECTORY: &str = "lkg";

const COPIES: [&str; 2] = ["policy-a", "policy-b"];

const MAGIC: &[u8; 8] = b"NWLKG\0\0\x01";

/// Why there is no last-known-good policy to enforce although there should be.
#[derive(Debug, thiserror::Error)]
pub enum LkgError {
    /// The file system failed.
    #[error("{}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Neither copy is intact.
    #[error("both copies of the last-known-good policy in {0} are damaged: restore one from a backup, or start without \
        (everything is denied until a policy arrives) after: rm -r {0}", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    lineage: Lineage,
    index: u64,
    revision: u64,
    hash: Digest,
    document: ByteBuf,
}

/// Writes `target` as the last-known-good policy, durably.
///
/// # Errors
/// [`LkgError::Io`]; the policy kept before is still there then.
pub fn write(data_dir: &Path, target: &Target) -> Result<(), LkgError> {
    let path = data_dir.join(DIRECTORY);
    DiskDirectory::open(&path)
        .and_then(|directory| write_to(&directory, target))
        .map_err(|source| LkgError::Io { path, source })
}

/// Writes both copies of `target` to a directory, durably.
///
/// # Errors
/// The directory cannot be written; the policy kept before is still there then.
pub fn write_to(directory: &dyn Directory, target: &Target) -> io::Result<()> {
    let content = encode(target);
    COPIES
        .iter()
        .try_for_each(|copy| directory.write(copy, std::slice::from_ref(&content)))
}

/// The last-known-good policy; none if this node never enforced one.
///
/// # Errors
/// Any [`LkgError`].
pub fn read(data_dir: &Path) -> Result<Option<Target>, LkgError> {
    let path = data_dir.join(DIRECTORY);
    let at_path = |source| LkgError::Io {
        path: path.clone(),
        source,
    };
    if !path.exists() {
        return Ok(None);
    }
    let directory = DiskDirectory::open(&path).map_err(at_path)?;
    read_from(&directory).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => LkgError::Damaged { path: path.clone() },
        _ => at_path(error),
    })
}

/// The policy that is kept in a directory; none if there is none.
///
/// # Errors
/// The directory cannot be read, or neither copy is intact ([`io::ErrorKind::InvalidData`]).
pub fn read_from(directory: &dyn Directory) -> io::Result<Option<Target>> {
    let mut found = false;
    // The first copy is written first: after a crash between the two it is the newer one.
    for copy in COPIES {
        if let Some(content) = directory.read(copy)? {
            found = true;
            if let Some(target) = decode(&content) {
                return Ok(Some(target));
            }
        }
    }
    match found {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(None),
    }
}

pub(crate) fn encode(target: &Target) -> Bytes {
    let kept = Kept {
        lineage: target.lineage,
        index: target.index,
        revision: target.revision,
        hash: Digest(target.hash),
        document: ByteBuf::from(&*target.document),
    };
    let body =
        rmp_serde::to_vec_named(&kept).expect("a policy has no value that MessagePack lacks");
    checked(&body)
}

/// `body` as a whole file, whatever it says.
pub(crate) fn checked(body: &[u8]) -> Bytes {
    let sum = Digest::of_parts([&MAGIC[..], body]);
    Bytes::from([&MAGIC[..], &sum.0, body].concat())
}

pub(crate) fn decode(content: &[u8]) -> Option<Target> {
    let rest = content.strip_prefix(MAGIC)?;
    let (sum, body) = rest.split_at_checked(32)?;
    if Digest::of_parts([&MAGIC[..], body]).0 != sum {
        return None;
    }
    let kept: Kept = rmp_serde::from_slice(body).ok()?;
    Some(Target {
        lineage: kept.lineage,
        index: kept.index,
        revision: kept.revision,
        hash: kept.hash.0,
        document: kept.document.into_vec().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(index: u64) -> Target {
        let document = format!("policy {index}").into_bytes();
        Target {
            lineage: Lineage(7),
            index,
            revision: index,
            hash: Digest::of(&document).0,
            document: document.into(),
        }
    }

    fn damage(dir: &Path, copy: &str) {
        let file = dir.join(DIRECTORY).join(copy);
        let mut content = std::fs::read(&file).expect("reads");
        *content.last_mut().expect("has content") ^= 1;
        std::fs::write(&file, content).expect("writes");
    }

    #[test]
    fn the_newest_intact_copy_counts() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path();
        assert_eq!(read(dir).expect("reads"), None);
        write(dir, &target(1)).expect("writes");
        write(dir, &target(2)).expect("writes");
        assert_eq!(read(dir).expect("reads"), Some(target(2)));
        damage(dir, COPIES[0]);
        assert_eq!(read(dir).expect("reads"), Some(target(2)));

        // A crash between the two writes.
        write(dir, &target(2)).expect("writes");
        let older = encode(&target(1));
        std::fs::write(dir.join(DIRECTORY).join(COPIES[1]), older).expect("writes");
        assert_eq!(read(dir).expect("reads"), Some(target(2)));
    }

    #[test]
    fn damage_to_both_is_an_error_with_a_remedy() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path();
        write(dir, &target(1)).expect("writes");
        for copy in COPIES {
            damage(dir, copy);
        }
        let error = read(dir).expect_err("is damaged");
        assert!(matches!(error, LkgError::Damaged { .. }));
        assert!(error.to_string().contains("rm -r"), "{error}");
        for copy in COPIES {
            std::fs::write(dir.join(DIRECTORY).join(copy), b"").expect("writes");
        }
        assert!(read(dir).is_err());
    }
}
