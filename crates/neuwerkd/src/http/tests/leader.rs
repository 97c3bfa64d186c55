//! Three nodes: any of them answers, and without a quorum they say so.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_takes_a_policy_and_every_node_enforces_it() {
    let cluster = Cluster::three().await;
    let put = cluster
        .put_policy(2, "?timeout=60s", POLICY)
        .header("x-request-id", "put-1");
    let put = put.expect(StatusCode::OK).await;
    assert_eq!(put.header("x-request-id"), "put-1");
    for n in 0..3 {
        let read = cluster
            .get(n, api::paths::POLICY)
            .expect(StatusCode::OK)
            .await;
        assert_eq!(read.header("etag"), put.header("etag"));
        assert!(
            read.headers.contains_key("neuwerk-leader-contact-ms"),
            "{:?}",
            read.headers
        );
    }
    // Who asked, and where, is known to the leader.
    let state = cluster.node(0).state();
    let author = &state.policy().unwrap().author;
    assert_eq!(author.subject, "tester");
    assert_eq!(author.node, Some(cluster.node(2).node_id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_verifies_again() {
    let cluster = Cluster::three().await;
    let forward = |credential: String| {
        let request = cluster::HttpRequest {
            method: "PUT".into(),
            path_and_query: format!("{}?wait=committed", api::paths::POLICY),
            headers: vec![("authorization".into(), credential.into_bytes().into())],
            body: POLICY.as_bytes().to_vec().into(),
            client_addr: String::new(),
        };
        let node = cluster.node(1).clone();
        async move { node.forward_http(&request, PATIENCE).await.unwrap().status }
    };
    assert_eq!(forward(String::new()).await, 401);
    assert_eq!(
        forward(format!("Bearer {}", cluster.token(&["readonly"]))).await,
        403
    );
    assert_eq!(
        forward(format!("Bearer {}", cluster.token(&["admin"]))).await,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_for_those_who_prefer_them() {
    let cluster = Cluster::three().await;
    let leader = cluster.node(0).node_id();
    let known = |cluster: &Cluster| matches!(cluster.node(1).role(), cluster::Role::Follower { leader_http, .. } if !leader_http.is_empty());
    cluster.wait("the leader's address is known", known).await;
    let put = cluster
        .put_policy(1, "?wait=committed", POLICY)
        .header("prefer", "redirect");
    let answered = put.expect(StatusCode::TEMPORARY_REDIRECT).await;
    let expected = format!("https://{leader}:8443/api/v1/policy?wait=committed");
    assert_eq!(answered.header("location"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_on_a_follower_can_change_things() {
    let cluster = Cluster::three().await;
    let path = format!("{}?timeout=60s", api::paths::POLICY);
    cluster
        .ask(1, Method::PUT, &path)
        .by_root()
        .json(POLICY)
        .expect(StatusCode::OK)
        .await;
    let state = cluster.node(0).state();
    assert_eq!(state.policy().unwrap().author.subject, "root");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_oneself_means_the_node_that_was_asked() {
    let cluster = Cluster::three().await;
    cluster.members[0].enforces.send_replace(false);
    cluster
        .put_policy(1, "?wait=self&timeout=60s", POLICY)
        .expect(StatusCode::OK)
        .await;
    let own = cluster.put_policy(0, "?wait=self&timeout=50ms", OTHER_POLICY);
    own.expect(StatusCode::ACCEPTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_is_named_at_once() {
    let cluster = Cluster::three().await;
    let lost = cluster.node(2).node_id();
    cluster.cut_off(2);
    let silent = |cluster: &Cluster| {
        cluster
            .node(0)
            .members()
            .iter()
            .any(|member| member.node_id == lost && !member.live)
    };
    cluster.wait("the leader misses it", silent).await;
    // The timeout is longer than the test's patience: the answer does not wait for it.
    let put = cluster.put_policy(1, "?timeout=300s", POLICY);
    let answered = tokio::time::timeout(PATIENCE, put.expect(StatusCode::ACCEPTED))
        .await
        .unwrap();
    let pending = answered.json()["pending"].as_array().unwrap().clone();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0]["node_id"], lost.to_string());
    assert!(
        pending[0]["reason"]
            .as_str()
            .unwrap()
            .contains("unreachable"),
        "{pending:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_reads_go_on_and_writes_say_when_to_retry() {
    let cluster = Cluster::three().await;
    cluster
        .put_policy(0, "?timeout=60s", POLICY)
        .expect(StatusCode::OK)
        .await;
    cluster.cut_off(1);
    cluster.cut_off(2);
    let nobody = |cluster: &Cluster| {
        (0..3).all(|n| matches!(cluster.node(n).role(), cluster::Role::NoLeader { .. }))
    };
    cluster.wait("nobody leads", nobody).await;
    for n in 0..3 {
        let put = cluster
            .put_policy(n, "", OTHER_POLICY)
            .expect(StatusCode::SERVICE_UNAVAILABLE)
            .await;
        assert!(put.header("retry-after").parse::<u64>().unwrap() > 0);
        let reason = put.json()["reason"].as_str().unwrap().to_owned();
        assert!(
            ["no_quorum", "no_leader"].contains(&reason.as_str()),
            "{reason}"
        );

        let read = cluster
            .get(n, api::paths::POLICY)
            .expect(StatusCode::OK)
            .await;
        assert_eq!(read.json()["default_policy"], "deny");
        assert!(read.headers.contains_key("neuwerk-applied-index"));
        cluster
            .get(n, api::paths::STATS)
            .expect(StatusCode::OK)
            .await;
        cluster
            .get(n, api::paths::MEMBERS)
            .expect(StatusCode::OK)
            .await;
        let fresh = cluster.get(n, "/api/v1/policy?consistency=linearizable");
        fresh.expect(StatusCode::SERVICE_UNAVAILABLE).await;
        cluster
            .get(n, api::paths::SERVICE_ACCOUNTS)
            .expect(StatusCode::SERVICE_UNAVAILABLE)
            .await;
        let local = cluster.get(n, "/api/v1/service-accounts?consistency=local");
        local.expect(StatusCode::OK).await;

        let ready = cluster.ask(n, Method::GET, api::paths::READY);
        ready.expect(StatusCode::SERVICE_UNAVAILABLE).await;
        cluster
            .ask(n, Method::GET, api::paths::READY_TRAFFIC)
            .expect(StatusCode::OK)
            .await;
        cluster
            .ask(n, Method::GET, api::paths::HEALTH)
            .expect(StatusCode::OK)
            .await;
        // Break-glass: root on any node still gets a token, and it works.
        let mint = cluster.ask(n, Method::POST, api::paths::MINT).by_root();
        let minted = mint
            .json(r#"{"sub":"ops","roles":["admin"]}"#)
            .expect(StatusCode::OK)
            .await;
        let token = minted.json()["token"].as_str().unwrap().to_owned();
        let whoami = cluster
            .ask(n, Method::GET, api::paths::WHOAMI)
            .token(&token);
        assert_eq!(whoami.expect(StatusCode::OK).await.json()["sub"], "ops");
    }
    cluster.board.heal();
    let healed = |cluster: &Cluster| {
        (0..3).all(|n| !matches!(cluster.node(n).role(), cluster::Role::NoLeader { .. }))
    };
    cluster.wait("all have a leader again", healed).await;
    cluster
        .put_policy(1, "?wait=committed", OTHER_POLICY)
        .expect(StatusCode::OK)
        .await;
}

/// The cluster's part of the stats of node `n`.
async fn cluster_stats(cluster: &Cluster, n: usize) -> Value {
    let stats = cluster
        .get(n, api::paths::STATS)
        .expect(StatusCode::OK)
        .await;
    stats.json()["cluster"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_and_members_of_three() {
    let cluster = &Cluster::three().await;
    cluster
        .put_policy(0, "?timeout=60s", POLICY)
        .expect(StatusCode::OK)
        .await;
    let stats = cluster
        .get(0, api::paths::STATS)
        .expect(StatusCode::OK)
        .await
        .json();
    let stats = &stats["cluster"];
    assert_eq!(stats["is_leader"], true);
    assert_eq!(stats["leader_id"], cluster.node(0).node_id().to_string());
    assert_eq!(stats["failure_tolerance"], 1);
    assert_eq!(
        (&stats["node_count"], &stats["follower_count"]),
        (&3.into(), &2.into())
    );
    for node in stats["nodes"].as_array().unwrap() {
        assert_eq!(
            node["enforced_revision"], node["desired_revision"],
            "{node}"
        );
        assert_eq!(node["healthy"], true, "{node}");
        assert_eq!(node["version"], "test", "{node}");
    }
    // Every member tells the same of all, once the leader's answer to a report has brought it there.
    let timeless = |stats: &Value| {
        let mut nodes = stats["nodes"].clone();
        for node in nodes.as_array_mut().unwrap() {
            let node = node.as_object_mut().unwrap();
            // Time goes on between two questions.
            node.remove("last_contact_ms");
            node.remove("clock_offset_ms");
        }
        let summary = [
            "leader_id",
            "failure_tolerance",
            "node_count",
            "follower_count",
            "followers_caught_up",
        ];
        (nodes, summary.map(|key| stats[key].clone()))
    };
    let ask = |n: usize| async move { cluster_stats(cluster, n).await };
    for n in [1, 2] {
        let same = async {
            loop {
                let (theirs, leaders) = (ask(n).await, ask(0).await);
                if timeless(&theirs) == timeless(&leaders) {
                    return theirs;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let Ok(theirs) = tokio::time::timeout(PATIENCE, same).await else {
            panic!("{:#?} is not {:#?}", ask(n).await, ask(0).await);
        };
        assert_eq!(theirs["is_leader"], false);
        for node in theirs["nodes"].as_array().unwrap() {
            for field in [
                "node_id",
                "role",
                "voter",
                "addr",
                "version",
                "healthy",
                "last_contact_ms",
                "matched_index",
                "applied_index",
                "lag_entries",
                "desired_revision",
                "desired_hash",
                "enforced_revision",
                "enforced_hash",
                "certificate_expires_at",
                "clock_offset_ms",
            ] {
                assert!(!node[field].is_null(), "no {field} in {node}");
            }
        }
    }
    let members = cluster
        .get(2, api::paths::MEMBERS)
        .expect(StatusCode::OK)
        .await
        .json();
    let members = members["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert!(
        members.iter().all(|member| member["is_voter"] == true),
        "{members:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_to_join_says_so() {
    let app = App::new(Arc::new(Readiness::default()), Metrics::default().http());
    app.readiness()
        .set_waiting_for("192.0.2.1:9601 does not answer");
    let ask = |path: &str| Ask {
        app: Arc::clone(&app),
        origin: Origin::Network("192.0.2.7:1".parse().unwrap()),
        request: Request::builder().uri(path),
        body: Body::empty(),
    };
    ask(api::paths::HEALTH).expect(StatusCode::OK).await;
    let ready = ask(api::paths::READY)
        .expect(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert!(
        ready.text.contains("192.0.2.1:9601 does not answer"),
        "{}",
        ready.text
    );
    let policy = ask(api::paths::POLICY).header("authorization", "Bearer x");
    let policy = policy.expect(StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(policy.json()["reason"], "not_ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_with_names_waits_until_every_member_knows_them() {
    let named = r#"{"source_groups":[{"id":"g","mode":"enforce","sources":{"cidrs":["10.0.0.0/8"]},
        "rules":[{"id":"n","action":"allow","match":{"dns_names":["a.example"]}}]}]}"#;
    for (level, status) in [(1, StatusCode::CONFLICT), (2, StatusCode::OK)] {
        let cluster = Cluster::one_at(level).await;
        let put = cluster.put_policy(0, "", named).expect(status).await;
        if status == StatusCode::CONFLICT {
            assert_eq!(put.json()["reason"], "feature_level", "{}", put.text);
            cluster
                .put_policy(0, "", POLICY)
                .expect(StatusCode::OK)
                .await;
        }
    }
}
