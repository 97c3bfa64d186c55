//! Telling peers what is granted here, and taking in what they tell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::transport::{Kind, ServiceError};
use cluster::{ForwardError, Node, NodeId, State};
use grants::stream::{Answer, Body, End, Push};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Grants, Peer, lock};

/// How often a peer hears that this node lives, if nothing else.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Messages under way to a peer.
const UNDER_WAY: usize = 16;
/// Changes in a message.
const CHANGES: usize = 512;
/// Names in a message of everything.
const NAMES: usize = 512;
/// How long a message may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause before a peer that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

type Asked = Pin<Box<dyn Future<Output = Result<Bytes, ForwardError>> + Send>>;

impl Grants {
    /// Takes in what peers tell, and tells each of them, until `life` ends.
    pub(crate) fn keep_in_step(self: Arc<Self>, node: &Node, life: CancellationToken) {
        *lock(&self.began) = std::time::Instant::now();
        self.change_peers(|peers| peers.values_mut().for_each(|peer| peer.in_touch = false));
        let (grants, own) = (Arc::clone(&self), node.node_id());
        node.set_handler(
            Kind::Grants,
            Arc::new(move |from: NodeId, body: Bytes| {
                let answer = grants.take(from, own, &body);
                Box::pin(std::future::ready(answer))
            }),
        );
        let node = node.clone();
        tokio::spawn(async move {
            life.run_until_cancelled(self.feed_members(node)).await;
            // The control plane starts anew, or ends: meanwhile nobody is told, and may grant what is not heard of here.
            self.change_peers(|peers| peers.values_mut().for_each(Peer::set_unreachable));
        });
    }

    fn take(&self, from: NodeId, own: NodeId, body: &[u8]) -> Result<Bytes, ServiceError> {
        let push = Push::decode(body).map_err(|error| ServiceError(error.to_string()))?;
        let answer = self.change(|store, now_ms| store.take(from.0, own.0, &push, now_ms));
        self.change_peer(from, |peer| {
            (peer.heard, peer.in_touch) = (Some(std::time::Instant::now()), true);
        });
        Ok(answer.encode().into())
    }

    /// Has a task for each other member.
    async fn feed_members(self: &Arc<Self>, node: Node) {
        let mut states = node.watch_changes(has_other_members);
        let mut feeds: BTreeMap<NodeId, AbortOnDropHandle<()>> = BTreeMap::new();
        loop {
            let state = states.borrow_and_update().clone();
            self.barred.meet(&state);
            let mut members = members(&state);
            members.remove(&node.node_id());
            feeds.retain(|id, _| members.contains(id));
            self.change_peers(|peers| peers.retain(|id, _| members.contains(&NodeId(*id))));
            for id in members {
                feeds.entry(id).or_insert_with(|| {
                    self.change_peers(|peers| {
                        let peer = peers.entry(id.0).or_default();
                        (peer.waited_for, peer.missed, peer.reachable) = (true, 0, None);
                    });
                    let feeding = Arc::clone(self).feed(node.clone(), id);
                    AbortOnDropHandle::new(tokio::spawn(feeding))
                });
            }
            self.met.send_replace(true);
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells a member whatever is new, while names are granted at all.
    async fn feed(self: Arc<Self>, node: Node, peer: NodeId) {
        let (mut news, mut needed) = (self.news.subscribe(), self.needed.subscribe());
        loop {
            if needed.wait_for(|needed| *needed).await.is_err() {
                return;
            }
            let Err(error) = self.stream(&node, peer, &mut news).await;
            tracing::debug!(%peer, %error, "a member cannot be told what is granted");
            self.change_peer(peer, Peer::set_unreachable);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn stream(
        &self,
        node: &Node,
        peer: NodeId,
        news: &mut watch::Receiver<u64>,
    ) -> Result<Infallible, ForwardError> {
        let mut under_way: VecDeque<(u64, Asked)> = VecDeque::new();
        let mut next = lock(&self.peers)
            .get(&peer.0)
            .map_or(1, |peer| peer.at.max(1));
        let mut due = Instant::now();
        loop {
            while under_way.len() < UNDER_WAY
                && (*news.borrow_and_update() > next || Instant::now() >= due)
            {
                let push = self.read(|store, now_ms| store.changes_from(next, CHANGES, now_ms));
                let Some(push) = push else {
                    under_way.clear();
                    next = self.tell_everything(node, peer).await?;
                    continue;
                };
                if let Body::Changes { changes, .. } = &push.body {
                    next += changes.len() as u64;
                }
                due = Instant::now() + HEARTBEAT;
                let mut asked = ask(node, peer, &push);
                // It is sent now, so that the order stays.
                if let std::task::Poll::Ready(answer) = futures::poll!(&mut asked) {
                    asked = Box::pin(std::future::ready(answer));
                }
                under_way.push_back((next, asked));
            }
            let has_room = under_way.len() < UNDER_WAY;
            tokio::select! {
                Some((place, answer)) = first(&mut under_way) => {
                    under_way.pop_front();
                    let answer = read(&answer?)?;
                    if answer.wants_all {
                        under_way.clear();
                        next = self.tell_everything(node, peer).await?;
                    } else {
                        self.has_come_to(peer, place);
                    }
                }
                changed = news.changed(), if has_room => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep_until(due), if has_room => {}
            }
        }
    }

    /// Tells a member all that is held, and where the stream goes on behind it. What is new meanwhile it hears between the
    /// parts, and once more behind them.
    async fn tell_everything(&self, node: &Node, peer: NodeId) -> Result<u64, ForwardError> {
        let next = self.read(|store, _now_ms| store.next_place());
        let (mut part, mut from, mut new) = (0, Some(0), next);
        while let Some(at) = from {
            let changes = self.read(|store, now_ms| {
                let is_new = store.next_place() > new;
                is_new.then(|| store.changes_from(new, CHANGES, now_ms))
            });
            if let Some(push) = changes.flatten() {
                if let Body::Changes { changes, .. } = &push.body {
                    new += changes.len() as u64;
                }
                read(&ask(node, peer, &push).await?)?;
            }
            let (push, then) =
                self.read(|store, now_ms| store.everything(part, at, NAMES, End { next }, now_ms));
            read(&ask(node, peer, &push).await?)?;
            (part, from) = (part + 1, then);
        }
        self.has_come_to(peer, next);
        Ok(next)
    }

    fn has_come_to(&self, peer: NodeId, place: u64) {
        let newest = *self.news.borrow();
        self.change_peer(peer, |peer| {
            peer.at = place;
            peer.reachable = Some(true);
            if place >= newest || peer.waited_for {
                peer.waited_for = true;
                peer.missed = 0;
            }
        });
    }

    fn change_peer(&self, peer: NodeId, change: impl FnOnce(&mut Peer)) {
        self.change_peers(|peers| {
            if let Some(peer) = peers.get_mut(&peer.0) {
                change(peer);
            }
        });
    }
}

fn ask(node: &Node, peer: NodeId, push: &Push) -> Asked {
    let (node, body) = (node.clone(), Bytes::from(push.encode()));
    Box::pin(async move { node.ask_member(peer, Kind::Grants, body, DEADLINE).await })
}

fn read(answer: &Bytes) -> Result<Answer, ForwardError> {
    Answer::decode(answer).map_err(|error| ForwardError::Lost(error.to_string()))
}

/// The outcome of what was asked first, if anything was.
async fn first(
    under_way: &mut VecDeque<(u64, Asked)>,
) -> Option<(u64, Result<Bytes, ForwardError>)> {
    let (place, asked) = under_way.front_mut()?;
    let answer = asked.await;
    Some((*place, answer))
}

fn members(state: &State) -> BTreeSet<NodeId> {
    state.members().map(|member| member.node_id).collect()
}

fn has_other_members(old: &State, new: &State) -> bool {
    members(old) != members(new)
}
