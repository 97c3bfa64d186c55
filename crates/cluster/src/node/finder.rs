//! Finding members again whose addresses have changed.
//!
//! A node that has no leader asks, at the addresses that it was told of by `--join` and at every one that it knows,
//! whichever member is there where the others are, and says where it is itself. Each takes the other's word for its own
//! address at once and writes nothing down: with a quorum in reach there will be a leader, and that writes every
//! address into the replicated state. So all addresses of all members may change while all are down.
//!
//! A leader asks the same of members that do not answer it: so one hears where the others are of which everybody that it
//! knew is gone, or whose disk went back to before it knew anybody.
//!
//! The same question tells a node that was removed so: no member answers it otherwise than by refusing it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::async_runtime::Select2;
use openraft::type_config::TypeConfigExt;
use serde::{Deserialize, Serialize};

use super::{Inner, Node, locked};
use crate::id::NodeId;
use crate::raft::Types;
use crate::raft::network::peer;
use crate::status::{NoLeader, Role};
use crate::transport::Search;

/// How often members are looked for, at first and later.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// What a member asks that looks for others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Lost {
    /// `host:port` of its cluster listener.
    pub(crate) address: String,
    /// Its boot; 0 in versions that do not say.
    pub(crate) incarnation: u64,
}

/// What a member that was found answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Found {
    /// `host:port` of its own cluster listener.
    pub(crate) address: String,
    /// Where the members are, as far as it knows.
    pub(crate) members: BTreeMap<NodeId, String>,
    /// Where the machine is that has this identity, if the one that asks is a copy of it.
    pub(crate) duplicate_of: Option<String>,
}

impl<R: AsyncRuntime> Node<R> {
    /// Looks for members while there is no leader, and as a leader for those that do not answer, until the node stops.
    pub(super) async fn run_finder(self) {
        let mut stop = self.inner.stop.subscribe();
        let (first, longest) = LOOK_EVERY;
        let mut pause = first;
        loop {
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            if let Select2::First(()) = Types::<R>::select2(stopped, Types::<R>::sleep(pause)).await
            {
                return;
            }
            let (lost, addresses) = match self.role() {
                Role::NoLeader {
                    reason: NoLeader::Stopped,
                }
                | Role::Follower { .. } => (false, BTreeSet::new()),
                Role::NoLeader { .. } => (true, self.inner.everywhere()),
                Role::Leader { .. } => (false, self.inner.silent()),
            };
            if addresses.is_empty() {
                pause = first;
            } else {
                self.look(addresses, lost).await;
                pause = (pause * 2).min(longest);
            }
        }
    }

    /// Asks at `addresses`. Of third members only a node that is lost takes anybody's word.
    async fn look(&self, addresses: BTreeSet<String>, lost: bool) {
        let inner = &self.inner;
        let own = inner.config.addresses.cluster.clone();
        let before = inner.recorded();
        let question = Lost {
            address: own.clone(),
            incarnation: inner.config.incarnation,
        };
        let search = Search {
            addresses: addresses.into_iter().collect(),
            own,
            body: packed(&question),
            deadline: LOOK_LIMIT,
        };
        for (from, answer) in inner.transport.find(search).await {
            // Whoever it is has proved it; what cannot be read says nothing.
            let Ok(found) = rmp_serde::from_slice::<Found>(&answer) else {
                continue;
            };
            if let Some(first) = found.duplicate_of {
                *locked(&inner.duplicate_of) = Some(first);
            }
            let now = inner.recorded();
            let thirds = still_news(found.members, &before, &now);
            for (id, address) in thirds.filter(|_| lost) {
                if id != from && id != self.node_id() && !inner.is_relocated(id) {
                    inner.relocate(id, &address);
                }
            }
            inner.relocate(from, &found.address);
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// Answers a member that looks for others, and takes its word for where it is.
    pub(crate) fn answer_lost(&self, from: NodeId, body: &[u8]) -> Result<Bytes, String> {
        let lost: Lost = rmp_serde::from_slice(body).map_err(|error| error.to_string())?;
        // Two machines with one identity, if it is: the one that others hear stays where it is.
        let duplicate_of = if self.is_live_elsewhere(from, &lost.address) {
            self.second_of_two(from, lost.incarnation, &lost.address)
        } else {
            self.relocate(from, &lost.address);
            None
        };
        Ok(packed(&Found {
            address: self.config.addresses.cluster.clone(),
            members: self.whereabouts(),
            duplicate_of,
        }))
    }

    /// Wherever somebody may be that knows where the members are.
    fn everywhere(&self) -> BTreeSet<String> {
        let mut addresses: BTreeSet<String> = self.config.find_at.iter().cloned().collect();
        addresses.extend(self.whereabouts().into_values());
        addresses.remove(&self.config.addresses.cluster);
        addresses
    }

    /// Where those members are on record that do not answer this leader.
    fn silent(&self) -> BTreeSet<String> {
        self.leader_members()
            .into_iter()
            .filter(|member| !member.live && member.node_id != self.config.node_id)
            .map(|member| member.address)
            .filter(|address| !address.is_empty())
            .collect()
    }

    /// Where the members are: on record, or where they were found.
    fn whereabouts(&self) -> BTreeMap<NodeId, String> {
        let mut all = self.recorded();
        for (id, address) in self.transport.relocated() {
            if let Some(known) = all.get_mut(&id) {
                *known = address;
            }
        }
        all.retain(|_, address| !address.is_empty());
        all
    }

    /// Where they are on record.
    fn recorded(&self) -> BTreeMap<NodeId, String> {
        let state = self.state.borrow().clone();
        let others = state
            .members()
            .filter(|member| member.node_id != self.config.node_id);
        others
            .map(|member| (member.node_id, member.addresses.cluster.clone()))
            .collect()
    }

    fn is_relocated(&self, node_id: NodeId) -> bool {
        let relocated = self.transport.relocated();
        relocated.iter().any(|(id, _)| *id == node_id)
    }

    /// Has a member dialled at `address` until its address of record changes.
    pub(super) fn relocate(&self, node_id: NodeId, address: &str) {
        if address.is_empty() {
            return;
        }
        let recorded = peer(&self.state.borrow(), node_id, "").address;
        self.transport.relocate(node_id, &recorded, address);
    }
}

/// What was said of members whose address of record is what it was when that was asked: a look takes a while, and what
/// another one had on record then may have been replaced here since.
fn still_news(
    said: BTreeMap<NodeId, String>,
    before: &BTreeMap<NodeId, String>,
    now: &BTreeMap<NodeId, String>,
) -> impl Iterator<Item = (NodeId, String)> {
    said.into_iter()
        .filter(|(id, _)| before.get(id) == now.get(id))
}

fn packed(value: &impl Serialize) -> Bytes {
    Bytes::from(rmp_serde::to_vec_named(value).expect("no value that MessagePack lacks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_member_had_on_record_does_not_replace_a_newer_record() {
        let [a, b] = [1, 2].map(NodeId);
        let places = |of_a: &str, of_b: &str| BTreeMap::from([(a, of_a.into()), (b, of_b.into())]);
        let before = places("10.0.0.1:9600", "10.0.0.2:9600");
        let now = places("10.0.0.101:9600", "10.0.0.2:9600");
        let said = places("10.0.0.1:9600", "10.0.0.102:9600");
        let news: Vec<_> = still_news(said, &before, &now).collect();
        assert_eq!(news, [(b, "10.0.0.102:9600".to_owned())]);
    }
}
