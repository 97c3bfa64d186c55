//! Commands: everything that can change the replicated state, as types.
//!
//! A [`Command`] is what a caller asks for; the leader makes it a [`Stamped`] by adding time and randomness, so that
//! [`State::apply`](crate::State::apply) needs neither. The encoding is MessagePack with field names: fields may be
//! added with a default, and nothing may be renamed or removed (`tests/golden` holds one of each, for ever). What an
//! older version does not know needs a [feature level](crate::feature).

mod trust;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use uuid::Uuid;

pub use trust::{DataKey, FirstKey, Sealing, TrustChange, TrustRefusal, Voucher, Wrapped};

use crate::id::{ClusterId, Digest, Lineage, NodeId};

/// Size of a content-addressed chunk: 256 KiB. Only the last chunk of a document may be shorter.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Largest policy document: 64 MiB.
pub const MAX_DOCUMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Secret bytes that live in the replicated state. Never printed.
///
/// Sealed from feature level 2 on: what is kept on disk, and in backups, then tells nothing without a member's own key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Secret {
    /// The bytes themselves. The store they end up in is readable by root only.
    Plain(ByteBuf),
    /// Encrypted under the data key (AES-256-GCM). Read it with [`State::open`](crate::State::open).
    Sealed {
        /// Epoch of the data key.
        epoch: u64,
        /// Random, 12 bytes.
        nonce: ByteBuf,
        /// Ciphertext and tag.
        sealed: ByteBuf,
    },
}

impl Secret {
    /// A secret kept as it is.
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Secret::Plain(ByteBuf::from(bytes.into()))
    }

    /// Epoch of the data key that it is sealed under; none if it is not sealed.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Secret::Plain(_) => None,
            Secret::Sealed { epoch, .. } => Some(*epoch),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        if let Secret::Plain(bytes) = self {
            bytes.zeroize();
        }
    }
}

/// On whose behalf a command is proposed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// Subject of the credential, or `system` for what the cluster does by itself.
    pub subject: String,
    /// Node at which the request came in.
    #[serde(default)]
    pub node: Option<NodeId>,
}

impl Author {
    /// The cluster itself, acting through `node`.
    pub fn system(node: NodeId) -> Self {
        Author {
            subject: "system".into(),
            node: Some(node),
        }
    }
}

/// A command as it stands in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// What to do.
    pub command: Command,
    /// The leader's wall clock when it proposed, milliseconds since 1970. Log time never runs backwards: a smaller
    /// value counts as the largest one seen.
    pub time_ms: u64,
    /// Randomness from which identifiers are derived.
    #[serde(with = "serde_bytes")]
    pub seed: [u8; 32],
    /// On whose behalf.
    #[serde(default)]
    pub author: Author,
    /// A retry under the same key gets the first answer, and does nothing again.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// SHA-256 of the request that the key came with, since the same request need not make the same command twice: it
    /// may look at the state, or draw a key. From feature level 2 on; without it, the command is what is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Digest>,
}

impl Stamped {
    /// The encoding that goes into the log.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a command has no value that MessagePack lacks")
    }

    /// Reads [`Stamped::encode`]'s output.
    ///
    /// # Errors
    /// A command that this version does not know is an error: the caller stops instead of skipping it.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }
}

/// A large document, named by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Document {
    /// The document itself; at most [`CHUNK_BYTES`].
    Inline(ByteBuf),
    /// Chunks that were put before by [`Command::PutChunk`], in order.
    Chunks {
        /// SHA-256 of each chunk.
        chunks: Vec<Digest>,
        /// Length of the whole, in bytes.
        len: u64,
        /// SHA-256 of the whole.
        hash: Digest,
    },
}

/// A certificate authority: certificate, and the key that signs with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// X.509 certificate, DER.
    #[serde(with = "serde_bytes")]
    pub certificate_der: Vec<u8>,
    /// PKCS #8 private key, DER.
    pub key_pkcs8: Secret,
}

/// A key that signs API tokens (Ed25519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Key id, the `kid` of the tokens it signs.
    pub kid: String,
    /// Raw public key, 32 bytes.
    #[serde(with = "serde_bytes")]
    pub public: Vec<u8>,
    /// PKCS #8 private key, DER.
    pub key_pkcs8: Secret,
}

/// What a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May read.
    Readonly,
    /// May read and change everything.
    Admin,
}

/// Whether an account may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountStatus {
    /// Its tokens work.
    #[default]
    Active,
    /// None of its tokens work.
    Disabled,
}

/// The parts of a service account that a client decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSpec {
    /// Unique among accounts; 1–128 bytes.
    pub name: String,
    /// Free text, at most 1024 bytes.
    #[serde(default)]
    pub description: String,
    /// The most that its tokens may do.
    pub role: Role,
    /// Whether it may be used.
    #[serde(default)]
    pub status: AccountStatus,
}

/// The parts of a service account's token that a client decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpec {
    /// Free name, at most 128 bytes.
    #[serde(default)]
    pub name: Option<String>,
    /// At most the account's role.
    pub role: Role,
    /// The key that signs it.
    pub kid: String,
    /// How long it lives from the log time of its creation on, milliseconds; none: for ever. A duration, so that a
    /// retry is the same command.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

/// How new members are let in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinApproval {
    /// A valid credential is enough.
    #[default]
    Auto,
    /// An administrator confirms each.
    Manual,
}

/// Cluster-wide settings, replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Name shown to operators, and typed out to confirm what loses quorum.
    pub cluster_name: String,
    /// How new members are let in.
    pub join_approval: JoinApproval,
    /// Whether the bootstrap secret still admits members.
    pub bootstrap_join: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cluster_name: "neuwerk".into(),
            join_approval: JoinApproval::Auto,
            bootstrap_join: true,
        }
    }
}

/// Where a member is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// `host:port` of its cluster listener, as the others dial it.
    pub cluster: String,
    /// `host:port` of its join listener.
    pub join: String,
    /// `host:port` of its management API; empty while unknown.
    pub http: String,
}

/// Who decides whether a member votes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Suffrage {
    /// The cluster, by what it needs.
    #[default]
    Auto,
    /// An operator has promoted it: it goes before those that nobody has.
    Voter,
    /// An operator has demoted it: it does not vote until told otherwise.
    Learner,
}

impl Suffrage {
    /// Whether it is left to the cluster.
    pub fn is_auto(&self) -> bool {
        *self == Suffrage::Auto
    }
}

/// A certificate that was issued to a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// X.509 certificate, DER.
    #[serde(with = "serde_bytes")]
    pub der: Vec<u8>,
    /// Serial number, big-endian.
    #[serde(with = "serde_bytes")]
    pub serial: Vec<u8>,
    /// Milliseconds since 1970.
    pub not_before_ms: u64,
    /// Milliseconds since 1970.
    pub not_after_ms: u64,
}

/// What a joiner proved that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// The bootstrap secret with this key id.
    Bootstrap {
        /// `kid` in the token file; empty for a bare secret.
        kid: String,
    },
    /// A join token; one use is consumed.
    Token {
        /// Id of the token.
        id: Uuid,
    },
}

/// A request for membership whose credential the leader has verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Host name of the joiner, for people.
    pub name: String,
    /// Where it will be reached.
    pub addresses: Addresses,
    /// SHA-256 of its SubjectPublicKeyInfo, DER: the key that peers pin.
    pub spki: Digest,
    /// SHA-256 of the certificate request. The same request again gets the same node id.
    pub csr: Digest,
    /// What it proved.
    pub credential: Credential,
}

/// The first entry of a cluster, written by its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// The new cluster.
    pub cluster_id: ClusterId,
    /// Its first lineage.
    pub lineage: Lineage,
    /// Settings to begin with.
    #[serde(default)]
    pub settings: Settings,
    /// CA of the members' certificates.
    pub cluster_ca: Authority,
    /// CA of the management API's server certificates.
    pub https_ca: Authority,
    /// First key that signs API tokens.
    pub signing_key: SigningKey,
    /// The seed, which is the first member.
    pub seed: FirstMember,
    /// `policy.default`: becomes revision 0.
    #[serde(default)]
    pub policy: Option<Document>,
    /// Highest feature level that the seed supports.
    #[serde(default)]
    pub feature_level: u32,
    /// The seed's version, as in [`Command::RaiseFeatureLevel`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What the secrets in here are sealed with; none if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_key: Option<FirstKey>,
}

/// The seed's own entry among the members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstMember {
    /// Its id.
    pub node_id: NodeId,
    /// Its host name, for people.
    pub name: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// SHA-256 of its SubjectPublicKeyInfo, DER.
    pub spki: Digest,
    /// Its certificate.
    pub certificate: Certificate,
}

/// Something that happened to the cluster and is worth keeping, without being a change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A join request was refused.
    JoinRefused,
    /// A node of another cluster answered at a known address.
    ForeignCluster,
    /// An identity was seen live in two places.
    DuplicateIdentity,
    /// A token was minted on a node, without quorum.
    BreakGlass,
    /// A member showed a certificate whose dates do not include now.
    OutOfDate,
    /// The cluster was recovered from what one node held, or restored from a backup, under a new lineage.
    Recovered,
}

/// A change of the replicated state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster; refused when it exists.
    Init(Box<Init>),
    /// Stores one chunk of a document that a later command will name. Dropped after an hour if none does.
    PutChunk {
        /// SHA-256 of `bytes`.
        hash: Digest,
        /// At most [`CHUNK_BYTES`].
        bytes: ByteBuf,
    },
    /// Makes a document the policy. Content is validated before it is proposed, never here.
    PutPolicy {
        /// The policy document.
        document: Document,
        /// Refused with the current revision unless this is it.
        #[serde(default)]
        if_match: Option<u64>,
        /// Why; at most 1024 bytes.
        #[serde(default)]
        message: String,
    },
    /// Adds a key for API tokens and signs with it from now on. Older keys go on verifying.
    AddSigningKey(SigningKey),
    /// Ends a key: its tokens stop working. The active key cannot be retired.
    RetireSigningKey {
        /// Key to retire.
        kid: String,
    },
    /// Creates a service account.
    CreateAccount(AccountSpec),
    /// Replaces a service account's fields.
    UpdateAccount {
        /// Which.
        id: Uuid,
        /// Refused with the current revision unless this is it.
        #[serde(default)]
        if_match: Option<u64>,
        /// The new fields.
        spec: AccountSpec,
    },
    /// Disables a service account and revokes its tokens.
    DisableAccount {
        /// Which.
        id: Uuid,
        /// Refused with the current revision unless this is it.
        #[serde(default)]
        if_match: Option<u64>,
    },
    /// Records a token of a service account; the answer carries its id, which is the `jti` to sign.
    CreateToken {
        /// Account that it belongs to.
        account: Uuid,
        /// Its fields.
        spec: TokenSpec,
    },
    /// Revokes a token.
    RevokeToken {
        /// Account that it belongs to.
        account: Uuid,
        /// Which.
        token: Uuid,
    },
    /// Replaces the settings.
    PutSettings {
        /// The new settings.
        settings: Settings,
        /// Refused with the current revision unless this is it.
        #[serde(default)]
        if_match: Option<u64>,
    },
    /// Records the public half of a join token.
    CreateJoinToken {
        /// Its id.
        id: Uuid,
        /// Ed25519 public key.
        #[serde(with = "serde_bytes")]
        public: [u8; 32],
        /// Milliseconds since 1970.
        expires_ms: u64,
        /// How many members it admits; at least 1.
        uses: u32,
    },
    /// Ends a join token.
    RevokeJoinToken {
        /// Which.
        id: Uuid,
    },
    /// Consumes a use of the credential and gives the joiner a node id.
    ReserveMember(Reservation),
    /// Records the certificate issued to a member: it may connect. Also used at renewal.
    ConfirmMember {
        /// Which.
        node_id: NodeId,
        /// Its certificate.
        certificate: Certificate,
    },
    /// Replaces where a member is reached, and what it says of itself.
    UpdateMember {
        /// Which.
        node_id: NodeId,
        /// Host name.
        name: String,
        /// Where it is reached.
        addresses: Addresses,
        /// Its boot: random, new at every start.
        #[serde(default)]
        incarnation: u64,
        /// Highest feature level it supports.
        #[serde(default)]
        feature_level: u32,
    },
    /// Asks a member to go: it leaves the voters first, while its peers still talk to it.
    RemoveMember {
        /// Which.
        node_id: NodeId,
    },
    /// Takes a leaving member's trust away. Proposed by the leader once it no longer counts.
    ReleaseMember {
        /// Which.
        node_id: NodeId,
    },
    /// Decides for members whether they vote, or leaves it to the cluster again. All of them, or none.
    SetSuffrage {
        /// What holds for whom from now on.
        members: BTreeMap<NodeId, Suffrage>,
        /// Refused unless this is [`State::suffrage_tag`](crate::State::suffrage_tag).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_match: Option<u64>,
    },
    /// Has a member refuse new flows, or take them again.
    DrainMember {
        /// Which.
        node_id: NodeId,
        /// Whether it refuses them.
        draining: bool,
    },
    /// Allows what every member supports. Never falls.
    RaiseFeatureLevel {
        /// The new level.
        level: u32,
        /// The version of the leader that raises it, for those who come too late to understand it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        version: String,
    },
    /// Changes what the members trust and keep secret.
    Trust(TrustChange),
    /// Keeps an event in the change log.
    RecordEvent {
        /// What happened.
        kind: EventKind,
        /// To whom, at most 256 bytes.
        subject: String,
        /// More, at most 1024 bytes.
        #[serde(default)]
        detail: String,
    },
}

/// A kind of record, as named in refusals and in the change log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The cluster as a whole.
    Cluster,
    /// The policy.
    Policy,
    /// A chunk of a document.
    Chunk,
    /// An API signing key.
    SigningKey,
    /// A service account.
    Account,
    /// A service account's token.
    Token,
    /// The settings.
    Settings,
    /// A join token.
    JoinToken,
    /// A member.
    Member,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Record::Cluster => "cluster",
            Record::Policy => "policy",
            Record::Chunk => "chunk",
            Record::SigningKey => "signing key",
            Record::Account => "service account",
            Record::Token => "token",
            Record::Settings => "settings",
            Record::JoinToken => "join token",
            Record::Member => "member",
        })
    }
}

/// What applying a command answered. Refusals are answers too: they are the same on every member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The entry carried no command.
    Nothing,
    /// Done.
    Done,
    /// The policy in force by revision.
    Policy {
        /// Its revision.
        revision: u64,
        /// SHA-256 of the document.
        hash: Digest,
        /// False when this document already was the policy.
        changed: bool,
    },
    /// A record was created or changed.
    Record {
        /// Its id.
        id: Uuid,
        /// Its revision.
        revision: u64,
    },
    /// The settings were replaced.
    Settings {
        /// Their revision.
        revision: u64,
    },
    /// A node id was given out.
    Reserved {
        /// The joiner's id.
        node_id: NodeId,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

impl Response {
    /// Turns a refusal into an error.
    ///
    /// # Errors
    /// The refusal, if it is one.
    pub fn accepted(self) -> Result<Response, Refusal> {
        match self {
            Response::Refused(refusal) => Err(refusal),
            other => Ok(other),
        }
    }
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No cluster has been founded in this store.
    #[error("the cluster is not initialised yet")]
    NotInitialised,
    /// This store has a cluster.
    #[error("the cluster {cluster_id} exists already")]
    AlreadyInitialised {
        /// The cluster that exists.
        cluster_id: ClusterId,
    },
    /// Somebody else changed the record first.
    #[error("the {record} is at revision {current}")]
    Conflict {
        /// What was to be changed.
        record: Record,
        /// Its revision now.
        current: u64,
    },
    /// There is no such record.
    #[error("no such {record}")]
    NotFound {
        /// What was named.
        record: Record,
    },
    /// Another record has this name or id.
    #[error("the {record} exists already")]
    Exists {
        /// What was to be created.
        record: Record,
    },
    /// The document names chunks that are not stored: put them (again), then retry.
    #[error("{} chunks of the document are missing", chunks.len())]
    MissingChunks {
        /// Which.
        chunks: Vec<Digest>,
    },
    /// The bytes are not what their hash or length says.
    #[error("the content does not match its hash")]
    Corrupt,
    /// Too large.
    #[error("the {record} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// What was too large.
        record: Record,
        /// The limit.
        limit_bytes: u64,
    },
    /// There are as many as there may be.
    #[error("there are {limit} of kind {record} already")]
    Full {
        /// Of what.
        record: Record,
        /// The limit.
        limit: u64,
    },
    /// The active signing key cannot be retired.
    #[error("this is the active signing key: add another one first")]
    ActiveKey,
    /// The account is disabled.
    #[error("the service account is disabled")]
    AccountDisabled,
    /// A token may not do more than its account.
    #[error("the token's role exceeds its account's")]
    RoleExceeded,
    /// The credential does not admit members (any more).
    #[error("the join credential is {0}")]
    Credential(CredentialState),
    /// This member was removed. It can only come back as a new one.
    #[error("the member was removed")]
    MemberRemoved,
    /// The member is not leaving.
    #[error("the member is not leaving")]
    NotLeaving,
    /// The last member cannot leave.
    #[error("this is the last member")]
    LastMember,
    /// No member would be left that may vote.
    #[error("no member would be left that may vote")]
    NoVoter,
    /// The idempotency key was used for something else.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// Trust is as it was.
    #[error(transparent)]
    Trust(TrustRefusal),
    /// Not every member supports this level.
    #[error("members support feature level {supported} at most")]
    FeatureLevel {
        /// What all members support.
        supported: u32,
    },
}

/// Why a join credential admits nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialState {
    /// No such token.
    Unknown,
    /// Past its time.
    Expired,
    /// Ended by an administrator.
    Revoked,
    /// All uses consumed.
    UsedUp,
    /// The bootstrap secret was switched off.
    Off,
}

impl std::fmt::Display for CredentialState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CredentialState::Unknown => "unknown",
            CredentialState::Expired => "expired",
            CredentialState::Revoked => "revoked",
            CredentialState::UsedUp => "used up",
            CredentialState::Off => "switched off",
        })
    }
}
