//! Backups: making one, and making them on a schedule into a directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::recovery::BackupStats;
use cluster::Node;
use cluster::backup::{self, BackupError, Description, Recipient};
use cluster::durable;
use tokio_util::sync::CancellationToken;

use crate::config::Backup as Keys;
use crate::http::rfc3339;

/// The first backup of a node that has none waits this long, so that it is not that of a node which is still catching up.
const FIRST: Duration = Duration::from_secs(10);

/// After a failure it is tried again at least this often.
const RETRY: Duration = Duration::from_secs(300);

/// What a backup's file ends with.
const SUFFIX: &str = ".backup";

/// A backup in memory.
pub struct Made {
    /// What is in it.
    pub description: Description,
    /// The file.
    pub file: Vec<u8>,
}

/// Makes a backup of what `node` has applied.
///
/// # Errors
/// [`BackupError::NotReady`], [`BackupError::Seal`].
pub async fn make(node: &Node, recipient: Recipient) -> Result<Made, BackupError> {
    let state = node.state();
    let description = Description::of(&state, node.node_id(), now_ms())
        .ok_or_else(|| BackupError::Seal("there is no cluster yet".into()))?;
    let keys = backup::keys(&state)?;
    let sealing = move || {
        let file = backup::seal(&description, &state, &keys, &recipient)?;
        Ok(Made { description, file })
    };
    let sealed = tokio::task::spawn_blocking(sealing).await;
    sealed.unwrap_or_else(|_| Err(BackupError::Seal("it panicked".into())))
}

/// The name of a backup's file: names of one node sort by time.
pub fn file_name(description: &Description) -> String {
    let stamp = rfc3339(description.created_ms / 1000 * 1000).replace(['-', ':'], "");
    format!("{}{stamp}{SUFFIX}", prefix(description))
}

/// What the names of a node's backups begin with. Several nodes may share a directory.
fn prefix(description: &Description) -> String {
    let cluster = description.cluster_id.to_string();
    format!("neuwerk-{}-{}-", &cluster[..8], description.node_id)
}

/// What became of scheduled backups.
#[derive(Debug, Default)]
pub struct Backups {
    recipient: Option<Recipient>,
    record: RwLock<Record>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    scheduled: bool,
    last: Option<(u64, PathBuf)>,
    failure: Option<String>,
}

impl Backups {
    /// With the recipient that is configured, if any.
    pub fn new(keys: &Keys) -> Self {
        Backups {
            recipient: keys.recipient(),
            record: RwLock::new(Record {
                scheduled: keys.directory.is_some(),
                ..Record::default()
            }),
        }
    }

    /// Whom backups are sealed for unless somebody says otherwise.
    pub fn recipient(&self) -> Option<Recipient> {
        self.recipient.clone()
    }

    /// For the statistics; none where no backups are scheduled.
    pub fn stats(&self) -> Option<BackupStats> {
        let record = self.record.read().unwrap_or_else(PoisonError::into_inner);
        record.scheduled.then(|| BackupStats {
            last_success_at: record.last.as_ref().map(|(at, _)| rfc3339(*at)),
            age_secs: record
                .last
                .as_ref()
                .map(|(at, _)| now_ms().saturating_sub(*at) / 1000),
            file: record
                .last
                .as_ref()
                .map(|(_, path)| path.display().to_string()),
            failure: record.failure.clone(),
        })
    }

    fn set(&self, outcome: Result<(u64, PathBuf), String>) {
        let mut record = self.record.write().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(last) => {
                record.last = Some(last);
                record.failure = None;
            }
            Err(failure) => record.failure = Some(failure),
        }
    }
}

/// Makes backups as `keys` say, until `life` ends. Returns at once where none are wanted.
pub async fn run(node: Node, keys: Keys, backups: Arc<Backups>, life: CancellationToken) {
    let (Some(directory), Some(recipient)) = (keys.directory.clone(), backups.recipient()) else {
        return;
    };
    let interval = Duration::from_secs(keys.interval_secs.into());
    let mut failed = false;
    loop {
        let newest = newest(&node, &directory);
        if let Some(newest) = &newest
            && !failed
        {
            backups.set(Ok(newest.clone()));
        }
        let pause = pause(newest.map(|(at, _)| at), now_ms(), interval, failed);
        tokio::select! {
            () = life.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // A leader makes sure that nothing is missing; without one, this node's own state is still worth keeping.
        let _ = node.read_index().await;
        let outcome = match make(&node, recipient.clone()).await {
            Ok(made) => {
                let (directory, keep) = (directory.clone(), keys.keep as usize);
                tokio::task::spawn_blocking(move || keep_in(&directory, &made, keep))
                    .await
                    .unwrap_or_else(|_| Err(io::Error::other("writing it panicked")))
                    .map_err(|error| {
                        format!(
                            "{}: {error}",
                            keys.directory.as_deref().unwrap_or(Path::new("")).display()
                        )
                    })
            }
            Err(error) => Err(error.to_string()),
        };
        failed = outcome.is_err();
        match &outcome {
            Ok((_, path)) => tracing::info!(path = %path.display(), "a scheduled backup was made"),
            Err(reason) => {
                tracing::warn!(reason, "a scheduled backup failed; it will be tried again")
            }
        }
        backups.set(outcome);
    }
}

/// How long to wait until the next backup.
fn pause(last_ms: Option<u64>, now_ms: u64, interval: Duration, failed: bool) -> Duration {
    if failed {
        return RETRY.min(interval);
    }
    match last_ms {
        None => FIRST.min(interval),
        // A clock that was put back makes none overdue and none late for longer than an interval.
        Some(last) => interval.saturating_sub(Duration::from_millis(now_ms.saturating_sub(last))),
    }
}

/// This node's newest backup in the directory, and when it was written.
fn newest(node: &Node, directory: &Path) -> Option<(u64, PathBuf)> {
    let description = Description::of(&node.state(), node.node_id(), 0)?;
    let name = own(directory, &prefix(&description)).ok()?.pop()?;
    let path = directory.join(name);
    let written = std::fs::metadata(&path)
        .and_then(|file| file.modified())
        .ok()?;
    let since = written.duration_since(UNIX_EPOCH).ok()?;
    Some((u64::try_from(since.as_millis()).ok()?, path))
}

/// Writes a backup, reads it back, and removes this node's oldest beyond `keep`.
fn keep_in(directory: &Path, made: &Made, keep: usize) -> io::Result<(u64, PathBuf)> {
    durable::create_directory(directory)?;
    let path = directory.join(file_name(&made.description));
    durable::replace(&path, &made.file, durable::PRIVATE)?;
    backup::inspect(&std::fs::read(&path)?).map_err(io::Error::other)?;
    let names = own(directory, &prefix(&made.description))?;
    for name in names.iter().rev().skip(keep.max(1)) {
        std::fs::remove_file(directory.join(name))?;
    }
    Ok((made.description.created_ms, path))
}

/// Names in the directory that begin with `prefix`, oldest first.
fn own(directory: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for item in std::fs::read_dir(directory)? {
        let name = item?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name.ends_with(SUFFIX) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{ClusterId, Lineage, NodeId};

    fn made(created_ms: u64) -> Made {
        let description = Description {
            cluster_id: ClusterId([0xab; 16]),
            cluster_name: "berlin".into(),
            lineage: Lineage(1),
            node_id: NodeId(2),
            created_ms,
            index: 3,
            log_time_ms: 0,
            policy_revision: None,
            members: 1,
            accounts: 0,
            feature_level: 2,
            version: "0".into(),
        };
        // As far as the directory is concerned.
        let recipient = Recipient::key(&backup::generate_key().1).expect("is one");
        let file =
            backup::seal(&description, &cluster::State::default(), &[], &recipient).expect("seals");
        Made { description, file }
    }

    #[test]
    fn the_oldest_go_and_those_of_others_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        for name in ["neuwerk-other.backup", "notes.txt"] {
            std::fs::write(path.join(name), "x").expect("writes");
        }
        for hour in 0..4 {
            keep_in(path, &made(hour * 3_600_000), 2).expect("keeps");
        }
        let mut names: Vec<_> = std::fs::read_dir(path)
            .expect("reads")
            .map(|item| {
                item.expect("reads")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "neuwerk-abababab-0000000000000002-19700101T020000Z.backup",
                "neuwerk-abababab-0000000000000002-19700101T030000Z.backup",
                "neuwerk-other.backup",
                "notes.txt"
            ]
        );
    }

    #[test]
    fn a_restart_does_not_put_the_next_one_off() {
        let hour = Duration::from_secs(3600);
        for (last, now, failed, expected) in [
            (None, 50, false, FIRST),
            (Some(1000), 1000, false, hour),
            (Some(1000), 1_801_000, false, hour / 2),
            (Some(1000), 99_000_000, false, Duration::ZERO),
            (Some(5000), 1000, false, hour),
            (Some(1000), 1000, true, RETRY),
        ] {
            assert_eq!(
                pause(last, now, hour, failed),
                expected,
                "{last:?} {now} {failed}"
            );
        }
    }
}
