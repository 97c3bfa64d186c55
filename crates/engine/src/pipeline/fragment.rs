//! Packets that come in pieces, and those that leave in pieces.

use super::acquire::ALL_STATIONS;
use super::{Account, Pipeline, Step};
use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::Lookup;
use crate::fragment::{Lost, Whole};
use crate::neighbor::NeighborId;
use crate::parse::{Content, Parsed, Station, parse, parse_inner};
use crate::port::{Checksum, GsoKind, Packet, PortId};
use crate::rewrite;
use crate::steer::Owner;
use crate::wire::checksum::{self, Delta};
use crate::wire::{ethernet, get, get16, icmp, ipv4, proto, put16, tcp, udp};

impl Pipeline {
    /// Keeps a fragment until its datagram is whole, which then goes the way of every packet. All pieces are counted
    /// when their fate is known.
    pub(super) fn handle_fragment(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
    ) -> Step {
        if self.snapshot.idle().fragment == 0 {
            self.refuse(Some(port), DropReason::Fragment, frame);
            return Step::Drop(DropReason::Fragment);
        }
        let mut whole = std::mem::take(&mut self.whole);
        let mut lost = Lost::default();
        let network = self.underway.map(|tunnel| tunnel.network);
        let taken =
            self.fragments
                .take(now.tick(), (port, network), frame, p, &mut whole, &mut lost);
        let step = match taken {
            Ok(false) => Step::Consumed,
            Ok(true) => {
                self.counters.reassembled.inc();
                match self.owner_of_whole(port, &whole) {
                    Some(owner) => Step::WholeFor(owner),
                    None => self.handle_whole(now, port, &mut whole),
                }
            }
            Err(reason) => {
                self.refuse(Some(port), reason, frame);
                Step::Drop(reason)
            }
        };
        self.count_lost(taken.err().unwrap_or(DropReason::FragmentLimit), lost);
        self.whole = whole;
        step
    }

    /// The other worker that owns the flow of a datagram that is whole, if it is another.
    fn owner_of_whole(&self, port: PortId, whole: &Whole) -> Option<u16> {
        if self.steering.count() == 1 {
            return None;
        }
        let p = self.parse_whole(whole).ok()?;
        match self.owner(port, &whole.bytes, &p) {
            Owner::One(owner) if !self.steering.is_mine(owner) => Some(owner),
            _ => None,
        }
    }

    pub(super) fn parse_whole(&self, whole: &Whole) -> Result<Parsed, DropReason> {
        let Some(tunnel) = self.underway else {
            let p = parse(&whole.bytes, Station::Any, None)?;
            if self.has_overlay() {
                self.check_outside_of_tunnels(&p)?;
            }
            return Ok(p);
        };
        let mut p = parse_inner(&whole.bytes)?;
        p.key.tunnel = tunnel.number;
        Ok(p)
    }

    /// Decides on a datagram that another worker has put together.
    pub(crate) fn process_whole(&mut self, now: Now, port: PortId, mut whole: Whole) -> Step {
        let step = match whole.around.take() {
            None => Ok(self.handle_whole(now, port, &mut whole)),
            Some(around) => self.handle_whole_overlay(now, *around, &mut whole),
        };
        self.whole = whole;
        step.unwrap_or_else(|reason| {
            self.refuse_whole(port, reason);
            Step::Drop(reason)
        })
    }

    /// Counts the pieces of the datagram that is whole as dropped.
    pub(crate) fn refuse_whole(&mut self, port: PortId, reason: DropReason) {
        self.note_whole_refused(port, reason);
        let packets = self.whole.cuts.len() as u64;
        let head = self.whole.head as u64 * packets;
        let bytes = head
            + self
                .whole
                .cuts
                .iter()
                .map(|cut| u64::from(*cut))
                .sum::<u64>();
        self.count_lost(reason, Lost { packets, bytes });
    }

    /// Counts the pieces of the datagram that is whole and for the host: whether it could be handed over.
    pub(crate) fn count_lane_whole(&mut self, port: PortId, is_handed: bool) {
        let reason = DropReason::LaneUnavailable;
        if !is_handed {
            self.note_whole_refused(port, reason);
        }
        for cut in &self.whole.cuts {
            let bytes = self.whole.head + usize::from(*cut);
            match is_handed {
                true => self.count_local(bytes),
                false => self.counters.count_dropped(reason, 1, bytes as u64),
            }
        }
    }

    fn note_whole_refused(&mut self, port: PortId, reason: DropReason) {
        if !self.taps.is_empty() {
            let whole = std::mem::take(&mut self.whole);
            self.note_refused(Some(port), reason, &whole.bytes);
            self.whole = whole;
        }
    }

    /// The datagram that is whole since the last fragment came.
    pub(crate) fn whole(&self) -> &Whole {
        &self.whole
    }

    /// Drops what has not become whole in time.
    pub(super) fn expire_fragments(&mut self, now: Now) {
        if !self.fragments.is_empty() {
            let timeout = self.snapshot.idle().fragment;
            let lost = self.fragments.expire(now.tick(), timeout);
            self.count_lost(DropReason::Fragment, lost);
        }
    }

    fn count_lost(&mut self, reason: DropReason, lost: Lost) {
        if lost.packets > 0 {
            if is_of_fragments(reason) {
                self.counters.fragments.add(lost.packets);
            }
            self.counters
                .count_dropped(reason, lost.packets, lost.bytes);
        }
    }

    pub(super) fn handle_whole(&mut self, now: Now, port: PortId, whole: &mut Whole) -> Step {
        if self.taps.is_empty() {
            return self.decide_whole(now, port, whole);
        }
        self.whole_watched(port, whole, |this, whole| {
            this.decide_whole(now, port, whole)
        })
    }

    fn decide_whole(&mut self, now: Now, port: PortId, whole: &mut Whole) -> Step {
        let mut account = self.account(port);
        let (mut protocol, mut icmp) = (0, (0, 0));
        self.largest_piece = whole.largest();
        let step = self
            .send_whole(now, port, whole, &mut account, (&mut protocol, &mut icmp))
            .unwrap_or_else(Step::Drop);
        self.largest_piece = 0;
        if let Step::WholeFor(_) = step {
            return step;
        }
        for cut in &whole.cuts {
            let bytes = whole.head + usize::from(*cut);
            self.count(step, account, protocol, icmp, bytes);
        }
        if let Step::Drop(DropReason::Fragment) = step {
            self.counters.fragments.add(whole.cuts.len() as u64);
        }
        step
    }

    fn send_whole(
        &mut self,
        now: Now,
        port: PortId,
        whole: &mut Whole,
        account: &mut Account,
        (protocol, icmp_kind): (&mut u8, &mut (u8, u8)),
    ) -> Result<Step, DropReason> {
        let p = self.parse_whole(whole)?;
        (*protocol, *icmp_kind) = (p.key.proto, p.icmp);
        // Neighbour discovery never comes in pieces (RFC 6980).
        if matches!(
            p.content,
            Content::Neighbor | Content::Arp | Content::Fragment
        ) || p.key.dst == ALL_STATIONS
            || !holds_headers(whole, &p)
        {
            return Err(DropReason::Fragment);
        }
        // A receiver goes by the length of the IP packet, or of the datagram: they must not differ.
        let l4 = usize::from(p.l4);
        if p.key.proto == proto::UDP
            && usize::from(get16(&whole.bytes, l4 + 4)) != p.end as usize - l4
        {
            return Err(DropReason::MalformedHeader);
        }
        let is_echo = matches!(
            (p.key.proto, p.icmp.0),
            (proto::ICMP4, icmp::ECHO) | (proto::ICMP6, icmp::ECHO6)
        );
        if is_echo && self.is_for_us(port, p.key.dst) {
            return self.answer_whole_echo(port, whole, &p);
        }
        let has_turned = whole.turned.is_some();
        let step = if let Some(out) = whole.turned.take() {
            self.handle_turned(now, out, whole, &p, account)?
        } else if p.content == Content::IcmpError {
            self.handle_icmp_error(now, port, whole, &p, account, false)?
        } else {
            let lookup = Lookup::by(self.flows.hash(&p.key));
            self.handle_packet(now, port, whole, &p, lookup, account)?
        };
        let (out, waits_for) = match step {
            Step::Send(out) => (out, None),
            Step::Await(out, id) => (out, Some(id)),
            Step::Lane => return Ok(Step::Whole),
            Step::TurnFor(owner, out) => {
                whole.turned = Some(out);
                return Ok(Step::WholeFor(owner));
            }
            step => return Ok(step),
        };
        let is_translated = has_turned || !rewrite::has_source(&whole.bytes, p.key.src);
        let id = is_translated.then(|| self.identifications.take(p.key.dst));
        self.cut_whole(whole, out, waits_for, id);
        Ok(Step::Cut(out))
    }

    fn cut_whole(
        &mut self,
        whole: &Whole,
        out: PortId,
        waits_for: Option<NeighborId>,
        id: Option<u32>,
    ) {
        let cuts = whole.cuts.iter().map(|c| usize::from(*c));
        self.outbox
            .pieces((out, waits_for), &whole.bytes, whole.head, cuts, id);
    }

    /// Answers an echo request for one of our addresses in as many pieces as it came in.
    fn answer_whole_echo(
        &mut self,
        port: PortId,
        whole: &mut Whole,
        p: &Parsed,
    ) -> Result<Step, DropReason> {
        let l4 = usize::from(p.l4);
        let message = &whole.bytes[l4..];
        let (sum, reply) = match p.is_v4() {
            true => (!checksum::fold(checksum::sum(message)), icmp::ECHO_REPLY),
            false => (
                checksum::transport(p.key.src, p.key.dst, proto::ICMP6, message),
                icmp::ECHO_REPLY6,
            ),
        };
        if sum != 0 {
            return Err(DropReason::BadChecksum);
        }
        let back = self.back(port, &whole.bytes);
        let b = &mut whole.bytes;
        b[..6].copy_from_slice(&back.dst);
        b[6..12].copy_from_slice(&back.src);
        rewrite::put_address(b, p.is_v4(), rewrite::Which::Source, p.key.dst);
        rewrite::put_address(b, p.is_v4(), rewrite::Which::Destination, p.key.src);
        b[ethernet::LEN + if p.is_v4() { 8 } else { 7 }] = 64;
        let mut delta = Delta::default();
        delta.replace16(
            u16::from_be_bytes([b[l4], b[l4 + 1]]),
            u16::from_be_bytes([reply, b[l4 + 1]]),
        );
        b[l4] = reply;
        let sum = delta.apply(get16(b, l4 + icmp::CHECKSUM));
        put16(b, l4 + icmp::CHECKSUM, sum);
        let id = self.identifications.take(p.key.src);
        self.cut_whole(whole, port, None, Some(id));
        Ok(Step::Answered)
    }

    /// Sends an IPv4 packet that may be cut in as large pieces as the link behind its port carries; of a super-packet each
    /// datagram.
    #[cold]
    pub(super) fn cut<K: Packet>(
        &mut self,
        frame: &mut K,
        p: &Parsed,
        step: Step,
    ) -> Result<Step, DropReason> {
        let way = match step {
            Step::Send(out) => (out, None),
            Step::Await(out, id) => (out, Some(id)),
            step => return Ok(step),
        };
        let mtu = ethernet::LEN + usize::from(self.mtu(way.0, true));
        let room = mtu.saturating_sub(usize::from(p.l4)) & !7;
        if room == 0 {
            return Err(DropReason::TooBig);
        }
        let end = p.end as usize;
        if let Some(gso) = frame.meta().gso {
            // Of a stream a link carries at least one byte a segment; all else is none that we know.
            if p.key.proto != proto::UDP || gso.kind != GsoKind::Udp {
                return Err(DropReason::TooBig);
            }
            let size = usize::from(gso.size).max(1);
            self.cut_datagrams(way, &mut frame.bytes_mut()[..end], p, size, room);
            return Ok(Step::Cut(way.0));
        }
        // The checksum covers all pieces, and no port completes it over more than one.
        let mut meta = *frame.meta();
        if matches!(meta.checksum, Checksum::Partial { .. })
            && !rewrite::complete_checksum(frame.bytes_mut(), &mut meta)
        {
            return Err(DropReason::MalformedHeader);
        }
        self.cut_packet(way, &frame.bytes()[..end], p, room);
        Ok(Step::Cut(way.0))
    }

    /// Makes the datagrams of a super-packet, `size` bytes of payload each, and sends them in pieces.
    fn cut_datagrams(
        &mut self,
        way: (PortId, Option<NeighborId>),
        frame: &mut [u8],
        p: &Parsed,
        size: usize,
        room: usize,
    ) {
        const MAX_HEAD: usize = ethernet::LEN + ipv4::MAX_LEN + udp::LEN;
        let (ip, l4) = (ethernet::LEN, usize::from(p.l4));
        let head = l4 + udp::LEN;
        let mut headers = [0; MAX_HEAD];
        let headers = &mut headers[..head];
        headers.copy_from_slice(&frame[..head]);
        let src = Addr::v4_bytes(get(headers, ip + 12));
        let dst = Addr::v4_bytes(get(headers, ip + 16));
        let first_id = get16(headers, ip + 4);
        for (i, at) in (head..frame.len()).step_by(size).enumerate() {
            // The headers go where the datagram before ended, which has been sent.
            let end = (at + size).min(frame.len());
            let datagram = &mut frame[at - head..end];
            datagram[..head].copy_from_slice(headers);
            let len = datagram.len();
            put16(datagram, ip + 2, (len - ip) as u16);
            if first_id != 0 {
                put16(datagram, ip + 4, first_id.wrapping_add(i as u16));
            }
            put16(datagram, l4 + 4, (len - l4) as u16);
            put16(datagram, l4 + udp::CHECKSUM, 0);
            let sum = checksum::transport(src, dst, proto::UDP, &datagram[l4..]);
            // A sum of zero would mean that there is none (RFC 768).
            put16(
                datagram,
                l4 + udp::CHECKSUM,
                if sum == 0 { 0xffff } else { sum },
            );
            self.cut_packet(way, datagram, p, room);
        }
    }

    /// Sends an IPv4 packet in pieces of `room` bytes behind the header, a multiple of eight. Its header needs no checksum.
    fn cut_packet(
        &mut self,
        way: (PortId, Option<NeighborId>),
        packet: &[u8],
        p: &Parsed,
        room: usize,
    ) {
        let head = usize::from(p.l4);
        let has_id =
            rewrite::has_source(packet, p.key.src) && get16(packet, ethernet::LEN + 4) != 0;
        let id = (!has_id).then(|| self.identifications.take(p.key.dst));
        let rest = packet.len() - head;
        let cuts = (0..rest).step_by(room).map(|at| room.min(rest - at));
        self.outbox.pieces(way, packet, head, cuts, id);
        if rest > room {
            self.counters.fragmented.inc();
        }
    }
}

/// Whether what is dropped for this reason is dropped because it came in pieces.
pub(super) fn is_of_fragments(reason: DropReason) -> bool {
    use DropReason::{Fragment, FragmentLimit, FragmentOverlap};
    matches!(reason, Fragment | FragmentOverlap | FragmentLimit)
}

/// Whether the first piece has all headers, up to that of the transport (RFC 7112, RFC 1858 §4).
fn holds_headers(whole: &Whole, p: &Parsed) -> bool {
    let l4 = usize::from(p.l4);
    let transport = match p.key.proto {
        proto::TCP => usize::from(whole.bytes[l4 + 12] >> 4) * 4,
        proto::UDP => udp::LEN,
        proto::ICMP4 | proto::ICMP6 => icmp::LEN,
        _ => 0,
    };
    debug_assert!(p.key.proto != proto::TCP || transport >= tcp::MIN_LEN);
    let first = whole.cuts.first().copied().unwrap_or(0);
    l4 + transport <= whole.head + usize::from(first)
}
