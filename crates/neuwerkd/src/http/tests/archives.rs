//! Support archives over the API: every member's part, without a leader too, and not one secret.

use cluster::command::Secret;

use super::*;
use crate::sysdump::tests::{Planted, unpacked};

fn sysdump(cluster: &Cluster, n: usize, path: &str) -> Ask {
    cluster
        .ask(n, Method::POST, path)
        .token(&cluster.token(&["admin"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_the_cluster_holds_every_members_part_and_no_secret() {
    let cluster = Cluster::three().await;
    let mut planted = Planted::new();
    for n in 0..3 {
        cluster.app(n).set_support(planted.config(), Planted::log());
    }
    // Everything that the state holds: keys, accounts, tokens, answers to retries.
    let state = cluster.node(0).state();
    let mut secret =
        |name: &str, secret: &Secret| planted.bytes(name, &state.open(secret).unwrap());
    secret("cluster CA key", &state.cluster_ca().unwrap().key_pkcs8);
    secret("HTTPS CA key", &state.https_ca().unwrap().key_pkcs8);
    secret(
        "signing key",
        &state.active_signing_key().unwrap().key.key_pkcs8,
    );
    let admin = cluster.token(&["admin"]);
    let account = cluster
        .ask(1, Method::POST, api::paths::SERVICE_ACCOUNTS)
        .token(&admin)
        .header("idempotency-key", "1dempotency-key-that-is-secret")
        .json(r#"{"name":"ci","role":"admin","description":"d3scription-with-a-secret"}"#)
        .expect(StatusCode::CREATED)
        .await
        .json();
    let path = api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", account["id"].as_str().unwrap());
    let token = cluster
        .ask(1, Method::POST, &path)
        .token(&admin)
        .json("{}")
        .expect(StatusCode::CREATED)
        .await
        .json();
    let mint = cluster.ask(1, Method::POST, api::paths::MINT).by_root();
    let minted = mint
        .json(r#"{"sub":"ops","roles":["admin"]}"#)
        .expect(StatusCode::OK)
        .await
        .json();
    for (name, text) in [
        ("idempotency key", "1dempotency-key-that-is-secret"),
        ("description", "d3scription-with-a-secret"),
        ("bearer token", admin.as_str()),
        ("account token", token["token"].as_str().unwrap()),
        ("minted token", minted["token"].as_str().unwrap()),
    ] {
        planted.bytes(name, text.as_bytes());
    }
    for (name, path, field) in [
        ("join token", api::paths::JOIN_TOKENS, "token"),
        (
            "new bootstrap secret",
            api::paths::BOOTSTRAP_ROTATION,
            "secret",
        ),
    ] {
        let made = cluster
            .ask(0, Method::POST, path)
            .token(&admin)
            .json("{}")
            .send()
            .await;
        assert!(made.status.is_success(), "{path}: {}", made.text);
        planted.bytes(name, made.json()[field].as_str().unwrap().as_bytes());
    }
    let document = Planted::policy();
    let author = cluster::command::Author::default();
    let put = cluster
        .node(0)
        .put_policy(document.as_bytes(), None, String::new(), author, None);
    let put = put.await.unwrap();
    put.response.accepted().unwrap();
    let has_it = |n: usize| cluster.node(n).state().index() >= put.index;
    cluster.wait("all have it", |_| (0..3).all(has_it)).await;

    let answered = sysdump(&cluster, 2, api::paths::SYSDUMP_CLUSTER)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(answered.header("content-type"), "application/gzip");
    assert!(!answered.headers.contains_key("neuwerk-missing-members"));
    let length: usize = answered.header("content-length").parse().unwrap();
    assert_eq!(length, answered.bytes.len());
    let files = unpacked(&answered.bytes[..]);
    planted.check(&files);
    for n in 0..3 {
        let id = cluster.node(n).node_id();
        for name in [
            "state",
            "policies",
            "service-accounts",
            "integrations",
            "audit",
            "metrics",
            "configuration",
            "cluster",
            "manifest",
        ] {
            let path = format!("nodes/{id}/summary/{name}.json");
            let content = files
                .get(&path)
                .unwrap_or_else(|| panic!("no {path} in {:?}", files.keys()));
            let value: Value = serde_json::from_slice(content).unwrap();
            assert!(value.is_object(), "{path}");
        }
        assert!(files.contains_key(&format!("nodes/{id}/log/recent.txt")));
        let policies =
            String::from_utf8_lossy(&files[&format!("nodes/{id}/summary/policies.json")]);
        assert!(policies.contains("authorization"), "{policies}");
    }
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(manifest["made_by"], cluster.node(2).node_id().to_string());
    assert_eq!(manifest["members"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_those_that_can_be_reached_are_in_it_and_the_others_are_named() {
    let cluster = Cluster::three().await;
    let ids: Vec<_> = (0..3).map(|n| cluster.node(n).node_id()).collect();
    for n in 0..3 {
        cluster.cut_off(n);
    }
    let nobody = |cluster: &Cluster| {
        (0..3).all(|n| matches!(cluster.node(n).role(), cluster::Role::NoLeader { .. }))
    };
    cluster.wait("nobody leads", nobody).await;
    let alone = sysdump(&cluster, 1, api::paths::SYSDUMP_CLUSTER)
        .expect(StatusCode::OK)
        .await;
    let missing = alone.header("neuwerk-missing-members");
    assert!(
        [0, 2]
            .iter()
            .all(|n| missing.contains(&ids[*n].to_string())),
        "{missing}"
    );
    // Two of them meet again, before they have a leader.
    cluster.board.heal();
    cluster.board.cut(&[ids[2]], &[ids[0], ids[1]]);
    let answered = sysdump(&cluster, 0, api::paths::SYSDUMP_CLUSTER)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(
        answered.header("neuwerk-missing-members"),
        ids[2].to_string()
    );
    let files = unpacked(&answered.bytes[..]);
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let members = manifest["members"].as_array().unwrap();
    for (n, id) in ids.iter().enumerate() {
        let member = members
            .iter()
            .find(|m| m["node_id"] == id.to_string())
            .unwrap();
        assert_eq!(member["included"], n != 2, "{member}");
        assert_eq!(member["reason"].is_string(), n == 2, "{member}");
        let has_part = files
            .keys()
            .any(|path| path.starts_with(&format!("nodes/{id}/")));
        assert_eq!(has_part, n != 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_not_joined_yet_gives_its_own() {
    let app = App::new(Arc::new(Readiness::default()), Metrics::default().http());
    app.readiness().set_waiting_for("nobody answers");
    let ask = |path: &str| Ask {
        app: Arc::clone(&app),
        origin: Origin::ControlSocket,
        request: Request::builder().method(Method::POST).uri(path),
        body: Body::empty(),
    };
    let answered = ask(api::paths::SYSDUMP_NODE).expect(StatusCode::OK).await;
    let files = unpacked(&answered.bytes[..]);
    let ready = String::from_utf8_lossy(&files["http/ready.json"]);
    assert!(ready.contains("nobody answers"), "{ready}");
    let answered = ask(api::paths::SYSDUMP_CLUSTER)
        .expect(StatusCode::OK)
        .await;
    assert!(unpacked(&answered.bytes[..]).contains_key("nodes/this-node/http/ready.json"));
    // One at a time.
    let turn = app.archives().try_acquire().unwrap();
    ask(api::paths::SYSDUMP_NODE)
        .expect(StatusCode::CONFLICT)
        .await;
    drop(turn);
}
