//! Changes of what the members trust and keep secret: vouchers, sealed secrets, the CA's successor, approvals.
//!
//! All of them came with feature level 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Authority, Secret};
use crate::id::{Digest, NodeId};

/// A member's word for another member's key: what lets a node that was off recognise those who joined meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// Who vouches.
    pub by: NodeId,
    /// The other's key and name, signed with the voucher's node key: X.509, DER.
    pub certificate: ByteBuf,
    /// The voucher's own certificate, for its key: X.509, DER.
    pub signer: ByteBuf,
}

/// The data key, sealed for one member (RFC 9180, base mode).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// The encapsulated key.
    pub enc: ByteBuf,
    /// The data key, encrypted.
    pub sealed: ByteBuf,
}

/// A data key as the state keeps it: once for every member, readable by nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKey {
    /// Counts data keys, from 1.
    pub epoch: u64,
    /// The key itself, by member.
    pub wraps: BTreeMap<NodeId, Wrapped>,
}

/// All secrets of the state, sealed anew under a new data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealing {
    /// The new data key.
    pub key: DataKey,
    /// The secrets that these are, as [`State::secrets_digest`](crate::State::secrets_digest) told; refused if any was
    /// changed since.
    pub of: Digest,
    /// Key of the cluster CA.
    pub cluster_ca: Secret,
    /// Key of the HTTPS CA.
    pub https_ca: Secret,
    /// Key of the cluster CA's successor, or predecessor, while there is one.
    #[serde(default)]
    pub other_ca: Option<Secret>,
    /// API signing keys, by key id.
    pub signing_keys: BTreeMap<String, Secret>,
    /// The replicated bootstrap secret, if there is one.
    #[serde(default)]
    pub bootstrap: Option<Secret>,
}

/// What a new cluster seals its first secrets with, so that none is ever written down in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstKey {
    /// The seed's public sealing key (X25519).
    pub sealing_key: ByteBuf,
    /// The first data key.
    pub data_key: DataKey,
}

/// A change of trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustChange {
    /// Keeps a voucher for a member.
    Vouch {
        /// The member.
        node_id: NodeId,
        /// For it.
        voucher: Voucher,
    },
    /// Lets a joiner in that waits for an administrator.
    Approve {
        /// Which.
        node_id: NodeId,
    },
    /// Records the key that secrets are wrapped for, as the member reported it.
    SetSealingKey {
        /// Whose.
        node_id: NodeId,
        /// X25519 public key.
        public: ByteBuf,
    },
    /// Seals every secret under a new data key.
    Seal(Box<Sealing>),
    /// Wraps the data key in force for one more member.
    Wrap {
        /// For whom.
        node_id: NodeId,
        /// Epoch of the data key.
        epoch: u64,
        /// The key.
        wrapped: Wrapped,
    },
    /// Trusts a new cluster CA beside the old one, which still issues.
    StartCaRotation {
        /// The new one.
        next: Authority,
    },
    /// Every member trusts the new CA: it issues from now on.
    IssueFromNextCa,
    /// Every member shows a certificate of the new CA: the old one is not trusted any more.
    FinishCaRotation,
    /// Goes back to the old CA.
    AbortCaRotation,
    /// Replaces the bootstrap secret for the whole cluster; what the members' files hold admits nobody any more.
    PutBootstrapSecret {
        /// Its key id.
        kid: String,
        /// The secret, text.
        secret: Secret,
    },
}

/// Why a change of trust changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TrustRefusal {
    /// The joiner waits for an administrator.
    #[error("the new member waits for approval: neuwerk cluster members approve NODE")]
    NotApproved,
    /// The secrets or the members were changed in between: look again.
    #[error("the secrets or the members were changed in between")]
    Stale,
    /// One rotation at a time.
    #[error("a rotation of the cluster CA is under way already")]
    RotationUnderWay,
    /// There is nothing to go on with or to abort.
    #[error("no rotation of the cluster CA is under way")]
    NoRotation,
}
