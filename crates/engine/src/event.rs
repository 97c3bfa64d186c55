//! What a worker tells the control side, over a bounded ring: when it is full, events are dropped
//! and counted, and packets go on.

use std::net::IpAddr;

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
    },
}
