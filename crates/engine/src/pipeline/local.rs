//! Packets for our own addresses: echo is answered, services are handed to the host.

use super::{Account, Pipeline, Step};
use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::counters::Direction;
use crate::outbox::LANE;
use crate::parse::Parsed;
use crate::port::{Packet, PortId};
use crate::snapshot::Side;
use crate::wire::checksum;
use crate::wire::{icmp, proto};

/// Our addresses on the lane, 169.254.255.2 and fd6e:7765::2: what the host hears of its own packets comes from them.
pub(super) const LANE_ADDRESSES: [Addr; 2] = [
    Addr::v4(0xa9fe_ff02),
    Addr(0xfd6e_7765_0000_0000_0000_0000_0000_0002),
];

impl Pipeline {
    /// A packet for one of our addresses that belongs to no flow.
    pub(super) fn handle_local<K: Packet>(
        &mut self,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        account: &mut Account,
    ) -> Result<Step, DropReason> {
        let side = self.snapshot.source_side(port, p.key.src);
        if side == Side::Outside {
            account.direction = Direction::Inbound;
        }
        let is_echo = match p.key.proto {
            proto::ICMP4 => p.icmp.0 == icmp::ECHO,
            proto::ICMP6 => p.icmp.0 == icmp::ECHO6,
            _ => false,
        };
        if is_echo {
            return self.answer_echo(port, frame.bytes(), p);
        }
        if side == Side::Outside {
            return Err(DropReason::FromOutside);
        }
        match self.snapshot.service(p.key.dst, p.key.dst_port) {
            // The host's answers know no way back into a tunnel.
            Some(true) if p.key.tunnel == 0 && matches!(p.key.proto, proto::TCP | proto::UDP) => {
                Ok(Step::Lane)
            }
            _ => Err(DropReason::LocalUnserved),
        }
    }

    fn answer_echo(&mut self, port: PortId, frame: &[u8], p: &Parsed) -> Result<Step, DropReason> {
        let message = &frame[usize::from(p.l4)..p.end as usize];
        let sum = match p.is_v4() {
            true => !checksum::fold(checksum::sum(message)),
            false => checksum::transport(p.key.src, p.key.dst, proto::ICMP6, message),
        };
        if sum != 0 {
            return Err(DropReason::BadChecksum);
        }
        let link = self.back(port, frame);
        self.outbox.echo_reply(link, p.key.dst, p.key.src, message);
        Ok(Step::Answered)
    }

    /// Decides on a frame from the host, and rewrites it.
    pub(crate) fn process_lane<K: Packet>(&mut self, now: Now, frame: &mut K, p: &Parsed) -> Step {
        if self.taps.is_empty() {
            return self.handle_lane(now, frame, p);
        }
        self.watched(None, frame, p, |this, frame| {
            this.handle_lane(now, frame, p)
        })
    }

    fn handle_lane<K: Packet>(&mut self, now: Now, frame: &mut K, p: &Parsed) -> Step {
        let bytes = frame.bytes().len();
        let step = self
            .send_from_lane(now, frame, p)
            .unwrap_or_else(Step::Drop);
        let account = Account::new(Direction::Inbound);
        self.count(step, account, p.key.proto, p.icmp, bytes);
        step
    }

    fn send_from_lane<K: Packet>(
        &mut self,
        now: Now,
        frame: &mut K,
        p: &Parsed,
    ) -> Result<Step, DropReason> {
        if self.snapshot.service(p.key.src, p.key.src_port) != Some(true) {
            return Err(DropReason::LaneSource);
        }
        let hop = self.next_hop(p.key.dst, now)?;
        if self.snapshot.destination_side(hop.port, p.key.dst) == Side::Outside {
            return Err(DropReason::LaneSource);
        }
        let fits = self.check_size(now, LANE, frame, p, hop.port)?;
        let step = self.dispatch(frame, hop)?;
        match fits {
            true => Ok(step),
            false => self.cut(frame, p, step),
        }
    }
}
