//! Signing keys, tokens minted by root, and the change log that names both.

use cluster::transport::{Kind, Peer};
use cluster::{HttpRequest, HttpResponse};

use super::*;

fn admin(cluster: &Cluster, n: usize, method: Method, path: &str) -> Ask {
    cluster
        .ask(n, method, path)
        .token(&cluster.token(&["admin"]))
}

fn retire(kid: &str) -> String {
    api::paths::KEY.replace("{kid}", kid)
}

/// The entries of a kind in the change log of node `n`.
async fn logged(cluster: &Cluster, n: usize, record: &str) -> Vec<Value> {
    let log = cluster
        .get(n, &format!("{}?limit=1000", api::paths::CHANGES))
        .expect(StatusCode::OK)
        .await
        .json();
    let changes = log["changes"].as_array().unwrap().clone();
    changes
        .into_iter()
        .filter(|change| change["record"] == record)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_retired_through_any_node() {
    let cluster = Cluster::three().await;
    let old = cluster.token(&["admin"]);
    let whoami = |token: &str| cluster.ask(0, Method::GET, api::paths::WHOAMI).token(token);
    let rotated = admin(&cluster, 2, Method::POST, api::paths::KEYS)
        .expect(StatusCode::CREATED)
        .await
        .json();
    let kid = rotated["kid"].as_str().unwrap().to_owned();
    assert_eq!(rotated["signs"], true);
    whoami(&old).expect(StatusCode::OK).await;
    let new = cluster.token(&["admin"]);

    admin(&cluster, 1, Method::DELETE, &retire(&kid))
        .expect(StatusCode::CONFLICT)
        .await;
    admin(&cluster, 1, Method::DELETE, &retire("none"))
        .expect(StatusCode::NOT_FOUND)
        .await;
    for _twice in 0..2 {
        let ask = cluster.ask(1, Method::DELETE, &retire("k1")).token(&new);
        ask.expect(StatusCode::NO_CONTENT).await;
    }
    whoami(&old).expect(StatusCode::UNAUTHORIZED).await;
    whoami(&new).expect(StatusCode::OK).await;
    let listed = cluster
        .get(2, api::paths::KEYS)
        .expect(StatusCode::OK)
        .await;
    let statuses: Vec<_> = listed
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (key["kid"].to_string(), key["status"].to_string()))
        .collect();
    assert_eq!(statuses.len(), 2);
    assert!(
        statuses.contains(&("\"k1\"".into(), "\"retired\"".into())),
        "{statuses:?}"
    );
    let ended = logged(&cluster, 1, "signing_key").await;
    assert_eq!(ended.last().unwrap()["action"], "ended");
    assert_eq!(ended.last().unwrap()["subject"], "k1");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_members_root_reaches_the_leader_through_any_member() {
    let cluster = Cluster::three().await;
    let asking = cluster.node(1).node_id();
    let ask = |to: usize, method: &str, path: &str| {
        let peer = Peer {
            node_id: cluster.node(to).node_id(),
            address: String::new(),
        };
        let request = HttpRequest {
            method: method.into(),
            path_and_query: path.into(),
            ..HttpRequest::default()
        };
        let body = rmp_serde::to_vec_named(&request).unwrap();
        let line = cluster.board.transport(asking);
        async move {
            let answer = line.call(&peer, Kind::Admin, body.into(), PATIENCE).await;
            rmp_serde::from_slice::<HttpResponse>(&answer.unwrap()).unwrap()
        }
    };
    // A follower passes it on, the leader takes it itself.
    for to in [2, 0] {
        let answer = ask(to, "POST", api::paths::KEYS).await;
        assert_eq!(
            answer.status,
            201,
            "{:?}",
            String::from_utf8_lossy(&answer.body)
        );
    }
    assert_eq!(cluster.node(0).state().signing_keys().count(), 3);
    // What only root on the node itself may do stays so.
    assert_eq!(ask(2, "POST", api::paths::MINT).await.status, 403);
    let made = logged(&cluster, 0, "signing_key").await;
    assert!(
        made.iter().all(|change| change["actor"] == "root"),
        "{made:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_on_any_node_reaches_the_change_log() {
    let cluster = Cluster::three().await;
    let mint = |n: usize| {
        let ask = cluster.ask(n, Method::POST, api::paths::MINT).by_root();
        ask.json(r#"{"sub":"ops","roles":["admin"]}"#)
    };
    let mut minted = Vec::new();
    for n in 0..3 {
        minted.push((n, mint(n).expect(StatusCode::OK).await.json()));
    }
    // And without anybody to tell: it is told once there is somebody again.
    for n in 0..3 {
        cluster.cut_off(n);
    }
    let nobody = |cluster: &Cluster| {
        (0..3).all(|n| matches!(cluster.node(n).role(), cluster::Role::NoLeader { .. }))
    };
    cluster.wait("nobody leads", nobody).await;
    for n in 0..3 {
        minted.push((n, mint(n).expect(StatusCode::OK).await.json()));
    }
    assert!((0..3).all(|n| cluster.app(n).minted().pending() > 0));
    cluster.board.heal();
    let told = |cluster: &Cluster| (0..3).all(|n| cluster.app(n).minted().pending() == 0);
    cluster.wait("every mint is told", told).await;
    let leads = |cluster: &Cluster| {
        let index = cluster.node(0).state().index();
        (1..3).all(|n| cluster.node(n).state().index() >= index)
    };
    cluster.wait("all have applied it", leads).await;
    let events = logged(&cluster, 1, "break_glass").await;
    assert_eq!(events.len(), minted.len(), "{events:?}");
    for (n, token) in &minted {
        let jti = token["jti"].as_str().unwrap();
        let event = events
            .iter()
            .find(|event| event["detail"].as_str().unwrap().contains(jti))
            .unwrap_or_else(|| panic!("{jti} is not in {events:?}"));
        assert_eq!(event["node_id"], cluster.node(*n).node_id().to_string());
        assert_eq!(event["subject"], "ops");
        assert_eq!(event["actor"], "root");
        // Never the token itself.
        assert!(!event.to_string().contains(token["token"].as_str().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_change_log_is_read_in_parts() {
    let cluster = Cluster::one().await;
    for document in [POLICY, OTHER_POLICY] {
        cluster
            .put_policy(0, "?wait=committed", document)
            .expect(StatusCode::OK)
            .await;
    }
    let read = |query: &str| cluster.get(0, &format!("{}{query}", api::paths::CHANGES));
    let all = read("").expect(StatusCode::OK).await;
    assert!(all.headers.contains_key("neuwerk-applied-index"));
    let all = all.json()["changes"].as_array().unwrap().clone();
    let policies: Vec<_> = all.iter().filter(|c| c["record"] == "policy").collect();
    assert_eq!(policies.len(), 2);
    assert_eq!(policies[0]["actor"], "tester");
    let last = read("?limit=1").expect(StatusCode::OK).await.json();
    assert_eq!(last["changes"][0], *policies[1]);
    let since = format!("?since={}", policies[0]["index"]);
    let newer = read(&since).expect(StatusCode::OK).await.json();
    assert_eq!(newer["changes"], serde_json::json!([policies[1]]));
    read("?limit=0").expect(StatusCode::BAD_REQUEST).await;
}
