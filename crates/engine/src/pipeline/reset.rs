//! TCP resets that we send: to a segment without a connection, and to both ends of a connection
//! that a new policy ends.

use super::Pipeline;
use crate::clock::Now;
use crate::flow::Flow;
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
        if !self
            .reset_limit
            .take(now, self.snapshot.settings().limits.resets_per_s)
        {
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
        let segment = Segment {
            src_port: key.src_port,
            dst_port: key.dst_port,
            seq: p.segment.seq,
            ack: p.segment.ack,
            flags: RST | p.segment.flags & ACK,
            ..Segment::default()
        };
        let Ok(hop) = self.next_hop(to, now) else {
            return;
        };
        let mac = hop
            .neighbor
            .map_or(Some(Mac::default()), |id| self.neighbors.use_mac(id));
        let link = Link {
            port: hop.port,
            src: self.capabilities(hop.port).mac,
            dst: mac.unwrap_or_default(),
            waits_for: if mac.is_none() { hop.neighbor } else { None },
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
