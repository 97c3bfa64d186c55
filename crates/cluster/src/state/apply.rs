//! Applying commands: one function per command, each a rule of the cluster.

mod membership;
mod trust;

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::*;
use crate::command::{
    CHUNK_BYTES, Command, Credential, CredentialState, Document, FirstMember, Init,
    MAX_DOCUMENT_BYTES, Refusal, Reservation, Stamped,
};

/// What the entry being applied says besides its command.
struct Context {
    index: u64,
    time_ms: u64,
    seed: [u8; 32],
    author: Author,
}

impl Context {
    /// The `n`th 16 bytes drawn from the entry's seed.
    fn draw(&self, n: u32) -> [u8; 16] {
        let mut hasher = Sha256::new();
        hasher.update(self.seed);
        hasher.update(n.to_be_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        bytes
    }

    fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.draw(0)).into_uuid()
    }
}

impl State {
    /// Records that the log has an entry at `index` which carries no command.
    pub fn advance(&mut self, index: u64) {
        self.index = index;
    }

    /// Applies the command at log index `index`.
    pub fn apply(&mut self, index: u64, stamped: Stamped) -> Response {
        self.index = index;
        self.time_ms = self.time_ms.max(stamped.time_ms);
        self.expire_answers();

        let retry_key = stamped.idempotency_key.clone().map(|key| AnswerKey {
            subject: stamped.author.subject.clone(),
            key,
        });
        let Some(key) = retry_key else {
            return self.run(stamped);
        };
        let digest = |command: &Command| {
            let bytes = rmp_serde::to_vec_named(command)
                .expect("a command has no value that MessagePack lacks");
            Digest::of(&bytes)
        };
        let command = stamped.request.unwrap_or_else(|| digest(&stamped.command));
        if let Some(answer) = self.answers.get(&key) {
            // The first one may be from before requests had their digest.
            if answer.command == command || answer.command == digest(&stamped.command) {
                return answer.response.clone();
            }
            return Response::Refused(Refusal::KeyReused);
        }
        let response = self.run(stamped);
        // A refusal is not kept: its cause may go away, and nothing was done twice.
        if !matches!(response, Response::Refused(_)) {
            self.answer_order.push_back(key.clone());
            self.answers.insert(
                key,
                Arc::new(Answer {
                    command,
                    response: response.clone(),
                    time_ms: self.time_ms,
                }),
            );
        }
        response
    }

    fn run(&mut self, stamped: Stamped) -> Response {
        let context = Context {
            index: self.index,
            time_ms: self.time_ms,
            seed: stamped.seed,
            author: stamped.author,
        };
        self.dispatch(stamped.command, &context)
            .unwrap_or_else(Response::Refused)
    }

    fn dispatch(&mut self, command: Command, context: &Context) -> Result<Response, Refusal> {
        match command {
            Command::Init(init) => return self.init(*init, context),
            _ if self.root.is_none() => return Err(Refusal::NotInitialised),
            _ => {}
        }
        match command {
            Command::Init(_) => unreachable!("handled above"),
            Command::PutChunk { hash, bytes } => self.put_chunk(hash, bytes.into_vec()),
            Command::PutPolicy {
                document,
                if_match,
                message,
            } => self.put_policy(document, if_match, message, context),
            Command::AddSigningKey(key) => self.add_signing_key(key, context),
            Command::RetireSigningKey { kid } => self.retire_signing_key(&kid, context),
            Command::CreateAccount(spec) => self.create_account(spec, context),
            Command::UpdateAccount { id, if_match, spec } => {
                self.update_account(id, if_match, spec, context)
            }
            Command::DisableAccount { id, if_match } => self.disable_account(id, if_match, context),
            Command::CreateToken { account, spec } => self.create_token(account, spec, context),
            Command::RevokeToken { account, token } => self.revoke_token(account, token, context),
            Command::PutSettings { settings, if_match } => {
                self.put_settings(settings, if_match, context)
            }
            Command::CreateJoinToken {
                id,
                public,
                expires_ms,
                uses,
            } => self.create_join_token(
                JoinToken {
                    id,
                    public,
                    expires_ms,
                    uses_left: uses,
                    revoked_ms: None,
                    created_by: context.author.clone(),
                },
                context,
            ),
            Command::RevokeJoinToken { id } => self.revoke_join_token(id, context),
            Command::ReserveMember(reservation) => self.reserve_member(reservation, context),
            Command::ConfirmMember {
                node_id,
                certificate,
            } => self.confirm_member(node_id, certificate, context),
            Command::UpdateMember {
                node_id,
                name,
                addresses,
                incarnation,
                feature_level,
            } => self.change_member(node_id, |member| {
                member.name = name;
                member.addresses = addresses;
                member.incarnation = incarnation;
                member.feature_level = feature_level;
            }),
            Command::RemoveMember { node_id } => self.remove_member(node_id, context),
            Command::ReleaseMember { node_id } => self.release_member(node_id, context),
            Command::SetSuffrage { members, if_match } => {
                check_match(Record::Member, self.suffrage_tag(), if_match)?;
                self.set_suffrage(&members, context)
            }
            Command::DrainMember { node_id, draining } => {
                self.drain_member(node_id, draining, context)
            }
            Command::RaiseFeatureLevel { level, version } => {
                self.raise_feature_level(level, version, context)
            }
            Command::Trust(change) => self.change_trust(change, context),
            Command::RecordEvent {
                kind,
                subject,
                detail,
            } => {
                self.record_with(Action::Event(kind), subject, detail, context);
                Ok(Response::Done)
            }
        }
    }

    fn record(&mut self, action: Action, subject: impl ToString, context: &Context) {
        self.record_with(action, subject.to_string(), String::new(), context);
    }

    fn record_with(&mut self, action: Action, subject: String, detail: String, context: &Context) {
        if self.changes.len() >= CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(Arc::new(Change {
            index: context.index,
            time_ms: context.time_ms,
            author: context.author.clone(),
            action,
            subject: clipped(subject, 256),
            detail: clipped(detail, 1024),
        }));
    }

    fn expire_answers(&mut self) {
        while let Some(oldest) = self.answer_order.front() {
            let expired = self
                .answers
                .get(oldest)
                .is_none_or(|answer| answer.time_ms + IDEMPOTENCY_TTL_MS <= self.time_ms);
            if !expired && self.answer_order.len() <= IDEMPOTENCY_KEPT {
                break;
            }
            if let Some(oldest) = self.answer_order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }

    fn root_mut(&mut self) -> &mut Root {
        Arc::make_mut(
            self.root
                .as_mut()
                .expect("dispatch refuses everything but Init before"),
        )
    }

    fn init(&mut self, init: Init, context: &Context) -> Result<Response, Refusal> {
        if let Some(root) = &self.root {
            return Err(Refusal::AlreadyInitialised {
                cluster_id: root.cluster_id,
            });
        }
        let Init {
            cluster_id,
            lineage,
            settings,
            cluster_ca,
            https_ca,
            signing_key,
            seed,
            policy,
            feature_level,
            version,
            first_key,
        } = init;
        if let Some(document) = policy {
            self.store_policy(document, 0, String::new(), context)?;
        }
        self.root = Some(Arc::new(Root {
            cluster_id,
            lineage,
            settings,
            settings_revision: 1,
            cluster_ca,
            https_ca,
            active_kid: signing_key.kid.clone(),
            feature_level,
            feature_version: version,
            trust: first_key
                .map(|first| Trust::sealed(seed.node_id, first))
                .unwrap_or_default(),
        }));
        self.keys.insert(
            signing_key.kid.clone(),
            Arc::new(SigningKeyRecord {
                key: signing_key,
                created_ms: context.time_ms,
                retired_ms: None,
            }),
        );
        let FirstMember {
            node_id,
            name,
            addresses,
            spki,
            certificate,
        } = seed;
        self.members.insert(
            node_id,
            Arc::new(Member {
                node_id,
                name,
                addresses,
                spki,
                csr: None,
                certificate: Some(certificate),
                joined_ms: context.time_ms,
                incarnation: 0,
                feature_level,
                standing: Standing::Member,
                suffrage: Suffrage::Auto,
                draining: false,
            }),
        );
        self.record(Action::Created(Record::Cluster), cluster_id, context);
        Ok(Response::Done)
    }

    fn put_chunk(&mut self, hash: Digest, bytes: Vec<u8>) -> Result<Response, Refusal> {
        if bytes.len() > CHUNK_BYTES {
            return Err(Refusal::TooLarge {
                record: Record::Chunk,
                limit_bytes: CHUNK_BYTES as u64,
            });
        }
        if Digest::of(&bytes) != hash {
            return Err(Refusal::Corrupt);
        }
        self.drop_stale_chunks();
        let put_ms = self.time_ms;
        match self.chunks.get_mut(&hash) {
            Some(chunk) => chunk.put_ms = put_ms,
            None => {
                // Bounds what clients can make the cluster hold without ever naming it.
                let loose: u64 = self
                    .chunks
                    .values()
                    .filter(|chunk| chunk.uses == 0)
                    .map(|chunk| chunk.bytes.len() as u64)
                    .sum();
                if loose + bytes.len() as u64 > 2 * MAX_DOCUMENT_BYTES {
                    return Err(Refusal::TooLarge {
                        record: Record::Chunk,
                        limit_bytes: 2 * MAX_DOCUMENT_BYTES,
                    });
                }
                self.chunks.insert(
                    hash,
                    Chunk {
                        bytes: bytes.into(),
                        uses: 0,
                        put_ms,
                    },
                );
            }
        }
        Ok(Response::Done)
    }

    fn drop_stale_chunks(&mut self) {
        let stale: Vec<Digest> = self
            .chunks
            .iter()
            .filter(|(_, chunk)| chunk.uses == 0 && chunk.put_ms + CHUNK_TTL_MS <= self.time_ms)
            .map(|(hash, _)| *hash)
            .collect();
        for hash in stale {
            self.chunks.remove(&hash);
        }
    }

    fn put_policy(
        &mut self,
        document: Document,
        if_match: Option<u64>,
        message: String,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let current = self.policy().map(|policy| (policy.revision, policy.hash));
        // No policy at all is matched by revision 0: that is what a client reads when there is none.
        let current_revision = current.map_or(0, |(revision, _)| revision);
        check_match(Record::Policy, current_revision, if_match)?;
        self.store_policy(document, current_revision + 1, message, context)
    }

    /// Stores `document` and makes it the policy under `revision`, unless it is the policy already.
    fn store_policy(
        &mut self,
        document: Document,
        revision: u64,
        message: String,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let (hash, len, chunks) = self.take_document(document)?;
        if let Some(policy) = self.policy()
            && policy.hash == hash
        {
            return Ok(Response::Policy {
                revision: policy.revision,
                hash,
                changed: false,
            });
        }
        for chunk in &chunks {
            self.chunks
                .get_mut(chunk)
                .expect("take_document found it")
                .uses += 1;
        }
        self.policies.push_back(Arc::new(PolicyRevision {
            revision,
            hash,
            len,
            chunks,
            index: context.index,
            time_ms: context.time_ms,
            author: context.author.clone(),
            message: clipped(message, MESSAGE_BYTES),
        }));
        self.trim_history();
        self.record(Action::Changed(Record::Policy), revision, context);
        Ok(Response::Policy {
            revision,
            hash,
            changed: true,
        })
    }

    /// Checks that a document is what it says, and that its chunks are stored.
    fn take_document(&mut self, document: Document) -> Result<(Digest, u64, Vec<Digest>), Refusal> {
        match document {
            Document::Inline(bytes) => {
                let hash = Digest::of(&bytes);
                let len = bytes.len() as u64;
                self.put_chunk(hash, bytes.into_vec())?;
                Ok((hash, len, vec![hash]))
            }
            Document::Chunks { chunks, len, hash } => {
                if len > MAX_DOCUMENT_BYTES {
                    return Err(Refusal::TooLarge {
                        record: Record::Policy,
                        limit_bytes: MAX_DOCUMENT_BYTES,
                    });
                }
                let mut missing: Vec<Digest> = chunks
                    .iter()
                    .filter(|hash| !self.has_chunk(hash))
                    .copied()
                    .collect();
                if !missing.is_empty() {
                    missing.sort_unstable();
                    missing.dedup();
                    return Err(Refusal::MissingChunks { chunks: missing });
                }
                let parts = || chunks.iter().map(|hash| &*self.chunks[hash].bytes);
                if parts().map(|part| part.len() as u64).sum::<u64>() != len
                    || Digest::of_parts(parts()) != hash
                {
                    return Err(Refusal::Corrupt);
                }
                Ok((hash, len, chunks))
            }
        }
    }

    fn trim_history(&mut self) {
        let mut kept_bytes: u64 = self
            .chunks
            .values()
            .filter(|chunk| chunk.uses > 0)
            .map(|chunk| chunk.bytes.len() as u64)
            .sum();
        while self.policies.len() > 1
            && (self.policies.len() > HISTORY_REVISIONS || kept_bytes > HISTORY_BYTES)
        {
            let Some(oldest) = self.policies.pop_front() else {
                break;
            };
            for hash in &oldest.chunks {
                let chunk = self
                    .chunks
                    .get_mut(hash)
                    .expect("a revision holds its chunks");
                chunk.uses -= 1;
                if chunk.uses == 0 {
                    kept_bytes -= chunk.bytes.len() as u64;
                    self.chunks.remove(hash);
                }
            }
        }
    }

    fn add_signing_key(&mut self, key: SigningKey, context: &Context) -> Result<Response, Refusal> {
        if self.keys.contains_key(&key.kid) {
            return Err(Refusal::Exists {
                record: Record::SigningKey,
            });
        }
        check_room(Record::SigningKey, self.keys.len(), MAX_SIGNING_KEYS)?;
        if self.data_key().is_some() {
            self.check_sealed(&key.key_pkcs8)?;
        }
        let kid = key.kid.clone();
        self.keys.insert(
            kid.clone(),
            Arc::new(SigningKeyRecord {
                key,
                created_ms: context.time_ms,
                retired_ms: None,
            }),
        );
        self.record(Action::Created(Record::SigningKey), &kid, context);
        self.root_mut().active_kid = kid;
        Ok(Response::Done)
    }

    fn retire_signing_key(&mut self, kid: &str, context: &Context) -> Result<Response, Refusal> {
        let is_active = self
            .root
            .as_ref()
            .is_some_and(|root| root.active_kid == kid);
        let record = self.keys.get_mut(kid).ok_or(Refusal::NotFound {
            record: Record::SigningKey,
        })?;
        if is_active {
            return Err(Refusal::ActiveKey);
        }
        if record.retired_ms.is_none() {
            Arc::make_mut(record).retired_ms = Some(context.time_ms);
            self.record(Action::Ended(Record::SigningKey), kid, context);
        }
        Ok(Response::Done)
    }

    fn check_account_name(&self, name: &str, except: Option<Uuid>) -> Result<(), Refusal> {
        let taken = self
            .accounts
            .values()
            .any(|account| account.spec.name == name && Some(account.id) != except);
        if taken {
            return Err(Refusal::Exists {
                record: Record::Account,
            });
        }
        Ok(())
    }

    fn create_account(
        &mut self,
        spec: AccountSpec,
        context: &Context,
    ) -> Result<Response, Refusal> {
        self.check_account_name(&spec.name, None)?;
        check_room(Record::Account, self.accounts.len(), MAX_ACCOUNTS)?;
        check_len(Record::Account, &spec.name, 128)?;
        check_len(Record::Account, &spec.description, 1024)?;
        let id = context.uuid();
        self.accounts.insert(
            id,
            Arc::new(Account {
                id,
                revision: 1,
                spec,
                created_by: context.author.clone(),
                created_ms: context.time_ms,
                updated_ms: context.time_ms,
            }),
        );
        self.record(Action::Created(Record::Account), id, context);
        Ok(Response::Record { id, revision: 1 })
    }

    fn update_account(
        &mut self,
        id: Uuid,
        if_match: Option<u64>,
        spec: AccountSpec,
        context: &Context,
    ) -> Result<Response, Refusal> {
        self.check_account_name(&spec.name, Some(id))?;
        check_len(Record::Account, &spec.name, 128)?;
        check_len(Record::Account, &spec.description, 1024)?;
        let account = self.accounts.get_mut(&id).ok_or(Refusal::NotFound {
            record: Record::Account,
        })?;
        check_match(Record::Account, account.revision, if_match)?;
        let account = Arc::make_mut(account);
        account.spec = spec;
        account.revision += 1;
        account.updated_ms = context.time_ms;
        let revision = account.revision;
        self.record(Action::Changed(Record::Account), id, context);
        Ok(Response::Record { id, revision })
    }

    fn disable_account(
        &mut self,
        id: Uuid,
        if_match: Option<u64>,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let account = self.accounts.get_mut(&id).ok_or(Refusal::NotFound {
            record: Record::Account,
        })?;
        check_match(Record::Account, account.revision, if_match)?;
        let account = Arc::make_mut(account);
        account.spec.status = crate::command::AccountStatus::Disabled;
        account.revision += 1;
        account.updated_ms = context.time_ms;
        let revision = account.revision;
        let live: Vec<Uuid> = self
            .tokens(id)
            .filter(|token| token.revoked_ms.is_none())
            .map(|token| token.id)
            .collect();
        for token in live {
            self.revoke_token(id, token, context)?;
        }
        self.record(Action::Ended(Record::Account), id, context);
        Ok(Response::Record { id, revision })
    }

    fn create_token(
        &mut self,
        account: Uuid,
        spec: TokenSpec,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let owner = self.accounts.get(&account).ok_or(Refusal::NotFound {
            record: Record::Account,
        })?;
        if owner.spec.status == crate::command::AccountStatus::Disabled {
            return Err(Refusal::AccountDisabled);
        }
        if spec.role > owner.spec.role {
            return Err(Refusal::RoleExceeded);
        }
        if self
            .keys
            .get(&spec.kid)
            .is_none_or(|key| key.retired_ms.is_some())
        {
            return Err(Refusal::NotFound {
                record: Record::SigningKey,
            });
        }
        check_room(
            Record::Token,
            self.tokens(account).count(),
            MAX_TOKENS_PER_ACCOUNT,
        )?;
        check_len(Record::Token, spec.name.as_deref().unwrap_or_default(), 128)?;
        let id = context.uuid();
        self.tokens.insert(
            (account, id),
            Arc::new(TokenRecord {
                id,
                account,
                spec,
                created_by: context.author.clone(),
                created_ms: context.time_ms,
                revoked_ms: None,
            }),
        );
        self.record(Action::Created(Record::Token), id, context);
        Ok(Response::Record { id, revision: 1 })
    }

    fn revoke_token(
        &mut self,
        account: Uuid,
        token: Uuid,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let record = self
            .tokens
            .get_mut(&(account, token))
            .ok_or(Refusal::NotFound {
                record: Record::Token,
            })?;
        if record.revoked_ms.is_none() {
            Arc::make_mut(record).revoked_ms = Some(context.time_ms);
            self.record(Action::Ended(Record::Token), token, context);
        }
        Ok(Response::Done)
    }

    fn put_settings(
        &mut self,
        settings: Settings,
        if_match: Option<u64>,
        context: &Context,
    ) -> Result<Response, Refusal> {
        check_len(Record::Settings, &settings.cluster_name, 128)?;
        let root = self.root_mut();
        check_match(Record::Settings, root.settings_revision, if_match)?;
        root.settings = settings;
        root.settings_revision += 1;
        let revision = root.settings_revision;
        self.record(Action::Changed(Record::Settings), revision, context);
        Ok(Response::Settings { revision })
    }

    fn create_join_token(
        &mut self,
        token: JoinToken,
        context: &Context,
    ) -> Result<Response, Refusal> {
        if self.join_tokens.contains_key(&token.id) {
            return Err(Refusal::Exists {
                record: Record::JoinToken,
            });
        }
        let expired: Vec<Uuid> = self
            .join_tokens()
            .filter(|token| token.expires_ms <= self.time_ms)
            .map(|token| token.id)
            .collect();
        for id in expired {
            self.join_tokens.remove(&id);
        }
        check_room(Record::JoinToken, self.join_tokens.len(), MAX_JOIN_TOKENS)?;
        let id = token.id;
        self.join_tokens.insert(id, Arc::new(token));
        self.record(Action::Created(Record::JoinToken), id, context);
        Ok(Response::Done)
    }

    fn revoke_join_token(&mut self, id: Uuid, context: &Context) -> Result<Response, Refusal> {
        let token = self.join_tokens.get_mut(&id).ok_or(Refusal::NotFound {
            record: Record::JoinToken,
        })?;
        if token.revoked_ms.is_none() {
            Arc::make_mut(token).revoked_ms = Some(context.time_ms);
            self.record(Action::Ended(Record::JoinToken), id, context);
        }
        Ok(Response::Done)
    }
}

/// Refuses unless `if_match` is absent or the current revision.
fn check_match(record: Record, current: u64, if_match: Option<u64>) -> Result<(), Refusal> {
    match if_match {
        Some(expected) if expected != current => Err(Refusal::Conflict { record, current }),
        _ => Ok(()),
    }
}

fn check_room(record: Record, count: usize, limit: usize) -> Result<(), Refusal> {
    if count >= limit {
        return Err(Refusal::Full {
            record,
            limit: limit as u64,
        });
    }
    Ok(())
}

fn check_len(record: Record, text: &str, limit_bytes: usize) -> Result<(), Refusal> {
    if text.len() > limit_bytes {
        return Err(Refusal::TooLarge {
            record,
            limit_bytes: limit_bytes as u64,
        });
    }
    Ok(())
}

/// `text` cut to at most `limit_bytes`, at a character boundary.
fn clipped(mut text: String, limit_bytes: usize) -> String {
    if text.len() > limit_bytes {
        text.truncate(text.floor_char_boundary(limit_bytes));
    }
    text
}
