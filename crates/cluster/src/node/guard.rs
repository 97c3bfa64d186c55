//! The amnesia guard at work: asks the other members after a restart, and stands before what they ask of this one.
//!
//! What it decides, and why that is safe, is in [`amnesia`](super::amnesia).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use openraft::async_runtime::{Instant, Select2};
use openraft::raft::{VoteRequest, VoteResponse};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ServerState};
use tokio::sync::watch;

use super::amnesia::{Finding, Own, Question, Recollection, judge};
use super::{Inner, Node, locked};
use crate::id::NodeId;
use crate::raft::network::{packed, peer};
use crate::raft::{LogId, Types, Vote};
use crate::status::Role;
use crate::transport::{Kind, Peer, ServiceError, TransportError};

/// How often the others are asked until enough of them have answered.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long one of them may take, its connection included.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long a leader remembers that a member has less than it acknowledged; such a member goes on asking.
const FORGETFUL_FOR: Duration = Duration::from_secs(2);

/// Nobody: an id that no member has. A vote for it raises the term and elects nobody.
const NOBODY: NodeId = NodeId(0);

/// When a member that has less than it acknowledged has asked this leader.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<T> {
    first: T,
    last: T,
}

/// What one member has answered since this boot.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The term it answered in.
    term: u64,
    /// It leads, and waits for entries that come after some that this member has lost.
    knows_better: bool,
    /// It counts this member's acknowledgements.
    counts: bool,
}

/// What is known so far.
#[derive(Debug)]
struct Known {
    finding: Finding,
    /// The highest floor that any round has found; this member's term is at least that.
    floor: u64,
    heard: BTreeMap<NodeId, Heard>,
    /// The finding rests on nobody's answer: there was nobody to ask.
    alone: bool,
}

/// Stands between other members and consensus.
#[derive(Debug)]
pub(crate) struct Guard {
    known: std::sync::Mutex<Known>,
    /// Members that must be asked before their appends are taken.
    wanted: watch::Sender<BTreeSet<NodeId>>,
}

/// What becomes of a request for a vote.
pub(crate) enum Ballot<R: AsyncRuntime> {
    /// Consensus decides.
    Open,
    /// The candidate's log is not good enough.
    Denied(VoteResponse<Types<R>>),
}

impl Guard {
    /// A guard that lets nothing through yet.
    pub(super) fn new() -> Self {
        let finding = Finding::Waiting {
            missing: BTreeSet::new(),
            empty: BTreeSet::new(),
        };
        Guard {
            known: std::sync::Mutex::new(Known {
                finding,
                floor: 0,
                heard: BTreeMap::new(),
                alone: false,
            }),
            wanted: watch::Sender::default(),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        matches!(locked(&self.known).finding, Finding::Sound { .. })
    }

    /// Whether this member may be asked to lead.
    pub(crate) fn admits_leading(&self) -> Result<(), ServiceError> {
        if self.is_sound() {
            return Ok(());
        }
        Err(ServiceError(
            "this member is not in good standing yet".into(),
        ))
    }

    /// Whether consensus may see what the leader `from` sends in `term`.
    fn admits_append(
        &self,
        (from, is_member): (NodeId, bool),
        term: u64,
    ) -> Result<(), ServiceError> {
        let known = locked(&self.known);
        let (floor, heard) = (known.floor, known.heard.get(&from).copied());
        let waiting = matches!(known.finding, Finding::Waiting { .. });
        let estranged = matches!(known.finding, Finding::Estranged { .. });
        let alone = known.alone;
        drop(known);
        let admitted = match heard {
            _ if estranged => false,
            // Without enough answers only somebody who does not count this member's acknowledgements may have some.
            Some(heard) if waiting => !heard.knows_better && !heard.counts,
            // An earlier term is refused by consensus itself, a later one has begun afresh with this member.
            Some(heard) => !heard.knows_better || term < floor || term > heard.term,
            // Elected after the others have answered, and so begun afresh as well. A stranger to one that had nobody to
            // ask has more to tell.
            None => !waiting && (is_member || !alone) && term > floor,
        };
        if admitted {
            return Ok(());
        }
        if heard.is_none() {
            self.wanted.send_if_modified(|wanted| wanted.insert(from));
        }
        Err(ServiceError(
            "this member has restarted and must ask the others first".into(),
        ))
    }

    /// Whether consensus may see a request for a vote by a candidate whose log ends at `last`.
    fn admits_vote<R: AsyncRuntime>(
        &self,
        request: &VoteRequest<Types<R>>,
        own: Option<Vote>,
    ) -> Result<Ballot<R>, ServiceError> {
        match &locked(&self.known).finding {
            Finding::Waiting { .. } | Finding::Estranged { .. } => Err(ServiceError(
                "this member has restarted and must ask the others first".into(),
            )),
            Finding::Behind { target, .. } if request.last_log_id < Some(*target) => {
                let own = own.unwrap_or_else(|| Vote::new(0, NOBODY));
                Ok(Ballot::Denied(VoteResponse::new(own, Some(*target), false)))
            }
            Finding::Behind { .. } | Finding::Sound { .. } => Ok(Ballot::Open),
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// Why this member is not in good standing after its restart.
    pub(super) fn forgetting(&self) -> Option<String> {
        let finding = locked(&self.guard.known).finding.clone();
        finding.reason(self.store.holds().last)
    }

    /// Whether consensus may see what the leader `from` sends in `term`.
    pub(crate) fn admits_append(&self, from: NodeId, term: u64) -> Result<(), ServiceError> {
        let is_member = self.metrics(|metrics| {
            let members = metrics.membership_config.membership();
            members.get_node(&from).is_some()
        });
        self.guard.admits_append((from, is_member), term)
    }

    /// Whether consensus may see a request for a vote.
    pub(crate) fn admits_vote(
        &self,
        request: &VoteRequest<Types<R>>,
    ) -> Result<Ballot<R>, ServiceError> {
        self.guard.admits_vote(request, self.store.holds().vote)
    }

    /// What this member tells another one that has restarted.
    ///
    /// # Errors
    /// The one that asks lacks something, while a machine of the same identity that lacks nothing was heard just now: it may
    /// be a copy. If that one has ended, a later question is answered.
    pub(crate) fn recollect(
        &self,
        from: NodeId,
        question: &Question,
    ) -> Result<Recollection, ServiceError> {
        let (leads, acknowledged, membership) = self.metrics(|metrics| {
            let leads = metrics.state == ServerState::Leader;
            let replication = metrics.replication.as_ref().filter(|_| leads);
            (
                leads,
                replication.and_then(|of| of.get(&from).cloned().flatten()),
                (*metrics.membership_config).clone(),
            )
        });
        let holds = self.store.holds();
        let mut recollection = Recollection {
            vote: holds.vote,
            last: holds.last,
            membership,
            acknowledged,
            demotes: false,
            legacy: false,
        };
        if leads && recollection.knows_better(question.last) {
            // A copy is no reason to take the original's vote.
            if self.another_runs(from, question.incarnation) {
                return Err(ServiceError(
                    "this member runs elsewhere, or did a moment ago".into(),
                ));
            }
            let now = Types::<R>::now();
            locked(&self.forgetful)
                .entry(from)
                .and_modify(|asked| asked.last = now)
                .or_insert(Asked {
                    first: now,
                    last: now,
                });
            recollection.demotes = self.can_do_without(from);
        }
        Ok(recollection)
    }

    /// Members that have less than they acknowledged to this leader.
    pub(super) fn forgetful(&self) -> BTreeSet<NodeId> {
        self.forgetful_for(Duration::ZERO)
    }

    /// Those of them that have asked for so long that it is known who is live: taken out of the voters while another one
    /// is down unnoticed, a member could not make up the majority any more.
    pub(super) fn certainly_forgetful(&self) -> BTreeSet<NodeId> {
        self.forgetful_for(self.detection_time())
    }

    fn forgetful_for(&self, least: Duration) -> BTreeSet<NodeId> {
        let now = Types::<R>::now();
        let mut forgetful = locked(&self.forgetful);
        forgetful.retain(|_, asked| now < asked.last + FORGETFUL_FOR);
        let certain = forgetful
            .iter()
            .filter(|(_, asked)| now >= asked.first + least);
        certain.map(|(id, _)| *id).collect()
    }

    /// Whether a majority of the voters is live without that one.
    fn can_do_without(&self, node_id: NodeId) -> bool {
        let live: BTreeSet<NodeId> = self
            .leader_members()
            .into_iter()
            .filter(|member| member.live && member.node_id != node_id)
            .map(|member| member.node_id)
            .collect();
        self.metrics(|metrics| {
            metrics
                .membership_config
                .membership()
                .get_joint_config()
                .iter()
                .all(|voters| voters.intersection(&live).count() > voters.len() / 2)
        })
    }

    fn own(&self) -> Own {
        Own {
            id: self.config.node_id,
            holds: self.store.holds(),
            membership: self.metrics(|metrics| (*metrics.membership_config).clone()),
            witnessed: self.store.witnessed(),
            refilling: self.store.is_refilling(),
            alone: locked(&self.guard.known).alone,
        }
    }

    /// What one round of answers comes to.
    fn weigh(
        &self,
        asked: &BTreeSet<NodeId>,
        answers: &BTreeMap<NodeId, Recollection>,
        patient: bool,
    ) -> Finding {
        let own = self.own();
        let found = judge(&own, asked, answers, patient);
        let mut known = locked(&self.guard.known);
        let alone = known.alone;
        known.alone = answers.is_empty() && matches!(found, Finding::Sound { .. });
        for (id, answer) in answers {
            known.heard.insert(
                *id,
                Heard {
                    term: answer.term(),
                    knows_better: answer.knows_better(own.holds.last),
                    counts: answer.legacy
                        || answer.membership.voter_ids().any(|voter| voter == own.id),
                },
            );
        }
        // What enough answers have said stays true; a later round may set another target.
        match (&known.finding, found) {
            (estranged @ Finding::Estranged { .. }, _) => estranged.clone(),
            (_, estranged @ Finding::Estranged { .. }) => estranged,
            (sound @ Finding::Sound { .. }, _) if !alone => sound.clone(),
            (Finding::Behind { target, floor }, Finding::Waiting { .. })
                if own.holds.last >= Some(*target) =>
            {
                Finding::Sound { floor: *floor }
            }
            (behind @ Finding::Behind { .. }, Finding::Waiting { .. }) => behind.clone(),
            (_, found) => found,
        }
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Judges by what is known without asking, which is enough for a member that has nobody to ask.
    pub(super) async fn begin_guard(&self) {
        let asked = self.whom_to_ask().into_keys().collect();
        self.conclude(&asked, &BTreeMap::new(), true).await;
        if self.inner.guard.is_sound()
            && let Some(lost) = self.inner.own().lost()
        {
            tracing::warn!(
                from = self.inner.store.holds().last.map_or(0, |id| id.index),
                to = lost.index,
                "the data of this node went back in time: changes that it had acknowledged are lost, and nobody else has them"
            );
        }
    }

    /// Asks until this member is sound, and later whoever turns up.
    pub(super) async fn run_guard(self) {
        let started = Types::<R>::now();
        let mut wanted = self.inner.guard.wanted.subscribe();
        let mut stop = self.inner.stop.subscribe();
        loop {
            if self.inner.guard.is_sound() && wanted.borrow_and_update().is_empty() {
                let turned_up = async {
                    // The sender lives as long as this node.
                    let _ = wanted.wait_for(|wanted| !wanted.is_empty()).await;
                };
                let stopped = async {
                    let _ = stop.wait_for(|stop| *stop).await;
                };
                if let Select2::First(()) = Types::<R>::select2(stopped, turned_up).await {
                    return;
                }
            }
            let mut peers = self.whom_to_ask();
            for id in wanted.borrow_and_update().iter() {
                peers
                    .entry(*id)
                    .or_insert_with(|| peer(&self.state(), *id, ""));
            }
            let asked = peers.keys().copied().collect();
            let answers = self.ask_all(peers).await;
            let patient = started.elapsed() < self.inner.config.patience;
            self.conclude(&asked, &answers, patient).await;
            // Whoever did not answer comes again.
            self.inner.guard.wanted.send_replace(BTreeSet::new());
            if self.inner.guard.is_sound() {
                continue;
            }
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            if let Select2::First(()) =
                Types::<R>::select2(stopped, Types::<R>::sleep(ASK_EVERY)).await
            {
                return;
            }
        }
    }

    /// Everybody who may know what this member has acknowledged.
    fn whom_to_ask(&self) -> BTreeMap<NodeId, Peer> {
        let state = self.state();
        let mut peers: BTreeMap<NodeId, Peer> = self.inner.metrics(|metrics| {
            metrics
                .membership_config
                .nodes()
                .map(|(id, node)| (*id, peer(&state, *id, &node.cluster)))
                .collect()
        });
        for known in &self.inner.config.known_members {
            peers
                .entry(known.node_id)
                .or_insert_with(|| peer(&state, known.node_id, &known.address));
        }
        // Strangers that have spoken to this node: members that came while it was off.
        for (id, _) in self.inner.transport.relocated() {
            peers.entry(id).or_insert_with(|| peer(&state, id, ""));
        }
        peers.retain(|id, _| *id != self.node_id() && state.removed(*id).is_none());
        peers
    }

    async fn ask_all(&self, peers: BTreeMap<NodeId, Peer>) -> BTreeMap<NodeId, Recollection> {
        let question = packed(&Question {
            incarnation: self.inner.config.incarnation,
            last: self.inner.store.holds().last,
        });
        let asking = peers.into_values().map(|peer| {
            let question = question.clone();
            async move {
                let asked = self.ask_one(&peer, question);
                let answer = Types::<R>::timeout(ANSWER_WITHIN, asked).await;
                Some((peer.node_id, answer.ok()??))
            }
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    async fn ask_one(&self, peer: &Peer, question: Bytes) -> Option<Recollection> {
        let transport = &self.inner.transport;
        let answer = transport
            .call(peer, Kind::Recall, question, ANSWER_WITHIN)
            .await;
        match answer {
            Ok(answer) => rmp_serde::from_slice(&answer).ok(),
            // A version from before this question still tells its term and the end of its log, when it is asked whether
            // it would vote. That changes nothing there.
            Err(TransportError::Refused(why)) if why.contains("knows no request") => {
                let vote = Vote::new(0, self.node_id());
                let request = VoteRequest::<Types<R>>::new(vote, None);
                let answer = transport
                    .call(peer, Kind::PreVote, packed(&request), ANSWER_WITHIN)
                    .await
                    .ok()?;
                let answer: VoteResponse<Types<R>> = rmp_serde::from_slice(&answer).ok()?;
                Some(Recollection {
                    vote: Some(answer.vote),
                    last: answer.last_log_id,
                    legacy: true,
                    ..Recollection::default()
                })
            }
            Err(error) => {
                tracing::debug!(%error, member = %peer.node_id, "a member does not say what this one has acknowledged");
                None
            }
        }
    }

    /// Takes the answers for what they say, and acts on it.
    async fn conclude(
        &self,
        asked: &BTreeSet<NodeId>,
        answers: &BTreeMap<NodeId, Recollection>,
        patient: bool,
    ) {
        let before = locked(&self.inner.guard.known).finding.clone();
        let finding = self.inner.weigh(asked, answers, patient);
        let last = self.inner.store.holds().last;
        let behind = matches!(finding, Finding::Behind { .. });
        let sound = matches!(finding, Finding::Sound { .. });
        let store = &self.inner.store;
        if (behind && !store.is_refilling() || sound && store.is_refilling())
            && store.note_refilling(behind).await.is_err()
        {
            // Nothing is written any more: the control plane restarts from disk, as after any other write that failed.
            let _ = self.inner.raft.shutdown().await;
            return;
        }
        // The floor is laid before anything is let through.
        if let Finding::Behind { floor, .. } | Finding::Sound { floor } = finding {
            self.raise_term(floor, last).await;
        }
        locked(&self.inner.guard.known).finding = finding.clone();
        if matches!(finding, Finding::Estranged { .. }) {
            self.inner.set_candidacy();
            if matches!(self.role(), Role::Leader { .. }) {
                // Whoever sees a later term leads no more.
                let vote = self.inner.store.holds().vote;
                self.raise_term(vote.map_or(0, |vote| vote.leader_id.term) + 1, last)
                    .await;
            }
        }
        match (&before, &finding) {
            (Finding::Waiting { .. }, Finding::Behind { .. }) => {
                let reason = finding.reason(last).unwrap_or_default();
                tracing::warn!(reason, "this member does not vote yet");
            }
            (Finding::Estranged { .. }, _) => {}
            (_, Finding::Estranged { .. }) => {
                let reason = finding.reason(last).unwrap_or_default();
                tracing::error!(reason, "this node is not a member in good standing");
            }
            (Finding::Waiting { .. } | Finding::Behind { .. }, Finding::Sound { .. }) => {
                self.inner.set_candidacy();
                if !asked.is_empty() {
                    let answers = answers.len();
                    tracing::info!(
                        answers,
                        "this member has everything that it may have acknowledged"
                    );
                }
            }
            _ => {}
        }
    }

    /// Sees to it that this member promises nothing more in terms below `floor`, and no vote in it.
    async fn raise_term(&self, floor: u64, last: Option<LogId>) {
        let vote = self.inner.store.holds().vote;
        if vote.map_or(0, |vote| vote.leader_id.term) < floor {
            let mut request = VoteRequest::new(Vote::new(floor, NOBODY), last);
            // No lease stands against it: no leader was heard since this boot.
            request.leadership_transfer = true;
            // It fails only when consensus has stopped, which is noticed elsewhere.
            let _ = self.inner.raft.vote(request).await;
        }
        let mut known = locked(&self.inner.guard.known);
        known.floor = known.floor.max(floor);
    }
}
