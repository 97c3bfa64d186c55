//! The state as bytes: a sequence of records, each MessagePack with field names, so that records and fields may be
//! added. Two members at the same index produce the same bytes, and so the same hash.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::*;
use crate::feature::{FEATURE_LEVEL, TooOld};

/// A snapshot that is not one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A record could not be read: damaged, or written by a newer version.
    #[error("record {position} of the snapshot cannot be read")]
    Record {
        /// Its position, from 0.
        position: usize,
        /// Why.
        source: rmp_serde::decode::Error,
    },
    /// A newer version has written it, at a feature level that this one does not support.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// The first record must be the header.
    #[error("the snapshot does not begin with its header")]
    NoHeader,
}

/// One record of a snapshot.
#[derive(Serialize, Deserialize)]
enum Item {
    Header {
        index: u64,
        time_ms: u64,
    },
    Root(Box<Root>),
    Policy(PolicyRevision),
    Chunk {
        bytes: ByteBuf,
        uses: u32,
        put_ms: u64,
    },
    SigningKey(SigningKeyRecord),
    Account(Account),
    Token(TokenRecord),
    JoinToken(JoinToken),
    Member(Member),
    Removed(Removed),
    Answer {
        key: AnswerKey,
        answer: Answer,
    },
    Change(Change),
}

fn packed(item: &Item) -> Bytes {
    Bytes::from(
        rmp_serde::to_vec_named(item).expect("a record has no value that MessagePack lacks"),
    )
}

impl State {
    /// The state's records, in an order that depends on nothing but the state. Lazy, so that a large state need not be
    /// encoded in one go.
    pub fn records(&self) -> impl Iterator<Item = Bytes> + Send + '_ {
        self.encoded(false)
    }

    /// The records; in brief, the hash of each chunk stands for the chunk.
    fn encoded(&self, brief: bool) -> impl Iterator<Item = Bytes> + Send + '_ {
        let header = Item::Header {
            index: self.index,
            time_ms: self.time_ms,
        };
        let root = self
            .root
            .as_deref()
            .map(|root| Item::Root(Box::new(root.clone())));
        let policies = self.policies.iter().map(|p| Item::Policy((**p).clone()));
        let chunks = self.chunks.iter().map(move |(hash, chunk)| Item::Chunk {
            bytes: ByteBuf::from(if brief {
                hash.0.to_vec()
            } else {
                chunk.bytes.to_vec()
            }),
            uses: chunk.uses,
            put_ms: chunk.put_ms,
        });
        let keys = self
            .keys
            .values()
            .map(|key| Item::SigningKey((**key).clone()));
        let accounts = self.accounts.values().map(|a| Item::Account((**a).clone()));
        let tokens = self.tokens.values().map(|t| Item::Token((**t).clone()));
        let joins = self
            .join_tokens
            .values()
            .map(|t| Item::JoinToken((**t).clone()));
        let members = self.members.values().map(|m| Item::Member((**m).clone()));
        let removed = self.removed.values().cloned().map(Item::Removed);
        let answers = self.answer_order.iter().filter_map(|key| {
            Some(Item::Answer {
                answer: (**self.answers.get(key)?).clone(),
                key: key.clone(),
            })
        });
        let changes = self.changes.iter().map(|c| Item::Change((**c).clone()));
        std::iter::once(header)
            .chain(root)
            .chain(policies)
            .chain(chunks)
            .chain(keys)
            .chain(accounts)
            .chain(tokens)
            .chain(joins)
            .chain(members)
            .chain(removed)
            .chain(answers)
            .chain(changes)
            .map(|item| packed(&item))
    }

    /// Rebuilds a state from its records.
    ///
    /// # Errors
    /// A record that this version cannot read.
    pub fn from_records<B: AsRef<[u8]>>(
        records: impl IntoIterator<Item = B>,
    ) -> Result<Self, SnapshotError> {
        let mut state = State::default();
        let mut seen_header = false;
        for (position, record) in records.into_iter().enumerate() {
            let item = rmp_serde::from_slice(record.as_ref())
                .map_err(|source| SnapshotError::Record { position, source })?;
            if let Item::Header { .. } = item {
                seen_header = true;
            } else if !seen_header {
                return Err(SnapshotError::NoHeader);
            }
            state.restore(item);
            // Told by the root, which comes early, and not by some record of a kind that this version does not know.
            TooOld::check(&state, FEATURE_LEVEL)?;
        }
        if !seen_header {
            return Err(SnapshotError::NoHeader);
        }
        Ok(state)
    }

    fn restore(&mut self, item: Item) {
        match item {
            Item::Header { index, time_ms } => {
                self.index = index;
                self.time_ms = time_ms;
            }
            Item::Root(root) => self.root = Some(Arc::new(*root)),
            Item::Policy(policy) => self.policies.push_back(Arc::new(policy)),
            Item::Chunk {
                bytes,
                uses,
                put_ms,
            } => {
                let hash = Digest::of(&bytes);
                let bytes = bytes.into_vec().into();
                self.chunks.insert(
                    hash,
                    Chunk {
                        bytes,
                        uses,
                        put_ms,
                    },
                );
            }
            Item::SigningKey(key) => {
                self.keys.insert(key.key.kid.clone(), Arc::new(key));
            }
            Item::Account(account) => {
                self.accounts.insert(account.id, Arc::new(account));
            }
            Item::Token(token) => {
                self.tokens
                    .insert((token.account, token.id), Arc::new(token));
            }
            Item::JoinToken(token) => {
                self.join_tokens.insert(token.id, Arc::new(token));
            }
            Item::Member(member) => {
                self.members.insert(member.node_id, Arc::new(member));
            }
            Item::Removed(removed) => {
                self.removed.insert(removed.node_id, removed);
            }
            Item::Answer { key, answer } => {
                self.answer_order.push_back(key.clone());
                self.answers.insert(key, Arc::new(answer));
            }
            Item::Change(change) => self.changes.push_back(Arc::new(change)),
        }
    }

    /// SHA-256 of the state: equal on all members at the same index.
    pub fn hash(&self) -> Digest {
        Self::hash_of(self.records())
    }

    /// As [`State::hash`], but without reading through all documents: their hashes go in.
    pub fn fingerprint(&self) -> Digest {
        Self::hash_of(self.encoded(true))
    }

    fn hash_of(records: impl Iterator<Item = Bytes>) -> Digest {
        use sha2::{Digest as _, Sha256};
        let mut hasher = Sha256::new();
        for record in records {
            hasher.update((record.len() as u64).to_be_bytes());
            hasher.update(&record);
        }
        Digest(hasher.finalize().into())
    }
}
