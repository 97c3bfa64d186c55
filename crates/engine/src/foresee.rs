//! What a worker would do with a packet that begins a flow, without doing it.
//!
//! An engine like those of the workers, under the same snapshot and with nothing in it, is given the packet. So there is
//! no second copy of what decides; what is told besides is read off the snapshot.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use policy::{Decision, Facts};

use crate::address::Addr;
use crate::parse::{Station, parse, parse_inner};
use crate::pipeline::Pipeline;
use crate::port::memory::MemoryPacket;
use crate::port::{Capabilities, Packet as _, PortId};
use crate::snapshot::{Side, Snapshot};
use crate::wire::icmp::{self, Kind};
use crate::wire::{checksum, ethernet, ipv4, ipv6, proto, put16, tcp, udp};
use crate::{DropReason, Now, Verdict, WorkerConfig, WorkerCounters};

/// Places of its flow table; it opens one flow at most.
const CAPACITY: u32 = 64;
/// Of the packet.
const TTL: u8 = 64;
/// Where an ICMP query has its identifier.
const IDENTIFIER: usize = 4;

/// A packet that is the first of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The port that it would come from; of a pair of tunnels, which of them.
    pub port: PortId,
    /// What it says of itself. Where packets come in tunnels, it does.
    pub facts: Facts,
}

/// What becomes of a source on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Nothing.
    None,
    /// Another address under the outside prefix.
    Prefix(IpAddr),
    /// One of [`Snapshot::translations_of`], and a port of it.
    Port,
}

/// What would become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It opens a flow and is sent.
    Forward {
        /// Out of this port; of a pair of tunnels, by which of them.
        port: PortId,
        /// What becomes of its source.
        translation: Translation,
    },
    /// It is handed to the host.
    Local,
    /// The engine answers itself.
    Reply,
    /// It is dropped.
    Drop(DropReason),
}

/// What would become of a packet, and what was asked on the way.
#[derive(Clone, Copy, Debug)]
pub struct Foresight {
    /// Whether it comes in a tunnel, and goes back in one.
    pub in_tunnel: bool,
    /// Whether its source is inside.
    pub from_inside: bool,
    /// Whether its destination is one of the node's own addresses.
    pub to_us: bool,
    /// Whether its destination stands for clients outside, so that it turns back to one of them.
    pub turns_back: bool,
    /// Port and router towards the destination, as far as that was asked; no router: it is on the link.
    pub route: Option<(PortId, Option<IpAddr>)>,
    /// Whether the destination is inside, as far as that was asked.
    pub to_inside: Option<bool>,
    /// What the policy says, as far as it was asked.
    pub decision: Option<Decision>,
    /// Whether its sender is told by a TCP reset.
    pub resets: bool,
    /// Whether its sender is told by an ICMP error.
    pub icmp_error: bool,
    /// What becomes of it.
    pub fate: Fate,
}

/// Says what becomes of the packet at `now`, as long as no flow has its key and there is room for one more.
///
/// # Errors
/// When the system refuses memory.
pub fn foresee(snapshot: &Arc<Snapshot>, now: Now, probe: &Probe) -> io::Result<Foresight> {
    let Probe { port, facts } = *probe;
    let (src, dst): (Addr, Addr) = (facts.src.into(), facts.dst.into());
    let in_tunnel = snapshot.settings().overlay.is_some();
    let mut pipeline = empty(snapshot)?;
    pipeline.begin(snapshot, now);
    let mut frame = MemoryPacket::new(frame_of(&facts));
    let parsed = match in_tunnel {
        true => parse_inner(frame.bytes()),
        false => parse(frame.bytes(), Station::Any, None),
    };
    let verdict = match parsed {
        Err(reason) => Verdict::Drop(reason),
        Ok(mut p) => {
            if in_tunnel {
                p.key.tunnel = pipeline.enter_any(port);
            }
            let lookup = pipeline.prefetch_bucket(&p);
            let step = pipeline.process(now, port, &mut frame, &p, lookup);
            step.verdict()
        }
    };
    let fate = match verdict {
        Verdict::Forward(port) => Fate::Forward {
            port,
            translation: translation(snapshot, src, frame.bytes()),
        },
        Verdict::Local => Fate::Local,
        Verdict::Reply => Fate::Reply,
        Verdict::Drop(reason) => Fate::Drop(reason),
    };
    let is_judged = match verdict {
        Verdict::Forward(_) => true,
        Verdict::Drop(reason) => comes_after_policy(reason),
        Verdict::Local | Verdict::Reply => false,
    };
    let hop = snapshot.route(dst).filter(|_| is_judged && !in_tunnel);
    let out = match (in_tunnel, verdict) {
        (true, Verdict::Forward(out)) => Some(out),
        (true, _) => None,
        (false, _) => hop.map(|hop| hop.port),
    };
    let counters = pipeline.counters();
    Ok(Foresight {
        in_tunnel,
        from_inside: snapshot.source_side(port, src) == Side::Inside,
        to_us: snapshot.is_ours(dst),
        turns_back: is_judged && !in_tunnel && snapshot.turns_back(dst),
        route: hop.map(|hop| {
            let via = (hop.neighbor != dst).then(|| hop.neighbor.ip());
            (hop.port, via)
        }),
        to_inside: out.map(|out| snapshot.destination_side(out, dst) == Side::Inside),
        decision: is_judged.then(|| snapshot.judge(&facts)),
        resets: counters.resets_sent.get() > 0,
        icmp_error: counters.icmp_errors_sent.get() > 0,
        fate,
    })
}

/// An engine in which nothing has happened yet, over ports that need no neighbours.
fn empty(snapshot: &Arc<Snapshot>) -> io::Result<Pipeline> {
    let port = || Capabilities {
        mtu: 1500,
        tx_checksum: true,
        tx_gso_tcp: true,
        tx_gso_udp: true,
        mac: [0; 6],
        layer3: true,
    };
    let ports = snapshot.settings().ports.iter().map(|_| port()).collect();
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed: 1,
        flow_capacity: CAPACITY,
        events: None,
    };
    Pipeline::new(
        Arc::clone(snapshot),
        ports,
        config,
        Arc::new(WorkerCounters::default()),
    )
}

/// Whether a packet that is dropped for this reason was judged before.
fn comes_after_policy(reason: DropReason) -> bool {
    use DropReason::*;
    matches!(
        reason,
        PolicyDenied
            | Draining
            | FlowTableFull
            | SourceGroupFull
            | SourceFull
            | SourceRate
            | NatTableFull
            | NatPortsExhausted
            | PrefixTranslation
            | NoNatAddress
            | HairpinNoFlow
            | TooBig
            | OverlayMtu
    )
}

/// What has become of the source in a frame that was sent.
fn translation(snapshot: &Snapshot, src: Addr, sent: &[u8]) -> Translation {
    let sent = parse(sent, Station::Any, None).map_or(src, |p| p.key.src);
    if sent == src {
        Translation::None
    } else if snapshot.translate_prefix(src).is_some() {
        Translation::Prefix(sent.ip())
    } else {
        Translation::Port
    }
}

/// The smallest packet of which this is true, as a frame. A TCP segment is the first of its connection.
fn frame_of(facts: &Facts) -> Vec<u8> {
    let (src, dst): (Addr, Addr) = (facts.src.into(), facts.dst.into());
    let mut body = vec![0; icmp::LEN];
    let checksum_at = match facts.proto {
        proto::TCP => {
            body.resize(tcp::MIN_LEN, 0);
            let segment = tcp::Segment {
                src_port: facts.src_port,
                dst_port: facts.dst_port,
                flags: tcp::SYN,
                window: u16::MAX,
                ..tcp::Segment::default()
            };
            segment.emit(&mut body);
            Some(tcp::CHECKSUM)
        }
        proto::UDP => {
            put16(&mut body, 0, facts.src_port);
            put16(&mut body, 2, facts.dst_port);
            put16(&mut body, 4, udp::LEN as u16);
            Some(udp::CHECKSUM)
        }
        proto::ICMP4 | proto::ICMP6 => {
            (body[0], body[1]) = facts.icmp.unwrap_or_default();
            let header = icmp::Header::parse(&body, src.is_v4());
            match header.map(|header| header.kind) {
                Ok(Kind::Query(_) | Kind::Answer(_)) => put16(&mut body, IDENTIFIER, 1),
                // About a packet that would have come the other way.
                Ok(Kind::Error) => body.extend(packet(dst, src, proto::UDP, &[0; udp::LEN])),
                _ => {}
            }
            Some(icmp::CHECKSUM)
        }
        _ => None,
    };
    if let Some(at) = checksum_at {
        let sum = match facts.proto {
            proto::ICMP4 => !checksum::fold(checksum::sum(&body)),
            proto => checksum::transport(src, dst, proto, &body),
        };
        put16(&mut body, at, sum);
    }
    let mut frame = vec![0; ethernet::LEN];
    let ethertype = match src.is_v4() {
        true => ethernet::IPV4,
        false => ethernet::IPV6,
    };
    put16(&mut frame, ethernet::LEN - 2, ethertype);
    frame.extend(packet(src, dst, facts.proto, &body));
    frame
}

/// An IP packet between two addresses of one family.
fn packet(src: Addr, dst: Addr, proto: u8, body: &[u8]) -> Vec<u8> {
    let header_len = match src.is_v4() {
        true => ipv4::MIN_LEN,
        false => ipv6::LEN,
    };
    let mut packet = vec![0; header_len];
    packet.extend(body);
    let total_len = packet.len();
    if src.is_v4() {
        let header = ipv4::Header {
            header_len,
            total_len,
            ttl: TTL,
            proto,
            src,
            dst,
            dont_fragment: true,
            fragment: false,
        };
        header.emit(&mut packet);
    } else {
        let header = ipv6::Header {
            header_len,
            total_len,
            hop_limit: TTL,
            proto,
            src,
            dst,
            fragment: false,
            has_fragment_header: false,
        };
        header.emit(&mut packet);
    }
    packet
}

impl Snapshot {
    /// The addresses that a source of this family may be translated to on the way outside.
    pub fn translations_of(&self, source: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.nat_addresses(source.is_ipv4()).iter().map(|a| a.ip())
    }

    /// How many sides packets come from that are told apart by port or tunnel: 1 or 2.
    pub fn arms(&self) -> usize {
        1 + usize::from(self.two_arms())
    }
}
