//! ICMP errors: those about packets of a flow are found by the tuple that they quote, translated
//! inside and out, and passed on (RFC 5508 §4); and those that we send ourselves.

use super::local::LANE_ADDRESSES;
use super::{Account, Pipeline, Step};
use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::counters::Direction;
use crate::flow::{Key, Lookup};
use crate::outbox::LANE;
use crate::parse::{Content, Parsed, Station, parse};
use crate::port::{Packet, PortId};
use crate::rewrite::{self, Translation, Which};
use crate::snapshot::Side;
use crate::tcp::End;
use crate::wire::checksum::{self, Delta};
use crate::wire::icmp::Kind;
use crate::wire::{ethernet, get16, icmp, ipv4, ipv6, proto, put16, tcp, udp};

/// A packet quoted in an ICMP error: its key, and where its parts sit in the frame.
struct Quoted {
    key: Key,
    ip: usize,
    l4: usize,
}

impl Pipeline {
    pub(super) fn handle_icmp_error<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        account: &mut Account,
        has_turned: bool,
    ) -> Result<Step, DropReason> {
        let side = self.snapshot.source_side(port, p.key.src);
        account.direction = if side == Side::Inside {
            Direction::Outbound
        } else {
            Direction::Inbound
        };
        let message = &frame.bytes()[usize::from(p.l4)..p.end as usize];
        let sum = match p.is_v4() {
            true => !checksum::fold(checksum::sum(message)),
            false => checksum::transport(p.key.src, p.key.dst, proto::ICMP6, message),
        };
        if sum != 0 {
            return Err(DropReason::BadChecksum);
        }
        if p.key.src.is_link_local() {
            return Err(DropReason::Martian);
        }
        let quoted = parse_quoted(frame.bytes(), p)?;
        // The quoted packet went the other way: its answers would have the reversed key.
        let key = quoted.key.reversed();
        let lookup = Lookup::by(self.flows.hash(&key));
        let (id, from) = self
            .flows
            .find(&key, lookup)
            .ok_or(DropReason::IcmpNoFlow)?;
        if has_turned && from == End::Client {
            // Untranslated it would turn back again, and again.
            return Err(DropReason::HairpinNoFlow);
        }
        let flow = self.flows.get(id);
        if flow.has_expired(now.tick(), self.snapshot.idle()) {
            return Err(DropReason::IcmpNoFlow);
        }
        // Only the end that the quoted packet was sent to, or a router before it, can know.
        if self.snapshot.two_arms() && flow.sides.of(from) != port {
            return Err(DropReason::Martian);
        }
        self.rejudge_if_stale(now, id, frame, p, from, account)?;
        account.group = self.flows.head(id).tally;
        self.check_ttl(now, port, frame, p)?;

        // From the client's side the error goes to the server, and its source is hidden like the
        // client itself; from the server's side it goes to the client.
        let to = match from {
            End::Client => flow.server,
            End::Server => flow.client,
        };
        if p.key.dst != quoted.key.src {
            return Err(DropReason::IcmpNoFlow);
        }
        if flow.is_translated() {
            let bytes = frame.bytes_mut();
            match from {
                End::Client => {
                    translate_outer(bytes, p, Which::Source, flow.nat);
                    translate_quoted(
                        bytes,
                        p.end as usize,
                        &quoted,
                        Which::Destination,
                        flow.nat,
                        flow.nat_port,
                    );
                }
                End::Server => {
                    translate_outer(bytes, p, Which::Destination, flow.client);
                    translate_quoted(
                        bytes,
                        p.end as usize,
                        &quoted,
                        Which::Source,
                        flow.client,
                        flow.client_port,
                    );
                }
            }
            let (src, dst) = match from {
                End::Client => (flow.nat, p.key.dst),
                End::Server => (p.key.src, flow.client),
            };
            seal(bytes, p, src, dst);
        }
        if from == End::Client && flow.sides.turns_back() {
            let p = parse(frame.bytes(), Station::Any, None)?;
            return self.turn_back(now, flow.sides.of(End::Server), frame, &p, account);
        }
        let hop = self.next_hop(to, now)?;
        if hop.port != flow.sides.of(from.other()) && self.underway.is_none() {
            return Err(DropReason::NoRoute);
        }
        let fits = self.check_size(now, port, frame, p, hop.port)?;
        rewrite::decrement_ttl(frame.bytes_mut(), p);
        self.counters.icmp_errors_translated.inc();
        let step = self.dispatch(frame, hop)?;
        match fits {
            true => Ok(step),
            false => self.cut(frame, p, step),
        }
    }

    /// Tells the sender of a packet that it failed, within the rate limit. Nothing is said about
    /// ICMP errors, nor to a source that no single host can have (RFC 1122 §3.2.2).
    pub(super) fn send_icmp_error(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
        error: (u8, u8),
        rest: u32,
    ) {
        // Our addresses are those of the one port, whatever side a tunnel leads to.
        let ours = if self.underway.is_some() {
            PortId(0)
        } else {
            port
        };
        let src = match port {
            LANE => Some(LANE_ADDRESSES[usize::from(!p.is_v4())]),
            _ => self.snapshot.address_towards(ours, p.key.src),
        };
        let Some(src) = src else {
            return;
        };
        // Nobody has the address of what has turned back.
        if p.content == Content::IcmpError || self.snapshot.turns_back(p.key.src) {
            return;
        }
        if !self.may_send_error(now, p.key.src) {
            return;
        }
        let link = self.back(port, frame);
        let quoted = &frame[ethernet::LEN..p.end as usize];
        if self
            .outbox
            .icmp_error(link, src, p.key.src, error, rest, quoted)
        {
            self.counters.icmp_errors_sent.inc();
        }
    }

    fn may_send_error(&mut self, now: Now, to: Addr) -> bool {
        let rate = self.snapshot.settings().limits.icmp_errors_per_s;
        let may = self.icmp_limit.take(now, self.source_hash(to), rate);
        if !may {
            self.counters.replies_limited.inc();
        }
        may
    }

    /// Drops a packet of a flow whose next hop does not answer, ready to leave as it is, and tells its sender (RFC 1812
    /// §5.2.7.1, RFC 4443 §3.1), within the rate limit.
    pub(crate) fn refuse_unreachable<K: Packet>(&mut self, now: Now, frame: &mut K) {
        self.refuse(None, DropReason::NeighborUnreachable, frame.bytes());
        let Ok(p) = parse(frame.bytes(), Station::Any, None) else {
            return;
        };
        // Answers to it would have the reversed key.
        let found = self.flows.find_key(&p.key.reversed());
        let (Content::Flow, Some((id, to))) = (p.content, found) else {
            return;
        };
        let flow = self.flows.get(id);
        // The packet as its sender wrote it.
        let (which, (address, port), sender) = match to {
            End::Server => (Which::Source, (flow.client, flow.client_port), flow.client),
            End::Client => (Which::Destination, (flow.nat, flow.nat_port), flow.server),
        };
        let translation = Translation {
            which,
            address,
            port,
        };
        let Some(src) = self
            .snapshot
            .address_towards(flow.sides.of(to.other()), sender)
        else {
            return;
        };
        // One that has turned back has a sender that nobody has the address of.
        if self.snapshot.turns_back(sender) || !self.may_send_error(now, sender) {
            return;
        }
        let meta = *frame.meta();
        rewrite::translate(frame.bytes_mut(), &meta, &p, translation);
        let Some(link) = self.link_to(now, sender) else {
            return;
        };
        let error = if p.is_v4() {
            (icmp::UNREACHABLE, 1)
        } else {
            (icmp::UNREACHABLE6, 3)
        };
        let quoted = &frame.bytes()[ethernet::LEN..p.end as usize];
        if self.outbox.icmp_error(link, src, sender, error, 0, quoted) {
            self.counters.icmp_errors_sent.inc();
        }
    }
}

/// The key of the packet that an ICMP error quotes, if it quotes one that belongs to a flow.
pub(crate) fn quoted_key(frame: &[u8], p: &Parsed) -> Option<Key> {
    parse_quoted(frame, p).ok().map(|quoted| quoted.key)
}

/// Finds the tuple in the packet that an error quotes: its IP header and at least eight bytes.
fn parse_quoted(frame: &[u8], p: &Parsed) -> Result<Quoted, DropReason> {
    let ip = usize::from(p.l4) + icmp::LEN;
    let packet = &frame[ip..p.end as usize];
    let (src, dst, proto, header_len, fragment) = if p.is_v4() {
        let h = ipv4::Header::parse_embedded(packet)?;
        (h.src, h.dst, h.proto, h.header_len, h.fragment)
    } else {
        let h = ipv6::Header::parse_embedded(packet)?;
        (h.src, h.dst, h.proto, h.header_len, h.fragment)
    };
    // Of fragments only the first tells whose it is.
    let offset = match p.is_v4() {
        true => get16(packet, 6) & 0x1fff,
        false if fragment => get16(packet, header_len - 6) & 0xfff8,
        false => 0,
    };
    if offset != 0 {
        return Err(DropReason::IcmpNoFlow);
    }
    let transport = packet.get(header_len..).unwrap_or_default();
    let mut key = Key {
        src,
        dst,
        src_port: 0,
        dst_port: 0,
        proto,
        tunnel: p.key.tunnel,
    };
    if matches!(proto, proto::TCP | proto::UDP | proto::ICMP4 | proto::ICMP6) {
        if transport.len() < 8 {
            return Err(DropReason::Truncated);
        }
        if matches!(proto, proto::TCP | proto::UDP) {
            (key.src_port, key.dst_port) = (get16(transport, 0), get16(transport, 2));
        } else {
            match icmp::Header::parse(transport, src.is_v4())?.kind {
                Kind::Query(id) => key.src_port = id,
                Kind::Answer(id) => key.dst_port = id,
                _ => return Err(DropReason::IcmpNoFlow),
            }
        }
    }
    Ok(Quoted {
        key,
        ip,
        l4: ip + header_len,
    })
}

/// Rewrites an address of the error itself, and its IPv4 header checksum.
fn translate_outer(frame: &mut [u8], p: &Parsed, which: Which, new: Addr) {
    let old = if which == Which::Source {
        p.key.src
    } else {
        p.key.dst
    };
    rewrite::put_address(frame, p.is_v4(), which, new);
    if p.is_v4() {
        let mut delta = Delta::default();
        delta.replace_addr(old, new);
        let sum = delta.apply(get16(frame, ethernet::LEN + 10));
        put16(frame, ethernet::LEN + 10, sum);
    }
}

/// Rewrites one end of the quoted packet to what its sender had written, with those checksums of
/// it that are within the quotation.
fn translate_quoted(
    frame: &mut [u8],
    end: usize,
    q: &Quoted,
    which: Which,
    address: Addr,
    port: u16,
) {
    let v4 = q.key.src.is_v4();
    let (old_addr, old_port) = match which {
        Which::Source => (q.key.src, q.key.src_port),
        Which::Destination => (q.key.dst, q.key.dst_port),
    };
    let mut delta = Delta::default();
    delta.replace_addr(old_addr, address);
    // `put_address` counts from behind an Ethernet header.
    rewrite::put_address(&mut frame[q.ip - ethernet::LEN..], v4, which, address);
    if v4 {
        let sum = delta.apply(get16(frame, q.ip + 10));
        put16(frame, q.ip + 10, sum);
    }
    delta.replace16(old_port, port);
    let field = match q.key.proto {
        proto::TCP | proto::UDP => {
            put16(
                frame,
                q.l4 + if which == Which::Source { 0 } else { 2 },
                port,
            );
            q.l4 + if q.key.proto == proto::UDP {
                udp::CHECKSUM
            } else {
                tcp::CHECKSUM
            }
        }
        proto::ICMP4 | proto::ICMP6 => {
            put16(frame, q.l4 + 4, port);
            if v4 {
                // No pseudo-header.
                delta = Delta::default();
                delta.replace16(old_port, port);
            }
            q.l4 + icmp::CHECKSUM
        }
        _ => return,
    };
    if field + 2 > end || q.key.proto == proto::UDP && get16(frame, field) == 0 {
        return;
    }
    let sum = match delta.apply(get16(frame, field)) {
        // Zero would say that there is none (RFC 768).
        0 if q.key.proto == proto::UDP => 0xffff,
        sum => sum,
    };
    put16(frame, field, sum);
}

/// Computes the error's own checksum, which has been verified before anything was changed.
fn seal(frame: &mut [u8], p: &Parsed, src: Addr, dst: Addr) {
    let (l4, end) = (usize::from(p.l4), p.end as usize);
    put16(frame, l4 + icmp::CHECKSUM, 0);
    let message = &frame[l4..end];
    let sum = match p.is_v4() {
        true => !checksum::fold(checksum::sum(message)),
        false => checksum::transport(src, dst, proto::ICMP6, message),
    };
    put16(frame, l4 + icmp::CHECKSUM, sum);
}
