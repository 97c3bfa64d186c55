//! The replicated state: what every member holds in memory, and how to read it.
//!
//! Structurally shared, so that a clone costs a few pointers: readers, the snapshot builder and the policy replay each
//! hold their own [`State`] of some index. It changes only by [`State::apply`], which is pure: no clock, no randomness,
//! no I/O, the same on every member.

mod apply;
mod lineage;
mod snapshot;
mod trust;

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use snapshot::SnapshotError;
pub use trust::{BootstrapSecret, CaPhase, CaRotation, Trust};

use crate::command::{
    AccountSpec, Addresses, Author, Authority, Certificate, EventKind, Record, Response, Settings,
    SigningKey, Suffrage, TokenSpec,
};
use crate::id::{ClusterId, Digest, Lineage, NodeId};

/// Policy revisions kept.
pub const HISTORY_REVISIONS: usize = 100;

/// Longest message of a revision, in bytes; the rest of a longer one is cut off.
pub const MESSAGE_BYTES: usize = 1024;

/// Bytes of policy documents kept, whole documents, chunks shared between revisions counted once: 64 MiB.
pub const HISTORY_BYTES: u64 = 64 * 1024 * 1024;

/// Change log entries kept.
pub const CHANGES_KEPT: usize = 1000;

/// Idempotency records kept.
pub const IDEMPOTENCY_KEPT: usize = 10_000;

/// How long an idempotency record is kept, in log time: a day.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a chunk that no document names is kept, in log time: an hour.
pub const CHUNK_TTL_MS: u64 = 60 * 60 * 1000;

/// Service accounts, at most.
pub const MAX_ACCOUNTS: usize = 10_000;

/// Tokens of one service account, at most, revoked ones included.
pub const MAX_TOKENS_PER_ACCOUNT: usize = 1_000;

/// Members, at most, those that are joining or leaving included.
pub const MAX_MEMBERS: usize = 64;

/// Join tokens, at most; those past their time are dropped first.
pub const MAX_JOIN_TOKENS: usize = 1_000;

/// API signing keys, at most, retired ones included.
pub const MAX_SIGNING_KEYS: usize = 64;

/// One revision of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRevision {
    /// Counts policies, scoped by lineage.
    pub revision: u64,
    /// SHA-256 of the document.
    pub hash: Digest,
    /// Length of the document, in bytes.
    pub len: u64,
    /// SHA-256 of its chunks, in order.
    pub chunks: Vec<Digest>,
    /// Log index at which it became the policy.
    pub index: u64,
    /// Log time at which it did.
    pub time_ms: u64,
    /// Who put it.
    pub author: Author,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// An API signing key and its standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeyRecord {
    /// The key.
    pub key: SigningKey,
    /// Log time at which it was added.
    pub created_ms: u64,
    /// Log time at which it was retired: its tokens no longer work.
    #[serde(default)]
    pub retired_ms: Option<u64>,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Raised by every change.
    pub revision: u64,
    /// What clients decide.
    pub spec: AccountSpec,
    /// Who created it.
    pub created_by: Author,
    /// Log time.
    pub created_ms: u64,
    /// Log time of the last change.
    pub updated_ms: u64,
}

/// A service account's token. The token itself is known to its holder only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id, the token's `jti`.
    pub id: Uuid,
    /// Account that it belongs to.
    pub account: Uuid,
    /// What the client decided.
    pub spec: TokenSpec,
    /// Who created it.
    pub created_by: Author,
    /// Log time.
    pub created_ms: u64,
    /// Log time at which it was revoked.
    #[serde(default)]
    pub revoked_ms: Option<u64>,
}

impl TokenRecord {
    /// When it ends, milliseconds since 1970; none: never.
    pub fn expires_ms(&self) -> Option<u64> {
        Some(self.created_ms.saturating_add(self.spec.ttl_ms?))
    }
}

/// A join token's public half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Its id.
    pub id: Uuid,
    /// Ed25519 public key.
    #[serde(with = "serde_bytes")]
    pub public: [u8; 32],
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// Members it still admits.
    pub uses_left: u32,
    /// Log time at which it was revoked.
    #[serde(default)]
    pub revoked_ms: Option<u64>,
    /// Who created it.
    pub created_by: Author,
}

/// How far a member is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its id is given out, its certificate not issued yet.
    Joining,
    /// A member in good standing.
    Member,
    /// Asked to go; still trusted until it no longer counts.
    Leaving,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub node_id: NodeId,
    /// Host name, for people.
    pub name: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// SHA-256 of its SubjectPublicKeyInfo, DER: the key that peers pin.
    pub spki: Digest,
    /// SHA-256 of the certificate request it joined with; none for the seed.
    #[serde(default)]
    pub csr: Option<Digest>,
    /// Its newest certificate.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// Log time at which it was reserved.
    pub joined_ms: u64,
    /// Its last known boot.
    #[serde(default)]
    pub incarnation: u64,
    /// Highest feature level it supports.
    #[serde(default)]
    pub feature_level: u32,
    /// How far it is.
    pub standing: Standing,
    /// Who decides whether it votes.
    #[serde(default, skip_serializing_if = "Suffrage::is_auto")]
    pub suffrage: Suffrage,
    /// Whether it refuses new flows, by an operator's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// A former member. Kept so that its id and key are never taken again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its id.
    pub node_id: NodeId,
    /// SHA-256 of its SubjectPublicKeyInfo, DER.
    pub spki: Digest,
    /// Log time.
    pub removed_ms: u64,
}

/// What happened, in the change log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A record was created.
    Created(Record),
    /// A record was changed.
    Changed(Record),
    /// A record was ended: revoked, retired, disabled or removed.
    Ended(Record),
    /// Something happened that is not a change of state.
    Event(EventKind),
}

/// An entry of the change log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Log index.
    pub index: u64,
    /// Log time.
    pub time_ms: u64,
    /// On whose behalf.
    pub author: Author,
    /// What happened.
    pub action: Action,
    /// To which record: id, revision or name.
    pub subject: String,
    /// More.
    #[serde(default)]
    pub detail: String,
}

/// A stored chunk of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    bytes: Arc<[u8]>,
    /// Uses by revisions in the history.
    uses: u32,
    /// Log time at which it was last put.
    put_ms: u64,
}

/// The answer to a command with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    /// SHA-256 of the request, or of the command where that is not known, to tell a retry from another request.
    command: Digest,
    response: Response,
    time_ms: u64,
}

/// The scope of an idempotency key: one subject's keys never meet another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct AnswerKey {
    subject: String,
    key: String,
}

/// What is there exactly once, from the first entry on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    cluster_id: ClusterId,
    lineage: Lineage,
    settings: Settings,
    settings_revision: u64,
    cluster_ca: Authority,
    https_ca: Authority,
    active_kid: String,
    feature_level: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    feature_version: String,
    #[serde(default, skip_serializing_if = "Trust::is_empty")]
    trust: Trust,
}

/// The replicated state at one log index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    index: u64,
    time_ms: u64,
    root: Option<Arc<Root>>,
    /// Oldest first; the last one is in force.
    policies: Vector<Arc<PolicyRevision>>,
    chunks: OrdMap<Digest, Chunk>,
    keys: OrdMap<String, Arc<SigningKeyRecord>>,
    accounts: OrdMap<Uuid, Arc<Account>>,
    /// By account and token.
    tokens: OrdMap<(Uuid, Uuid), Arc<TokenRecord>>,
    join_tokens: OrdMap<Uuid, Arc<JoinToken>>,
    members: OrdMap<NodeId, Arc<Member>>,
    removed: OrdMap<NodeId, Removed>,
    answers: OrdMap<AnswerKey, Arc<Answer>>,
    /// Keys of `answers`, oldest first.
    answer_order: Vector<AnswerKey>,
    /// Oldest first.
    changes: Vector<Arc<Change>>,
    /// What opens the secrets here: this node's own, and no part of the state.
    reader: trust::Reader,
}

impl State {
    /// Index of the last log entry that went into it; 0 before the first.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Log time: the largest time of any entry so far, milliseconds since 1970.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Whether a cluster was founded.
    pub fn is_initialised(&self) -> bool {
        self.root.is_some()
    }

    /// The cluster's id, once founded.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.root.as_ref().map(|root| root.cluster_id)
    }

    /// The lineage, once founded.
    pub fn lineage(&self) -> Option<Lineage> {
        self.root.as_ref().map(|root| root.lineage)
    }

    /// The settings and their revision, once founded.
    pub fn settings(&self) -> Option<(&Settings, u64)> {
        self.root
            .as_ref()
            .map(|root| (&root.settings, root.settings_revision))
    }

    /// CA of the members' certificates, once founded.
    pub fn cluster_ca(&self) -> Option<&Authority> {
        self.root.as_ref().map(|root| &root.cluster_ca)
    }

    /// CA of the management API's server certificates, once founded.
    pub fn https_ca(&self) -> Option<&Authority> {
        self.root.as_ref().map(|root| &root.https_ca)
    }

    /// Feature level in force; 0 before the cluster was founded.
    pub fn feature_level(&self) -> u32 {
        self.root.as_ref().map_or(0, |root| root.feature_level)
    }

    /// The version whose leader put that level in force; empty if that is not known.
    pub fn feature_version(&self) -> &str {
        self.root
            .as_ref()
            .map_or("", |root| root.feature_version.as_str())
    }

    /// The policy in force; none if none was ever put.
    pub fn policy(&self) -> Option<&Arc<PolicyRevision>> {
        self.policies.last()
    }

    /// Kept revisions of the policy, oldest first.
    pub fn policy_history(&self) -> impl DoubleEndedIterator<Item = &Arc<PolicyRevision>> {
        self.policies.iter()
    }

    /// The document of a revision that is still in the history.
    pub fn document(&self, revision: &PolicyRevision) -> Option<Vec<u8>> {
        let mut document = Vec::with_capacity(usize::try_from(revision.len).ok()?);
        for hash in &revision.chunks {
            document.extend_from_slice(&self.chunks.get(hash)?.bytes);
        }
        Some(document)
    }

    /// Whether a chunk is stored.
    pub fn has_chunk(&self, hash: &Digest) -> bool {
        self.chunks.contains_key(hash)
    }

    /// All API signing keys, by key id.
    pub fn signing_keys(&self) -> impl Iterator<Item = &Arc<SigningKeyRecord>> {
        self.keys.values()
    }

    /// An API signing key, retired ones included.
    pub fn signing_key(&self, kid: &str) -> Option<&Arc<SigningKeyRecord>> {
        self.keys.get(kid)
    }

    /// The key that signs new API tokens.
    pub fn active_signing_key(&self) -> Option<&Arc<SigningKeyRecord>> {
        self.keys.get(&self.root.as_ref()?.active_kid)
    }

    /// All service accounts, by id.
    pub fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.accounts.values()
    }

    /// A service account.
    pub fn account(&self, id: Uuid) -> Option<&Arc<Account>> {
        self.accounts.get(&id)
    }

    /// The tokens of a service account, revoked ones included.
    pub fn tokens(&self, account: Uuid) -> impl Iterator<Item = &Arc<TokenRecord>> {
        self.tokens
            .range((account, Uuid::nil())..=(account, Uuid::max()))
            .map(|(_, token)| token)
    }

    /// A token of a service account.
    pub fn token(&self, account: Uuid, token: Uuid) -> Option<&Arc<TokenRecord>> {
        self.tokens.get(&(account, token))
    }

    /// All join tokens.
    pub fn join_tokens(&self) -> impl Iterator<Item = &Arc<JoinToken>> {
        self.join_tokens.values()
    }

    /// A join token.
    pub fn join_token(&self, id: Uuid) -> Option<&Arc<JoinToken>> {
        self.join_tokens.get(&id)
    }

    /// All members, those that are joining or leaving included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values()
    }

    /// A member.
    pub fn member(&self, id: NodeId) -> Option<&Arc<Member>> {
        self.members.get(&id)
    }

    /// Names who is a member and who decides whether it votes: the same number for the same answer, 2^53 at most, so
    /// that a change of the voters can be made on condition that nobody else made one in between.
    pub fn suffrage_tag(&self) -> u64 {
        let words = self.members.values().map(|member| {
            let mut word = [0; 10];
            word[..8].copy_from_slice(&member.node_id.0.to_be_bytes());
            word[8] = match member.standing {
                Standing::Joining => 0,
                Standing::Member => 1,
                Standing::Leaving => 2,
            };
            word[9] = match member.suffrage {
                Suffrage::Auto => 0,
                Suffrage::Voter => 1,
                Suffrage::Learner => 2,
            };
            word
        });
        let words: Vec<u8> = words.flatten().collect();
        let digest = Digest::of(&words).0;
        u64::from_be_bytes(digest[..8].try_into().expect("8 of 32 bytes")) >> 11
    }

    /// Whether it certainly has the same members, former members, lineage, authorities and settings as `other`. Costs
    /// nothing, and may say no where they are the same.
    pub fn has_same_members(&self, other: &State) -> bool {
        let same_root = match (&self.root, &other.root) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        };
        same_root && self.members.ptr_eq(&other.members) && self.removed.ptr_eq(&other.removed)
    }

    /// The ids of all former members.
    pub fn removed_ids(&self) -> impl Iterator<Item = NodeId> {
        self.removed.keys().copied()
    }

    /// A former member.
    pub fn removed(&self, id: NodeId) -> Option<&Removed> {
        self.removed.get(&id)
    }

    /// Whether a request of `subject` under this idempotency key has its answer already.
    pub fn has_answer(&self, subject: &str, key: &str) -> bool {
        let key = AnswerKey {
            subject: subject.to_owned(),
            key: key.to_owned(),
        };
        self.answers.contains_key(&key)
    }

    /// The change log, oldest first.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &Arc<Change>> {
        self.changes.iter()
    }
}

#[cfg(test)]
pub(crate) mod tests;
