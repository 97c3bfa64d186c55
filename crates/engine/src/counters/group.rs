//! What one worker counts of each source group.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::ages::Ages;
use super::icmp::{IcmpDecision, IcmpDecisions};
use super::{CloseReason, Counter, Direction, Protocol, Total, Volume};

/// What is counted of the packets and flows of one source group. Alone in its cache lines: each worker has its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct GroupCounters {
    allowed: [[Volume; Protocol::ALL.len()]; 2],
    denied: [[Volume; Protocol::ALL.len()]; 2],
    opened: [Counter; Protocol::ALL.len()],
    /// TCP handshakes that were completed.
    pub handshakes_completed: Counter,
    unfinished: [Counter; CloseReason::ALL.len()],
    /// Of what most of ten thousand groups never have.
    lifetimes: OnceLock<Box<[Ages; CloseReason::ALL.len()]>>,
    icmp: OnceLock<Box<IcmpDecisions>>,
}

impl GroupCounters {
    /// Packets forwarded or handed to the host.
    pub fn allowed(&self, direction: Direction, protocol: Protocol) -> &Volume {
        &self.allowed[direction as usize][protocol as usize]
    }

    /// Packets refused by policy or because a flow may not begin there.
    pub fn denied(&self, direction: Direction, protocol: Protocol) -> &Volume {
        &self.denied[direction as usize][protocol as usize]
    }

    /// Flows opened.
    pub fn opened(&self, protocol: Protocol) -> u64 {
        self.opened[protocol as usize].get()
    }

    pub(crate) fn count_opened(&self, proto: u8) {
        self.opened[Protocol::of(proto) as usize].inc();
    }

    /// TCP flows that ended for this reason after the server had answered, and before the client had answered that.
    pub fn unfinished(&self, reason: CloseReason) -> u64 {
        self.unfinished[reason as usize].get()
    }

    pub(crate) fn count_unfinished(&self, reason: CloseReason) {
        self.unfinished[reason as usize].inc();
    }

    /// How long flows lasted that ended for this reason; none if no flow has ended yet.
    pub fn lifetimes(&self, reason: CloseReason) -> Option<&Ages> {
        Some(&self.lifetimes.get()?[reason as usize])
    }

    pub(crate) fn count_lifetime(&self, reason: CloseReason, ticks: u32) {
        self.lifetimes.get_or_init(Box::default)[reason as usize].note(ticks);
    }

    /// ICMP messages by kind, as far as there were any.
    pub fn icmp(&self) -> impl Iterator<Item = IcmpDecision> {
        self.icmp
            .get()
            .into_iter()
            .flat_map(|counted| counted.iter())
    }

    #[cold]
    pub(crate) fn count_icmp(&self, direction: Direction, allowed: bool, kind: (bool, u8, u8)) {
        let counted = self.icmp.get_or_init(Box::default);
        counted.note(direction, allowed, kind);
    }
}

/// Packets and bytes by decision, direction and protocol, as plain numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    allowed: [[Total; Protocol::ALL.len()]; 2],
    denied: [[Total; Protocol::ALL.len()]; 2],
}

impl Traffic {
    /// Packets forwarded or handed to the host.
    pub fn allowed(&self, direction: Direction, protocol: Protocol) -> Total {
        self.allowed[direction as usize][protocol as usize]
    }

    /// Packets refused by policy or because a flow may not begin there.
    pub fn denied(&self, direction: Direction, protocol: Protocol) -> Total {
        self.denied[direction as usize][protocol as usize]
    }

    pub(crate) fn add(&mut self, group: &GroupCounters) {
        for direction in Direction::ALL {
            for protocol in Protocol::ALL {
                let (d, p) = (direction as usize, protocol as usize);
                self.allowed[d][p] += group.allowed(direction, protocol).into();
                self.denied[d][p] += group.denied(direction, protocol).into();
            }
        }
    }
}

/// Source groups by their ids, each with what is counted of it.
#[derive(Debug, Default)]
pub struct Groups {
    listed: Vec<(Arc<str>, Arc<GroupCounters>)>,
    retired: Traffic,
}

impl Groups {
    pub(crate) fn new(listed: Vec<(Arc<str>, Arc<GroupCounters>)>, retired: Traffic) -> Groups {
        Groups { listed, retired }
    }

    /// What was counted of groups that are not listed any more.
    pub fn retired(&self) -> &Traffic {
        &self.retired
    }
}

impl Deref for Groups {
    type Target = [(Arc<str>, Arc<GroupCounters>)];

    fn deref(&self) -> &Self::Target {
        &self.listed
    }
}
