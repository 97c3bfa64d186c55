//! The types that consensus is made of, generic over the async runtime.
//!
//! Leader ids are standard Raft's: one leader a term, and log ids of term and index only. A log entry carries a command
//! as its encoding, so that it is encoded once, by the leader, and a member that does not know the command finds out
//! when it applies it, and stops, instead of losing it in transit.

pub(crate) mod feed;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod service;

use std::fmt;
use std::marker::PhantomData;

use openraft::impls::{
    BoxedErrorSource, EntryPayload, InlineBatch, OneshotResponder, leader_id_std,
};
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::command::{Response, Stamped};
use crate::id::NodeId;

/// A command as the log carries it: the encoding of a [`Stamped`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(serde_bytes::ByteBuf);

impl Proposal {
    /// Encodes a command.
    pub fn new(stamped: &Stamped) -> Self {
        Proposal(serde_bytes::ByteBuf::from(stamped.encode()))
    }

    /// The command.
    ///
    /// # Errors
    /// One that this version does not know.
    pub fn decode(&self) -> Result<Stamped, rmp_serde::decode::Error> {
        Stamped::decode(&self.0)
    }

    /// Bytes of the encoding.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a command has a name at least.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.len())
    }
}

/// How Raft's membership names a member's address: what is needed to dial it before its state is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `host:port` of its cluster listener.
    pub cluster: String,
}

/// openraft's type configuration on the runtime `R`.
pub struct Types<R>(PhantomData<fn() -> R>);

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Types<R> {}

impl<R> Default for Types<R> {
    fn default() -> Self {
        Types(PhantomData)
    }
}

impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for Types<R> {}

impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<R: AsyncRuntime> RaftTypeConfig for Types<R> {
    type D = Proposal;
    type R = Response;
    type NodeId = NodeId;
    type Node = Address;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload<Proposal, NodeId, Address>;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
pub(crate) type CommittedLeaderId = <LeaderId as openraft::vote::RaftLeaderId>::Committed;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, EntryPayload<Proposal, NodeId, Address>>;
pub(crate) type Membership = openraft::StoredMembership<CommittedLeaderId, NodeId, Address>;
