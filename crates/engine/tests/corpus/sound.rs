// What must hold of any frame, whatever its bytes. Shared by the fuzz target `wire` and the replay
// of its corpus.

/// The frame that a corpus file means: bytes in hexadecimal with `#` comments, or else raw.
fn decode(input: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(input).unwrap_or("!");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: Vec<u8> = lines
        .flat_map(str::bytes)
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return input.to_vec();
    }
    let value = |d: u8| (d as char).to_digit(16).expect("checked above") as u8;
    digits
        .chunks(2)
        .map(|pair| value(pair[0]) << 4 | value(pair[1]))
        .collect()
}

/// Sends the frame into either port of a worker that allows everything, twice, and to it from the
/// host. Each gets exactly one verdict.
fn sound(input: &[u8]) {
    use engine::counters::{Direction, Protocol};
    use engine::port::memory::{MemoryPacket, MemoryPort};
    use engine::snapshot::{LocalService, PortSettings, Settings, Snat};
    use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
    use std::sync::Arc;

    let frame = decode(input);
    let policy = br#"{"default_policy":"allow","source_groups":[]}"#;
    let document = policy::Document::parse_json(policy).expect("a valid policy");
    let compiled = policy::Compiled::compile(&document, 1).expect("a policy that compiles");
    let net = |s: &str| s.parse().expect("a constant");
    let settings = Settings {
        ports: vec![
            PortSettings {
                addresses: vec![net("10.0.0.1/8"), net("fd00::1/64")],
                ..PortSettings::default()
            },
            PortSettings {
                addresses: vec![net("192.0.2.1/0"), net("2001:db8::1/1")],
                ..PortSettings::default()
            },
        ],
        nat66: Some(Snat::Auto),
        tcp_window_check: true,
        pick_up_until: Now(1 << 40),
        services: vec![LocalService {
            address: "10.0.0.53".parse().expect("a constant"),
            ports: vec![],
        }],
        ..Settings::default()
    };
    let snapshot = Snapshot::new(1, Arc::new(compiled), settings).expect("settings that work");
    let counters = Arc::new(WorkerCounters::default());
    let ports = [1, 2]
        .map(|n| MemoryPort::new([2, 0, 0, 0, 0, n], 1500))
        .into();
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed: 1,
        flow_capacity: 64,
        events: None,
    };
    let published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
    let lane = Some(MemoryPort::new([0; 6], 1500));
    let mut worker = Worker::new(ports, lane, published, config, Arc::clone(&counters))
        .expect("memory for the table");

    let mut sent = 0;
    for (port, station) in [(0, 1), (1, 2), (0, 1), (1, 2)] {
        let mut bytes = frame.clone();
        if let Some(last) = bytes.get_mut(5) {
            // To our station as often as not.
            *last = if *last & 1 == 0 { station } else { *last };
        }
        worker.ports_mut()[port]
            .rx
            .push_back(MemoryPacket::new(bytes));
        worker.poll(Now(1 + sent));
        sent += 1;
    }
    worker
        .lane_mut()
        .expect("made with one")
        .rx
        .push_back(MemoryPacket::new(frame));
    worker.poll(Now(100));
    sent += 1;
    // A fragment gets its own when its others have not come, and a frame when its next hop has not answered.
    for second in 60..64 {
        worker.poll(Now(second * 1_000_000_000));
    }

    let mut verdicts = counters.replied.get() + counters.consumed.get();
    verdicts += DropReason::ALL
        .iter()
        .map(|r| counters.dropped(*r).packets.get())
        .sum::<u64>();
    for direction in [Direction::Outbound, Direction::Inbound] {
        for protocol in [
            Protocol::Tcp,
            Protocol::Udp,
            Protocol::Icmp,
            Protocol::Other,
        ] {
            verdicts += counters.allowed(direction, protocol).packets;
        }
    }
    assert_eq!(verdicts, sent, "one verdict for each frame");
}
