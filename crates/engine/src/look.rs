//! Questions that the control side asks a worker about its flows, and orders to end some.
//!
//! A question travels over a bounded queue and is worked on in small steps between bursts, so that
//! a table of a million flows is looked through without holding up a packet for longer than a few
//! microseconds. Whoever asks brings the memory for the answer along: the worker allocates nothing,
//! and gives everything back, to be freed elsewhere.

mod filter;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use policy::Compiled;

pub(crate) use filter::decided;
pub use filter::{Filter, FlowState};

use crate::address::Addr;
use crate::event::FlowFacts;
use crate::tap::Tap;
use crate::wire::proto;

/// Questions that may wait for one worker.
const WAITING: usize = 16;
/// Addresses whose ports one survey counts.
pub const SURVEYED_ADDRESSES: usize = 128;
/// Ports of one address that translation may give to one protocol, besides those below 1024 that a
/// client had already.
pub const PORTS_PER_ADDRESS: u32 = 65_536 - 1_024;

/// A question, and after it is answered the answer.
#[derive(Debug)]
pub struct Question {
    /// The flows that it is about.
    pub filter: Filter,
    /// The policy whose groups and rules are meant. What it would decide now is said of flows that
    /// another revision has judged.
    pub policy: Arc<Compiled>,
    /// What is to be done, with the memory for what is found.
    pub task: Task,
}

/// What is to be done with flows. The capacity of each vector bounds what is put into it.
#[derive(Debug)]
pub enum Task {
    /// List them, from a place in the table on, until the page is full.
    List {
        /// Where to begin, 0 at first; then where to go on. None: that was all.
        next: Option<u32>,
        /// The flows.
        page: Vec<FlowView>,
    },
    /// Find those that come first in an order.
    Top {
        /// The order.
        by: By,
        /// Used on the way; as many are found as it has room for.
        ranks: BinaryHeap<Reverse<(u64, u32)>>,
        /// The flows, in no order.
        page: Vec<FlowView>,
    },
    /// Note how many bytes each place in the table has counted, to ask for rates later.
    Mark {
        /// By place.
        marks: Vec<u64>,
    },
    /// End them. Who sends on opens a new flow, if the policy lets it.
    Kill {
        /// Tell both ends of TCP connections by a reset.
        reset: bool,
        /// How many there were.
        killed: u64,
    },
    /// Count what is in the table.
    Survey(Box<Survey>),
    /// Watch packets. It is still there afterwards if too many watch already.
    Watch(Option<Box<Tap>>),
}

impl Task {
    /// The first page of a list, of at most `limit` flows.
    pub fn list(from: u32, limit: usize) -> Task {
        Task::List {
            next: Some(from),
            page: Vec::with_capacity(limit),
        }
    }

    /// The first `count` flows in an order.
    pub fn top(by: By, count: usize) -> Task {
        Task::Top {
            by,
            ranks: BinaryHeap::with_capacity(count),
            page: Vec::with_capacity(count),
        }
    }
}

/// An order of flows, largest first.
#[derive(Debug)]
pub enum By {
    /// By bytes in both directions.
    Bytes,
    /// By packets in both directions.
    Packets,
    /// By bytes since these marks were made.
    BytesSince(Vec<u64>),
}

/// A flow as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// Which. Group and rule are those of the policy that the question names; the revision is the
    /// one that judged it last.
    pub facts: FlowFacts,
    /// Type and code of the ICMP query that opened it.
    pub icmp: Option<(u8, u8)>,
    /// What the other side sees in place of its source, if that is something else.
    pub nat: Option<(IpAddr, u16)>,
    /// How far it has come.
    pub state: FlowState,
    /// Whether the policy that the question names allows it. A flow that does not is closed when its
    /// next packet comes.
    pub allowed: bool,
    /// Time since its last packet.
    pub idle: Duration,
    /// Time that it has left if no packet comes.
    pub expires: Duration,
    /// Bytes of whole frames: from the side that opened it, and towards it.
    pub bytes: [u64; 2],
    /// Packets, likewise; a super-packet counts once.
    pub packets: [u32; 2],
    /// Bytes in both directions since the marks, where those were asked for.
    pub recent_bytes: u64,
}

/// What is in a table, counted.
#[derive(Debug)]
pub struct Survey {
    /// Flows by state, in the order of [`FlowState::ALL`].
    pub states: [u64; FlowState::ALL.len()],
    /// Flows by the group that allowed them; the last place is for those that no group decided.
    pub groups: Vec<u64>,
    /// Flows that a revision other than the question's policy has judged.
    pub stale: u64,
    /// Ports in use, by address.
    pub ports: Vec<PortUse>,
    /// Flows translated to addresses beyond [`SURVEYED_ADDRESSES`], or that are no longer configured.
    pub elsewhere: u64,
}

impl Survey {
    /// An empty one for a policy with so many groups and these translation addresses.
    pub fn new(groups: usize, addresses: impl IntoIterator<Item = IpAddr>) -> Survey {
        let mut ports: Vec<_> = addresses
            .into_iter()
            .take(SURVEYED_ADDRESSES)
            .map(PortUse::new)
            .collect();
        ports.sort_by_key(|ports| ports.key);
        Survey {
            states: Default::default(),
            groups: vec![0; groups + 1],
            stale: 0,
            ports,
            elsewhere: 0,
        }
    }

    pub(crate) fn count_binding(&mut self, address: Addr, port: u16, proto: u8) {
        match self.ports.binary_search_by_key(&address, |ports| ports.key) {
            Ok(at) => self.ports[at].count(port, proto),
            Err(_) => self.elsewhere += 1,
        }
    }

    /// Adds what another worker has counted by the same policy and addresses.
    pub fn add(&mut self, other: &Survey) {
        let sums = self.states.iter_mut().zip(&other.states);
        sums.for_each(|(sum, n)| *sum += n);
        let sums = self.groups.iter_mut().zip(&other.groups);
        sums.for_each(|(sum, n)| *sum += n);
        self.stale += other.stale;
        self.elsewhere += other.elsewhere;
        for (sum, ports) in self.ports.iter_mut().zip(&other.ports) {
            sum.bindings += ports.bindings;
            for (sum, used) in sum.used.iter_mut().zip(&ports.used) {
                sum.iter_mut().zip(used).for_each(|(sum, n)| *sum |= n);
            }
        }
    }
}

/// Protocols whose ports are counted, by IP protocol number; ICMP stands for its identifiers, in
/// both families.
pub const PORT_PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::ICMP4];

/// How many ports of a translation address are in use.
#[derive(Debug)]
pub struct PortUse {
    key: Addr,
    /// The address.
    pub address: IpAddr,
    /// Flows translated to it. A port counts once, however many destinations it is used for.
    pub bindings: u64,
    /// A bit for each port, by protocol.
    used: [Vec<u64>; PORT_PROTOCOLS.len()],
}

impl PortUse {
    fn new(address: IpAddr) -> PortUse {
        PortUse {
            key: address.into(),
            address,
            bindings: 0,
            used: std::array::from_fn(|_| vec![0; 65_536 / 64]),
        }
    }

    fn count(&mut self, port: u16, proto: u8) {
        self.bindings += 1;
        let index = match proto {
            proto::TCP => 0,
            proto::UDP => 1,
            proto::ICMP4 | proto::ICMP6 => 2,
            _ => return,
        };
        self.used[index][usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// Ports in use, in the order of [`PORT_PROTOCOLS`].
    pub fn used(&self) -> [u32; PORT_PROTOCOLS.len()] {
        std::array::from_fn(|i| self.used[i].iter().map(|word| word.count_ones()).sum())
    }
}

/// Takes the answered question. Called on the worker's thread: it may do no more than pass it on.
pub type Reply = Box<dyn FnOnce(Question) + Send>;

/// A way to ask one worker.
#[derive(Clone, Debug)]
pub struct Asker {
    waiting: Arc<AtomicBool>,
    questions: SyncSender<Asked>,
}

/// Too many questions wait for the worker already, or it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet worker takes no more questions")]
pub struct Busy;

impl Asker {
    /// Puts a question; a worker that sleeps should be woken afterwards. `reply` is dropped if the
    /// worker ends before it has answered.
    ///
    /// # Errors
    /// Too many wait already, or the worker has ended.
    pub fn ask(&self, question: Question, reply: Reply) -> Result<(), Busy> {
        let asked = Asked { question, reply };
        self.questions.try_send(asked).map_err(|_| Busy)?;
        self.waiting.store(true, Ordering::Release);
        Ok(())
    }
}

struct Asked {
    question: Question,
    reply: Reply,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.question.fmt(f)
    }
}

/// A question that is being worked on.
#[derive(Debug)]
pub(crate) struct Open {
    asked: Asked,
    /// The next place in the table to look at.
    place: u32,
}

impl Open {
    pub(crate) fn parts(&mut self) -> (&mut Question, &mut u32) {
        (&mut self.asked.question, &mut self.place)
    }

    /// Gives it back, answered.
    pub(crate) fn answer(self) {
        (self.asked.reply)(self.asked.question);
    }
}

/// Where questions arrive at a worker.
#[derive(Debug)]
pub struct Desk {
    waiting: Arc<AtomicBool>,
    questions: Receiver<Asked>,
    open: Option<Open>,
}

/// Both ends of a new queue.
pub fn channel() -> (Asker, Desk) {
    let (sender, questions) = sync_channel(WAITING);
    let waiting = Arc::new(AtomicBool::new(false));
    let asker = Asker {
        waiting: Arc::clone(&waiting),
        questions: sender,
    };
    let desk = Desk {
        waiting,
        questions,
        open: None,
    };
    (asker, desk)
}

impl Desk {
    /// Whether there is nothing to do: one load, on most turns.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none() && !self.waiting.load(Ordering::Relaxed)
    }

    /// The question to go on with.
    pub(crate) fn take(&mut self) -> Option<Open> {
        if let Some(open) = self.open.take() {
            return Some(open);
        }
        // Cleared before the look: what is put after it is seen in the next turn.
        self.waiting.swap(false, Ordering::Acquire);
        let asked = self.questions.try_recv().ok()?;
        // There may be more behind it.
        self.waiting.store(true, Ordering::Relaxed);
        let place = match &asked.question.task {
            Task::List { next, .. } => next.unwrap_or(u32::MAX),
            _ => 0,
        };
        Some(Open { asked, place })
    }

    /// Keeps a question that is not answered yet.
    pub(crate) fn put_back(&mut self, open: Open) {
        self.open = Some(open);
    }
}
