//! Numbers for the networks that packets come from, short enough for the key of a flow. Two
//! networks never have the same number at a time, so that addresses which both use cannot meet.

use std::collections::HashMap;

/// Networks known at a time.
const CAPACITY: usize = 4096;

/// What tells one network from another within the tunnel's mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TunnelId {
    pub(crate) vni: u32,
    /// The endpoint of a gateway load balancer.
    pub(crate) endpoint: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    id: TunnelId,
    flows: u32,
    /// The turn in which a packet last came from it.
    seen: u64,
}

/// The networks of one worker. Number 0 stands for no tunnel.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    places: Vec<Place>,
    by_id: HashMap<TunnelId, u16>,
    last: u16,
    /// Where the search for a place to use again goes on.
    hand: usize,
    turn: u64,
}

impl Tunnels {
    /// Begins a turn: numbers given out before may go to others, unless flows have them.
    pub(crate) fn begin(&mut self) {
        self.turn += 1;
    }

    /// The number of a network; none when there are too many with flows.
    pub(crate) fn number(&mut self, id: TunnelId) -> Option<u16> {
        let turn = self.turn;
        if let Some(place) = self.places.get_mut(usize::from(self.last).wrapping_sub(1))
            && place.id == id
        {
            place.seen = turn;
            return Some(self.last);
        }
        if let Some(number) = self.by_id.get(&id) {
            self.last = *number;
            self.places[usize::from(*number) - 1].seen = turn;
            return Some(*number);
        }
        let new = Place {
            id,
            flows: 0,
            seen: turn,
        };
        let at = if self.places.len() < CAPACITY {
            self.places.push(new);
            self.places.len() - 1
        } else {
            let at = self.find_spare()?;
            self.by_id.remove(&self.places[at].id);
            self.places[at] = new;
            at
        };
        self.last = at as u16 + 1;
        self.by_id.insert(id, self.last);
        Some(self.last)
    }

    /// The network that has a number.
    pub(crate) fn id(&self, number: u16) -> Option<TunnelId> {
        let place = self.places.get(usize::from(number).wrapping_sub(1))?;
        Some(place.id)
    }

    /// A place that neither a flow nor a packet of this turn has.
    fn find_spare(&mut self) -> Option<usize> {
        for _ in 0..CAPACITY {
            self.hand = (self.hand + 1) % CAPACITY;
            let place = &self.places[self.hand];
            if place.flows == 0 && place.seen != self.turn {
                return Some(self.hand);
            }
        }
        None
    }

    /// Takes in that a flow has been opened with this number.
    pub(crate) fn opened(&mut self, number: u16) {
        if let Some(place) = self.places.get_mut(usize::from(number).wrapping_sub(1)) {
            place.flows += 1;
        }
    }

    /// The same for one that has been closed.
    pub(crate) fn closed(&mut self, number: u16) {
        if let Some(place) = self.places.get_mut(usize::from(number).wrapping_sub(1)) {
            place.flows = place.flows.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(endpoint: u64) -> TunnelId {
        TunnelId {
            vni: 0,
            endpoint: Some(endpoint),
        }
    }

    #[test]
    fn numbers_are_given_again_only_when_nobody_has_them() {
        let mut tunnels = Tunnels::default();
        tunnels.begin();
        let kept = tunnels.number(id(0)).unwrap();
        tunnels.opened(kept);
        assert_eq!(tunnels.number(id(0)), Some(kept));
        assert_ne!(tunnels.number(TunnelId::default()), Some(kept));
        let others = (1..).map_while(|n| tunnels.number(id(n))).count();
        assert_eq!(others, CAPACITY - 2, "all of this turn");
        tunnels.begin();
        for n in 10_000..20_000 {
            tunnels.begin();
            assert_ne!(tunnels.number(id(n)), Some(kept));
        }
        assert_eq!(tunnels.number(id(0)), Some(kept));
        tunnels.closed(kept);
        tunnels.begin();
        let mut again = (20_000..30_000).filter_map(|n| {
            tunnels.begin();
            tunnels.number(id(n))
        });
        assert!(again.any(|n| n == kept));
    }
}
