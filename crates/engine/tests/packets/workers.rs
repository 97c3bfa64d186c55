//! Several workers of one node: each flow has one owner, whoever receives its packets.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::acquire::{Learned, Standing};
use engine::mesh::mesh;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::port::{Packet, PortId};
use engine::snapshot::{NatMapping, Nptv6, PortSettings, Settings, Snat};
use engine::{DropReason, NodeTally, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use sim::frame::{ACK, Body, Frame, SYN};

use crate::acquire;
use crate::bench::*;
use crate::fragments::split;

pub(crate) struct Team {
    pub(crate) settings: Settings,
    published: Arc<ArcSwap<Snapshot>>,
    pub(crate) workers: Vec<Worker<MemoryPort, MemoryPort>>,
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    pub(crate) askers: Vec<engine::look::Asker>,
    pub(crate) now: Now,
    /// Who receives the next frame: a linear congruence, so that every run is the same.
    draw: u32,
}

impl Team {
    pub(crate) fn new(count: u16, settings: Settings) -> Team {
        Team::with_tally(count, settings, None)
    }

    /// The same, whose workers count their flows together.
    pub(crate) fn with_tally(
        count: u16,
        settings: Settings,
        tally: Option<&Arc<NodeTally>>,
    ) -> Team {
        let port_count = settings.ports.len();
        let kept = settings.clone();
        let snapshot =
            Snapshot::new(1, compile(&allow_all(), 1), settings).expect("valid by construction");
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        let peers = mesh((0..count).map(|_| Box::new(|| ()) as _).collect());
        let (mut counters, mut askers) = (Vec::new(), Vec::new());
        let workers = (0..count).zip(peers).map(|(index, peers)| {
            counters.push(Arc::new(WorkerCounters::default()));
            let config = WorkerConfig {
                index,
                count,
                peers: Some(peers),
                seed: 7,
                flow_capacity: 4096,
                events: None,
            };
            let (asker, desk) = engine::look::channel();
            askers.push(asker);
            let worker = Worker::new(
                MACS.into_iter()
                    .take(port_count)
                    .map(|mac| MemoryPort::new(mac, 1500))
                    .collect(),
                Some(MemoryPort::new([0; 6], 65_535)),
                Arc::clone(&published),
                config,
                Arc::clone(&counters[usize::from(index)]),
            );
            let worker = worker.expect("valid by construction").with_desk(desk);
            match tally {
                Some(tally) => worker.with_tally(Arc::clone(tally)),
                None => worker,
            }
        });
        let workers = workers.collect();
        let mut team = Team {
            settings: kept,
            published,
            workers,
            counters,
            askers,
            now: Now(1_000_000_000),
            draw: 1,
        };
        team.exchange();
        team
    }

    fn reconfigure(&mut self, change: impl FnOnce(&mut Settings)) {
        let old = self.published.load_full();
        change(&mut self.settings);
        let next = old.with_settings(old.generation() + 1, self.settings.clone());
        let next = next.expect("valid by construction");
        self.published.store(Arc::new(next));
    }

    /// Some worker.
    pub(crate) fn any(&mut self) -> usize {
        self.draw = self
            .draw
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        (self.draw >> 16) as usize % self.workers.len()
    }

    fn receive(&mut self, worker: usize, port: usize, frame: Frame) {
        let bytes = frame.between(PEER, MACS[port]).emit();
        self.workers[worker].ports_mut()[port]
            .rx
            .push_back(MemoryPacket::new(bytes));
    }

    /// Gives a frame to some worker and returns what comes out anywhere.
    pub(crate) fn send(&mut self, port: usize, frame: Frame) -> Vec<(usize, Frame)> {
        let worker = self.any();
        self.receive(worker, port, frame);
        self.exchange()
    }

    pub(crate) fn one(&mut self, port: usize, frame: Frame) -> (usize, Frame) {
        let mut sent = self.send(port, frame);
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.pop().expect("valid by construction")
    }

    /// Polls all until nothing moves; neighbours answer to some worker, not always to the one that asked.
    fn exchange(&mut self) -> Vec<(usize, Frame)> {
        let parse = |(port, bytes): (usize, Vec<u8>)| {
            let frame = Frame::parse(&bytes).expect("valid by construction");
            (port, frame)
        };
        self.exchange_bytes().into_iter().map(parse).collect()
    }

    pub(crate) fn exchange_bytes(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let mut moved = false;
            for worker in 0..self.workers.len() {
                moved |= self.workers[worker].poll(self.now) > 0;
                for port in 0..self.workers[worker].ports().len() {
                    while let Some(packet) = self.workers[worker].ports_mut()[port].tx.pop_front() {
                        moved = true;
                        let Some(answer) = neighbor_answer(packet.bytes()) else {
                            sent.push((port, packet.bytes().to_vec()));
                            continue;
                        };
                        let receiver = self.any();
                        self.workers[receiver].ports_mut()[port]
                            .rx
                            .extend(answer.map(MemoryPacket::new));
                    }
                }
            }
            if !moved {
                return sent;
            }
        }
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.counters
            .iter()
            .map(|c| c.dropped(reason).packets.get())
            .sum()
    }

    pub(crate) fn active(&self) -> Vec<u64> {
        self.counters.iter().map(|c| c.flows_active.get()).collect()
    }
}

pub(crate) fn ports(frame: &Frame) -> (u16, u16) {
    match frame.body {
        Body::Tcp {
            src_port, dst_port, ..
        }
        | Body::Udp {
            src_port, dst_port, ..
        } => (src_port, dst_port),
        _ => panic!("{frame:?}"),
    }
}

#[test]
fn an_answer_finds_its_flow_whoever_receives_it() {
    for (client, server) in [
        ("10.0.0.2", "198.51.100.1"),
        ("fd00::2", "2001:db8:1::1"),
        // From inside to inside: not translated, both directions by the same port.
        ("10.0.0.2", "10.0.0.3"),
    ] {
        let mut team = Team::new(5, two_arms());
        let (client, server) = (ip(client), ip(server));
        let back_by = if server == ip("10.0.0.3") {
            INSIDE
        } else {
            OUTSIDE
        };
        for port in 2000..2300 {
            let question = Frame::udp((client, port).into(), (server, 53).into(), b"q");
            let (_, out) = team.one(INSIDE, question);
            let (shown, _) = ports(&out);
            let answer = Frame::udp((server, 53).into(), (out.src, shown).into(), b"a");
            let (by, back) = team.one(back_by, answer);
            assert_eq!((by, back.dst, ports(&back)), (INSIDE, client, (53, port)));
        }
        let active = team.active();
        assert_eq!(
            active.iter().sum::<u64>(),
            300,
            "one owner each: {active:?}"
        );
        assert!(active.iter().all(|n| *n > 20), "all take part: {active:?}");
    }
}

#[test]
fn a_shared_mapping_shows_every_server_one_port() {
    let settings = Settings {
        nat_mapping: NatMapping::EndpointIndependent,
        ..two_arms()
    };
    let mut team = Team::new(4, settings);
    for port in 2000..2100 {
        let shown = (1..=8).map(|n| {
            let server = at(&format!("198.51.100.{n}:53"));
            let client = at(&format!("10.0.0.2:{port}"));
            let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"q"));
            let shown = ports(&out).0;
            let answer = Frame::udp(server, (out.src, shown).into(), b"a");
            assert_eq!(team.one(OUTSIDE, answer).1.dst, client.ip());
            shown
        });
        assert_eq!(shown.collect::<BTreeSet<u16>>().len(), 1);
    }
}

#[test]
fn a_translated_prefix_leads_back_to_the_owner() {
    for nat66 in [None, Some(Snat::Auto)] {
        let settings = Settings {
            nptv6: Some(Nptv6 {
                inside: "fd00::/64".parse().expect("valid by construction"),
                outside: "2001:db8:77::/64".parse().expect("valid by construction"),
            }),
            nat66,
            ..two_arms()
        };
        let mut team = Team::new(4, settings);
        for port in (2000..2050).chain(40_000..40_050) {
            for service in [53, 51_820] {
                let client = at(&format!("[fd00::2]:{port}"));
                let server = at(&format!("[2001:db8:1::1]:{service}"));
                let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"q"));
                assert_ne!(out.src, client.ip());
                let answer = Frame::udp(server, (out.src, port).into(), b"a");
                assert_eq!(team.one(OUTSIDE, answer).1.dst, client.ip());
            }
        }
    }
}

/// A network that is translated to has addresses of its own: servers on the link outside, and clients inside that need no
/// translation.
#[test]
fn hosts_of_the_prefix_that_is_translated_to_are_answered_as_well() {
    let settings = Settings {
        nptv6: Some(Nptv6 {
            inside: "fd00::/48".parse().expect("valid by construction"),
            outside: "2001:db8::/48".parse().expect("valid by construction"),
        }),
        nat66: None,
        ..two_arms_with(&["2001:db8:0:5::/64"])
    };
    let mut team = Team::new(4, settings);
    let (neighbor, far) = (at("[2001:db8::99]:53"), at("[2001:db8:1::1]:53"));
    let (translated, own) = ("[fd00::2]", "[2001:db8:0:5::2]");
    for port in (2000..2030).chain(40_000..40_030) {
        for (client, server) in [(translated, neighbor), (translated, far), (own, far)] {
            let client = at(&format!("{client}:{port}"));
            let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"q"));
            let shown = (out.src, ports(&out).0).into();
            let (by, back) = team.one(OUTSIDE, Frame::udp(server, shown, b"a"));
            assert_eq!((by, back.dst), (INSIDE, client.ip()), "{client} > {server}");
        }
    }
}

#[test]
fn ports_that_systems_choose_are_kept_by_whichever_worker_has_the_flow() {
    let mut team = Team::new(3, two_arms());
    let mut by_worker = [0; 3];
    // As Linux chooses them: every second one first.
    for port in (40_000..40_200).step_by(2) {
        let client = at(&format!("10.0.0.2:{port}"));
        let server = at("198.51.100.1:443");
        let before = team.active();
        let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"q"));
        assert_eq!(ports(&out).0, port);
        let worker = team
            .active()
            .into_iter()
            .zip(before)
            .position(|(now, before)| now > before);
        by_worker[worker.expect("one has it")] += 1;
        let answer = Frame::udp(server, (out.src, port).into(), b"a");
        assert_eq!(team.one(OUTSIDE, answer).1.dst, client.ip());
    }
    assert!(by_worker.iter().all(|n| *n > 20), "{by_worker:?}");
}

#[test]
fn flows_stay_with_their_workers_while_there_is_no_address_and_no_way_out() {
    let mut settings = two_arms();
    settings.ports[1].acquires = true;
    let before = settings.ports.clone();
    let mut team = Team::new(4, settings);
    let flows = (40_000..40_040).map(|port| {
        let (client, server) = (at(&format!("10.0.0.2:{port}")), at("198.51.100.1:443"));
        (client, server, port)
    });
    for (client, server, _) in flows.clone() {
        team.one(INSIDE, Frame::tcp(client, server, SYN, 100, 0, b""));
        team.one(
            OUTSIDE,
            Frame::tcp(
                server,
                at(&format!("192.0.2.1:{}", client.port())),
                SYN | ACK,
                500,
                101,
                b"",
            ),
        );
    }
    team.reconfigure(|settings| {
        settings.ports[1].addresses.remove(0);
        settings.ports[1].gateways.remove(0);
    });
    for (client, server, _) in flows.clone() {
        // Not reset.
        assert_eq!(
            team.send(INSIDE, Frame::tcp(client, server, ACK, 101, 501, b"hello")),
            []
        );
    }
    assert_eq!(team.dropped(DropReason::NoNatAddress), 40);
    team.reconfigure(|settings| settings.ports = before);
    for (client, server, port) in flows {
        let (_, out) = team.one(INSIDE, Frame::tcp(client, server, ACK, 101, 501, b"hello"));
        assert_eq!(ports(&out).0, port);
    }
}

#[test]
fn a_connection_is_followed_whoever_receives_its_segments() {
    let settings = Settings {
        tcp_window_check: true,
        ..two_arms()
    };
    let mut team = Team::new(3, settings);
    for port in 3000..3050 {
        let client = at(&format!("10.0.0.2:{port}"));
        let server = at("198.51.100.1:443");
        let (_, out) = team.one(INSIDE, Frame::tcp(client, server, SYN, 100, 0, b""));
        let shown = (out.src, ports(&out).0).into();
        let (_, back) = team.one(OUTSIDE, Frame::tcp(server, shown, SYN | ACK, 500, 101, b""));
        assert_eq!(ports(&back).1, port);
        team.one(INSIDE, Frame::tcp(client, server, ACK, 101, 501, b"hello"));
        team.one(OUTSIDE, Frame::tcp(server, shown, ACK, 501, 106, b"world"));
        // Nobody else's.
        let stray = Frame::tcp(server, shown, ACK, 9_000_501, 106, b"");
        assert_eq!(team.send(OUTSIDE, stray), []);
    }
    assert_eq!(team.dropped(DropReason::TcpWindow), 50);
}

#[test]
fn an_icmp_error_finds_the_flow_that_it_is_about() {
    let mut team = Team::new(4, two_arms());
    for port in 4000..4040 {
        let client = at(&format!("10.0.0.2:{port}"));
        let (_, out) = team.one(
            INSIDE,
            Frame::udp(client, at("198.51.100.1:53"), b"question"),
        );
        let quoted = &out.emit()[14..];
        let error = Frame::icmp(ip("198.51.100.7"), out.src, 3, 1, 0, quoted);
        let (by, back) = team.one(OUTSIDE, error);
        assert_eq!((by, back.dst), (INSIDE, client.ip()));
    }
}

/// With one arm, a router next to us is inside; the flow that it speaks of is not one of its own.
#[test]
fn an_icmp_error_of_the_nearest_router_finds_the_flow_that_it_is_about() {
    for nat_mapping in [
        NatMapping::EndpointIndependent,
        NatMapping::AddressAndPortDependent,
    ] {
        let settings = Settings {
            nat_mapping,
            ..one_arm()
        };
        let mut team = Team::new(4, settings);
        for port in (4000..4020).chain(40_000..40_020) {
            let client = at(&format!("10.0.0.2:{port}"));
            let (_, out) = team.one(
                INSIDE,
                Frame::udp(client, at("198.51.100.1:53"), b"question"),
            );
            assert_eq!(out.src, ip("10.0.0.1"));
            let error = Frame::icmp(ip("10.0.0.254"), out.src, 3, 4, 1400, &out.emit()[14..]);
            let (_, back) = team.one(INSIDE, error);
            assert_eq!(back.dst, client.ip());
        }
    }
}

/// Where a node has one address for all.
#[test]
fn answers_to_an_address_that_the_host_serves_as_well_find_their_flows() {
    for nat_mapping in [
        NatMapping::EndpointIndependent,
        NatMapping::AddressAndPortDependent,
    ] {
        let mut settings = Settings {
            nat_mapping,
            ..one_arm()
        };
        settings.services[0].address = ip("10.0.0.1");
        let mut team = Team::new(4, settings);
        let clients = (4000..4020).chain(40_000..40_020);
        for port in clients.clone() {
            let client = at(&format!("10.0.0.2:{port}"));
            let server = at("198.51.100.1:443");
            let (_, out) = team.one(INSIDE, Frame::tcp(client, server, SYN, 1, 0, b""));
            let shown = (out.src, ports(&out).0).into();
            let answer = Frame::tcp(server, shown, SYN | ACK, 9, 2, b"");
            assert_eq!(team.one(INSIDE, answer).1.dst, client.ip());
        }
        // A resolver that asks from the port at which the host serves is shown by another.
        for host in 3..43 {
            let client = at(&format!("10.0.0.{host}:53"));
            let server = at("198.51.100.1:53");
            let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"q"));
            let shown = (out.src, ports(&out).0).into();
            assert_eq!(
                team.one(INSIDE, Frame::udp(server, shown, b"a")).1.dst,
                client.ip()
            );
        }
        // What it serves still goes to the host, which is behind the first worker.
        for port in clients {
            let client = at(&format!("10.0.0.2:{port}"));
            let worker = team.any();
            team.receive(worker, INSIDE, Frame::udp(client, at("10.0.0.1:53"), b"q"));
            assert_eq!(team.exchange(), []);
        }
        let lane = |worker: &mut Worker<MemoryPort, MemoryPort>| {
            worker.lane_mut().expect("valid by construction").tx.len()
        };
        let lanes: Vec<usize> = team.workers.iter_mut().map(lane).collect();
        assert_eq!(lanes, [40, 0, 0, 0]);
    }
}

#[test]
fn echo_goes_out_and_back_and_our_own_address_answers() {
    let mut team = Team::new(4, two_arms());
    for id in 1..40u32 {
        let client = ip("10.0.0.2");
        let server = ip("198.51.100.1");
        let (_, out) = team.one(
            INSIDE,
            Frame::icmp(client, server, 8, 0, id << 16 | 1, b"x"),
        );
        let Body::Icmp { rest, .. } = out.body else {
            panic!("{out:?}")
        };
        let (by, back) = team.one(OUTSIDE, Frame::icmp(server, out.src, 0, 0, rest, b"x"));
        assert_eq!((by, back.dst), (INSIDE, client));
        let (by, back) = team.one(
            INSIDE,
            Frame::icmp(client, ip("10.0.0.1"), 8, 0, id << 16, b""),
        );
        assert_eq!((by, back.dst), (INSIDE, client));
    }
}

/// The first worker asks; what a server says reaches it by whomever it is received.
#[test]
fn the_worker_that_asks_for_addresses_is_answered() {
    let mut settings = two_arms();
    settings.ports[OUTSIDE] = PortSettings {
        acquires: true,
        ..PortSettings::default()
    };
    let mut team = Team::new(3, settings);
    let learned = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&learned);
    let tell = move |now: &[Learned]| *told.lock().expect("one thread") = now.to_vec();
    team.workers[0].acquire(vec![(PortId(1), acquire::config())], tell);
    let mut asked = Vec::new();
    for (kind, to) in [(2, "10.0.0.77:68"), (5, "255.255.255.255:68")] {
        for _ in 0..30 {
            asked.extend(team.exchange_bytes());
            team.now = team.now + Duration::from_millis(10);
        }
        let is_dhcp = |(_, b): &&(usize, Vec<u8>)| b.len() > 300 && b[34..38] == [0, 68, 0, 67];
        let (_, last) = asked.iter().rfind(is_dhcp).expect("it asks");
        let xid = last[46..50].try_into().expect("four bytes");
        let said = acquire::answer(xid, MACS[OUTSIDE], kind, &[]);
        // Any but the one that asks.
        team.receive(2, OUTSIDE, Frame::udp(at("10.0.0.254:67"), at(to), &said));
    }
    team.exchange_bytes();
    // It was granted, and tried; but the bench's neighbour has every address, and says so to some worker.
    let learned = learned.lock().expect("one thread");
    assert_eq!(
        (learned[0].standing, learned[0].duplicates),
        (Standing::Taken, 1)
    );
}

/// A provider has changed the network: the old address is kept, and used for new flows no more.
#[test]
fn flows_by_an_address_that_is_no_longer_preferred_go_on() {
    let (old, new) = ("2001:db8::1/64", "2001:db8:0:1::1/64");
    let nets = |nets: [&str; 2]| nets.map(|net| net.parse().expect("a constant")).to_vec();
    let mut settings = two_arms();
    settings.nat66 = Some(Snat::Auto);
    settings.ports[OUTSIDE].addresses = nets([old, new]);
    settings.ports[OUTSIDE].gateways = vec![ip("2001:db8::fe")];
    settings.snat = Snat::None;
    let mut team = Team::new(4, settings);
    let server = at("[2001:db8:9::1]:53");
    let shown: Vec<_> = (0..40)
        .map(|n| {
            let client = at(&format!("[fd00::{n:x}:2]:5000"));
            let (_, sent) = team.one(INSIDE, Frame::udp(client, server, b"q"));
            assert_eq!(sent.src, ip("2001:db8::1"));
            (client, (sent.src, ports(&sent).0).into())
        })
        .collect();
    team.reconfigure(|s| s.ports[OUTSIDE].addresses = nets([new, old]));
    for (client, shown) in shown {
        let (_, back) = team.one(OUTSIDE, Frame::udp(server, shown, b"a"));
        assert_eq!(back.dst, client.ip());
    }
    let other = at("[fd00::1:2]:6000");
    let (_, sent) = team.one(INSIDE, Frame::udp(other, server, b"q"));
    assert_eq!(sent.src, ip("2001:db8:0:1::1"));
}

#[test]
fn a_false_gateway_is_counted_once_for_all_workers() {
    let mut settings = two_arms();
    settings.ports[OUTSIDE].gateway_mac = Some([2, 0, 0, 0, 0, 0x42]);
    let mut team = Team::new(3, settings);
    for (client, server) in [
        ("10.0.0.2:5000", "198.51.100.1:53"),
        ("[fd00::2]:5000", "[2001:db8:1::1]:53"),
    ] {
        let question = Frame::udp(at(client), at(server), b"q");
        assert_eq!(team.send(INSIDE, question), []);
    }
    let counted = team.counters.iter().map(|c| c.gateway_untrusted.get());
    assert_eq!(counted.sum::<u64>(), 2);
}

#[test]
fn a_dhcp_client_behind_us_is_answered_whoever_owns_its_flow() {
    let settings = Settings {
        snat: Snat::None,
        ..two_arms()
    };
    let mut team = Team::new(4, settings);
    for n in 100..160 {
        let client = at(&format!("10.0.0.{n}:68"));
        let server = at("198.51.100.1:67");
        team.one(INSIDE, Frame::udp(client, server, b"request"));
        let said = acquire::answer([0; 4], [2, 0, 0, 0, 1, n], 5, &[]);
        let (by, back) = team.one(OUTSIDE, Frame::udp(server, client, &said));
        assert_eq!((by, back.dst), (INSIDE, client.ip()));
        let pieces = split(
            OUTSIDE,
            &Frame::udp(server, client, &said),
            u32::from(n),
            &[200],
        );
        for piece in pieces {
            let worker = team.any();
            team.workers[worker].ports_mut()[OUTSIDE]
                .rx
                .push_back(MemoryPacket::new(piece));
        }
        assert_eq!(team.exchange_bytes().len(), 2, "in pieces too");
    }
}

#[test]
fn what_the_host_serves_goes_through_the_worker_with_the_lane() {
    let mut team = Team::new(3, two_arms());
    for port in 5000..5020 {
        let worker = team.any();
        let client = at(&format!("10.0.0.2:{port}"));
        team.receive(worker, INSIDE, Frame::udp(client, at("10.0.0.53:53"), b"q"));
        assert_eq!(team.exchange(), []);
    }
    let lane = |worker: &mut Worker<MemoryPort, MemoryPort>| {
        worker.lane_mut().expect("valid by construction").tx.len()
    };
    let lanes: Vec<usize> = team.workers.iter_mut().map(lane).collect();
    assert_eq!(lanes, [20, 0, 0]);
}

/// A small question leads to one worker, and the pieces of its answer may come to any.
#[test]
fn pieces_come_together_and_reach_the_owner_of_their_flow() {
    for (client, server) in [("10.0.0.2", "198.51.100.1"), ("fd00::2", "2001:db8:1::1")] {
        let mut team = Team::new(4, two_arms());
        for port in 6000..6050 {
            let client = (ip(client), port).into();
            let server = (ip(server), 53).into();
            let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"question"));
            let shown = (out.src, ports(&out).0).into();
            let answer = Frame::udp(server, shown, &[7; 2500]);
            for piece in split(OUTSIDE, &answer, u32::from(port), &[1000, 2000]) {
                let worker = team.any();
                team.workers[worker].ports_mut()[OUTSIDE]
                    .rx
                    .push_back(MemoryPacket::new(piece));
            }
            let sent = team.exchange_bytes();
            assert_eq!(sent.len(), 3, "in as many pieces as it came in");
            assert!(sent.iter().all(|(port, _)| *port == INSIDE));
        }
    }
}

#[test]
fn a_worker_that_is_too_slow_loses_frames_and_they_are_counted() {
    let mut team = Team::new(2, two_arms());
    // So that no frame waits for its next hop below.
    for port in 1..=20 {
        team.send(
            INSIDE,
            Frame::udp((ip("fd00::3"), port).into(), at("[2001:db8:1::1]:53"), b"q"),
        );
    }
    // Frames of flows of either worker, all received by the first, while the second does nothing.
    for port in 1..=2000 {
        let frame = Frame::udp((ip("fd00::2"), port).into(), at("[2001:db8:1::1]:53"), b"q");
        team.receive(0, INSIDE, frame);
        team.workers[0].poll(team.now);
    }
    let handed = team.counters[0].handed_over.packets.get();
    let lost = team.dropped(DropReason::WorkerQueueFull);
    assert!(handed > 256 && lost > 256, "{handed} {lost}");
    let sent = team.exchange();
    assert_eq!(sent.len() as u64, 2000 - lost, "the rest arrives");
    // There is room again.
    team.one(
        INSIDE,
        Frame::udp(at("[fd00::2]:1"), at("[2001:db8:1::1]:53"), b"q"),
    );
    assert_eq!(team.dropped(DropReason::WorkerQueueFull), lost);
}
