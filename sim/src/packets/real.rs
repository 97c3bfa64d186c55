//! The workers as they are in production, between ports in memory whose neighbours answer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use engine::mesh::{Peers, mesh};
use engine::port::Packet;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::snapshot::{Limits, NatMapping, Nptv6, PortSettings, Settings, Snat};
use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::Compiled;

use super::{Addresses, Nat, ip};
use crate::engine::{MACS, PEER};
use crate::frame::Frame;
use crate::neighbor;

pub(super) struct Real {
    workers: Vec<Worker<MemoryPort, MemoryPort>>,
    published: Arc<ArcSwap<Snapshot>>,
    counters: Vec<Arc<WorkerCounters>>,
    /// Which of them receives what comes next: a linear congruence.
    draw: u32,
}

impl Real {
    pub(super) fn new(policy: Arc<Compiled>, nat: Nat) -> Real {
        let net = |s: &str| s.parse().expect("a constant");
        let [snat, nat66] = nat.addresses.shown().map(|shown| match nat.addresses {
            Addresses::None => Snat::None,
            Addresses::Own => Snat::Auto,
            Addresses::One => Snat::Static(shown[0]),
            Addresses::Pool => Snat::Pool(shown),
        });
        let settings = Settings {
            ports: vec![
                PortSettings {
                    addresses: vec![net("10.0.0.1/8"), net("fd00::1/64")],
                    ..PortSettings::default()
                },
                PortSettings {
                    addresses: vec![net("192.0.2.1/24"), net("2001:db8::1/64")],
                    gateways: vec![ip("192.0.2.254"), ip("2001:db8::fe")],
                    ..PortSettings::default()
                },
            ],
            snat,
            nat66: Some(nat66),
            nat_mapping: match nat.independent {
                true => NatMapping::EndpointIndependent,
                false => NatMapping::AddressAndPortDependent,
            },
            nptv6: nat.by_prefix.then(|| Nptv6 {
                inside: "fd00::/48".parse().expect("a constant"),
                outside: "2001:db8:7::/48".parse().expect("a constant"),
            }),
            tcp_window_check: nat.checks_window,
            limits: Limits {
                icmp_errors_per_s: u32::MAX,
                resets_per_s: u32::MAX,
                ..Limits::default()
            },
            ..Settings::default()
        };
        let snapshot = Snapshot::new(1, policy, settings).expect("settings that work");
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        let mut counters = Vec::new();
        let mut worker = |index: u16, peers: Option<Peers>| {
            let ports = MACS.iter().map(|mac| MemoryPort::new(*mac, 1500)).collect();
            let config = WorkerConfig {
                index,
                count: nat.workers,
                peers,
                seed: 11,
                flow_capacity: 4096,
                events: None,
            };
            let counted = Arc::new(WorkerCounters::default());
            counters.push(Arc::clone(&counted));
            Worker::new(ports, None, Arc::clone(&published), config, counted)
                .expect("memory for the table")
        };
        let workers = match nat.workers {
            1 => vec![worker(0, None)],
            count => {
                let peers = mesh((0..count).map(|_| Box::new(|| ()) as _).collect());
                (0..).zip(peers).map(|(i, p)| worker(i, Some(p))).collect()
            }
        };
        Real {
            workers,
            published,
            counters,
            draw: 1,
        }
    }

    /// Lets some worker receive a frame by a port.
    fn give(&mut self, port: usize, bytes: Vec<u8>) {
        self.draw = self
            .draw
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let worker = (self.draw >> 16) as usize % self.workers.len();
        self.workers[worker].ports_mut()[port]
            .rx
            .push_back(MemoryPacket::new(bytes));
    }

    pub(super) fn publish(&mut self, policy: Arc<Compiled>) {
        let next = self.published.load().generation() + 1;
        self.published
            .store(Arc::new(self.published.load().with_policy(
                next,
                policy,
                engine::grant::Table::default(),
            )));
    }

    fn dropped(&self) -> Vec<u64> {
        DropReason::ALL
            .iter()
            .map(|r| {
                let of_all = self.counters.iter();
                of_all.map(|c| c.dropped(*r).packets.get()).sum()
            })
            .collect()
    }

    /// What comes out after this frame, and for which reasons something was dropped, once for each time.
    pub(super) fn receive(
        &mut self,
        now: Now,
        port: usize,
        f: &Frame,
    ) -> (Vec<(usize, Vec<u8>)>, Vec<DropReason>) {
        let before = self.dropped();
        let bytes = f.clone().between(PEER, MACS[port]).emit();
        self.give(port, bytes);
        let sent = self.receive_rest(now);
        let after = self.dropped();
        let times = before.iter().zip(after).map(|(b, a)| (a - b) as usize);
        let reasons = DropReason::ALL.iter().zip(times);
        let dropped = reasons.flat_map(|(reason, times)| vec![*reason; times]);
        (sent, dropped.collect())
    }

    /// Polls until the timers have caught up: an expired flow holds its port until one takes it.
    pub(super) fn catch_up(&mut self, now: Now) {
        for _ in 0..100 {
            for worker in &mut self.workers {
                worker.poll(now);
            }
        }
        self.receive_rest(now);
    }

    /// Polls until nothing moves; what came out, apart from talk with neighbours.
    fn receive_rest(&mut self, now: Now) -> Vec<(usize, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let mut quiet = true;
            let mut answers = Vec::new();
            for worker in &mut self.workers {
                quiet &= worker.poll(now) == 0;
                for (i, port) in worker.ports_mut().iter_mut().enumerate() {
                    while let Some(packet) = port.tx.pop_front() {
                        quiet = false;
                        match neighbor::answer(packet.bytes()) {
                            Some(answer) => answers.extend(answer.map(|bytes| (i, bytes))),
                            None => sent.push((i, packet.bytes().to_vec())),
                        }
                    }
                }
            }
            for (port, bytes) in answers {
                self.give(port, bytes);
            }
            if quiet {
                return sent;
            }
        }
    }
}
