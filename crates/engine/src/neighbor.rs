//! Next hops: the link-layer addresses that ARP and neighbour discovery tell (RFC 826, RFC 4861).
//!
//! A known address is used without a pause while it is asked for again; one that stops answering
//! becomes unknown. What waits for an unknown one is bounded by the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::address::Addr;
use crate::clock::Now;
use crate::port::PortId;
use crate::wire::ethernet::Mac;

/// Neighbours known or asked for at once: those of a /16 in which every station has an address.
const CAPACITY: usize = 1 << 16;
/// Looked at in one go, so that many do not hold packets up.
const SLICE: usize = 1024;
/// Of these, those that have never answered: a scan of a large subnet must not push others out.
const MAX_INCOMPLETE: usize = 1024;
/// Known at most when one that was not asked for is added: whoever speaks to us under many addresses must leave room for
/// those that we have to ask for.
const MAX_UNASKED: usize = CAPACITY - MAX_INCOMPLETE;
/// Pause between questions (RFC 4861 RETRANS_TIMER).
const RETRANSMIT: Duration = Duration::from_secs(1);
/// Questions without an answer before a neighbour counts as unreachable.
const TRIES: u8 = 3;
/// How long an answer holds (RFC 4861 REACHABLE_TIME).
const REACHABLE: Duration = Duration::from_secs(30);
/// How long an unused neighbour is kept.
const KEEP: Duration = Duration::from_secs(600);

/// The place of a neighbour in the table; valid until it is reported as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NeighborId(NonZeroU32);

impl NeighborId {
    fn of(place: usize) -> NeighborId {
        NeighborId(NonZeroU32::MIN.saturating_add(place as u32))
    }

    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbor {
    pub(crate) address: Addr,
    pub(crate) port: PortId,
    /// None until it has answered.
    pub(crate) mac: Option<Mac>,
    /// When it last answered; while it has not, when it was first asked.
    confirmed: Now,
    asked: Now,
    /// Questions since it last answered.
    tries: u8,
    /// A packet went to it since the last answer.
    used: bool,
    /// Its answer holds no longer, however fresh it is: another has been heard of (RFC 4861 STALE).
    doubted: bool,
}

/// What a turn of the timers has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// It is to be asked: all stations, or itself if its address is known.
    Ask(NeighborId),
    /// It does not answer, and is forgotten.
    Lost(NeighborId),
}

#[derive(Debug, Default)]
pub(crate) struct NeighborTable {
    places: Vec<Option<Neighbor>>,
    /// Those of them that are free.
    free: BTreeSet<NeighborId>,
    by_address: BTreeMap<(PortId, Addr), NeighborId>,
    incomplete: usize,
    /// From where on the timers are looked at next, and when.
    hand: usize,
    next_turn: Now,
}

impl NeighborTable {
    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(crate) fn get(&self, id: NeighborId) -> Option<&Neighbor> {
        self.places.get(id.place())?.as_ref()
    }

    /// The link-layer address to send to, if it is known; notes that it is used.
    #[inline]
    pub(crate) fn use_mac(&mut self, id: NeighborId) -> Option<Mac> {
        let n = self.places.get_mut(id.place())?.as_mut()?;
        n.used = true;
        n.mac
    }

    /// The neighbour with this address. If it is new, it is to be asked for at once (`true`).
    /// None when too many are being asked for. There is always room for a router: they are as many
    /// as are configured, and everything depends on them.
    pub(crate) fn find_or_add(
        &mut self,
        port: PortId,
        address: Addr,
        is_router: bool,
        now: Now,
    ) -> Option<(NeighborId, bool)> {
        if let Some(id) = self.by_address.get(&(port, address)) {
            return Some((*id, false));
        }
        let is_full = self.incomplete >= MAX_INCOMPLETE || self.len() >= CAPACITY;
        if is_full && !is_router {
            return None;
        }
        let id = self.add(Neighbor {
            address,
            port,
            mac: None,
            confirmed: now,
            asked: now,
            tries: 1,
            used: true,
            doubted: false,
        });
        self.incomplete += 1;
        Some((id, true))
    }

    /// Takes in that a neighbour has this link-layer address. `create` adds one that is unknown;
    /// `confirm` says that it answered us, rather than spoke of its own accord. Returns the
    /// neighbour if something may wait for it.
    pub(crate) fn learn(
        &mut self,
        port: PortId,
        address: Addr,
        mac: Mac,
        now: Now,
        create: bool,
        confirm: bool,
    ) -> Option<NeighborId> {
        if let Some(id) = self.by_address.get(&(port, address)).copied() {
            let n = self.places[id.place()]
                .as_mut()
                .expect("indexed places are taken");
            let was_incomplete = n.mac.is_none();
            if confirm || was_incomplete || n.mac != Some(mac) {
                n.mac = Some(mac);
                n.confirmed = now;
                n.tries = 0;
                (n.used, n.doubted) = (false, false);
            }
            if was_incomplete {
                self.incomplete -= 1;
                return Some(id);
            }
        } else if create && self.len() < MAX_UNASKED {
            self.add(Neighbor {
                address,
                port,
                mac: Some(mac),
                confirmed: now,
                asked: now,
                tries: 0,
                used: false,
                doubted: false,
            });
        }
        None
    }

    /// Takes in a neighbour advertisement (RFC 4861 §7.2.5). Without a link-layer address it speaks of the one that is known,
    /// as answers to unicast solicitations may (§4.4). Returns the neighbour if something may wait for it.
    pub(crate) fn handle_advertisement(
        &mut self,
        port: PortId,
        address: Addr,
        told: Option<Mac>,
        now: Now,
        solicited: bool,
        overriding: bool,
    ) -> Option<NeighborId> {
        let id = *self.by_address.get(&(port, address))?;
        let known = self.get(id)?.mac;
        let mac = told.or(known)?;
        let is_other = known != Some(mac);
        if is_other && known.is_some() && !overriding {
            self.doubt(id);
            return None;
        }
        let settled = self.learn(port, address, mac, now, false, solicited);
        if is_other && !solicited {
            self.doubt(id);
        }
        settled
    }

    /// Has a neighbour asked when it is used next.
    fn doubt(&mut self, id: NeighborId) {
        if let Some(n) = &mut self.places[id.place()] {
            n.doubted = true;
        }
    }

    fn add(&mut self, neighbor: Neighbor) -> NeighborId {
        let id = self.free.pop_first().unwrap_or_else(|| {
            self.places.push(None);
            NeighborId::of(self.places.len() - 1)
        });
        self.places[id.place()] = Some(neighbor);
        self.by_address
            .insert((neighbor.port, neighbor.address), id);
        id
    }

    /// When the timers are due; none without neighbours.
    pub(crate) fn next_deadline(&self) -> Option<Now> {
        (!self.by_address.is_empty()).then_some(self.next_turn)
    }

    /// Runs the timers if they are due, and tells what they found.
    pub(crate) fn handle_timeout(&mut self, now: Now, mut found: impl FnMut(Due)) {
        if now < self.next_turn {
            return;
        }
        let slices = self.places.len().div_ceil(SLICE).max(1) as u32;
        self.next_turn = now + RETRANSMIT / 4 / slices;
        let from = if self.hand < self.places.len() {
            self.hand
        } else {
            0
        };
        self.hand = from + SLICE;
        for place in from..self.places.len().min(self.hand) {
            let Some(n) = &mut self.places[place] else {
                continue;
            };
            let id = NeighborId::of(place);
            let stale = n.doubted || now >= n.confirmed + REACHABLE;
            let asking = n.mac.is_none() || n.tries > 0 || stale && n.used;
            if asking && n.tries >= TRIES && now >= n.asked + RETRANSMIT
                || !asking && now >= n.confirmed + KEEP
            {
                self.incomplete -= usize::from(n.mac.is_none());
                self.by_address.remove(&(n.port, n.address));
                self.places[place] = None;
                self.free.insert(id);
                found(Due::Lost(id));
            } else if asking && (n.tries == 0 || now >= n.asked + RETRANSMIT) {
                n.tries += 1;
                n.asked = now;
                found(Due::Ask(id));
            }
        }
        for _ in 0..SLICE {
            let Some(None) = self.places.last() else {
                break;
            };
            self.places.pop();
            self.free.remove(&NeighborId::of(self.places.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortId = PortId(0);
    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn at(s: f64) -> Now {
        Now((s * 1e9) as u64)
    }

    fn due(table: &mut NeighborTable, s: f64) -> Vec<Due> {
        let mut all = Vec::new();
        table.handle_timeout(at(s), |d| all.push(d));
        all
    }

    #[test]
    fn asks_three_times_then_gives_up() {
        let mut table = NeighborTable::default();
        let (id, new) = table
            .find_or_add(PORT, Addr::v4(1), false, at(0.0))
            .unwrap();
        assert!(new);
        assert_eq!(
            table.find_or_add(PORT, Addr::v4(1), false, at(0.0)),
            Some((id, false))
        );
        assert_eq!(table.use_mac(id), None);
        assert_eq!(due(&mut table, 0.5), []);
        assert_eq!(due(&mut table, 1.0), [Due::Ask(id)]);
        assert_eq!(due(&mut table, 2.0), [Due::Ask(id)]);
        assert_eq!(due(&mut table, 3.0), [Due::Lost(id)]);
        assert_eq!(table.len(), 0);
        assert!(table.get(id).is_none());
    }

    #[test]
    fn an_answer_releases_what_waits() {
        let mut table = NeighborTable::default();
        let (id, _) = table
            .find_or_add(PORT, Addr::v4(1), false, at(0.0))
            .unwrap();
        assert_eq!(
            table.learn(PORT, Addr::v4(1), MAC, at(0.1), false, true),
            Some(id)
        );
        assert_eq!(
            table.learn(PORT, Addr::v4(1), MAC, at(0.2), false, true),
            None
        );
        assert_eq!(table.use_mac(id), Some(MAC));
    }

    #[test]
    fn a_used_neighbor_is_asked_again_and_kept_meanwhile() {
        let mut table = NeighborTable::default();
        table.learn(PORT, Addr::v4(1), MAC, at(0.0), true, true);
        let (id, new) = table
            .find_or_add(PORT, Addr::v4(1), false, at(1.0))
            .unwrap();
        assert!(!new);
        assert_eq!(
            due(&mut table, 31.0),
            [],
            "unused neighbours are left alone"
        );
        assert_eq!(table.use_mac(id), Some(MAC));
        assert_eq!(due(&mut table, 32.0), [Due::Ask(id)]);
        assert_eq!(table.use_mac(id), Some(MAC));
        table.learn(PORT, Addr::v4(1), MAC, at(32.5), false, true);
        assert_eq!(due(&mut table, 33.0), []);
        assert_eq!(due(&mut table, 700.0), [Due::Lost(id)]);
    }

    #[test]
    fn an_answer_without_an_address_confirms_the_known_one() {
        let mut table = NeighborTable::default();
        let advertise = |table: &mut NeighborTable, s, solicited| {
            table.handle_advertisement(PORT, Addr(1), None, at(s), solicited, false)
        };
        let (id, _) = table.find_or_add(PORT, Addr(1), false, at(0.0)).unwrap();
        assert_eq!(advertise(&mut table, 0.1, true), None);
        assert_eq!(table.use_mac(id), None, "there is nothing to confirm");
        table.learn(PORT, Addr(1), MAC, at(0.2), false, true);
        table.use_mac(id);
        assert_eq!(due(&mut table, 31.0), [Due::Ask(id)]);
        advertise(&mut table, 31.1, false);
        assert_eq!(due(&mut table, 32.0), [Due::Ask(id)], "it was not asked");
        advertise(&mut table, 32.1, true);
        for s in [33.0, 34.0, 35.0] {
            assert_eq!(due(&mut table, s), []);
        }
        assert_eq!(table.use_mac(id), Some(MAC));
    }

    /// What becomes of a neighbour with [`MAC`], or with none, that advertises another address with these flags: its
    /// address, and whether it is asked when it is used.
    fn advertised(known: bool, solicited: bool, overriding: bool) -> (Option<Mac>, bool) {
        let mut table = NeighborTable::default();
        let (id, _) = table.find_or_add(PORT, Addr(1), false, at(0.0)).unwrap();
        if known {
            table.learn(PORT, Addr(1), MAC, at(0.0), false, true);
        }
        table.handle_advertisement(PORT, Addr(1), Some(OTHER), at(0.1), solicited, overriding);
        let mac = table.use_mac(id);
        (mac, due(&mut table, 1.0) == [Due::Ask(id)])
    }

    #[test]
    fn an_advertisement_replaces_an_address_only_if_it_says_so() {
        assert_eq!(advertised(true, true, false), (Some(MAC), true));
        assert_eq!(advertised(true, false, false), (Some(MAC), true));
        assert_eq!(advertised(true, true, true), (Some(OTHER), false));
        assert_eq!(advertised(true, false, true), (Some(OTHER), true));
    }

    #[test]
    fn an_unknown_address_is_taken_from_any_advertisement() {
        assert_eq!(advertised(false, true, false), (Some(OTHER), false));
        assert_eq!(advertised(false, false, false), (Some(OTHER), true));
    }

    #[test]
    fn strangers_are_not_learned_unasked() {
        let mut table = NeighborTable::default();
        table.learn(PORT, Addr::v4(1), MAC, at(0.0), false, true);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_scan_cannot_fill_the_table() {
        let mut table = NeighborTable::default();
        let added = (0..5000)
            .filter(|i| {
                table
                    .find_or_add(PORT, Addr::v4(*i), false, at(0.0))
                    .is_some()
            })
            .count();
        assert_eq!(added, MAX_INCOMPLETE);
        table.learn(PORT, Addr::v4(9999), MAC, at(0.0), true, true);
        assert_eq!(table.len(), MAX_INCOMPLETE + 1);
        assert!(
            table
                .find_or_add(PORT, Addr::v4(8888), true, at(0.0))
                .is_some(),
            "there is room for a router"
        );
    }

    #[test]
    fn many_are_asked_and_forgotten_as_few_are() {
        const MANY: u32 = 3 * SLICE as u32 + 7;
        let mut table = NeighborTable::default();
        for round in 0..2 {
            let begun = f64::from(round) * 1000.0;
            for i in 0..MANY {
                table.learn(PORT, Addr::v4(i), MAC, at(begun), true, true);
                let id = table.find_or_add(PORT, Addr::v4(i), false, at(begun));
                assert_eq!(table.use_mac(id.unwrap().0), Some(MAC));
            }
            assert_eq!(table.places.len(), MANY as usize);
            // A thousandth of a second at a time, from when they hold no longer.
            let mut asked = vec![0; MANY as usize];
            let mut lost = 0;
            let mut took = 0;
            for ms in 0..5000 {
                let now = at(begun + 30.0 + f64::from(ms) / 1e3);
                let before = lost;
                let mut looked_at = 0;
                table.handle_timeout(now, |due| {
                    looked_at += 1;
                    match due {
                        Due::Ask(id) => asked[id.place()] += 1,
                        Due::Lost(_) => lost += 1,
                    }
                });
                assert!(looked_at <= SLICE);
                took = if lost > before { ms } else { took };
                if ms == 260 {
                    assert_eq!(
                        asked,
                        vec![1; MANY as usize],
                        "all within a quarter of a second"
                    );
                }
            }
            assert_eq!((asked, lost), (vec![3; MANY as usize], MANY));
            assert!((2900..3900).contains(&took), "{took} ms");
            assert!(table.places.is_empty() && table.free.is_empty() && table.len() == 0);
        }
    }

    #[test]
    fn whoever_speaks_under_many_addresses_leaves_room_for_others() {
        let mut table = NeighborTable::default();
        for i in 0..2 * CAPACITY as u32 {
            table.learn(PORT, Addr::v4(i), MAC, at(0.0), true, true);
        }
        assert_eq!(table.len(), MAX_UNASKED);
        let others = 0x0a00_0000..;
        let found: Vec<_> = others
            .map_while(|i| table.find_or_add(PORT, Addr::v4(i), false, at(0.0)))
            .collect();
        assert_eq!(found.len(), CAPACITY - MAX_UNASKED);
        for (id, _) in &found {
            let address = table.get(*id).unwrap().address;
            table.learn(PORT, address, MAC, at(0.1), false, true);
        }
        assert!(
            table
                .find_or_add(PORT, Addr::v4(0x0b00_0000), false, at(0.2))
                .is_none()
        );
        assert!(
            table
                .find_or_add(PORT, Addr::v4(0x0b00_0000), true, at(0.2))
                .is_some(),
            "there is room for a router"
        );
    }
}
