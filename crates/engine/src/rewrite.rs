//! Stage four: changes a frame in place, and keeps every checksum right without summing anew.

use crate::address::Addr;
use crate::parse::Parsed;
use crate::port::{Checksum, Meta};
use crate::wire::checksum::{self, Delta};
use crate::wire::{ethernet, get16, icmp, ipv4, ipv6, proto, put, put16, tcp, udp};

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
#[inline(always)]
pub(crate) fn decrement_ttl(frame: &mut [u8], p: &Parsed) {
    let Some((_, ip)) = frame.split_first_chunk_mut::<{ ethernet::LEN }>() else {
        return;
    };
    if p.is_v4() {
        if let Some(ip) = ip.first_chunk_mut::<{ ipv4::MIN_LEN }>() {
            ip[8] -= 1;
            // The word of the TTL has lost 0x100, so its complement gains that, end-around, and is zero in the one form in
            // which others compute it (RFC 1624 §3).
            let sum = u32::from(get16(ip, 10)) + 0x100;
            put16(ip, 10, (sum + u32::from(sum >= 0xffff)) as u16);
        }
    } else if let Some(ip) = ip.first_chunk_mut::<{ ipv6::LEN }>() {
        ip[7] -= 1;
    }
}

/// Rewrites address and port of one end. Super-packets need no more than any other: the segments
/// cut from them take their headers from this one.
pub(crate) fn translate(frame: &mut [u8], meta: &Meta, p: &Parsed, t: Translation) {
    rewrite::<false>(frame, meta, p, t);
}

/// The same, and takes one from TTL or hop limit, which is at least 1.
#[inline(always)]
pub(crate) fn translate_and_decrement(frame: &mut [u8], meta: &Meta, p: &Parsed, t: Translation) {
    rewrite::<true>(frame, meta, p, t);
}

#[inline(always)]
fn rewrite<const DECREMENT: bool>(frame: &mut [u8], meta: &Meta, p: &Parsed, t: Translation) {
    let (old_addr, old_port) = match t.which {
        Which::Source => (p.key.src, p.key.src_port),
        Which::Destination => (p.key.dst, p.key.dst_port),
    };
    let v4 = p.is_v4();
    let mut address = Delta::default();
    address.replace_addr_of(v4, old_addr, t.address);
    if v4 {
        let Some((_, ip)) = frame.split_first_chunk_mut::<{ ethernet::LEN }>() else {
            return;
        };
        let Some(ip) = ip.first_chunk_mut::<{ ipv4::MIN_LEN }>() else {
            return;
        };
        let mut header = address;
        if DECREMENT {
            ip[8] -= 1;
            header.subtract(0x100);
        }
        match t.which {
            Which::Source => put(ip, 12, t.address.octets4()),
            Which::Destination => put(ip, 16, t.address.octets4()),
        }
        let sum = header.apply(get16(ip, 10));
        put16(ip, 10, sum);
    } else {
        put_address(frame, false, t.which, t.address);
        if DECREMENT {
            decrement_ttl(frame, p);
        }
    }

    let mut whole = address;
    whole.replace16(old_port, t.port);
    let transport = &mut frame[usize::from(p.l4)..];
    let at = if t.which == Which::Source { 0 } else { 2 };
    match p.key.proto {
        proto::UDP => {
            let Some(header) = transport.first_chunk_mut::<{ udp::LEN }>() else {
                return;
            };
            put16(header, at, t.port);
            let old = get16(header, udp::CHECKSUM);
            let new = if is_partial(meta, p.l4) {
                address.apply_partial(old)
            } else if old == 0 {
                // The sender did not compute one (RFC 768).
                0
            } else {
                match whole.apply(old) {
                    0 => 0xffff,
                    sum => sum,
                }
            };
            put16(header, udp::CHECKSUM, new);
        }
        proto::TCP => {
            let Some(header) = transport.first_chunk_mut::<{ tcp::MIN_LEN }>() else {
                return;
            };
            put16(header, at, t.port);
            let old = get16(header, tcp::CHECKSUM);
            let new = if is_partial(meta, p.l4) {
                address.apply_partial(old)
            } else {
                whole.apply(old)
            };
            put16(header, tcp::CHECKSUM, new);
        }
        proto::ICMP4 | proto::ICMP6 => {
            // The identifier; only ICMPv6 sums a pseudo-header.
            let mut delta = if v4 { Delta::default() } else { address };
            delta.replace16(old_port, t.port);
            put16(transport, 4, t.port);
            let sum = delta.apply(get16(transport, icmp::CHECKSUM));
            put16(transport, icmp::CHECKSUM, sum);
        }
        _ => {}
    }
}

/// Lowers the largest segment that a SYN offers to receive to `max` (RFC 9293 §3.7.1).
#[cold]
pub(crate) fn clamp_mss(frame: &mut [u8], meta: &Meta, p: &Parsed, max: u16) {
    let l4 = usize::from(p.l4);
    let header_len = usize::from(frame[l4 + 12] >> 4) * 4;
    let Some(at) = tcp::find_mss(&frame[l4 + tcp::MIN_LEN..l4 + header_len]) else {
        return;
    };
    let at = l4 + tcp::MIN_LEN + at;
    let old = get16(frame, at);
    if old <= max {
        return;
    }
    put16(frame, at, max);
    if is_partial(meta, p.l4) {
        // The field knows nothing of the segment yet.
        return;
    }
    let mut delta = Delta::default();
    if (at - l4).is_multiple_of(2) {
        delta.replace16(old, max);
    } else {
        // In the sum its bytes stand in each other's place.
        delta.replace16(old.swap_bytes(), max.swap_bytes());
    }
    let sum = delta.apply(get16(frame, l4 + tcp::CHECKSUM));
    put16(frame, l4 + tcp::CHECKSUM, sum);
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
#[inline(always)]
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
pub fn complete_checksum(frame: &mut [u8], meta: &mut Meta) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Station, parse};
    use proptest::prelude::*;

    /// A SYN over IPv4 with these options.
    fn syn(options: &[u8]) -> Vec<u8> {
        let len = 40 + options.len();
        let mut b = vec![0; ethernet::LEN + len];
        put16(&mut b, 12, ethernet::IPV4);
        put(&mut b, 14, [0x45, 0]);
        put16(&mut b, 16, len as u16);
        put(&mut b, 22, [64, proto::TCP]);
        put(&mut b, 26, [10, 0, 0, 2]);
        put(&mut b, 30, [198, 51, 100, 1]);
        let sum = !checksum::fold(checksum::sum(&b[14..34]));
        put16(&mut b, 24, sum);
        b[46] = (((20 + options.len()) / 4) << 4) as u8;
        b[47] = tcp::SYN;
        b[54..].copy_from_slice(options);
        b
    }

    proptest! {
        #[test]
        fn a_larger_offer_is_lowered_and_the_checksum_follows(
            padding in 0usize..9, mss: u16, max: u16, partial: bool,
        ) {
            let mut options = vec![1; padding];
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
            options.resize(options.len().next_multiple_of(4), 0);
            let mut b = syn(&options);
            let p = parse(&b, Station::Any, None).unwrap();
            let (src, dst) = (p.key.src, p.key.dst);
            let pseudo = checksum::fold(checksum::pseudo_header(src, dst, proto::TCP, b.len() - 34));
            let sum = if partial { pseudo } else { checksum::transport(src, dst, proto::TCP, &b[34..]) };
            put16(&mut b, 50, sum);
            let mut meta = Meta::default();
            if partial {
                meta.checksum = Checksum::Partial { start: 34, offset: 16 };
            }
            clamp_mss(&mut b, &meta, &p, max);
            prop_assert_eq!(get16(&b, 54 + padding + 2), mss.min(max));
            if partial {
                prop_assert_eq!(get16(&b, 50), pseudo);
            } else {
                prop_assert_eq!(checksum::transport(src, dst, proto::TCP, &b[34..]), 0);
            }
        }
    }
}
