//! Packets in a tunnel: unwrapped in front of everything else, wrapped behind it. In between they
//! are frames like any other, except that they know no next hop but the station they came from.

use super::{Pipeline, Step};
use crate::DropReason;
use crate::clock::Now;
use crate::flow::Lookup;
use crate::fragment::Whole;
use crate::overlay::{Envelope, Inner, Overlay, TunnelId, Wrapping, is_tunnel_port};
use crate::parse::{Content, Parsed, Station, parse, parse_inner};
use crate::port::{Checksum, Packet, PortId};
use crate::rewrite;
use crate::steer::Owner;
use crate::wire::{ipv6, proto};

/// What is particular about the packet that is being processed, if it came in a tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Underway {
    /// Largest packet that goes back in it, bytes.
    pub(super) mtu: u16,
    /// The same of IPv6, which is no less than every link carries where there is room.
    pub(super) ipv6_mtu: u16,
    /// The side that it goes on to. With a pair of tunnels these are the sides of two arms.
    pub(super) onward: PortId,
    /// The network that it is in, and its number.
    pub(super) network: TunnelId,
    pub(super) number: u16,
}

impl Pipeline {
    /// Whether packets come in a tunnel.
    #[inline]
    pub(crate) fn has_overlay(&self) -> bool {
        self.snapshot.settings().overlay.is_some()
    }

    /// Parses a frame from a port where packets come in a tunnel: the packet inside, or one that is
    /// for the node itself. Its network has a number here only if the packet is this worker's.
    pub(crate) fn parse_overlay<K: Packet>(
        &mut self,
        frame: &mut K,
        station: Station,
    ) -> Result<(Parsed, Option<Envelope>), DropReason> {
        let meta = *frame.meta();
        let found = match &self.snapshot.settings().overlay {
            Some(overlay) if meta.vlan.is_none() && station.is_alone(frame.bytes()) => {
                Envelope::parse(frame.bytes(), &meta, overlay, |a| self.snapshot.is_own(a))?
            }
            _ => None,
        };
        let Some(envelope) = found else {
            let p = parse(frame.bytes(), station, meta.vlan)?;
            p.admit(&meta, 0)?;
            // An offer of an address goes to the one who is to have it.
            if p.content != Content::Dhcp {
                self.check_outside_of_tunnels(&p)?;
            }
            let _ = frame.set_len(frame.bytes().len().min(p.end as usize));
            return Ok((p, None));
        };
        // What padded the frame is no part of what is inside.
        let _ = frame.set_len(envelope.end as usize);
        let mut completed = meta;
        if envelope.has_checksum() && matches!(meta.checksum, Checksum::Partial { .. }) {
            if !rewrite::complete_checksum(frame.bytes_mut(), &mut completed) {
                return Err(DropReason::MalformedHeader);
            }
            *frame.meta_mut() = completed;
        }
        envelope.open(frame.bytes_mut());
        let at = usize::from(envelope.at);
        let inner = &frame.bytes()[at..];
        let mut p = parse_inner(inner)?;
        p.admit(&completed, at)?;
        let is_mine = self.steering.count() == 1
            || matches!(self.owner(PortId(envelope.way as u8), inner, &p), Owner::One(owner) if self.steering.is_mine(owner));
        if is_mine {
            p.key.tunnel = self.network(&envelope)?;
        }
        let _ = frame.set_len(at + p.end as usize);
        if let Some(overlay) = &self.snapshot.settings().overlay {
            let kind = overlay.encapsulation.kind();
            self.counters.overlay[kind].taken_out.inc();
        }
        Ok((p, Some(envelope)))
    }

    /// Refuses what comes without a tunnel and is not for the node itself.
    pub(super) fn check_outside_of_tunnels(&self, p: &Parsed) -> Result<(), DropReason> {
        let is_packet = !matches!(p.content, Content::Arp | Content::Neighbor);
        if is_packet && !self.snapshot.is_ours(p.key.dst) {
            return Err(DropReason::OverlayDecap);
        }
        // In pieces, or it would have been read: a sender must not cut what it puts into a tunnel, and
        // we may refuse what others have cut (RFC 7348 §4.3).
        let overlay = self.snapshot.settings().overlay.as_ref();
        let is_tunnel = p.key.proto == proto::UDP
            && overlay.is_some_and(|o| is_tunnel_port(&o.encapsulation, p.key.dst_port));
        match is_tunnel && self.snapshot.is_own(p.key.dst) {
            true => Err(DropReason::OverlayDecap),
            false => Ok(()),
        }
    }

    /// The number that the network of a packet in a tunnel has here.
    pub(crate) fn network(&mut self, envelope: &Envelope) -> Result<u16, DropReason> {
        self.tunnels
            .number(envelope.tunnel)
            .ok_or(DropReason::OverlayDecap)
    }

    /// Decides on a packet in a tunnel as on any other, and wraps what is sent.
    pub(crate) fn process_overlay<K: Packet>(
        &mut self,
        now: Now,
        frame: &mut K,
        envelope: &Envelope,
        p: &Parsed,
        lookup: Lookup,
    ) -> Step {
        let Some(overlay) = self.snapshot.settings().overlay else {
            self.refuse(None, DropReason::OverlayEncap, frame.bytes());
            return Step::Drop(DropReason::OverlayEncap);
        };
        self.outbox.wrap(frame.bytes(), envelope, &overlay);
        let from = self.enter(envelope, &overlay, p.key.tunnel);
        let mut inner = Inner::new(frame, envelope);
        let step = self.process_seen(now, from, &mut inner, p, lookup);
        let is_partial = matches!(inner.meta().checksum, Checksum::Partial { .. });
        inner.close();
        let step = match step {
            Step::Send(_) => {
                let bytes = frame.bytes_mut();
                self.outbox.wrapping().seal(bytes, true, is_partial);
                let kind = overlay.encapsulation.kind();
                self.counters.overlay[kind].put_in.inc();
                Step::Send(PortId(0))
            }
            Step::WholeFor(_) => {
                self.whole.around = Some(Box::new(self.outbox.wrapping().clone()));
                step
            }
            other => other,
        };
        self.leave(from, &overlay);
        step
    }

    /// The same for a datagram that another worker has put together of packets from a tunnel.
    pub(super) fn handle_whole_overlay(
        &mut self,
        now: Now,
        around: Wrapping,
        whole: &mut Whole,
    ) -> Result<Step, DropReason> {
        let overlay = self.snapshot.settings().overlay;
        let (Some(overlay), Some(envelope)) = (overlay, around.envelope()) else {
            return Err(DropReason::OverlayEncap);
        };
        let number = self.network(&envelope)?;
        self.outbox.wrap_again(around);
        let from = self.enter(&envelope, &overlay, number);
        let step = self.handle_whole(now, from, whole);
        self.leave(from, &overlay);
        Ok(step)
    }

    /// From now on a packet that came in this envelope is processed. Returns the side that it came from.
    fn enter(&mut self, envelope: &Envelope, overlay: &Overlay, number: u16) -> PortId {
        let from = PortId(envelope.way as u8);
        let room = usize::from(self.ports[0].mtu).saturating_sub(envelope.overhead());
        self.underway = Some(Underway {
            mtu: (room as u16).min(overlay.mtu),
            ipv6_mtu: (room as u16).min(overlay.mtu.max(ipv6::MIN_MTU)),
            onward: onward(from, overlay),
            network: envelope.tunnel,
            number,
        });
        from
    }

    /// From now on packets are processed as if they came in some tunnel by this side. Returns the number of its network.
    pub(crate) fn enter_any(&mut self, from: PortId) -> u16 {
        let network = TunnelId::default();
        let number = self.tunnels.number(network).unwrap_or(0);
        self.underway = self.snapshot.settings().overlay.map(|overlay| Underway {
            mtu: overlay.mtu,
            ipv6_mtu: overlay.mtu.max(ipv6::MIN_MTU),
            onward: onward(from, &overlay),
            network,
            number,
        });
        number
    }

    /// Ends that, and wraps what was sent meanwhile.
    fn leave(&mut self, from: PortId, overlay: &Overlay) {
        self.underway = None;
        let originated = self.outbox.unwrap(from);
        let kind = overlay.encapsulation.kind();
        self.counters.overlay[kind].put_in.add(originated);
    }
}

/// The side that packets go on to from this one.
fn onward(from: PortId, overlay: &Overlay) -> PortId {
    match overlay.encapsulation.is_pair() {
        true => PortId(1 - from.0),
        false => from,
    }
}
