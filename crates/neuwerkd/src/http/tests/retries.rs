//! Retries: the first answer again, whatever has happened since, and nothing done twice.

use std::io;
use std::sync::Mutex;

use std::collections::BTreeSet;

use super::*;

fn accounts(cluster: &Cluster, n: usize, method: Method, path: &str, body: &str) -> Ask {
    cluster
        .ask(n, method, path)
        .token(&cluster.token(&["admin"]))
        .json(body)
}

fn create(cluster: &Cluster, n: usize, name: &str) -> Ask {
    let body = serde_json::json!({ "name": name, "role": "readonly" }).to_string();
    accounts(
        cluster,
        n,
        Method::POST,
        api::paths::SERVICE_ACCOUNTS,
        &body,
    )
}

/// A policy of more than one chunk.
fn large_policy(default: &str) -> String {
    let rules: Vec<_> = (0..6_000)
        .map(|n| {
            let address = format!("198.51.{}.{}", n / 250, n % 250);
            serde_json::json!({"id": format!("rule-{n}"), "action": "allow", "match": {"dst_ips": [address]}})
        })
        .collect();
    serde_json::json!({
        "default_policy": default,
        "source_groups": [{"id": "all", "mode": "enforce", "sources": {"cidrs": ["10.0.0.0/8"]}, "rules": rules}],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_answered_as_the_first_attempt_was() {
    let cluster = Cluster::one().await;
    let made = || create(&cluster, 0, "ci").header("idempotency-key", "make");
    let first = made().expect(StatusCode::CREATED).await;
    let path = api::paths::SERVICE_ACCOUNT.replace("{id}", first.json()["id"].as_str().unwrap());
    let update = |description: &str, key: &str| {
        let body = serde_json::json!({"name": "ci", "description": description, "role": "admin"});
        accounts(&cluster, 0, Method::PUT, &path, &body.to_string()).header("idempotency-key", key)
    };
    let second = update("one", "update").expect(StatusCode::OK).await;
    let third = update("two", "update-2").expect(StatusCode::OK).await;
    assert_ne!(second.header("etag"), third.header("etag"));

    let again = made().expect(StatusCode::CREATED).await;
    assert_eq!(again.json(), first.json());
    assert_eq!(again.header("etag"), first.header("etag"));
    let again = update("one", "update").expect(StatusCode::OK).await;
    assert_eq!(again.json(), second.json());
    assert_eq!(again.header("etag"), second.header("etag"));
    let now = cluster.get(0, &path).expect(StatusCode::OK).await;
    assert_eq!(now.json(), third.json());
    assert_eq!(now.header("etag"), third.header("etag"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_request_only() {
    let cluster = Cluster::one().await;
    let keyed = |name: &str| create(&cluster, 0, name).header("idempotency-key", "k");
    keyed("a").expect(StatusCode::CREATED).await;
    let refused = keyed("b").expect(StatusCode::UNPROCESSABLE_ENTITY).await;
    assert!(refused.text.contains("idempotency key"), "{}", refused.text);
    let put = cluster
        .put_policy(0, "?wait=committed", POLICY)
        .header("idempotency-key", "k");
    put.expect(StatusCode::UNPROCESSABLE_ENTITY).await;
    // What was refused is not remembered: the key is free for it once its cause is gone.
    let taken = || create(&cluster, 0, "a").header("idempotency-key", "later");
    taken().expect(StatusCode::CONFLICT).await;
    create(&cluster, 0, "c")
        .header("idempotency-key", "later")
        .expect(StatusCode::CREATED)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_policy_is_put_once_even_if_the_retry_comes_after_the_next_one() {
    let cluster = Cluster::one().await;
    let base = cluster
        .put_policy(0, "?wait=committed", POLICY)
        .expect(StatusCode::OK)
        .await;
    let document = large_policy("deny");
    assert!(document.len() > cluster::command::CHUNK_BYTES);
    let put = |query: &str| {
        cluster
            .put_policy(0, query, &document)
            .header("if-match", base.header("etag"))
            .header("idempotency-key", "large")
    };
    let first = put("?wait=committed").expect(StatusCode::OK).await;
    let next = cluster.put_policy(0, "?wait=committed", OTHER_POLICY);
    let next = next.expect(StatusCode::OK).await;
    // With another wait: that is about the answer, not about what is done.
    let retry = put("?wait=committed&timeout=9s")
        .expect(StatusCode::OK)
        .await;
    assert_eq!(retry.header("etag"), first.header("etag"));
    assert_eq!(retry.json(), first.json());
    let now = cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(now.header("etag"), next.header("etag"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_draws_a_key_or_looks_at_one_can_be_retried() {
    let cluster = Cluster::one().await;
    let account = create(&cluster, 0, "ci").expect(StatusCode::CREATED).await;
    let path =
        api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", account.json()["id"].as_str().unwrap());
    let token =
        || accounts(&cluster, 0, Method::POST, &path, "{}").header("idempotency-key", "token");
    let rotate = || {
        let ask = cluster.ask(0, Method::POST, api::paths::KEYS);
        ask.token(&cluster.token(&["admin"]))
            .header("idempotency-key", "rotate")
    };
    let first_token = token().expect(StatusCode::CREATED).await.json();
    let first_key = rotate().expect(StatusCode::CREATED).await.json();
    assert_eq!(rotate().expect(StatusCode::CREATED).await.json(), first_key);
    // Signed by another key now, were it made anew.
    assert_eq!(
        token().expect(StatusCode::CREATED).await.json(),
        first_token
    );
    let keys = cluster
        .get(0, api::paths::KEYS)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(keys.json().as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_shown_once_is_shown_again_to_a_retry_only() {
    let cluster = Cluster::one().await;
    let post = |path: &str, key: &str| {
        let key = format!("{key}{path}");
        accounts(&cluster, 0, Method::POST, path, "{}").header("idempotency-key", &key)
    };
    for path in [api::paths::JOIN_TOKENS, api::paths::BOOTSTRAP_ROTATION] {
        let first = post(path, "one").send().await;
        assert!(first.status.is_success(), "{path}: {}", first.text);
        let retry = post(path, "one").send().await;
        assert_eq!(retry.json(), first.json(), "{path}");
        let other = post(path, "two").send().await;
        assert!(other.status.is_success(), "{path}: {}", other.text);
        let secret = |answered: &Answered| {
            let json = answered.json();
            json["token"]
                .as_str()
                .or(json["secret"].as_str())
                .unwrap()
                .to_owned()
        };
        assert_ne!(secret(&other), secret(&first), "{path}");
    }
    assert_eq!(cluster.node(0).state().join_tokens().count(), 2);
    // A secret that was replaced does not come back.
    post(api::paths::BOOTSTRAP_ROTATION, "one")
        .expect(StatusCode::CONFLICT)
        .await;
    let ids: BTreeSet<_> = cluster
        .node(0)
        .state()
        .join_tokens()
        .map(|token| token.id.as_bytes()[..4].to_vec())
        .collect();
    assert_eq!(ids.len(), 2, "an id is random, whatever the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_off_leader_took_is_of_unknown_fate_and_safe_to_retry() {
    let cluster = Cluster::three().await;
    cluster.cut_off(0);
    // It does not know yet that nobody hears it.
    let unknown = create(&cluster, 0, "ci")
        .expect(StatusCode::GATEWAY_TIMEOUT)
        .await
        .json();
    assert_eq!(unknown["reason"], "fate_unknown");
    let key = unknown["idempotency_key"].as_str().unwrap().to_owned();
    let successor = |cluster: &Cluster| {
        (1..3).any(|n| matches!(cluster.node(n).role(), cluster::Role::Leader { .. }))
    };
    cluster.wait("another one leads", successor).await;
    cluster.board.heal();
    for n in [1, 2, 0] {
        let mut answered = create(&cluster, n, "ci")
            .header("idempotency-key", &key)
            .send()
            .await;
        while answered.status == StatusCode::SERVICE_UNAVAILABLE {
            answered = create(&cluster, n, "ci")
                .header("idempotency-key", &key)
                .send()
                .await;
        }
        assert_eq!(answered.status, StatusCode::CREATED, "{}", answered.text);
    }
    for n in 0..3 {
        let listed = cluster
            .get(n, api::paths::SERVICE_ACCOUNTS)
            .expect(StatusCode::OK)
            .await;
        assert_eq!(
            listed.json().as_array().unwrap().len(),
            1,
            "{}",
            listed.text
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_leader_took_with_it_is_made_once_through_the_next() {
    let cluster = Cluster::three().await;
    cluster.cut_off(0);
    let successor = |cluster: &Cluster| {
        (1..3).any(|n| matches!(cluster.node(n).role(), cluster::Role::Leader { .. }))
    };
    let change = create(&cluster, 0, "ci").expect(StatusCode::CREATED);
    let come_back = async {
        cluster.wait("another one leads", successor).await;
        cluster.board.heal();
    };
    tokio::join!(change, come_back);
    let listed = cluster
        .get(
            0,
            &format!("{}?consistency=linearizable", api::paths::SERVICE_ACCOUNTS),
        )
        .expect(StatusCode::OK)
        .await;
    assert_eq!(
        listed.json().as_array().unwrap().len(),
        1,
        "{}",
        listed.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_is_new_and_answers_what_was_done() {
    let cluster = Cluster::three().await;
    create(&cluster, 1, "before")
        .expect(StatusCode::CREATED)
        .await;
    cluster.free_bytes.store(0, Ordering::SeqCst);
    for n in 0..3 {
        let full = create(&cluster, n, "after")
            .expect(StatusCode::INSUFFICIENT_STORAGE)
            .await;
        assert_eq!(full.json()["reason"], "storage_full");
        cluster
            .put_policy(n, "", &large_policy("allow"))
            .expect(StatusCode::INSUFFICIENT_STORAGE)
            .await;
        let fresh = cluster.get(n, "/api/v1/service-accounts?consistency=linearizable");
        fresh.expect(StatusCode::OK).await;
    }
    cluster.free_bytes.store(u64::MAX, Ordering::SeqCst);
    // The others tell the leader with their next reports.
    let mut after = create(&cluster, 1, "after").send().await;
    while after.status == StatusCode::INSUFFICIENT_STORAGE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = create(&cluster, 1, "after").send().await;
    }
    assert_eq!(after.status, StatusCode::CREATED, "{}", after.text);
}

/// Log lines of one thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// One thread, whose subscriber sees what all nodes log.
#[tokio::test]
async fn both_nodes_log_a_forwarded_request_under_its_id() {
    // Beside a second subscriber: while there is one only, a line that a thread without it comes by first stays off, and
    // other tests may run in this process.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("neuwerkd=debug")
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let cluster = Cluster::three().await;
    cluster
        .put_policy(2, "?wait=committed", POLICY)
        .header("x-request-id", "trace-me")
        .expect(StatusCode::OK)
        .await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let logged: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["request_id"] == "trace-me")
        .collect();
    assert_eq!(logged.len(), 2, "{text}");
    let from = |origin: &str| logged.iter().find(|line| line["from"] == origin).unwrap();
    let (entry, leader) = (from("network"), from("member"));
    assert_eq!(leader["via"], cluster.node(2).node_id().to_string());
    for line in [entry, leader] {
        assert_eq!(line["client"], "192.0.2.7:1234");
        assert_eq!(line["path"], api::paths::POLICY);
        assert_eq!(line["status"], 200);
    }
}
