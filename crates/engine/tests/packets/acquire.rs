//! Addresses that a port gets by itself, against a DHCP server and routers that are played by hand, hostile ones among
//! them; and what becomes of flows when addresses change.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bench::*;
use super::tcp;
use engine::acquire::{Config, DhcpConfig, Held, Learned, Stable, Standing};
use engine::port::memory::MemoryPacket;
use engine::port::{Packet, PortId};
use engine::snapshot::{Settings, Snat};
use engine::{DropReason, Now};
use sim::frame::{ACK, Body, Frame, RST};

const SERVER: [u8; 4] = [10, 0, 0, 254];
const ADDRESS: [u8; 4] = [10, 0, 0, 77];
const ALL: [u8; 6] = [0xff; 6];

pub(crate) fn config() -> Config {
    Config {
        dhcp: DhcpConfig {
            timeout: Duration::from_secs(5),
            retry_max: 5,
            lease_min: Duration::from_secs(60),
            server_ip: None,
            server_mac: None,
            remembered: None,
        },
        stable: Stable {
            interface: "eth1".into(),
            secret: [7; 16],
        },
        router_mac: None,
        held: None,
    }
}

/// What the DHCP server says to the client with this hardware address: the type of the message, and further options.
pub(crate) fn answer(xid: [u8; 4], client: [u8; 6], kind: u8, options: &[u8]) -> Vec<u8> {
    let mut b = vec![0; 240];
    b[..4].copy_from_slice(&[2, 1, 6, 0]);
    b[4..8].copy_from_slice(&xid);
    b[16..20].copy_from_slice(&ADDRESS);
    b[28..34].copy_from_slice(&client);
    b[236..].copy_from_slice(&[99, 130, 83, 99]);
    b.extend([53, 1, kind, 54, 4]);
    b.extend(SERVER);
    b.extend([51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 3, 4]);
    b.extend(SERVER);
    b.extend(options);
    b.push(255);
    b
}

/// One arm without addresses, whose worker asks for them.
struct Link {
    bench: Bench,
    learned: Arc<Mutex<Vec<Learned>>>,
    xid: [u8; 4],
}

impl Link {
    fn new(config: Config) -> Link {
        let mut settings = one_arm();
        settings.ports[0].addresses.clear();
        settings.ports[0].gateways.clear();
        settings.ports[0].acquires = true;
        let mut bench = Bench::new(&allow_all(), settings);
        let learned = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&learned);
        let tell = move |now: &[Learned]| *told.lock().expect("one thread") = now.to_vec();
        bench.worker.acquire(vec![(PortId(0), config)], tell);
        Link {
            bench,
            learned,
            xid: [0; 4],
        }
    }

    /// Everything that is sent while so much time passes.
    fn pass(&mut self, time: Duration) -> Vec<Vec<u8>> {
        let end = self.bench.now + time;
        let mut sent = Vec::new();
        loop {
            self.bench.worker.poll(self.bench.now);
            let port = &mut self.bench.worker.ports_mut()[0];
            sent.extend(port.tx.drain(..).map(|p| p.bytes().to_vec()));
            if self.bench.now >= end {
                return sent;
            }
            self.bench.now = (self.bench.now + Duration::from_millis(100)).min(end);
        }
    }

    fn receive(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let port = &mut self.bench.worker.ports_mut()[0];
        port.rx.push_back(MemoryPacket::new(bytes));
        self.pass(Duration::ZERO)
    }

    /// The type of the only DHCP message in what was sent, with its addresses.
    fn message(&mut self, sent: &[Vec<u8>]) -> (u8, String, String) {
        let is_dhcp = |b: &&Vec<u8>| b.len() > 300 && b[34..38] == [0, 68, 0, 67];
        let found: Vec<_> = sent.iter().filter(is_dhcp).collect();
        assert_eq!(found.len(), 1, "{sent:x?}");
        let b = found[0];
        self.xid = b[46..50].try_into().expect("four bytes");
        assert_eq!(b[282..284], [53, 1]);
        let frame = Frame::parse(b).expect("a whole frame");
        (b[284], frame.src.to_string(), frame.dst.to_string())
    }

    fn reply(&self, kind: u8, options: &[u8]) -> Vec<u8> {
        self.datagram(
            "255.255.255.255:68",
            &answer(self.xid, MACS[0], kind, options),
        )
    }

    fn datagram(&self, to: &str, payload: &[u8]) -> Vec<u8> {
        let from = SocketAddr::from((Ipv4Addr::from(SERVER), 67));
        Frame::udp(from, at(to), payload).between(PEER, ALL).emit()
    }

    fn known(&self) -> Learned {
        self.learned.lock().expect("one thread")[0].clone()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.bench.counters.dropped(reason).packets.get()
    }

    /// Discovers, asks and is granted the address; it is probed from here on.
    fn lease(&mut self) {
        let sent = self.pass(Duration::ZERO);
        self.message(&sent);
        let offer = self.reply(2, &[]);
        let sent = self.receive(offer);
        assert_eq!(self.message(&sent).0, 3);
        let ack = self.reply(5, &[]);
        let sent = self.receive(ack);
        let probe = [
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..],
            &MACS[0],
            &[0; 4],
            &[0; 6],
            &ADDRESS,
        ]
        .concat();
        assert!(
            sent.iter().any(|b| b[..6] == ALL && b[12..] == probe),
            "{sent:x?}"
        );
    }
}

#[test]
fn a_port_without_addresses_gets_a_lease_and_answers_for_it() {
    let mut link = Link::new(config());
    let sent = link.pass(Duration::ZERO);
    let everybody = ("0.0.0.0".to_owned(), "255.255.255.255".to_owned());
    assert_eq!(link.message(&sent), (1, everybody.0, everybody.1));
    let mut link = Link::new(config());
    link.lease();
    assert_eq!(link.known().lease, None);
    link.pass(Duration::from_secs(1));
    let lease = link.known().lease.expect("a lease");
    assert_eq!((lease.address.octets(), lease.prefix_len), (ADDRESS, 24));
    assert_eq!(lease.gateway.map(|g| g.octets()), Some(SERVER));
    assert_eq!(link.known().standing, Standing::Holding);

    // What the control side makes of it.
    link.bench.reconfigure(|s| {
        s.ports[0].addresses = vec!["10.0.0.77/24".parse().unwrap()];
        s.ports[0].gateways = vec![ip("10.0.0.254")];
    });
    let sent = link.pass(Duration::ZERO);
    assert!(
        sent.iter()
            .any(|b| b[12..14] == [8, 6] && b[28..32] == ADDRESS),
        "it is announced"
    );
    let (_, out) = link.bench.one(
        0,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b""),
    );
    assert_eq!(out.src, ip("10.0.0.77"));

    // T1: to the server itself, once its station is known.
    let question = |b: &&Vec<u8>| b[12..14] == [8, 6] && b[38..42] == SERVER;
    link.pass(Duration::from_secs(1700));
    let mut sent = Vec::new();
    while !sent.iter().any(|b| question(&b)) {
        sent = link.pass(Duration::from_secs(1));
    }
    let mut answer = sent.iter().rfind(question).unwrap().clone();
    answer[..6].copy_from_slice(&MACS[0]);
    answer[21] = 2;
    answer[22..28].copy_from_slice(&PEER);
    answer[28..32].copy_from_slice(&SERVER);
    answer[32..38].copy_from_slice(&MACS[0]);
    answer[38..42].copy_from_slice(&ADDRESS);
    let sent = link.receive(answer);
    assert_eq!(sent[0][..6], PEER);
    assert_eq!(
        link.message(&sent),
        (3, "10.0.0.77".into(), "10.0.0.254".into())
    );
}

#[test]
fn an_address_in_use_is_declined() {
    let mut link = Link::new(config());
    link.lease();
    let mut answer = [&MACS[0][..], &PEER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &PEER].concat();
    answer.extend(ADDRESS);
    answer.extend(MACS[0]);
    answer.extend([0; 4]);
    let sent = link.receive(answer);
    assert_eq!(link.message(&sent).0, 4);
    assert_eq!(
        (link.known().standing, link.known().duplicates),
        (Standing::Taken, 1)
    );
    link.pass(Duration::from_secs(5));
    assert_eq!(link.known().lease, None);
}

#[test]
fn messages_that_are_not_meant_for_us_or_make_no_sense_change_nothing() {
    let mut link = Link::new(config());
    let sent = link.pass(Duration::ZERO);
    link.message(&sent);
    let mut other = link.reply(2, &[]);
    let broken = |link: &Link, at: usize, value: u8| {
        let frame = Frame::parse(&link.reply(2, &[])).unwrap();
        let Body::Udp { mut payload, .. } = frame.body else {
            panic!()
        };
        payload[at] = value;
        link.datagram("255.255.255.255:68", &payload)
    };
    // Another transaction, another station, a request, another cookie, options cut short, no kind.
    for (at, value, reason) in [
        (4, !link.xid[0], DropReason::Multicast),
        (33, 0x77, DropReason::Multicast),
        (0, 1, DropReason::Multicast),
        (236, 0, DropReason::Multicast),
        (241, 200, DropReason::Dhcp),
        (240, 0, DropReason::Dhcp),
        (242, 6, DropReason::Dhcp),
    ] {
        let before = link.drops(reason);
        let frame = broken(&link, at, value);
        let sent = link.receive(frame);
        assert_eq!(sent, Vec::<Vec<u8>>::new(), "{at}");
        assert_eq!(link.drops(reason), before + 1, "{at}");
    }
    *other.last_mut().unwrap() ^= 1;
    link.receive(other);
    assert_eq!(link.drops(DropReason::BadChecksum), 1);
    let offer = link.reply(2, &[]);
    let sent = link.receive(offer);
    assert_eq!(link.message(&sent).0, 3, "the sound one is heeded still");
}

#[test]
fn a_server_that_is_not_the_configured_one_is_refused_and_counted() {
    for pin in [true, false] {
        let mut config = config();
        if pin {
            config.dhcp.server_ip = Some(Ipv4Addr::new(10, 0, 0, 253));
        } else {
            config.dhcp.server_mac = Some([2, 0, 0, 0, 0, 0x42]);
        }
        let mut link = Link::new(config);
        let sent = link.pass(Duration::ZERO);
        link.message(&sent);
        let offer = link.reply(2, &[]);
        assert_eq!(link.receive(offer), Vec::<Vec<u8>>::new());
        assert_eq!(link.bench.counters.dhcp_untrusted.get(), 1);
        assert_eq!(link.drops(DropReason::Dhcp), 1);
    }
}

#[test]
fn dhcp_between_others_passes_like_any_flow() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let request = Frame::udp(at("10.0.0.2:68"), at("198.51.100.1:67"), b"renew");
    let (_, out) = bench.one(INSIDE, request);
    let Body::Udp { src_port, .. } = out.body else {
        panic!("{out:?}")
    };
    let answer = Frame::udp(at("198.51.100.1:67"), (out.src, src_port).into(), b"ack");
    assert_eq!(bench.one(OUTSIDE, answer).1.dst, ip("10.0.0.2"));
    let to_all = Frame::udp(at("10.0.0.9:67"), at("255.255.255.255:68"), b"offer");
    bench.dropped(INSIDE, to_all, DropReason::Multicast);
}

fn advertisement(src: &str, ttl: u8, options: &[u8]) -> Vec<u8> {
    let payload = [&[0; 8][..], options].concat();
    let frame = Frame::icmp(ip(src), ip("ff02::1"), 134, 0, 0x4000_0708, &payload);
    frame
        .with_ttl(ttl)
        .between(PEER, [0x33, 0x33, 0, 0, 0, 1])
        .emit()
}

/// 2001:db8:5::/64, on the link and autonomous, for two hours.
fn prefix() -> Vec<u8> {
    let mut b = vec![
        3, 4, 64, 0xc0, 0, 0, 0x1c, 0x20, 0, 0, 0x1c, 0x20, 0, 0, 0, 0,
    ];
    b.extend([0x20, 1, 0x0d, 0xb8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    b
}

#[test]
fn routers_are_asked_and_their_prefix_leads_to_an_address() {
    let mut link = Link::new(config());
    let sent = link.pass(Duration::from_secs(2));
    let asked = sent
        .iter()
        .find(|b| b.len() > 54 && b[54] == 133)
        .expect("a solicitation");
    assert_eq!(asked[..6], [0x33, 0x33, 0, 0, 0, 2]);
    let asked = Frame::parse(asked).unwrap();
    assert_eq!(
        (asked.src, asked.dst, asked.ttl),
        (ip("fe80::ff:fe00:1"), ip("ff02::2"), 255)
    );

    let sent = link.receive(advertisement("fe80::99", 255, &prefix()));
    let tried = sent
        .iter()
        .find(|b| b.len() > 54 && b[54] == 135)
        .expect("it is tried first");
    let tried = Frame::parse(tried).unwrap();
    assert_eq!((tried.src, tried.ttl), (ip("::"), 255));
    link.pass(Duration::from_secs(2));
    let advertised = link.known().advertised;
    assert_eq!(advertised.router.map(Into::into), Some(ip("fe80::99")));
    let address = advertised.addresses[0].address;
    assert!(address.to_string().starts_with("2001:db8:5:"), "{address}");

    // Another station that tries the next address at the same time, and one that has it.
    let [.., a, b, c] = address.octets();
    let group = format!("ff02::1:ff{a:02x}:{b:02x}{c:02x}");
    for (kind, src, dst) in [(135, "::", &*group), (136, "fe80::5", "ff02::1")] {
        let mut link = Link::new(config());
        link.receive(advertisement("fe80::99", 255, &prefix()));
        let message = Frame::icmp(ip(src), ip(dst), kind, 0, 0x2000_0000, &address.octets());
        let sent = link.receive(
            message
                .with_ttl(255)
                .between(PEER, [0x33, 0x33, 0, 0, 0, 1])
                .emit(),
        );
        assert!(
            sent.iter().any(|b| b.len() > 54 && b[54] == 135),
            "the next is tried"
        );
        assert_eq!(link.known().duplicates, 1);
        link.pass(Duration::from_secs(2));
        assert_ne!(link.known().advertised.addresses[0].address, address);
    }
}

#[test]
fn a_process_that_takes_over_goes_on_with_what_the_one_before_had() {
    let mut old = Link::new(config());
    old.lease();
    old.receive(advertisement("fe80::99", 255, &prefix()));
    old.pass(Duration::from_secs(5));
    let (known, now) = (old.known(), old.bench.now);
    assert!(known.lease.is_some() && !known.advertised.addresses.is_empty());
    let held = old.bench.worker.held_addresses();
    assert_eq!(
        (held[0].interface.as_str(), &held[0].learned),
        ("eth1", &known)
    );

    let taking_over = |held: Held| {
        let held = Some(held);
        let mut link = Link::new(Config { held, ..config() });
        link.bench.now = now + Duration::from_secs(1);
        link
    };
    let mut new = taking_over(held[0].clone());
    let sent = new.pass(Duration::from_secs(60));
    assert_eq!(sent, Vec::<Vec<u8>>::new(), "nobody is asked");
    assert_eq!(new.known(), known);
    // It is asked for again after seven eighths of its hour; the prefix ends after two hours.
    new.pass(Duration::from_secs(1800));
    let sent = new.pass(Duration::from_secs(1400));
    assert_eq!(new.message(&sent).1, "10.0.0.77");
    new.pass(Duration::from_secs(4200));
    assert_eq!(
        (new.known().lease, new.known().advertised.addresses),
        (None, Vec::new())
    );

    let mut other = taking_over(Held {
        mac: PEER,
        ..held[0].clone()
    });
    let sent = other.pass(Duration::ZERO);
    assert_eq!(other.message(&sent).0, 1, "another device begins anew");
    assert_eq!(other.known().lease, None);
}

#[test]
fn advertisements_from_afar_or_of_other_stations_are_refused() {
    let mut link = Link::new(Config {
        router_mac: Some([2, 0, 0, 0, 0, 0x42]),
        ..config()
    });
    link.receive(advertisement("fe80::99", 255, &prefix()));
    assert_eq!(
        link.bench.counters.gateway_untrusted.get(),
        1,
        "a rogue router"
    );
    link.receive(advertisement("fe80::99", 254, &prefix()));
    link.receive(advertisement("2001:db8::99", 255, &prefix()));
    let mut broken = advertisement("fe80::99", 255, &prefix());
    broken[60] ^= 1;
    link.receive(broken);
    link.pass(Duration::from_secs(2));
    assert_eq!(link.known().advertised, Default::default());
    assert_eq!(link.drops(DropReason::NeighborDiscovery), 3);
    assert_eq!(link.drops(DropReason::BadChecksum), 1);

    let mut configured = Bench::new(&allow_all(), two_arms());
    configured.send_bytes(INSIDE, advertisement("fe80::99", 255, &prefix()));
    assert_eq!(
        configured
            .counters
            .dropped(DropReason::NeighborDiscovery)
            .packets
            .get(),
        1
    );
}

#[test]
fn a_new_address_ends_the_flows_that_were_translated_to_the_old_one() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    tcp::establish(&mut bench, 5001);
    let v6 = Frame::udp(at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"), b"");
    bench.one(INSIDE, v6.clone());
    let data = Frame::tcp(
        at("10.0.0.2:5001"),
        at("198.51.100.1:80"),
        ACK,
        101,
        501,
        b"x",
    );

    bench.reconfigure(|s| s.ports[1].mtu = Some(1400));
    bench.one(INSIDE, data.clone());
    bench.reconfigure(|s| s.ports[1].addresses[0] = "192.0.2.7/24".parse().unwrap());
    let (_, reset) = bench.one(INSIDE, data.clone());
    let Body::Tcp { flags, .. } = reset.body else {
        panic!("{reset:?}")
    };
    assert_eq!((reset.dst, flags & RST), (ip("10.0.0.2"), RST));
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::AddressLost)
            .packets
            .get(),
        1
    );
    bench.one(INSIDE, v6);
    let (_, out) = bench.one(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b""),
    );
    assert_eq!(out.src, ip("192.0.2.7"));
}

#[test]
fn a_flow_outlives_the_time_until_its_address_is_had_again() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.ports[1].acquires = true);
    let out = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"");
    bench.one(INSIDE, out.clone());
    let before = bench.published.load().settings().ports.clone();
    bench.reconfigure(|s| {
        s.ports[1].addresses.remove(0);
        s.ports[1].gateways.remove(0);
    });
    for _ in 0..2 {
        bench.dropped(INSIDE, out.clone(), DropReason::NoNatAddress);
    }
    bench.reconfigure(|s| s.ports = before);
    bench.one(INSIDE, out);
    let back = Frame::udp(at("198.51.100.1:53"), at("192.0.2.1:5000"), b"");
    assert_eq!(bench.one(OUTSIDE, back).1.dst, ip("10.0.0.2"));
}

#[test]
fn nothing_leaves_untranslated_for_want_of_an_address() {
    let mut settings: Settings = two_arms();
    settings.nat66 = Some(Snat::Auto);
    settings.ports[1].acquires = true;
    settings.ports[1].addresses.pop();
    settings.ports[1].gateways = vec![ip("192.0.2.254"), ip("fe80::99")];
    let mut bench = Bench::new(&allow_all(), settings);
    let v6 = Frame::udp(at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"), b"");
    bench.dropped(INSIDE, v6.clone(), DropReason::NoNatAddress);
    bench.reconfigure(|s| s.ports[1].addresses.push("2001:db8::7/64".parse().unwrap()));
    assert_eq!(bench.one(INSIDE, v6).1.src, ip("2001:db8::7"));
}

#[test]
fn a_claim_to_our_address_is_answered_now_and_then() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    // What is announced at the start has been.
    bench.pass(Duration::from_secs(60));
    let mut claim = [
        &ALL[..],
        &PEER,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &PEER,
        &[10, 0, 0, 1],
    ]
    .concat();
    claim.extend([0; 6]);
    claim.extend([10, 0, 0, 1]);
    let mut answers = |seconds: u64| {
        bench.now = Now(bench.now.0 + seconds * 1_000_000_000);
        bench.worker.ports_mut()[INSIDE]
            .rx
            .push_back(MemoryPacket::new(claim.clone()));
        bench.worker.poll(bench.now);
        bench.worker.ports_mut()[INSIDE].tx.drain(..).count()
    };
    assert_eq!([answers(0), answers(1), answers(10)], [1, 0, 1]);
    assert_eq!(bench.counters.address_conflicts.get(), 3);
}

#[test]
fn a_gateway_that_is_another_station_than_the_configured_one_is_refused() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let packet = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"");
    bench.reconfigure(|s| s.ports[1].gateway_mac = Some([2, 0, 0, 0, 0, 0x42]));
    assert_eq!(bench.send(INSIDE, packet.clone()), []);
    assert!(bench.counters.gateway_untrusted.get() > 0);
    bench.reconfigure(|s| s.ports[1].gateway_mac = Some(PEER));
    bench.pass(Duration::from_secs(60));
    bench.one(INSIDE, packet);
}

/// What the sender of an IPv6 packet of `len` bytes is told that the way carries; none if it passes.
fn told6(bench: &mut Bench, len: usize) -> Option<u32> {
    let (client, server) = (at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"));
    let (_, out) = bench.one(INSIDE, Frame::udp(client, server, &vec![0; len - 48]));
    match out.body {
        Body::Icmp {
            icmp_type: 2, rest, ..
        } => Some(rest),
        _ => None,
    }
}

#[test]
fn a_link_that_is_told_to_carry_little_carries_ipv6_all_the_same() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.ports[1].mtu = Some(576));
    assert_eq!(told6(&mut bench, 1280), None);
    assert_eq!(told6(&mut bench, 1281), Some(1280));
    let big = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), &[0; 600]);
    let (port, _) = bench.one(INSIDE, Frame { df: true, ..big });
    assert_eq!(port, INSIDE, "of IPv4 it holds");
    bench.reconfigure(|s| s.ports[1].mtu = Some(1400));
    assert_eq!(told6(&mut bench, 1400), None);
    assert_eq!(told6(&mut bench, 1401), Some(1400));
}

#[test]
fn nobody_is_told_of_less_than_every_link_carries_of_ipv6() {
    let mut bench = Bench::with_mtus(&allow_all(), two_arms(), [1500, 1000]);
    assert_eq!(told6(&mut bench, 1000), None);
    assert_eq!(told6(&mut bench, 1400), Some(1280));
}

#[test]
fn a_link_that_carries_less_than_its_interface_says_so() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.ports[1].mtu = Some(1300));
    let big = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), &[0; 1300]);
    let (_, error) = bench.one(INSIDE, Frame { df: true, ..big });
    let Body::Icmp {
        icmp_type: 3,
        code: 4,
        rest,
        ..
    } = error.body
    else {
        panic!("{error:?}")
    };
    assert_eq!(rest, 1300);
}
