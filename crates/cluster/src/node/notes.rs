//! What a member notices, on its way into the change log: kept until a leader has written it down.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::type_config::TypeConfigExt as _;
use tokio::sync::watch;

use super::{Inner, Node};
use crate::command::EventKind;
use crate::event::{Event, EventError};
use crate::raft::Types;

/// Notes that wait for a leader; the oldest go first.
const MAX_WAITING: usize = 64;

/// How long after a failure a note is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Events of this member that the change log does not name yet.
#[derive(Debug, Default)]
pub(super) struct Notes {
    waiting: watch::Sender<VecDeque<Event>>,
    /// How many there were since start.
    count: AtomicU64,
}

impl<R: AsyncRuntime> Node<R> {
    /// Has the change log say what this member noticed, as soon as there is a leader. Forgotten with the process.
    pub fn note(&self, kind: EventKind, subject: String, detail: String) {
        self.inner.note(kind, subject, detail);
    }

    /// Tells whichever member leads, until the node stops.
    pub(super) async fn run_scribe(self) {
        let mut stop = self.inner.stop.subscribe();
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let _ = Types::<R>::select2(stopped, self.tell_notes()).await;
    }

    async fn tell_notes(&self) {
        let notes = &self.inner.notes;
        let mut news = notes.waiting.subscribe();
        loop {
            let first = match news.wait_for(|waiting| !waiting.is_empty()).await {
                Ok(waiting) => waiting.front().expect("it is not empty").clone(),
                Err(_) => return,
            };
            let key = first.key.clone();
            match self.record_event(first).await {
                Ok(()) => {}
                Err(EventError::Refused(refusal)) => {
                    // The cluster will not take it later either.
                    tracing::warn!(%refusal, "the change log does not take an event");
                }
                Err(error) => {
                    tracing::debug!(%error, "an event is not in the change log yet");
                    Types::<R>::sleep(TELL_AGAIN).await;
                    continue;
                }
            }
            notes
                .waiting
                .send_modify(|waiting| waiting.retain(|note| note.key != key));
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// See [`Node::note`].
    pub(super) fn note(&self, kind: EventKind, subject: String, detail: String) {
        let (node, boot) = (self.config.node_id, self.config.incarnation);
        let number = self.notes.count.fetch_add(1, Ordering::Relaxed);
        let event = Event {
            kind,
            actor: String::new(),
            subject,
            detail,
            key: format!("{node} {boot:016x} {number}"),
        };
        self.notes.waiting.send_modify(|waiting| {
            if waiting.len() >= MAX_WAITING {
                waiting.pop_front();
            }
            waiting.push_back(event);
        });
    }
}
