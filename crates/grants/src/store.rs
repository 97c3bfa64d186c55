//! All grants of a node: learning, extending, ending, deriving what packets are judged by, and keeping in step with peers.

mod askers;
mod peers;
mod room;
mod rules;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use engine::grant::{Table, Uses};
use foldhash::fast::RandomState;
use hashbrown::hash_table::HashTable;
use policy::{Compiled, GrantScope, NameRule};

use crate::claims::{Holding, Key, Spot};
use crate::counted::{Counted, Counters, Left, Rules};
use crate::stream::{MAX_ADDRESSES, MAX_TEXT_BYTES};
use crate::{MAX_TTL_S, MIN_TTL_S, OWN, Origin};
use askers::Askers;
use peers::Heard;
use rules::{Numbers, Preparing};

/// How much earlier than wanted a claim may end without being told anew, in milliseconds.
const SLACK_MS: u64 = 5_000;
/// Changes that are kept for peers that are behind. Who is further behind gets everything.
const LOGGED: usize = 1 << 16;
/// Addresses in these changes.
const LOGGED_ADDRESSES: usize = 4 * LOGGED;
/// Most addresses of one name for one group or client: who answers a few others each time does not fill the memory.
const MAX_SPOTS: usize = 2_048;

/// What a store goes by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a grant outlives the answer's time to live, and the last flow that used it, in milliseconds.
    pub grace_ms: u64,
    /// Most grants: addresses of names.
    pub capacity: usize,
    /// For how long the claim of a peer that says nothing any more outlives its end, in milliseconds: longer than peers take
    /// to end their own.
    pub silent_ms: u64,
    /// Which run of this node this is; never the same twice.
    pub incarnation: u64,
}

/// What a client was told.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The id of the group that let it ask.
    pub group: &'a str,
    /// Who asked.
    pub client: IpAddr,
    /// The name, as [`Compiled::evaluate_name`] takes it.
    pub name: &'a str,
    /// What it was found to have.
    pub addresses: &'a [IpAddr],
    /// For how long the client may believe that, in seconds.
    pub ttl_s: u32,
}

/// What became of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// The place in the stream that peers have to have come to; 0: there is nothing that they need to know.
    pub place: u64,
    /// The table has changed.
    pub changed: bool,
    /// Until when nobody who gets the same answer needs to learn it, in milliseconds.
    pub until_ms: u64,
}

/// A grant as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The group's id.
    pub group: Arc<str>,
    /// The rule's id; none: no policy that is in force here knows a rule for it.
    pub rule: Option<Box<str>>,
    /// The name.
    pub name: Arc<str>,
    /// The address.
    pub address: IpAddr,
    /// The only client that has it.
    pub client: Option<IpAddr>,
    /// The client whose question brought the name first, as far as that is known.
    pub asker: Option<IpAddr>,
    /// Who has claims on it.
    pub origins: Vec<Origin>,
    /// How much longer it is in force, in milliseconds.
    pub life_ms: u64,
    /// When it was found last, in milliseconds.
    pub seen_ms: u64,
    /// This node's live flows that use it.
    pub uses: u32,
}

impl Grant {
    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        match (&self.rule, self.uses) {
            (None, _) => State::Inert,
            (_, 0) => State::Idle,
            _ => State::Used,
        }
    }
}

/// Which grants to look at: those that have all that is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The group's id.
    pub group: Option<&'a str>,
    /// The name.
    pub name: Option<&'a str>,
    /// The address.
    pub address: Option<IpAddr>,
    /// The only client that has it.
    pub client: Option<IpAddr>,
}

impl Wanted<'_> {
    fn has(&self, key: &Key) -> bool {
        self.group.is_none_or(|group| *group == *key.group)
            && self.name.is_none_or(|name| *name == *key.name)
            && self.client.is_none_or(|client| Some(client) == key.client)
    }
}

/// What is done with a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Live flows use it.
    Used,
    /// None does.
    Idle,
    /// No rule of the policy in force knows it.
    Inert,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Addresses of names, by whether live flows use them.
    pub used: usize,
    /// Those that no flow uses.
    pub idle: usize,
    /// Those that the policy in force knows no rule for.
    pub inert: usize,
    /// Grants that were ended before their time, for want of room.
    pub evicted: u64,
    /// Grants that there was no room for.
    pub refused: u64,
}

/// All grants of a node.
#[derive(Debug)]
pub struct Store {
    settings: Settings,
    policy: Arc<Compiled>,
    table: Table,
    hasher: RandomState,
    /// Places in `holdings` by key.
    index: HashTable<u32>,
    holdings: Vec<Option<Holding>>,
    free: Vec<u32>,
    places: HashMap<IpAddr, Place, RandomState>,
    barred: Barred,
    askers: Askers,
    rules: Rules,
    numbers: Numbers,
    next_policy: Option<Preparing>,
    counters: Counters,
    spots: usize,
    changes: u64,
    log: VecDeque<Logged>,
    logged_addresses: usize,
    /// The number of the next change.
    next: u64,
    /// Over this node's own claims.
    sum: u64,
    peers: HashMap<Origin, Heard>,
    evicted: u64,
    refused: u64,
    /// Grants of this node that have ended before their time.
    lost: u64,
    random: u64,
    /// What the sweep under way has counted so far, and what the last one did.
    counting: Tally,
    counted: Tally,
}

/// Whether an address is never granted, whatever is claimed of it.
struct Barred(Box<dyn Fn(IpAddr) -> bool + Send>);

impl std::fmt::Debug for Barred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Barred")
    }
}

/// An address that names have.
#[derive(Debug, Default)]
struct Place {
    /// The holdings that have it.
    holders: Vec<u32>,
    counted: Vec<Counted>,
}

/// A change of this node's own claims.
#[derive(Debug)]
struct Logged {
    key: Key,
    addresses: Vec<IpAddr>,
    /// None: the claims have ended.
    until_ms: Option<u64>,
    /// The sum after it.
    sum: u64,
}

impl Store {
    /// Without grants. Nothing is granted under a policy until it is [installed](Self::install).
    #[must_use]
    pub fn new(settings: Settings) -> Store {
        let counters = Counters::default();
        Store {
            settings,
            policy: Arc::new(Compiled::deny_all()),
            table: Table::new(Arc::clone(&counters.uses)),
            hasher: RandomState::default(),
            index: HashTable::new(),
            holdings: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(),
            barred: Barred(Box::new(|_| false)),
            askers: Askers::default(),
            rules: Rules::default(),
            numbers: Numbers::default(),
            next_policy: None,
            counters,
            spots: 0,
            changes: 0,
            log: VecDeque::new(),
            logged_addresses: 0,
            next: 1,
            sum: 0,
            peers: HashMap::new(),
            evicted: 0,
            refused: 0,
            lost: 0,
            random: settings.incarnation | 1,
            counting: Tally::default(),
            counted: Tally::default(),
        }
    }

    /// Grants no address for which `barred` is true, whoever claims it. Asked when something about the address changes.
    #[must_use]
    pub fn but_for(mut self, barred: impl Fn(IpAddr) -> bool + Send + 'static) -> Store {
        self.barred = Barred(Box::new(barred));
        self
    }

    /// Makes what packets to addresses are judged by anew: whether they are barred has changed.
    pub fn review(&mut self, addresses: &[IpAddr], now_ms: u64) {
        for address in addresses {
            self.rebuild(*address, None, now_ms);
        }
    }

    /// What packets are to be judged by, under the policy that was installed last.
    #[must_use]
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    /// Says whether grants may be missing that peers have made ([`Table::set_incomplete`]).
    pub fn set_incomplete(&mut self, incomplete: bool) {
        if self.table.is_incomplete() != incomplete {
            self.table.set_incomplete(incomplete);
            self.changes += 1;
        }
    }

    /// How often the table has changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Where flows are counted.
    #[must_use]
    pub fn uses(&self) -> &Arc<Uses> {
        &self.counters.uses
    }

    /// Ends this node's claims on a name, and says so.
    fn end_own(&mut self, at: u32, now_ms: u64) {
        let spots = self.holding(at).spots.iter();
        let own = spots.filter(|spot| spot.claim_of(OWN).is_some());
        let own: Vec<IpAddr> = own.map(|spot| spot.address).collect();
        if own.is_empty() {
            return;
        }
        self.lost += 1;
        for address in &own {
            self.disclaim(at, *address, OWN, now_ms);
        }
        self.tell(at, own, None);
        self.drop_if_empty(at);
    }

    /// Changes when grants of this node have ended before the time that was told.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes in what a client is about to be told. The answer may leave once the table is published and peers have come to
    /// the place.
    pub fn learn(&mut self, asked: &Asked<'_>, now_ms: u64) -> Learned {
        let ttl_ms = u64::from(asked.ttl_s.clamp(MIN_TTL_S, MAX_TTL_S)) * 1_000;
        let mut learned = Learned {
            until_ms: now_ms + ttl_ms,
            ..Learned::default()
        };
        if asked.group.len() + asked.name.len() > MAX_TEXT_BYTES {
            self.refused += 1;
            learned.until_ms = now_ms;
            return learned;
        }
        let refused = self.refused;
        let until_ms = now_ms + ttl_ms + self.settings.grace_ms;
        let mut scopes = [false; 2];
        let mut shared = None;
        if let Some(group) = self.policy.group_by_id(asked.group) {
            shared = self.policy.shared_group_id(group).cloned();
            let mut rules = Vec::new();
            self.policy.rules_by_name(group, asked.name, &mut rules);
            for rule in rules {
                scopes[usize::from(self.policy.grant_scope(rule) == GrantScope::Client)] = true;
            }
        }
        if scopes[1] {
            // The next client that asks is another one.
            learned.until_ms = now_ms;
        }
        for (client, wanted) in [None, Some(asked.client)].into_iter().zip(scopes) {
            if !wanted {
                continue;
            }
            let key = Key {
                group: shared.clone().unwrap_or_else(|| asked.group.into()),
                name: asked.name.into(),
                client,
            };
            let asker = Some(asked.client);
            let place = self.claim_own(&key, asker, asked.addresses, until_ms, now_ms);
            learned.place = learned.place.max(place.0);
            learned.changed |= place.1;
        }
        if self.refused != refused {
            // Room may be found for it the next time.
            learned.until_ms = now_ms;
        }
        learned
    }

    /// Claims addresses for this node until then, as far as it has no such claims; the place in the stream that covers
    /// them, and whether the table has changed.
    fn claim_own(
        &mut self,
        key: &Key,
        asker: Option<IpAddr>,
        addresses: &[IpAddr],
        until_ms: u64,
        now_ms: u64,
    ) -> (u64, bool) {
        let at = self.find_or_hold(key, asker);
        let (mut covered, mut changed) = (0, false);
        let mut told = Vec::new();
        for address in addresses.iter().take(MAX_ADDRESSES) {
            if let Some(spot) = self.spot(at, *address) {
                spot.seen_ms = now_ms;
                if spot
                    .claim_of(OWN)
                    .is_some_and(|own| own + SLACK_MS >= until_ms)
                {
                    covered = covered.max(spot.told);
                    continue;
                }
            }
            let Some(is_new) = self.claim(at, *address, OWN, until_ms, now_ms) else {
                continue;
            };
            changed |= is_new;
            if !told.contains(address) {
                told.push(*address);
            }
        }
        if !told.is_empty() {
            covered = self.tell(at, told, Some(until_ms));
        }
        self.drop_if_empty(at);
        (covered, changed)
    }

    /// Enters a claim, and says whether what is granted has changed; none if there is no room.
    fn claim(
        &mut self,
        at: u32,
        address: IpAddr,
        origin: Origin,
        until_ms: u64,
        now_ms: u64,
    ) -> Option<bool> {
        let is_new = self.spot(at, address).is_none();
        if is_new {
            let is_full = self.spots >= self.settings.capacity;
            let has_room = match self.holding(at).spots.len() >= MAX_SPOTS {
                true => self.evict_of(at, now_ms),
                false => !is_full || self.evict(at, now_ms),
            };
            if !has_room {
                self.refused += 1;
                if origin != OWN {
                    let heard = self.heard_of(origin);
                    heard.partial = true;
                    heard.without_room |= is_full;
                }
                return None;
            }
            self.holding_mut(at).hold(address, now_ms);
            self.spots += 1;
            self.askers.add(self.holding(at).asker);
            let holders = &mut self.places.entry(address).or_default().holders;
            make_room(holders);
            holders.push(at);
        }
        let spot = self.spot(at, address).expect("it was made");
        if spot.claim(origin, until_ms) {
            let weight = self.holding(at).key.weight(address);
            *self.sum_of(origin) = self.sum_of(origin).wrapping_add(weight);
        }
        Some(is_new && self.gain(at, address, now_ms))
    }

    /// Takes a claim away. What nobody claims any more is granted no longer.
    fn disclaim(&mut self, at: u32, address: IpAddr, origin: Origin, now_ms: u64) {
        let Some(spot) = self.spot(at, address) else {
            return;
        };
        if spot.disclaim(origin) {
            let weight = self.holding(at).key.weight(address);
            *self.sum_of(origin) = self.sum_of(origin).wrapping_sub(weight);
        }
        self.end_if_unclaimed(at, address, now_ms);
    }

    fn end_if_unclaimed(&mut self, at: u32, address: IpAddr, now_ms: u64) {
        let unclaimed = self
            .spot(at, address)
            .is_some_and(|spot| spot.claims().is_empty());
        if !unclaimed {
            return;
        }
        self.holding_mut(at).drop(address);
        self.spots -= 1;
        self.askers.take_away(self.holding(at).asker);
        if let Some(place) = self.places.get_mut(&address) {
            place.holders.retain(|holder| *holder != at);
        }
        self.lose(at, address, now_ms);
    }

    /// Ends what has had its time, and extends what live flows use: for `count` holdings from `from` on. Where to go on, or
    /// none at the end.
    pub fn sweep(&mut self, from: usize, count: usize, now_ms: u64) -> Option<usize> {
        if from == 0 {
            self.counting = Tally::default();
            self.settle(now_ms);
            self.ask_for_what_has_room();
        }
        let end = (from + count).min(self.holdings.len());
        for at in from..end {
            if self.holdings[at].is_some() {
                self.sweep_holding(at as u32, now_ms);
            }
        }
        if end < self.holdings.len() {
            return Some(end);
        }
        self.counted = self.counting;
        None
    }

    fn sweep_holding(&mut self, at: u32, now_ms: u64) {
        let soon_ms = now_ms + self.settings.grace_ms / 2;
        let known = !self.holding(at).rules.is_empty();
        let spots = self.holding(at).spots.iter();
        let (mut extended, mut ended, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        let mut used = 0;
        for spot in spots {
            let own_ms = spot.claim_of(OWN);
            if self.uses_at(at, spot.address) > 0 {
                used += 1;
                if own_ms.unwrap_or_else(|| spot.until_ms()) < soon_ms {
                    extended.push(spot.address);
                }
            } else if own_ms.is_some_and(|own_ms| own_ms <= now_ms) {
                ended.push(spot.address);
            }
            let others = spot.claims().iter().filter(|claim| claim.origin != OWN);
            let over = others.filter(|claim| claim.until_ms + self.settings.silent_ms <= now_ms);
            silent.extend(over.map(|claim| (spot.address, claim.origin)));
        }
        match known {
            true => {
                self.counting.used += used;
                self.counting.idle += self.holding(at).spots.len() - used;
            }
            false => self.counting.inert += self.holding(at).spots.len(),
        }
        if !extended.is_empty() {
            let until_ms = now_ms + self.settings.grace_ms;
            for address in &extended {
                self.claim(at, *address, OWN, until_ms, now_ms);
            }
            self.tell(at, extended, Some(until_ms));
        }
        for (address, origin) in silent {
            self.disclaim(at, address, origin, now_ms);
        }
        if !ended.is_empty() {
            for address in &ended {
                self.disclaim(at, *address, OWN, now_ms);
            }
            self.tell(at, ended, None);
        }
        self.drop_if_empty(at);
    }

    /// Has peers tell anew what there was no room for, once there is.
    fn ask_for_what_has_room(&mut self) {
        if self.spots < self.settings.capacity / 8 * 7 {
            self.peers.values_mut().for_each(peers::Heard::complete);
        }
    }

    /// Live flows that use an address of a name.
    fn uses_at(&self, at: u32, address: IpAddr) -> u32 {
        let (holding, Some(place)) = (self.holding(at), self.places.get(&address)) else {
            return 0;
        };
        let counts = |counted: &&Counted| match counted.is_stray() {
            true => self.rules.group(counted.rule) == &*holding.key.group,
            false => {
                counted.client == holding.key.client
                    && holding
                        .rules
                        .iter()
                        .any(|rule| self.numbers.get(rule) == Some(&counted.rule))
            }
        };
        let counted = place.counted.iter().filter(counts);
        counted
            .map(|counted| self.counters.uses.of(counted.id))
            .fold(0, u32::saturating_add)
    }

    /// Sees to counters that no grant has any more.
    fn settle(&mut self, now_ms: u64) {
        for left in self.counters.settle(now_ms) {
            let Left {
                address,
                counted,
                ended,
                ..
            } = left;
            // A worker judged by the table before, and opened a flow: its grant goes on.
            let again = |own: &Counted| (own.rule, own.client) == (counted.rule, counted.client);
            let place = self.places.get_mut(&address);
            let Some(key) = ended else {
                self.counters.leave(address, counted, None, now_ms);
                continue;
            };
            if place.is_some_and(|place| place.counted.iter().any(again))
                || self.derive(&key).is_empty()
            {
                // It was granted anew meanwhile, and is counted elsewhere; or its rule has ended, and its flows will.
                self.counters.leave(address, counted, None, now_ms);
                continue;
            }
            let place = self.places.entry(address).or_default();
            place.counted.push(Counted {
                holders: 0,
                next_holders: 0,
                ..counted
            });
            let until_ms = now_ms + self.settings.grace_ms;
            self.claim_own(&key, counted.client, &[address], until_ms, now_ms);
            self.rebuild(address, None, now_ms);
        }
    }

    /// Sums, as of the last sweep.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            evicted: self.evicted,
            refused: self.refused,
            ..self.counted
        }
    }

    /// Addresses of names that are granted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spots
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spots == 0
    }

    /// Grants, in no particular order: one for each rule, or one without, of `count` holdings from `from` on. Where to go on,
    /// or none at the end.
    pub fn each(
        &self,
        wanted: &Wanted<'_>,
        from: usize,
        count: usize,
        now_ms: u64,
        mut take: impl FnMut(Grant),
    ) -> Option<usize> {
        let end = (from + count).min(self.holdings.len());
        for holding in self.holdings[from..end].iter().flatten() {
            if !wanted.has(&holding.key) {
                continue;
            }
            let spots = holding.spots.iter();
            for spot in spots.filter(|spot| wanted.address.is_none_or(|own| own == spot.address)) {
                let grant = Grant {
                    group: Arc::clone(&holding.key.group),
                    rule: None,
                    name: Arc::clone(&holding.key.name),
                    address: spot.address,
                    client: holding.key.client,
                    asker: holding.asker,
                    origins: spot.claims().iter().map(|claim| claim.origin).collect(),
                    life_ms: spot.until_ms().saturating_sub(now_ms),
                    seen_ms: spot.seen_ms,
                    uses: 0,
                };
                if holding.rules.is_empty() {
                    take(grant);
                    continue;
                }
                for rule in &holding.rules {
                    let position = self.policy.name_rule_position(*rule);
                    let id = position.and_then(|(group, rule)| self.policy.rule_id(group, rule));
                    take(Grant {
                        rule: id.map(Into::into),
                        uses: self.uses_by(*rule, holding.key.client, spot.address),
                        ..grant.clone()
                    });
                }
            }
        }
        (end < self.holdings.len()).then_some(end)
    }

    fn uses_by(&self, rule: NameRule, client: Option<IpAddr>, address: IpAddr) -> u32 {
        let number = self.numbers.get(&rule);
        let place = self.places.get(&address);
        let counted = place.into_iter().flat_map(|place| &place.counted);
        counted
            .filter(|counted| Some(&counted.rule) == number && counted.client == client)
            .map(|counted| self.counters.uses.of(counted.id))
            .fold(0, u32::saturating_add)
    }

    /// Puts a change of own claims into the stream, and says at which place.
    fn tell(&mut self, at: u32, addresses: Vec<IpAddr>, until_ms: Option<u64>) -> u64 {
        let place = self.next;
        self.next += 1;
        for address in &addresses {
            if let Some(spot) = self.spot(at, *address) {
                spot.told = place;
            }
        }
        self.logged_addresses += addresses.len();
        while self.log.len() >= LOGGED || self.logged_addresses > LOGGED_ADDRESSES {
            let Some(oldest) = self.log.pop_front() else {
                break;
            };
            self.logged_addresses -= oldest.addresses.len();
        }
        self.log.push_back(Logged {
            key: self.holding(at).key.clone(),
            addresses,
            until_ms,
            sum: self.sum,
        });
        place
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let same = |at: &u32| self.holding(*at).key == *key;
        self.index.find(hash, same).copied()
    }

    fn find_or_hold(&mut self, key: &Key, asker: Option<IpAddr>) -> u32 {
        if let Some(at) = self.find(key) {
            return at;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.holdings.push(None);
            self.holdings.len() as u32 - 1
        });
        self.holdings[at as usize] = Some(Holding {
            rules: self.derive(key),
            next_rules: match &mut self.next_policy {
                Some(next) if at as usize <= next.at => {
                    next.at = next.at.max(at as usize + 1);
                    rules::derive(&next.policy, key)
                }
                _ => Box::default(),
            },
            key: key.clone(),
            spots: Vec::new(),
            asker,
            place: self.askers.enter(asker, at),
        });
        let (hasher, holdings) = (&self.hasher, &self.holdings);
        let hash = |at: &u32| {
            let holding = holdings[*at as usize].as_ref();
            hasher.hash_one(&holding.expect("an indexed holding is there").key)
        };
        self.index
            .insert_unique(self.hasher.hash_one(key), at, hash);
        at
    }

    fn drop_if_empty(&mut self, at: u32) {
        if !self.holding(at).spots.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(&self.holding(at).key);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        let Holding { asker, place, .. } = *self.holding(at);
        if let Some(moved) = self.askers.leave(asker, place) {
            self.holding_mut(moved).place = place;
        }
        self.holdings[at as usize] = None;
        self.free.push(at);
    }

    fn holding(&self, at: u32) -> &Holding {
        let holding = self.holdings[at as usize].as_ref();
        holding.expect("a holding stays until it is dropped")
    }

    fn holding_mut(&mut self, at: u32) -> &mut Holding {
        let holding = self.holdings[at as usize].as_mut();
        holding.expect("a holding stays until it is dropped")
    }

    fn spot(&mut self, at: u32, address: IpAddr) -> Option<&mut Spot> {
        self.holding_mut(at).spot(address)
    }
}

/// Room for one element more, and for none beside it where there are few: most of a million lists have one.
pub(crate) fn make_room<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len().max(1));
    }
}

#[cfg(test)]
mod tests;
