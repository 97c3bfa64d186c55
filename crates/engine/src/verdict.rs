//! What becomes of one frame.

use crate::DropReason;
use crate::port::PortId;

/// The engine's decision on one frame; every received frame gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten and sent, or queued until its next hop is resolved.
    Forward(PortId),
    /// Handed to the host over the service lane.
    Local,
    /// Consumed and answered, or learned from (ARP, neighbour discovery, echo to ourselves).
    Reply,
    /// Discarded and counted.
    Drop(DropReason),
}
