//! Management requests on their way to the leader, as they cross the cluster transport.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::status::NoLeader;

/// An HTTP request that a follower hands to the leader as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// `GET`, `PUT`, …
    pub method: String,
    /// Path and query.
    pub path_and_query: String,
    /// Header names and values, in order.
    pub headers: Vec<(String, ByteBuf)>,
    /// The whole body.
    pub body: ByteBuf,
    /// Who asked, `ip:port`; not authenticated beyond the node that forwards.
    #[serde(default)]
    pub client_addr: String,
}

/// The leader's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Header names and values, in order.
    pub headers: Vec<(String, ByteBuf)>,
    /// The whole body.
    pub body: ByteBuf,
}

/// Why the leader did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Nobody to ask. The request was not delivered.
    #[error(transparent)]
    NoLeader(#[from] NoLeader),
    /// This node leads: it must answer itself.
    #[error("this node is the leader")]
    IsLeader,
    /// The leader could not be reached, or takes no such request. It was not carried out.
    #[error("the leader cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke or the time ran out: carried out or not.
    #[error("the leader did not answer: {0}")]
    Lost(String),
}
