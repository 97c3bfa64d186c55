//! Asking another member in this node's name, from outside the daemon: with the identity and the list of members that
//! the node keeps on disk. So root on one node can ask any other, whether or not its own daemon runs.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::auth::{MintRequest, Minted};
use bytes::Bytes;
use cluster::identity::{Identity, NodeKey};
use cluster::join::KnownMember;
use cluster::peers::Peers;
use cluster::tls::{TlsError, Trust};
use cluster::transport::grpc::GrpcTransport;
use cluster::transport::{Kind, Peer, Transport, TransportError};
pub use cluster::{HttpRequest, HttpResponse};
use cluster::{NodeId, State, pem};

/// Why a member gave no token.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// Something that this node keeps on disk is missing or damaged.
    #[error("{}: {reason}", .path.display())]
    OnDisk {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is this node's own: it is asked over its control socket.
    #[error("{0} is this node")]
    Own(String),
    /// No member that this node knows has that address.
    #[error("{address} is the address of no member that this node knows ({})", .known.join(", "))]
    Unknown {
        /// The address that was given.
        address: String,
        /// Those that are known.
        known: Vec<String>,
    },
    /// The member was not reached, broke off, or refused.
    #[error("{address}: {source}")]
    Transport {
        /// Who was asked.
        address: String,
        /// What became of it.
        source: TransportError,
    },
    /// The member's answer cannot be read.
    #[error("{address} gave an answer that cannot be read: {reason}")]
    Unreadable {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Has the member whose cluster listener is at `address` mint a token. `tls_dir` holds this node's identity; the list
/// of members is in the directory above it. Waits at most `limit`.
///
/// # Errors
/// [`MemberError`].
pub async fn mint(
    tls_dir: &Path,
    address: &str,
    request: &MintRequest,
    limit: Duration,
) -> Result<Minted, MemberError> {
    let body = serde_json::to_vec(request).expect("a request has string keys only");
    let answer = call(tls_dir, address, Kind::Mint, body.into(), limit).await?;
    serde_json::from_slice(&answer).map_err(|error| MemberError::Unreadable {
        address: address.to_owned(),
        reason: error.to_string(),
    })
}

/// Makes a management request of the member whose cluster listener is at `address`, as root of this node; that member
/// passes it on to the leader where it must. As [`mint`] otherwise.
///
/// # Errors
/// [`MemberError`]; a refusal by the API is an answer.
pub async fn ask(
    tls_dir: &Path,
    address: &str,
    request: &HttpRequest,
    limit: Duration,
) -> Result<HttpResponse, MemberError> {
    let body = rmp_serde::to_vec_named(request).expect("a request has no value that it lacks");
    let answer = call(tls_dir, address, Kind::Admin, body.into(), limit).await?;
    rmp_serde::from_slice(&answer).map_err(|error| MemberError::Unreadable {
        address: address.to_owned(),
        reason: error.to_string(),
    })
}

async fn call(
    tls_dir: &Path,
    address: &str,
    kind: Kind,
    body: Bytes,
    limit: Duration,
) -> Result<Bytes, MemberError> {
    let identity = identity(tls_dir)?;
    let data_dir = tls_dir.parent().unwrap_or(tls_dir);
    let peers = match Peers::load(data_dir) {
        Ok(Some(peers)) => peers,
        Ok(None) => {
            return Err(on_disk(
                data_dir,
                "holds no list of members; is this --cluster-tls-dir?",
            ));
        }
        Err(error) => return Err(on_disk(data_dir, error)),
    };
    let peer = find(peers.members(), identity.node_id, address)?;
    let trust = Trust::new(&identity, peers.pins(&State::default()))?;
    let answer = GrpcTransport::new(trust)
        .call(&peer, kind, body, limit)
        .await;
    answer.map_err(|source| MemberError::Transport {
        address: address.to_owned(),
        source,
    })
}

/// Who this node is, from key and certificates in `tls_dir`.
fn identity(tls_dir: &Path) -> Result<Identity, MemberError> {
    let read = |name: &str| {
        let path = tls_dir.join(name);
        std::fs::read(&path).map_err(|error| on_disk(&path, error))
    };
    let certificates = |name: &str| {
        pem::parse_certificates(&read(name)?).map_err(|error| on_disk(&tls_dir.join(name), error))
    };
    let key_path = tls_dir.join("node.key");
    let pkcs8 = pem::parse_private_key(&zeroize::Zeroizing::new(read("node.key")?))
        .map_err(|error| on_disk(&key_path, error))?;
    let key = NodeKey::from_pkcs8(&pkcs8).map_err(|error| on_disk(&key_path, error))?;
    let certificate = certificates("node.crt")?.remove(0);
    Identity::issued(key, certificate, certificates("ca.crt")?).ok_or_else(|| {
        on_disk(
            &tls_dir.join("node.crt"),
            "is not the certificate of the key beside it",
        )
    })
}

/// The member at `address`, which is compared as an address where it is one: `[fd00:0::1]:9600` is `[fd00::1]:9600`.
fn find<'a>(
    members: impl Iterator<Item = &'a KnownMember> + Clone,
    own: NodeId,
    address: &str,
) -> Result<Peer, MemberError> {
    let same = |other: &str| match (address.parse::<SocketAddr>(), other.parse::<SocketAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => address.eq_ignore_ascii_case(other),
    };
    match members.clone().find(|member| same(&member.cluster_address)) {
        Some(member) if member.node_id == own => Err(MemberError::Own(address.to_owned())),
        Some(member) => Ok(Peer {
            node_id: member.node_id,
            address: member.cluster_address.clone(),
        }),
        None => Err(MemberError::Unknown {
            address: address.to_owned(),
            known: members
                .map(|member| member.cluster_address.clone())
                .collect(),
        }),
    }
}

fn on_disk(path: &Path, reason: impl Display) -> MemberError {
    MemberError::OnDisk {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
