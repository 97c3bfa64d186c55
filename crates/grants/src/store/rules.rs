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
use crate::counted::{Counted, RuleId, Rules};

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
}

impl Store {
    /// Derives a part of everything, `count` holdings, for a policy that is about to be in force, so that
    /// [`install`](Self::install) has little left to do. What changes meanwhile is derived for both. True once all is.
    pub fn prepare(&mut self, policy: &Arc<Compiled>, count: usize) -> bool {
        let is_same = |next: &Preparing| Arc::ptr_eq(&next.policy, policy);
        if !self.next_policy.as_ref().is_some_and(is_same) {
            self.next_policy = Some(Preparing {
                policy: Arc::clone(policy),
                numbers: Numbers::default(),
                table: Table::new(Arc::clone(&self.counters.uses)),
                at: 0,
            });
        }
        let from = self.next_policy.as_ref().map_or(0, |next| next.at);
        let end = (from + count).min(self.holdings.len());
        for at in from..end {
            if let Some(holding) = &mut self.holdings[at] {
                holding.next_rules = derive(policy, &holding.key);
            }
        }
        if let Some(next) = &mut self.next_policy {
            next.at = end;
        }
        for at in from..end {
            let Some(holding) = &self.holdings[at] else {
                continue;
            };
            let addresses: Vec<IpAddr> = holding.spots.iter().map(|spot| spot.address).collect();
            for address in addresses {
                self.rebuild_next(address);
            }
        }
        end == self.holdings.len()
    }

    /// Goes by what was prepared for a policy from now on, if all of it was.
    pub(super) fn take_prepared(&mut self, policy: &Arc<Compiled>) -> bool {
        let is_ready = |next: &mut Preparing| {
            Arc::ptr_eq(&next.policy, policy) && next.at >= self.holdings.len()
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
                counted.stray = !std::mem::take(&mut counted.next);
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
            own.stray = true;
        }
        let mut granted = Vec::new();
        // None of them is, if the address is barred.
        let granting = if (self.barred.0)(address) {
            0
        } else {
            holders.len()
        };
        for holder in &holders[..granting] {
            let Some(holding) = &self.holdings[*holder as usize] else {
                continue;
            };
            let client = holding.key.client;
            for rule in &holding.rules {
                let number = match self.numbers.get(rule) {
                    Some(number) => *number,
                    None => {
                        let number = number(&mut self.rules, &self.policy, *rule);
                        self.numbers.insert(*rule, number);
                        number
                    }
                };
                let own = counted
                    .iter_mut()
                    .find(|own| (own.rule, own.client) == (number, client));
                let id = match own {
                    Some(own) => {
                        own.stray = false;
                        own.id
                    }
                    None => {
                        let Some(id) = self.counters.take() else {
                            continue;
                        };
                        make_room(&mut counted);
                        counted.push(Counted {
                            rule: number,
                            client,
                            id,
                            stray: false,
                            next: false,
                        });
                        id
                    }
                };
                granted.push(Granted {
                    rule: *rule,
                    client,
                    counted: id,
                });
            }
        }
        let is_preparing = self.next_policy.is_some();
        counted.retain(|own| {
            // While the name is held on, flows that were judged by a rule that has gone keep it.
            let keep = !own.stray
                || own.next && is_preparing
                || (!holders.is_empty() && self.counters.uses.of(own.id) > 0);
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
            own.next = false;
        }
        let mut granted = Vec::new();
        let is_barred = (self.barred.0)(address);
        let holders = place
            .holders
            .iter()
            .filter(|at| (**at as usize) < next.at && !is_barred);
        for holding in holders.filter_map(|at| self.holdings[*at as usize].as_ref()) {
            let client = holding.key.client;
            for rule in &holding.next_rules {
                let number = *next
                    .numbers
                    .entry(*rule)
                    .or_insert_with(|| number(&mut self.rules, &next.policy, *rule));
                let same = |own: &&mut Counted| (own.rule, own.client) == (number, client);
                let id = match place.counted.iter_mut().find(same) {
                    Some(own) => {
                        own.next = true;
                        own.id
                    }
                    None => {
                        let Some(id) = self.counters.take() else {
                            continue;
                        };
                        make_room(&mut place.counted);
                        place.counted.push(Counted {
                            rule: number,
                            client,
                            id,
                            stray: true,
                            next: true,
                        });
                        id
                    }
                };
                granted.push(Granted {
                    rule: *rule,
                    client,
                    counted: id,
                });
            }
        }
        next.table.set(address, Address::new(granted));
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
