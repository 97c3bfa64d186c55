//! What addresses names were found to have, as packets are judged by it: which rules by name an address is granted to, and
//! how many flows use that.
//!
//! The control side publishes a [`Table`] for one compiled policy; workers read it without a lock. A worker looks for the
//! newest one after it has taken frames and before it judges them, so a grant that was published before a client was told
//! of an address is in force for the client's first packet, without anybody waiting for workers.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use policy::{Compiled, Decision, Facts, NameRule};

use crate::address::Addr;

/// Which counter of flows belongs to a grant. It is the same under every policy that has the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UseId(NonZeroU32);

impl UseId {
    /// The counter at a place, which is less than [`Uses::CAPACITY`].
    pub fn at(place: u32) -> UseId {
        UseId(NonZeroU32::MIN.saturating_add(place))
    }

    /// Its place.
    pub fn place(self) -> u32 {
        self.0.get() - 1
    }
}

/// Counters in one piece of memory.
const CHUNK: usize = 1 << 12;

type Chunk = Box<[AtomicU32]>;

/// How many flows of all workers use each grant. Memory is taken as there are grants, and never given back.
#[derive(Debug)]
pub struct Uses {
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Default for Uses {
    fn default() -> Self {
        Uses {
            chunks: (0..Uses::CAPACITY as usize / CHUNK)
                .map(|_| OnceLock::new())
                .collect(),
        }
    }
}

impl Uses {
    /// Counters that there can be.
    pub const CAPACITY: u32 = 1 << 24;

    fn counter(&self, id: UseId) -> Option<&AtomicU32> {
        let place = id.place() as usize;
        let chunk = self
            .chunks
            .get(place / CHUNK)?
            .get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect());
        chunk.get(place % CHUNK)
    }

    /// How many flows use a grant.
    pub fn of(&self, id: UseId) -> u32 {
        self.counter(id)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// A flow begins to use it.
    pub fn enter(&self, id: UseId) {
        if let Some(counter) = self.counter(id) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A flow no longer does.
    pub fn leave(&self, id: UseId) {
        if let Some(counter) = self.counter(id) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A rule by name that an address is granted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granted {
    /// The rule.
    pub rule: NameRule,
    /// The only client that may use it; none if all of the rule's group may.
    pub client: Option<IpAddr>,
    /// Where its flows are counted.
    pub counted: UseId,
}

/// Few of these stand beside what they belong to, so that a packet looks for them in one place.
type Few<T> = smallvec::SmallVec<[T; 4]>;

/// Everything that one address is granted to.
#[derive(Clone, Debug, Default)]
pub struct Address {
    /// For whole groups, by rule, ascending and each once.
    rules: Few<NameRule>,
    counted: Few<UseId>,
    /// For single clients, by client and rule.
    clients: Box<[(IpAddr, NameRule, UseId)]>,
}

impl Address {
    /// These grants, in any order.
    pub fn new(granted: impl IntoIterator<Item = Granted>) -> Address {
        let mut all: Vec<Granted> = granted.into_iter().collect();
        all.sort_unstable();
        all.dedup_by_key(|granted| (granted.rule, granted.client));
        let groups = all.iter().filter(|granted| granted.client.is_none());
        let mut clients: Vec<_> = all
            .iter()
            .filter_map(|granted| Some((granted.client?, granted.rule, granted.counted)))
            .collect();
        clients.sort_unstable();
        Address {
            rules: groups.clone().map(|granted| granted.rule).collect(),
            counted: groups.map(|granted| granted.counted).collect(),
            clients: clients.into(),
        }
    }

    /// Whether it is granted to nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.clients.is_empty()
    }

    /// Judges a packet to this address, and says which grant let the deciding rule have it.
    pub fn judge(&self, policy: &Compiled, facts: &Facts) -> (Decision, Option<UseId>) {
        let from = self
            .clients
            .partition_point(|(client, ..)| *client < facts.src);
        let own = self.clients[from..]
            .iter()
            .take_while(|(client, ..)| *client == facts.src);
        if own.clone().next().is_none() {
            let (decision, rule) = policy.evaluate_granted(facts, &self.rules);
            return (decision, rule.and_then(|rule| self.counted_for(rule)));
        }
        let mut both: Vec<NameRule> = self.rules.to_vec();
        both.extend(own.clone().map(|(_, rule, _)| *rule));
        both.sort_unstable();
        both.dedup();
        let (decision, rule) = policy.evaluate_granted(facts, &both);
        let counted = rule.and_then(|rule| {
            let own = own.clone().find(|(_, own, _)| *own == rule);
            own.map(|(.., counted)| *counted)
                .or_else(|| self.counted_for(rule))
        });
        (decision, counted)
    }

    /// The rules that a client may use it by, ascending.
    pub fn rules_of(&self, client: IpAddr) -> Vec<NameRule> {
        let own = self.clients.iter().filter(|(own, ..)| *own == client);
        let mut rules = self.rules.to_vec();
        rules.extend(own.map(|(_, rule, _)| *rule));
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    fn counted_for(&self, rule: NameRule) -> Option<UseId> {
        let at = self.rules.binary_search(&rule).ok()?;
        self.counted.get(at).copied()
    }
}

/// By [`Addr`], one number, which is hashed and compared at once.
type ByAddress = imbl::GenericHashMap<
    Addr,
    Arc<Address>,
    foldhash::fast::RandomState,
    imbl::shared_ptr::DefaultSharedPtr,
>;

/// All grants, as one compiled policy knows the rules. Cheap to copy and change: what is not changed is shared.
#[derive(Clone, Debug, Default)]
pub struct Table {
    by_address: ByAddress,
    uses: Arc<Uses>,
    incomplete: bool,
}

impl Table {
    /// A table without grants, whose flows are counted there.
    pub fn new(uses: Arc<Uses>) -> Table {
        Table {
            by_address: ByAddress::default(),
            uses,
            incomplete: false,
        }
    }

    /// Changes what an address is granted to.
    pub fn set(&mut self, address: IpAddr, granted: Address) {
        if granted.is_empty() {
            self.by_address.remove(&Addr::from(address));
        } else {
            self.by_address
                .insert(Addr::from(address), Arc::new(granted));
        }
    }

    /// Says whether grants may be missing that peers have made: then a first packet to an address without any waits a moment
    /// before it is denied.
    pub fn set_incomplete(&mut self, incomplete: bool) {
        self.incomplete = incomplete;
    }

    /// Whether they may be.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// What an address is granted to, if anything.
    pub fn of(&self, address: IpAddr) -> Option<&Address> {
        self.by_addr(address.into())
    }

    #[inline]
    fn by_addr(&self, address: Addr) -> Option<&Address> {
        self.by_address.get(&address).map(|granted| &**granted)
    }

    /// Asks for the memory that [`judge`](Self::judge) reads of a destination.
    #[inline]
    pub(crate) fn prefetch(&self, destination: Addr) {
        if !self.by_address.is_empty()
            && let Some(granted) = self.by_addr(destination)
        {
            mem::prefetch(granted);
            mem::prefetch(&raw const granted.clients);
        }
    }

    /// Addresses that are granted to something.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether no address is.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Where flows are counted.
    pub fn uses(&self) -> &Arc<Uses> {
        &self.uses
    }

    /// Whether a packet that is denied would pass if a peer had granted its destination by what the client asked for.
    pub fn might_pass(&self, policy: &Compiled, facts: &Facts) -> bool {
        let granted = self
            .of(facts.dst)
            .map(|granted| granted.rules_of(facts.src));
        policy.might_be_granted(facts, &granted.unwrap_or_default())
    }

    /// Judges a packet by the policy, and by what its destination is granted to.
    pub fn judge(&self, policy: &Compiled, facts: &Facts) -> (Decision, Option<UseId>) {
        let granted = match self.by_address.is_empty() {
            true => None,
            false => self.of(facts.dst),
        };
        match granted {
            Some(granted) => granted.judge(policy, facts),
            None => (policy.evaluate(facts), None),
        }
    }
}
