//! The boundary between the engine and whatever moves frames: a NIC, a socket, a file, a test.

pub mod faulty;
pub mod memory;

use core::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is known about the transport checksum of a received frame, or asked of the transmitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing is known: the field holds whatever the sender put there.
    #[default]
    Unknown,
    /// Verified by hardware or by a trusted sender; the field is complete and right.
    Verified,
    /// The field holds only the folded, uncomplemented sum of the pseudo-header. The rest, from
    /// `start` to the end of the frame, is still to be summed and stored at `start + offset`.
    /// Both count bytes; `start` from the first byte of the frame.
    Partial {
        /// First byte that the sum covers (the transport header).
        start: u16,
        /// Where in that header the checksum field sits.
        offset: u16,
    },
}

/// The segmentation that a super-packet asks for when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP (USO): each segment becomes a datagram.
    Udp,
}

/// A super-packet's segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How it is cut.
    pub kind: GsoKind,
    /// Payload bytes of each segment (MSS), 1..=65535.
    pub size: u16,
    /// Bytes of all headers in front of the payload, Ethernet included.
    pub header_len: u16,
    /// TCP with ECN (CWR must be set on the first segment only).
    pub ecn: bool,
}

/// What travels beside a frame's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Set for a super-packet.
    pub gso: Option<Gso>,
    /// Receive hash from the hardware, if any.
    pub hash: Option<u32>,
    /// VLAN tag (TCI) that the port has stripped, or is to insert.
    pub vlan: Option<u16>,
}

/// One Ethernet frame, from the destination address to the end of the payload, without FCS.
///
/// The backend owns the memory (a pooled buffer, an mbuf, a UMEM slot); dropping gives it back.
pub trait Packet {
    /// The frame.
    fn bytes(&self) -> &[u8];
    /// The frame, to rewrite in place.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Cuts the frame to `len` bytes, or lengthens it with unspecified bytes as far as its
    /// buffer's capacity allows; false, and unchanged, if it does not.
    fn set_len(&mut self, len: usize) -> bool;
    /// Checksum, segmentation, hash, VLAN.
    fn meta(&self) -> &Meta;
    /// The same, to change.
    fn meta_mut(&mut self) -> &mut Meta;
}

/// What a port can do; fixed while it is open, MTU and address aside ([`Port::refresh`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Largest payload of a frame (the MTU), bytes.
    pub mtu: u16,
    /// `Checksum::Partial` may be handed to `tx_burst`.
    pub tx_checksum: bool,
    /// Super-packets of these kinds may be handed to `tx_burst`.
    pub tx_gso_tcp: bool,
    /// The same for UDP.
    pub tx_gso_udp: bool,
    /// The address of the interface.
    pub mac: [u8; 6],
    /// Frames carry no Ethernet header on the wire (TUN); the backend adds and strips a zero one.
    pub layer3: bool,
}

/// Whether frames can pass at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Carrier present.
    Up,
    /// No carrier, or administratively down.
    Down,
    /// The device has gone; only a new port can help.
    Gone,
}

/// Counters of one queue, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames handed to the engine (a super-packet counts once).
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames lost before the engine saw them (ring or socket buffer full).
    pub rx_dropped: u64,
    /// Frames that could not be taken over (truncated, unusable metadata).
    pub rx_errors: u64,
    /// Frames taken by the wire.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames refused because the transmit ring was full.
    pub tx_dropped: u64,
    /// Frames refused for another reason (too long, device error).
    pub tx_errors: u64,
}

/// One queue of one network interface. Used by exactly one worker.
pub trait Port {
    /// The frames of this backend.
    type Packet: Packet;

    /// Appends up to `max` received frames to `burst` and returns how many. Never blocks, never
    /// fails: what could not be taken is counted in [`PortStats`].
    fn rx_burst(&mut self, burst: &mut Vec<Self::Packet>, max: usize) -> usize;

    /// Sends the frames in order and empties `burst`. What the wire does not take at once is
    /// dropped and counted, never waited for. Returns how many were taken.
    fn tx_burst(&mut self, burst: &mut Vec<Self::Packet>) -> usize;

    /// An empty buffer for a frame of `len` bytes made by the engine; none if the pool is empty.
    fn alloc(&mut self, len: usize) -> Option<Self::Packet>;

    /// What this port can do.
    fn capabilities(&self) -> &Capabilities;

    /// Takes in what has changed of that: whether the MTU or the address is another than at the last call. Cheap enough to
    /// be asked a few times a second; false where the device does not tell.
    fn refresh(&mut self) -> bool {
        false
    }

    /// Whether frames can pass now; cheap enough to be asked a few times a second.
    fn link(&self) -> Link;

    /// Counters since the queue was opened.
    fn stats(&self) -> PortStats;

    /// A descriptor that becomes readable when a frame has arrived, to sleep on; none for a
    /// backend that must be polled. (`std::os::fd::RawFd`, without the dependency on it.)
    fn wait_fd(&self) -> Option<i32>;

    /// Has that descriptor tell of the frames that come from now on, for a device that does so only when asked. The
    /// worker looks once more for frames before it sleeps; receiving ends it.
    fn arm(&mut self) {}
}

/// How a worker sleeps when all its ports are idle. The shell implements it with `ppoll`.
pub trait Idle {
    /// Returns when one of the descriptors is readable, when woken, or after `timeout`.
    fn wait(&mut self, fds: &[i32], timeout: Duration);

    /// Hears that the worker has not slept for a while and is not about to.
    fn stays_awake(&mut self) {}
}

/// Index of a data port in a node: the inside port is 0, the outside port of two arms is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub u8);

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port{}", self.0)
    }
}
