// What must hold of any packet in a tunnel. Shared by the fuzz target `overlay_decap` and the replay of its corpus.

/// Sends the bytes as what is behind the UDP header, in every kind of tunnel, twice as they are and twice with right
/// checksums in the packet within. Each frame gets exactly one verdict, and what comes out is a frame.
fn sound_in_tunnel(body: &[u8]) {
    use engine::counters::{Direction, Protocol};
    use engine::overlay::{Encapsulation, Overlay, VxlanTunnel};
    use engine::port::Packet;
    use engine::port::memory::{MemoryPacket, MemoryPort};
    use engine::snapshot::{PortSettings, Settings};
    use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
    use std::sync::Arc;

    let body = &body[..body.len().min(2000)];
    let tunnel = |vni, udp_port| VxlanTunnel { vni, udp_port };
    let pair = |swap| Encapsulation::VxlanPair {
        internal: tunnel(800, 10_800),
        external: tunnel(801, 10_801),
        swap,
    };
    let geneve = Encapsulation::Geneve { udp_port: 6081 };
    for (encapsulation, port) in [
        (pair(true), 10_800u16),
        (pair(false), 10_801),
        (geneve, 6081),
    ] {
        let policy = br#"{"default_policy":"allow","source_groups":[]}"#;
        let document = policy::Document::parse_json(policy).expect("a valid policy");
        let compiled = policy::Compiled::compile(&document, 1).expect("a policy that compiles");
        let net = |s: &str| s.parse().expect("a constant");
        let settings = Settings {
            ports: vec![PortSettings {
                addresses: vec![net("10.0.0.1/8"), net("fd00::1/64")],
                ..PortSettings::default()
            }],
            overlay: Some(Overlay {
                encapsulation,
                mtu: 1400,
                fixed_source_port: false,
            }),
            pick_up_until: Now(1 << 40),
            ..Settings::default()
        };
        let snapshot = Snapshot::new(1, Arc::new(compiled), settings).expect("settings that work");
        let counters = Arc::new(WorkerCounters::default());
        let config = WorkerConfig {
            peers: None,
            index: 0,
            count: 1,
            seed: 1,
            flow_capacity: 64,
            events: None,
        };
        let published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
        let ports = vec![MemoryPort::new([2, 0, 0, 0, 0, 1], 1500)];
        let mut worker = Worker::new(
            ports,
            None::<MemoryPort>,
            published,
            config,
            Arc::clone(&counters),
        )
        .expect("memory for the table");
        let udp_len = (8 + body.len()) as u16;
        let mut frame = vec![
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0,
        ];
        frame.extend(udp_len.to_be_bytes());
        frame.extend([17, 64]);
        for last in [9, 1] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame.extend([0xc3, 0x51]);
        frame.extend(port.to_be_bytes());
        frame.extend(udp_len.to_be_bytes());
        frame.extend([0, 0]);
        let outer = frame.len();
        frame.extend(body);
        for turn in 1..=4 {
            if turn == 3 {
                right_checksums_inside(&mut frame[outer..], port == 6081);
            }
            let packet = MemoryPacket::new(frame.clone());
            worker.ports_mut()[0].rx.push_back(packet);
            worker.poll(Now(turn));
        }
        // A fragment gets its own when its others have not come.
        for second in 60..64 {
            worker.poll(Now(second * 1_000_000_000));
        }
        while let Some(sent) = worker.ports_mut()[0].tx.pop_front() {
            assert!(sent.bytes().len() >= 14, "a frame");
        }
        let mut verdicts = counters.replied.get() + counters.consumed.get();
        for reason in DropReason::ALL {
            verdicts += counters.dropped(*reason).packets.get();
        }
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
        assert_eq!(verdicts, 4, "one verdict for each frame");
    }
}

/// Makes the checksums right in the packet behind a header of GENEVE (RFC 8926), or else of VXLAN (RFC 7348).
fn right_checksums_inside(body: &mut [u8], is_geneve: bool) {
    const ETHERNET: usize = 14;
    let options = body.first().map_or(0, |first| usize::from(first & 0x3f) * 4);
    let at = match body.get(2..4) {
        Some([0x65, 0x58]) if is_geneve => 8 + options + ETHERNET,
        _ if is_geneve => 8 + options,
        _ => 8 + ETHERNET,
    };
    if let Some(packet) = body.get_mut(at..) {
        right_checksums(packet);
    }
}
