//! A flow as it is handed to the process that takes over: fixed fields at fixed places, little-endian, addresses in
//! network order.
//!
//! | at | field | at | field |
//! |---|---|---|---|
//! | 0 | client address, 16 bytes | 60 | largest window of client, server |
//! | 16 | server address | 64 | end of what client, server has sent |
//! | 32 | address that the server sees | 72 | end of what client, server may send |
//! | 48 | client's port | 80 | nanoseconds since the last packet |
//! | 50 | server's port | 88 | bytes from client, server |
//! | 52 | port that the server sees | 104 | packets from client, server |
//! | 54 | protocol | 112 | low half of the policy revision |
//! | 55 | ICMP type, code | 116 | rule |
//! | 57 | TCP state, 0 without TCP | 120 | source group |
//! | 58 | TCP flags, window shifts | 122 | kind of tunnel: 0 none, 1 VXLAN, 2 GENEVE, 3 with an endpoint |
//! | | | 123 | network identifier, 24 bits |
//! | | | 126 | endpoint |
//! | | | 134 | milliseconds from the first packet to the last |
//! | | | 138 | end |
//!
//! A later version may put fields behind; a reader takes those that it knows, and zeros for those that an earlier one did
//! not have, down to [`MIN_LEN`]. Neither the hash of a flow nor its place
//! travels, nor the epoch or the grant: whoever takes it judges it anew.

use super::{Flow, Key, Sides};
use crate::address::Addr;
use crate::clock::{Now, TICK_SHIFT, Tick};
use crate::overlay::{Encapsulation, TunnelId};
use crate::port::PortId;
use crate::tally::NO_PLACE;
use crate::tcp::Connection;
use crate::wire::proto;

/// Bytes of a record of this version.
pub(crate) const LEN: usize = 138;

/// Bytes of the shortest record, of the first version.
pub(crate) const MIN_LEN: usize = 122;

/// Where the network is, and behind it how long the flow has lasted.
const NETWORK: usize = 122;
const NETWORK_LEN: usize = 12;
const LASTED: usize = NETWORK + NETWORK_LEN;

const NANOS_PER_MS: u64 = 1_000_000;

/// The network that a flow is in, as others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) is_geneve: bool,
    pub(crate) id: TunnelId,
}

impl Network {
    pub(crate) fn new(id: TunnelId, encapsulation: &Encapsulation) -> Network {
        Network {
            is_geneve: matches!(encapsulation, Encapsulation::Geneve { .. }),
            id,
        }
    }

    fn to_bytes(self) -> [u8; NETWORK_LEN] {
        let kind = match (self.is_geneve, self.id.endpoint) {
            (false, _) => 1,
            (true, None) => 2,
            (true, Some(_)) => 3,
        };
        let mut b = [0; NETWORK_LEN];
        b[0] = kind;
        b[1..4].copy_from_slice(&self.id.vni.to_le_bytes()[..3]);
        b[4..].copy_from_slice(&self.id.endpoint.unwrap_or(0).to_le_bytes());
        b
    }

    /// None inside is a flow outside of tunnels; none at all is one that nobody understands.
    fn from_bytes(b: [u8; NETWORK_LEN]) -> Option<Option<Network>> {
        let [kind, low, middle, high, endpoint @ ..] = b;
        let (is_geneve, endpoint) = match kind {
            0 => return Some(None),
            1 => (false, None),
            2 => (true, None),
            3 => (true, Some(u64::from_le_bytes(endpoint))),
            _ => return None,
        };
        let vni = u32::from_le_bytes([low, middle, high, 0]);
        let id = TunnelId { vni, endpoint };
        Some(Some(Network { is_geneve, id }))
    }
}

/// Appends a flow as it is at `now`, with the network that it is in.
pub(crate) fn emit(flow: &Flow, network: Option<Network>, now: Tick, out: &mut Vec<u8>) {
    let mut r = [0; LEN];
    for (at, address) in [(0, flow.client), (16, flow.server), (32, flow.nat)] {
        put(&mut r, at, address.0.to_be_bytes());
    }
    put(&mut r, 48, flow.client_port.to_le_bytes());
    put(&mut r, 50, flow.server_port.to_le_bytes());
    put(&mut r, 52, flow.nat_port.to_le_bytes());
    put(&mut r, 54, [flow.proto, flow.icmp.0, flow.icmp.1]);
    if flow.proto == proto::TCP {
        put(&mut r, 57, flow.tcp.to_bytes());
    }
    let age = u64::from(now.since(flow.last_seen)) << TICK_SHIFT;
    put(&mut r, 80, age.to_le_bytes());
    for end in 0..2 {
        put(&mut r, 88 + 8 * end, flow.bytes[end].to_le_bytes());
        put(&mut r, 104 + 4 * end, flow.packets[end].to_le_bytes());
    }
    put(&mut r, 112, flow.revision.to_le_bytes());
    put(&mut r, 116, flow.rule.to_le_bytes());
    put(&mut r, 120, flow.group.to_le_bytes());
    if let Some(network) = network {
        put(&mut r, NETWORK, network.to_bytes());
    }
    let lasted = (u64::from(flow.last_seen.since(flow.opened)) << TICK_SHIFT) / NANOS_PER_MS;
    put(&mut r, LASTED, (lasted as u32).to_le_bytes());
    out.extend_from_slice(&r);
}

/// Reads a record that was written `elapsed_ns` ago, and the network that its flow is in. None if it describes no flow, or
/// one of long ago. The ports that lead to the ends, the number of the network, and the epoch are the reader's to
/// fill in.
pub(crate) fn parse(bytes: &[u8], now: Now, elapsed_ns: u64) -> Option<(Flow, Option<Network>)> {
    let known = bytes.len().min(LEN);
    let mut r = [0; LEN];
    r[..known].copy_from_slice(&bytes[..known]);
    let r = &r;
    let address = |at| Addr(u128::from_be_bytes(get(r, at)));
    let u16_at = |at| u16::from_le_bytes(get(r, at));
    let u32_at = |at| u32::from_le_bytes(get(r, at));
    let u64_at = |at| u64::from_le_bytes(get(r, at));
    let proto = r[54];
    let tcp = match proto {
        proto::TCP => Connection::from_bytes(get(r, 57))?,
        _ => Connection::default(),
    };
    let age = u64_at(80).checked_add(elapsed_ns)? >> TICK_SHIFT;
    // Ticks wrap: a time stamp of more than half their range ago would lie ahead.
    let age = u32::try_from(age).ok().filter(|age| *age < u32::MAX / 2)?;
    let last_seen = Tick(now.tick().0.wrapping_sub(age));
    let lasted = (u64::from(u32_at(LASTED)) * NANOS_PER_MS).div_ceil(1 << TICK_SHIFT);
    let flow = Flow {
        client: address(0),
        server: address(16),
        nat: address(32),
        client_port: u16_at(48),
        server_port: u16_at(50),
        nat_port: u16_at(52),
        proto,
        icmp: (r[55], r[56]),
        sides: Sides::new(PortId(0), PortId(0)),
        last_seen,
        opened: Tick(last_seen.0.wrapping_sub(lasted as u32)),
        bytes: [u64_at(88), u64_at(96)],
        packets: [u32_at(104), u32_at(108)],
        epoch: 0,
        revision: u32_at(112),
        rule: u32_at(116),
        group: u16_at(120),
        // Counted with its group once it has been judged here.
        tally: NO_PLACE,
        grant: None,
        tunnel: 0,
        tcp,
    };
    let one_family =
        flow.client.is_v4() == flow.server.is_v4() && flow.client.is_v4() == flow.nat.is_v4();
    let network = Network::from_bytes(get(r, NETWORK))?;
    (one_family && flow.client_key() != Key::default()).then_some((flow, network))
}

fn put<const N: usize>(record: &mut [u8; LEN], at: usize, bytes: [u8; N]) {
    record[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(record: &[u8; LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| record[at + i])
}
