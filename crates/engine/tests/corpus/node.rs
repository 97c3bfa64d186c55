// A worker between ports in memory, and its neighbours, for targets of several frames.

mod node {
    use std::sync::Arc;
    use std::time::Duration;

    use engine::counters::{Direction, Protocol};
    use engine::overlay::{Encapsulation, Overlay, VxlanTunnel};
    use engine::port::Packet;
    use engine::port::memory::{MemoryPacket, MemoryPort};
    use engine::snapshot::{PortSettings, Settings, Snat};
    use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};

    pub(super) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// In which tunnel packets come.
    #[allow(dead_code, reason = "not every target has tunnels")]
    #[derive(Clone, Copy, PartialEq)]
    pub(super) enum Tunnel {
        None,
        Vxlan,
        Geneve,
    }

    /// A worker that allows everything, with an inside and an outside or with a tunnel.
    pub(super) struct Node {
        worker: Worker<MemoryPort, MemoryPort>,
        counters: Arc<WorkerCounters>,
        now: Now,
        tunnel: Tunnel,
        /// Frames that were put in.
        put: u64,
        /// What asked for the stations of neighbours and was not answered, by port.
        pub(super) asked: Vec<(usize, Vec<u8>)>,
    }

    impl Node {
        pub(super) fn new(tunnel: Tunnel) -> Node {
            let policy = br#"{"default_policy":"allow","source_groups":[]}"#;
            let document = policy::Document::parse_json(policy).expect("a valid policy");
            let compiled = policy::Compiled::compile(&document, 1).expect("a policy that compiles");
            let port = |addresses: [&str; 2], gateways: &[&str]| PortSettings {
                addresses: addresses.map(|a| a.parse().expect("a constant")).to_vec(),
                gateways: gateways
                    .iter()
                    .map(|a| a.parse().expect("a constant"))
                    .collect(),
                ..PortSettings::default()
            };
            let mut settings = Settings {
                ports: vec![port(["10.0.0.1/8", "fd00::1/64"], &[])],
                ..Settings::default()
            };
            if tunnel == Tunnel::None {
                let gateways = ["192.0.2.254", "2001:db8::fe"];
                let outside = port(["192.0.2.1/24", "2001:db8::1/64"], &gateways);
                settings.ports.push(outside);
                settings.nat66 = Some(Snat::Auto);
            } else {
                let of = |vni, udp_port| VxlanTunnel { vni, udp_port };
                settings.overlay = Some(Overlay {
                    encapsulation: match tunnel {
                        Tunnel::Vxlan => Encapsulation::VxlanPair {
                            internal: of(800, 10_800),
                            external: of(801, 10_801),
                            swap: true,
                        },
                        _ => Encapsulation::Geneve { udp_port: 6081 },
                    },
                    mtu: 1400,
                    fixed_source_port: false,
                });
            }
            let ports = (1..=settings.ports.len() as u8)
                .map(|n| MemoryPort::new([2, 0, 0, 0, 0, n], 1500))
                .collect();
            let snapshot =
                Snapshot::new(1, Arc::new(compiled), settings).expect("settings that work");
            let counters = Arc::new(WorkerCounters::default());
            let config = WorkerConfig {
                index: 0,
                count: 1,
                peers: None,
                seed: 1,
                flow_capacity: 64,
                events: None,
            };
            let published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
            let worker = Worker::new(ports, None, published, config, Arc::clone(&counters))
                .expect("memory for the table");
            Node {
                worker,
                counters,
                now: Now(1_000_000_000),
                tunnel,
                put: 0,
                asked: Vec::new(),
            }
        }

        /// Puts an IP packet from inside in, in the tunnel if there is one.
        pub(super) fn put_packet(&mut self, packet: &[u8]) {
            let kind = match packet[0] >> 4 {
                4 => [8, 0],
                _ => [0x86, 0xdd],
            };
            let inner = [&[2, 0, 0, 0, 0, 1][..], &PEER, &kind, packet].concat();
            let (port, body) = match self.tunnel {
                Tunnel::None => return self.put_frame(0, inner),
                Tunnel::Vxlan => {
                    let header: &[u8] = &[8, 0, 0, 0, 0, 3, 0x20, 0];
                    (10_800_u16, [header, &inner].concat())
                }
                Tunnel::Geneve => {
                    let header: &[u8] = &[0, 0, kind[0], kind[1], 0, 0, 0, 0];
                    (6081, [header, packet].concat())
                }
            };
            let len = ((8 + body.len()) as u16).to_be_bytes();
            let mut frame = [&[2, 0, 0, 0, 0, 1][..], &PEER, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
            frame.extend(len);
            frame.extend([17, 64]);
            for last in [9, 1] {
                frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            frame.extend([0xc3, 0x51]);
            frame.extend(port.to_be_bytes());
            frame.extend(len);
            frame.extend([0, 0]);
            frame.extend(body);
            self.put_frame(0, frame);
        }

        pub(super) fn put_frame(&mut self, port: usize, frame: Vec<u8>) {
            self.worker.ports_mut()[port]
                .rx
                .push_back(MemoryPacket::new(frame));
            self.put += 1;
        }

        /// What leaves, by port, but for talk with neighbours.
        pub(super) fn turn(&mut self) -> Vec<(usize, Vec<u8>)> {
            let mut left = Vec::new();
            while self.worker.poll(self.now) > 0 {}
            for (i, port) in self.worker.ports_mut().iter_mut().enumerate() {
                for packet in port.tx.drain(..) {
                    let bytes = packet.bytes().to_vec();
                    assert!(bytes.len() >= 14, "a frame");
                    match talk(&bytes) {
                        Some(Talk::Asks) => self.asked.push((i, bytes)),
                        Some(Talk::Tells) => {}
                        None => left.push((i, bytes)),
                    }
                }
            }
            left
        }

        /// The same, once neighbours have answered whatever they are asked.
        pub(super) fn turn_among_neighbours(&mut self) -> Vec<(usize, Vec<u8>)> {
            let mut left = self.turn();
            while !self.asked.is_empty() {
                self.answer();
                left.extend(self.turn());
            }
            left
        }

        /// Answers what neighbours were asked.
        pub(super) fn answer(&mut self) {
            for (port, frame) in std::mem::take(&mut self.asked) {
                if let Some(answer) = answer(&frame) {
                    self.put_frame(port, answer);
                }
            }
        }

        pub(super) fn pass(&mut self, time: Duration) {
            self.now = self.now + time;
        }

        /// Lets go of all that waits, after which each frame has had exactly one verdict.
        pub(super) fn end(&mut self) {
            for _ in 0..4 {
                self.pass(Duration::from_secs(60));
                self.turn();
            }
            self.asked.clear();
            let counters = &self.counters;
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
            assert_eq!(verdicts, self.put, "one verdict for each frame");
        }
    }

    /// What neighbours say to one another.
    enum Talk {
        Asks,
        Tells,
    }

    /// Whether a frame asks for a neighbour's station (or announces ours with a request), or else is about neighbours and
    /// routers.
    fn talk(frame: &[u8]) -> Option<Talk> {
        let (kind, asking) = match (&frame[12..14], frame.get(14..)) {
            ([8, 6], Some(message)) => (message.get(7)?, 1),
            ([0x86, 0xdd], Some(packet)) if packet.get(6..8) == Some(&[58, 255]) => {
                let kind = packet.get(40).filter(|kind| (133..=137).contains(*kind));
                (kind?, 135)
            }
            _ => return None,
        };
        Some(if *kind == asking {
            Talk::Asks
        } else {
            Talk::Tells
        })
    }

    /// What a neighbour answers.
    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let mut answer = [&frame[6..12], &PEER, &frame[12..14]].concat();
        if frame[12..14] == [8, 6] {
            if frame[28..32] == frame[38..42] {
                return None;
            }
            answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend(PEER);
            answer.extend(&frame[38..42]);
            answer.extend(&frame[22..32]);
            return Some(answer);
        }
        // Nobody has the address that we are about to take (RFC 4862).
        if frame[22..38] == [0; 16] {
            return None;
        }
        answer.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
        answer.extend(&frame[62..78]);
        answer.extend(&frame[22..38]);
        answer.extend([136, 0, 0, 0, 0x60, 0, 0, 0]);
        answer.extend(&frame[62..78]);
        answer.extend([2, 1]);
        answer.extend(PEER);
        super::right_checksums(&mut answer[14..]);
        Some(answer)
    }
}
