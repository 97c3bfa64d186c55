//! What became of ICMP messages, by type and code.

use super::{Counter, Direction};

/// Kinds of messages that one source group tells apart. Their senders choose type and code: of more kinds than
/// this, the further ones are counted together.
const KINDS: usize = 64;

/// Messages of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpDecision {
    /// Which way they went.
    pub direction: Direction,
    /// Whether they passed.
    pub allowed: bool,
    /// Whether they are of ICMPv6, their type and their code; none for kinds that there was no place for.
    pub kind: Option<(bool, u8, u8)>,
    /// How many.
    pub messages: u64,
}

/// Messages by kind, one writer. A place is taken once, and its key is there before its first message is.
#[derive(Debug)]
pub(super) struct IcmpDecisions {
    places: [(Counter, Counter); KINDS],
    /// Of kinds without a place, by direction and decision.
    others: [[Counter; 2]; 2],
}

impl Default for IcmpDecisions {
    fn default() -> Self {
        IcmpDecisions {
            places: std::array::from_fn(|_| Default::default()),
            others: Default::default(),
        }
    }
}

impl IcmpDecisions {
    pub(super) fn note(
        &self,
        direction: Direction,
        allowed: bool,
        (is_v6, kind, code): (bool, u8, u8),
    ) {
        let flags = 1 | u64::from(is_v6) << 1 | u64::from(allowed) << 2 | (direction as u64) << 3;
        let key = flags | u64::from(kind) << 8 | u64::from(code) << 16;
        let mut places = self.places.iter();
        let place = places.find(|(taken, _)| [0, key].contains(&taken.get()));
        let Some((taken, messages)) = place else {
            self.others[direction as usize][usize::from(allowed)].inc();
            return;
        };
        taken.set(key);
        messages.inc();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = IcmpDecision> {
        let told_apart = self.places.iter().map(|(key, messages)| {
            let key = key.get();
            IcmpDecision {
                direction: Direction::ALL[(key >> 3 & 1) as usize],
                allowed: key & 4 != 0,
                kind: Some((key & 2 != 0, (key >> 8) as u8, (key >> 16) as u8)),
                messages: messages.get(),
            }
        });
        let others = Direction::ALL.into_iter().flat_map(|direction| {
            [false, true].map(|allowed| IcmpDecision {
                direction,
                allowed,
                kind: None,
                messages: self.others[direction as usize][usize::from(allowed)].get(),
            })
        });
        told_apart
            .chain(others)
            .filter(|decision| decision.messages > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_by_kind_and_those_of_too_many_kinds_together() {
        let counted = IcmpDecisions::default();
        counted.note(Direction::Outbound, true, (false, 8, 0));
        counted.note(Direction::Inbound, true, (false, 0, 0));
        counted.note(Direction::Outbound, true, (false, 8, 0));
        counted.note(Direction::Outbound, false, (true, 128, 3));
        for code in 0..100 {
            counted.note(Direction::Inbound, false, (false, 3, code));
        }
        let all: Vec<IcmpDecision> = counted.iter().collect();
        let of = |direction, allowed, kind, messages| IcmpDecision {
            direction,
            allowed,
            kind,
            messages,
        };
        assert_eq!(
            all[0],
            of(Direction::Outbound, true, Some((false, 8, 0)), 2)
        );
        assert_eq!(all[1], of(Direction::Inbound, true, Some((false, 0, 0)), 1));
        assert_eq!(
            all[2],
            of(Direction::Outbound, false, Some((true, 128, 3)), 1)
        );
        assert_eq!(all.len(), KINDS + 1);
        let rest = 100 - (KINDS as u64 - 3);
        assert_eq!(all[KINDS], of(Direction::Inbound, false, None, rest));
    }
}
