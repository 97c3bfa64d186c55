//! The way out of a packet whose flow is known: TTL, TCP state, next hop, size, and the headers rewritten in place.

use super::{CachedHop, HOP_CACHE, NextHop, Pipeline, Step, Underway};
use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::counters::{CloseReason, Handshake};
use crate::flow::FlowId;
use crate::parse::Parsed;
use crate::port::{Checksum, GsoKind, Packet, PortId};
use crate::rewrite::{self, Translation, Which};
use crate::tcp::{End, State};
use crate::wire::tcp::SYN;
use crate::wire::{ethernet, icmp, proto};

impl Pipeline {
    /// Sends a packet of a flow on its way.
    #[inline(always)]
    pub(super) fn forward<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        id: FlowId,
        from: End,
    ) -> Result<Step, DropReason> {
        self.check_ttl(now, port, frame, p)?;
        let onward = self.flows.onward(id, from);
        if p.key.proto == proto::TCP {
            self.advance(now, frame, p, id, from)?;
        }
        self.flows.head_mut(id).last_seen = now.tick();
        let body = self.flows.body_mut(id);
        body.bytes[from as usize] += frame.bytes().len() as u64;
        body.packets[from as usize] = body.packets[from as usize].saturating_add(1);

        let translation = Translation {
            which: match from {
                End::Client => Which::Source,
                End::Server => Which::Destination,
            },
            address: onward.address,
            port: onward.port,
        };
        if from == End::Client && onward.sides.turns_back() {
            let out = onward.sides.of(End::Server);
            return self.turn_back_translated(now, out, frame, p, translation);
        }
        let hop = self.next_hop(onward.to, now)?;
        if hop.port != onward.sides.of(from.other()) && self.underway.is_none() {
            return Err(self.refuse_astray(now, port, frame.bytes(), p, (id, from)));
        }
        let fits = self.check_size(now, port, frame, p, hop.port)?;
        if onward.is_translated {
            let meta = *frame.meta();
            rewrite::translate_and_decrement(frame.bytes_mut(), &meta, p, translation);
        } else {
            rewrite::decrement_ttl(frame.bytes_mut(), p);
        }
        let step = self.dispatch(frame, hop)?;
        if fits {
            Ok(step)
        } else {
            self.cut(frame, p, step)
        }
    }

    /// Takes a segment into the state of its connection, and lowers the largest segment that it offers to receive.
    #[inline]
    pub(super) fn advance<K: Packet>(
        &mut self,
        now: Now,
        frame: &mut K,
        p: &Parsed,
        id: FlowId,
        from: End,
    ) -> Result<(), DropReason> {
        let settings = self.snapshot.settings();
        if p.segment.has(SYN)
            && let Some(max) = segment_limit(settings.tcp_mss_max, self.underway, p)
        {
            let meta = *frame.meta();
            rewrite::clamp_mss(frame.bytes_mut(), &meta, p, max);
        }
        let connection = &mut self.flows.body_mut(id).tcp;
        let before = connection.state;
        connection.advance(from, &p.segment, settings.tcp_window_check)?;
        let after = connection.state;
        if after != before {
            self.flows.head_mut(id).last_seen = now.tick();
            self.flows.reschedule(id, self.snapshot.idle());
            self.count_handshake(id, from, before, after);
        }
        Ok(())
    }

    /// Counts the step that a connection's handshake has made, if it is in it.
    pub(super) fn count_handshake(&self, id: FlowId, from: End, before: State, after: State) {
        let step = match (before, after) {
            (State::SynSent, State::SynReceived) => Handshake::SynAck,
            (State::SynSent | State::SynReceived, State::Reset) => Handshake::Reset,
            (State::SynReceived, _) if from == End::Client => Handshake::Ack,
            _ => return,
        };
        self.counters.count_handshake(step);
        if step == Handshake::Ack {
            let group = self.group_counters(self.flows.head(id).tally);
            group.handshakes_completed.inc();
        }
    }

    /// Refuses a packet whose TTL or hop limit ends here, and says so to its sender.
    #[inline(always)]
    pub(super) fn check_ttl<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &K,
        p: &Parsed,
    ) -> Result<(), DropReason> {
        match p.ttl > 1 {
            true => Ok(()),
            false => self.refuse_ttl(now, port, frame.bytes(), p),
        }
    }

    #[cold]
    pub(super) fn refuse_ttl(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
    ) -> Result<(), DropReason> {
        let error = if p.is_v4() {
            (icmp::TIME_EXCEEDED, 0)
        } else {
            (icmp::TIME_EXCEEDED6, 0)
        };
        self.send_icmp_error(now, port, frame, p, error, 0);
        Err(DropReason::TtlExceeded)
    }

    /// Refuses a packet that would leave by another port than its flow was judged and translated for. Its client begins
    /// anew; a server is not to end what its client may yet go on with.
    #[cold]
    fn refuse_astray(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
        (id, from): (FlowId, End),
    ) -> DropReason {
        if from == End::Server {
            return DropReason::NoRoute;
        }
        if p.key.proto == proto::TCP {
            self.refuse_segment(now, port, frame, p);
        }
        self.close(id, CloseReason::PathChanged);
        DropReason::PathChanged
    }

    /// Whether the link behind `out` carries a packet in one; false if it is to be cut. Refuses one that it does not
    /// carry and that may not be cut, and tells its sender what it carries.
    #[inline(always)]
    pub(super) fn check_size<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        out: PortId,
    ) -> Result<bool, DropReason> {
        let caps = &self.ports[usize::from(out.0)];
        let size = match frame.meta().gso {
            None => frame.bytes().len() - ethernet::LEN,
            Some(gso) => {
                let able = match gso.kind {
                    GsoKind::Tcp4 | GsoKind::Tcp6 => caps.tx_gso_tcp,
                    GsoKind::Udp => caps.tx_gso_udp,
                };
                if !able {
                    return Err(DropReason::GsoUnsupported);
                }
                let segment = usize::from(gso.header_len) + usize::from(gso.size);
                segment
                    .min(frame.bytes().len())
                    .saturating_sub(ethernet::LEN)
            }
        };
        let mtu = self.mtu(out, p.is_v4());
        if size <= usize::from(mtu) || (1..=usize::from(mtu)).contains(&self.largest_piece) {
            return Ok(true);
        }
        self.refuse_size(now, port, frame, p, mtu)
    }

    /// What becomes of a packet that is larger than `mtu`.
    #[cold]
    pub(super) fn refuse_size<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        mtu: u16,
    ) -> Result<bool, DropReason> {
        if !p.dont_fragment {
            return Ok(lower_segments(frame, p, mtu));
        }
        let error = if p.is_v4() {
            (icmp::UNREACHABLE, 4)
        } else {
            (icmp::TOO_BIG6, 0)
        };
        self.send_icmp_error(now, port, frame.bytes(), p, error, u32::from(mtu));
        match self.underway {
            Some(_) => Err(DropReason::OverlayMtu),
            None => Err(DropReason::TooBig),
        }
    }

    /// Bytes of the largest packet of a family that goes on by a port.
    #[inline(always)]
    pub(super) fn mtu(&self, out: PortId, v4: bool) -> u16 {
        match (&self.underway, v4) {
            (None, true) => self.capabilities(out).mtu,
            (None, false) => self.ipv6_mtus[usize::from(out.0)],
            (Some(tunnel), true) => tunnel.mtu,
            (Some(tunnel), false) => tunnel.ipv6_mtu,
        }
    }

    /// The port and neighbour that lead to an address.
    #[inline(always)]
    pub(super) fn next_hop(&mut self, to: Addr, now: Now) -> Result<NextHop, DropReason> {
        if let Some(tunnel) = self.underway {
            return Ok(NextHop {
                port: tunnel.onward,
                neighbor: None,
            });
        }
        let place = self.flows.hasher().hash_address(to) as usize % HOP_CACHE;
        let cached = &self.hops[place];
        if cached.to == to && cached.epoch == self.epoch {
            return Ok(cached.hop);
        }
        self.find_next_hop(to, now, place)
    }

    #[cold]
    pub(super) fn find_next_hop(
        &mut self,
        to: Addr,
        now: Now,
        place: usize,
    ) -> Result<NextHop, DropReason> {
        let hop = self.snapshot.route(to).ok_or(DropReason::NoRoute)?;
        let neighbor = if self.capabilities(hop.port).layer3 {
            None
        } else {
            Some(self.find_neighbor(hop, to, now)?)
        };
        let hop = NextHop {
            port: hop.port,
            neighbor,
        };
        self.hops[place] = CachedHop {
            to,
            epoch: self.epoch,
            hop,
        };
        Ok(hop)
    }

    /// Writes the Ethernet header and makes the frame fit for its port.
    #[inline(always)]
    pub(super) fn dispatch<K: Packet>(
        &mut self,
        frame: &mut K,
        hop: NextHop,
    ) -> Result<Step, DropReason> {
        let caps = &self.ports[usize::from(hop.port.0)];
        let meta = frame.meta_mut();
        (meta.hash, meta.vlan) = (None, None);
        if !caps.tx_checksum && matches!(meta.checksum, Checksum::Partial { .. }) {
            let mut meta = *meta;
            if !rewrite::complete_checksum(frame.bytes_mut(), &mut meta) {
                return Err(DropReason::MalformedHeader);
            }
            *frame.meta_mut() = meta;
        }
        let bytes = frame.bytes_mut();
        let Some(id) = hop.neighbor else {
            // A frame in a tunnel keeps its stations.
            if self.underway.is_none() {
                bytes[..12].fill(0);
            }
            return Ok(Step::Send(hop.port));
        };
        let Some(header) = bytes.first_chunk_mut::<{ ethernet::LEN }>() else {
            return Err(DropReason::Truncated);
        };
        header[6..12].copy_from_slice(&caps.mac);
        match self.neighbors.use_mac(id) {
            Some(mac) => {
                header[..6].copy_from_slice(&mac);
                Ok(Step::Send(hop.port))
            }
            None => Ok(Step::Await(hop.port, id)),
        }
    }
}

/// Has a super-packet of TCP cut into segments that a link carries, since a stream may be cut anywhere, and a segment in
/// pieces is lost with any of them. False for any other packet.
fn lower_segments<K: Packet>(frame: &mut K, p: &Parsed, mtu: u16) -> bool {
    let Some(gso) = &mut frame.meta_mut().gso else {
        return false;
    };
    let room = (ethernet::LEN + usize::from(mtu)).saturating_sub(usize::from(gso.header_len));
    if p.key.proto != proto::TCP || room == 0 {
        return false;
    }
    gso.size = room as u16;
    true
}

/// The largest segment that an end of a connection may offer to receive: what the settings say, and what fits the tunnel.
fn segment_limit(max: Option<u16>, underway: Option<Underway>, p: &Parsed) -> Option<u16> {
    let headers = if p.is_v4() { 40 } else { 60 };
    let fits = underway.map(|tunnel| tunnel.mtu.saturating_sub(headers));
    fits.into_iter().chain(max).min()
}
