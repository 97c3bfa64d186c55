//! A reference for the packet engine: verdict, state and NAT, written straight from the contract,
//! with a list of flows instead of a table and whole frames instead of rewriting in place.
//!
//! What the contract leaves open is left open: where the client's port is not free on the way out,
//! any free one will do, and of several addresses a client may keep to any.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use engine::DropReason;
use policy::{Decision, Document, Facts, OnDeny};

use crate::frame::{ACK, Body, FIN, Frame, RST, SYN};
use crate::policy::evaluate;

/// Our stations, inside and outside.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Further than any window reaches.
pub const FAR: u32 = 1 << 30;
/// The station of every other address.
pub const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// What the reference node is: two arms, an address of each family on either, everything that is
/// not on the inside link reached through the outside one.
#[derive(Debug, Clone)]
pub struct Node {
    /// Addresses on the inside; hosts of its link share the first eight or 64 bits.
    pub inside: [IpAddr; 2],
    /// Addresses on the outside.
    pub outside: [IpAddr; 2],
    /// By family, the addresses that clients are translated to; without any they leave as they are.
    pub shown: [Vec<IpAddr>; 2],
    /// A client's port shows the same port to every server, and no other client shows it.
    pub independent: bool,
    /// It shares flows and ports out among several workers.
    pub shares: bool,
    /// Segments outside the window of their connection are dropped.
    pub checks_window: bool,
    /// Inside and outside prefix of 48 bits by which IPv6 clients are translated instead.
    pub prefixes: Option<[Ipv6Addr; 2]>,
}

impl Node {
    /// Whether an address is on the inside link.
    pub(crate) fn is_inside(&self, a: IpAddr) -> bool {
        match (a, self.inside) {
            (IpAddr::V4(a), [IpAddr::V4(n), _]) => a.octets()[0] == n.octets()[0],
            (IpAddr::V6(a), [_, IpAddr::V6(n)]) => a.octets()[..8] == n.octets()[..8],
            _ => false,
        }
    }

    /// Whether a client of this family appears under another address outside.
    pub(crate) fn hides(&self, v6: bool) -> bool {
        v6 && self.prefixes.is_some() || !self.shown[usize::from(v6)].is_empty()
    }

    /// What RFC 6296 makes of a client in the inside prefix: the subnet takes up what the prefixes
    /// differ by, so that the sum stays. All ones never appears.
    fn translate_prefix(&self, client: IpAddr) -> Option<IpAddr> {
        let ([inside, outside], IpAddr::V6(a)) = (self.prefixes?, client) else {
            return None;
        };
        let sum = |a: Ipv6Addr| a.segments().iter().map(|w| i64::from(*w)).sum::<i64>();
        let mut words = a.segments();
        let subnet = i64::from(words[3]) + sum(inside) - sum(outside);
        words[..3].copy_from_slice(&outside.segments()[..3]);
        words[3] = subnet.rem_euclid(0xffff) as u16;
        Some(Ipv6Addr::from(words).into())
    }
}

/// A policy as the reference reads it: naively, from the document.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What it says.
    pub document: Document,
    /// Its number, of its own.
    pub revision: u64,
}

/// An ICMP error, and the packet of which it quotes the beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Who sends it.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type and code.
    pub kind: (u8, u8),
    /// The second word of the header.
    pub rest: u32,
    /// The packet that it is about, as its sender met it.
    pub quoted: Frame,
    /// So many bytes of it from its IP header on, if it has as many.
    pub len: usize,
}

impl Report {
    /// The frame that carries it.
    pub fn frame(&self) -> Frame {
        let quoted = self.quoted.emit();
        let end = quoted.len().min(14 + self.len);
        let (icmp_type, code) = self.kind;
        let quoted = &quoted[14..end];
        Frame::icmp(self.src, self.dst, icmp_type, code, self.rest, quoted).with_ttl(self.ttl)
    }
}

/// What must come of a frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// It leaves by this port, exactly so.
    Sent(usize, Frame),
    /// It opens a flow and leaves by this port of the node, like this but from where the engine chooses, which
    /// [`Reference::learn`] has to be told.
    SentFromAny(usize, Frame),
    /// It is dropped for this reason, and these frames are sent.
    Dropped(DropReason, Vec<(usize, Frame)>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum TcpState {
    SynSent,
    SynReceived,
    Established,
    Closing,
    TimeWait,
    Reset,
}

#[derive(Debug, Clone)]
struct Tcp {
    state: TcpState,
    /// Behind the last byte of client and server.
    end: [u32; 2],
    /// Which of them have sent anything.
    heard: [bool; 2],
    fin: [bool; 2],
    fin_acked: [bool; 2],
    reset_by: usize,
}

#[derive(Debug, Clone)]
struct Flow {
    proto: u8,
    icmp: Option<(u8, u8)>,
    client: SocketAddr,
    server: SocketAddr,
    shown: SocketAddr,
    /// Ports of the node that lead to client and server.
    sides: [usize; 2],
    judged_by: u64,
    last_seen: u64,
    tcp: Option<Tcp>,
}

/// The reference itself.
#[derive(Debug)]
pub struct Reference {
    node: Node,
    policy: Policy,
    flows: Vec<Flow>,
    /// Which of several addresses a client keeps to.
    homes: HashMap<IpAddr, IpAddr>,
}

/// A moment as the engine counts it: 2^26 ns.
fn tick(now_ns: u64) -> u64 {
    now_ns >> 26
}

fn ticks(time: Duration) -> u64 {
    (time.as_nanos() as u64).div_ceil(1 << 26)
}

impl Flow {
    /// The default idle times.
    fn idle(&self) -> Duration {
        Duration::from_secs(match (self.proto, self.tcp.as_ref().map(|t| t.state)) {
            (_, Some(TcpState::SynSent)) => 30,
            (_, Some(TcpState::SynReceived)) => 60,
            (_, Some(TcpState::Established)) => 7440,
            (_, Some(TcpState::Closing)) => 240,
            (_, Some(TcpState::TimeWait)) => 120,
            (_, Some(TcpState::Reset)) => 10,
            (17, _) => 300,
            (1 | 58, _) => 60,
            _ => 600,
        })
    }
}

/// The tuple of a frame; an ICMP identifier stands for the port of the side that asks.
pub(crate) fn tuple(f: &Frame) -> (u8, SocketAddr, SocketAddr) {
    let (proto, s, d) = match &f.body {
        Body::Tcp {
            src_port, dst_port, ..
        } => (6, *src_port, *dst_port),
        Body::Udp {
            src_port, dst_port, ..
        } => (17, *src_port, *dst_port),
        Body::Icmp {
            icmp_type, rest, ..
        } => {
            let id = (rest >> 16) as u16;
            let proto = if f.src.is_ipv4() { 1 } else { 58 };
            if matches!(icmp_type, 8 | 128) {
                (proto, id, 0)
            } else {
                (proto, 0, id)
            }
        }
        Body::Other { proto, .. } => (*proto, 0, 0),
    };
    (proto, (f.src, s).into(), (f.dst, d).into())
}

/// Whether a client's port, or the identifier of its queries, may be changed on the way out.
fn has_ports(proto: u8) -> bool {
    matches!(proto, 1 | 6 | 17 | 58)
}

/// The same frame between other ends.
fn between(f: &Frame, src: SocketAddr, dst: SocketAddr) -> Frame {
    let mut f = f.clone();
    (f.src, f.dst) = (src.ip(), dst.ip());
    match &mut f.body {
        Body::Tcp {
            src_port, dst_port, ..
        }
        | Body::Udp {
            src_port, dst_port, ..
        } => {
            (*src_port, *dst_port) = (src.port(), dst.port());
        }
        Body::Icmp {
            icmp_type, rest, ..
        } => {
            let id = if matches!(*icmp_type, 8 | 128) {
                src.port()
            } else {
                dst.port()
            };
            *rest = *rest & 0xffff | u32::from(id) << 16;
        }
        Body::Other { .. } => {}
    }
    f
}

impl Reference {
    /// A node without flows.
    pub fn new(node: Node, policy: Policy) -> Reference {
        Reference {
            node,
            policy,
            flows: Vec::new(),
            homes: HashMap::new(),
        }
    }

    /// Another policy from now on.
    pub fn publish(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes what the engine chose that the flow shows which was opened last; the frame as it must leave from there.
    ///
    /// # Errors
    /// It is not to be had.
    pub fn learn(&mut self, shown: SocketAddr, f: &Frame) -> Result<Frame, String> {
        let flow = self.flows.pop().ok_or("no flow was opened")?;
        let (proto, client, server) = (flow.proto, flow.client, flow.server);
        let among = self.addresses(proto, client, server);
        let kept = (shown.ip(), client.port()).into();
        let is_right = match self.must_keep(proto, client, server, shown.ip()) {
            true => shown == kept,
            false => shown.port() >= 1024 && !self.is_taken(proto, client, server, shown),
        };
        if !is_right || !among.contains(&shown.ip()) {
            return Err(format!("{shown} is not to be had, of {among:?}"));
        }
        if among == self.node.shown[usize::from(client.is_ipv6())] {
            self.homes.entry(client.ip()).or_insert(shown.ip());
        }
        self.flows.push(Flow { shown, ..flow });
        Ok(between(f, shown, server))
    }

    /// Addresses one of which a new flow shows: the one that its client keeps to, or any if that is not known or not to be
    /// had. An address always has a port left, but protocols without ports can show each only once to a server.
    fn addresses(&self, proto: u8, client: SocketAddr, server: SocketAddr) -> Vec<IpAddr> {
        let is_free = |a: &IpAddr| has_ports(proto) || self.keeps_port(proto, client, server, *a);
        match self.homes.get(&client.ip()) {
            Some(home) if is_free(home) => vec![*home],
            _ => {
                let all = &self.node.shown[usize::from(client.is_ipv6())];
                all.iter().copied().filter(is_free).collect()
            }
        }
    }

    /// Whether it has to keep it there. Of several workers each can keep only some of the ports that systems do not choose
    /// for clients.
    fn must_keep(&self, proto: u8, client: SocketAddr, server: SocketAddr, a: IpAddr) -> bool {
        let is_kept = !self.node.shares || !has_ports(proto) || client.port() >= 10_000;
        is_kept && self.keeps_port(proto, client, server, a)
    }

    /// Whether a new flow can keep its client's port at this address, or the protocol has none and the address is free.
    fn keeps_port(&self, proto: u8, client: SocketAddr, server: SocketAddr, a: IpAddr) -> bool {
        let kept = (a, client.port()).into();
        let may_keep = client.port() != 0 || !has_ports(proto);
        may_keep && !self.is_taken(proto, client, server, kept)
    }

    /// Whether no two flows look the same to a server: what it answers has one client.
    pub fn is_bijective(&self) -> bool {
        let mut seen = HashSet::new();
        let outside = self.flows.iter().filter(|f| f.sides[1] == 1);
        outside
            .map(|f| (f.proto, f.server, f.shown))
            .all(|key| seen.insert(key))
    }

    fn is_taken(
        &self,
        proto: u8,
        client: SocketAddr,
        server: SocketAddr,
        shown: SocketAddr,
    ) -> bool {
        self.flows.iter().any(|f| {
            f.proto == proto
                && (f.server == server && f.shown == shown
                    || f.client == server && f.server == shown
                    || self.node.independent
                        && has_ports(proto)
                        && f.shown == shown
                        && f.client != client)
        })
    }

    /// What a client shows already, if it has to show the same to all.
    fn mapped(&self, proto: u8, client: SocketAddr) -> Option<SocketAddr> {
        let translated = |f: &&Flow| f.proto == proto && f.client == client && f.shown != client;
        let flow = self.flows.iter().find(translated)?;
        (self.node.independent && has_ports(proto)).then_some(flow.shown)
    }

    fn is_ours(&self, a: IpAddr) -> bool {
        let n = &self.node;
        n.inside.contains(&a) || n.outside.contains(&a) || n.shown.iter().flatten().any(|s| *s == a)
    }

    /// The flow of a packet between these, and whether its client or its server sent it.
    fn find(&self, proto: u8, src: SocketAddr, dst: SocketAddr) -> Option<(usize, usize)> {
        let position = |ends: fn(&Flow) -> (SocketAddr, SocketAddr)| {
            let mut flows = self.flows.iter();
            flows.position(|f| f.proto == proto && ends(f) == (src, dst))
        };
        let of_client = position(|f| (f.client, f.server)).map(|i| (i, 0));
        of_client.or(position(|f| (f.server, f.shown)).map(|i| (i, 1)))
    }

    /// What must come of an ICMP error that arrives on a port: it reaches the sender of the packet that it is about, and
    /// quotes that as it was sent. It says nothing about how long a flow lives (RFC 5508, REQ-3 and REQ-5).
    pub fn receive_error(&mut self, now_ns: u64, port: usize, error: &Report) -> Expected {
        let now = tick(now_ns);
        let drop = |reason| Expected::Dropped(reason, Vec::new());
        self.flows.retain(|f| now - f.last_seen < ticks(f.idle()));
        let (proto, src, dst) = tuple(&error.quoted);
        // Who reports stands where the packet went.
        let Some((i, from)) = self.find(proto, dst, src) else {
            return drop(DropReason::IcmpNoFlow);
        };
        let flow = self.flows[i].clone();
        if flow.sides[from] != port {
            return drop(DropReason::Martian);
        }
        if self.judge_again(i).is_some() {
            return drop(DropReason::PolicyChanged);
        }
        if error.ttl <= 1 {
            return drop(DropReason::TtlExceeded);
        }
        if error.dst != src.ip() {
            return drop(DropReason::IcmpNoFlow);
        }
        let mut sent = error.clone();
        if from == 0 {
            // Whoever of the inside reports is seen as the client is.
            if flow.shown != flow.client {
                sent.src = flow.shown.ip();
            }
            sent.quoted = between(&error.quoted, flow.server, flow.shown);
        } else {
            sent.dst = flow.client.ip();
            sent.quoted = between(&error.quoted, flow.client, flow.server);
        }
        sent.ttl -= 1;
        let out = flow.sides[1 - from];
        Expected::Sent(out, sent.frame().between(MACS[out], PEER))
    }

    /// Judges a flow by the policy of now, if it was judged by another. What it says if the flow ends by it.
    fn judge_again(&mut self, i: usize) -> Option<Decision> {
        let flow = &mut self.flows[i];
        if flow.judged_by == self.policy.revision {
            return None;
        }
        flow.judged_by = self.policy.revision;
        let facts = facts(flow.proto, flow.client, flow.server, flow.icmp);
        let decision = evaluate(&self.policy.document, &facts);
        if decision.allow {
            return None;
        }
        self.flows.remove(i);
        Some(decision)
    }

    /// What must come of any other frame that arrives on a port.
    pub fn receive(&mut self, now_ns: u64, port: usize, f: &Frame) -> Expected {
        let now = tick(now_ns);
        let (proto, src, dst) = tuple(f);
        self.flows.retain(|f| now - f.last_seen < ticks(f.idle()));

        if let Some((i, from)) = self.find(proto, src, dst) {
            let flow = &self.flows[i];
            if flow.sides[from] != port {
                return Expected::Dropped(DropReason::Martian, Vec::new());
            }
            let ended = flow.tcp.as_ref().is_some_and(|t| {
                matches!(t.state, TcpState::TimeWait | TcpState::Reset)
                    || t.state == TcpState::Closing && t.fin == [true, true]
            });
            if ended && flags(f) & (SYN | ACK) == SYN {
                if from == 1 && port == 1 {
                    return Expected::Dropped(DropReason::FromOutside, Vec::new());
                }
                self.flows.remove(i);
            } else {
                return self.continue_flow(now, port, f, i, from);
            }
        }
        self.open_flow(now, port, f)
    }

    fn continue_flow(
        &mut self,
        now: u64,
        port: usize,
        f: &Frame,
        i: usize,
        from: usize,
    ) -> Expected {
        let mut flow = self.flows[i].clone();
        let (_, src, dst) = tuple(f);
        let (new_src, new_dst) = if from == 0 {
            (flow.shown, flow.server)
        } else {
            (flow.server, flow.client)
        };
        if let Some(decision) = self.judge_again(i) {
            let mut resets = Vec::new();
            if flow.proto == 6 && decision.on_deny == OnDeny::Reset && flags(f) & RST == 0 {
                resets.push((flow.sides[from], reset_back(f, port)));
                let Body::Tcp {
                    seq, ack, flags, ..
                } = f.body
                else {
                    unreachable!("it is TCP")
                };
                let forward = Frame::tcp(new_src, new_dst, RST | flags & ACK, seq, ack, b"");
                let out = flow.sides[1 - from];
                resets.push((out, forward.between(MACS[out], PEER)));
            }
            return Expected::Dropped(DropReason::PolicyChanged, resets);
        }
        flow.judged_by = self.policy.revision;
        if let Some(expired) = self.ttl_ends(port, f) {
            return expired;
        }
        if let Some(tcp) = &mut flow.tcp {
            match self.node.checks_window && !tcp.is_in_window(from, f) {
                true if tcp.is_of_another(from, f) => {}
                true => return Expected::Dropped(DropReason::TcpWindow, Vec::new()),
                false => tcp.advance(from, f, self.node.checks_window),
            }
        }
        flow.last_seen = now;
        let out = flow.sides[1 - from];
        self.flows[i] = flow;
        let mut sent = if (new_src, new_dst) == (src, dst) {
            f.clone()
        } else {
            between(f, new_src, new_dst)
        };
        sent.ttl -= 1;
        Expected::Sent(out, sent.between(MACS[out], PEER))
    }

    fn open_flow(&mut self, now: u64, port: usize, f: &Frame) -> Expected {
        let (proto, src, dst) = tuple(f);
        let drop = |reason| Expected::Dropped(reason, Vec::new());
        // To what clients look like outside: out and back in, as far as this model goes to where nobody waits.
        let turns_back = port == 0
            && matches!(proto, 6 | 17)
            && self.node.shown.iter().flatten().any(|s| *s == dst.ip());
        if self.is_ours(dst.ip()) && !turns_back {
            if let Body::Icmp {
                icmp_type: 8 | 128,
                rest,
                ..
            } = f.body
            {
                let (id, seq) = ((rest >> 16) as u16, rest as u16);
                let reply = Frame::echo(f.dst, f.src, true, id, seq);
                return Expected::Sent(port, reply.between(MACS[port], PEER));
            }
            return drop(if port == 1 {
                DropReason::FromOutside
            } else {
                DropReason::LocalUnserved
            });
        }
        if port == 1 {
            return drop(DropReason::FromOutside);
        }
        if self.is_ours(src.ip()) || !self.node.is_inside(src.ip()) {
            return drop(DropReason::Martian);
        }
        if proto == 6 && flags(f) & (SYN | ACK) != SYN {
            let resets = if flags(f) & RST == 0 {
                vec![(port, reset_back(f, port))]
            } else {
                Vec::new()
            };
            return Expected::Dropped(DropReason::NoFlow, resets);
        }
        let icmp = match f.body {
            Body::Icmp {
                icmp_type: 0 | 129, ..
            } => return drop(DropReason::NoFlow),
            Body::Icmp {
                icmp_type, code, ..
            } => Some((icmp_type, code)),
            _ => None,
        };
        if let Some(expired) = self.ttl_ends(port, f) {
            return expired;
        }
        let decision = evaluate(&self.policy.document, &facts(proto, src, dst, icmp));
        if !decision.allow {
            let reset = proto == 6 && decision.on_deny == OnDeny::Reset;
            let resets = if reset {
                vec![(port, reset_back(f, port))]
            } else {
                Vec::new()
            };
            return Expected::Dropped(DropReason::PolicyDenied, resets);
        }
        let out = usize::from(!self.node.is_inside(dst.ip()));
        let mut shown = src;
        let mut is_told = true;
        if out == 1 {
            if let Some(address) = self.node.translate_prefix(src.ip()) {
                shown.set_ip(address);
            } else if let Some(mapped) = self.mapped(proto, src) {
                shown = mapped;
            } else if self.node.hides(src.is_ipv6()) {
                let among = self.addresses(proto, src, dst);
                let Some(first) = among.first() else {
                    return drop(DropReason::NatPortsExhausted);
                };
                is_told = among.len() == 1 && self.must_keep(proto, src, dst, *first);
                shown.set_ip(*first);
            }
        }
        let tcp = (proto == 6).then(|| Tcp::new(f));
        self.flows.push(Flow {
            proto,
            icmp,
            client: src,
            server: dst,
            shown,
            sides: [port, out],
            judged_by: self.policy.revision,
            last_seen: now,
            tcp,
        });
        if turns_back {
            return drop(DropReason::HairpinNoFlow);
        }
        let mut sent = between(f, shown, dst);
        sent.ttl -= 1;
        let sent = sent.between(MACS[out], PEER);
        if is_told {
            Expected::Sent(out, sent)
        } else {
            Expected::SentFromAny(out, sent)
        }
    }

    /// The report of a hop limit that ends here.
    fn ttl_ends(&self, port: usize, f: &Frame) -> Option<Expected> {
        if f.ttl > 1 {
            return None;
        }
        let ours = if port == 0 {
            self.node.inside
        } else {
            self.node.outside
        };
        let v6 = f.src.is_ipv6();
        let error = Frame::icmp(
            ours[usize::from(v6)],
            f.src,
            if v6 { 3 } else { 11 },
            0,
            0,
            &f.emit()[14..],
        );
        let mut error = error.between(MACS[port], PEER);
        error.df = v6;
        Some(Expected::Dropped(
            DropReason::TtlExceeded,
            vec![(port, error)],
        ))
    }
}

impl Tcp {
    fn new(syn: &Frame) -> Tcp {
        let mut tcp = Tcp {
            state: TcpState::SynSent,
            end: [0; 2],
            heard: [true, false],
            fin: [false; 2],
            fin_acked: [false; 2],
            reset_by: 0,
        };
        tcp.end[0] = end(syn);
        tcp
    }

    /// Whether a segment may be of this connection: it acknowledges no more than the other end has sent, and is not far
    /// from where its own end stands. How far is left open: what is sent here is either near, or beyond every window.
    fn is_in_window(&self, from: usize, f: &Frame) -> bool {
        let Body::Tcp {
            seq, ack, flags, ..
        } = f.body
        else {
            return true;
        };
        let distance = |to: u32, end: u32| to.wrapping_sub(end) as i32;
        let peer = 1 - from;
        let acknowledges = flags & ACK != 0 && self.heard[peer];
        let was_sent = !acknowledges || distance(ack, self.end[peer]) <= 0;
        was_sent && (!self.heard[from] || distance(seq, self.end[from]).abs() < FAR as i32)
    }

    /// Whether a segment outside the window is about a connection on the same ports that the server alone still knows:
    /// it says what it has of that, and the client that it is over (RFC 9293 §3.5.1). Both have to pass.
    fn is_of_another(&self, from: usize, f: &Frame) -> bool {
        let is_said = match from {
            0 => flags(f) & RST != 0,
            _ => flags(f) & (SYN | FIN | RST | ACK) == ACK,
        };
        self.state == TcpState::SynSent && is_said
    }

    fn advance(&mut self, from: usize, f: &Frame, is_wary: bool) {
        let Body::Tcp {
            seq, ack, flags, ..
        } = f.body
        else {
            return;
        };
        let has = |flag| flags & flag != 0;
        let peer = 1 - from;
        let refuses = has(RST) && has(ACK);
        if from == 1 && self.state == TcpState::SynSent && !has(SYN) && !refuses {
            return;
        }
        if has(RST) {
            // It may be a guess, unless it has the next number or acknowledges the last one.
            let is_next = !self.heard[from] || seq == self.end[from];
            let has_all = has(ACK) && self.heard[peer] && ack == self.end[peer];
            if is_next || has_all || !is_wary {
                self.state = TcpState::Reset;
                self.reset_by = from;
            }
            return;
        }
        if !self.heard[from] || (end(f).wrapping_sub(self.end[from]) as i32) > 0 {
            self.end[from] = end(f);
            self.heard[from] = true;
        }
        if has(SYN) {
            if from == 1 && self.state == TcpState::SynSent {
                self.state = TcpState::SynReceived;
            }
        } else if has(ACK) {
            if from == 0 && self.state == TcpState::SynReceived {
                self.state = TcpState::Established;
            }
            if self.state == TcpState::Reset && self.reset_by == from {
                let closing = self.fin[0] || self.fin[1];
                self.state = if closing {
                    TcpState::Closing
                } else {
                    TcpState::Established
                };
            }
        }
        let open = [
            TcpState::SynReceived,
            TcpState::Established,
            TcpState::Closing,
        ];
        if has(FIN) && open.contains(&self.state) {
            self.fin[from] = true;
            self.state = TcpState::Closing;
        }
        if has(ACK) && self.fin[peer] && (ack.wrapping_sub(self.end[peer]) as i32) >= 0 {
            self.fin_acked[peer] = true;
        }
        if self.state == TcpState::Closing && self.fin_acked == [true, true] {
            self.state = TcpState::TimeWait;
        }
    }
}

fn flags(f: &Frame) -> u8 {
    match f.body {
        Body::Tcp { flags, .. } => flags,
        _ => 0,
    }
}

/// The sequence number behind a segment.
fn end(f: &Frame) -> u32 {
    match &f.body {
        Body::Tcp {
            seq,
            flags,
            payload,
            ..
        } => {
            let extra = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            seq.wrapping_add(payload.len() as u32 + extra)
        }
        _ => 0,
    }
}

/// The reset that answers a segment.
fn reset_back(f: &Frame, port: usize) -> Frame {
    let (_, src, dst) = tuple(f);
    let Body::Tcp { ack, flags, .. } = f.body else {
        unreachable!("only TCP is reset")
    };
    let reset = if flags & ACK != 0 {
        Frame::tcp(dst, src, RST, ack, 0, b"")
    } else {
        Frame::tcp(dst, src, RST | ACK, 0, end(f), b"")
    };
    reset.between(MACS[port], PEER)
}

/// What a policy judges by.
pub(crate) fn facts(proto: u8, src: SocketAddr, dst: SocketAddr, icmp: Option<(u8, u8)>) -> Facts {
    let (src_port, dst_port) = if icmp.is_some() {
        (0, 0)
    } else {
        (src.port(), dst.port())
    };
    Facts {
        src: src.ip(),
        dst: dst.ip(),
        proto,
        src_port,
        dst_port,
        icmp,
    }
}
