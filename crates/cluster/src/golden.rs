//! The MessagePack that is kept on disk or crosses the wire, held to files in `tests/golden`.
//!
//! A file is written once, by the version that introduces the encoding, and never changed: what it holds must be read
//! for ever, and read as the value here. A missing file is written by `GOLDEN=write cargo test -p cluster golden`.

mod membership;
mod wire;

use std::fmt::Debug;
use std::path::PathBuf;

use openraft::vote::RaftLeaderIdExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use uuid::Uuid;

use crate::command::*;
use crate::forward::{HttpRequest, HttpResponse};
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::node::amnesia::{Question, Recollection};
use crate::node::divergence::Ask;
use crate::node::report::{LeaderView, Report};
use crate::node::tempo::Measured;
use crate::raft::image::Coverage;
use crate::raft::{Address, Entry, LeaderId, LogId, Membership, Proposal, Vote};
use crate::state::{Member, Standing, State};
use crate::status::{MemberRole, MemberStatus, NodeReport, PolicyMark};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.hex"))
}

/// Hex in lines of 32 bytes, so that a difference can be seen.
fn to_hex(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(|line| {
            line.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                + "\n"
        })
        .collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

/// The bytes in the file named `name`; writes `current` there if it is missing and that was asked for.
fn golden(name: &str, current: &[u8]) -> Vec<u8> {
    let path = file(name);
    if !path.exists() && std::env::var("GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, to_hex(current)).expect("writes");
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| {
        panic!(
            "{} is missing: a new encoding needs its file",
            path.display()
        )
    });
    from_hex(&text)
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let current = rmp_serde::to_vec_named(value).expect("encodes");
    let kept = golden(name, &current);
    let read: T = rmp_serde::from_slice(&kept)
        .unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
    assert_eq!(read, *value, "{name} is read as something else");
    assert_eq!(
        to_hex(&current),
        to_hex(&kept),
        "{name} is written differently now"
    );
}

fn authority() -> Authority {
    Authority {
        certificate_der: vec![1, 2],
        key_pkcs8: Secret::plain([3, 4]),
    }
}

fn signing_key() -> SigningKey {
    SigningKey {
        kid: "k1".into(),
        public: vec![5; 32],
        key_pkcs8: Secret::plain([6]),
    }
}

fn certificate() -> Certificate {
    Certificate {
        der: vec![7],
        serial: vec![8],
        not_before_ms: 9,
        not_after_ms: 10,
    }
}

fn addresses() -> Addresses {
    Addresses {
        cluster: "192.0.2.1:9600".into(),
        join: "192.0.2.1:9601".into(),
        http: "[2001:db8::1]:8443".into(),
    }
}

fn account() -> AccountSpec {
    AccountSpec {
        name: "ci".into(),
        description: "pipeline".into(),
        role: Role::Admin,
        status: AccountStatus::Disabled,
    }
}

/// One of every command. A new variant goes here and gets a name below.
fn commands() -> Vec<Command> {
    let id = Uuid::from_u128(0x11);
    let node_id = NodeId(0x22);
    vec![
        Command::Init(Box::new(Init {
            cluster_id: ClusterId([1; 16]),
            lineage: Lineage(2),
            settings: Settings::default(),
            cluster_ca: authority(),
            https_ca: authority(),
            signing_key: signing_key(),
            seed: FirstMember {
                node_id,
                name: "seed".into(),
                addresses: addresses(),
                spki: Digest([3; 32]),
                certificate: certificate(),
            },
            policy: Some(Document::Inline(ByteBuf::from("{}"))),
            feature_level: 1,
            version: String::new(),
            first_key: None,
        })),
        Command::PutChunk {
            hash: Digest([4; 32]),
            bytes: ByteBuf::from("chunk"),
        },
        Command::PutPolicy {
            document: Document::Chunks {
                chunks: vec![Digest([4; 32])],
                len: 5,
                hash: Digest([5; 32]),
            },
            if_match: Some(6),
            message: "why".into(),
        },
        Command::AddSigningKey(signing_key()),
        Command::RetireSigningKey { kid: "k1".into() },
        Command::CreateAccount(account()),
        Command::UpdateAccount {
            id,
            if_match: Some(1),
            spec: account(),
        },
        Command::DisableAccount { id, if_match: None },
        Command::CreateToken {
            account: id,
            spec: TokenSpec {
                name: Some("t".into()),
                role: Role::Readonly,
                kid: "k1".into(),
                ttl_ms: Some(7),
            },
        },
        Command::RevokeToken {
            account: id,
            token: id,
        },
        Command::PutSettings {
            settings: Settings {
                cluster_name: "berlin".into(),
                join_approval: JoinApproval::Manual,
                bootstrap_join: false,
            },
            if_match: Some(2),
        },
        Command::CreateJoinToken {
            id,
            public: [9; 32],
            expires_ms: 10,
            uses: 11,
        },
        Command::RevokeJoinToken { id },
        Command::ReserveMember(Reservation {
            name: "node".into(),
            addresses: addresses(),
            spki: Digest([1; 32]),
            csr: Digest([2; 32]),
            credential: Credential::Token { id },
        }),
        Command::ConfirmMember {
            node_id,
            certificate: certificate(),
        },
        Command::UpdateMember {
            node_id,
            name: "node".into(),
            addresses: addresses(),
            incarnation: 3,
            feature_level: 1,
        },
        Command::RemoveMember { node_id },
        Command::ReleaseMember { node_id },
        Command::RaiseFeatureLevel {
            level: 1,
            version: String::new(),
        },
        Command::RecordEvent {
            kind: EventKind::JoinRefused,
            subject: "192.0.2.9".into(),
            detail: "wrong secret".into(),
        },
    ]
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Init(_) => "init",
        Command::PutChunk { .. } => "put-chunk",
        Command::PutPolicy { .. } => "put-policy",
        Command::AddSigningKey(_) => "add-signing-key",
        Command::RetireSigningKey { .. } => "retire-signing-key",
        Command::CreateAccount(_) => "create-account",
        Command::UpdateAccount { .. } => "update-account",
        Command::DisableAccount { .. } => "disable-account",
        Command::CreateToken { .. } => "create-token",
        Command::RevokeToken { .. } => "revoke-token",
        Command::PutSettings { .. } => "put-settings",
        Command::CreateJoinToken { .. } => "create-join-token",
        Command::RevokeJoinToken { .. } => "revoke-join-token",
        Command::ReserveMember(_) => "reserve-member",
        Command::ConfirmMember { .. } => "confirm-member",
        Command::UpdateMember { .. } => "update-member",
        Command::RemoveMember { .. } => "remove-member",
        Command::ReleaseMember { .. } => "release-member",
        Command::RaiseFeatureLevel { .. } => "raise-feature-level",
        Command::Trust(_) => "trust",
        Command::RecordEvent { .. } => "record-event",
        Command::SetSuffrage { .. } => "set-suffrage",
        Command::DrainMember { .. } => "drain-member",
    }
}

fn stamped(command: Command) -> Stamped {
    Stamped {
        command,
        time_ms: 1_700_000_000_000,
        seed: [0xab; 32],
        author: Author {
            subject: "alice".into(),
            node: Some(NodeId(1)),
        },
        idempotency_key: Some("key".into()),
        request: None,
    }
}

#[test]
fn commands_are_read_for_ever() {
    for command in commands() {
        let name = format!("command-{}", command_name(&command));
        check(&name, &stamped(command));
    }
}

/// What a command that was there before has learnt to say since, one of each.
fn later_forms() -> Vec<(&'static str, Command)> {
    vec![
        (
            "raise-feature-level-2",
            Command::RaiseFeatureLevel {
                level: 2,
                version: "0.2.0".into(),
            },
        ),
        (
            "set-suffrage-if-match",
            Command::SetSuffrage {
                members: [(NodeId(0x22), Suffrage::Voter)].into(),
                if_match: Some(7),
            },
        ),
        (
            "record-event-out-of-date",
            Command::RecordEvent {
                kind: EventKind::OutOfDate,
                subject: "0000000000000002".into(),
                detail: "its certificate is out of date".into(),
            },
        ),
        (
            "record-event-recovered",
            Command::RecordEvent {
                kind: EventKind::Recovered,
                subject: "0000000000000002".into(),
                detail: "backup".into(),
            },
        ),
    ]
}

fn sealed(n: u8) -> Secret {
    Secret::Sealed {
        epoch: 2,
        nonce: ByteBuf::from([n; 12]),
        sealed: ByteBuf::from([n; 17]),
    }
}

fn data_key() -> DataKey {
    let wrapped = Wrapped {
        enc: ByteBuf::from([1; 32]),
        sealed: ByteBuf::from([2; 48]),
    };
    DataKey {
        epoch: 2,
        wraps: [(NodeId(0x22), wrapped)].into(),
    }
}

/// One of every change of trust, with the name of its file.
fn trust_changes() -> Vec<(&'static str, TrustChange)> {
    let node_id = NodeId(0x22);
    vec![
        (
            "vouch",
            TrustChange::Vouch {
                node_id,
                voucher: Voucher {
                    by: node_id,
                    certificate: ByteBuf::from([1]),
                    signer: ByteBuf::from([2]),
                },
            },
        ),
        ("approve", TrustChange::Approve { node_id }),
        (
            "set-sealing-key",
            TrustChange::SetSealingKey {
                node_id,
                public: ByteBuf::from([3; 32]),
            },
        ),
        (
            "seal",
            TrustChange::Seal(Box::new(Sealing {
                key: data_key(),
                of: Digest([4; 32]),
                cluster_ca: sealed(1),
                https_ca: sealed(2),
                other_ca: Some(sealed(3)),
                signing_keys: [("k1".into(), sealed(4))].into(),
                bootstrap: Some(sealed(5)),
            })),
        ),
        (
            "wrap",
            TrustChange::Wrap {
                node_id,
                epoch: 2,
                wrapped: data_key().wraps[&node_id].clone(),
            },
        ),
        (
            "put-bootstrap-secret",
            TrustChange::PutBootstrapSecret {
                kid: "r1".into(),
                secret: sealed(6),
            },
        ),
        (
            "start-ca-rotation",
            TrustChange::StartCaRotation {
                next: Authority {
                    certificate_der: vec![1],
                    key_pkcs8: sealed(7),
                },
            },
        ),
        ("issue-from-next-ca", TrustChange::IssueFromNextCa),
        ("finish-ca-rotation", TrustChange::FinishCaRotation),
        ("abort-ca-rotation", TrustChange::AbortCaRotation),
    ]
}

#[test]
fn later_forms_of_commands_are_read_for_ever() {
    for (name, command) in later_forms() {
        check(&format!("command-{name}"), &stamped(command));
    }
}

#[test]
fn every_command_is_within_this_versions_level() {
    let later = later_forms().into_iter().map(|(_, command)| command);
    for command in commands().into_iter().chain(later) {
        let level = command.level();
        assert!(
            (1..=crate::feature::FEATURE_LEVEL).contains(&level),
            "{command:?}"
        );
    }
}

#[test]
fn changes_of_trust_are_read_for_ever() {
    for (name, change) in trust_changes() {
        check(&format!("trust-{name}"), &stamped(Command::Trust(change)));
    }
    check("command-init-sealed", &stamped(sealed_init()));
}

fn sealed_init() -> Command {
    let Command::Init(mut init) = commands().remove(0) else {
        panic!("the first is Init")
    };
    init.first_key = Some(FirstKey {
        sealing_key: ByteBuf::from([3; 32]),
        data_key: data_key(),
    });
    init.cluster_ca.key_pkcs8 = sealed(1);
    Command::Init(init)
}

#[test]
fn a_command_of_a_newer_version_is_not_skipped() {
    #[derive(Serialize)]
    enum Newer {
        DoSomethingNew { with: u8 },
    }
    #[derive(Serialize)]
    struct Entry {
        command: Newer,
        time_ms: u64,
        seed: ByteBuf,
    }
    let entry = Entry {
        command: Newer::DoSomethingNew { with: 1 },
        time_ms: 1,
        seed: ByteBuf::from(vec![0; 32]),
    };
    let bytes = rmp_serde::to_vec_named(&entry).expect("encodes");
    assert!(Stamped::decode(&bytes).is_err());
}

#[test]
fn a_field_of_a_newer_version_is_passed_over() {
    #[derive(Serialize)]
    enum Newer {
        RemoveMember { node_id: NodeId, gently: bool },
    }
    let newer = Newer::RemoveMember {
        node_id: NodeId(5),
        gently: true,
    };
    let bytes = rmp_serde::to_vec_named(&newer).expect("encodes");
    let read: Command = rmp_serde::from_slice(&bytes).expect("is read");
    assert_eq!(read, Command::RemoveMember { node_id: NodeId(5) });
}

#[test]
fn responses_are_read_for_ever() {
    let record = Record::Account;
    let refusals = vec![
        Refusal::NotInitialised,
        Refusal::AlreadyInitialised {
            cluster_id: ClusterId([1; 16]),
        },
        Refusal::Conflict { record, current: 3 },
        Refusal::NotFound { record },
        Refusal::Exists { record },
        Refusal::MissingChunks {
            chunks: vec![Digest([1; 32])],
        },
        Refusal::Corrupt,
        Refusal::TooLarge {
            record,
            limit_bytes: 4,
        },
        Refusal::Full { record, limit: 5 },
        Refusal::ActiveKey,
        Refusal::AccountDisabled,
        Refusal::RoleExceeded,
        Refusal::Credential(CredentialState::Expired),
        Refusal::MemberRemoved,
        Refusal::NotLeaving,
        Refusal::LastMember,
        Refusal::KeyReused,
        Refusal::FeatureLevel { supported: 6 },
    ];
    let answers = [
        Response::Nothing,
        Response::Done,
        Response::Policy {
            revision: 1,
            hash: Digest([2; 32]),
            changed: true,
        },
        Response::Record {
            id: Uuid::from_u128(3),
            revision: 4,
        },
        Response::Settings { revision: 5 },
        Response::Reserved { node_id: NodeId(6) },
    ];
    let all: Vec<Response> = answers
        .into_iter()
        .chain(refusals.into_iter().map(Response::Refused))
        .collect();
    check("responses", &all);
}

#[test]
fn log_records_are_read_for_ever() {
    let id = |index| {
        LogId::new(
            <LeaderId as RaftLeaderIdExt>::new_committed(3, NodeId(1)),
            index,
        )
    };
    let voters = vec![[NodeId(1), NodeId(2)].into()];
    let nodes: std::collections::BTreeMap<NodeId, Address> = [1, 2]
        .map(|n| {
            let cluster = format!("192.0.2.{n}:9600");
            (NodeId(n), Address { cluster })
        })
        .into();
    let membership = openraft::Membership::new(voters, nodes).expect("voters are nodes");
    let proposal = Proposal::new(&stamped(Command::RetireSigningKey { kid: "k1".into() }));
    check("log-blank", &entry(id(7), openraft::EntryPayload::Blank));
    check(
        "log-command",
        &entry(id(8), openraft::EntryPayload::Normal(proposal)),
    );
    check(
        "log-membership",
        &entry(
            id(9),
            openraft::EntryPayload::Membership(membership.clone()),
        ),
    );
    check("vote", &Vote::new_committed(3, NodeId(1)));
    check(
        "snapshot-coverage",
        &Coverage {
            last: Some(id(9)),
            membership: Membership::new(Some(id(9)), membership),
        },
    );
}

fn entry(log_id: LogId, payload: openraft::EntryPayload<Proposal, NodeId, Address>) -> Entry {
    Entry { log_id, payload }
}

#[test]
fn states_are_read_for_ever() {
    let mut state = State::default();
    for (index, command) in commands().into_iter().enumerate() {
        let mut stamped = stamped(command);
        stamped.seed = [index as u8; 32];
        stamped.idempotency_key = Some(index.to_string());
        state.apply(index as u64 + 1, stamped);
    }
    let records: Vec<ByteBuf> = state
        .records()
        .map(|record| ByteBuf::from(record.to_vec()))
        .collect();
    let current = rmp_serde::to_vec_named(&records).expect("encodes");
    let kept: Vec<ByteBuf> = rmp_serde::from_slice(&golden("state", &current)).expect("is a list");
    let read = State::from_records(&kept).expect("is read");
    assert_eq!(read, state);
    assert_eq!(read.hash(), state.hash());
}

#[test]
fn a_state_with_trust_is_read_for_ever() {
    let mut state = State::default();
    let changes = trust_changes()
        .into_iter()
        .map(|(_, change)| Command::Trust(change));
    for (index, command) in std::iter::once(sealed_init()).chain(changes).enumerate() {
        let stamped = Stamped {
            idempotency_key: None,
            ..stamped(command)
        };
        state.apply(index as u64 + 1, stamped);
        if index == 7 {
            // A rotation has just begun.
            let records: Vec<ByteBuf> = state
                .records()
                .map(|record| ByteBuf::from(record.to_vec()))
                .collect();
            check("state-trust", &records);
            assert_eq!(State::from_records(&records).expect("is read"), state);
        }
    }
}

#[test]
fn a_report_of_trust_is_read_for_ever() {
    let trust = crate::status::TrustReport {
        sealing_key: vec![1; 32],
        authorities: vec![Digest([2; 32])],
        certificate: Some(Digest([3; 32])),
    };
    check(
        "report-trust",
        &NodeReport {
            trust,
            ..NodeReport::default()
        },
    );
}

#[test]
fn what_came_with_its_request_is_read_for_ever() {
    let with_request = Stamped {
        request: Some(Digest([9; 32])),
        ..stamped(Command::RetireSigningKey { kid: "k1".into() })
    };
    check("stamped-request", &with_request);
    check(
        "event",
        &crate::event::Event {
            kind: EventKind::BreakGlass,
            actor: "root".into(),
            subject: "ops".into(),
            detail: "jti 1".into(),
            key: "1".into(),
        },
    );
}

#[test]
fn what_guards_the_state_is_read_for_ever() {
    let leader = <LeaderId as RaftLeaderIdExt>::new_committed(3, NodeId(1));
    let last = Some(LogId::new(leader, 4));
    check(
        "question",
        &Question {
            incarnation: 2,
            last,
        },
    );
    check(
        "recollection",
        &Recollection {
            vote: Some(Vote::new(3, NodeId(1))),
            last,
            membership: Membership::default(),
            acknowledged: last,
            demotes: true,
            legacy: false,
        },
    );
    check(
        "ask",
        &Ask {
            index: 5,
            program: "0123456789abcdef".into(),
        },
    );
    check("fingerprint", &Some(Digest([6; 32])));
    check(
        "leader_view_diverged",
        &LeaderView {
            diverged: [(NodeId(1), 7)].into(),
            ..LeaderView::default()
        },
    );
    check(
        "report_storage_full",
        &NodeReport {
            storage_full: true,
            ..NodeReport::default()
        },
    );
}

#[test]
fn reports_and_requests_are_read_for_ever() {
    let node = NodeReport {
        version: "0.1.0".into(),
        http_address: "192.0.2.1:8443".into(),
        mode: "packet".into(),
        configuration_hash: "abc".into(),
        applied: PolicyMark {
            index: 1,
            revision: 2,
            hash: Digest([3; 32]),
            ..PolicyMark::default()
        },
        ready: true,
        failing_checks: vec!["dataplane_running".into()],
        certificate_expires_ms: Some(4),
        wall_clock_ms: 5,
        incarnation: 6,
        ..NodeReport::default()
    };
    let report = Report {
        node: node.clone(),
        applied_index: 7,
        name: "node".into(),
        addresses: addresses(),
        incarnation: 6,
        feature_level: 1,
        measured: Measured::default(),
    };
    check("report", &report);
    let measured = Measured {
        stretch: Some(2),
        round_trip_us: Some(40_000),
        sync_us: Some(1_000),
    };
    check("report-measured", &Report { measured, ..report });
    let member = MemberStatus {
        node_id: NodeId(1),
        name: "node".into(),
        address: "192.0.2.1:9600".into(),
        http_address: "192.0.2.1:8443".into(),
        role: MemberRole::Learner,
        voter: false,
        leaving: true,
        live: true,
        last_contact_ms: Some(8),
        matched_index: 9,
        applied_index: 7,
        lag: 2,
        checked_index: None,
        report: Some(node),
        clock_offset_ms: None,
    };
    let view = LeaderView {
        members: vec![member],
        failure_tolerance: 1,
        duplicate_of: None,
        diverged: Default::default(),
        stretch: None,
    };
    check("leader-view", &view);
    let stretch = Some(2);
    check("leader-view-stretch", &LeaderView { stretch, ..view });
    check(
        "http-request",
        &HttpRequest {
            method: "PUT".into(),
            path_and_query: "/api/v1/policy?wait=all".into(),
            headers: vec![("authorization".into(), ByteBuf::from("Bearer x"))],
            body: ByteBuf::from("{}"),
            client_addr: "192.0.2.9:1234".into(),
        },
    );
    check(
        "http-response",
        &HttpResponse {
            status: 200,
            headers: vec![("etag".into(), ByteBuf::from("\"1-2\""))],
            body: ByteBuf::from("{}"),
        },
    );
}
