//! TCP health probes of load balancers to our own addresses: a handshake, without any state, while the node is ready
//! for traffic, and silence while it is not.
//!
//! The sequence number of the answer is a keyed hash of the connection, by which the segments after it are known again.

use super::{Pipeline, Step};
use crate::DropReason;
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::key::KeyHasher;
use crate::limit::SharedBucket;
use crate::parse::Parsed;
use crate::port::PortId;
use crate::snapshot::Probes;
use crate::wire::proto;
use crate::wire::tcp::{ACK, FIN, RST, SYN, Segment};

/// The port that anybody may probe.
const PORT: u16 = 8080;
/// The port that only Google's checkers may probe.
const GOOGLE_PORT: u16 = 80;
/// Where those come from: first address and prefix length.
const GOOGLE: [(u32, u32); 4] = [
    (0x23bf_0000, 16), // 35.191.0.0/16
    (0x82d3_0000, 22), // 130.211.0.0/22
    (0xd155_9800, 22), // 209.85.152.0/22
    (0xd155_cc00, 22), // 209.85.204.0/22
];
/// Answers per second on each of the two ports, of which no source can take all.
const RATE_PER_S: u32 = 1000;

#[derive(Debug)]
pub(super) struct Responder {
    hasher: KeyHasher,
    /// For what anybody may probe.
    limit: SharedBucket,
    /// For what Google's checkers may: nobody else's probes keep theirs waiting.
    google_limit: SharedBucket,
}

impl Responder {
    pub(super) fn new(seed: u64) -> Responder {
        Responder {
            hasher: KeyHasher::new(seed),
            limit: SharedBucket::full(),
            google_limit: SharedBucket::full(),
        }
    }

    /// Whether a segment from the source with this hash, to this port, may be answered now.
    fn may_answer(&mut self, now: Now, port: u16, source: u64) -> bool {
        let limit = match port {
            GOOGLE_PORT => &mut self.google_limit,
            _ => &mut self.limit,
        };
        limit.take(now, source, RATE_PER_S)
    }
}

impl Pipeline {
    /// Deals with a segment of a health probe; none if it is not one.
    pub(super) fn answer_probe(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
    ) -> Option<Result<Step, DropReason>> {
        let settings = self.snapshot.settings();
        let (key, segment) = (&p.key, &p.segment);
        let is_probed = key.proto == proto::TCP
            && (key.dst_port == PORT || key.dst_port == GOOGLE_PORT && is_google(key.src));
        if settings.probes == Probes::Off || !is_probed {
            return None;
        }
        let own = self.snapshot.own_addresses();
        if !own.iter().any(|o| (o.port, o.address) == (port, key.dst)) {
            return None;
        }
        let ready = settings.probes == Probes::Ready && !settings.draining;
        let first = self.probes.hasher.hash(key) as u32;
        let source = self.source_hash(key.src);
        let answer = |seq, flags| Segment {
            src_port: segment.dst_port,
            dst_port: segment.src_port,
            seq,
            ack: segment.end(),
            flags,
            window: 1024,
            ..Segment::default()
        };
        let answer = if segment.is_initial() {
            if !ready {
                self.counters.probes_not_ready.inc();
                return Some(Err(DropReason::LocalUnserved));
            }
            if !self.probes.may_answer(now, key.dst_port, source) {
                self.counters.probes_limited.inc();
                return Some(Err(DropReason::LocalUnserved));
            }
            self.counters.probes_answered.inc();
            answer(first, SYN | ACK)
        } else if segment.has(RST) || !segment.has(ACK) || segment.ack.wrapping_sub(first) > 2 {
            return Some(Err(DropReason::LocalUnserved));
        } else if segment.len > 0 {
            // Nobody is there to read it.
            self.refuse_segment(now, port, frame, p);
            return Some(Ok(Step::Answered));
        } else if segment.has(FIN) && self.probes.may_answer(now, key.dst_port, source) {
            answer(segment.ack, FIN | ACK)
        } else {
            return Some(Ok(Step::Consumed));
        };
        let link = self.back(port, frame);
        self.outbox.tcp(link, key.dst, key.src, &answer);
        Some(Ok(Step::Answered))
    }
}

fn is_google(a: Addr) -> bool {
    a.is_v4()
        && GOOGLE
            .iter()
            .any(|(first, len)| (a.low32() ^ first) >> (32 - len) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn googles_ranges() {
        let check =
            |a: [u8; 4], expected| assert_eq!(is_google(Addr::v4_bytes(a)), expected, "{a:?}");
        check([35, 191, 0, 1], true);
        check([35, 192, 0, 1], false);
        check([130, 211, 3, 255], true);
        check([130, 211, 4, 0], false);
        check([209, 85, 155, 255], true);
        check([209, 85, 207, 255], true);
        check([209, 85, 208, 0], false);
    }
}
