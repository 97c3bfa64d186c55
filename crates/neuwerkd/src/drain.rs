//! Whether this node takes new flows: one place for the two who may say no.
//!
//! An operator drains a node by a command, which is replicated and holds until it is taken back, over restarts too; a
//! mark in the data directory tells so before there is a state. Whoever stops the process drains it on its way out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cluster::{Node, State};
use tokio_util::sync::CancellationToken;

use crate::dataplane::Dataplane;
use crate::readiness::{Part, Readiness};

/// Exists while an operator has this node drained.
const MARK: &str = "draining";

/// What `/ready` says while an operator has the node drained.
const BY_OPERATOR: &str =
    "drained by an operator; new flows are taken again after: neuwerk cluster undrain";

/// Who says no.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    operator: bool,
    stopping: bool,
}

/// The drain of this node.
pub struct Drain {
    dataplane: Arc<Dataplane>,
    readiness: Arc<Readiness>,
    mark: PathBuf,
    said: Mutex<Said>,
    /// Held while what is said is published.
    turns: tokio::sync::Mutex<()>,
}

impl Drain {
    /// Of a node that takes new flows, unless an operator had it drained when it ended.
    pub async fn resume(
        dataplane: Arc<Dataplane>,
        readiness: Arc<Readiness>,
        data_dir: &Path,
    ) -> Arc<Drain> {
        let mark = data_dir.join(MARK);
        let drained = mark.exists();
        let drain = Arc::new(Drain {
            dataplane,
            readiness,
            mark,
            said: Mutex::default(),
            turns: tokio::sync::Mutex::default(),
        });
        if drained {
            drain.say(|said| said.operator = true).await;
        }
        drain
    }

    /// The process is on its way out.
    pub async fn stop(&self) {
        self.say(|said| said.stopping = true).await;
    }

    /// New flows are refused, and none is left.
    pub fn is_drained(&self) -> bool {
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said != Said::default() && self.dataplane.active_flows() == 0
    }

    /// Does what the replicated state says of this node, until `life` ends.
    pub async fn follow(self: Arc<Self>, node: Node, life: CancellationToken) {
        let node_id = node.node_id();
        let wanted = move |state: &State| state.member(node_id).map(|member| member.draining);
        let mut state = node.watch_changes(move |old, new| wanted(old) != wanted(new));
        loop {
            let wanted = wanted(&state.borrow_and_update());
            // A state that does not name this node yet says nothing about it.
            if let Some(wanted) = wanted {
                self.set_by_operator(wanted).await;
            }
            tokio::select! {
                () = life.cancelled() => return,
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn set_by_operator(&self, draining: bool) {
        let before = self
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .operator;
        if before == draining {
            return;
        }
        if let Err(error) = self.set_mark(draining) {
            tracing::warn!(%error, "a restart will not know at once whether this node is drained");
        }
        tracing::info!(
            draining,
            "an operator has said whether this node takes new flows"
        );
        self.say(|said| said.operator = draining).await;
    }

    fn set_mark(&self, draining: bool) -> io::Result<()> {
        if draining {
            return cluster::durable::replace(&self.mark, b"new flows are refused\n", 0o600);
        }
        match std::fs::remove_file(&self.mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn say(&self, change: impl FnOnce(&mut Said)) {
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut said);
            match *said {
                Said { stopping: true, .. } => self
                    .readiness
                    .set_failed(Part::Draining, "the node was asked to stop"),
                Said { operator: true, .. } => {
                    self.readiness.set_failed(Part::Draining, BY_OPERATOR);
                }
                Said { .. } => self.readiness.set_ok(Part::Draining, "not draining"),
            }
        }
        // What was said last is what is published last.
        let _turn = self.turns.lock().await;
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.dataplane.set_draining(said != Said::default()).await {
            tracing::warn!(%error, "a packet worker does not know yet whether new flows are taken");
        }
    }
}
