//! Handing the flows, and with them the NAT bindings, to the process that takes over.
//!
//! A chunk is a `u16` (little-endian), the length of its records, and records ([`record`]). What is read is checked
//! against the settings in force here, which may be others than before: a flow that could not be opened like this today
//! is not taken. The policy judges each when its next packet comes, since its epoch is none.

use std::io;
use std::ops::AddAssign;
use std::time::Duration;

use super::{Pipeline, facts};
use crate::clock::Now;
use crate::flow::record::{self, Network};
use crate::flow::{Flow, Sides};
use crate::port::PortId;
use crate::snapshot::{Limits, Side};

/// Version of the chunks that `Worker::export_flows` writes. It changes when an older reader could not make sense of
/// them; fields put behind those of a record do not change it.
pub const FLOWS_VERSION: u16 = 1;

/// Records of one chunk: nine MiB.
const CHUNK: usize = 1 << 16;
/// Bytes in front of the records.
const FRONT: usize = 2;
/// Flows that are looked up together.
const BATCH: usize = 32;

/// What became of the flows of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Taken over.
    pub taken: u64,
    /// They had been idle for too long meanwhile.
    pub expired: u64,
    /// They do not fit the settings in force, the table or each other.
    pub refused: u64,
    /// Another worker takes them.
    pub elsewhere: u64,
}

impl AddAssign for Imported {
    fn add_assign(&mut self, other: Imported) {
        self.taken += other.taken;
        self.expired += other.expired;
        self.refused += other.refused;
        self.elsewhere += other.elsewhere;
    }
}

/// Bytes that hold no flows.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{len} bytes hold no records of {record_len} bytes")]
pub struct MalformedFlows {
    /// How many bytes there are behind the front.
    pub len: usize,
    /// How long they say that each record is.
    pub record_len: usize,
}

impl Pipeline {
    pub(crate) fn export_flows(
        &self,
        now: Now,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let overlay = self.snapshot.settings().overlay;
        let full = FRONT + CHUNK * record::LEN;
        let room = FRONT + (self.flows.active() as usize).min(CHUNK) * record::LEN;
        let mut chunk = Vec::with_capacity(room);
        let front = (record::LEN as u16).to_le_bytes();
        chunk.extend_from_slice(&front);
        for flow in self.flows.iter() {
            let network = self.tunnels.id(flow.tunnel).zip(overlay);
            let network = network.map(|(id, o)| Network::new(id, &o.encapsulation));
            record::emit(&flow, network, now.tick(), &mut chunk);
            if chunk.len() == full {
                sink(&chunk)?;
                chunk.truncate(FRONT);
            }
        }
        if chunk.len() > FRONT {
            sink(&chunk)?;
        }
        Ok(())
    }

    pub(crate) fn import_flows(
        &mut self,
        now: Now,
        elapsed: Duration,
        chunk: &[u8],
    ) -> Result<Imported, MalformedFlows> {
        let (front, records) = chunk.split_at(chunk.len().min(FRONT));
        let record_len = match front {
            [low, high] => usize::from(u16::from_le_bytes([*low, *high])),
            _ => 0,
        };
        if record_len < record::MIN_LEN || !records.len().is_multiple_of(record_len) {
            let len = records.len();
            return Err(MalformedFlows { len, record_len });
        }
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let mut imported = Imported::default();
        for batch in records.chunks(record_len * BATCH) {
            let mut flows = [const { None }; BATCH];
            for (place, bytes) in flows.iter_mut().zip(batch.chunks(record_len)) {
                *place = record::parse(bytes, now, elapsed_ns);
                if let Some((flow, _)) = place {
                    for key in [flow.client_key(), flow.server_key()] {
                        self.flows.prefetch_bucket(self.flows.hash(&key));
                    }
                } else {
                    imported.refused += 1;
                }
            }
            for (flow, network) in flows.into_iter().flatten() {
                self.take_over(now, flow, network, &mut imported);
            }
        }
        self.counters.taken_over.add(imported.taken);
        let active = u64::from(self.flows.active());
        self.counters.flows_active.set(active);
        self.counters.nat_active.set(u64::from(self.nat_active));
        Ok(imported)
    }

    fn take_over(
        &mut self,
        now: Now,
        mut flow: Flow,
        network: Option<Network>,
        imported: &mut Imported,
    ) {
        // Both directions lead to one worker, unless there are more or fewer workers than before, or another seed.
        let (steering, snapshot) = (&self.steering, &self.snapshot);
        let by_client = steering.owner_of_client(snapshot, &flow.client_key());
        let by_server = steering.owner_of(snapshot, &flow.server_key());
        if !self.steering.is_mine(by_server) {
            imported.elsewhere += 1;
            return;
        }
        if let Some(network) = network {
            // Without a number it is not possible below.
            flow.tunnel = self.tunnels.number(network.id).unwrap_or(0);
        }
        // It is judged when its next packet comes. Until then it keeps the grant that it needs then.
        let first = facts(&flow.client_key(), flow.icmp);
        (_, flow.grant) = self.grants.judge(self.snapshot.policy(), &first);
        if flow.has_expired(now.tick(), self.snapshot.idle()) {
            imported.expired += 1;
        } else if by_client == by_server
            && self.is_possible(&mut flow, network)
            && let Some(id) = self
                .flows
                .insert_at(&flow, now.tick(), self.snapshot.idle())
        {
            if self.tally.enter(&flow, &Limits::default()).is_err() {
                self.flows.remove(id);
                imported.refused += 1;
                return;
            }
            self.use_grant(flow.grant);
            self.tunnels.opened(flow.tunnel);
            if flow.is_translated() {
                self.bound(&flow);
            }
            imported.taken += 1;
        } else {
            imported.refused += 1;
        }
    }

    /// Whether a flow could have been opened like this under the settings in force; if so, knows its ports.
    fn is_possible(&self, flow: &mut Flow, network: Option<Network>) -> bool {
        let (snapshot, limits) = (&self.snapshot, &self.snapshot.settings().limits);
        let towards = match (snapshot.settings().overlay, network) {
            (Some(overlay), Some(network)) => {
                let was_here = network == Network::new(network.id, &overlay.encapsulation);
                let onward = PortId(u8::from(overlay.encapsulation.is_pair()));
                (was_here && flow.tunnel != 0).then_some(onward)
            }
            (None, None) => snapshot.route(flow.server).map(|hop| hop.port),
            _ => None,
        };
        let Some(towards) = towards else {
            return false;
        };
        // Flows begin inside: at the only port, or at the first of two.
        let turns_back = self.turns_back(network.is_some(), &flow.client_key());
        flow.sides = Sides::new(PortId(0), towards).turning(turns_back);
        let is_inside = snapshot.source_side(PortId(0), flow.client) == Side::Inside;
        let outwards =
            turns_back || snapshot.destination_side(towards, flow.server) == Side::Outside;
        let nat = match outwards {
            true => snapshot.nat_addresses(flow.client.is_v4()),
            false => &[],
        };
        let prefix = snapshot.translate_prefix(flow.client);
        let translated_as_now = match (prefix.filter(|_| outwards), nat) {
            (Some(prefix), _) => prefix == Some(flow.nat) && flow.nat_port == flow.client_port,
            (None, []) => !flow.is_translated(),
            (None, _) => flow.is_translated() && snapshot.is_told_by_port(flow.nat),
        };
        let has_room = self.flows.active() < limits.max_flows
            && (!flow.is_translated() || self.nat_active < limits.max_nat_bindings);
        is_inside
            && translated_as_now
            && has_room
            && !snapshot.is_ours(flow.client)
            && ![flow.client, flow.server].iter().any(|a| a.is_link_local())
            && !self.flows.contains(&flow.client_key())
            && !self.flows.contains(&flow.server_key())
    }
}
