//! Whole nodes over a transport in memory: founding, restarting, replicating, losing leader and quorum. What happens
//! under faults of every kind is the simulator's, in `sim`.
#![allow(
    clippy::disallowed_methods,
    reason = "tests run on tokio's runtime and the machine's clock"
)]

mod amnesia;
mod bench;
mod freshness;
mod keeping;
mod levels;
mod tempo;

use std::sync::Arc;
use std::time::Duration;

use bench::{Bench, POLICY, spec};
use cluster::command::{Author, Command};
use cluster::{
    ForwardError, HttpRequest, HttpResponse, NoLeader, NodeReport, ProposeError, Refusal, Response,
    Role,
};
use uuid::Uuid;

#[tokio::test]
async fn a_lone_node_founds_commits_and_comes_back() {
    let mut bench: Bench = Bench::new(1);
    bench.start(0).await;
    bench.found(0).await;
    let applied = bench
        .node(0)
        .put_policy(POLICY, None, "first".into(), Author::default(), None)
        .await
        .expect("commits");
    let revision = match applied.response {
        Response::Policy {
            revision, changed, ..
        } => {
            assert!(changed);
            revision
        }
        other => panic!("{other:?}"),
    };
    assert!(bench.node(0).read_index().await.expect("reads") >= applied.index);
    let before = bench.node(0).state();

    bench.stop(0).await;
    bench.start(0).await;
    bench.wait_leader().await;
    bench.node(0).read_index().await.expect("reads");
    let state = bench.node(0).state();
    let policy = state.policy().expect("there is a policy");
    assert_eq!(policy.revision, revision);
    assert_eq!(state.document(policy).as_deref(), Some(POLICY));
    assert_eq!(state.cluster_id(), before.cluster_id());
}

#[tokio::test]
async fn acknowledged_writes_survive_the_loss_of_power() {
    let mut bench: Bench = Bench::new(1);
    bench.start(0).await;
    bench.found(0).await;
    let mut acknowledged = Vec::new();
    for n in 0..200 {
        let name = format!("account-{n}");
        let applied = bench.propose(0, Command::CreateAccount(spec(&name))).await;
        match applied.response {
            Response::Record { id, .. } => acknowledged.push((id, name)),
            other => panic!("{other:?}"),
        }
    }
    bench.lose_power(0).await;
    bench.start(0).await;
    bench.wait_leader().await;
    bench.node(0).read_index().await.expect("reads");
    let state = bench.node(0).state();
    for (id, name) in &acknowledged {
        assert_eq!(
            state.account(*id).map(|a| a.spec.name.clone()).as_ref(),
            Some(name)
        );
    }
    assert_eq!(state.accounts().count(), acknowledged.len());
}

#[tokio::test]
async fn a_large_document_travels_in_chunks_and_through_a_snapshot() {
    let mut bench: Bench = Bench::new(3);
    let document: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    bench.start_all().await;
    bench.form().await;
    bench.cut_off(2);
    let leader = bench.wait_leader_among(&[0, 1]).await;
    bench
        .node(leader)
        .put_policy(&document, None, String::new(), Author::default(), None)
        .await
        .expect("commits");
    // Enough entries that the log before them is purged: the third can only catch up by a snapshot.
    for n in 0..40 {
        bench
            .propose(leader, Command::CreateAccount(spec(&format!("a{n}"))))
            .await;
    }
    bench.wait_snapshot(leader).await;
    bench.heal();
    bench.wait_equal().await;
    let state = bench.node(2).state();
    let policy = state.policy().expect("there is a policy");
    assert_eq!(state.document(policy), Some(document));
}

#[tokio::test]
async fn three_nodes_survive_the_loss_of_their_leader() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    bench
        .propose(leader, Command::CreateAccount(spec("before")))
        .await;
    bench.kill(leader).await;
    let rest: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let successor = bench.wait_leader_among(&rest).await;
    bench
        .propose(successor, Command::CreateAccount(spec("after")))
        .await;
    bench.start(leader).await;
    bench.wait_equal().await;
    let names: Vec<String> = bench
        .node(leader)
        .state()
        .accounts()
        .map(|a| a.spec.name.clone())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn a_leader_without_quorum_says_so_and_takes_nothing() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    bench.cut_off(leader);
    bench
        .wait(|bench| matches!(bench.node(leader).role(), Role::NoLeader { .. }))
        .await;
    let refused = bench
        .node(leader)
        .propose(Command::CreateAccount(spec("lost")))
        .await;
    assert!(
        matches!(refused, Err(ProposeError::NoLeader(_))),
        "{refused:?}"
    );
    assert!(bench.node(leader).read_index().await.is_err());
    assert_eq!(bench.node(leader).status().confirmed_index, None);

    let rest: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let successor = bench.wait_leader_among(&rest).await;
    bench
        .propose(successor, Command::CreateAccount(spec("kept")))
        .await;
    bench.heal();
    bench.wait_equal().await;
    let names: Vec<String> = bench
        .node(leader)
        .state()
        .accounts()
        .map(|a| a.spec.name.clone())
        .collect();
    assert_eq!(names, ["kept"]);
}

#[tokio::test]
async fn an_isolated_follower_has_no_leader_and_still_reads() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    bench
        .propose(leader, Command::CreateAccount(spec("known")))
        .await;
    bench.wait_equal().await;
    let follower = (leader + 1) % 3;
    bench.cut_off(follower);
    bench
        .wait(|bench| matches!(bench.node(follower).role(), Role::NoLeader { .. }))
        .await;
    let term = bench.node(follower).status().term;
    assert_eq!(bench.node(follower).state().accounts().count(), 1);
    assert_eq!(bench.node(follower).status().failure_tolerance, None);
    // Pre-vote: however long it asks for votes, it must not unseat the leader when it is back.
    bench.wait(|bench| bench.live(leader).len() == 2).await;
    bench.heal();
    bench
        .wait(|bench| matches!(bench.node(follower).role(), Role::Follower { .. }))
        .await;
    assert_eq!(bench.node(follower).status().term, term);
    assert!(matches!(bench.node(leader).role(), Role::Leader { .. }));
}

#[tokio::test]
async fn sixteen_writers_lose_nothing_and_double_nothing() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    let shared = match bench
        .propose(leader, Command::CreateAccount(spec("shared")))
        .await
        .response
    {
        Response::Record { id, .. } => id,
        other => panic!("{other:?}"),
    };
    let node = Arc::new(bench.node(leader).clone());
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let node = node.clone();
            tokio::spawn(async move { write(&node, writer, shared).await })
        })
        .collect();
    let mut created = Vec::new();
    let mut updates = 0;
    for writer in writers {
        let (ids, won) = writer.await.expect("does not panic");
        created.extend(ids);
        updates += won;
    }
    bench.wait_equal().await;
    for n in 0..3 {
        let state = bench.node(n).state();
        assert_eq!(
            state.account(shared).expect("is there").revision,
            1 + updates
        );
        assert_eq!(state.accounts().count(), created.len() + 1);
        assert!(created.iter().all(|id| state.account(*id).is_some()));
    }
}

/// Creates ten accounts, each attempt sent twice under one key, and wins ten compare-and-set updates of `shared`.
async fn write(node: &cluster::Node, writer: usize, shared: Uuid) -> (Vec<Uuid>, u64) {
    let author = || Author {
        subject: format!("writer-{writer}"),
        node: None,
    };
    let mut created = Vec::new();
    let mut won = 0;
    for n in 0..10 {
        let create = Command::CreateAccount(spec(&format!("w{writer}-{n}")));
        let key = Some(format!("key-{n}"));
        let first = node
            .propose_as(create.clone(), author(), key.clone().map(Into::into))
            .await
            .expect("commits");
        let again = node
            .propose_as(create, author(), key.map(Into::into))
            .await
            .expect("commits");
        assert_eq!(first.response, again.response);
        match first.response {
            Response::Record { id, .. } => created.push(id),
            other => panic!("{other:?}"),
        }
        loop {
            let current = node.state().account(shared).expect("is there").revision;
            let update = Command::UpdateAccount {
                id: shared,
                if_match: Some(current),
                spec: spec("shared"),
            };
            match node
                .propose_as(update, author(), None)
                .await
                .expect("commits")
                .response
            {
                Response::Record { .. } => break won += 1,
                Response::Refused(Refusal::Conflict { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    (created, won)
}

#[tokio::test]
async fn leadership_is_handed_over_on_request() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    let target = (leader + 1) % 3;
    let to = bench.id(target);
    assert_eq!(bench.node(leader).transfer_leader(Some(to)).await, Ok(to));
    bench
        .wait(|bench| matches!(bench.node(target).role(), Role::Leader { .. }))
        .await;
    bench
        .propose(target, Command::CreateAccount(spec("there")))
        .await;
}

#[tokio::test]
async fn a_removed_member_is_out_for_good() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    let gone = (leader + 1) % 3;
    bench
        .propose(
            leader,
            Command::RemoveMember {
                node_id: bench.id(gone),
            },
        )
        .await;
    bench
        .wait(|bench| bench.node(leader).state().removed(bench.id(gone)).is_some())
        .await;
    bench
        .wait(|bench| bench.node(leader).members().len() == 2)
        .await;
    bench
        .wait(|bench| {
            matches!(
                bench.node(gone).role(),
                Role::NoLeader {
                    reason: NoLeader::Removed | NoLeader::NotMember | NoLeader::LeaderSilent
                }
            )
        })
        .await;
    bench
        .propose(leader, Command::CreateAccount(spec("later")))
        .await;
}

#[tokio::test]
async fn a_full_disk_refuses_proposals_and_recovers() {
    let mut bench: Bench = Bench::new(1);
    bench.start(0).await;
    bench.found(0).await;
    bench.set_free_bytes_of(0, 1024);
    let refused = bench
        .node(0)
        .propose(Command::CreateAccount(spec("x")))
        .await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
    bench.set_free_bytes_of(0, u64::MAX);
    bench.propose(0, Command::CreateAccount(spec("x"))).await;
}

#[tokio::test]
async fn a_failed_sync_stops_the_control_plane_and_disk_content_counts() {
    let mut bench: Bench = Bench::new(1);
    bench.start(0).await;
    bench.found(0).await;
    bench.propose(0, Command::CreateAccount(spec("kept"))).await;
    bench.fail_syncs(0);
    let lost = bench
        .node(0)
        .propose(Command::CreateAccount(spec("lost")))
        .await;
    assert_eq!(lost, Err(ProposeError::FateUnknown));
    let failure = tokio::time::timeout(Duration::from_secs(10), bench.node(0).failed()).await;
    assert!(
        matches!(failure, Ok(cluster::Failure::Storage(_))),
        "{failure:?}"
    );
    assert_eq!(
        bench.node(0).role(),
        Role::NoLeader {
            reason: NoLeader::Stopped
        }
    );
    bench.lose_power(0).await;
    bench.start(0).await;
    bench.wait_leader().await;
    bench.node(0).read_index().await.expect("reads");
    let names: Vec<String> = bench
        .node(0)
        .state()
        .accounts()
        .map(|a| a.spec.name.clone())
        .collect();
    assert!(names.contains(&"kept".to_owned()), "{names:?}");
}

#[tokio::test]
async fn followers_read_what_was_acknowledged_and_reach_the_leader() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    let leader = bench.form().await;
    let follower = (leader + 1) % 3;
    bench
        .node(leader)
        .set_http_handler(Arc::new(|_from, request: HttpRequest| {
            Box::pin(async move {
                HttpResponse {
                    status: 200,
                    headers: Vec::new(),
                    body: request.body,
                }
            })
        }));
    let request = HttpRequest {
        body: vec![7; 1_000_000].into(),
        ..HttpRequest::default()
    };
    let deadline = Duration::from_secs(10);
    let response = bench
        .node(follower)
        .forward_http(&request, deadline)
        .await
        .expect("answers");
    assert_eq!(response.body, request.body);
    let own = bench.node(leader).forward_http(&request, deadline).await;
    assert_eq!(own, Err(ForwardError::IsLeader));

    let applied = bench
        .propose(leader, Command::CreateAccount(spec("new")))
        .await;
    assert!(bench.node(follower).read_index().await.expect("reads") >= applied.index);
    assert_eq!(bench.node(follower).state().accounts().count(), 1);
}

#[tokio::test]
async fn every_node_knows_all_members_and_what_they_report() {
    let mut bench: Bench = Bench::new(3);
    bench.start_all().await;
    bench.form().await;
    for n in 0..3 {
        bench.node(n).report(NodeReport {
            version: format!("v{n}"),
            http_address: format!("192.0.2.{n}:8443"),
            ready: true,
            ..NodeReport::default()
        });
    }
    for n in 0..3 {
        bench
            .wait(|bench| {
                let members = bench.node(n).members();
                members.len() == 3
                    && members.iter().all(|member| {
                        member.live
                            && member.http_address.starts_with("192.0.2.")
                            && member.report.as_ref().is_some_and(|report| report.ready)
                    })
                    && bench.node(n).status().failure_tolerance == Some(1)
            })
            .await;
    }
    let leader = bench.wait_leader().await;
    let follower = (leader + 1) % 3;
    bench.cut_off(follower);
    let gone = bench.id(follower);
    bench
        .wait(|bench| {
            bench
                .node(leader)
                .members()
                .iter()
                .any(|m| m.node_id == gone && !m.live)
        })
        .await;
    assert_eq!(bench.node(leader).status().failure_tolerance, Some(0));
    // What the cut-off node was told grows old: it holds nobody for live but does not forget them.
    bench
        .wait(|bench| {
            bench
                .node(follower)
                .members()
                .iter()
                .all(|member| !member.live)
        })
        .await;
    assert_eq!(bench.node(follower).members().len(), 3);
}
