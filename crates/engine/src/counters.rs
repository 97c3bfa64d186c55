//! What a worker counts. One writer (the worker), any number of readers; no locked instruction.

mod ages;
mod group;
mod icmp;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::address::Addr;
use crate::port::{Link, PortStats};
use crate::tcp::Connection;
use crate::{DropReason, Verdict};
pub use ages::{Ages, Completion};
pub use group::{GroupCounters, Groups, Traffic};
pub use icmp::IcmpDecision;

/// A counter or gauge with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        // One writer: a plain load and store lose nothing and need no bus lock.
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Packets and bytes (of whole frames).
#[derive(Debug, Default)]
pub struct Volume {
    /// Frames; a super-packet counts once.
    pub packets: Counter,
    /// Their bytes, Ethernet header included.
    pub bytes: Counter,
}

impl Volume {
    fn set(&self, packets: u64, bytes: u64) {
        self.packets.set(packets);
        self.bytes.set(bytes);
    }

    pub(crate) fn count(&self, bytes: usize) {
        self.packets.inc();
        self.bytes.add(bytes as u64);
    }
}

/// The same as plain numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<&Volume> for Total {
    fn from(volume: &Volume) -> Total {
        Total {
            packets: volume.packets.get(),
            bytes: volume.bytes.get(),
        }
    }
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, other: Total) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Which way a packet goes, for the `direction` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From inside.
    Outbound,
    /// From outside.
    Inbound,
}

impl Direction {
    /// Both, in the order of their discriminants.
    pub const ALL: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// The `proto` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other IP protocol.
    Other,
}

impl Protocol {
    /// All, in the order of their discriminants.
    pub const ALL: [Protocol; 4] = [
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::Other,
    ];

    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
            Protocol::Other => "other",
        }
    }

    pub(crate) fn of(proto: u8) -> Protocol {
        const BY_NUMBER: [Protocol; 256] = {
            let mut all = [Protocol::Other; 256];
            (all[6], all[17]) = (Protocol::Tcp, Protocol::Udp);
            (all[1], all[58]) = (Protocol::Icmp, Protocol::Icmp);
            all
        };
        BY_NUMBER[usize::from(proto)]
    }
}

/// Why a flow left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Nothing came for its idle time.
    Idle,
    /// The TCP connection was closed or reset, and its waiting time is over.
    Finished,
    /// A newer policy denies it.
    Policy,
    /// It gave way to a new flow in a full table, or its NAT binding did at the limit on those.
    Evicted,
    /// Its TCP connection was over, and another one took its place: from the same client port, or, with no NAT port free
    /// any more, from its NAT port.
    Reused,
    /// It was translated to an address that the node has no longer.
    AddressLost,
    /// It was opened for another way out: routes, sides or translation have changed since.
    PathChanged,
    /// An administrator ended it.
    Killed,
}

impl CloseReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [CloseReason; 8] = [
        CloseReason::Idle,
        CloseReason::Finished,
        CloseReason::Policy,
        CloseReason::Evicted,
        CloseReason::Reused,
        CloseReason::AddressLost,
        CloseReason::PathChanged,
        CloseReason::Killed,
    ];

    /// The stable name used in metrics and events.
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Idle => "idle_timeout",
            CloseReason::Finished => "finished",
            CloseReason::Policy => "policy",
            CloseReason::Evicted => "evicted",
            CloseReason::Reused => "reused",
            CloseReason::AddressLost => "address_lost",
            CloseReason::PathChanged => "path_changed",
            CloseReason::Killed => "killed",
        }
    }
}

/// A step of the handshake by which a TCP connection is opened (RFC 9293 §3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The client's first segment, which has opened a flow.
    Syn,
    /// The server's answer to it.
    SynAck,
    /// The client's answer to that: the connection is open.
    Ack,
    /// One end has reset it before.
    Reset,
}

impl Handshake {
    /// All steps, in the order of their discriminants.
    pub const ALL: [Handshake; 4] = [
        Handshake::Syn,
        Handshake::SynAck,
        Handshake::Ack,
        Handshake::Reset,
    ];

    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Handshake::Syn => "syn",
            Handshake::SynAck => "syn_ack",
            Handshake::Ack => "ack",
            Handshake::Reset => "reset",
        }
    }
}

/// How many ports were tried, for each flow that one was looked for.
#[derive(Debug, Default)]
pub struct PortScans {
    flows: [Counter; PortScans::BOUNDS.len() + 1],
    ports: Counter,
}

impl PortScans {
    /// The most ports that flows of each bucket needed; the last bucket has no bound.
    pub const BOUNDS: [u64; 7] = [1, 2, 4, 8, 16, 32, 512];

    /// Flows by bucket: each is in one.
    pub fn flows(&self) -> [u64; PortScans::BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.flows[bucket].get())
    }

    /// Ports tried in all.
    pub fn ports(&self) -> u64 {
        self.ports.get()
    }

    pub(crate) fn note(&self, ports: u64) {
        let bucket = Self::BOUNDS.partition_point(|bound| *bound < ports);
        self.flows[bucket].inc();
        self.ports.add(ports);
    }
}

/// What one data port of a worker has moved and lost, and whether it is up; a few hundred milliseconds old at most.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames handed to the engine (a super-packet counts once), and their bytes.
    pub received: Volume,
    /// Frames taken by the wire, and their bytes.
    pub sent: Volume,
    /// Frames lost before the engine saw them, since a buffer was full.
    pub rx_dropped: Counter,
    /// Frames that came but could not be taken over.
    pub rx_errors: Counter,
    /// Frames that the wire had no room for.
    pub tx_dropped: Counter,
    /// Frames that the device refused.
    pub tx_errors: Counter,
    link: Counter,
}

impl PortCounters {
    /// Whether frames can pass.
    pub fn link(&self) -> Link {
        match self.link.get() {
            0 => Link::Up,
            1 => Link::Down,
            _ => Link::Gone,
        }
    }

    pub(crate) fn note(&self, link: Link, stats: &PortStats) {
        self.link.set(match link {
            Link::Up => 0,
            Link::Down => 1,
            Link::Gone => 2,
        });
        self.received.set(stats.rx_frames, stats.rx_bytes);
        self.sent.set(stats.tx_frames, stats.tx_bytes);
        self.rx_dropped.set(stats.rx_dropped);
        self.rx_errors.set(stats.rx_errors);
        self.tx_dropped.set(stats.tx_dropped);
        self.tx_errors.set(stats.tx_errors);
    }
}

/// NAT addresses that are told apart at most.
const NAT_ADDRESSES: usize = 64;

/// How many bindings each NAT address holds now. Of more than 64 addresses in use at a time the
/// rest is not listed.
#[derive(Debug)]
pub struct NatUse([NatAddress; NAT_ADDRESSES]);

/// An address as two words, IPv4 in its mapped form, and its bindings. A place without bindings
/// may be given to another address.
#[derive(Debug, Default)]
struct NatAddress {
    high: Counter,
    low: Counter,
    bindings: Counter,
}

impl NatAddress {
    fn raw(&self) -> u128 {
        u128::from(self.high.get()) << 64 | u128::from(self.low.get())
    }
}

impl NatUse {
    /// The addresses that hold bindings, or did so last, and how many they hold.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u64)> {
        let used = self.0.iter().filter(|place| place.raw() != 0);
        used.map(|place| {
            let address = Ipv6Addr::from(place.raw());
            let address = address.to_ipv4_mapped().map_or(address.into(), IpAddr::V4);
            (address, place.bindings.get())
        })
    }

    pub(crate) fn add(&self, address: Addr) {
        let mut places = self.0.iter();
        let mine = self.0.iter().find(|place| place.raw() == address.0);
        let Some(place) = mine.or_else(|| places.find(|place| place.bindings.get() == 0)) else {
            return;
        };
        place.high.set((address.0 >> 64) as u64);
        place.low.set(address.0 as u64);
        place.bindings.inc();
    }

    pub(crate) fn remove(&self, address: Addr) {
        if let Some(place) = self.0.iter().find(|place| place.raw() == address.0) {
            place.bindings.set(place.bindings.get().saturating_sub(1));
        }
    }
}

/// Packets in tunnels of one kind.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    /// Packets taken out of a tunnel.
    pub taken_out: Counter,
    /// Packets put into a tunnel.
    pub put_in: Counter,
}

/// Data ports of a node at most.
const MAX_PORTS: usize = 2;

/// Everything one worker counts, since it was made.
#[derive(Debug)]
pub struct WorkerCounters {
    generation: Counter,
    drops: [Volume; DropReason::COUNT],
    closed: [Counter; CloseReason::ALL.len()],
    handshakes: [Counter; Handshake::ALL.len()],
    handshake_drops: [[Counter; DropReason::COUNT]; 2],
    unanswered: [Counter; CloseReason::ALL.len()],
    ages: [[Ages; Completion::ALL.len()]; CloseReason::ALL.len()],
    groups: ArcSwap<Groups>,
    ports: [PortCounters; MAX_PORTS],
    port_count: Counter,
    /// What is counted of packets and flows that no source group decided about.
    pub ungrouped: GroupCounters,
    /// Looks for a NAT port that found one, and those that did not.
    pub nat_scans: [PortScans; 2],
    /// Frames handed to the host over the lane.
    pub local: Volume,
    /// Frames handed over to the workers that own their flows.
    pub handed_over: Volume,
    /// Frames answered by the engine itself.
    pub replied: Counter,
    /// Frames for the engine itself that it took in without an answer.
    pub consumed: Counter,
    /// Flows opened.
    pub flows_opened: Counter,
    /// Gauge: flows in the table now.
    pub flows_active: Counter,
    /// How many flows the table holds at most.
    pub flow_capacity: Counter,
    /// Gauge: flows with a NAT binding now.
    pub nat_active: Counter,
    /// How many NAT bindings may exist at most.
    pub nat_capacity: Counter,
    /// Gauge: bindings by NAT address now.
    pub nat_use: NatUse,
    /// Ports tried while looking for free ones.
    pub nat_port_probes: Counter,
    /// Flows that kept their source port through NAT.
    pub nat_ports_kept: Counter,
    /// Flows judged again because the policy, or an address that they may be translated to, changed.
    pub rejudged: Counter,
    /// Flows that a policy in audit mode would have denied.
    pub would_deny: Counter,
    /// TCP connections picked up in the middle.
    pub picked_up: Counter,
    /// Flows taken over from the process before this one.
    pub taken_over: Counter,
    /// Fragments dropped because they made no datagram, under any of the reasons for that.
    pub fragments: Counter,
    /// Datagrams made whole of their fragments.
    pub reassembled: Counter,
    /// Packets cut into fragments for a link that carries less.
    pub fragmented: Counter,
    /// Packets in tunnels: of VXLAN, then of GENEVE.
    pub overlay: [TunnelCounters; 2],
    /// ICMP errors translated and passed on.
    pub icmp_errors_translated: Counter,
    /// ICMP errors originated: time exceeded, packet too big, unreachable.
    pub icmp_errors_sent: Counter,
    /// ICMP errors and resets withheld by the rate limit.
    pub replies_limited: Counter,
    /// TCP resets originated.
    pub resets_sent: Counter,
    /// ARP packets handled.
    pub arp_handled: Counter,
    /// Neighbour discovery messages handled.
    pub nd_handled: Counter,
    /// DHCP messages that were refused because they came from another server than the configured one.
    pub dhcp_untrusted: Counter,
    /// ARP and neighbour discovery messages that were refused because they said that the gateway is another station
    /// than the configured one.
    pub gateway_untrusted: Counter,
    /// ARP and neighbour discovery messages of other stations that claim one of our addresses.
    pub address_conflicts: Counter,
    /// Health probes that were answered.
    pub probes_answered: Counter,
    /// Health probes that were not, since the node was not ready for traffic.
    pub probes_not_ready: Counter,
    /// Health probes that were not, since there were too many.
    pub probes_limited: Counter,
    /// Gauge: next hops known.
    pub neighbors: Counter,
    /// Events lost because the ring to the control side was full.
    pub events_lost: Counter,
    /// Frames that the engine wanted to originate but had no buffer for, or no next hop that answers.
    pub no_buffer: Counter,
    /// Frames for the host that its side of the lane did not take.
    pub lane_lost: Counter,
    /// Turns of the worker's loop; stands still when the worker does.
    pub polls: Counter,
    /// Gauge: the processor that the worker stays on, plus one; 0 if on none.
    cpu: Counter,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        WorkerCounters {
            generation: Counter::default(),
            drops: std::array::from_fn(|_| Volume::default()),
            closed: Default::default(),
            handshakes: Default::default(),
            handshake_drops: std::array::from_fn(|_| std::array::from_fn(|_| Counter::default())),
            unanswered: Default::default(),
            ages: Default::default(),
            groups: ArcSwap::default(),
            ungrouped: GroupCounters::default(),
            nat_scans: Default::default(),
            ports: Default::default(),
            port_count: Counter::default(),
            local: Volume::default(),
            handed_over: Volume::default(),
            replied: Counter::default(),
            consumed: Counter::default(),
            flows_opened: Counter::default(),
            flows_active: Counter::default(),
            flow_capacity: Counter::default(),
            nat_active: Counter::default(),
            nat_capacity: Counter::default(),
            nat_use: NatUse(std::array::from_fn(|_| NatAddress::default())),
            nat_port_probes: Counter::default(),
            nat_ports_kept: Counter::default(),
            rejudged: Counter::default(),
            would_deny: Counter::default(),
            picked_up: Counter::default(),
            taken_over: Counter::default(),
            fragments: Counter::default(),
            reassembled: Counter::default(),
            fragmented: Counter::default(),
            overlay: Default::default(),
            icmp_errors_translated: Counter::default(),
            icmp_errors_sent: Counter::default(),
            replies_limited: Counter::default(),
            resets_sent: Counter::default(),
            arp_handled: Counter::default(),
            nd_handled: Counter::default(),
            dhcp_untrusted: Counter::default(),
            gateway_untrusted: Counter::default(),
            address_conflicts: Counter::default(),
            probes_answered: Counter::default(),
            probes_not_ready: Counter::default(),
            probes_limited: Counter::default(),
            neighbors: Counter::default(),
            events_lost: Counter::default(),
            no_buffer: Counter::default(),
            lane_lost: Counter::default(),
            polls: Counter::default(),
            cpu: Counter::default(),
        }
    }
}

impl WorkerCounters {
    /// Generation of the snapshot that the worker runs on; 0 before its first turn.
    ///
    /// Once this shows a generation, no later packet is judged by an older one.
    pub fn generation(&self) -> u64 {
        self.generation.0.load(Ordering::Acquire)
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.generation.0.store(generation, Ordering::Release);
    }

    /// The data ports, the inside one first.
    pub fn ports(&self) -> &[PortCounters] {
        &self.ports[..(self.port_count.get() as usize).min(MAX_PORTS)]
    }

    /// Notes the processor that the worker stays on.
    pub fn set_cpu(&self, cpu: u32) {
        self.cpu.set(u64::from(cpu) + 1);
    }

    /// The processor that the worker stays on, if on one.
    pub fn cpu(&self) -> Option<u64> {
        self.cpu.get().checked_sub(1)
    }

    pub(crate) fn set_port_count(&self, count: usize) {
        self.port_count.set(count as u64);
    }

    /// Packets forwarded or handed to the host, of all source groups and of none.
    pub fn allowed(&self, direction: Direction, protocol: Protocol) -> Total {
        self.of_all(
            |retired| retired.allowed(direction, protocol),
            |group| group.allowed(direction, protocol),
        )
    }

    /// Packets refused by policy or because a flow may not begin there, of all source groups and of none.
    pub fn denied(&self, direction: Direction, protocol: Protocol) -> Total {
        self.of_all(
            |retired| retired.denied(direction, protocol),
            |group| group.denied(direction, protocol),
        )
    }

    /// The sum over those source groups that are listed, those that are gone, and none.
    fn of_all(
        &self,
        of_retired: impl Fn(&Traffic) -> Total,
        of_group: impl Fn(&GroupCounters) -> &Volume,
    ) -> Total {
        let groups = self.groups.load();
        let mut total = of_retired(groups.retired());
        total += of_group(&self.ungrouped).into();
        for (_, group) in groups.iter() {
            total += of_group(group).into();
        }
        total
    }

    /// Frames discarded for one reason.
    pub fn dropped(&self, reason: DropReason) -> &Volume {
        &self.drops[reason as usize]
    }

    /// Flows that left the table for one reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].get()
    }

    /// Flows that left the table.
    pub fn flows_closed(&self) -> u64 {
        self.closed.iter().map(Counter::get).sum()
    }

    /// The source groups of the policy in force, and those before that have flows still, with what is counted of each
    /// since a policy has it. A group that comes back is counted anew.
    pub fn groups(&self) -> Arc<Groups> {
        self.groups.load_full()
    }

    pub(crate) fn set_groups(&self, groups: Groups) {
        self.groups.store(Arc::new(groups));
    }

    /// Steps of TCP handshakes.
    pub fn handshakes(&self, step: Handshake) -> u64 {
        self.handshakes[step as usize].get()
    }

    pub(crate) fn count_handshake(&self, step: Handshake) {
        self.handshakes[step as usize].inc();
    }

    /// First segments of TCP connections (`false`), or answers to these (`true`), discarded for one reason.
    pub fn handshake_drops(&self, is_answer: bool, reason: DropReason) -> u64 {
        self.handshake_drops[usize::from(is_answer)][reason as usize].get()
    }

    pub(crate) fn count_handshake_drop(&self, is_answer: bool, reason: DropReason) {
        self.handshake_drops[usize::from(is_answer)][reason as usize].inc();
    }

    /// TCP flows that ended for one reason while only their first segment had been seen.
    pub fn unanswered(&self, reason: CloseReason) -> u64 {
        self.unanswered[reason as usize].get()
    }

    pub(crate) fn count_unanswered(&self, reason: CloseReason) {
        self.unanswered[reason as usize].inc();
    }

    /// How long TCP flows had lasted that ended for one reason when their handshake had come so far.
    pub fn ages(&self, reason: CloseReason, completion: Completion) -> &Ages {
        &self.ages[reason as usize][completion as usize]
    }

    pub(crate) fn count_age(&self, reason: CloseReason, connection: &Connection, ticks: u32) {
        let completion = Completion::of(connection);
        self.ages[reason as usize][completion as usize].note(ticks);
    }

    pub(crate) fn count_closed(&self, reason: CloseReason) {
        self.closed[reason as usize].inc();
    }

    /// Counts frames that were kept and have to be dropped.
    pub(crate) fn count_dropped(&self, reason: DropReason, packets: u64, bytes: u64) {
        self.drops[reason as usize].packets.add(packets);
        self.drops[reason as usize].bytes.add(bytes);
    }

    /// Counts what became of a frame, which is not, or not only, a matter of its source group.
    pub(crate) fn count_verdict(&self, verdict: Verdict, bytes: usize) {
        match verdict {
            Verdict::Forward(_) => {}
            Verdict::Local => self.local.count(bytes),
            Verdict::Reply => self.replied.inc(),
            Verdict::Drop(reason) => self.drops[reason as usize].count(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nat_addresses_are_told_apart_and_their_places_used_again() {
        let nat_use = WorkerCounters::default().nat_use;
        let (a, b) = (Addr::v4(1), Addr(5 << 64));
        nat_use.add(a);
        nat_use.add(b);
        nat_use.add(a);
        nat_use.remove(b);
        let listed: Vec<_> = nat_use.addresses().collect();
        assert_eq!(listed, [(a.ip(), 2), (b.ip(), 0)]);
        nat_use.add(Addr::v4(9));
        let listed: Vec<_> = nat_use.addresses().collect();
        assert_eq!(listed, [(a.ip(), 2), (Addr::v4(9).ip(), 1)]);
        for n in 0..100 {
            nat_use.add(Addr::v4(100 + n));
        }
        assert_eq!(nat_use.addresses().count(), NAT_ADDRESSES);
    }
}
