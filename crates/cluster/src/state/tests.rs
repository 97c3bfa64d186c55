//! What each command does, refuses and leaves alone.

use serde_bytes::ByteBuf;

use super::*;
use crate::command::*;

/// A state under construction: applies commands at increasing indices and times.
pub(super) struct Story {
    pub(super) state: State,
    index: u64,
    time_ms: u64,
}

fn author(subject: &str) -> Author {
    Author {
        subject: subject.into(),
        node: None,
    }
}

fn authority(n: u8) -> Authority {
    Authority {
        certificate_der: vec![n],
        key_pkcs8: Secret::plain([n]),
    }
}

fn signing_key(kid: &str) -> SigningKey {
    SigningKey {
        kid: kid.into(),
        public: vec![1; 32],
        key_pkcs8: Secret::plain([2]),
    }
}

fn certificate(n: u8) -> Certificate {
    Certificate {
        der: vec![n],
        serial: vec![n],
        not_before_ms: 0,
        not_after_ms: 10,
    }
}

pub(crate) fn init() -> Init {
    Init {
        cluster_id: ClusterId([1; 16]),
        lineage: Lineage(2),
        settings: Settings::default(),
        cluster_ca: authority(3),
        https_ca: authority(4),
        signing_key: signing_key("k1"),
        seed: FirstMember {
            node_id: NodeId(1),
            name: "seed".into(),
            addresses: Addresses::default(),
            spki: Digest::of(b"seed"),
            certificate: certificate(1),
        },
        policy: None,
        feature_level: 1,
        version: "0.1.0".into(),
        first_key: None,
    }
}

fn account(name: &str, role: Role) -> AccountSpec {
    AccountSpec {
        name: name.into(),
        description: String::new(),
        role,
        status: AccountStatus::Active,
    }
}

fn token(role: Role, kid: &str) -> TokenSpec {
    TokenSpec {
        name: None,
        role,
        kid: kid.into(),
        ttl_ms: None,
    }
}

fn reservation(n: u8, credential: Credential) -> Reservation {
    Reservation {
        name: format!("node-{n}"),
        addresses: Addresses::default(),
        spki: Digest::of(&[n]),
        csr: Digest::of(&[n, n]),
        credential,
    }
}

fn bootstrap(n: u8) -> Command {
    Command::ReserveMember(reservation(n, Credential::Bootstrap { kid: String::new() }))
}

fn policy(text: &str) -> Command {
    policy_if(text, None)
}

fn policy_if(text: &str, if_match: Option<u64>) -> Command {
    Command::PutPolicy {
        document: Document::Inline(ByteBuf::from(text)),
        if_match,
        message: "why".into(),
    }
}

impl Story {
    fn empty() -> Self {
        Story {
            state: State::default(),
            index: 0,
            time_ms: 1_000,
        }
    }

    pub(super) fn founded() -> Self {
        let mut story = Self::empty();
        assert_eq!(story.apply(Command::Init(Box::new(init()))), Response::Done);
        story
    }

    fn apply(&mut self, command: Command) -> Response {
        self.apply_as("admin", None, command)
    }

    fn apply_as(&mut self, subject: &str, key: Option<&str>, command: Command) -> Response {
        self.index += 1;
        self.time_ms += 1;
        self.state.apply(
            self.index,
            Stamped {
                command,
                time_ms: self.time_ms,
                seed: Digest::of(&self.index.to_be_bytes()).0,
                author: author(subject),
                idempotency_key: key.map(Into::into),
                request: None,
            },
        )
    }

    fn refused(&mut self, command: Command) -> Refusal {
        let before = self.state.clone();
        match self.apply(command) {
            Response::Refused(refusal) => {
                assert_same_but_time(&before, &self.state);
                refusal
            }
            other => panic!("accepted: {other:?}"),
        }
    }

    fn record(&mut self, command: Command) -> Uuid {
        match self.apply(command) {
            Response::Record { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    fn reserved(&mut self, command: Command) -> NodeId {
        match self.apply(command) {
            Response::Reserved { node_id } => node_id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn member(&mut self, n: u8) -> NodeId {
        let node_id = self.reserved(bootstrap(n));
        let certificate = certificate(n);
        assert_eq!(
            self.apply(Command::ConfirmMember {
                node_id,
                certificate
            }),
            Response::Done
        );
        node_id
    }
}

/// A refusal changes nothing but index and log time.
fn assert_same_but_time(before: &State, after: &State) {
    let after = State {
        index: before.index,
        time_ms: before.time_ms,
        ..after.clone()
    };
    assert_eq!(*before, after);
}

#[test]
fn nothing_is_taken_before_the_cluster_is_founded_and_that_only_once() {
    let mut story = Story::empty();
    assert_eq!(story.refused(policy("p")), Refusal::NotInitialised);
    assert_eq!(story.apply(Command::Init(Box::new(init()))), Response::Done);
    assert_eq!(
        story.refused(Command::Init(Box::new(init()))),
        Refusal::AlreadyInitialised {
            cluster_id: ClusterId([1; 16])
        }
    );
    let state = &story.state;
    assert_eq!(state.lineage(), Some(Lineage(2)));
    assert_eq!(
        state.active_signing_key().map(|k| k.key.kid.as_str()),
        Some("k1")
    );
    assert_eq!(
        state.member(NodeId(1)).map(|m| m.standing),
        Some(Standing::Member)
    );
    assert!(state.policy().is_none());
}

#[test]
fn a_default_policy_is_revision_zero() {
    let mut story = Story::empty();
    let policy = Some(Document::Inline(ByteBuf::from("{}")));
    story.apply(Command::Init(Box::new(Init { policy, ..init() })));
    assert_eq!(story.state.policy().map(|p| p.revision), Some(0));
    assert!(matches!(
        story.apply(policy_if("new", Some(0))),
        Response::Policy {
            revision: 1,
            changed: true,
            ..
        }
    ));
}

#[test]
fn policies_count_up_and_are_compared_before_they_are_set() {
    let mut story = Story::founded();
    // (document, if-match, revision or conflict, changed)
    for (text, if_match, expected, changed) in [
        ("one", Some(1), Err(0), false),
        ("one", Some(0), Ok(1), true),
        ("two", None, Ok(2), true),
        ("two", Some(2), Ok(2), false),
        ("two", Some(1), Err(2), false),
        ("three", Some(1), Err(2), false),
        ("one", Some(2), Ok(3), true),
    ] {
        let response = story.apply(policy_if(text, if_match));
        match expected {
            Ok(revision) => {
                let hash = Digest::of(text.as_bytes());
                assert_eq!(
                    response,
                    Response::Policy {
                        revision,
                        hash,
                        changed
                    },
                    "{text}"
                );
                let policy = story.state.policy().expect("was put").clone();
                assert_eq!(
                    story.state.document(&policy).as_deref(),
                    Some(text.as_bytes())
                );
            }
            Err(current) => {
                let record = Record::Policy;
                assert_eq!(
                    response,
                    Response::Refused(Refusal::Conflict { record, current }),
                    "{text}"
                );
            }
        }
    }
    let history: Vec<u64> = story.state.policy_history().map(|p| p.revision).collect();
    assert_eq!(history, [1, 2, 3]);
    assert_eq!(
        story.state.policy().map(|p| p.author.subject.as_str()),
        Some("admin")
    );
}

#[test]
fn history_is_bounded_and_its_chunks_go_with_it() {
    let mut story = Story::founded();
    for n in 0..HISTORY_REVISIONS + 20 {
        story.apply(policy(&format!("policy {n}")));
    }
    let revisions: Vec<u64> = story.state.policy_history().map(|p| p.revision).collect();
    assert_eq!(revisions.len(), HISTORY_REVISIONS);
    assert_eq!(revisions.first(), Some(&21));
    assert_eq!(story.state.chunks.len(), HISTORY_REVISIONS);
    assert!(
        story
            .state
            .policy_history()
            .all(|policy| story.state.document(policy).is_some())
    );
}

#[test]
fn history_is_bounded_in_bytes_but_keeps_what_is_in_force() {
    let mut story = Story::founded();
    let per_document = HISTORY_BYTES / 3;
    for n in 0..4_u8 {
        let mut chunks = Vec::new();
        let mut whole = Vec::new();
        for part in 0..per_document / CHUNK_BYTES as u64 {
            let mut bytes = vec![n; CHUNK_BYTES];
            bytes[..8].copy_from_slice(&part.to_be_bytes());
            let hash = Digest::of(&bytes);
            chunks.push(hash);
            whole.extend_from_slice(&bytes);
            let bytes = ByteBuf::from(bytes);
            assert_eq!(
                story.apply(Command::PutChunk { hash, bytes }),
                Response::Done
            );
        }
        let document = Document::Chunks {
            chunks,
            len: whole.len() as u64,
            hash: Digest::of(&whole),
        };
        let put = Command::PutPolicy {
            document,
            if_match: None,
            message: String::new(),
        };
        assert!(matches!(
            story.apply(put),
            Response::Policy { changed: true, .. }
        ));
    }
    let revisions: Vec<u64> = story.state.policy_history().map(|p| p.revision).collect();
    assert_eq!(revisions, [2, 3, 4]);
}

#[test]
fn documents_must_be_what_they_say() {
    let mut story = Story::founded();
    let chunk = |bytes: &[u8], hash: Digest| Command::PutChunk {
        hash,
        bytes: ByteBuf::from(bytes),
    };
    assert_eq!(
        story.refused(chunk(b"a", Digest::of(b"b"))),
        Refusal::Corrupt
    );
    let large = vec![0; CHUNK_BYTES + 1];
    assert!(matches!(
        story.refused(chunk(&large, Digest::of(&large))),
        Refusal::TooLarge {
            record: Record::Chunk,
            ..
        }
    ));
    let put = |chunks: &[&[u8]], len: u64, hash: Digest| Command::PutPolicy {
        document: Document::Chunks {
            chunks: chunks.iter().map(|chunk| Digest::of(chunk)).collect(),
            len,
            hash,
        },
        if_match: None,
        message: String::new(),
    };
    assert_eq!(
        story.refused(put(&[b"a", b"b", b"a"], 3, Digest::of(b"aba"))),
        Refusal::MissingChunks {
            chunks: {
                let mut missing = vec![Digest::of(b"a"), Digest::of(b"b")];
                missing.sort_unstable();
                missing
            }
        }
    );
    for part in [&b"a"[..], b"b"] {
        story.apply(chunk(part, Digest::of(part)));
    }
    assert_eq!(
        story.refused(put(&[b"a", b"b"], 3, Digest::of(b"ab"))),
        Refusal::Corrupt
    );
    assert_eq!(
        story.refused(put(&[b"a", b"b"], 2, Digest::of(b"ba"))),
        Refusal::Corrupt
    );
    assert!(matches!(
        story.refused(put(&[], MAX_DOCUMENT_BYTES + 1, Digest::of(b""))),
        Refusal::TooLarge {
            record: Record::Policy,
            ..
        }
    ));
    story.apply(put(&[b"a", b"b", b"a"], 3, Digest::of(b"aba")));
    let policy = story.state.policy().expect("was put").clone();
    assert_eq!(story.state.document(&policy).as_deref(), Some(&b"aba"[..]));
}

#[test]
fn chunks_that_nobody_names_are_dropped_after_their_time() {
    let mut story = Story::founded();
    let put = |bytes: &[u8]| Command::PutChunk {
        hash: Digest::of(bytes),
        bytes: ByteBuf::from(bytes),
    };
    story.apply(put(b"old"));
    story.apply(policy("named"));
    story.time_ms += CHUNK_TTL_MS;
    story.apply(put(b"new"));
    assert!(!story.state.has_chunk(&Digest::of(b"old")));
    assert!(story.state.has_chunk(&Digest::of(b"new")));
    assert!(story.state.has_chunk(&Digest::of(b"named")));
}

#[test]
fn signing_keys_are_added_and_retired_but_never_the_active_one() {
    let mut story = Story::founded();
    let retire = |kid: &str| Command::RetireSigningKey { kid: kid.into() };
    assert_eq!(story.refused(retire("k1")), Refusal::ActiveKey);
    assert_eq!(
        story.apply(Command::AddSigningKey(signing_key("k2"))),
        Response::Done
    );
    assert_eq!(
        story.refused(Command::AddSigningKey(signing_key("k2"))),
        Refusal::Exists {
            record: Record::SigningKey
        }
    );
    assert_eq!(story.apply(retire("k1")), Response::Done);
    assert_eq!(
        story.refused(retire("k3")),
        Refusal::NotFound {
            record: Record::SigningKey
        }
    );
    let state = &story.state;
    assert_eq!(
        state.active_signing_key().map(|k| k.key.kid.as_str()),
        Some("k2")
    );
    assert!(
        state
            .signing_key("k1")
            .is_some_and(|k| k.retired_ms.is_some())
    );
}

#[test]
fn accounts_are_unique_by_name_and_compared_before_they_are_set() {
    let mut story = Story::founded();
    let a = story.record(Command::CreateAccount(account("a", Role::Readonly)));
    let b = story.record(Command::CreateAccount(account("b", Role::Readonly)));
    assert_ne!(a, b);
    let record = Record::Account;
    assert_eq!(
        story.refused(Command::CreateAccount(account("a", Role::Admin))),
        Refusal::Exists { record }
    );
    let update = |id, if_match, name: &str| Command::UpdateAccount {
        id,
        if_match,
        spec: account(name, Role::Admin),
    };
    assert_eq!(
        story.refused(update(b, Some(1), "a")),
        Refusal::Exists { record }
    );
    assert_eq!(
        story.refused(update(b, Some(2), "c")),
        Refusal::Conflict { record, current: 1 }
    );
    assert_eq!(
        story.refused(update(Uuid::nil(), None, "c")),
        Refusal::NotFound { record }
    );
    assert_eq!(
        story.apply(update(b, Some(1), "b")),
        Response::Record { id: b, revision: 2 }
    );
    assert_eq!(
        story.apply(update(b, None, "c")),
        Response::Record { id: b, revision: 3 }
    );
    assert!(matches!(
        story.refused(Command::CreateAccount(account(
            &"n".repeat(129),
            Role::Admin
        ))),
        Refusal::TooLarge { .. }
    ));
}

#[test]
fn tokens_stay_within_their_account_and_end_with_it() {
    let mut story = Story::founded();
    let id = story.record(Command::CreateAccount(account("a", Role::Readonly)));
    let create = |account, role, kid: &str| Command::CreateToken {
        account,
        spec: token(role, kid),
    };
    assert_eq!(
        story.refused(create(id, Role::Admin, "k1")),
        Refusal::RoleExceeded
    );
    assert_eq!(
        story.refused(create(id, Role::Readonly, "nope")),
        Refusal::NotFound {
            record: Record::SigningKey
        }
    );
    assert_eq!(
        story.refused(create(Uuid::nil(), Role::Readonly, "k1")),
        Refusal::NotFound {
            record: Record::Account
        }
    );
    let first = story.record(create(id, Role::Readonly, "k1"));
    let second = story.record(create(id, Role::Readonly, "k1"));
    assert_eq!(
        story.apply(Command::RevokeToken {
            account: id,
            token: first
        }),
        Response::Done
    );
    assert_eq!(story.state.tokens(id).count(), 2);
    let live = |story: &Story| {
        story
            .state
            .tokens(id)
            .filter(|t| t.revoked_ms.is_none())
            .count()
    };
    assert_eq!(live(&story), 1);
    story.apply(Command::DisableAccount { id, if_match: None });
    assert_eq!(live(&story), 0);
    assert!(
        story
            .state
            .token(id, second)
            .is_some_and(|t| t.revoked_ms.is_some())
    );
    assert_eq!(
        story.refused(create(id, Role::Readonly, "k1")),
        Refusal::AccountDisabled
    );
}

#[test]
fn a_retry_under_the_same_key_does_nothing_again() {
    let mut story = Story::founded();
    let create = |name: &str| Command::CreateAccount(account(name, Role::Readonly));
    let first = story.apply_as("alice", Some("k"), create("a"));
    assert_eq!(story.apply_as("alice", Some("k"), create("a")), first);
    assert_eq!(story.state.accounts().count(), 1);
    assert_eq!(
        story.apply_as("alice", Some("k"), create("b")),
        Response::Refused(Refusal::KeyReused)
    );
    assert_ne!(story.apply_as("bob", Some("k"), create("b")), first);

    // A refusal is not remembered: its cause may be gone.
    let exists = Response::Refused(Refusal::Exists {
        record: Record::Account,
    });
    assert_eq!(story.apply_as("alice", Some("r"), create("a")), exists);
    assert!(matches!(
        story.apply_as("alice", Some("r"), create("c")),
        Response::Record { .. }
    ));

    // After its time the key may be used again, and means a new request.
    story.time_ms += IDEMPOTENCY_TTL_MS;
    assert_eq!(story.apply_as("alice", Some("k"), create("a")), exists);
    assert!(story.state.answers.is_empty());
}

#[test]
fn idempotency_records_are_bounded() {
    let mut story = Story::founded();
    for n in 0..IDEMPOTENCY_KEPT + 5 {
        let event = Command::RecordEvent {
            kind: EventKind::BreakGlass,
            subject: String::new(),
            detail: String::new(),
        };
        story.apply_as("a", Some(&n.to_string()), event);
    }
    assert!(story.state.answers.len() <= IDEMPOTENCY_KEPT + 1);
    assert_eq!(story.state.answers.len(), story.state.answer_order.len());
    assert_eq!(story.state.changes().count(), CHANGES_KEPT);
}

#[test]
fn settings_are_compared_before_they_are_set() {
    let mut story = Story::founded();
    let put = |name: &str, if_match| Command::PutSettings {
        settings: Settings {
            cluster_name: name.into(),
            ..Settings::default()
        },
        if_match,
    };
    assert_eq!(
        story.apply(put("a", Some(1))),
        Response::Settings { revision: 2 }
    );
    let record = Record::Settings;
    assert_eq!(
        story.refused(put("b", Some(1))),
        Refusal::Conflict { record, current: 2 }
    );
    assert_eq!(
        story.state.settings().map(|(s, _)| s.cluster_name.as_str()),
        Some("a")
    );
}

#[test]
fn a_join_token_admits_as_many_as_it_says() {
    let mut story = Story::founded();
    let id = Uuid::from_u128(7);
    let create = |id, expires_ms, uses| Command::CreateJoinToken {
        id,
        public: [1; 32],
        expires_ms,
        uses,
    };
    let join = |n, id| Command::ReserveMember(reservation(n, Credential::Token { id }));
    let state = |state| Refusal::Credential(state);
    assert_eq!(story.refused(join(2, id)), state(CredentialState::Unknown));
    story.apply(create(id, u64::MAX, 1));
    assert_eq!(
        story.refused(create(id, u64::MAX, 1)),
        Refusal::Exists {
            record: Record::JoinToken
        }
    );
    let node_id = story.reserved(join(2, id));
    assert_eq!(
        story.reserved(join(2, id)),
        node_id,
        "the same request again"
    );
    assert_eq!(story.refused(join(3, id)), state(CredentialState::UsedUp));

    let short = Uuid::from_u128(8);
    story.apply(create(short, story.time_ms + 3, 1));
    story.time_ms += 10;
    assert_eq!(
        story.refused(join(3, short)),
        state(CredentialState::Expired)
    );

    let ended = Uuid::from_u128(9);
    story.apply(create(ended, u64::MAX, 1));
    story.apply(Command::RevokeJoinToken { id: ended });
    assert_eq!(
        story.refused(join(3, ended)),
        state(CredentialState::Revoked)
    );
    assert!(
        story.state.join_token(short).is_none(),
        "expired ones make room"
    );
}

#[test]
fn the_bootstrap_secret_can_be_switched_off() {
    let mut story = Story::founded();
    story.member(2);
    let settings = Settings {
        bootstrap_join: false,
        ..Settings::default()
    };
    story.apply(Command::PutSettings {
        settings,
        if_match: None,
    });
    assert_eq!(
        story.refused(bootstrap(3)),
        Refusal::Credential(CredentialState::Off)
    );
}

#[test]
fn a_member_comes_leaves_and_never_returns() {
    let mut story = Story::founded();
    let node_id = story.reserved(bootstrap(2));
    let standing = |story: &Story| story.state.member(node_id).map(|m| m.standing);
    assert_eq!(standing(&story), Some(Standing::Joining));
    let mut same_key = reservation(2, Credential::Bootstrap { kid: String::new() });
    same_key.csr = Digest::of(b"another request");
    assert_eq!(
        story.refused(Command::ReserveMember(same_key.clone())),
        Refusal::Exists {
            record: Record::Member
        }
    );
    let confirm = Command::ConfirmMember {
        node_id,
        certificate: certificate(2),
    };
    story.apply(confirm.clone());
    assert_eq!(standing(&story), Some(Standing::Member));
    assert_eq!(
        story.refused(Command::ReleaseMember { node_id }),
        Refusal::NotLeaving
    );
    story.apply(Command::RemoveMember { node_id });
    assert_eq!(standing(&story), Some(Standing::Leaving));
    story.apply(confirm.clone());
    assert_eq!(
        standing(&story),
        Some(Standing::Leaving),
        "a renewal does not bring it back"
    );
    story.apply(Command::ReleaseMember { node_id });
    assert_eq!(standing(&story), None);
    assert_eq!(
        story.apply(Command::ReleaseMember { node_id }),
        Response::Done
    );
    assert_eq!(story.refused(confirm), Refusal::MemberRemoved);
    assert_eq!(
        story.refused(Command::ReserveMember(same_key)),
        Refusal::MemberRemoved
    );
}

#[test]
fn only_a_change_of_members_makes_them_others() {
    let mut story = Story::founded();
    let before = story.state.clone();
    story.record(Command::CreateAccount(account("a", Role::Admin)));
    story.apply(policy("{}"));
    assert!(story.state.has_same_members(&before));
    let joined = story.member(2);
    assert!(!story.state.has_same_members(&before));
    let before = story.state.clone();
    story.apply(Command::RemoveMember { node_id: joined });
    assert!(!story.state.has_same_members(&before));
    assert!(!story.state.has_same_members(&State::default()));
}

#[test]
fn the_last_member_stays() {
    let mut story = Story::founded();
    let remove = |node_id| Command::RemoveMember { node_id };
    assert_eq!(story.refused(remove(NodeId(1))), Refusal::LastMember);
    let second = story.member(2);
    story.apply(remove(second));
    assert_eq!(story.refused(remove(NodeId(1))), Refusal::LastMember);
    assert_eq!(
        story.refused(remove(NodeId(99))),
        Refusal::NotFound {
            record: Record::Member
        }
    );
}

#[test]
fn somebody_may_always_vote() {
    let mut story = Story::founded();
    let second = story.member(2);
    let demote = |ids: &[NodeId]| Command::SetSuffrage {
        members: ids.iter().map(|id| (*id, Suffrage::Learner)).collect(),
        if_match: None,
    };
    assert_eq!(
        story.refused(demote(&[NodeId(1), second])),
        Refusal::NoVoter
    );
    assert_eq!(
        story.refused(demote(&[second, NodeId(99)])),
        Refusal::NotFound {
            record: Record::Member
        },
        "all or none"
    );
    let suffrage = |story: &Story, id| story.state.member(id).map(|member| member.suffrage);
    assert_eq!(suffrage(&story, second), Some(Suffrage::Auto));
    story.apply(demote(&[second]));
    assert_eq!(suffrage(&story, second), Some(Suffrage::Learner));
    assert_eq!(story.refused(demote(&[NodeId(1)])), Refusal::NoVoter);
    let seed = NodeId(1);
    assert_eq!(
        story.refused(Command::RemoveMember { node_id: seed }),
        Refusal::NoVoter
    );
    story.apply(Command::SetSuffrage {
        members: [(second, Suffrage::Auto)].into(),
        if_match: None,
    });
    story.apply(Command::RemoveMember { node_id: seed });
    assert_eq!(
        story.refused(demote(&[seed])),
        Refusal::NotFound {
            record: Record::Member
        },
        "who leaves has no say"
    );
}

#[test]
fn who_votes_changes_on_condition_that_nobody_else_changed_it() {
    let mut story = Story::founded();
    let second = story.member(2);
    let set = |suffrage, if_match| Command::SetSuffrage {
        members: [(second, suffrage)].into(),
        if_match: Some(if_match),
    };
    let before = story.state.suffrage_tag();
    story.apply(set(Suffrage::Voter, before));
    let after = story.state.suffrage_tag();
    assert_ne!(before, after);
    assert_eq!(
        story.refused(set(Suffrage::Learner, before)),
        Refusal::Conflict {
            record: Record::Member,
            current: after
        }
    );
    assert_eq!(
        story.state.suffrage_tag(),
        after,
        "a refusal changes nothing"
    );
    story.apply(Command::DrainMember {
        node_id: second,
        draining: true,
    });
    assert_eq!(
        story.state.suffrage_tag(),
        after,
        "a drain is another matter"
    );
    story.member(3);
    assert_ne!(story.state.suffrage_tag(), after, "who joins may vote");
}

#[test]
fn a_drain_is_kept_until_it_is_taken_back() {
    let mut story = Story::founded();
    let drain = |draining| Command::DrainMember {
        node_id: NodeId(1),
        draining,
    };
    let draining = |story: &Story| story.state.member(NodeId(1)).map(|m| m.draining);
    let changes = |story: &Story| story.state.changes().count();
    story.apply(drain(true));
    assert_eq!(draining(&story), Some(true));
    let told = changes(&story);
    story.apply(drain(true));
    assert_eq!(changes(&story), told, "nothing has changed");
    let records: Vec<_> = story.state.records().collect();
    let read = State::from_records(&records).expect("is read");
    assert_eq!(read, story.state);
    story.apply(drain(false));
    assert_eq!(draining(&story), Some(false));
}

#[test]
fn members_are_updated_and_the_feature_level_waits_for_all() {
    let mut story = Story::founded();
    let node_id = story.member(2);
    let raise = |level| Command::RaiseFeatureLevel {
        level,
        version: format!("0.{level}.0"),
    };
    assert_eq!(
        story.refused(raise(1)),
        Refusal::FeatureLevel { supported: 0 }
    );
    story.apply(Command::UpdateMember {
        node_id,
        name: "renamed".into(),
        addresses: Addresses {
            cluster: "a:1".into(),
            ..Addresses::default()
        },
        incarnation: 5,
        feature_level: 2,
    });
    let member = story.state.member(node_id).expect("is there");
    assert_eq!((member.name.as_str(), member.incarnation), ("renamed", 5));
    // The seed has founded the cluster at level 1.
    assert_eq!(
        story.refused(raise(2)),
        Refusal::FeatureLevel { supported: 1 }
    );
    story.apply(Command::UpdateMember {
        node_id: NodeId(1),
        name: String::new(),
        addresses: Addresses::default(),
        incarnation: 6,
        feature_level: 3,
    });
    assert_eq!(story.apply(raise(2)), Response::Done);
    assert_eq!(story.apply(raise(1)), Response::Done);
    assert_eq!(story.state.feature_level(), 2);
    assert_eq!(story.state.feature_version(), "0.2.0");
}

#[test]
fn log_time_never_runs_backwards() {
    let mut story = Story::founded();
    story.time_ms = 5_000;
    story.apply(policy("a"));
    story.time_ms = 10;
    story.apply(policy("b"));
    assert_eq!(story.state.time_ms(), 5_001);
    assert_eq!(story.state.policy().map(|p| p.time_ms), Some(5_001));
}

/// One of everything.
fn full() -> Story {
    let mut story = Story::founded();
    story.apply(policy("a"));
    story.apply_as("alice", Some("key"), policy("b"));
    story.apply(Command::PutChunk {
        hash: Digest::of(b"loose"),
        bytes: ByteBuf::from("loose"),
    });
    story.apply(Command::AddSigningKey(signing_key("k2")));
    let account = story.record(Command::CreateAccount(account("a", Role::Admin)));
    let spec = token(Role::Admin, "k2");
    story.record(Command::CreateToken { account, spec });
    story.apply(Command::CreateJoinToken {
        id: Uuid::from_u128(1),
        public: [7; 32],
        expires_ms: u64::MAX,
        uses: 3,
    });
    let leaver = story.member(2);
    story.member(3);
    story.apply(Command::RemoveMember { node_id: leaver });
    story.apply(Command::ReleaseMember { node_id: leaver });
    story
}

#[test]
fn a_snapshot_is_the_state() {
    for story in [Story::empty(), Story::founded(), full()] {
        let records: Vec<_> = story.state.records().collect();
        let restored = State::from_records(&records).expect("reads back");
        assert_eq!(restored, story.state);
        assert_eq!(restored.hash(), story.state.hash());
    }
}

#[test]
fn a_restored_state_goes_on_as_the_original() {
    let mut original = full();
    let records: Vec<_> = original.state.records().collect();
    let mut restored = Story {
        state: State::from_records(&records).expect("reads back"),
        ..full()
    };
    for story in [&mut original, &mut restored] {
        story.apply_as("alice", Some("key"), policy("b"));
        story.apply(policy("c"));
        story.member(4);
        story.time_ms += IDEMPOTENCY_TTL_MS;
        story.apply(policy("d"));
    }
    assert_eq!(original.state.hash(), restored.state.hash());
}

#[test]
fn the_hash_tells_states_apart() {
    let story = full();
    let mut other = full();
    assert_eq!(story.state.hash(), other.state.hash());
    other.apply(policy("another"));
    assert_ne!(story.state.hash(), other.state.hash());
}

#[test]
fn damaged_snapshots_are_refused() {
    let records: Vec<_> = full().state.records().collect();
    assert!(matches!(
        State::from_records(&records[1..]),
        Err(SnapshotError::NoHeader)
    ));
    assert!(matches!(
        State::from_records(Vec::<&[u8]>::new()),
        Err(SnapshotError::NoHeader)
    ));
    let mut damaged = records.clone();
    damaged[1] = damaged[1].slice(1..);
    assert!(matches!(
        State::from_records(&damaged),
        Err(SnapshotError::Record { position: 1, .. })
    ));
}
