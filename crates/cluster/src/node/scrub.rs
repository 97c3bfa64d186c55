//! Takes from this node's disk what it held before secrets were sealed: the log's first entries, and older snapshots.
//!
//! Sealing replaces secrets in the state; the entries that brought them in clear stay in the log until a snapshot covers
//! them, and their bytes in the file until something else is written there. So every node, once, takes a snapshot, purges
//! its log up to it, and overwrites what is free in the file.

use openraft::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver;

use super::{Node, locked};

/// What is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scrub {
    /// Not looked at yet.
    Unknown,
    /// What is before this index may hold secrets in clear.
    Before(u64),
    /// Nothing.
    Done,
}

impl<R: AsyncRuntime> Node<R> {
    /// Takes the next step, if there is one to take.
    pub(super) async fn scrub(&self) {
        let state = self.state();
        if state.data_key().is_none() {
            return;
        }
        let step = *locked(&self.inner.scrub);
        let index = match step {
            Scrub::Done => return,
            Scrub::Before(index) => index,
            Scrub::Unknown => {
                let next = match self.inner.store.is_scrubbed() {
                    Ok(true) => Scrub::Done,
                    Ok(false) => Scrub::Before(state.index()),
                    // A store that cannot be read stops the node by itself.
                    Err(_) => Scrub::Unknown,
                };
                *locked(&self.inner.scrub) = next;
                return;
            }
        };
        let metrics = self.inner.raft.metrics();
        let (snapshot, purged) = {
            let metrics = metrics.borrow_watched();
            (
                metrics.snapshot.map_or(0, |id| id.index),
                metrics.purged.map_or(0, |id| id.index),
            )
        };
        // These fail only when consensus has stopped, which is noticed elsewhere.
        if snapshot < index {
            let _ = self.inner.raft.trigger().snapshot().await;
        } else if purged < index {
            let _ = self.inner.raft.trigger().purge_log(index).await;
        } else if self.inner.store.scrub().await.is_ok() {
            tracing::info!("no secret is left in clear on this node's disk");
            *locked(&self.inner.scrub) = Scrub::Done;
        }
    }
}
