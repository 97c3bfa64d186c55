//! How members talk: the boundary between consensus and the wire.
//!
//! A [`Transport`] carries opaque bodies to a member and brings answers back; a [`Service`] is what listens on the other
//! side. Both ends are authenticated: a transport delivers to the member that was named or fails, and tells the service
//! who is asking. Bodies are MessagePack made by this crate.

#[expect(
    clippy::disallowed_methods,
    reason = "owns sockets: tokio's runtime, the machine's clock"
)]
pub mod grpc;
pub mod memory;
pub mod tally;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::id::NodeId;

/// The member to talk to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its id: whoever answers must prove to be it.
    pub node_id: NodeId,
    /// `host:port` of its cluster listener.
    pub address: String,
}

/// What a unary request asks for. The numbers are part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Raft: a vote.
    Vote = 1,
    /// Raft: would you vote for me?
    PreVote = 2,
    /// Raft: take over leadership.
    TransferLeader = 3,
    /// Raft: a single append, which is what heartbeats are. Wants a connection that bulk traffic cannot delay.
    Append = 4,
    /// A member's report to the leader.
    Report = 5,
    /// The leader's confirmed read index.
    ReadIndex = 6,
    /// A management request forwarded to the leader.
    Http = 7,
    /// A join request forwarded to the leader.
    Enrol = 8,
    /// Certificate renewal, asked of the leader.
    Renew = 9,
    /// An API token, asked of any member by another one's root.
    Mint = 10,
    /// Something for the change log that another member than the leader saw.
    Event = 16,
    /// A management request, asked of any member by another one's root.
    Admin = 24,
    /// A member's part of a support archive.
    Sysdump = 25,
    /// Where members are, asked of any member by one that has lost them.
    Find = 20,
    /// What does that member remember of this one's acknowledgements?
    Recall = 11,
    /// The fingerprint of a member's state at one index.
    Fingerprint = 12,
    /// What a member's clients were told of names. Ordered: in the order in which they are sent, requests are answered.
    Grants = 26,
}

impl Kind {
    /// The kind with this number.
    pub fn from_u8(number: u8) -> Option<Kind> {
        use Kind::{
            Admin, Append, Enrol, Event, Find, Fingerprint, Grants, Http, Mint, PreVote, ReadIndex,
            Recall, Renew, Report, Sysdump, TransferLeader, Vote,
        };
        [
            Vote,
            PreVote,
            TransferLeader,
            Append,
            Report,
            ReadIndex,
            Http,
            Enrol,
            Renew,
            Mint,
            Event,
            Admin,
            Sysdump,
            Find,
            Recall,
            Fingerprint,
            Grants,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vote => "vote",
            Kind::PreVote => "pre_vote",
            Kind::TransferLeader => "transfer_leader",
            Kind::Append => "append",
            Kind::Report => "report",
            Kind::ReadIndex => "read_index",
            Kind::Http => "http",
            Kind::Enrol => "enrol",
            Kind::Renew => "renew",
            Kind::Mint => "mint",
            Kind::Event => "event",
            Kind::Admin => "admin",
            Kind::Sysdump => "sysdump",
            Kind::Find => "find",
            Kind::Recall => "recall",
            Kind::Fingerprint => "fingerprint",
            Kind::Grants => "grants",
        }
    }

    /// Whether requests arrive in the order in which they are sent.
    pub fn is_ordered(self) -> bool {
        matches!(self, Kind::Append | Kind::Grants)
    }

    /// Whether the request must not wait behind large ones: elections and heartbeats.
    pub fn is_urgent(self) -> bool {
        matches!(
            self,
            Kind::Vote | Kind::PreVote | Kind::TransferLeader | Kind::Append
        )
    }
}

/// Why a request brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The member cannot be reached, or whoever answers is not it. Certainly not delivered.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The connection broke or the time ran out: delivered or not.
    #[error("no answer: {0}")]
    Lost(String),
    /// The member answered with a refusal.
    #[error("refused: {0}")]
    Refused(String),
}

impl TransportError {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            TransportError::Unreachable(_) => "unreachable",
            TransportError::Lost(_) => "lost",
            TransportError::Refused(_) => "refused",
        }
    }
}

/// Carries requests to members. Cheap to share; makes, keeps and renews its connections by itself.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request and waits for its answer, `deadline` at most.
    fn call(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;

    /// Opens an ordered stream of appends: one answer per request, in order. Ends when either side ends.
    /// `deadline` limits the opening only.
    fn open_append(
        &self,
        peer: &Peer,
        requests: BoxStream<'static, Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>>;

    /// Sends a snapshot as chunks, each at most [`CHUNK_BYTES`](crate::command::CHUNK_BYTES) and some framing, and waits
    /// until it is installed. There is no deadline on the whole; the transport gives up when the peer stops reading.
    fn send_snapshot(
        &self,
        peer: &Peer,
        chunks: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;

    /// Closes connections to a member and opens no new ones: it was removed.
    fn forget(&self, node_id: NodeId);

    /// Asks whichever members answer at some addresses, all at once, and brings what they say within `deadline`.
    fn find(&self, search: Search) -> BoxFuture<'static, Vec<(NodeId, Bytes)>> {
        let _ = search;
        Box::pin(async { Vec::new() })
    }

    /// A member is at `address` now. Believed as long as callers dial it at `recorded`: a new address of record is
    /// newer.
    fn relocate(&self, node_id: NodeId, recorded: &str, address: &str) {
        let _ = (node_id, recorded, address);
    }

    /// Where members are that are elsewhere than on record.
    fn relocated(&self) -> Vec<(NodeId, String)> {
        Vec::new()
    }

    /// Whether a member has said that this node was removed.
    fn is_removed(&self) -> bool {
        false
    }
}

/// Where to look for members, and what to ask them.
#[derive(Debug, Clone)]
pub struct Search {
    /// `host:port` of cluster listeners; host names too.
    pub addresses: Vec<String>,
    /// This node's own, which is passed over.
    pub own: String,
    /// The body of a [`Kind::Find`].
    pub body: Bytes,
    /// When to give up.
    pub deadline: Duration,
}

/// A request that was not carried out; its text goes back to the caller as [`TransportError::Refused`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ServiceError(pub String);

/// What a member does with requests of other members. `from` is authenticated by the transport.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        from: NodeId,
        kind: Kind,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>>;

    /// Answers a stream of appends.
    fn handle_append(
        &self,
        from: NodeId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, ServiceError>>;

    /// Takes a snapshot and answers once it is installed. An `Err` item means that the sender gave up.
    fn handle_snapshot(
        &self,
        from: NodeId,
        chunks: BoxStream<'static, Result<Bytes, TransportError>>,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>>;
}
