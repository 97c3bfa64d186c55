//! Service accounts and their tokens, and many clients at once.

use std::collections::BTreeSet;

use super::*;

fn create(cluster: &Cluster, n: usize, name: &str) -> Ask {
    let body = serde_json::json!({ "name": name, "role": "readonly" }).to_string();
    let ask = cluster.ask(n, Method::POST, api::paths::SERVICE_ACCOUNTS);
    ask.token(&cluster.token(&["admin"])).json(&body)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_an_account() {
    let cluster = Cluster::one().await;
    let made = create(&cluster, 0, "ci").expect(StatusCode::CREATED).await;
    let account = made.json();
    assert_eq!(account["created_by"], "tester");
    assert_eq!(account["status"], "active");
    create(&cluster, 0, "ci").expect(StatusCode::CONFLICT).await;

    let path = api::paths::SERVICE_ACCOUNT.replace("{id}", account["id"].as_str().unwrap());
    let update = |if_match: &str| {
        let body = r#"{"name":"ci","description":"builds","role":"admin"}"#;
        let ask = cluster
            .ask(0, Method::PUT, &path)
            .token(&cluster.token(&["admin"]))
            .json(body);
        ask.header("if-match", if_match)
    };
    let tag = made.header("etag").to_owned();
    let updated = update(&tag).expect(StatusCode::OK).await;
    assert_eq!(updated.json()["description"], "builds");
    update(&tag).expect(StatusCode::PRECONDITION_FAILED).await;
    update(updated.header("etag")).expect(StatusCode::OK).await;

    let disable = cluster
        .ask(0, Method::DELETE, &path)
        .token(&cluster.token(&["admin"]));
    disable.expect(StatusCode::NO_CONTENT).await;
    let listed = cluster
        .get(0, api::paths::SERVICE_ACCOUNTS)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(listed.json()[0]["status"], "disabled");
    // Replacing its fields does not bring it back.
    let revived = update("*").expect(StatusCode::OK).await;
    assert_eq!(revived.json()["status"], "disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_account() {
    let cluster = Cluster::one().await;
    let account = create(&cluster, 0, "ci")
        .expect(StatusCode::CREATED)
        .await
        .json();
    let path = api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", account["id"].as_str().unwrap());
    let post = |body: &str| {
        cluster
            .ask(0, Method::POST, &path)
            .token(&cluster.token(&["admin"]))
            .json(body)
    };
    post(r#"{"role":"admin"}"#)
        .expect(StatusCode::FORBIDDEN)
        .await;
    for body in [
        r#"{"ttl":"24h","eternal":true}"#,
        r#"{"ttl":"0s"}"#,
        r#"{"ttl":"24"}"#,
        r#"{"tll":"24h"}"#,
    ] {
        post(body).expect(StatusCode::BAD_REQUEST).await;
    }
    let eternal = post(r#"{"eternal":true}"#)
        .expect(StatusCode::CREATED)
        .await
        .json();
    assert!(eternal["token_meta"].get("expires_at").is_none());
    // The retry of a creation gives the same token again, not a second one.
    let keyed = || post(r#"{"name":"a","ttl":"24h"}"#).header("idempotency-key", "once");
    let first = keyed().expect(StatusCode::CREATED).await.json();
    let retry = keyed().expect(StatusCode::CREATED).await.json();
    assert_eq!(first, retry);
    let listed = cluster.get(0, &path).expect(StatusCode::OK).await;
    assert_eq!(listed.json().as_array().unwrap().len(), 2);
    assert!(!listed.text.contains(first["token"].as_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_checked() {
    let cluster = Cluster::one().await;
    for name in ["", "  ", "a\u{7}", &"x".repeat(129)] {
        create(&cluster, 0, name)
            .expect(StatusCode::BAD_REQUEST)
            .await;
    }
    let unknown = api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", &Uuid::nil().to_string());
    cluster.get(0, &unknown).expect(StatusCode::NOT_FOUND).await;
    let not_an_id = api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", "..");
    cluster
        .get(0, &not_an_id)
        .expect(StatusCode::NOT_FOUND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_through_all_nodes_lose_and_double_nothing() {
    const CLIENTS: usize = 16;
    const EACH: usize = 5;
    let cluster = Arc::new(Cluster::three().await);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let cluster = Arc::clone(&cluster);
        clients.spawn(async move {
            for n in 0..EACH {
                let name = format!("account-{client}-{n}");
                // Sent twice under one key, as after a lost answer, through different nodes.
                for node in [client % 3, (client + 1) % 3] {
                    let create = || create(&cluster, node, &name).header("idempotency-key", &name);
                    let mut answered = create().send().await;
                    // What a client does when the leader changes under it.
                    while [503, 504].contains(&answered.status.as_u16()) {
                        answered = create().send().await;
                    }
                    assert_eq!(answered.status, StatusCode::CREATED, "{}", answered.text);
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    for n in 0..3 {
        let listed = cluster
            .get(n, api::paths::SERVICE_ACCOUNTS)
            .expect(StatusCode::OK)
            .await
            .json();
        let names: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a["name"].to_string())
            .collect();
        assert_eq!(names.len(), CLIENTS * EACH);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), CLIENTS * EACH);
    }
}
