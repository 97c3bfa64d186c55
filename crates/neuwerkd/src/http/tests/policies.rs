//! Reading and replacing the policy on one node.

use super::*;

const TAG: &str = "\"0000000000000009-1\"";

fn revision(answered: &Answered) -> u64 {
    answered.header("neuwerk-revision").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_read() {
    let cluster = Cluster::one().await;
    cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::NOT_FOUND)
        .await;
    let put = cluster
        .put_policy(0, "", POLICY)
        .expect(StatusCode::OK)
        .await;
    let tag = put.header("etag").to_owned();
    assert!(tag.starts_with("\"0000000000000009-"), "{tag}");
    assert_eq!(put.header("neuwerk-lint-count"), "0");
    let read = cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(read.text, put.text);
    assert_eq!(read.header("etag"), tag);
    assert_eq!(revision(&read), revision(&put));
    assert_eq!(read.json()["default_policy"], "deny");
    assert!(read.headers.contains_key("neuwerk-applied-index"));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_and_yaml_in_and_out() {
    let cluster = Cluster::one().await;
    let admin = cluster.token(&["admin"]);
    let put = cluster
        .ask(0, Method::PUT, api::paths::POLICY)
        .token(&admin);
    let put = put
        .header("content-type", "application/yaml")
        .body("default_policy: allow\n");
    let put = put.expect(StatusCode::OK).await;
    assert_eq!(put.json()["default_policy"], "allow");
    for ask in [
        cluster.get(0, "/api/v1/policy?format=yaml"),
        cluster
            .get(0, api::paths::POLICY)
            .header("accept", "application/yaml"),
    ] {
        let yaml = ask.expect(StatusCode::OK).await;
        assert_eq!(yaml.header("content-type"), "application/yaml");
        assert!(yaml.text.contains("default_policy: allow"), "{}", yaml.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions() {
    let cluster = Cluster::one().await;
    let first = cluster
        .put_policy(0, "", POLICY)
        .expect(StatusCode::OK)
        .await;
    let tag = first.header("etag").to_owned();
    cluster
        .get(0, api::paths::POLICY)
        .header("if-none-match", &tag)
        .expect(StatusCode::NOT_MODIFIED)
        .await;

    let put = |if_match: &str| {
        cluster
            .put_policy(0, "", OTHER_POLICY)
            .header("if-match", if_match)
    };
    let second = put(&tag).expect(StatusCode::OK).await;
    assert_eq!(revision(&second), revision(&first) + 1);
    let stale = put(&tag).expect(StatusCode::PRECONDITION_FAILED).await;
    assert_eq!(stale.header("etag"), second.header("etag"));
    assert_eq!(stale.json()["reason"], "conflict");
    let other_lineage = TAG.replace('9', "8");
    for wrong in [
        other_lineage.as_str(),
        "nonsense",
        "\"0000000000000009-99\"",
    ] {
        put(wrong).expect(StatusCode::PRECONDITION_FAILED).await;
    }
    put("*").expect(StatusCode::OK).await;
    let changed = cluster
        .get(0, api::paths::POLICY)
        .header("if-none-match", &tag);
    changed.expect(StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing() {
    let cluster = Cluster::one().await;
    cluster
        .put_policy(0, "", POLICY)
        .expect(StatusCode::OK)
        .await;
    let dry = cluster
        .put_policy(0, "?dry_run=true", OTHER_POLICY)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(dry.json()["valid"], true);
    assert_eq!(dry.json()["changed"], true);
    let read = cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(read.json()["default_policy"], "deny");
    // A misspelt one puts nothing in force either.
    cluster
        .put_policy(0, "?dryrun=true", OTHER_POLICY)
        .expect(StatusCode::BAD_REQUEST)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_of_a_document_come_at_once() {
    let cluster = Cluster::one().await;
    let document =
        r#"{"default_polisy":"deny","source_groups":[{"id":"","mode":"enforce","sources":{}}]}"#;
    let answered = cluster
        .put_policy(0, "", document)
        .expect(StatusCode::BAD_REQUEST)
        .await;
    let json = answered.json();
    let problems = json["errors"].as_array().unwrap();
    assert!(problems.len() >= 2, "{problems:?}");
    assert!(
        problems
            .iter()
            .any(|problem| problem["suggestion"].is_string()),
        "{problems:?}"
    );
    assert!(problems.iter().any(|problem| {
        problem["path"]
            .as_str()
            .unwrap()
            .starts_with("source_groups[0]")
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input() {
    let cluster = Cluster::one().await;
    let admin = cluster.token(&["admin"]);
    let put = |media_type: &str, body: Vec<u8>| {
        let ask = cluster
            .ask(0, Method::PUT, api::paths::POLICY)
            .token(&admin);
        ask.header("content-type", media_type).body(body)
    };
    for body in [
        &b""[..],
        b"{",
        b"{\"default_policy\":\"deny\"",
        b"\xff\xfe\x00",
        b"{\"default_policy\":\"\xff\"}",
        b"{\"default_policy\":\"deny\",\"default_policy\":\"allow\"}",
        b"null",
        b"[]",
    ] {
        put("application/json", body.to_vec())
            .expect(StatusCode::BAD_REQUEST)
            .await;
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    put("application/json", nested.clone().into())
        .expect(StatusCode::BAD_REQUEST)
        .await;
    put("application/yaml", nested.into())
        .expect(StatusCode::BAD_REQUEST)
        .await;
    let aliases = b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\ndefault_policy: deny\n";
    put("application/yaml", aliases.to_vec())
        .expect(StatusCode::BAD_REQUEST)
        .await;
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        put(media_type, POLICY.into())
            .expect(StatusCode::UNSUPPORTED_MEDIA_TYPE)
            .await;
    }
    cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::NOT_FOUND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded() {
    let cluster = Cluster::one().await;
    let admin = cluster.token(&["admin"]);
    let large = vec![b' '; crate::http::route::SMALL_BODY_BYTES + 1];
    let post = cluster
        .ask(0, Method::POST, api::paths::SERVICE_ACCOUNTS)
        .token(&admin);
    post.json("")
        .body(large.clone())
        .expect(StatusCode::PAYLOAD_TOO_LARGE)
        .await;
    // A policy may be larger than other bodies.
    let mut document = large;
    document.extend_from_slice(POLICY.as_bytes());
    let put = cluster
        .ask(0, Method::PUT, api::paths::POLICY)
        .token(&admin);
    put.json("").body(document).expect(StatusCode::OK).await;
    // What announces too much is refused before any of it is read.
    let put = cluster
        .ask(0, Method::PUT, api::paths::POLICY)
        .token(&admin);
    let put = put.header(
        "content-length",
        &(crate::http::route::POLICY_BODY_BYTES + 1).to_string(),
    );
    put.json("{}").expect(StatusCode::PAYLOAD_TOO_LARGE).await;
    // Without a credential nothing is read at all.
    let put = cluster
        .ask(0, Method::PUT, api::paths::POLICY)
        .header("content-length", "99999999999");
    put.json("{}").expect(StatusCode::UNAUTHORIZED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_under_the_same_key_is_one_revision() {
    let cluster = Cluster::one().await;
    let put = |document| {
        cluster
            .put_policy(0, "", document)
            .header("idempotency-key", "k-1")
    };
    let first = put(POLICY).expect(StatusCode::OK).await;
    let retry = put(POLICY).expect(StatusCode::OK).await;
    assert_eq!(revision(&first), revision(&retry));
    put(OTHER_POLICY)
        .expect(StatusCode::UNPROCESSABLE_ENTITY)
        .await;
    let bad = cluster
        .put_policy(0, "", POLICY)
        .header("idempotency-key", "a b");
    bad.expect(StatusCode::BAD_REQUEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_is_for_what_was_asked() {
    let cluster = Cluster::one().await;
    cluster.members[0].enforces.send_replace(false);
    cluster
        .put_policy(0, "?wait=committed", POLICY)
        .expect(StatusCode::OK)
        .await;
    for wait in ["self", "all"] {
        let query = format!("?wait={wait}&timeout=50ms");
        let late = cluster
            .put_policy(0, &query, OTHER_POLICY)
            .expect(StatusCode::ACCEPTED)
            .await;
        let json = late.json();
        assert_eq!(json["pending"][0]["node_id"], "0000000000000001");
        assert_eq!(json["revision"].as_u64().unwrap(), revision(&late));
    }
    cluster.members[0].enforces.send_replace(true);
    cluster
        .put_policy(0, "?wait=all&timeout=60s", POLICY)
        .expect(StatusCode::OK)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_many_chunks() {
    let cluster = Cluster::one().await;
    let groups: Vec<_> = (0..5_000)
        .map(|n: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            serde_json::json!({"id": format!("group-{n}"), "mode": "enforce", "sources": {"ips": [address.to_string()]},
                "rules": [{"id": "r", "action": "allow", "match": {"proto": "tcp", "dst_ports": [443]}}]})
        })
        .collect();
    let document = serde_json::json!({ "source_groups": groups }).to_string();
    assert!(document.len() > 2 * cluster::command::CHUNK_BYTES);
    let put = cluster
        .put_policy(0, "?timeout=60s", &document)
        .expect(StatusCode::OK)
        .await;
    let read = cluster
        .get(0, api::paths::POLICY)
        .expect(StatusCode::OK)
        .await;
    assert_eq!(read.text, put.text);
    assert_eq!(
        read.json()["source_groups"].as_array().unwrap().len(),
        5_000
    );
}

#[test]
fn the_described_schema_is_the_documents() {
    let document = r#"{
        "default_policy": "deny",
        "source_groups": [{
            "id": "g", "priority": 1, "mode": "audit", "default_action": "deny", "on_deny": "reset",
            "sources": {
                "cidrs": ["10.0.0.0/8"], "ips": ["2001:db8::1"],
                "kubernetes": [{"integration": "k", "pod_selector": {"namespace": "n", "match_labels": {"a": "b"}}}]
            },
            "rules": [{
                "id": "r", "priority": 2, "action": "allow", "mode": "enforce", "grant_scope": "client",
                "match": {
                    "dst_cidrs": ["192.0.2.0/24"], "dst_ips": ["198.51.100.1"], "dns_names": ["*.example.com"],
                    "proto": "tcp", "src_ports": ["1024-65535"], "dst_ports": [443, "8000-8100"],
                    "tls": {"mode": "metadata", "sni": ["a.example.com"], "server_dn": "CN=a", "tls13_uninspectable": "allow"}
                }
            }, {
                "id": "i", "action": "deny",
                "match": {"dns_hostname": "a\\.example\\.com", "proto": 58, "icmp_types": [128], "icmp_codes": [0]}
            }]
        }]
    }"#;
    let parsed = ::policy::Document::parse_json(document.as_bytes()).unwrap();
    let canonical: Value = serde_json::from_slice(&parsed.to_json()).unwrap();
    let described: api::document::PolicyConfig = serde_json::from_value(canonical.clone()).unwrap();
    assert_eq!(serde_json::to_value(described).unwrap(), canonical);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_says_who_put_what_and_why() {
    let cluster = Cluster::one().await;
    let empty = cluster.get(0, api::paths::POLICY_REVISIONS);
    assert_eq!(
        empty.expect(StatusCode::OK).await.json()["revisions"],
        serde_json::json!([])
    );
    let first = cluster
        .put_policy(
            0,
            "?wait=committed&message=Open%20the%20mail+hosts,%20gr%C3%BCn",
            POLICY,
        )
        .expect(StatusCode::OK)
        .await;
    let second = cluster.put_policy(0, "?wait=committed", OTHER_POLICY);
    let second = second.expect(StatusCode::OK).await;

    let listed = cluster.get(0, api::paths::POLICY_REVISIONS);
    let listed = listed.expect(StatusCode::OK).await.json();
    let kept = listed["revisions"].as_array().unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0]["revision"], 1);
    assert_eq!(kept[0]["message"], "Open the mail hosts, grün");
    assert_eq!(kept[0]["bytes"], first.text.len());
    assert!(kept[0]["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(kept[0]["author"], kept[1]["author"]);
    assert_ne!(kept[0]["author"], "");
    assert_ne!(kept[0]["hash"], kept[1]["hash"]);
    assert!(kept[1].get("message").is_none());

    let old = cluster.get(0, "/api/v1/policy/revisions/1");
    let old = old.expect(StatusCode::OK).await;
    assert_eq!(old.text, first.text);
    assert_eq!(old.header("etag"), first.header("etag"));
    let new = cluster.get(0, "/api/v1/policy/revisions/2?format=json");
    assert_eq!(new.expect(StatusCode::OK).await.text, second.text);
    let gone = cluster.get(0, "/api/v1/policy/revisions/3");
    gone.expect(StatusCode::NOT_FOUND).await;
    let word = cluster.get(0, "/api/v1/policy/revisions/last");
    word.expect(StatusCode::BAD_REQUEST).await;

    let long = format!("?wait=committed&message={}", "x".repeat(1025));
    for query in [long.as_str(), "?wait=committed&message=two%0Alines"] {
        let refused = cluster.put_policy(0, query, POLICY);
        refused.expect(StatusCode::BAD_REQUEST).await;
    }
}
