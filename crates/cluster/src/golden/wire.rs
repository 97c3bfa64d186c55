//! What members say to each other about consensus, joining and where they are. Most of it is encoded by openraft.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderIdExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use super::{addresses, check, entry, golden, stamped, to_hex};
use crate::command::{Command, Credential};
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::join::{EnrolGrant, EnrolRefusal, EnrolRequest, KnownMember};
use crate::node::Tokio;
use crate::node::finder::{Found, Lost};
use crate::raft::network::SnapshotHead;
use crate::raft::{LeaderId, LogId, Proposal, Types, Vote};

type Raft = Types<Tokio>;

/// As [`check`], for what cannot be compared: it is read, and written again as it was.
fn check_written<T: Serialize + DeserializeOwned>(name: &str, value: &T) {
    let current = rmp_serde::to_vec_named(value).expect("encodes");
    let kept = golden(name, &current);
    let read: T = rmp_serde::from_slice(&kept)
        .unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
    let written = rmp_serde::to_vec_named(&read).expect("encodes");
    assert_eq!(
        to_hex(&written),
        to_hex(&kept),
        "{name} is read as something else"
    );
    assert_eq!(
        to_hex(&current),
        to_hex(&kept),
        "{name} is written differently now"
    );
}

fn id(index: u64) -> LogId {
    LogId::new(
        <LeaderId as RaftLeaderIdExt>::new_committed(3, NodeId(1)),
        index,
    )
}

#[test]
fn calls_of_consensus_are_read_for_ever() {
    let vote = Vote::new_committed(3, NodeId(1));
    let ask = VoteRequest::<Raft>::new(Vote::new(4, NodeId(2)), Some(id(7)));
    check("vote-request", &ask);
    check(
        "vote-response",
        &VoteResponse::<Raft>::new(vote, Some(id(7)), true),
    );
    let proposal = Proposal::new(&stamped(Command::RetireSigningKey { kid: "k1".into() }));
    let append = AppendEntriesRequest::<Raft> {
        vote,
        prev_log_id: Some(id(7)),
        entries: vec![entry(id(8), openraft::EntryPayload::Normal(proposal))],
        leader_commit: Some(id(6)),
    };
    check_written("append-request", &append);
    let answers = [
        AppendEntriesResponse::<Raft>::Success,
        AppendEntriesResponse::PartialSuccess(Some(id(7))),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(vote),
    ];
    check_written("append-responses", &Vec::from(answers));
    let outcomes: Vec<StreamAppendResult<Raft>> = vec![
        Ok(Some(id(8))),
        Err(StreamAppendError::Conflict(id(7))),
        Err(StreamAppendError::HigherVote(vote)),
    ];
    check_written("append-outcomes", &outcomes);
    let transfer = TransferLeaderRequest::<Raft>::new(vote, NodeId(2), Some(id(8)));
    check_written("transfer-leader", &transfer);
    let head = SnapshotHead {
        vote,
        meta: openraft::SnapshotMeta {
            last_log_id: Some(id(8)),
            last_membership: openraft::StoredMembership::default(),
        },
    };
    check_written("snapshot-head", &head);
}

#[test]
fn what_is_asked_by_those_who_are_lost_or_new_is_read_for_ever() {
    let lost = Lost {
        address: "192.0.2.1:9600".into(),
        incarnation: 7,
    };
    let found = Found {
        address: "192.0.2.2:9600".into(),
        members: [(NodeId(3), "192.0.2.3:9600".to_owned())].into(),
        duplicate_of: Some("192.0.2.9:9600".into()),
    };
    check("lost", &lost);
    check("found", &found);
    let request = EnrolRequest {
        csr: vec![1, 2],
        name: "node".into(),
        addresses: addresses(),
        version: "0.2.0".into(),
        feature_level: 2,
        credential: Credential::Bootstrap { kid: "k1".into() },
    };
    check("enrol-request", &request);
    let grant = EnrolGrant {
        cluster_id: ClusterId([1; 16]),
        lineage: Lineage(2),
        node_id: NodeId(3),
        certificate: vec![4],
        authorities: vec![ByteBuf::from([5])],
        members: vec![KnownMember {
            node_id: NodeId(1),
            cluster_address: "192.0.2.1:9600".into(),
            join_address: "192.0.2.1:9601".into(),
            spki: Digest([6; 32]),
        }],
    };
    check("enrol-grant", &grant);
    let refusal = EnrolRefusal {
        retry: true,
        reason: "there is no leader".into(),
    };
    check("enrol-refusal", &refusal);
}
