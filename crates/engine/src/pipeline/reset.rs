//! TCP resets that we send: to a segment without a connection, and to both ends of a connection
//! that a new policy ends.

use super::Pipeline;
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::{Flow, Key};
use crate::outbox::Link;
use crate::parse::Parsed;
use crate::port::PortId;
use crate::tcp::End;
use crate::wire::ethernet::Mac;
use crate::wire::tcp::{ACK, RST, Segment};

impl Pipeline {
    /// Answers a segment with a reset, within the rate limit.
    pub(super) fn refuse_segment(&mut self, now: Now, port: PortId, frame: &[u8], p: &Parsed) {
        if p.segment.has(RST) {
            return;
        }
        let (source, rate) = (
            self.source_hash(p.key.src),
            self.snapshot.settings().limits.resets_per_s,
        );
        if !self.reset_limit.take(now, source, rate) {
            self.counters.replies_limited.inc();
            return;
        }
        let link = self.back(port, frame);
        let segment = answer_with_reset(&p.segment);
        if self.outbox.tcp(link, p.key.dst, p.key.src, &segment) {
            self.counters.resets_sent.inc();
        }
    }

    /// Ends a connection towards both ends, on the occasion of a segment from one of them.
    pub(super) fn reset_both(
        &mut self,
        now: Now,
        flow: &Flow,
        from: End,
        frame: &[u8],
        p: &Parsed,
    ) {
        if p.segment.has(RST) {
            return;
        }
        let link = self.back(flow.sides.of(from), frame);
        if self
            .outbox
            .tcp(link, p.key.dst, p.key.src, &answer_with_reset(&p.segment))
        {
            self.counters.resets_sent.inc();
        }
        // To the other end as if the sender had reset; its address as that end knows it.
        let (key, to) = match from {
            End::Client => (flow.server_key().reversed(), flow.server),
            End::Server => (flow.client_key().reversed(), flow.client),
        };
        let flags = RST | p.segment.flags & ACK;
        self.reset_one(now, key, to, (p.segment.seq, p.segment.ack), flags);
    }

    /// Ends a connection towards both ends of their own accord: each is told by what the other has
    /// sent last. An end that has not been heard yet has nothing to be told by.
    pub(super) fn reset_ends(&mut self, now: Now, flow: &Flow) {
        let [client, server] = [End::Client, End::Server].map(|end| flow.tcp.next_of(end));
        if let Some(seq) = client {
            let (key, ack) = (flow.server_key().reversed(), server.unwrap_or(0));
            let flags = if server.is_some() { RST | ACK } else { RST };
            self.reset_one(now, key, flow.server, (seq, ack), flags);
        }
        if let Some(ack) = client {
            // A client that waits for the answer to its SYN takes a reset that acknowledges it.
            let (key, seq) = (flow.client_key().reversed(), server.unwrap_or(0));
            self.reset_one(now, key, flow.client, (seq, ack), RST | ACK);
        }
    }

    /// The link by which an address is reached; none if there is no route.
    pub(super) fn link_to(&mut self, now: Now, to: Addr) -> Option<Link> {
        let hop = self.next_hop(to, now).ok()?;
        let mac = hop
            .neighbor
            .map_or(Some(Mac::default()), |id| self.neighbors.use_mac(id));
        Some(Link {
            port: hop.port,
            src: self.capabilities(hop.port).mac,
            dst: mac.unwrap_or_default(),
            waits_for: if mac.is_none() { hop.neighbor } else { None },
        })
    }

    /// Sends a reset with this key, in the name of its source.
    fn reset_one(&mut self, now: Now, key: Key, to: Addr, (seq, ack): (u32, u32), flags: u8) {
        let segment = Segment {
            src_port: key.src_port,
            dst_port: key.dst_port,
            seq,
            ack,
            flags,
            ..Segment::default()
        };
        let Some(link) = self.link_to(now, to) else {
            return;
        };
        if self.outbox.tcp(link, key.src, key.dst, &segment) {
            self.counters.resets_sent.inc();
        }
    }
}

/// The reset that a segment to a closed port gets (RFC 9293 §3.10.7.1).
fn answer_with_reset(s: &Segment) -> Segment {
    let (seq, ack, flags) = match s.has(ACK) {
        true => (s.ack, 0, RST),
        false => (0, s.end(), RST | ACK),
    };
    Segment {
        src_port: s.dst_port,
        dst_port: s.src_port,
        seq,
        ack,
        flags,
        ..Segment::default()
    }
}
