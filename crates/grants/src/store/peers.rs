//! Keeping in step with peers: what this node tells of its own claims, and what it takes from theirs.

use std::collections::HashSet;
use std::net::IpAddr;

use super::{Key, Store};
use crate::claims::{Claim, Spot};
use crate::stream::{Answer, Body, Change, End, MAX_ADDRESSES, Push, VERSION};
use crate::{MAX_TTL_S, OWN, Origin};

/// About how much one message or section has, in bytes: what a slow link takes within a moment.
const PART_BYTES: usize = 1 << 18;
/// Changes that one more address of a name may belong to.
const TOGETHER: usize = 8;
/// Bytes of a change beside its texts, and of an address, at most.
const CHANGE_BYTES: usize = 128;
const ADDRESS_BYTES: usize = 24;

/// What was heard from a peer.
#[derive(Debug, Default)]
pub(super) struct Heard {
    incarnation: u64,
    /// The number of its next change; none: it has to tell everything first.
    next: Option<u64>,
    /// Over its claims, as this node has them.
    pub(super) sum: u64,
    /// There was no room for all of its claims.
    pub(super) partial: bool,
    /// As there was no room for any.
    pub(super) without_room: bool,
    /// It is telling everything.
    filling: Option<Filling>,
}

impl Heard {
    /// There is room again: if something of it is missing, it has to tell everything.
    pub(super) fn complete(&mut self) {
        if std::mem::take(&mut self.without_room) {
            self.next = None;
        }
    }
}

/// Everything that a peer holds, as far as it has come.
#[derive(Debug, Default)]
struct Filling {
    part: u32,
    /// Its own claims.
    confirmed: HashSet<(u32, IpAddr)>,
}

impl Store {
    /// The number that the next change will have. All before it have happened.
    #[must_use]
    pub fn next_place(&self) -> u64 {
        self.next
    }

    /// The message with the changes from number `first` on, `max` at most; none if some of them are not kept any more, and
    /// everything has to be told.
    #[must_use]
    pub fn changes_from(&self, first: u64, max: usize, now_ms: u64) -> Option<Push> {
        let oldest = self.next - self.log.len() as u64;
        let skipped = first.checked_sub(oldest)?;
        let skipped = usize::try_from(skipped).ok()?;
        let mut bytes = 0;
        let logged = self
            .log
            .iter()
            .skip(skipped)
            .take(max)
            .take_while(|logged| {
                let before = bytes;
                bytes += size(&logged.key, logged.addresses.len());
                before < PART_BYTES
            });
        let logged: Vec<_> = logged.collect();
        let sum = logged.last().map_or(self.sum, |last| last.sum);
        let changes = logged.into_iter().map(|logged| {
            let life_ms = logged.until_ms.map_or(0, |until_ms| {
                // A claim that has ended meanwhile ends by a change of its own.
                until_ms.saturating_sub(now_ms).max(1)
            });
            Change {
                group: logged.key.group.clone(),
                name: logged.key.name.clone(),
                client: logged.key.client,
                addresses: logged.addresses.clone(),
                life_ms,
                age_ms: 0,
                asker: self.asker(&logged.key),
                origin: None,
            }
        });
        let changes = changes.collect();
        Some(self.push(Body::Changes {
            first,
            changes,
            sum,
        }))
    }

    fn asker(&self, key: &Key) -> Option<IpAddr> {
        let at = self.find(key)?;
        self.holding(at).asker
    }

    /// A part of everything that is held: of `count` holdings from `from` on, or fewer that are large. Begin with part 0 at 0, and note
    /// [`next_place`](Self::next_place) before: it is where the stream goes on behind the last part. Where the next part
    /// begins, if there is one.
    #[must_use]
    pub fn everything(
        &self,
        part: u32,
        from: usize,
        count: usize,
        end: End,
        now_ms: u64,
    ) -> (Push, Option<usize>) {
        let all = |spot: &Spot, take: &mut dyn FnMut(Claim)| {
            spot.claims().iter().copied().for_each(take);
        };
        let (claims, next) = self.collect(from, count, now_ms, all);
        let end = next.is_none().then_some(end);
        (self.push(Body::All { part, claims, end }), next)
    }

    /// Claims of `count` holdings from `from` on, or of fewer that are large, and where the next part begins. Addresses of a
    /// name that have the same claim are together.
    fn collect(
        &self,
        from: usize,
        count: usize,
        now_ms: u64,
        claims_of: impl Fn(&Spot, &mut dyn FnMut(Claim)),
    ) -> (Vec<Change>, Option<usize>) {
        let (mut changes, mut bytes, mut at): (Vec<Change>, _, _) = (Vec::new(), 0, from);
        let until = (from + count).min(self.holdings.len());
        while at < until && bytes < PART_BYTES {
            if let Some(holding) = &self.holdings[at] {
                let own = changes.len();
                for spot in &holding.spots {
                    claims_of(spot, &mut |claim| {
                        let life_ms = claim.until_ms.saturating_sub(now_ms).max(1);
                        let age_ms = now_ms.saturating_sub(spot.seen_ms);
                        let origin = (claim.origin != OWN).then_some(claim.origin);
                        let same = |change: &&mut Change| {
                            (change.life_ms, change.age_ms, change.origin)
                                == (life_ms, age_ms, origin)
                                && change.addresses.len() < MAX_ADDRESSES
                        };
                        let mut last = changes[own..].iter_mut().rev().take(TOGETHER);
                        if let Some(change) = last.find(same) {
                            change.addresses.push(spot.address);
                            return;
                        }
                        changes.push(Change {
                            group: holding.key.group.clone(),
                            name: holding.key.name.clone(),
                            client: holding.key.client,
                            addresses: vec![spot.address],
                            life_ms,
                            age_ms,
                            asker: holding.asker,
                            origin,
                        });
                    });
                }
                let sizes = changes[own..].iter();
                bytes += sizes
                    .map(|change| size(&holding.key, change.addresses.len()))
                    .sum::<usize>();
            }
            at += 1;
        }
        (changes, (at < self.holdings.len()).then_some(at))
    }

    fn push(&self, body: Body) -> Push {
        Push {
            version: VERSION,
            incarnation: self.settings.incarnation,
            body,
        }
    }

    /// Takes a message of a peer; `own` is this node's id.
    pub fn take(&mut self, from: Origin, own: Origin, push: &Push, now_ms: u64) -> Answer {
        let heard = self.heard_of(from);
        if heard.incarnation != push.incarnation {
            heard.incarnation = push.incarnation;
            heard.next = None;
            heard.filling = None;
        }
        match &push.body {
            Body::Changes {
                first,
                changes,
                sum,
            } => self.take_changes(from, *first, changes, *sum, now_ms),
            Body::All { part, claims, end } => {
                self.take_all(from, own, *part, claims, *end, now_ms)
            }
        }
        Answer {
            wants_all: self.is_behind(from) && self.heard_of(from).filling.is_none(),
        }
    }

    /// Whether this node does not have everything that a peer holds.
    #[must_use]
    pub fn is_behind(&self, peer: Origin) -> bool {
        self.peers
            .get(&peer)
            .is_none_or(|heard| heard.next.is_none())
    }

    fn take_changes(
        &mut self,
        from: Origin,
        first: u64,
        changes: &[Change],
        sum: u64,
        now_ms: u64,
    ) {
        let heard = self.heard_of(from);
        let follows = heard.next == Some(first);
        heard.next = follows.then_some(first.wrapping_add(changes.len() as u64));
        // What is granted is granted, whether or not something before it is missing.
        for change in changes {
            self.take_change(from, change, now_ms);
        }
        let heard = self.heard_of(from);
        if heard.sum != sum && !heard.partial {
            heard.next = None;
        }
    }

    fn take_change(&mut self, from: Origin, change: &Change, now_ms: u64) {
        let key = key_of(change);
        if change.life_ms > 0 {
            let at = self.find_or_hold(&key, change.asker);
            for address in &change.addresses {
                self.enter(at, *address, from, change, now_ms);
            }
            self.drop_if_empty(at);
        } else if let Some(at) = self.find(&key) {
            for address in &change.addresses {
                self.keep_if_used(at, *address, now_ms);
                self.disclaim(at, *address, from, now_ms);
            }
            self.drop_if_empty(at);
        }
    }

    /// A life as far as a node makes it.
    fn believed_ms(&self, life_ms: u64) -> u64 {
        life_ms.min(u64::from(MAX_TTL_S) * 1_000 + self.settings.grace_ms)
    }

    /// Enters a peer's claim.
    fn enter(&mut self, at: u32, address: IpAddr, origin: Origin, change: &Change, now_ms: u64) {
        let until_ms = now_ms + self.believed_ms(change.life_ms);
        if self.claim(at, address, origin, until_ms, now_ms).is_some()
            && let Some(spot) = self.spot(at, address)
        {
            let seen_ms = now_ms.saturating_sub(change.age_ms);
            spot.seen_ms = spot.seen_ms.max(seen_ms);
        }
    }

    /// Claims for this node what its live flows use.
    fn keep_if_used(&mut self, at: u32, address: IpAddr, now_ms: u64) {
        let Some(spot) = self.spot(at, address) else {
            return;
        };
        if spot.claim_of(OWN).is_some() || self.uses_at(at, address) == 0 {
            return;
        }
        let until_ms = now_ms + self.settings.grace_ms;
        self.claim(at, address, OWN, until_ms, now_ms);
        self.tell(at, vec![address], Some(until_ms));
    }

    fn take_all(
        &mut self,
        from: Origin,
        own: Origin,
        part: u32,
        claims: &[Change],
        end: Option<End>,
        now_ms: u64,
    ) {
        let heard = self.heard_of(from);
        let filling = heard.filling.take();
        let mut filling = match (part, filling) {
            (0, _) => {
                heard.next = None;
                (heard.partial, heard.without_room) = (false, false);
                Filling::default()
            }
            (part, Some(filling)) if filling.part == part => filling,
            // It is not the next part: all has to be told once more.
            _ => return,
        };
        for change in claims {
            let key = key_of(change);
            let origin = change.origin.unwrap_or(from);
            if origin == own {
                // Of an earlier life of this node.
                let until_ms = now_ms + self.believed_ms(change.life_ms);
                self.claim_own(&key, change.asker, &change.addresses, until_ms, now_ms);
                continue;
            }
            // Whoever is in step speaks for itself; nobody has this node's own number for itself.
            if origin == OWN || origin != from && !self.is_behind(origin) {
                continue;
            }
            let at = self.find_or_hold(&key, change.asker);
            for address in &change.addresses {
                self.enter(at, *address, origin, change, now_ms);
                if origin == from {
                    filling.confirmed.insert((at, *address));
                }
            }
            self.drop_if_empty(at);
        }
        filling.part += 1;
        match end {
            Some(end) => {
                self.end_unconfirmed(from, &filling.confirmed, now_ms);
                self.heard_of(from).next = Some(end.next);
            }
            None => self.heard_of(from).filling = Some(filling),
        }
    }

    /// Ends what a peer claims no longer.
    fn end_unconfirmed(&mut self, from: Origin, confirmed: &HashSet<(u32, IpAddr)>, now_ms: u64) {
        for at in 0..self.holdings.len() {
            let Some(holding) = &self.holdings[at] else {
                continue;
            };
            let at = at as u32;
            let claimed = holding.spots.iter().filter(|spot| {
                spot.claim_of(from).is_some() && !confirmed.contains(&(at, spot.address))
            });
            let ended: Vec<IpAddr> = claimed.map(|spot| spot.address).collect();
            if ended.is_empty() {
                continue;
            }
            for address in ended {
                self.keep_if_used(at, address, now_ms);
                self.disclaim(at, address, from, now_ms);
            }
            self.drop_if_empty(at);
        }
    }

    /// Everything as own claims with the life that is left, in parts as [`everything`](Self::everything) has them: for
    /// keeping.
    #[must_use]
    pub fn kept(&self, from: usize, count: usize, now_ms: u64) -> (Vec<Change>, Option<usize>) {
        self.collect(from, count, now_ms, |spot, take| {
            take(Claim {
                origin: OWN,
                until_ms: spot.until_ms(),
            });
        })
    }

    /// Own changes as those of everybody, for keeping: where an own claim ends that others have as well, theirs follows.
    #[must_use]
    pub fn with_others(&self, changes: Vec<Change>, now_ms: u64) -> Vec<Change> {
        let mut all = Vec::with_capacity(changes.len());
        for change in changes {
            let ended = (change.life_ms == 0).then(|| self.find(&key_of(&change)));
            let spots = ended.flatten().map(|at| &self.holding(at).spots);
            let others: Vec<Change> = spots
                .into_iter()
                .flatten()
                .filter(|spot| change.addresses.contains(&spot.address))
                .map(|spot| Change {
                    addresses: vec![spot.address],
                    life_ms: spot.until_ms().saturating_sub(now_ms),
                    ..change.clone()
                })
                .filter(|other| other.life_ms > 0)
                .collect();
            all.push(change);
            all.extend(others);
        }
        all
    }

    /// Takes in what was kept, as of a time ago.
    pub fn restore(&mut self, changes: &[Change], elapsed_ms: u64, now_ms: u64) {
        for change in changes {
            let key = key_of(change);
            if change.life_ms <= elapsed_ms {
                if change.life_ms == 0
                    && let Some(at) = self.find(&key)
                {
                    for address in &change.addresses {
                        self.disclaim(at, *address, OWN, now_ms);
                    }
                    self.drop_if_empty(at);
                }
                continue;
            }
            let until_ms = now_ms + self.believed_ms(change.life_ms - elapsed_ms);
            self.claim_own(&key, change.asker, &change.addresses, until_ms, now_ms);
        }
    }

    /// Over the claims of one.
    pub(super) fn sum_of(&mut self, origin: Origin) -> &mut u64 {
        match origin {
            OWN => &mut self.sum,
            peer => &mut self.heard_of(peer).sum,
        }
    }

    pub(super) fn heard_of(&mut self, peer: Origin) -> &mut Heard {
        self.peers.entry(peer).or_default()
    }
}

/// About how many bytes a change has.
fn size(key: &Key, addresses: usize) -> usize {
    CHANGE_BYTES + key.group.len() + key.name.len() + ADDRESS_BYTES * addresses
}

fn key_of(change: &Change) -> Key {
    Key {
        group: change.group.clone(),
        name: change.name.clone(),
        client: change.client,
    }
}
