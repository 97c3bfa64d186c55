//! Packets from one client to another by what that one looks like outside (RFC 4787, REQ-9; RFC 6296 §4).
//!
//! They are treated as if they went out and came back in: a flow to the NAT address is judged and translated like any to
//! the outside, and what comes of it has to be an answer to the other client. So two clients reach each other when both
//! send, and when the policy lets both; nobody is reached who did not ask.

use super::{Account, Pipeline, Step};
use crate::DropReason;
use crate::clock::Now;
use crate::counters::Direction;
use crate::flow::{Key, Lookup};
use crate::parse::{Content, Parsed};
use crate::port::{Packet, PortId};
use crate::rewrite::{self, Translation};
use crate::snapshot::Side;
use crate::steer::Owner;
use crate::tcp::End;
use crate::wire::proto;

impl Pipeline {
    /// Whether packets with this key turn back. Those in a tunnel do not: its other end has sent them here for the one
    /// flow that it knows.
    pub(super) fn turns_back(&self, is_in_tunnel: bool, key: &Key) -> bool {
        !is_in_tunnel && self.snapshot.turns_back(key.dst)
    }

    /// Whether a packet for one of our addresses is for a client that is seen there, instead of for the node.
    #[cold]
    pub(super) fn is_for_client(&self, port: PortId, p: &Parsed) -> bool {
        matches!(p.key.proto, proto::TCP | proto::UDP)
            && self.turns_back(self.underway.is_some(), &p.key)
            && self.snapshot.service(p.key.dst, p.key.dst_port) != Some(true)
            && self.snapshot.source_side(port, p.key.src) == Side::Inside
    }

    /// Translates a packet of a flow that turns back like one that leaves, and takes it in again by the port `out`.
    #[cold]
    pub(super) fn turn_back_translated<K: Packet>(
        &mut self,
        now: Now,
        out: PortId,
        frame: &mut K,
        p: &Parsed,
        translation: Translation,
    ) -> Result<Step, DropReason> {
        let meta = *frame.meta();
        rewrite::translate(frame.bytes_mut(), &meta, p, translation);
        let mut p = *p;
        (p.key.src, p.key.src_port) = (translation.address, translation.port);
        p.segment.src_port = translation.port;
        self.turn_back(now, out, frame, &p, &mut Account::new(Direction::Outbound))
    }

    /// Takes a packet in again that would have come back to us by the port `out`; leaves that to another worker if the flow
    /// that it must belong to is there.
    pub(super) fn turn_back<K: Packet>(
        &mut self,
        now: Now,
        out: PortId,
        frame: &mut K,
        p: &Parsed,
        account: &mut Account,
    ) -> Result<Step, DropReason> {
        // A translated prefix leads to the same worker, as a flow has one for both directions.
        let by_port = self.steering.count() > 1 && self.snapshot.is_ours(p.key.dst);
        if by_port
            && let Owner::One(owner) = self.steering.owner(&self.snapshot, false, frame.bytes(), p)
            && !self.steering.is_mine(owner)
        {
            return Ok(Step::TurnFor(owner, out));
        }
        self.handle_turned(now, out, frame, p, account)
    }

    pub(super) fn handle_turned<K: Packet>(
        &mut self,
        now: Now,
        out: PortId,
        frame: &mut K,
        p: &Parsed,
        account: &mut Account,
    ) -> Result<Step, DropReason> {
        if p.content == Content::IcmpError {
            return self.handle_icmp_error(now, out, frame, p, account, true);
        }
        let lookup = Lookup::by(self.flows.hash(&p.key));
        match self.find_live(now, out, p, lookup)? {
            Some((id, End::Server)) => {
                self.rejudge_if_stale(now, id, frame, p, End::Server, account)?;
                account.group = self.flows.head(id).tally;
                self.forward(now, out, frame, p, id, End::Server)
            }
            _ => Err(DropReason::HairpinNoFlow),
        }
    }

    /// The same for a frame that another worker has translated.
    pub(crate) fn process_turned<K: Packet>(
        &mut self,
        now: Now,
        out: PortId,
        frame: &mut K,
        p: &Parsed,
    ) -> Step {
        if self.taps.is_empty() {
            return self.decide_turned(now, out, frame, p);
        }
        self.watched(Some(out), frame, p, |this, frame| {
            this.decide_turned(now, out, frame, p)
        })
    }

    fn decide_turned<K: Packet>(
        &mut self,
        now: Now,
        out: PortId,
        frame: &mut K,
        p: &Parsed,
    ) -> Step {
        let bytes = frame.bytes().len();
        let mut account = Account::new(Direction::Outbound);
        let step = self
            .handle_turned(now, out, frame, p, &mut account)
            .unwrap_or_else(Step::Drop);
        self.count(step, account, p.key.proto, p.icmp, bytes);
        step
    }
}
