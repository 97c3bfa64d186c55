//! How many flows each source and each source group has, exactly, and how fast a source opens new ones:
//! what the limits by source are held against.
//!
//! A source is one host in IPv4 and one /64 in IPv6, where a host has as many addresses as it likes. There are never more
//! sources than flows, so the table of sources is as large as that of flows; and the rates are kept in places shared
//! by hash, so that no number of addresses makes either grow.

mod node;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mem::{Slab, Table};
use policy::Compiled;

use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::counters::{GroupCounters, Groups, Traffic};
use crate::flow::key::KeyHasher;
use crate::flow::{Flow, NO_GROUP, halves};
use crate::fragment::source;
use crate::snapshot::Limits;
pub use node::NodeTally;

/// The place of flows that no source group decided about.
pub(crate) const NO_PLACE: u16 = u16::MAX;

/// Places of the rates, a power of two. A source has two, and is refused only if both are used up: with a thousand
/// sources above their rate, one in 200 of the others would share both its places with them.
const RATES: usize = 1 << 14;
/// How much of its rate a source may use at once.
const BURST_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Source {
    /// Upper and lower half: eight bytes less than with the alignment of one number.
    address: [u64; 2],
    flows: u32,
    /// The next one whose address has a hash that leads to the same head; or the next free place.
    next: u32,
}

const NONE: u32 = u32::MAX;

/// How many flows there may be for each head of a chain.
const FLOWS_PER_HEAD: usize = 8;

#[derive(Debug)]
struct Group {
    id: Arc<str>,
    flows: u32,
    /// Whether the policy in force has it.
    current: bool,
    /// Whether it is told of no longer: it has left the policy, and its last flow has ended since.
    retired: bool,
    /// Of all workers together, if they count together.
    of_node: Option<Arc<AtomicU32>>,
    counters: Arc<GroupCounters>,
}

impl Group {
    /// How many flows it has, in this worker or in the node.
    fn counted(&self) -> u32 {
        match &self.of_node {
            Some(of_node) => of_node.load(Ordering::Relaxed),
            None => self.flows,
        }
    }
}

/// Nanoseconds between two flows of this rate per second.
fn price_ns(rate: u32) -> u64 {
    1_000_000_000 / u64::from(rate.max(1))
}

/// How far ahead of its rate a source may be, at this price of a flow.
fn burst_ns(price: u64) -> u64 {
    BURST_NS.max(price)
}

/// The two places of a source's rate, by its hash.
fn places_of_rate(hash: u64) -> [usize; 2] {
    let first = hash as usize % RATES;
    let second = match (hash >> 32) as usize % RATES {
        same if same == first => (first + 1) % RATES,
        other => other,
    };
    [first, second]
}

#[derive(Debug)]
pub(crate) struct Tally {
    sources: Slab<Source>,
    /// By hash, the first source of a chain, plus one; 0 where there is none. Chains are short even if every flow has a
    /// source of its own, and few sources touch little memory.
    heads: Table<u32>,
    free: u32,
    hasher: KeyHasher,
    /// When each place will have its whole rate again.
    rates: Vec<u64>,
    groups: Vec<Group>,
    by_id: BTreeMap<Box<str>, u16>,
    /// Where the groups of the policy in force are counted.
    places: Vec<u16>,
    /// What was counted of groups that are gone.
    retired: Traffic,
    /// What the node's workers count together.
    node: Option<Arc<NodeTally>>,
}

impl Tally {
    /// For this many flows.
    pub(crate) fn new(capacity: u32, hasher: KeyHasher) -> io::Result<Tally> {
        Ok(Tally {
            sources: Slab::new(capacity as usize)?,
            heads: Table::new((capacity as usize / FLOWS_PER_HEAD).max(8))?,
            free: NONE,
            hasher,
            rates: vec![0; RATES],
            groups: Vec::new(),
            by_id: BTreeMap::new(),
            places: Vec::new(),
            retired: Traffic::default(),
            node: None,
        })
    }

    /// Counts with the other workers of the node from now on: the limits are those of the node. To be called before there
    /// are flows.
    pub(crate) fn join(&mut self, node: Arc<NodeTally>) {
        for group in self.groups.iter_mut().filter(|group| !group.retired) {
            group.of_node = Some(node.group(&group.id));
        }
        self.node = Some(node);
    }

    /// Takes over the groups of a policy. Those that it shares with the one before go on being counted, by their id.
    pub(crate) fn install(&mut self, policy: &Arc<Compiled>) {
        for group in &mut self.groups {
            group.current = false;
        }
        let ids =
            (0..policy.group_count() as u32).map(|at| policy.group_id(at).unwrap_or_default());
        for id in ids.clone() {
            if let Some(place) = self.by_id.get(id) {
                self.groups[usize::from(*place)].current = true;
            }
        }
        self.retire();
        self.places.clear();
        for id in ids {
            let place = match self.by_id.get(id) {
                Some(place) => *place,
                None => self.add_group(id),
            };
            self.places.push(place);
        }
    }

    /// Lets go of groups that the policy has no longer, and that have no flows any more.
    fn retire(&mut self) {
        for group in &mut self.groups {
            if !group.current && group.flows == 0 && !group.retired {
                group.retired = true;
                group.of_node = None;
                self.retired.add(&group.counters);
            }
        }
        let groups = &self.groups;
        self.by_id
            .retain(|_, place| !groups[usize::from(*place)].retired);
        if let Some(node) = &self.node {
            node.forget_groups();
        }
    }

    fn add_group(&mut self, id: &str) -> u16 {
        let mut group = Group {
            id: id.into(),
            flows: 0,
            current: true,
            retired: false,
            of_node: None,
            counters: Arc::default(),
        };
        if let Some(node) = &self.node {
            group.of_node = Some(node.group(&group.id));
        }
        let place = match self.groups.iter().position(|group| group.retired) {
            Some(place) => {
                self.groups[place] = group;
                place
            }
            None if self.groups.len() < usize::from(NO_PLACE) => {
                self.groups.push(group);
                self.groups.len() - 1
            }
            None => return NO_PLACE,
        };
        self.by_id.insert(id.into(), place as u16);
        place as u16
    }

    /// The groups that are counted now.
    pub(crate) fn groups(&self) -> Groups {
        let counted = self.groups.iter().filter(|group| !group.retired);
        let listed = counted.map(|group| (Arc::clone(&group.id), Arc::clone(&group.counters)));
        Groups::new(listed.collect(), self.retired)
    }

    /// What is counted at a place; none for flows that no group decided about.
    #[inline(always)]
    pub(crate) fn counters(&self, place: u16) -> Option<&GroupCounters> {
        let group = self.groups.get(usize::from(place))?;
        Some(&group.counters)
    }

    /// The same place, or none if the group that was there is told of no longer.
    pub(crate) fn still(&self, place: u16) -> u16 {
        match self.groups.get(usize::from(place)) {
            Some(group) if !group.retired => place,
            _ => NO_PLACE,
        }
    }

    /// Where the group at this position of the policy in force is counted.
    pub(crate) fn place(&self, group: u16) -> u16 {
        if group == NO_GROUP {
            return NO_PLACE;
        }
        *self.places.get(usize::from(group)).unwrap_or(&NO_PLACE)
    }

    /// Whether a flow may be opened; takes from its source's rate if so.
    pub(crate) fn admit(
        &mut self,
        now: Now,
        flow: &Flow,
        limits: &Limits,
    ) -> Result<(), DropReason> {
        self.check_limits(flow, limits, 0)?;
        match limits.new_flows_per_source_per_s {
            Some(rate) if !self.take(now, flow.client, rate) => Err(DropReason::SourceRate),
            _ => Ok(()),
        }
    }

    /// Whether the source and the group of a flow have no more flows than they may, if this one is among these `already`.
    fn check_limits(&self, flow: &Flow, limits: &Limits, already: u32) -> Result<(), DropReason> {
        let of_group = self.groups.get(usize::from(flow.tally));
        if let (Some(max), Some(group)) = (limits.max_flows_per_group, of_group)
            && group.counted().saturating_sub(already) >= max
        {
            return Err(DropReason::SourceGroupFull);
        }
        if let Some(max) = limits.max_flows_per_source {
            let flows = match &self.node {
                Some(node) => node.flows_of(flow.client),
                None => self.flows_of(flow.client),
            };
            if flows.saturating_sub(already) >= max {
                return Err(DropReason::SourceFull);
            }
        }
        Ok(())
    }

    /// Counts a flow.
    ///
    /// # Errors
    /// There is no room for its source; or other workers have opened the last flows that its source or its group may have
    /// since it was [admitted](Self::admit). It is not counted then.
    pub(crate) fn enter(&mut self, flow: &Flow, limits: &Limits) -> Result<(), DropReason> {
        let address = source(flow.client);
        match self.find(address) {
            Some(place) => self.sources[place as usize].flows += 1,
            None => {
                let head = self.head(address);
                let made = Source {
                    address: halves(address),
                    flows: 1,
                    next: self.heads[head].wrapping_sub(1),
                };
                let place = self.put(made).ok_or(DropReason::FlowTableFull)?;
                self.heads[head] = place + 1;
            }
        }
        self.enter_group(flow.tally);
        let Some(node) = &self.node else {
            return Ok(());
        };
        node.enter(flow.client);
        self.check_limits(flow, limits, 1)
            .inspect_err(|_| self.leave(flow))
    }

    /// Counts a flow no more.
    pub(crate) fn leave(&mut self, flow: &Flow) {
        self.leave_group(flow.tally);
        if let Some(node) = &self.node {
            node.leave(flow.client);
        }
        let address = source(flow.client);
        let Some(place) = self.find(address) else {
            debug_assert!(false, "a flow left that never entered");
            return;
        };
        let left = &mut self.sources[place as usize].flows;
        *left -= 1;
        if *left == 0 {
            self.unlink(address, place);
            self.sources[place as usize].next = self.free;
            self.free = place;
        }
    }

    /// Counts a flow in another group.
    pub(crate) fn move_group(&mut self, from: u16, to: u16) {
        self.leave_group(from);
        self.enter_group(to);
    }

    fn enter_group(&mut self, place: u16) {
        if let Some(group) = self.groups.get_mut(usize::from(place)) {
            group.flows += 1;
            if let Some(of_node) = &group.of_node {
                of_node.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn leave_group(&mut self, place: u16) {
        if let Some(group) = self.groups.get_mut(usize::from(place)) {
            group.flows -= 1;
            if let Some(of_node) = &group.of_node {
                of_node.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// How many flows a client's source has.
    pub(crate) fn flows_of(&self, client: Addr) -> u32 {
        let place = self.find(source(client));
        place.map_or(0, |place| self.sources[place as usize].flows)
    }

    /// Which chain a client's source is in.
    #[inline]
    pub(crate) fn chain_of(&self, client: Addr) -> u32 {
        self.head(source(client)) as u32
    }

    /// Asks for the memory that [`prefetch_source`](Self::prefetch_source) reads.
    #[inline]
    pub(crate) fn prefetch_chain(&self, chain: u32) {
        self.heads.prefetch(chain as usize);
    }

    /// Asks for the memory that says how many flows the first source of a chain has.
    #[inline]
    pub(crate) fn prefetch_source(&self, chain: u32) {
        let first = self.heads[chain as usize].wrapping_sub(1);
        self.sources.prefetch(first as usize);
    }

    fn head(&self, address: Addr) -> usize {
        let hash = self.hasher.hash_address(address) >> 32;
        ((hash * self.heads.len() as u64) >> 32) as usize
    }

    /// The places of the sources whose hash leads where this one's does.
    fn chain(&self, address: Addr) -> impl Iterator<Item = u32> {
        let there = |place: u32| (place != NONE).then_some(place);
        let first = there(self.heads[self.head(address)].wrapping_sub(1));
        std::iter::successors(first, move |place| {
            there(self.sources[*place as usize].next)
        })
    }

    fn find(&self, address: Addr) -> Option<u32> {
        let wanted = halves(address);
        let is_it = |place: &u32| self.sources[*place as usize].address == wanted;
        self.chain(address).find(is_it)
    }

    fn put(&mut self, made: Source) -> Option<u32> {
        if self.free == NONE {
            return self.sources.push(made).map(|place| place as u32);
        }
        let place = self.free;
        self.free = self.sources[place as usize].next;
        self.sources[place as usize] = made;
        Some(place)
    }

    /// Takes a source out of its chain.
    fn unlink(&mut self, address: Addr, place: u32) {
        let next = self.sources[place as usize].next;
        let leads_here = |before: &u32| self.sources[*before as usize].next == place;
        let before = self.chain(address).find(leads_here);
        match before {
            Some(before) => self.sources[before as usize].next = next,
            None => {
                let head = self.head(address);
                self.heads[head] = next.wrapping_add(1);
            }
        }
    }

    /// Takes one new flow from what a source may open by now.
    fn take(&mut self, now: Now, client: Addr, rate: u32) -> bool {
        if let Some(node) = &self.node {
            return node.take(now, client, rate);
        }
        let price = price_ns(rate);
        let mut admitted = false;
        for place in places_of_rate(self.hasher.hash_address(source(client))) {
            let due = self.rates[place].max(now.0) + price;
            if due <= now.0 + burst_ns(price) {
                self.rates[place] = due;
                admitted = true;
            }
        }
        admitted
    }

    /// That all counts are those of these flows.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, flows: impl Iterator<Item = &'a Flow>) {
        let mut by_source = BTreeMap::<Addr, u32>::new();
        let mut by_group = vec![0; self.groups.len()];
        for flow in flows {
            *by_source.entry(source(flow.client)).or_default() += 1;
            if flow.tally != NO_PLACE {
                by_group[usize::from(flow.tally)] += 1;
            }
        }
        for (address, flows) in &by_source {
            assert_eq!(self.flows_of(*address), *flows, "{address:?}");
        }
        let counted: Vec<u32> = self.groups.iter().map(|g| g.flows).collect();
        assert_eq!(counted, by_group);
        let mut free = 0;
        let mut place = self.free;
        while place != NONE {
            free += 1;
            place = self.sources[place as usize].next;
        }
        assert_eq!(self.sources.len() - free, by_source.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Key;
    use policy::Document;
    use proptest::prelude::*;

    fn flow(client: Addr, group: u16, tally: u16) -> Flow {
        let key = Key {
            src: client,
            dst: Addr::v4(1),
            proto: 17,
            ..Key::default()
        };
        Flow {
            group,
            tally,
            ..Flow::of(&key)
        }
    }

    /// A policy with groups of these names.
    fn policy(names: &[u8]) -> Arc<Compiled> {
        let group = |n: &u8| {
            format!(
                r#"{{"id":"g{n}","mode":"enforce","default_action":"allow","on_deny":"drop",
                "sources":{{"cidrs":["10.{n}.0.0/16"]}},"rules":[]}}"#
            )
        };
        let groups: Vec<String> = names.iter().map(group).collect();
        let json = format!(
            r#"{{"default_policy":"allow","source_groups":[{}]}}"#,
            groups.join(",")
        );
        let document = Document::parse_json(json.as_bytes()).unwrap();
        Arc::new(Compiled::compile(&document, 1).unwrap())
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter(u8, u16),
        Leave(prop::sample::Index),
        Judge(prop::sample::Index, u16),
        Install(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<u8>(), 0u16..5).prop_map(|(a, g)| Step::Enter(a, g)),
            3 => any::<prop::sample::Index>().prop_map(Step::Leave),
            2 => (any::<prop::sample::Index>(), 0u16..5).prop_map(|(i, g)| Step::Judge(i, g)),
            1 => prop::collection::btree_set(0u8..8, 0..5)
                .prop_map(|names| Step::Install(names.into_iter().collect())),
        ]
    }

    proptest! {
        #[test]
        fn the_counts_are_those_of_the_flows(steps in prop::collection::vec(step(), 1..200)) {
            let mut tally = tally();
            let mut flows: Vec<Flow> = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(a, group) if flows.len() < 64 => {
                        let client = if a < 128 {
                            Addr::v4(u32::from(a % 16))
                        } else {
                            Addr(0x2001_0db8 << 96 | u128::from(a % 4) << 64 | u128::from(a))
                        };
                        let new = flow(client, group, tally.place(group));
                        prop_assert!(tally.enter(&new, &Limits::default()).is_ok());
                        flows.push(new);
                    }
                    Step::Leave(i) if !flows.is_empty() => {
                        let gone = flows.swap_remove(i.index(flows.len()));
                        tally.leave(&gone);
                    }
                    Step::Judge(i, group) if !flows.is_empty() => {
                        let i = i.index(flows.len());
                        let place = tally.place(group);
                        tally.move_group(flows[i].tally, place);
                        (flows[i].group, flows[i].tally) = (group, place);
                    }
                    Step::Install(names) => tally.install(&policy(&names)),
                    _ => {}
                }
                tally.check(flows.iter());
            }
        }
    }

    #[test]
    fn a_group_is_known_by_its_id_and_not_by_its_position() {
        let mut tally = tally();
        tally.install(&policy(&[1, 2]));
        let of_two = flow(Addr::v4(7), 1, tally.place(1));
        assert!(tally.enter(&of_two, &Limits::default()).is_ok());
        let limits = Limits {
            max_flows_per_group: Some(1),
            ..Limits::default()
        };
        let refused = |tally: &mut Tally, group| {
            let new = flow(Addr::v4(8), group, tally.place(group));
            tally.admit(Now(0), &new, &limits) == Err(DropReason::SourceGroupFull)
        };
        assert!(!refused(&mut tally, 0) && refused(&mut tally, 1));
        tally.install(&policy(&[2, 3]));
        assert!(refused(&mut tally, 0) && !refused(&mut tally, 1));
        // Gone and back while a flow of it lives.
        tally.install(&policy(&[3]));
        tally.install(&policy(&[3, 2]));
        assert!(!refused(&mut tally, 0) && refused(&mut tally, 1));
        tally.leave(&of_two);
        assert!(!refused(&mut tally, 1));
    }

    fn tally() -> Tally {
        Tally::new(64, KeyHasher::new(1)).unwrap()
    }

    #[test]
    fn a_source_opens_its_rate_and_a_second_of_it_at_once() {
        let mut tally = tally();
        let mut count = |ms: u64, a: Addr| {
            let now = Now(ms * 1_000_000);
            (0..1000).filter(|_| tally.take(now, a, 100)).count()
        };
        let (one, other) = (Addr::v4(1), Addr::v4(2));
        assert_eq!(count(1000, one), 100);
        assert_eq!(count(1500, one), 50);
        assert_eq!(count(1500, other), 100);
        assert_eq!(count(60_000, one), 100);
        // Another address of the same link is the same source.
        let v6 = |n: u128| Addr(0x2001_0db8 << 96 | n);
        assert_eq!(count(60_000, v6(1)), 100);
        assert_eq!(count(60_000, v6(2)), 0);
        assert_eq!(count(60_000, v6(1 << 64)), 100);
    }

    #[test]
    fn a_slow_rate_lets_one_through() {
        let mut tally = tally();
        let mut take = |s: u64| tally.take(Now(s * 1_000_000_000), Addr::v4(1), 1);
        assert!(take(5) && !take(5) && take(6) && !take(6));
    }
}
