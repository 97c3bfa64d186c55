// What must hold of anything that a DHCP server or a router says, whatever its bytes. Shared by the fuzz target
// `addresses` and the replay of its corpus.

/// Lets a worker that asks for addresses hear the input as options of an offer and of an acknowledgement to what it has
/// asked, if the first byte is even, else as options of a router advertisement; and lets time pass. What it learns of
/// that is bounded and, if it is a lease, has not expired.
fn heard(input: &[u8]) {
    use engine::acquire::{Config, DhcpConfig, Learned, Stable};
    use engine::port::memory::{MemoryPacket, MemoryPort};
    use engine::port::{Checksum, Meta, Packet, PortId};
    use engine::snapshot::{PortSettings, Settings};
    use engine::{Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    let input = decode(input);
    let Some((first, options)) = input.split_first() else {
        return;
    };
    // What fits into a frame.
    let options = &options[..options.len().min(1200)];
    let settings = Settings {
        ports: vec![PortSettings {
            acquires: true,
            ..PortSettings::default()
        }],
        ..Settings::default()
    };
    let deny = Arc::new(policy::Compiled::deny_all());
    let snapshot = Snapshot::new(1, deny, settings).expect("settings that work");
    let published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed: 1,
        flow_capacity: 64,
        events: None,
    };
    let ports = vec![MemoryPort::new(MAC, 1500)];
    let counters = Arc::new(WorkerCounters::default());
    let mut worker = Worker::<_, MemoryPort>::new(ports, None, published, config, counters)
        .expect("memory for the table");
    let learned = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&learned);
    let asking = Config {
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
    };
    worker.acquire(vec![(PortId(0), asking)], move |all: &[Learned]| {
        *told.lock().expect("one thread") = all.to_vec();
    });

    let mut now = Now(1_000_000_000);
    worker.poll(now);
    let xid = |worker: &mut Worker<MemoryPort, MemoryPort>| {
        let sent: Vec<_> = worker.ports_mut()[0].tx.drain(..).collect();
        let of = |p: &MemoryPacket| (p.bytes().len() > 300).then(|| p.bytes()[46..50].to_vec());
        sent.iter().filter_map(of).next_back()
    };
    let mut transaction = xid(&mut worker).expect("a first question");
    let frames: &[u8] = if first % 2 == 0 { &[2, 5] } else { &[134] };
    for kind in frames {
        let mut b = Vec::from([0x33, 0x33, 0, 0, 0, 1]);
        b.extend(OTHER);
        if *kind == 134 {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            b.extend((16 + options.len() as u16).to_be_bytes());
            b.extend([58, 255]);
            b.extend("fe80::9".parse::<std::net::Ipv6Addr>().expect("a constant").octets());
            b.extend("ff02::1".parse::<std::net::Ipv6Addr>().expect("a constant").octets());
            b.extend([134, 0, 0, 0, 64, first & 0x18, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
            b.extend(options);
            let sum = !ones(&[&b[22..54], &[0, 58], &(16 + options.len() as u16).to_be_bytes(), &b[54..]]);
            b[56..58].copy_from_slice(&sum.to_be_bytes());
        } else {
            let len = 8 + 244 + options.len();
            b.extend([8, 0, 0x45, 0]);
            b.extend((20 + len as u16).to_be_bytes());
            b.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 255, 255, 255, 255]);
            let sum = !ones(&[&b[14..34]]);
            b[24..26].copy_from_slice(&sum.to_be_bytes());
            b.extend([0, 67, 0, 68]);
            b.extend((len as u16).to_be_bytes());
            b.extend([0; 2]);
            b.extend([2, 1, 6, 0]);
            b.extend(&transaction);
            b.extend([0; 8]);
            b.extend([10, 0, 0, first | 1]);
            b.extend([0; 8]);
            b.extend(MAC);
            b.extend([0; 10 + 64 + 128]);
            b.extend([99, 130, 83, 99, 53, 1, *kind, 0]);
            b.extend(options);
        }
        let meta = Meta {
            checksum: Checksum::Unknown,
            ..Meta::default()
        };
        worker.ports_mut()[0].rx.push_back(MemoryPacket::new(b).with_meta(meta));
        worker.poll(now);
        transaction = xid(&mut worker).unwrap_or(transaction);
    }
    for seconds in [1, 1, 1, 60, 3600, 86_400] {
        now = now + Duration::from_secs(seconds);
        for _ in 0..4 {
            worker.poll(now);
            worker.ports_mut()[0].tx.clear();
        }
        for port in learned.lock().expect("one thread").iter() {
            let advertised = &port.advertised;
            assert!(advertised.addresses.len() <= 8 && advertised.on_link.len() <= 8);
            assert!(advertised.routes.len() <= 16);
            if let Some(lease) = &port.lease {
                assert!(lease.expires > now && lease.routes.len() <= 32 && lease.dns.len() <= 4);
                assert!(!lease.address.is_multicast() && !lease.address.is_unspecified());
            }
        }
    }
}
