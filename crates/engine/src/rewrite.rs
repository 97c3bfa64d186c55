//! Stage four: changes a frame in place, and keeps every checksum right without summing anew.

use crate::address::Addr;
use crate::parse::Parsed;
use crate::port::{Checksum, Meta};
use crate::wire::checksum::{self, Delta};
use crate::wire::{ethernet, get16, icmp, proto, put, put16, tcp, udp};

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Source,
    Destination,
}

/// A new address and port for one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) which: Which,
    pub(crate) address: Addr,
    /// Port, or ICMP identifier.
    pub(crate) port: u16,
}

/// Whether the transport checksum holds only the pseudo-header's sum. (A partial checksum of an
/// inner, encapsulated packet is none of ours.)
fn is_partial(meta: &Meta, l4: u16) -> bool {
    matches!(meta.checksum, Checksum::Partial { start, .. } if start == l4)
}

/// Takes one from TTL or hop limit, which is at least 1.
#[inline]
pub(crate) fn decrement_ttl(frame: &mut [u8], p: &Parsed) {
    let ip = ethernet::LEN;
    if p.is_v4() {
        let old = get16(frame, ip + 8);
        frame[ip + 8] -= 1;
        let mut delta = Delta::default();
        delta.replace16(old, get16(frame, ip + 8));
        let sum = delta.apply(get16(frame, ip + 10));
        put16(frame, ip + 10, sum);
    } else {
        frame[ip + 7] -= 1;
    }
}

/// Rewrites address and port of one end. Super-packets need no more than any other: the segments
/// cut from them take their headers from this one.
#[inline]
pub(crate) fn translate(frame: &mut [u8], meta: &Meta, p: &Parsed, t: Translation) {
    let (old_addr, old_port) = match t.which {
        Which::Source => (p.key.src, p.key.src_port),
        Which::Destination => (p.key.dst, p.key.dst_port),
    };
    let mut address = Delta::default();
    address.replace_addr(old_addr, t.address);
    put_address(frame, p.is_v4(), t.which, t.address);
    if p.is_v4() {
        let sum = address.apply(get16(frame, ethernet::LEN + 10));
        put16(frame, ethernet::LEN + 10, sum);
    }

    let l4 = usize::from(p.l4);
    let mut whole = address;
    match p.key.proto {
        proto::TCP | proto::UDP => {
            let at = l4 + if t.which == Which::Source { 0 } else { 2 };
            whole.replace16(old_port, t.port);
            put16(frame, at, t.port);
            let udp = p.key.proto == proto::UDP;
            let field = l4 + if udp { udp::CHECKSUM } else { tcp::CHECKSUM };
            let old = get16(frame, field);
            let new = if is_partial(meta, p.l4) {
                address.apply_partial(old)
            } else if udp && old == 0 {
                // The sender did not compute one (RFC 768).
                0
            } else {
                match whole.apply(old) {
                    0 if udp => 0xffff,
                    sum => sum,
                }
            };
            put16(frame, field, new);
        }
        proto::ICMP4 | proto::ICMP6 => {
            // The identifier; only ICMPv6 sums a pseudo-header.
            let mut delta = if p.is_v4() { Delta::default() } else { address };
            delta.replace16(old_port, t.port);
            put16(frame, l4 + 4, t.port);
            let sum = delta.apply(get16(frame, l4 + icmp::CHECKSUM));
            put16(frame, l4 + icmp::CHECKSUM, sum);
        }
        _ => {}
    }
}

/// Whether the IP header has this source address.
pub(crate) fn has_source(frame: &[u8], address: Addr) -> bool {
    let ip = ethernet::LEN;
    if address.is_v4() {
        frame[ip + 12..ip + 16] == address.octets4()
    } else {
        frame[ip + 8..ip + 24] == address.octets16()
    }
}

/// Writes an address into the IP header, and no checksum.
pub(crate) fn put_address(frame: &mut [u8], v4: bool, which: Which, address: Addr) {
    let ip = ethernet::LEN;
    match (v4, which) {
        (true, Which::Source) => put(frame, ip + 12, address.octets4()),
        (true, Which::Destination) => put(frame, ip + 16, address.octets4()),
        (false, Which::Source) => put(frame, ip + 8, address.octets16()),
        (false, Which::Destination) => put(frame, ip + 24, address.octets16()),
    }
}

/// Completes a partial checksum for a port that cannot. False if the metadata does not fit the
/// frame.
pub(crate) fn complete_checksum(frame: &mut [u8], meta: &mut Meta) -> bool {
    let Checksum::Partial { start, offset } = meta.checksum else {
        return true;
    };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if field + 2 > frame.len() {
        return false;
    }
    // The field, which holds the pseudo-header's sum, is summed along.
    let sum = !checksum::fold(checksum::sum(&frame[start..]));
    put16(frame, field, if sum == 0 { 0xffff } else { sum });
    meta.checksum = Checksum::Unknown;
    true
}
