//! Policy replay: from the newest applied revision to what the packet workers run on.
//!
//! Four indices, each never falling: committed ≥ applied ≥ compiled ≥ enforced. The replay task
//! owns the last two. It takes the newest applied policy (skipping any that came and went in
//! between), compiles it, has it swapped in, waits until the last worker runs on it, writes it as
//! last-known-good and only then advances `enforced`. A compile failure keeps the old policy and
//! is told. The task knows no clock and spawns nothing, so the simulator runs it as it is.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::id::Lineage;

/// A policy revision that the cluster has committed and this node has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The history that index and revision count in.
    pub lineage: Lineage,
    /// Log index of the entry that wrote it.
    pub index: u64,
    /// Counts policies; 0 is the one that a fresh store was seeded with.
    pub revision: u64,
    /// SHA-256 of the canonical document.
    pub hash: [u8; 32],
    /// The canonical document (JSON).
    pub document: Arc<[u8]>,
}

/// How far a policy has come, one of the four indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The history that index and revision count in.
    pub lineage: Lineage,
    /// Log index.
    pub index: u64,
    /// Policy revision.
    pub revision: u64,
    /// SHA-256 of the canonical document; zero before any policy.
    pub hash: [u8; 32],
}

impl From<&Target> for Mark {
    fn from(target: &Target) -> Self {
        Self {
            lineage: target.lineage,
            index: target.index,
            revision: target.revision,
            hash: target.hash,
        }
    }
}

/// What replay has reached on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Newest policy that compiled.
    pub compiled: Mark,
    /// The policy that every packet worker runs on.
    pub enforced: Mark,
    /// Why the newest applied policy is not enforced, if it failed.
    pub failure: Option<String>,
}

/// The node's own dataplane, as replay sees it.
pub trait Enforcer: Send + Sync + 'static {
    /// A compiled policy, ready to be swapped in.
    type Prepared: Send;

    /// Compiles off the packet threads. The error is a sentence for the operator.
    fn compile(
        &self,
        target: &Target,
    ) -> impl Future<Output = Result<Self::Prepared, String>> + Send;

    /// Swaps the policy in and returns once the last packet worker runs on it. The error is a
    /// sentence for the operator; the old policy may or may not still be in force then.
    fn enforce(&self, prepared: Self::Prepared) -> impl Future<Output = Result<(), String>> + Send;

    /// Writes the policy as last-known-good, durably.
    fn keep(&self, target: &Target) -> impl Future<Output = Result<(), String>> + Send;
}

/// Follows `targets` until its sender is gone, and publishes what was reached. Sending the same
/// target again retries what failed.
///
/// `progress` starts at what the node enforces already (its last-known-good policy), so that a
/// boot does not swap a policy for itself.
pub async fn run<E: Enforcer>(
    enforcer: &E,
    mut targets: watch::Receiver<Option<Target>>,
    progress: &watch::Sender<Progress>,
) {
    loop {
        let target = targets.borrow_and_update().clone();
        if let Some(target) = target {
            step(enforcer, &target, progress).await;
        }
        if targets.changed().await.is_err() {
            return;
        }
    }
}

/// Brings one target as far as it will go.
async fn step<E: Enforcer>(enforcer: &E, target: &Target, progress: &watch::Sender<Progress>) {
    let mark = Mark::from(target);
    let Progress {
        enforced, failure, ..
    } = progress.borrow().clone();
    // An index below ours is a replayed log after a restart, never a new policy; unless the node belongs to another
    // history now, which its last-known-good policy is not from.
    if mark.lineage == enforced.lineage && mark.index < enforced.index {
        return;
    }
    if mark == enforced {
        if failure.is_some() {
            let kept = enforcer.keep(target).await;
            progress.send_modify(|p| p.failure = kept.err());
        }
        return;
    }
    // The same document under a new revision (a rollback to what is in force) still advances the
    // indices, and the workers' revision with them.
    let failed = |reason: String| {
        tracing::error!(
            revision = target.revision,
            reason,
            "policy is not enforced, the old one stays"
        );
        progress.send_modify(|p| p.failure = Some(reason));
    };
    let prepared = match enforcer.compile(target).await {
        Ok(prepared) => prepared,
        Err(reason) => return failed(reason),
    };
    progress.send_modify(|p| p.compiled = mark);
    if let Err(reason) = enforcer.enforce(prepared).await {
        return failed(reason);
    }
    // A full disk must not keep a new policy from counting as enforced: the workers run on it.
    // It is told, and retried with the next target.
    let kept = enforcer.keep(target).await;
    progress.send_modify(|p| {
        p.enforced = mark;
        p.failure = kept.err();
    });
    tracing::info!(
        revision = target.revision,
        index = target.index,
        "policy enforced"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn the_newest_applied_policy_is_compiled_swapped_kept_and_then_counted() {
        let (log, progress) = replay(&[target(5, 1, b"one")], &[]).await;
        assert_eq!(log, ["compile 1", "enforce 1", "keep 1"]);
        assert_eq!(progress.enforced, Mark::from(&target(5, 1, b"one")));
        assert_eq!(progress.compiled, progress.enforced);
        assert_eq!(progress.failure, None);
    }

    #[tokio::test]
    async fn a_policy_that_does_not_compile_leaves_the_old_one_in_force() {
        let (log, progress) = replay(
            &[target(5, 1, b"one"), target(6, 2, b"two")],
            &["compile 2"],
        )
        .await;
        assert_eq!(log, ["compile 1", "enforce 1", "keep 1", "compile 2"]);
        assert_eq!(progress.enforced.revision, 1);
        assert_eq!(progress.failure.as_deref(), Some("compile 2 failed"));
    }

    #[tokio::test]
    async fn a_swap_that_never_reaches_the_workers_is_compiled_but_not_enforced() {
        let (log, progress) = replay(&[target(5, 1, b"one")], &["enforce 1"]).await;
        assert_eq!(log, ["compile 1", "enforce 1"]);
        assert_eq!(progress.compiled.revision, 1);
        assert_eq!(progress.enforced, Mark::default());
    }

    #[tokio::test]
    async fn a_full_disk_is_told_but_the_policy_counts_as_enforced() {
        let (_, progress) = replay(&[target(5, 1, b"one")], &["keep 1"]).await;
        assert_eq!(progress.enforced.revision, 1);
        assert_eq!(progress.failure.as_deref(), Some("keep 1 failed"));
    }

    #[tokio::test]
    async fn the_same_target_again_retries_only_what_failed() {
        let twice = [target(5, 1, b"one"), target(5, 1, b"one")];
        let (log, _) = replay(&twice, &["keep 1"]).await;
        assert_eq!(log, ["compile 1", "enforce 1", "keep 1", "keep 1"]);
        let (log, _) = replay(&twice, &["enforce 1"]).await;
        assert_eq!(log, ["compile 1", "enforce 1", "compile 1", "enforce 1"]);
    }

    #[tokio::test]
    async fn neither_the_same_nor_an_older_policy_is_swapped_in() {
        let (log, progress) = replay(
            &[
                target(5, 1, b"one"),
                target(5, 1, b"one"),
                target(4, 0, b"zero"),
            ],
            &[],
        )
        .await;
        assert_eq!(log, ["compile 1", "enforce 1", "keep 1"]);
        assert_eq!(progress.enforced.index, 5);
    }

    #[tokio::test]
    async fn another_history_begins_anew() {
        let joined = Target {
            lineage: Lineage(2),
            ..target(3, 1, b"theirs")
        };
        let (log, progress) = replay(&[target(500, 9, b"own"), joined.clone()], &[]).await;
        assert_eq!(log.len(), 6);
        assert_eq!(progress.enforced, Mark::from(&joined));
    }

    #[tokio::test]
    async fn the_same_document_under_a_new_revision_advances_the_indices() {
        let (log, progress) = replay(&[target(5, 1, b"one"), target(9, 2, b"one")], &[]).await;
        assert_eq!(log.len(), 6);
        assert_eq!(
            (progress.enforced.index, progress.enforced.revision),
            (9, 2)
        );
    }

    /// Feeds the targets one by one; each is settled before the next comes.
    async fn replay(targets: &[Target], failing: &[&str]) -> (Vec<String>, Progress) {
        let recorder = Recorder {
            log: Mutex::default(),
            failing: failing.iter().map(|s| (*s).to_owned()).collect(),
        };
        let (progress, seen) = watch::channel(Progress::default());
        for target in targets {
            let (tx, rx) = watch::channel(Some(target.clone()));
            drop(tx);
            run(&recorder, rx, &progress).await;
        }
        let log = recorder.log.into_inner().expect("no panic while locked");
        (log, seen.borrow().clone())
    }

    fn target(index: u64, revision: u64, document: &[u8]) -> Target {
        let mut hash = [0; 32];
        hash[..document.len()].copy_from_slice(document);
        Target {
            lineage: Lineage(1),
            index,
            revision,
            hash,
            document: document.into(),
        }
    }

    struct Recorder {
        log: Mutex<Vec<String>>,
        failing: Vec<String>,
    }

    impl Recorder {
        fn note(&self, what: &str, revision: u64) -> Result<(), String> {
            let line = format!("{what} {revision}");
            let result = match self.failing.contains(&line) {
                true => Err(format!("{line} failed")),
                false => Ok(()),
            };
            self.log.lock().expect("no panic while locked").push(line);
            result
        }
    }

    impl Enforcer for Recorder {
        type Prepared = u64;

        async fn compile(&self, target: &Target) -> Result<u64, String> {
            self.note("compile", target.revision)
                .map(|()| target.revision)
        }

        async fn enforce(&self, revision: u64) -> Result<(), String> {
            self.note("enforce", revision)
        }

        async fn keep(&self, target: &Target) -> Result<(), String> {
            self.note("keep", target.revision)
        }
    }
}
