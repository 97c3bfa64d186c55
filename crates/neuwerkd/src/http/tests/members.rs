//! Who votes, who takes new flows and who is to go, asked of any member.

use super::*;

const NOBODY: &str = "00000000000000ff";

fn path(pattern: &str, node_id: NodeId) -> String {
    pattern.replace("{node_id}", &node_id.to_string())
}

impl Cluster {
    fn change(&self, n: usize, pattern: &str, node_id: NodeId) -> Ask {
        self.ask(n, Method::POST, &path(pattern, node_id))
            .token(&self.token(&["admin"]))
    }

    /// Voters by the word of member `n`, and how many members may fail.
    async fn voters(&self, n: usize) -> (Vec<String>, Value) {
        let answer = self
            .get(n, api::paths::MEMBERS)
            .expect(StatusCode::OK)
            .await;
        let answer = answer.json();
        let members = answer["members"].as_array().unwrap().iter();
        let voters = members
            .filter(|member| member["is_voter"] == true)
            .map(|member| member["node_id"].as_str().unwrap().to_owned());
        (voters.collect(), answer["failure_tolerance"].clone())
    }
}

/// A leader has heard from everybody.
async fn survives_one(cluster: &Cluster) {
    cluster
        .wait("one may fail", |cluster| {
            cluster.node(0).status().failure_tolerance == Some(1)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_costs_the_last_failure_that_is_survived_must_be_forced() {
    let cluster = Cluster::three().await;
    let third = cluster.node(2).node_id();
    survives_one(&cluster).await;
    for pattern in [api::paths::MEMBER_REMOVE, api::paths::MEMBER_DEMOTE] {
        let refused = cluster
            .change(1, pattern, third)
            .expect(StatusCode::CONFLICT)
            .await;
        assert!(
            refused.text.contains("no failure survived"),
            "{}",
            refused.text
        );
    }
    let demoted = cluster
        .change(1, api::paths::MEMBER_DEMOTE, third)
        .json(r#"{"force": true}"#)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(demoted.json()["voters"].as_array().unwrap().len(), 2);
    let (voters, tolerance) = cluster.voters(0).await;
    assert!(!voters.contains(&third.to_string()));
    assert_eq!(tolerance, 0);
    let list = cluster
        .get(0, api::paths::MEMBERS)
        .expect(StatusCode::OK)
        .await;
    let pinned = list.json()["members"].as_array().unwrap().clone();
    let pinned: Vec<_> = pinned.iter().filter(|m| m["pinned"] == "learner").collect();
    assert_eq!(pinned.len(), 1);

    let promoted = cluster
        .change(2, api::paths::MEMBER_PROMOTE, third)
        .json(r#"{"auto": true}"#);
    promoted.expect(StatusCode::OK).await;
    cluster
        .wait("it votes again", |cluster| {
            cluster.node(0).members().iter().all(|member| member.voter)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_lose_the_quorum_names_who_is_missing() {
    let cluster = Cluster::three().await;
    let (second, third) = (cluster.node(1).node_id(), cluster.node(2).node_id());
    cluster.cut_off(2);
    cluster
        .wait("it is missed", |cluster| {
            let members = cluster.node(0).members();
            members
                .iter()
                .any(|member| member.node_id == third && !member.live)
        })
        .await;
    let refused = cluster
        .change(0, api::paths::MEMBER_REMOVE, second)
        .expect(StatusCode::CONFLICT)
        .await;
    assert!(
        refused.text.contains(&third.to_string()),
        "{}",
        refused.text
    );
    // The dead one may go: nothing is lost by that.
    let removed = cluster
        .change(1, api::paths::MEMBER_REMOVE, third)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(removed.json()["voters"].as_array().unwrap().len(), 2);
    assert!(cluster.node(0).state().removed(third).is_some());
    cluster
        .change(0, api::paths::MEMBER_REMOVE, third)
        .expect(StatusCode::NOT_FOUND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_are_set_as_a_whole() {
    let cluster = Cluster::three().await;
    survives_one(&cluster).await;
    let ids: Vec<String> = (0..3)
        .map(|n| cluster.node(n).node_id().to_string())
        .collect();
    let set = |ids: &[&str], force: bool| {
        let body = serde_json::json!({"ids": ids, "force": force}).to_string();
        cluster
            .ask(1, Method::PUT, api::paths::VOTERS)
            .token(&cluster.token(&["admin"]))
            .json(&body)
    };
    set(&[&ids[0], NOBODY], true)
        .expect(StatusCode::NOT_FOUND)
        .await;
    set(&[], true).expect(StatusCode::CONFLICT).await;
    let four = [&ids[0], &ids[1], &ids[2], NOBODY];
    let refused = set(&four, true).expect(StatusCode::BAD_REQUEST).await;
    assert!(refused.text.contains("odd number"), "{}", refused.text);
    set(&[&ids[0]], false).expect(StatusCode::CONFLICT).await;
    let tag = || async {
        let token = cluster.token(&["readonly"]);
        let asked = cluster.ask(0, Method::GET, api::paths::VOTERS);
        let answer = asked.token(&token).expect(StatusCode::OK).await;
        answer.header("etag").to_owned()
    };
    let seen = tag().await;
    set(&[&ids[0]], true)
        .header("if-match", &seen)
        .expect(StatusCode::OK)
        .await;
    let late = set(&[&ids[1]], true).header("if-match", &seen);
    let refused = late.expect(StatusCode::PRECONDITION_FAILED).await;
    assert_eq!(refused.header("etag"), tag().await);
    assert_eq!(cluster.voters(0).await.0, [ids[0].clone()]);
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    set(&all, false).expect(StatusCode::OK).await;
    assert_eq!(cluster.voters(0).await.0.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_on_record_and_the_last_node_is_kept() {
    let cluster = Cluster::three().await;
    let state = |list: &Answered, node_id: NodeId| {
        let members = list.json()["members"].as_array().unwrap().clone();
        let member = members.iter().find(|m| m["node_id"] == node_id.to_string());
        member.unwrap()["drain_state"].clone()
    };
    for n in [1, 2] {
        let node_id = cluster.node(n).node_id();
        let list = cluster
            .change(1, api::paths::MEMBER_DRAIN, node_id)
            .expect(StatusCode::OK)
            .await;
        assert_eq!(state(&list, node_id), "draining");
    }
    let last = cluster.node(0).node_id();
    let refused = cluster
        .change(2, api::paths::MEMBER_DRAIN, last)
        .expect(StatusCode::CONFLICT)
        .await;
    assert!(refused.text.contains("no live member"), "{}", refused.text);
    let second = cluster.node(1).node_id();
    let list = cluster
        .change(0, api::paths::MEMBER_UNDRAIN, second)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(state(&list, second), Value::Null);
    cluster
        .change(2, api::paths::MEMBER_DRAIN, last)
        .expect(StatusCode::OK)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_whom_it_is_handed_and_requests_wait_for_it() {
    let cluster = Cluster::three().await;
    let second = cluster.node(1).node_id();
    let transfer = |n: usize, body: String| {
        cluster
            .ask(n, Method::POST, api::paths::TRANSFER)
            .token(&cluster.token(&["admin"]))
            .json(&body)
    };
    let to = |node_id: &str| format!(r#"{{"node_id": "{node_id}"}}"#);
    transfer(2, to(NOBODY)).expect(StatusCode::NOT_FOUND).await;
    // A write that comes in the midst of it is not refused, wherever it comes.
    let writes = async {
        for n in 0..30 {
            let body = format!(r#"{{"name": "a{n}", "role": "readonly"}}"#);
            let create = cluster
                .ask(n % 3, Method::POST, api::paths::SERVICE_ACCOUNTS)
                .token(&cluster.token(&["admin"]))
                .json(&body);
            create.expect(StatusCode::CREATED).await;
        }
    };
    let hand_over = transfer(2, to(&second.to_string())).expect(StatusCode::OK);
    let ((), answer) = tokio::join!(writes, hand_over);
    assert_eq!(answer.json()["leader_id"], second.to_string());
    assert!(matches!(
        cluster.node(1).role(),
        cluster::Role::Leader { .. }
    ));
    transfer(0, to(&second.to_string()))
        .expect(StatusCode::OK)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_tells_what_it_reaches() {
    let cluster = Cluster::one().await;
    let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = open.local_addr().unwrap().to_string();
    let ask = |body: String| {
        cluster
            .ask(0, Method::POST, api::paths::PREFLIGHT)
            .token(&cluster.token(&["admin"]))
            .json(&body)
    };
    let body = serde_json::json!({"addresses": [address, "127.0.0.1:1"]}).to_string();
    let answer = ask(body).expect(StatusCode::OK).await.json();
    assert_eq!(answer["addresses"][0]["failure"], Value::Null);
    assert_ne!(answer["addresses"][1]["failure"], Value::Null);
    let name = serde_json::json!({"addresses": ["example.org:1"]}).to_string();
    ask(name).expect(StatusCode::BAD_REQUEST).await;
}
