//! Whether a restarted member may vote and acknowledge: the amnesia guard's decision.
//!
//! Raft lets a member forget nothing that it has promised: neither its vote in a term, nor an entry that it has
//! acknowledged. A disk that was exchanged for an older copy (a virtual machine rolled back, a restored backup) or emptied
//! breaks that, and a write that only this member and one that is down now had acknowledged is then outvoted and lost.
//! So every boot begins by asking the other members, and nothing is promised before enough of them have answered.
//!
//! # What is asked, and what follows
//!
//! Each member answers with its term, the end of its log, its newest membership, and, if it leads, the newest entry that
//! the asking member has acknowledged to it. From the answers:
//! - the **floor**, the highest term in any answer: this member promises nothing in lower terms, and votes only in
//!   higher ones;
//! - the **target**, the highest end of any voter's log: this member votes as if its own log ended there, that is only for
//!   candidates whose log is as good, and is no candidate itself before its own log is.
//!
//! A member whose log reaches the target is *sound* and does everything; one that is *behind* may follow, and becomes
//! sound by following.
//!
//! # Why that is safe
//!
//! Let this member's acknowledgement have counted for a committed entry `e`, and let it have forgotten that. `e` is on a
//! quorum of q of n voters, so at least q - 1 others have it. When n - q + 1 others have answered, one of those has: its
//! log's end is at least `e`, and so is the target. Raft's own argument then holds with that member's log in place of this
//! one's: a candidate whose log is as good as one that holds `e`, holds `e`. For votes likewise: had this member's
//! forgotten vote elected a leader of term t, then q - 1 others have seen t, one of them has answered, and the floor is
//! at least t. Acknowledgements that are given afterwards are ordinary ones, since the entries are on this disk from then
//! on. So even a member that is behind counts for new entries; what it must not do is decide elections by its old log.
//! A member with an empty log confirms nothing, or a majority of wiped members would confirm one another.
//! An acknowledgement of the earlier boot that is still on its way when the answer is given is not covered: it would have
//! to outlive its connection.
//!
//! # How many answers
//!
//! n - q + 1 others are both others of three. Insisting on that would stop a cluster of which one member is down whenever
//! another restarts, though a majority is there. So q - 1 others (with this member a majority) are always needed, and are
//! enough in two cases:
//! - a [witness](crate::store::witness) has seen what was acknowledged in this boot of the machine, so it need not be
//!   asked about: after the restart of a process nobody waits;
//! - nobody else has answered for a while ([`NodeConfig::patience`](super::NodeConfig::patience), 10 s). This is one
//!   gap: a machine that was rolled back *and* rebooted, while the only other member that had the lost entries is down
//!   and stays down. Without it the loss of one machine of three in a power failure would stop the other two for ever.
//!
//! What that means:
//! - *A lone node* asks nobody, and goes on with what it has, for nobody else has more; that its data went back is logged.
//!   One whose disk went back to the time when it was alone knows nobody to ask either. It asks the first stranger that
//!   speaks to it and can prove that it is a member, learns that the cluster goes on without it, and does nothing any more
//!   before it has joined anew. What it has let through until that moment is the other gap.
//! - *A member that is behind* notes so on its disk before it follows, until it has everything: its log is that of an
//!   earlier time meanwhile, in which the founder was alone, and must not be believed after another restart.
//! - *A member that was off while everybody it knows was replaced* asks whoever speaks to it and proves to be a member.
//! - *Two voters*: each needs the other, as always.
//! - *All restart at once*: each asks each. Whoever has the best log finds itself sound at once and is elected by the
//!   others, who are behind it or equal to it. Nobody waits for anything but the others' start.
//! - *A wiped member*: behind, whatever the others say. It follows, and votes once it has everything back.
//! - *A majority that is itself new*: it confirms nobody, and nobody leads. That is the truth, and `neuwerk cluster recover`
//!   is the remedy.
//!
//! # Getting the lost entries back
//!
//! A leader never sends again what a member has acknowledged to it in its term; in openraft such a member is neither
//! refused nor repaired. A leader that is asked by a member which has less than it acknowledged therefore takes that member
//! out of the voters and in again as a learner, where it begins afresh, if a majority of the voters is live without it.
//! Otherwise the member calls for a new term, in which it can vote for nobody but a member that has everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::raft::{LogId, Membership, Vote};
use crate::store::witness::Seen;

/// What a restarted member asks the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) incarnation: u64,
    pub(crate) last: Option<LogId>,
}

/// What a member answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Recollection {
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
    /// The newest entry that the asking member has acknowledged to this leader; none elsewhere.
    pub(crate) acknowledged: Option<LogId>,
    /// This leader makes a learner of the asking member, so that it can begin afresh.
    pub(crate) demotes: bool,
    /// The member runs a version that does not know the question: it told its vote and the end of its log only.
    #[serde(skip)]
    pub(crate) legacy: bool,
}

impl Recollection {
    /// The answering leader waits for entries after one that a log ending with `last` does not have.
    pub(crate) fn knows_better(&self, last: Option<LogId>) -> bool {
        self.acknowledged > last
    }

    pub(crate) fn term(&self) -> u64 {
        term(self.vote)
    }
}

fn term(vote: Option<Vote>) -> u64 {
    vote.map_or(0, |vote| vote.leader_id.term)
}

/// What this member has.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) id: NodeId,
    pub(crate) holds: Seen,
    pub(crate) membership: Membership,
    /// What the witness has seen this member acknowledge.
    pub(crate) witnessed: Option<Seen>,
    /// It is known to lack what it once had, so that its log does not say who is a member.
    pub(crate) refilling: bool,
    /// It has gone ahead for itself in this boot, since nobody answered.
    pub(crate) alone: bool,
}

/// What follows from the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Not enough answers: nothing is promised.
    Waiting {
        /// Voters that have not answered.
        missing: BTreeSet<NodeId>,
        /// Voters that have nothing to tell, having an empty log.
        empty: BTreeSet<NodeId>,
    },
    /// It may follow, and votes for those whose log ends at `target` at least.
    Behind {
        /// Where its log would have to end.
        target: LogId,
        /// It votes in higher terms only.
        floor: u64,
    },
    /// Its data is from before it had other members; these have it newer. What it wrote alone since cannot be theirs.
    Estranged {
        /// The voters of the newest membership.
        voters: BTreeSet<NodeId>,
    },
    /// It has everything that it may have acknowledged.
    Sound {
        /// It votes in higher terms only.
        floor: u64,
    },
}

/// Judges by the answers of one round. `asked` are all that could be asked; `patient` while more answers may come.
pub(crate) fn judge(
    own: &Own,
    asked: &BTreeSet<NodeId>,
    answers: &BTreeMap<NodeId, Recollection>,
    patient: bool,
) -> Finding {
    let newest = answers
        .values()
        .map(|answer| &answer.membership)
        .chain((!own.refilling).then_some(&own.membership))
        .max_by_key(|membership| *membership.log_id())
        .cloned()
        .unwrap_or_default();
    let voters: BTreeSet<NodeId> = newest.membership().voter_ids().collect();
    let lone = BTreeSet::from([own.id]);
    // A lone voter agrees to every other one that comes: it cannot miss one unless its disk went back.
    if own.alone && own.membership.voter_ids().eq([own.id]) && voters != lone {
        return Finding::Estranged { voters };
    }
    let counts = |id: &NodeId| answers.get(id).is_some_and(|answer| answer.last.is_some());

    let enough = if voters.is_empty() {
        // Nobody knows of a cluster. A store that is about to found one has nobody to ask either, and one that was just
        // let in by members of an older version is told no more than where their logs end.
        asked.is_empty() && !own.refilling || answers.values().any(|answer| answer.legacy)
    } else if voters == lone && !asked.is_empty() && answers.is_empty() {
        // Others are known: learners, or voters that came after this disk was copied.
        own.witnessed.is_some() || !patient
    } else {
        newest.membership().get_joint_config().iter().all(|config| {
            let others = config.iter().filter(|id| **id != own.id);
            let heard = others.clone().filter(|id| counts(id)).count();
            let (few, all) = needed(config.len(), config.contains(&own.id));
            let few_do = own.witnessed.is_some() || !patient;
            heard >= if few_do { few } else { all.min(others.count()) }
        })
    };
    if !enough {
        let others = || voters.iter().chain(asked).filter(|id| **id != own.id);
        return Finding::Waiting {
            missing: others()
                .filter(|id| !answers.contains_key(id))
                .copied()
                .collect(),
            empty: others()
                .filter(|id| answers.contains_key(id) && !counts(id))
                .copied()
                .collect(),
        };
    }

    let witnessed = own.witnessed.clone().unwrap_or_default();
    if answers.is_empty() && voters.is_subset(&lone) && (asked.is_empty() || !patient) {
        let floor = term(witnessed.vote);
        return Finding::Sound { floor };
    }
    // What only a learner has is not committed, and nobody who may lead may ever have it.
    let decides = |id: &NodeId| voters.is_empty() || voters.contains(id);
    let target = answers
        .iter()
        .flat_map(|(id, answer)| {
            let last = answer.last.filter(|_| decides(id));
            [last, answer.acknowledged]
        })
        .fold(witnessed.last, Option::max);
    // A leader that cannot let this member begin afresh must begin a new term instead.
    let forced = answers
        .values()
        .filter(|answer| answer.knows_better(own.holds.last) && !answer.demotes)
        .map(|answer| answer.term() + 1);
    let floor = answers
        .values()
        .map(Recollection::term)
        .chain(forced)
        .fold(term(witnessed.vote), u64::max);
    match target {
        Some(target) if own.holds.last < Some(target) => Finding::Behind { target, floor },
        _ => Finding::Sound { floor },
    }
}

/// Answers of others that a voter set of `size` asks for: at least, and for certainty.
fn needed(size: usize, member: bool) -> (usize, usize) {
    let quorum = size / 2 + 1;
    if member {
        (quorum - 1, size - quorum + 1)
    } else {
        (quorum, quorum)
    }
}

impl Own {
    /// The newest entry that this member has acknowledged in this boot and does not have; none: it has everything.
    pub(crate) fn lost(&self) -> Option<LogId> {
        let seen = self.witnessed.as_ref()?.last;
        seen.filter(|_| seen > self.holds.last)
    }
}

impl Finding {
    /// Why the member is not in good standing; none if it is.
    pub(crate) fn reason(&self, last: Option<LogId>) -> Option<String> {
        let list = |ids: &BTreeSet<NodeId>| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.join(", ")
        };
        match self {
            Finding::Waiting { missing, empty } => {
                let mut reason = format!(
                    "it has restarted, and too few members have confirmed what it acknowledged before; no answer from: {}",
                    list(missing)
                );
                if !empty.is_empty() {
                    reason += &format!("; lost their logs: {}", list(empty));
                }
                Some(reason + " (if they are gone for good: neuwerk cluster recover)")
            }
            Finding::Behind { target, .. } => Some(format!(
                "it may have acknowledged entries up to {} and has them up to {}; it does not count until it has caught up",
                target.index,
                last.map_or(0, |id| id.index)
            )),
            Finding::Estranged { voters } => Some(format!(
                "its data is from before the cluster had other members ({}), who go on without it; it becomes a member \
                 again with: neuwerk cluster rejoin",
                list(voters)
            )),
            Finding::Sound { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderIdExt;

    use super::*;
    use crate::raft::{Address, LeaderId};

    fn id(term: u64, index: u64) -> Option<LogId> {
        let leader = <LeaderId as RaftLeaderIdExt>::new_committed(term, NodeId(1));
        (index > 0).then(|| LogId::new(leader, index))
    }

    fn members(voters: u64) -> Membership {
        let ids: BTreeSet<NodeId> = (1..=voters).map(NodeId).collect();
        let nodes: BTreeMap<NodeId, Address> =
            ids.iter().map(|id| (*id, Address::default())).collect();
        let membership = openraft::Membership::new(vec![ids], nodes).expect("hangs together");
        Membership::new(id(1, 1), membership)
    }

    fn seen(term: u64, index: u64) -> Seen {
        Seen {
            vote: Some(Vote::new(term, NodeId(1))),
            last: id(term, index),
        }
    }

    fn answer(term: u64, index: u64) -> Recollection {
        let Seen { vote, last } = seen(term, index);
        Recollection {
            vote,
            last,
            ..Recollection::default()
        }
    }

    /// Member 1 of `voters`, whose log ends at `holds` (term, index), with these answers from 2, 3, ….
    struct Case {
        voters: u64,
        holds: (u64, u64),
        witnessed: Option<(u64, u64)>,
        answers: Vec<Option<Recollection>>,
        patient: bool,
    }

    impl Case {
        fn judge(&self) -> Finding {
            let own = Own {
                id: NodeId(1),
                holds: seen(self.holds.0, self.holds.1),
                membership: members(self.voters),
                witnessed: self.witnessed.map(|(term, index)| seen(term, index)),
                refilling: false,
                alone: false,
            };
            let asked = (2..=self.voters).map(NodeId).collect();
            let answers = (2..)
                .map(NodeId)
                .zip(self.answers.clone())
                .filter_map(|(id, answer)| Some((id, answer?)))
                .collect();
            judge(&own, &asked, &answers, self.patient)
        }
    }

    fn check(
        voters: u64,
        holds: (u64, u64),
        witnessed: Option<(u64, u64)>,
        answers: &[Option<(u64, u64)>],
        patient: bool,
        expected: &str,
    ) {
        let case = Case {
            voters,
            holds,
            witnessed,
            answers: answers
                .iter()
                .map(|one| one.map(|(term, index)| answer(term, index)))
                .collect(),
            patient,
        };
        let found = match case.judge() {
            Finding::Waiting { .. } => "waits".to_owned(),
            Finding::Behind { target, floor } => {
                format!(
                    "behind {}.{}, above {floor}",
                    target.leader_id.term, target.index
                )
            }
            Finding::Estranged { .. } => "estranged".to_owned(),
            Finding::Sound { floor } => format!("sound above {floor}"),
        };
        assert_eq!(
            found, expected,
            "{voters} voters, holds {holds:?}, witnessed {witnessed:?}, answers {answers:?}, patient {patient}"
        );
    }

    #[test]
    fn enough_others_must_answer() {
        let (same, ahead) = (Some((3, 9)), Some((4, 12)));
        // A lone voter asks nobody.
        check(1, (3, 9), None, &[], true, "sound above 0");
        check(1, (3, 9), Some((3, 9)), &[], true, "sound above 3");
        check(1, (3, 9), Some((4, 11)), &[], true, "sound above 4");
        // Two need each other.
        check(2, (3, 9), None, &[None], true, "waits");
        check(2, (3, 9), None, &[None], false, "waits");
        check(2, (3, 9), None, &[same], true, "sound above 3");
        check(2, (3, 9), None, &[ahead], true, "behind 4.12, above 4");
        // Of three, both others: or one, with a witness, or when patience has run out.
        check(3, (3, 9), None, &[same, None], true, "waits");
        check(3, (3, 9), None, &[same, None], false, "sound above 3");
        check(3, (3, 9), None, &[None, None], false, "waits");
        check(
            3,
            (3, 9),
            Some((3, 9)),
            &[same, None],
            true,
            "sound above 3",
        );
        check(3, (3, 9), Some((3, 9)), &[None, None], true, "waits");
        check(
            3,
            (3, 9),
            Some((3, 10)),
            &[same, None],
            true,
            "behind 3.10, above 3",
        );
        check(
            3,
            (3, 9),
            None,
            &[same, ahead],
            true,
            "behind 4.12, above 4",
        );
        check(
            3,
            (3, 9),
            None,
            &[same, Some((2, 8))],
            true,
            "sound above 3",
        );
        // Of four, two; of five, three.
        check(4, (3, 9), None, &[same, None, None], true, "waits");
        check(4, (3, 9), None, &[same, None, same], true, "sound above 3");
        check(5, (3, 9), None, &[same, None, same, None], true, "waits");
        check(
            5,
            (3, 9),
            None,
            &[same, None, same, None],
            false,
            "sound above 3",
        );
        check(
            5,
            (3, 9),
            None,
            &[same, same, same, None],
            true,
            "sound above 3",
        );
    }

    #[test]
    fn an_empty_log_confirms_nothing() {
        let (same, wiped) = (Some((3, 9)), Some((3, 0)));
        check(3, (3, 9), None, &[wiped, wiped], true, "waits");
        check(3, (3, 9), None, &[wiped, wiped], false, "waits");
        check(3, (3, 9), None, &[same, wiped], true, "waits");
        check(3, (3, 0), None, &[same, same], true, "behind 3.9, above 3");
    }

    #[test]
    fn what_only_a_learner_has_holds_nobody_up() {
        let same = Some(answer(3, 9));
        let ahead = Some(answer(3, 10));
        for (voters, learner, expected) in [
            (3, ahead.clone(), Finding::Sound { floor: 3 }),
            (
                4,
                ahead,
                Finding::Behind {
                    target: id(3, 10).expect("an entry"),
                    floor: 3,
                },
            ),
        ] {
            let case = Case {
                voters,
                holds: (3, 9),
                witnessed: None,
                answers: vec![same.clone(), same.clone(), learner],
                patient: true,
            };
            assert_eq!(case.judge(), expected, "{voters} voters");
        }
    }

    #[test]
    fn a_founder_that_is_being_refilled_does_not_believe_that_it_is_alone() {
        let asked = BTreeSet::from([NodeId(2), NodeId(3)]);
        let founder = |refilling, alone| Own {
            id: NodeId(1),
            holds: seen(1, 5),
            membership: members(1),
            witnessed: None,
            refilling,
            alone,
        };
        let full = Recollection {
            membership: Membership::new(id(2, 8), members(3).membership().clone()),
            ..answer(3, 9)
        };
        let nobody = BTreeMap::new();
        let both = BTreeMap::from([(NodeId(2), full.clone()), (NodeId(3), full)]);
        for patient in [true, false] {
            let refilling = founder(true, false);
            let found = judge(&refilling, &asked, &nobody, patient);
            assert!(matches!(found, Finding::Waiting { .. }), "{found:?}");
            for own in [refilling, founder(false, false)] {
                let found = judge(&own, &asked, &both, patient);
                assert!(matches!(found, Finding::Behind { .. }), "{found:?}");
            }
        }
        // A lone voter whose learners are down waits for a while, and learns if it was wrong.
        let own = founder(false, false);
        let found = judge(&own, &asked, &nobody, true);
        assert!(matches!(found, Finding::Waiting { .. }), "{found:?}");
        let found = judge(&own, &asked, &nobody, false);
        assert_eq!(found, Finding::Sound { floor: 0 });
        let found = judge(&founder(false, true), &asked, &both, false);
        assert!(matches!(found, Finding::Estranged { .. }), "{found:?}");
    }

    #[test]
    fn a_wiped_member_learns_from_the_answers_who_votes() {
        let own = Own {
            id: NodeId(1),
            holds: Seen::default(),
            membership: Membership::default(),
            witnessed: None,
            refilling: false,
            alone: false,
        };
        let full = Recollection {
            membership: members(3),
            ..answer(3, 9)
        };
        let asked = BTreeSet::from([NodeId(2), NodeId(3)]);
        let judge = |answers: &[(u64, &Recollection)], asked: &BTreeSet<NodeId>| {
            let answers = answers.iter().map(|(id, a)| (NodeId(*id), (*a).clone()));
            judge(&own, asked, &answers.collect(), true)
        };
        let behind = Finding::Behind {
            target: id(3, 9).expect("an entry"),
            floor: 3,
        };
        assert!(matches!(judge(&[], &asked), Finding::Waiting { .. }));
        assert!(matches!(
            judge(&[(2, &full)], &asked),
            Finding::Waiting { .. }
        ));
        assert_eq!(judge(&[(2, &full), (3, &full)], &asked), behind);
        // About to found a cluster, or let into one of an older version.
        assert_eq!(judge(&[], &BTreeSet::new()), Finding::Sound { floor: 0 });
        let legacy = Recollection {
            legacy: true,
            ..answer(3, 9)
        };
        assert_eq!(judge(&[(2, &legacy)], &asked), behind);
        assert!(matches!(
            judge(&[(2, &answer(3, 9))], &asked),
            Finding::Waiting { .. }
        ));
    }

    #[test]
    fn a_leader_that_waits_for_what_was_lost_must_begin_a_new_term_or_let_begin_afresh() {
        for (demotes, floor) in [(true, 3), (false, 4)] {
            let leader = Recollection {
                acknowledged: id(3, 9),
                demotes,
                ..answer(3, 9)
            };
            let case = Case {
                voters: 3,
                holds: (3, 5),
                witnessed: None,
                answers: vec![Some(leader), Some(answer(3, 9))],
                patient: true,
            };
            let target = id(3, 9).expect("an entry");
            assert_eq!(case.judge(), Finding::Behind { target, floor });
        }
    }
}
