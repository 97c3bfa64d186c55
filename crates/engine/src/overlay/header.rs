//! The headers of the way back: those that came, the other way round.

use super::envelope::{HEADER_LEN, MAX_LEN, tunnels};
use super::{Encapsulation, Envelope, Overlay, Way};
use crate::address::Addr;
use crate::wire::ethernet::Mac;
use crate::wire::{checksum, ethernet, get, get16, ipv4, proto, put, put16, udp};

/// Hop limit of what we send.
const HOP_LIMIT: u8 = 64;

/// The headers to put around what goes back to where a packet came from. Kept for its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrapping {
    bytes: [u8; MAX_LEN],
    len: usize,
    envelope: Option<Envelope>,
    /// Stations of the frame inside, as it came.
    inner: [Mac; 2],
    /// UDP port and network, if packets go on by another tunnel than back.
    onward: Option<(u16, u32)>,
}

impl Default for Wrapping {
    fn default() -> Self {
        Wrapping {
            bytes: [0; MAX_LEN],
            len: 0,
            envelope: None,
            inner: [[0; 6]; 2],
            onward: None,
        }
    }
}

impl Wrapping {
    /// Takes the headers of a frame, turned round. Everything that is not said here stays: options,
    /// network, DSCP and ECN (so that a mark of congestion goes on with the packet).
    pub(crate) fn take(&mut self, frame: &[u8], envelope: &Envelope, overlay: &Overlay) {
        let len = envelope.header_len();
        let b = &mut self.bytes[..len];
        b.copy_from_slice(&frame[..len]);
        if let Some(displaced) = envelope.displaced {
            put(b, usize::from(envelope.at), displaced);
        } else {
            self.inner = [get(frame, len), get(frame, len + 6)];
        }
        let (dst, src): ([u8; 6], [u8; 6]) = (get(b, 6), get(b, 0));
        put(b, 0, dst);
        put(b, 6, src);
        let ip = ethernet::LEN;
        if envelope.v4 {
            let (dst, src): ([u8; 4], [u8; 4]) = (get(b, ip + 12), get(b, ip + 16));
            put(b, ip + 12, src);
            put(b, ip + 16, dst);
            b[ip + 8] = HOP_LIMIT;
        } else {
            let (dst, src): ([u8; 16], [u8; 16]) = (get(b, ip + 8), get(b, ip + 24));
            put(b, ip + 8, src);
            put(b, ip + 24, dst);
            b[ip + 7] = HOP_LIMIT;
        }
        let udp = usize::from(envelope.udp);
        if overlay.fixed_source_port {
            let port = get16(b, udp + 2);
            put16(b, udp, port);
        }
        self.len = len;
        self.envelope = Some(*envelope);
        self.onward = match overlay.encapsulation {
            Encapsulation::VxlanPair { swap: true, .. } => {
                let tunnels = tunnels(&overlay.encapsulation);
                let other = match envelope.way {
                    Way::Internal => tunnels[1],
                    Way::External => tunnels[0],
                };
                other.map(|t| (t.udp_port, t.vni))
            }
            _ => None,
        };
    }

    /// What was around the frame that it was taken from.
    pub(crate) fn envelope(&self) -> Option<Envelope> {
        self.envelope
    }

    /// Ends the frame that it was taken from: nothing is wrapped any more.
    pub(crate) fn end(&mut self) {
        self.envelope = None;
    }

    /// Whether what is sent now has to be wrapped.
    pub(crate) fn is_on(&self) -> bool {
        self.envelope.is_some()
    }

    /// Bytes in front of what is inside.
    pub(crate) fn header_len(&self) -> usize {
        self.len
    }

    /// The stations of the frame inside, as it came: receiver and sender. None if what is inside is
    /// no frame.
    pub(crate) fn inner_stations(&self) -> Option<[Mac; 2]> {
        let envelope = self.envelope.as_ref()?;
        envelope.has_ethernet().then_some(self.inner)
    }

    /// Puts the headers in front of a frame that has room for them, back to where the packet came
    /// from or `onward`. Every checksum inside is complete, unless `is_partial`.
    pub(crate) fn seal(&self, frame: &mut [u8], onward: bool, is_partial: bool) {
        let Some(envelope) = &self.envelope else {
            return;
        };
        frame[..self.len].copy_from_slice(&self.bytes[..self.len]);
        let (ip, at) = (ethernet::LEN, usize::from(envelope.udp));
        let total = frame.len();
        if let Some((port, vni)) = self.onward.filter(|_| onward) {
            if get16(frame, at) == get16(frame, at + 2) {
                put16(frame, at, port);
            }
            put16(frame, at + 2, port);
            put(frame, at + udp::LEN + 4, (vni << 8).to_be_bytes());
        }
        put16(frame, at + 4, (total - at) as u16);
        put16(frame, at + udp::CHECKSUM, 0);
        let (src, dst) = if envelope.v4 {
            put16(frame, ip + 2, (total - ip) as u16);
            put16(frame, ip + 10, 0);
            let header = &frame[ip..ip + usize::from(frame[ip] & 0xf) * 4];
            let sum = !checksum::fold(checksum::sum(header));
            put16(frame, ip + 10, sum);
            (
                Addr::v4_bytes(get(frame, ip + 12)),
                Addr::v4_bytes(get(frame, ip + 16)),
            )
        } else {
            put16(frame, ip + 4, (total - ip - crate::wire::ipv6::LEN) as u16);
            (
                Addr::v6_bytes(get(frame, ip + 8)),
                Addr::v6_bytes(get(frame, ip + 24)),
            )
        };
        // Whoever computes checksums wants them; whoever does not, takes none (RFC 6935, RFC 6936).
        if envelope.has_checksum && !is_partial {
            let sum = match checksum::transport(src, dst, proto::UDP, &frame[at..]) {
                0 => 0xffff,
                sum => sum,
            };
            put16(frame, at + udp::CHECKSUM, sum);
        }
    }
}

const _: () = assert!(HEADER_LEN + udp::LEN + ipv4::MIN_LEN + ethernet::LEN < MAX_LEN);
