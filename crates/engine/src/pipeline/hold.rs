//! Places for first packets that wait for what their destination is granted to: a peer may have granted it, and told the
//! client, a moment before this node hears of it.

use crate::address::Addr;

/// Packets that wait at once.
const PLACES: usize = 256;

/// Who has the places.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Vec<Addr>,
    /// Whether what is in hand can be kept at all.
    pub(super) is_open: bool,
    /// The packet in hand is to wait.
    pub(super) waits: bool,
}

impl Places {
    /// Takes a place for a packet of this source, if there is one for it: each source leaves as many free as it has.
    pub(super) fn take(&mut self, source: Addr) -> bool {
        let own = self.taken.iter().filter(|by| **by == source).count();
        let has_room = self.is_open && own < PLACES - self.taken.len();
        if has_room {
            self.taken.push(source);
        }
        has_room
    }

    /// Gives back one that [`Self::take`] gave to this source.
    pub(super) fn give_back(&mut self, source: Addr) {
        if let Some(at) = self.taken.iter().position(|by| *by == source) {
            self.taken.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let mut places = Places {
            is_open: true,
            ..Places::default()
        };
        let [greedy, second, third] = [1, 2, 3].map(Addr::v4);
        let took = |places: &mut Places, by| (0..PLACES).filter(|_| places.take(by)).count();
        assert_eq!(took(&mut places, greedy), PLACES / 2);
        assert_eq!(took(&mut places, second), PLACES / 4);
        assert_eq!(took(&mut places, third), PLACES / 8);
        for _ in 0..PLACES / 2 {
            places.give_back(greedy);
        }
        assert_eq!(
            took(&mut places, third),
            (PLACES - PLACES / 4) / 2 - PLACES / 8
        );
        places.is_open = false;
        assert!(!places.take(second));
    }
}
