//! The search for one order that explains a register's history: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! 1. Calls and returns stand in a list in the order of their times. The search takes the first call that may come
//!    next, applies it to the register, and lifts it with its return out of the list.
//! 2. An operation whose answer does not fit what the register holds cannot come next: the following call is tried.
//! 3. At a return that was not lifted nothing further may come first: the last operation is put back and the next one
//!    tried in its place; with none left there is no order.
//! 4. A set of lifted operations with the same register was tried before: once is enough.
//!
//! An operation of unknown fate returns after everything else, which also stands for "never": at the end of the order
//! it disturbs nobody. Two rules keep such operations from doubling the search each: a revision that an answer names
//! belongs to that answer's write alone, and of lost writes that nobody ever saw only the oldest is tried, since any
//! later one would do no better.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{Action, Operation, Outcome, Register, Value, Version};

/// Operations that the search may apply before it gives up. A history that has an order needs little more than one for
/// each operation.
const PATIENCE: u64 = 5_000_000;

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violated(Violation),
    /// The search took too long to tell.
    Undecided,
}

/// Where no order goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The most operations that could be put in order.
    pub placed: usize,
    /// What the register holds after them.
    pub version: Version,
    /// Those of which one would have to come next, and none can.
    pub stuck: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { revision, value } = self.version;
        write!(
            f,
            "after {} operations the register holds {value} as revision {revision}, and none of these can come next:",
            self.placed
        )?;
        for operation in &self.stuck {
            let Operation {
                client,
                action,
                outcome,
                called,
                returned,
            } = operation;
            write!(
                f,
                "\n  client {client}: {action:?} -> {outcome:?}, from {:.3} ms to {:.3} ms",
                *called as f64 / 1e6,
                *returned as f64 / 1e6
            )?;
        }
        Ok(())
    }
}

/// Whether one order explains what the clients of `register` were told.
#[must_use]
pub fn check(register: &Register) -> Verdict {
    Search::new(register).run()
}

/// Position 0 of the list is its head; an event's neighbours are positions.
#[derive(Debug, Clone, Copy)]
struct Event {
    operation: usize,
    is_call: bool,
    previous: usize,
    next: usize,
}

struct Search<'a> {
    operations: &'a [Operation],
    events: Vec<Event>,
    /// By operation: the position of its return.
    returns: Vec<usize>,
    /// What an answer says of a revision: who alone can have written it, if that is known, and what.
    known: HashMap<u64, Known>,
    /// Beyond this revision no client was told of any.
    newest_told: u64,
    version: Version,
    placed: Vec<(usize, Version)>,
    set: Vec<u64>,
    /// Plain writes of unknown fate whose value nobody saw, by their call.
    unseen: Vec<usize>,
    tried: HashSet<(Vec<u64>, Version)>,
    /// Operations with an answer that are not in order yet.
    answered_left: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    writer: Option<usize>,
    value: Option<Value>,
}

impl<'a> Search<'a> {
    fn new(register: &'a Register) -> Self {
        let operations = register.operations.as_slice();
        let mut known: HashMap<u64, Known> = HashMap::new();
        let mut newest_told = register.start.revision;
        let mut times = Vec::with_capacity(2 * operations.len());
        for (number, operation) in operations.iter().enumerate() {
            let end = match operation.outcome {
                Outcome::Unknown => u64::MAX,
                _ => operation.returned,
            };
            // Of a call and a return at the same time the call goes first: they may overlap.
            times.push((operation.called, 0, number));
            times.push((end, 1, number));
            match operation.outcome {
                Outcome::Seen(version) => {
                    known.entry(version.revision).or_default().value = Some(version.value);
                }
                Outcome::Written(revision) => {
                    let entry = known.entry(revision).or_default();
                    entry.writer = Some(number);
                }
                Outcome::Conflict | Outcome::Unknown => {}
            }
            newest_told = newest_told.max(match operation.action {
                Action::Replace { expected, .. } => expected,
                Action::Read | Action::Write(_) => 0,
            });
        }
        times.sort_unstable();
        let newest_told = known.keys().copied().fold(newest_told, u64::max);
        let head = Event {
            operation: usize::MAX,
            is_call: false,
            previous: 0,
            next: 1,
        };
        let mut events = vec![head];
        let mut returns = vec![0; operations.len()];
        for (_, kind, operation) in times {
            let position = events.len();
            if kind == 1 {
                returns[operation] = position;
            }
            events.push(Event {
                operation,
                is_call: kind == 0,
                previous: position - 1,
                next: position + 1,
            });
        }
        let answered_left = operations
            .iter()
            .filter(|operation| operation.outcome != Outcome::Unknown)
            .count();
        let seen: HashSet<Value> = known.values().filter_map(|known| known.value).collect();
        let mut unseen: Vec<usize> = (0..operations.len())
            .filter(|&number| match operations[number] {
                Operation {
                    action: Action::Write(value),
                    outcome: Outcome::Unknown,
                    ..
                } => !seen.contains(&value),
                _ => false,
            })
            .collect();
        unseen.sort_unstable_by_key(|&number| (operations[number].called, number));
        Search {
            operations,
            unseen,
            events,
            returns,
            newest_told,
            known,
            version: register.start,
            placed: Vec::new(),
            set: vec![0; operations.len().div_ceil(64)],
            tried: HashSet::new(),
            answered_left,
        }
    }

    fn run(mut self) -> Verdict {
        let mut applied = 0;
        let mut deepest = self.violation();
        let mut at = self.events[0].next;
        while self.answered_left > 0 {
            let event = self.events[at];
            if event.is_call {
                match self.fits(event.operation) {
                    Some(version) if self.is_new(event.operation, version) => {
                        applied += 1;
                        if applied > PATIENCE {
                            return Verdict::Undecided;
                        }
                        self.place(at, version);
                        if self.placed.len() > deepest.placed {
                            deepest = self.violation();
                        }
                        at = self.events[0].next;
                    }
                    _ => at = event.next,
                }
                continue;
            }
            let Some((last, before)) = self.placed.pop() else {
                return Verdict::Violated(deepest);
            };
            at = self.put_back(last, before);
        }
        Verdict::Linearizable
    }

    /// What the register holds if this operation comes next; none if its answer does not fit.
    fn fits(&self, number: usize) -> Option<Version> {
        let operation = self.operations[number];
        let written = |value| Version {
            revision: self.version.revision + 1,
            value,
        };
        let matches = |expected| expected == self.version.revision;
        match (operation.action, operation.outcome) {
            (Action::Read, Outcome::Seen(version)) => {
                (version == self.version).then_some(self.version)
            }
            (Action::Write(value), Outcome::Written(revision)) => self
                .may_write(number, written(value))
                .filter(|version| version.revision == revision),
            (Action::Replace { expected, value }, Outcome::Written(revision)) => self
                .may_write(number, written(value))
                .filter(|version| version.revision == revision && matches(expected)),
            (Action::Replace { expected, .. }, Outcome::Conflict) => {
                (!matches(expected)).then_some(self.version)
            }
            (Action::Write(_), Outcome::Unknown) if self.has_older_unseen(number) => None,
            (Action::Write(value), Outcome::Unknown) => self.may_write(number, written(value)),
            // Without effect it may as well stay at the end.
            (Action::Replace { expected, value }, Outcome::Unknown) if matches(expected) => {
                self.may_write(number, written(value))
            }
            _ => None,
        }
    }

    /// Whether this is a lost write that nobody saw, and another one, called earlier, is not in order yet.
    fn has_older_unseen(&self, number: usize) -> bool {
        let placed = |number: &usize| self.set[number / 64] & (1 << (number % 64)) != 0;
        let oldest = self.unseen.iter().find(|number| !placed(number));
        self.unseen.contains(&number) && oldest != Some(&number)
    }

    /// Whether nothing that a client was told speaks against this operation having written `version`.
    fn may_write(&self, number: usize, version: Version) -> Option<Version> {
        let known = self
            .known
            .get(&version.revision)
            .copied()
            .unwrap_or_default();
        let by_this = known.writer.is_none_or(|writer| writer == number);
        let with_this = known.value.is_none_or(|value| value == version.value);
        // Beyond what anybody was told of, one write is as good as many.
        let told = version.revision <= self.newest_told + 1;
        (by_this && with_this && told).then_some(version)
    }

    /// Whether this set of operations with this register was not tried before; it counts as tried from now on.
    fn is_new(&mut self, number: usize, version: Version) -> bool {
        let mut set = self.set.clone();
        set[number / 64] |= 1 << (number % 64);
        self.tried.insert((set, version))
    }

    fn place(&mut self, call: usize, version: Version) {
        let operation = self.events[call].operation;
        self.placed.push((call, self.version));
        self.version = version;
        self.set[operation / 64] |= 1 << (operation % 64);
        self.answered_left -= self.weight(operation);
        self.unlink(call);
        self.unlink(self.returns[operation]);
    }

    /// Undoes a [`Search::place`], and tells where to go on.
    fn put_back(&mut self, call: usize, before: Version) -> usize {
        let operation = self.events[call].operation;
        self.version = before;
        self.set[operation / 64] &= !(1 << (operation % 64));
        self.answered_left += self.weight(operation);
        self.relink(self.returns[operation]);
        self.relink(call);
        self.events[call].next
    }

    fn weight(&self, operation: usize) -> usize {
        usize::from(self.operations[operation].outcome != Outcome::Unknown)
    }

    fn unlink(&mut self, position: usize) {
        let Event { previous, next, .. } = self.events[position];
        self.events[previous].next = next;
        if let Some(next) = self.events.get_mut(next) {
            next.previous = previous;
        }
    }

    fn relink(&mut self, position: usize) {
        let Event { previous, next, .. } = self.events[position];
        self.events[previous].next = position;
        if let Some(next) = self.events.get_mut(next) {
            next.previous = position;
        }
    }

    fn violation(&self) -> Violation {
        let mut stuck = Vec::new();
        let mut at = self.events[0].next;
        while let Some(event) = self.events.get(at)
            && event.is_call
        {
            stuck.push(self.operations[event.operation]);
            at = event.next;
        }
        Violation {
            placed: self.placed.len(),
            version: self.version,
            stuck,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Version = Version {
        revision: 1,
        value: 0,
    };

    fn register(operations: &[Operation]) -> Register {
        Register {
            start: START,
            operations: operations.to_vec(),
        }
    }

    fn at(called: u64, returned: u64, action: Action, outcome: Outcome) -> Operation {
        Operation {
            client: 0,
            action,
            outcome,
            called,
            returned,
        }
    }

    fn read(called: u64, returned: u64, revision: u64, value: Value) -> Operation {
        let seen = Outcome::Seen(Version { revision, value });
        at(called, returned, Action::Read, seen)
    }

    fn write(called: u64, returned: u64, value: Value, revision: u64) -> Operation {
        let written = Outcome::Written(revision);
        at(called, returned, Action::Write(value), written)
    }

    fn lost(called: u64, value: Value) -> Operation {
        at(called, called + 1, Action::Write(value), Outcome::Unknown)
    }

    fn replace(
        called: u64,
        returned: u64,
        expected: u64,
        value: Value,
        outcome: Outcome,
    ) -> Operation {
        at(
            called,
            returned,
            Action::Replace { expected, value },
            outcome,
        )
    }

    fn good(operations: &[Operation]) {
        assert_eq!(
            check(&register(operations)),
            Verdict::Linearizable,
            "{operations:#?}"
        );
    }

    fn bad(operations: &[Operation]) {
        assert!(
            matches!(check(&register(operations)), Verdict::Violated(_)),
            "{operations:#?}"
        );
    }

    #[test]
    fn one_after_the_other() {
        good(&[]);
        good(&[read(0, 1, 1, 0), write(2, 3, 7, 2), read(4, 5, 2, 7)]);
        bad(&[write(0, 1, 7, 2), read(2, 3, 1, 0)]); // an acknowledged write was lost
        bad(&[write(0, 1, 7, 3)]); // a revision was skipped
        bad(&[read(0, 1, 1, 5)]); // nobody wrote that
        bad(&[write(0, 1, 7, 2), write(2, 3, 8, 2)]); // a revision was given twice
    }

    #[test]
    fn at_the_same_time_either_may_be_first() {
        good(&[write(0, 9, 7, 2), read(1, 2, 1, 0), read(3, 4, 2, 7)]);
        good(&[write(0, 9, 7, 3), write(0, 9, 8, 2), read(10, 11, 3, 7)]);
        bad(&[write(0, 9, 7, 2), read(1, 2, 2, 7), read(3, 4, 1, 0)]); // it went back
        bad(&[write(0, 1, 7, 3), write(2, 3, 8, 2)]); // against the order of time
    }

    #[test]
    fn of_two_that_replace_the_same_one_wins() {
        let won = |called, value| replace(called, called + 5, 1, value, Outcome::Written(2));
        let lost = |called, value| replace(called, called + 5, 1, value, Outcome::Conflict);
        good(&[won(0, 7), lost(1, 8)]);
        good(&[lost(0, 8), won(1, 7)]);
        bad(&[won(0, 7), won(1, 8)]);
        bad(&[lost(0, 7)]); // nobody was faster
        bad(&[lost(0, 8), won(6, 7)]); // it lost against something that came later
    }

    #[test]
    fn what_got_no_answer_may_have_happened_or_not_or_later() {
        good(&[lost(0, 7), read(5, 6, 1, 0)]);
        good(&[lost(0, 7), read(5, 6, 2, 7)]);
        good(&[lost(0, 7), read(5, 6, 1, 0), read(7, 8, 2, 7)]); // long after its client gave up
        good(&[lost(0, 7), write(5, 6, 8, 3), read(7, 8, 3, 8)]); // nobody saw it, but it counted
        good(&[lost(0, 7), replace(5, 6, 1, 8, Outcome::Conflict)]);
        bad(&[read(0, 1, 2, 7), lost(2, 7)]); // before it was asked for
        bad(&[lost(0, 7), read(5, 6, 2, 7), read(7, 8, 1, 0)]);
        bad(&[lost(0, 7), write(5, 6, 8, 4)]); // once at most
        bad(&[
            lost(0, 7),
            read(5, 6, 2, 7),
            write(7, 8, 8, 3),
            read(9, 10, 4, 7),
        ]); // twice
        let unheard = replace(0, 1, 1, 7, Outcome::Unknown);
        good(&[unheard, read(5, 6, 2, 7)]);
        bad(&[
            write(0, 1, 8, 2),
            replace(2, 3, 1, 7, Outcome::Unknown),
            read(5, 6, 3, 7),
        ]);
    }

    #[test]
    fn many_without_an_answer_do_not_blow_up_the_search() {
        let mut operations: Vec<Operation> = (0..200).map(|n| lost(n, 1000 + n)).collect();
        // Every other revision was somebody's whose answer was lost.
        for n in 0..100 {
            operations.push(write(1000 + 10 * n, 1005 + 10 * n, n + 1, 3 + 2 * n));
        }
        good(&operations);
        operations.push(read(5000, 5001, 1, 0));
        bad(&operations);
    }

    #[test]
    fn a_violation_names_what_cannot_come_next() {
        let stale = read(4, 5, 1, 0);
        let Verdict::Violated(violation) = check(&register(&[write(0, 1, 7, 2), stale])) else {
            panic!("it is one")
        };
        assert_eq!((violation.placed, violation.version.value), (1, 7));
        assert_eq!(violation.stuck, [stale]);
        let text = violation.to_string();
        assert!(text.contains("holds 7 as revision 2") && text.contains("client 0: Read"));
    }

    /// Tries every order: what the search must agree with.
    fn brute_force(version: Version, left: &[Operation]) -> bool {
        if left.iter().all(|one| one.outcome == Outcome::Unknown) {
            return true;
        }
        let first_return = left
            .iter()
            .filter(|one| one.outcome != Outcome::Unknown)
            .map(|one| one.returned)
            .min();
        (0..left.len()).any(|next| {
            let operation = left[next];
            if first_return.is_some_and(|end| operation.called > end) {
                return false;
            }
            let written = |value| Version {
                revision: version.revision + 1,
                value,
            };
            let after = match operation.action {
                Action::Read => version,
                Action::Write(value) => written(value),
                Action::Replace { expected, value } if expected == version.revision => {
                    written(value)
                }
                Action::Replace { .. } => version,
            };
            let told = match operation.action {
                Action::Read => Outcome::Seen(version),
                Action::Replace { .. } if after == version => Outcome::Conflict,
                _ => Outcome::Written(after.revision),
            };
            let mut rest = left.to_vec();
            rest.remove(next);
            (operation.outcome == Outcome::Unknown || operation.outcome == told)
                && brute_force(after, &rest)
        })
    }

    #[test]
    fn the_search_agrees_with_every_order_tried() {
        let mut random = 1_u64;
        let mut draw = move |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut found = [0, 0];
        for _ in 0..20_000 {
            let mut operations = Vec::new();
            for number in 1..=2 + draw(5) {
                let called = draw(12);
                let (expected, value) = (1 + draw(3), number);
                let version = Version {
                    revision: 1 + draw(4),
                    value: draw(6),
                };
                let (action, outcome) = match draw(7) {
                    0 | 1 => (Action::Read, Outcome::Seen(version)),
                    2 | 3 => (Action::Write(value), Outcome::Written(version.revision)),
                    4 => (Action::Write(value), Outcome::Unknown),
                    5 => {
                        let told = [Outcome::Conflict, Outcome::Written(expected + 1)];
                        let told = told[usize::from(draw(2) == 0)];
                        (Action::Replace { expected, value }, told)
                    }
                    _ => (Action::Replace { expected, value }, Outcome::Unknown),
                };
                operations.push(at(called, called + 1 + draw(8), action, outcome));
            }
            let expected = brute_force(START, &operations);
            found[usize::from(expected)] += 1;
            let verdict = check(&register(&operations));
            assert_eq!(
                verdict == Verdict::Linearizable,
                expected,
                "{operations:#?}"
            );
        }
        assert!(found.iter().all(|count| *count > 500), "{found:?}");
    }
}
