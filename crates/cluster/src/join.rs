//! Secure join: how a node without an identity becomes one that members trust.
//!
//! Both sides prove that they hold the bootstrap secret, by an HMAC over role, both nonces, the hash of the joiner's
//! certificate request and the TLS exporter of this very connection; the cluster proves first. With a [join token](token)
//! they sign the same instead: the cluster with the key of its CA, which the token names, the joiner with the key that it
//! derives from the token. Nothing secret crosses the wire, and a proof that is relayed over another connection, or
//! replayed, is worth nothing. The connection's certificate is therefore made up on the spot and means nothing either.
//!
//! [`protocol`] is pure: bytes in, bytes out, with nonces and exporter as arguments. [`listener`] and [`client`] own
//! sockets and time.

#[expect(
    clippy::disallowed_methods,
    reason = "owns sockets: tokio's runtime, the machine's clock"
)]
pub mod client;
mod journal;
#[expect(
    clippy::disallowed_methods,
    reason = "owns sockets: tokio's runtime, the machine's clock"
)]
pub mod listener;
pub mod protocol;
pub mod secret;
pub mod token;

use serde::{Deserialize, Serialize};

use crate::ca::{Ca, CaError, Csr};
use crate::command::{Addresses, Credential, Reservation};
use crate::id::{ClusterId, Digest, Lineage, NodeId};

/// ALPN of the join listener.
pub const ALPN_JOIN: &[u8] = b"neuwerk-join/1";

/// Label of the TLS exporter (RFC 8446, 7.5) that binds a proof to its connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-neuwerk-join";

/// A request for membership whose credential this cluster has verified. Members forward it to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// PKCS #10, DER; its signature has been checked.
    #[serde(with = "serde_bytes")]
    pub csr: Vec<u8>,
    /// Host name of the joiner, for people.
    pub name: String,
    /// Where it will be reached.
    pub addresses: Addresses,
    /// Version of its program.
    pub version: String,
    /// Highest feature level that it supports.
    pub feature_level: u32,
    /// What it proved.
    pub credential: Credential,
}

impl EnrolRequest {
    /// The log entry that reserves a node id for this request.
    ///
    /// # Errors
    /// [`CaError`] when the certificate request is not what it was when it was accepted.
    pub fn reservation(&self) -> Result<Reservation, CaError> {
        let csr = Csr::parse(&self.csr)?;
        Ok(Reservation {
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            spki: csr.spki(),
            csr: csr.digest(),
            credential: self.credential.clone(),
        })
    }

    /// Issues the certificate for the node id that was reserved.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue(
        &self,
        ca: &Ca,
        cluster_id: ClusterId,
        node_id: NodeId,
        now: std::time::SystemTime,
    ) -> Result<crate::command::Certificate, CaError> {
        let host = host(&self.addresses.cluster);
        ca.issue_node(cluster_id, node_id, host, &Csr::parse(&self.csr)?, now)
    }
}

/// A member, as a new one is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMember {
    /// Its id.
    pub node_id: NodeId,
    /// `host:port` of its cluster listener.
    pub cluster_address: String,
    /// `host:port` of its join listener.
    pub join_address: String,
    /// SHA-256 of its SubjectPublicKeyInfo: the key to pin.
    pub spki: Digest,
}

/// Membership, as it is handed to the joiner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolGrant {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its lineage.
    pub lineage: Lineage,
    /// The joiner's id.
    pub node_id: NodeId,
    /// The joiner's certificate, X.509 DER.
    #[serde(with = "serde_bytes")]
    pub certificate: Vec<u8>,
    /// The cluster CAs to trust, X.509 DER.
    pub authorities: Vec<serde_bytes::ByteBuf>,
    /// The members.
    pub members: Vec<KnownMember>,
}

/// Why a joiner that has proved its secret is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct EnrolRefusal {
    /// Whether the same request may be granted later: there is no leader now, say.
    pub retry: bool,
    /// For the joiner's operator.
    pub reason: String,
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}
