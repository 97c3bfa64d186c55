//! Tunnels: packets that come from a load balancer in VXLAN (RFC 7348) or GENEVE (RFC 8926), and go
//! back to it the same way.
//!
//! The frame stays where it is. [`Envelope`] says where the packet inside begins and what is around
//! it; [`Inner`] shows the rest of the engine only what is inside, as a frame of its own; and
//! [`Wrapping`] is the way back: the same headers between the same stations, the other way round.

mod envelope;
mod header;
mod tunnels;

pub(crate) use envelope::Envelope;
pub(crate) use header::Wrapping;
pub(crate) use tunnels::{TunnelId, Tunnels};

use crate::port::{Checksum, Meta, Packet};

/// Largest VXLAN network identifier.
const MAX_VNI: u32 = 0xff_ffff;

/// A VXLAN tunnel: packets of this network to this UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanTunnel {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port that both ends listen on.
    pub udp_port: u16,
}

/// How packets are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// VXLAN, one tunnel for both directions.
    Vxlan(VxlanTunnel),
    /// VXLAN, a tunnel towards the clients and one towards the internet, which tell inside from
    /// outside.
    VxlanPair {
        /// Towards the clients.
        internal: VxlanTunnel,
        /// Towards the internet.
        external: VxlanTunnel,
        /// Packets go on in the other tunnel than the one they came by, instead of back in the
        /// same.
        swap: bool,
    },
    /// GENEVE, in whatever network; options are kept.
    Geneve {
        /// UDP port that both ends listen on.
        udp_port: u16,
    },
}

impl Encapsulation {
    /// Its place among the counters.
    pub(crate) fn kind(&self) -> usize {
        match self {
            Encapsulation::Vxlan(_) | Encapsulation::VxlanPair { .. } => 0,
            Encapsulation::Geneve { .. } => 1,
        }
    }

    pub(crate) fn is_pair(&self) -> bool {
        matches!(self, Encapsulation::VxlanPair { .. })
    }

    /// Whether no tunnel can be taken for another, and every number fits.
    pub(crate) fn is_sound(&self) -> bool {
        match self {
            Encapsulation::Vxlan(tunnel) => tunnel.vni <= MAX_VNI,
            Encapsulation::VxlanPair {
                internal, external, ..
            } => internal != external && internal.vni.max(external.vni) <= MAX_VNI,
            Encapsulation::Geneve { .. } => true,
        }
    }
}

/// Whether tunnels end at this UDP port.
pub(crate) fn is_tunnel_port(encapsulation: &Encapsulation, port: u16) -> bool {
    let tunnels = envelope::tunnels(encapsulation);
    tunnels.iter().flatten().any(|t| t.udp_port == port)
}

/// The tunnel in which traffic arrives and leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// How packets are packed.
    pub encapsulation: Encapsulation,
    /// Largest packet inside, bytes; less where the link carries less.
    pub mtu: u16,
    /// Send from the tunnel's own UDP port, instead of from the port that the packet came from. The
    /// latter is what the load balancer has drawn from the flow, so paths stay spread
    /// (RFC 7348 §5).
    pub fixed_source_port: bool,
}

/// Which of two tunnels a packet came by. A single tunnel is the internal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Internal = 0,
    External = 1,
}

/// What is inside of an envelope, as a frame.
pub(crate) struct Inner<'a, K> {
    frame: &'a mut K,
    at: usize,
    meta: Meta,
}

impl<'a, K: Packet> Inner<'a, K> {
    pub(crate) fn new(frame: &'a mut K, envelope: &Envelope) -> Inner<'a, K> {
        let at = usize::from(envelope.at);
        // What is known of the outer checksum tells nothing about the inner one. Where the sender
        // left a sum to be completed, it is that of the innermost packet.
        let checksum = match frame.meta().checksum {
            Checksum::Partial { start, offset } if usize::from(start) >= at => Checksum::Partial {
                start: start - envelope.at,
                offset,
            },
            _ => Checksum::Unknown,
        };
        let meta = Meta {
            checksum,
            ..Meta::default()
        };
        Inner { frame, at, meta }
    }

    /// Gives the frame the metadata that are right for the whole.
    pub(crate) fn close(self) {
        let checksum = match self.meta.checksum {
            Checksum::Partial { start, offset } => Checksum::Partial {
                start: start + self.at as u16,
                offset,
            },
            _ => Checksum::Unknown,
        };
        *self.frame.meta_mut() = Meta {
            checksum,
            ..Meta::default()
        };
    }
}

impl<K: Packet> Packet for Inner<'_, K> {
    fn bytes(&self) -> &[u8] {
        &self.frame.bytes()[self.at..]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.frame.bytes_mut()[self.at..]
    }
    fn set_len(&mut self, len: usize) -> bool {
        self.frame.set_len(self.at + len)
    }
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}
