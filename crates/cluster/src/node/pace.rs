//! When consensus looks at its clock.
//!
//! openraft asks about five times per heartbeat whether an election or a heartbeat is due. In a cluster at rest
//! neither is: a leader needs nothing but the heartbeats, and a follower that has just heard its leader nothing at
//! all. So the ticks are off in both, and on where they may decide something: in every other node, a follower whose
//! leader has been silent for a whole lease among them. An election cannot start before that in any case.

use std::time::Duration;

use openraft::alias::InstantOf;
use openraft::async_runtime::{Instant, Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ServerState};

use super::{Inner, Node, locked};
use crate::raft::Types;

impl<R: AsyncRuntime> Node<R> {
    /// Sends heartbeats and switches the ticks, until this node stops.
    pub(super) async fn run_pace(self) {
        let inner = &self.inner;
        let timing = inner.config.timing;
        let heartbeat = Duration::from_millis(timing.heartbeat_ms);
        let lease = Duration::from_millis(timing.election_max_ms);
        let mut server = inner.raft.server_metrics();
        loop {
            let state = server.borrow_watched().state;
            let now = Types::<R>::now();
            let heard_until = locked(&inner.contact)
                .as_ref()
                .map(|contact| contact.at + lease);
            let (ticks, look_at) = match (state, heard_until) {
                (ServerState::Leader, _) => {
                    if inner.raft.trigger().heartbeat().await.is_err() {
                        return;
                    }
                    (false, inner.next(heartbeat))
                }
                (ServerState::Follower | ServerState::Learner, Some(until)) if until > now => {
                    (false, until)
                }
                _ => (true, inner.next(heartbeat)),
            };
            inner.raft.runtime_config().tick(ticks);
            let wait = Types::<R>::sleep_until(look_at);
            if let Select2::First(Err(_)) = Types::<R>::select2(server.changed(), wait).await {
                return;
            }
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// The next of the moments that lie `every` apart since this node started. What is done again and again waits for
    /// one of them, so that an idle node is woken for several things at once.
    pub(super) fn next(&self, every: Duration) -> InstantOf<Types<R>> {
        let running = Types::<R>::now().saturating_duration_since(self.started);
        let times = running.as_nanos() / every.as_nanos().max(1) + 1;
        self.started + every.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
    }
}
