//! Room: which grant ends where there is none for another.

use std::net::IpAddr;

use super::Store;
use crate::OWN;

/// Holdings that are looked at when a grant has to go, and addresses of each.
const CANDIDATES: usize = 16;
const CANDIDATES_OF_ONE: usize = 8;

impl Store {
    /// Makes room by ending a grant that no flow uses: of a few that whoever has most asked for, the one that would have ended
    /// first; of anybody's, if it uses all of those. `but` is spared.
    pub(super) fn evict(&mut self, but: u32, now_ms: u64) -> bool {
        let found = self.least(true, but).or_else(|| self.least(false, but));
        if let Some((at, address)) = found {
            self.end_early(at, address, true, now_ms);
            self.drop_if_empty(at);
        }
        found.is_some()
    }

    /// Makes room by ending a grant of a name: of a few drawn at random that no flow uses, the one that would have ended
    /// first.
    pub(super) fn evict_of(&mut self, at: u32, now_ms: u64) -> bool {
        let count = self.holding(at).spots.len();
        let drawn: [usize; CANDIDATES] = std::array::from_fn(|_| self.draw(count));
        let spots = drawn.map(|place| &self.holding(at).spots[place]);
        let unused = spots
            .into_iter()
            .filter(|spot| self.uses_at(at, spot.address) == 0);
        let first = unused.min_by_key(|spot| spot.until_ms());
        let Some(address) = first.map(|spot| spot.address) else {
            return false;
        };
        self.end_early(at, address, false, now_ms);
        true
    }

    /// Ends a grant before its time, since there is no room: `at_all`, or none for more of its name.
    pub(super) fn end_early(&mut self, at: u32, address: IpAddr, at_all: bool, now_ms: u64) {
        self.evicted += 1;
        let claims = self.spot(at, address).map(|spot| spot.claims().to_vec());
        for claim in claims.unwrap_or_default() {
            if claim.origin != OWN {
                let heard = self.heard_of(claim.origin);
                heard.partial = true;
                heard.without_room |= at_all;
            }
            self.disclaim(at, address, claim.origin, now_ms);
            if claim.origin == OWN {
                self.lost += 1;
                self.tell(at, vec![address], None);
            }
        }
    }

    /// Of a few grants that no flow uses, drawn at random from those of whoever has most, or from all: which ends first.
    pub(super) fn least(&mut self, of_heaviest: bool, but: u32) -> Option<(u32, IpAddr)> {
        let all = match of_heaviest {
            true => self.askers.heaviest().len(),
            false => self.holdings.len(),
        };
        let mut found: Option<(u64, u32, IpAddr)> = None;
        for _ in 0..CANDIDATES {
            let drawn = self.draw(all);
            let at = match of_heaviest {
                true => *self.askers.heaviest().get(drawn)?,
                false => drawn as u32,
            };
            let Some(Some(holding)) = self.holdings.get(at as usize) else {
                continue;
            };
            if at == but {
                continue;
            }
            let from = drawn % holding.spots.len().max(1);
            for spot in holding.spots[from..].iter().take(CANDIDATES_OF_ONE) {
                let sooner = found.is_none_or(|(until_ms, ..)| spot.until_ms() < until_ms);
                if sooner && self.uses_at(at, spot.address) == 0 {
                    found = Some((spot.until_ms(), at, spot.address));
                }
            }
        }
        found.map(|(_, at, address)| (at, address))
    }

    /// A number below `bound`, or 0, by xorshift64 (Marsaglia, 2003).
    pub(super) fn draw(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound.max(1) as u64) as usize
    }
}
