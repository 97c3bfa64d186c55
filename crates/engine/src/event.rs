//! What a worker tells the control side, over a bounded ring: when it is full, events are dropped
//! and counted, and packets go on.

use std::net::IpAddr;
use std::sync::mpsc::SyncSender;

use crate::counters::CloseReason;

/// A flow as it began, before NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowFacts {
    /// The side that opened it.
    pub src: IpAddr,
    /// The side that it was opened to.
    pub dst: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Source port; the identifier for ICMP queries; 0 where there is none.
    pub src_port: u16,
    /// Destination port; 0 where there is none.
    pub dst_port: u16,
    /// Index of the source group that decided, if one did.
    pub group: Option<u32>,
    /// Index of the rule in that group, if one did.
    pub rule: Option<u32>,
    /// Revision of the policy that decided.
    pub revision: u64,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A flow was opened.
    Opened {
        /// Which.
        flow: FlowFacts,
        /// Type and code of the ICMP query that opened it.
        icmp: Option<(u8, u8)>,
        /// The policy is in audit mode and would have denied it.
        would_deny: bool,
    },
    /// A flow left the table.
    Closed {
        /// Which.
        flow: FlowFacts,
        /// Why.
        reason: CloseReason,
        /// Bytes from the side that opened it.
        bytes_out: u64,
        /// Bytes towards the side that opened it.
        bytes_in: u64,
    },
    /// The policy denied a new flow, or a flow that it had allowed before.
    Denied {
        /// Which.
        flow: FlowFacts,
        /// Type and code of the ICMP query that would have opened it.
        icmp: Option<(u8, u8)>,
    },
}

/// Where the events of one worker go, and which of them are wanted. Whoever receives them should look at them now and then
/// rather than wait for each: to wake somebody who waits costs the worker a call of the system.
#[derive(Clone, Debug)]
pub struct Ring {
    events: SyncSender<Event>,
    all: bool,
}

impl Ring {
    /// Takes every event.
    pub fn of_all(events: SyncSender<Event>) -> Ring {
        Ring { events, all: true }
    }

    /// Takes only what the policy denies, and what it would deny if it were not in audit mode.
    pub fn of_denials(events: SyncSender<Event>) -> Ring {
        Ring { events, all: false }
    }

    pub(crate) fn takes_all(&self) -> bool {
        self.all
    }

    /// False if it is full, or nobody takes from it any more: the event is lost.
    pub(crate) fn put(&self, event: Event) -> bool {
        self.events.try_send(event).is_ok()
    }
}
