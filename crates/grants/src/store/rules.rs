//! What names' addresses are granted to, derived from a policy: for the one in force at once, for the next one piece by
//! piece beforehand.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use engine::grant::{Address, Granted, Table};
use foldhash::fast::RandomState;
use policy::{Compiled, GrantScope, NameRule};

use super::{Store, make_room};
use crate::claims::Key;
use crate::counted::{Counted, Counters, RuleId, Rules};

/// Rules of one policy by what they are called.
pub(super) type Numbers = HashMap<NameRule, RuleId, RandomState>;

/// A policy that is to be in force, as far as everything is derived from it.
#[derive(Debug)]
pub(super) struct Preparing {
    pub(super) policy: Arc<Compiled>,
    pub(super) numbers: Numbers,
    pub(super) table: Table,
    /// Holdings below have been derived.
    pub(super) at: usize,
    /// Once all have: addresses for which what they are granted to is yet to be made.
    left: Option<Vec<IpAddr>>,
}

/// Names of an address above which its counters are found by a map.
const FEW: usize = 16;

/// Finds an address's counters by rule and client.
struct Finder(Option<HashMap<(RuleId, Option<IpAddr>), usize, RandomState>>);

impl Finder {
    fn new(counted: &[Counted], holders: usize) -> Self {
        let own = |(at, own): (usize, &Counted)| ((own.rule, own.client), at);
        let is_large = counted.len().max(holders) > FEW;
        Finder(is_large.then(|| counted.iter().enumerate().map(own).collect()))
    }

    /// The place of a counter; with none there, of one that is taken. None if there are no more.
    fn find_or_take(
        &mut self,
        counted: &mut Vec<Counted>,
        counters: &mut Counters,
        rule: RuleId,
        client: Option<IpAddr>,
    ) -> Option<usize> {
        let found = match &self.0 {
            Some(map) => map.get(&(rule, client)).copied(),
            None => find(counted, rule, client),
        };
        if found.is_some() {
            return found;
        }
        let id = counters.take()?;
        make_room(counted);
        counted.push(Counted {
            rule,
            client,
            id,
            holders: 0,
            next_holders: 0,
        });
        let at = counted.len() - 1;
        if let Some(map) = &mut self.0 {
            map.insert((rule, client), at);
        }
        Some(at)
    }
}

impl Finder {
    /// Counts one more name of a client that derives a rule, among `holders`, and grants the address to it by the first.
    fn count(
        &mut self,
        counted: &mut Vec<Counted>,
        counters: &mut Counters,
        granted: &mut Vec<Granted>,
        (rule, number): (NameRule, RuleId),
        client: Option<IpAddr>,
        holders: fn(&mut Counted) -> &mut u32,
    ) {
        let Some(at) = self.find_or_take(counted, counters, number, client) else {
            return;
        };
        let own = &mut counted[at];
        let id = own.id;
        let holders = holders(own);
        *holders += 1;
        if *holders == 1 {
            granted.push(Granted {
                rule,
                client,
                counted: id,
            });
        }
    }
}

fn find(counted: &[Counted], rule: RuleId, client: Option<IpAddr>) -> Option<usize> {
    let is_same = |own: &Counted| (own.rule, own.client) == (rule, client);
    counted.iter().position(is_same)
}

impl Store {
    /// Derives a part of everything, about `count` names, for a policy that is about to be in force, so that
    /// [`install`](Self::install) has little left to do. What changes meanwhile is derived for both. True once all is.
    pub fn prepare(&mut self, policy: &Arc<Compiled>, count: usize) -> bool {
        let is_same = |next: &Preparing| Arc::ptr_eq(&next.policy, policy);
        if !self.next_policy.as_ref().is_some_and(is_same) {
            self.next_policy = Some(Preparing {
                policy: Arc::clone(policy),
                numbers: Numbers::default(),
                table: Table::new(Arc::clone(&self.counters.uses)),
                at: 0,
                left: None,
            });
        }
        let Some(next) = &mut self.next_policy else {
            return false;
        };
        if next.at < self.holdings.len() {
            let end = (next.at + count).min(self.holdings.len());
            for holding in self.holdings[next.at..end].iter_mut().flatten() {
                holding.next_rules = derive(policy, &holding.key);
            }
            next.at = end;
            return false;
        }
        // Each address once, however many names have it.
        let places = &self.places;
        let left = next
            .left
            .get_or_insert_with(|| places.keys().copied().collect());
        let mut addresses = Vec::new();
        let mut names = 0;
        while names < count
            && let Some(address) = left.pop()
        {
            names += 1 + places.get(&address).map_or(0, |place| place.holders.len());
            addresses.push(address);
        }
        let is_done = left.is_empty();
        for address in addresses {
            self.rebuild_next(address);
        }
        is_done
    }

    /// Goes by what was prepared for a policy from now on, if all of it was.
    pub(super) fn take_prepared(&mut self, policy: &Arc<Compiled>) -> bool {
        let is_ready = |next: &mut Preparing| {
            Arc::ptr_eq(&next.policy, policy)
                && next.at >= self.holdings.len()
                && next.left.as_ref().is_some_and(Vec::is_empty)
        };
        let Some(next) = self.next_policy.take_if(is_ready) else {
            self.next_policy = None;
            return false;
        };
        let incomplete = self.table.is_incomplete();
        (self.numbers, self.table) = (next.numbers, next.table);
        self.table.set_incomplete(incomplete);
        self.changes += 1;
        for place in self.places.values_mut() {
            for counted in &mut place.counted {
                counted.holders = std::mem::take(&mut counted.next_holders);
            }
        }
        true
    }

    /// Derives everything anew, for a policy that is about to be in force, and hands out its table. What the policy before
    /// had rules for and a newer one has none for, ends; what no policy had rules for yet goes on, for one that has.
    pub fn install(&mut self, policy: Arc<Compiled>, now_ms: u64) -> Table {
        // Revision 0 stands for no policy, also while one that is there is withheld.
        let ends = self.policy.revision() > 0 && policy.revision() > self.policy.revision();
        let is_prepared = self.take_prepared(&policy);
        self.policy = policy;
        let mut ended = Vec::new();
        for (at, holding) in self.holdings.iter_mut().enumerate() {
            let Some(holding) = holding else { continue };
            let next = std::mem::take(&mut holding.next_rules);
            let rules = match is_prepared {
                true => next,
                false => derive(&self.policy, &holding.key),
            };
            let before = std::mem::replace(&mut holding.rules, rules);
            if ends && holding.rules.is_empty() && !before.is_empty() {
                ended.push(at as u32);
            }
        }
        if is_prepared {
            for at in ended {
                self.end_own(at, now_ms);
            }
            return self.table();
        }
        self.numbers.clear();
        for at in ended {
            self.end_own(at, now_ms);
        }
        let incomplete = self.table.is_incomplete();
        self.table = Table::new(Arc::clone(&self.counters.uses));
        self.table.set_incomplete(incomplete);
        let addresses: Vec<IpAddr> = self.places.keys().copied().collect();
        for address in addresses {
            self.rebuild(address, None, now_ms);
        }
        self.table()
    }

    /// Makes what packets to an address are judged by. `ended` is the name that it has had until now.
    pub(super) fn rebuild(&mut self, address: IpAddr, ended: Option<&Key>, now_ms: u64) {
        let Some(place) = self.places.get_mut(&address) else {
            return;
        };
        let holders = std::mem::take(&mut place.holders);
        let mut counted = std::mem::take(&mut place.counted);
        for own in &mut counted {
            own.holders = 0;
        }
        let mut granted = Vec::new();
        // None of them is, if the address is barred.
        let granting = if (self.barred.0)(address) {
            0
        } else {
            holders.len()
        };
        let mut finder = Finder::new(&counted, granting);
        for holder in &holders[..granting] {
            let Some(holding) = &self.holdings[*holder as usize] else {
                continue;
            };
            let client = holding.key.client;
            for rule in &holding.rules {
                let (rules, policy) = (&mut self.rules, &self.policy);
                let number = *self
                    .numbers
                    .entry(*rule)
                    .or_insert_with(|| number(rules, policy, *rule));
                let (counters, rule) = (&mut self.counters, (*rule, number));
                let holders: fn(&mut Counted) -> &mut u32 = |own| &mut own.holders;
                finder.count(&mut counted, counters, &mut granted, rule, client, holders);
            }
        }
        let is_preparing = self.next_policy.is_some();
        counted.retain(|own| {
            // While the name is held on, flows that were judged by a rule that has gone keep it.
            let keep = !own.is_stray()
                || !holders.is_empty()
                    && (own.next_holders > 0 && is_preparing || self.counters.uses.of(own.id) > 0);
            if !keep {
                self.counters.leave(address, *own, ended.cloned(), now_ms);
            }
            keep
        });
        self.table.set(address, Address::new(granted));
        self.changes += 1;
        if holders.is_empty() && counted.is_empty() {
            self.places.remove(&address);
            if let Some(next) = &mut self.next_policy {
                next.table.set(address, Address::default());
            }
        } else if let Some(place) = self.places.get_mut(&address) {
            place.holders = holders;
            place.counted = counted;
            self.rebuild_next(address);
        }
    }

    /// Makes what packets to an address are to be judged by under the policy in preparation, if there is one.
    pub(super) fn rebuild_next(&mut self, address: IpAddr) {
        let (Some(next), Some(place)) = (&mut self.next_policy, self.places.get_mut(&address))
        else {
            return;
        };
        for own in &mut place.counted {
            own.next_holders = 0;
        }
        let mut granted = Vec::new();
        let is_barred = (self.barred.0)(address);
        let holders = place
            .holders
            .iter()
            .filter(|at| (**at as usize) < next.at && !is_barred);
        let mut finder = Finder::new(&place.counted, place.holders.len());
        for holding in holders.filter_map(|at| self.holdings[*at as usize].as_ref()) {
            let client = holding.key.client;
            for rule in &holding.next_rules {
                let number = *next
                    .numbers
                    .entry(*rule)
                    .or_insert_with(|| number(&mut self.rules, &next.policy, *rule));
                let (counted, counters) = (&mut place.counted, &mut self.counters);
                let holders: fn(&mut Counted) -> &mut u32 = |own| &mut own.next_holders;
                finder.count(
                    counted,
                    counters,
                    &mut granted,
                    (*rule, number),
                    client,
                    holders,
                );
            }
        }
        next.table.set(address, Address::new(granted));
    }

    /// Takes in that one more name has an address, and says whether that changes what is granted: not if others that have
    /// it are known to the same rules, which is usual where many names lead to few addresses.
    pub(super) fn gain(&mut self, at: u32, address: IpAddr, now_ms: u64) -> bool {
        if self.count_along(at, address, |holders| *holders > 0, |holders| *holders += 1) {
            return false;
        }
        self.rebuild(address, None, now_ms);
        true
    }

    /// The same of a name that has it no longer.
    pub(super) fn lose(&mut self, at: u32, address: IpAddr, now_ms: u64) {
        if !self.count_along(at, address, |holders| *holders > 1, |holders| *holders -= 1) {
            let key = self.holding(at).key.clone();
            self.rebuild(address, Some(&key), now_ms);
        }
    }

    /// Changes the numbers of names that derive a name's rules, under both policies, if that is all there is to do: every
    /// number is `such`, and no counter waits for being looked at.
    fn count_along(
        &mut self,
        at: u32,
        address: IpAddr,
        such: fn(&u32) -> bool,
        change: fn(&mut u32),
    ) -> bool {
        let Some(holding) = &self.holdings[at as usize] else {
            return false;
        };
        let Some(place) = self.places.get_mut(&address) else {
            return false;
        };
        let is_preparing = self.next_policy.is_some();
        let uses = &self.counters.uses;
        let waits = |own: &Counted| {
            own.is_stray() && !(is_preparing && own.next_holders > 0) && uses.of(own.id) == 0
        };
        if place.holders.is_empty() || place.counted.iter().any(waits) || (self.barred.0)(address) {
            return false;
        }
        let client = holding.key.client;
        let now = holding
            .rules
            .iter()
            .map(|rule| find(&place.counted, *self.numbers.get(rule)?, client));
        let Some(now) = now.collect::<Option<Vec<usize>>>() else {
            return false;
        };
        let mut then = Some(Vec::new());
        if let Some(next) = &self.next_policy
            && (at as usize) < next.at
        {
            let rules = holding.next_rules.iter();
            let rules = rules.map(|rule| find(&place.counted, *next.numbers.get(rule)?, client));
            then = rules.collect();
        }
        let Some(then) = then else {
            return false;
        };
        let counted = &mut place.counted;
        if !(now.iter().all(|at| such(&counted[*at].holders))
            && then.iter().all(|at| such(&counted[*at].next_holders)))
        {
            return false;
        }
        now.iter().for_each(|at| change(&mut counted[*at].holders));
        then.iter()
            .for_each(|at| change(&mut counted[*at].next_holders));
        true
    }

    /// The rules that a name's addresses are granted to now.
    pub(super) fn derive(&self, key: &Key) -> Box<[NameRule]> {
        derive(&self.policy, key)
    }
}

/// The rules that a name's addresses are granted to under a policy. What one client has found is granted to it also by
/// rules that would let the whole group have it, as a rule may that was changed.
pub(super) fn derive(policy: &Compiled, key: &Key) -> Box<[NameRule]> {
    let Some(group) = policy.group_by_id(&key.group) else {
        return Box::default();
    };
    let mut rules = Vec::new();
    policy.rules_by_name(group, &key.name, &mut rules);
    rules.retain(|rule| key.client.is_some() || policy.grant_scope(*rule) == GrantScope::Group);
    rules.into()
}

fn number(rules: &mut Rules, policy: &Compiled, rule: NameRule) -> RuleId {
    let ids = policy
        .name_rule_position(rule)
        .and_then(|(group, rule)| Some((policy.group_id(group)?, policy.rule_id(group, rule)?)));
    let (group, rule) = ids.unwrap_or_default();
    rules.number(group, rule)
}
