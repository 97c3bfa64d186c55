//! By what the timers of consensus are multiplied, as the cluster last said. It is written down, so that a node that
//! starts again begins with what suits its ways and disks.

use std::io;
use std::path::Path;

use cluster::Node;
use cluster::durable::{self, PUBLIC};

const FILE: &str = "timers";

/// What was written down; 1 if nothing was. What cannot be read does no harm: the cluster says it again.
pub(super) fn recall(data_dir: &Path) -> u32 {
    let path = data_dir.join(FILE);
    let read = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return 1,
        Err(error) => Err(error.to_string()),
        Ok(text) => match text.trim().parse() {
            Ok(factor @ (1 | 2 | 4 | 8 | 16)) => Ok(factor),
            _ => Err(format!("{text:?} is no factor")),
        },
    };
    read.unwrap_or_else(|reason| {
        tracing::warn!(path = %path.display(), reason, "the factor of the timers cannot be read; 1 is used");
        1
    })
}

/// Waits until the cluster wants other timers, and writes down by what they are multiplied from the next start on.
pub(super) async fn changed(node: &Node, data_dir: &Path) {
    let factor = node.retimed().await;
    if let Err(error) = note(data_dir, factor) {
        tracing::warn!(%error, factor, "the factor of the timers cannot be written down; they stay as they are");
        std::future::pending::<()>().await;
    }
    tracing::info!(factor, "consensus starts anew with other timers");
}

fn note(data_dir: &Path, factor: u32) -> io::Result<()> {
    durable::replace(
        &data_dir.join(FILE),
        format!("{factor}\n").as_bytes(),
        PUBLIC,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_remembered_and_damage_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(recall(dir.path()), 1);
        note(dir.path(), 4).unwrap();
        assert_eq!(recall(dir.path()), 4);
        for damaged in [&b"four\xff"[..], b"999", b"0", b""] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert_eq!(recall(dir.path()), 1);
        }
    }
}
