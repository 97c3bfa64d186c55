//! The decision, case by case, and what holds for every cluster that could be.

use proptest::prelude::*;

use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const D: NodeId = NodeId(4);
const E: NodeId = NodeId(5);

/// A cluster in words: one per member, `name[:trait...]`, the leader being `a`. Voters are in capitals. Traits are `r`
/// ready, `d` down, `g` gone for long (and down), `l` leaving, `p` promoted, `x` demoted, `n` not in Raft, `f` forgetful.
fn picture(words: &str) -> Picture {
    let mut picture = Picture {
        own: A,
        members: BTreeMap::new(),
        voters: BTreeSet::new(),
        learners: BTreeSet::new(),
    };
    for word in words.split_whitespace() {
        let (name, traits) = word.split_once(':').unwrap_or((word, ""));
        let name = name.chars().next().expect("a name");
        let id = NodeId(u64::from(name.to_ascii_lowercase()) - u64::from('a') + 1);
        let has = |letter| traits.contains(letter);
        let suffrage = match () {
            () if has('p') => Suffrage::Voter,
            () if has('x') => Suffrage::Learner,
            () => Suffrage::Auto,
        };
        let candidate = Candidate {
            address: String::new(),
            standing: if has('l') {
                Standing::Leaving
            } else {
                Standing::Member
            },
            suffrage,
            live: !has('d') && !has('g'),
            ready: has('r'),
            absent: has('g'),
            matched: id.0,
            forgetful: has('f'),
        };
        picture.members.insert(id, candidate);
        match () {
            () if has('n') => {}
            () if name.is_uppercase() => drop(picture.voters.insert(id)),
            () => drop(picture.learners.insert(id)),
        }
    }
    picture
}

/// The name of each voter of the next step; other steps by their own names.
fn next(words: &str) -> String {
    let name = |id: &NodeId| char::from(b'a' + (id.0 - 1) as u8);
    let names = |ids: &BTreeSet<NodeId>| ids.iter().map(name).collect::<String>();
    match picture(words).next() {
        None => "-".into(),
        Some(Step::SetVoters(voters)) => names(&voters),
        Some(Step::AddLearners(nodes)) => {
            format!("add {}", names(&nodes.into_keys().collect()))
        }
        Some(Step::Drop(out)) => format!("drop {}", names(&out)),
        Some(Step::HandOver(id)) => format!("hand over to {}", name(&id)),
        Some(Step::Release(id)) => format!("release {}", name(&id)),
    }
}

#[test]
fn who_has_lost_what_it_acknowledged_comes_in_again_as_a_learner() {
    for (cluster, step) in [
        ("A B C:f", "ab"),
        ("A B c:f", "drop c"),
        ("A B c:n", "add c"),
        ("A B C D E:f", "abcd"),
        // Never when that would take the majority.
        ("A B:f", "-"),
        ("A B:d C:f", "-"),
        ("A B C:d D:d E:f", "-"),
        // Nor the leader by its own word.
        ("A:f B C", "-"),
    ] {
        assert_eq!(next(cluster), step, "{cluster}");
    }
}

#[test]
fn one_two_and_three_all_vote_and_above_that_voters_stay_odd() {
    for (cluster, step) in [
        ("A", "-"),
        ("A b:n", "add b"),
        ("A b", "-"),
        ("A b:r", "ab"),
        ("A b:r c", "ab"),
        ("A b:r c:r", "abc"),
        ("A B c:r", "abc"),
        ("A B C", "-"),
        ("A B C d:r", "-"),
        ("A B C d:r e", "-"),
        ("A B C d:r e:r", "abcde"),
        ("A B C d:r e:r f:r", "abcde"),
        ("A B C d:r e:r f:r g:r", "abcdefg"),
        ("A B C D E F G h:r i:r j:r", "-"),
        // Four voters survive no more than three.
        ("A B C D", "abc"),
        ("A B C D:d", "abc"),
    ] {
        assert_eq!(next(cluster), step, "{cluster}");
    }
}

#[test]
fn a_spare_takes_the_place_of_a_voter_in_one_step() {
    for (cluster, step) in [
        // Gone for long.
        ("A B C:g d:r", "abd"),
        ("A B C:g d", "-"),
        ("A B C:g", "-"),
        ("A B C D:g E:g f:r", "abcdf"),
        ("A B C D:g E:g f:r g:r", "abcfg"),
        ("A B C d:r e:g", "-"),
        ("A B C d:r e", "-"),
        // Down, but not for long yet.
        ("A B C:d d:r", "-"),
        // Left.
        ("A B C:l d:r", "abd"),
        ("A B C:ld d:r", "abd"),
        ("A B C:l", "ab"),
        ("A B C D E:l", "abc"),
        ("A B C D E:l f:r", "abcdf"),
        ("A B:l", "a"),
        // Demoted.
        ("A B C:x d:r", "abd"),
        ("A B C:x", "ab"),
        ("A B C d:rx", "-"),
        ("A B C d:rx e:r", "-"),
    ] {
        assert_eq!(next(cluster), step, "{cluster}");
    }
}

#[test]
fn a_promoted_member_goes_first_and_the_leader_stays() {
    for (cluster, step) in [
        ("A B C d:rp", "abd"),
        ("A B:p C d:rp", "abd"),
        ("A B:p C:p d:rp", "hand over to c"),
        ("A b:rp c:rp d:rp", "abc"),
        ("A B C:g d:p", "-"),
        ("A B C:pg d:r", "abd"),
    ] {
        assert_eq!(next(cluster), step, "{cluster}");
    }
}

#[test]
fn no_step_ends_without_a_live_quorum() {
    for cluster in [
        "A B:d c:r",
        "A B:l C:d",
        "A B:x C:d",
        "A B:d C:d d:r e:r",
        "A B:l C:l D:d E:d",
    ] {
        let step = next(cluster);
        assert!(step == "-" || step == "a", "{cluster}: {step}");
    }
    // A dead voter that is removed is no loss.
    assert_eq!(next("A B C:ld"), "ab");
    // Two may go together when the rest is enough for the old quorum and the new one.
    assert_eq!(next("A B C D:ld E:ld"), "abc");
}

#[test]
fn who_leaves_stops_voting_then_replicating_and_then_loses_its_trust() {
    let mut now = picture("A B C:l");
    let mut steps = Vec::new();
    while let Some(step) = now.next() {
        steps.push(step.clone());
        now = now.after(step);
    }
    assert_eq!(
        steps,
        [
            Step::SetVoters([A, B].into()),
            Step::Drop([C].into()),
            Step::Release(C)
        ]
    );
}

#[test]
fn a_leader_that_is_to_go_hands_over_to_one_that_stays() {
    assert_eq!(next("A:l B C"), "hand over to c");
    assert_eq!(next("A:l B C:d"), "hand over to b");
    assert_eq!(next("A:x B C:l"), "hand over to b");
    // Nobody can take over yet: a learner must vote first.
    assert_eq!(next("A:l b"), "-");
    assert_eq!(next("A:l b:r"), "ab");
}

#[test]
fn leftovers_of_an_interrupted_removal_are_taken_out() {
    let mut now = picture("A B");
    now.voters.insert(C);
    assert_eq!(now.next(), Some(Step::SetVoters([A, B].into())));
    now.voters.remove(&C);
    now.learners.insert(C);
    assert_eq!(now.next(), Some(Step::Drop([C].into())));
}

#[test]
fn what_a_wish_would_do_is_told_before() {
    let remove = Wish::Remove;
    let suffrage = |wanted: &[(NodeId, Suffrage)]| Wish::Suffrage(wanted.iter().copied().collect());
    // (cluster, wish, failures survived before and after, whether it is possible now, who is missing)
    let none: &[NodeId] = &[];
    for (cluster, wish, before, after, possible, missing) in [
        ("A B C", remove(C), 1, 0, true, none),
        ("A B C d:r", remove(C), 1, 1, true, none),
        ("A B C d:r", remove(A), 1, 1, true, none),
        ("A B C:d", remove(C), 0, 0, true, none),
        ("A B C:d", remove(B), 0, 0, false, &[C]),
        ("A B", remove(B), 0, 0, true, none),
        ("A B", remove(A), 0, 0, true, none),
        ("A B:d", remove(A), 0, 0, false, &[B]),
        ("A B C D E", remove(E), 2, 1, true, none),
        (
            "A B C",
            suffrage(&[(C, Suffrage::Learner)]),
            1,
            0,
            true,
            none,
        ),
        (
            "A B C d:r",
            suffrage(&[(D, Suffrage::Voter)]),
            1,
            1,
            true,
            none,
        ),
        (
            "A B C d",
            suffrage(&[(D, Suffrage::Voter)]),
            1,
            1,
            false,
            none,
        ),
        (
            "A B C D E",
            suffrage(&[(D, Suffrage::Learner), (E, Suffrage::Learner)]),
            2,
            1,
            true,
            none,
        ),
    ] {
        let told = foresee(picture(cluster), &wish);
        assert_eq!(
            (told.tolerance_now, told.tolerance_after, told.possible),
            (before, after, possible),
            "{cluster}, {wish:?}: {told:?}"
        );
        assert_eq!(told.missing, missing, "{cluster}, {wish:?}");
    }
}

#[test]
fn tolerance_is_what_is_left_above_a_quorum() {
    for (voters, live, expected) in [
        (1, 1, 0),
        (2, 2, 0),
        (3, 3, 1),
        (3, 2, 0),
        (3, 1, 0),
        (5, 5, 2),
        (5, 4, 1),
        (0, 0, 0),
    ] {
        assert_eq!(tolerance(voters, live), expected, "{live} of {voters}");
    }
}

fn candidate() -> impl Strategy<Value = (Candidate, bool, bool)> {
    let suffrage = prop_oneof![
        6 => Just(Suffrage::Auto),
        1 => Just(Suffrage::Voter),
        1 => Just(Suffrage::Learner),
    ];
    let standing = prop_oneof![6 => Just(Standing::Member), 1 => Just(Standing::Leaving)];
    (
        (standing, suffrage),
        prop::bool::weighted(0.8),
        (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2)),
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.9),
        0..5_u64,
    )
        .prop_map(
            |((standing, suffrage), live, (ready, gone, lost), votes, in_raft, matched)| {
                let candidate = Candidate {
                    address: String::new(),
                    standing,
                    suffrage,
                    live: live && !lost,
                    ready: ready && live && !lost,
                    absent: gone && !live,
                    matched,
                    forgetful: lost,
                };
                (candidate, votes, in_raft)
            },
        )
}

/// A cluster whose leader has a quorum, as every leader that takes a step has.
fn led() -> impl Strategy<Value = Picture> {
    prop::collection::vec(candidate(), 1..10)
        .prop_map(|members| {
            let mut picture = Picture {
                own: A,
                members: BTreeMap::new(),
                voters: [A].into(),
                learners: BTreeSet::new(),
            };
            for (n, (mut candidate, votes, in_raft)) in (1..).zip(members) {
                let id = NodeId(n);
                candidate.live |= id == A;
                candidate.absent &= id != A;
                if votes {
                    picture.voters.insert(id);
                } else if in_raft && id != A {
                    picture.learners.insert(id);
                }
                picture.members.insert(id, candidate);
            }
            picture
        })
        .prop_filter("a leader has a quorum", |picture| {
            picture.has_quorum(&picture.voters)
        })
}

proptest! {
    #[test]
    fn no_step_loses_the_quorum_and_they_come_to_an_end(start in led()) {
        let mut now = start.clone();
        let mut steps = Vec::new();
        while let Some(step) = now.next() {
            if let Step::SetVoters(voters) = &step {
                // A joint change needs both.
                prop_assert!(now.has_quorum(&now.voters) && now.has_quorum(voters), "{step:?} in {now:?}");
                // Without one that has forgotten, an even number votes until it is back.
                let mut without = now.voters.difference(voters);
                let forgot = without.next().is_some_and(|id| now.members[id].forgetful) && without.next().is_none();
                prop_assert!(voters.len() <= 3 || voters.len() % 2 == 1 || forgot, "{voters:?}");
                prop_assert!(voters.len() <= MAX_VOTERS || forgot);
                prop_assert!(voters.is_subset(&now.voters.union(&now.learners).copied().collect()));
                let asked = now.voters.iter().any(|id| !now.may_vote(*id));
                if !asked {
                    prop_assert!(now.tolerance(voters) >= now.tolerance(&now.voters), "{step:?} in {now:?}");
                }
            }
            if let Step::HandOver(to) = &step {
                prop_assert!(now.voters.contains(to) && now.may_vote(*to) && now.is_live(*to));
            }
            if let Step::Release(id) = &step {
                prop_assert!(!now.in_raft(*id));
            }
            steps.push(step.clone());
            prop_assert!(steps.len() <= 4 * start.members.len() + 4, "no end: {steps:?}");
            now = now.after(step);
            prop_assert!(now.voters.contains(&now.own), "the leader votes");
        }
    }

    #[test]
    fn where_all_are_well_all_that_may_vote_do(size in 1..12_usize) {
        let mut now = picture("A");
        for n in 2..=size as u64 {
            let mut candidate = now.members[&A].clone();
            candidate.ready = true;
            now.members.insert(NodeId(n), candidate);
        }
        while let Some(step) = now.next() {
            now = now.after(step);
        }
        prop_assert_eq!(now.voters.len(), wanted(size));
        prop_assert_eq!(now.tolerance(&now.voters) as usize, (wanted(size) - 1) / 2);
    }
}

#[test]
fn five_members_lose_their_pair_and_get_it_back() {
    assert_eq!(wanted(4), 3);
    assert_eq!(wanted(5), 5);
    let told = foresee(picture("A B C D E"), &Wish::Remove(E));
    assert_eq!(told.voters, [A, B, C].into());
    let told = foresee(picture("A B C D e:r"), &Wish::Remove(D));
    assert_eq!(told.voters, [A, B, C].into());
}
