//! A worker between clients and one server, and the clients' frames.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use engine::grant::{Address, Granted, Table, UseId, Uses};
use engine::snapshot::{PortSettings, Settings, Snat};
use engine::{DropReason, Imported, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::{Compiled, Document};

use super::frame::{LEN, LEN6, advertisement, udp, udp6};
use super::looped::Looped;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// What every packet leaves with.
const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const SERVER: [u8; 4] = [192, 0, 2, 9];
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// Where the servers with names are, behind the router that [`SERVER`] is then.
const NAMED: u32 = 0xcb00_0000;

/// A policy document, and how many names it has that have been resolved.
pub(crate) struct Rules {
    json: String,
    names: u32,
    /// How many servers the traffic goes to, and how far apart their addresses are; none: to [`SERVER`].
    servers: u32,
    apart: u32,
    /// How many ports of each.
    ports: u32,
    /// The traffic is IPv6's.
    v6: bool,
}

impl Rules {
    /// Ten rules, of which the last allows the traffic.
    pub(crate) fn few() -> Self {
        Self::of(10)
    }

    /// Ten rules of which none allows the traffic.
    #[allow(dead_code, reason = "not every bench denies")]
    pub(crate) fn none() -> Self {
        Self::plain(Self::few().json.replace("192.0.2.9/32", "192.0.2.8/32"))
    }

    /// 10,000 rules, of which the last allows the traffic.
    pub(crate) fn many() -> Self {
        Self::of(10_000)
    }

    /// Ten rules, of which the last allows the traffic, behind one with 100,000 networks.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn networks() -> Self {
        let list: Vec<String> = (0..100_000)
            .map(|i| format!("\"{}/28\"", Ipv4Addr::from(0xcb00_0000 + i * 32)))
            .collect();
        let first = format!(
            "\"rules\":[{{\"id\":\"networks\",\"action\":\"allow\",\"match\":{{\"dst_cidrs\":[{}]}}}},",
            list.join(",")
        );
        Self::plain(Self::few().json.replace("\"rules\":[", &first))
    }

    /// 10,000 rules by a name each, which have led to an address each; the traffic is to these.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn named() -> Self {
        let names = 10_000;
        let matches = |i| format!("\"dns_names\":[\"host{i}.example\"],\"proto\":\"udp\"");
        Self {
            json: document((0..names).map(|i| (format!("n{i}"), matches(i)))),
            names,
            servers: names,
            apart: 1,
            ports: 32_000,
            v6: false,
        }
    }

    /// The ten rules, and traffic to 32,000 servers.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn few_spread() -> Self {
        let json = Self::few().json.replace("192.0.2.9/32", "203.0.0.0/8");
        Self::plain(json).spread()
    }

    /// One rule with 100,000 networks, and the same traffic, of which each server has a network of its own.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn networks_spread() -> Self {
        Self::networks().spread()
    }

    fn spread(self) -> Self {
        Self {
            servers: 32_000,
            apart: 96,
            ..self
        }
    }

    /// The ten rules, and traffic to one port of one server.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn one_port() -> Self {
        Self {
            ports: 1,
            ..Self::few()
        }
    }

    /// Ten rules for IPv6, of which the last allows the traffic.
    #[allow(dead_code, reason = "not every bench has them")]
    pub(crate) fn few_ipv6() -> Self {
        let others = (1..10).map(|i| {
            let matches = format!(
                "\"dst_cidrs\":[\"2001:db8:{i}::/64\"],\"proto\":\"tcp\",\"dst_ports\":[443]"
            );
            (format!("a{i}"), matches)
        });
        let web = ("web".into(), format!("\"dst_cidrs\":[\"{SERVER6}/128\"]"));
        Self {
            v6: true,
            ..Self::plain(document(others.chain([web])))
        }
    }

    fn plain(json: String) -> Self {
        Self {
            json,
            names: 0,
            servers: 0,
            apart: 0,
            ports: 32_000,
            v6: false,
        }
    }

    /// Bytes of a frame.
    fn len(&self) -> usize {
        match self.v6 {
            true => LEN6,
            false => LEN,
        }
    }

    pub(crate) fn of(count: u32) -> Self {
        let others = (1..count).map(|i| {
            let address = Ipv4Addr::from(NAMED + i);
            let matches =
                format!("\"dst_cidrs\":[\"{address}/32\"],\"proto\":\"tcp\",\"dst_ports\":[443]");
            (format!("a{i}"), matches)
        });
        let web = ("web".into(), "\"dst_cidrs\":[\"192.0.2.9/32\"]".into());
        Self::plain(document(others.chain([web])))
    }

    fn compile(&self, revision: u64) -> Result<Arc<Compiled>> {
        let document = Document::parse_json(self.json.as_bytes()).context("the document")?;
        Ok(Arc::new(Compiled::compile(&document, revision)?))
    }

    /// What the names have led to: the server of each is granted to its rule, and flows to it are counted at its place.
    fn grants(&self, policy: &Compiled, uses: &Arc<Uses>) -> Table {
        let mut table = Table::new(Arc::clone(uses));
        for (rule, i) in policy.name_rules().zip(0..self.names) {
            let granted = Granted {
                rule,
                client: None,
                counted: UseId::at(i),
            };
            table.set(Ipv4Addr::from(NAMED + i).into(), Address::new([granted]));
        }
        table
    }
}

/// A policy document with these rules, by id and match, which all allow.
fn document(rules: impl Iterator<Item = (String, String)>) -> String {
    let mut json = String::from(
        "{\"source_groups\":[{\"id\":\"clients\",\"mode\":\"enforce\",\
         \"sources\":{\"cidrs\":[\"10.0.0.0/8\",\"fd00::/16\"]},\"rules\":[",
    );
    for (id, matches) in rules {
        write!(
            json,
            "{{\"id\":\"{id}\",\"action\":\"allow\",\"match\":{{{matches}}}}},"
        )
        .expect("a string grows");
    }
    json.pop();
    json + "]}]}"
}

/// A measurement.
#[derive(Default)]
pub(crate) struct Time {
    pub(crate) packets: u64,
    pub(crate) cpu_ns: u64,
}

pub(crate) struct Scene {
    worker: Worker<Looped, Looped>,
    counters: Arc<WorkerCounters>,
    published: Arc<ArcSwap<Snapshot>>,
    uses: Arc<Uses>,
    /// How many of the servers have names; none: there is one.
    names: u32,
    frames: Rc<[u8]>,
    /// Bytes of each.
    len: usize,
    /// What sources are translated to.
    outside: IpAddr,
    /// Nanoseconds of the worker's clock.
    clock: u64,
}

impl Scene {
    pub(crate) fn new(rules: &Rules, flows: u32) -> Result<Self> {
        Self::with_frames(rules, flows, Self::frames(rules, flows))
    }

    /// One frame of each flow, shuffled. Of half a million and more, many have a client's port that another client has
    /// towards the same server and port.
    pub(crate) fn frames(rules: &Rules, flows: u32) -> Rc<[u8]> {
        let mut order: Vec<u32> = (0..flows).collect();
        let mut random = 1_u64;
        for i in (1..order.len()).rev() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            order.swap(i, (random >> 33) as usize % (i + 1));
        }
        let mut frames = Vec::with_capacity(order.len() * rules.len());
        for i in order {
            if rules.v6 {
                let client =
                    Ipv6Addr::from((0xfd00 << 112) + (u128::from(0x1_0000 + i / 16) << 64) + 2);
                let source = SocketAddrV6::new(client, 2000 + (i % 16) as u16, 0, 0);
                let server = SocketAddrV6::new(SERVER6, 1000 + (i / 16 % 32_000) as u16, 0, 0);
                frames.extend(udp6([PEER, MACS[0]], source, server));
                continue;
            }
            let client = Ipv4Addr::from(0x0a01_0000 + i / 16);
            let source = SocketAddrV4::new(client, 2000 + (i % 16) as u16);
            let server = match (i / 16 % 32_000).checked_rem(rules.servers) {
                Some(server) => Ipv4Addr::from(NAMED + server * rules.apart),
                None => SERVER.into(),
            };
            let server = SocketAddrV4::new(server, 1000 + (i / 16 % rules.ports) as u16);
            frames.extend(udp([PEER, MACS[0]], source, server));
        }
        frames.into()
    }

    /// A worker that has an entry for the server's station.
    pub(crate) fn with_frames(rules: &Rules, flows: u32, frames: Rc<[u8]>) -> Result<Self> {
        ensure!(
            frames.len() == flows as usize * rules.len(),
            "frames of {} bytes",
            rules.len()
        );
        let port = |v4: &str, v6: &str| -> Result<PortSettings> {
            let all = if rules.v6 { vec![v4, v6] } else { vec![v4] };
            let addresses = all.iter().map(|address| address.parse());
            Ok(PortSettings {
                addresses: addresses.collect::<Result<_, _>>()?,
                ..PortSettings::default()
            })
        };
        let mut settings = Settings {
            ports: vec![
                port("10.0.0.1/8", "fd00::1/16")?,
                port("192.0.2.1/24", "2001:db8::1/64")?,
            ],
            nat66: rules.v6.then_some(Snat::Auto),
            ..Settings::default()
        };
        settings.ports[1].gateways.push(SERVER.into());
        let limits = &mut settings.limits;
        for limit in [&mut limits.max_flows, &mut limits.max_nat_bindings] {
            *limit = flows.max(*limit);
        }
        let policy = rules.compile(1)?;
        let uses = Arc::default();
        let grants = rules.grants(&policy, &uses);
        let snapshot =
            Snapshot::new(1, Arc::clone(&policy), settings)?.with_policy(1, policy, grants);
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        let counters = Arc::new(WorkerCounters::default());
        let worker = worker(42, flows, &published, &counters)?;
        let mut scene = Self {
            worker,
            counters,
            published,
            uses,
            names: rules.names,
            frames: Rc::clone(&frames),
            len: rules.len(),
            outside: match rules.v6 {
                true => OUTSIDE6.into(),
                false => OUTSIDE.into(),
            },
            clock: 1,
        };
        // The first packets ask for the server's station, and this is its answer (RFC 826, RFC 4861).
        scene.worker.ports_mut()[0].deliver(frames, rules.len());
        let now = scene.now();
        scene.turn(now);
        let mut answer = [&MACS[1][..], &PEER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &PEER].concat();
        answer.extend(SERVER);
        answer.extend(MACS[1]);
        answer.extend(OUTSIDE);
        answer.resize(LEN, 0);
        if rules.v6 {
            answer = advertisement([PEER, MACS[1]], SERVER6, OUTSIDE6).to_vec();
        }
        scene.worker.ports_mut()[0].deliver(Rc::new([]), 1);
        scene.worker.ports_mut()[1].deliver(answer.into(), rules.len());
        let now = scene.now();
        scene.turn(now);
        scene.silence();
        Ok(scene)
    }

    /// Nothing comes any more.
    pub(crate) fn silence(&mut self) {
        for port in self.worker.ports_mut() {
            port.deliver(Rc::new([]), 1);
        }
    }

    /// The clients' packets come again.
    pub(crate) fn resume(&mut self) {
        self.worker.ports_mut()[0].deliver(Rc::clone(&self.frames), self.len);
    }

    /// The worker's time: ten microseconds pass in a turn.
    pub(crate) fn now(&mut self) -> Now {
        self.clock += 10_000;
        Now(self.clock)
    }

    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    /// One turn of the worker, and the nanoseconds that it took.
    pub(crate) fn turn(&mut self, now: Now) -> u64 {
        let before = cpu_ns();
        self.worker.poll(now);
        cpu_ns() - before
    }

    /// Sends a packet of each flow, all of which are opened by that.
    pub(crate) fn open_all(&mut self) -> Result<Time> {
        let flows = (self.frames.len() / self.len) as u64;
        self.resume();
        let time = self.poll_packets(flows);
        ensure!(
            self.active() == flows,
            "{} of {flows} flows were opened",
            self.active()
        );
        let granted: u64 = (0..self.names)
            .map(|i| u64::from(self.uses.of(UseId::at(i))))
            .sum();
        ensure!(
            self.names == 0 || granted == flows,
            "{granted} of {flows} flows are by a grant"
        );
        Ok(time)
    }

    /// Turns until so many packets were taken.
    pub(crate) fn poll_packets(&mut self, packets: u64) -> Time {
        let before = cpu_ns();
        let mut taken = 0;
        while taken < packets {
            let now = self.now();
            taken += self.worker.poll(now) as u64;
        }
        Time {
            packets: taken,
            cpu_ns: cpu_ns() - before,
        }
    }

    /// A packet of each flow again, each of which has to arrive with the translated source.
    pub(crate) fn check_round(&mut self) -> Result<()> {
        let flows = (self.frames.len() / self.len) as u64;
        self.worker.ports_mut()[1].expected = Some((self.outside, 0));
        let before = self.sent();
        let taken = self.poll_packets(flows).packets;
        let sent = self.sent() - before;
        let wrong = self.worker.ports_mut()[1].expected.take();
        ensure!(
            wrong == Some((self.outside, 0)) && sent == taken,
            "{sent} of {taken} packets arrived, {wrong:?} untranslated"
        );
        Ok(())
    }

    /// Makes the rules the policy, and returns what was in force before.
    pub(crate) fn publish(&mut self, rules: &Rules, revision: u64) -> Result<Arc<Snapshot>> {
        let now = self.published.load_full();
        let policy = rules.compile(revision)?;
        let grants = rules.grants(&policy, &self.uses);
        let next = now.with_policy(revision, policy, grants);
        self.published.store(Arc::new(next));
        Ok(now)
    }

    /// Hands every flow to a worker of the next process, and takes them back; milliseconds of both.
    pub(crate) fn hand_over(&mut self) -> Result<[f64; 2]> {
        let flows = self.frames.len() / self.len;
        let mut chunks = Vec::new();
        let before = cpu_ns();
        self.worker.export_flows(Now(self.clock), |chunk| {
            chunks.push(chunk.to_vec());
            Ok(())
        })?;
        let exported = cpu_ns();
        let counters = Arc::new(WorkerCounters::default());
        let mut next = worker(43, u32::try_from(flows)?, &self.published, &counters)?;
        let began = cpu_ns();
        let mut handed = Imported::default();
        for chunk in &chunks {
            handed += next.import_flows(Now(self.clock), Duration::ZERO, chunk)?;
        }
        let imported = cpu_ns();
        ensure!(
            handed.taken == flows as u64,
            "{} of {flows} flows were taken over",
            handed.taken
        );
        Ok([exported - before, imported - began].map(|ns| ns as f64 / 1e6))
    }

    /// Packets that have come from inside.
    #[allow(dead_code, reason = "not every bench counts them")]
    pub(crate) fn given(&self) -> u64 {
        self.worker.ports()[0].given
    }

    /// Packets that were sent outside.
    pub(crate) fn sent(&self) -> u64 {
        self.worker.ports()[1].sent
    }

    /// Packets that came and were dropped.
    #[allow(dead_code, reason = "not every bench counts them")]
    pub(crate) fn lost(&self) -> u64 {
        DropReason::ALL
            .iter()
            .map(|reason| self.counters.dropped(*reason).packets.get())
            .sum()
    }

    /// Flows in the table.
    pub(crate) fn active(&self) -> u64 {
        self.counters.flows_active.get()
    }

    /// Flows that a new policy has judged.
    pub(crate) fn rejudged(&self) -> u64 {
        self.counters.rejudged.get()
    }
}

fn worker(
    seed: u64,
    flows: u32,
    published: &Arc<ArcSwap<Snapshot>>,
    counters: &Arc<WorkerCounters>,
) -> Result<Worker<Looped, Looped>> {
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed,
        flow_capacity: flows.max(1024),
        events: None,
    };
    let pool = Rc::default();
    let ports = vec![Looped::new(MACS[0], &pool), Looped::new(MACS[1], &pool)];
    let (published, counters) = (Arc::clone(published), Arc::clone(counters));
    Ok(Worker::new(ports, None, published, config, counters)?)
}

/// Processor time of this thread.
fn cpu_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
