//! Join tokens, how nodes are let in, and the cluster's CA.

use cluster::join::token::Token;

use super::*;

fn send(cluster: &Cluster, n: usize, method: Method, path: &str, body: &str) -> Ask {
    let ask = cluster.ask(n, method, path);
    ask.token(&cluster.token(&["admin"])).json(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_join_token() {
    let cluster = Cluster::one().await;
    let create = |body: &str| send(&cluster, 0, Method::POST, api::paths::JOIN_TOKENS, body);
    let made = create(r#"{"ttl":"10m","uses":2}"#)
        .expect(StatusCode::CREATED)
        .await;
    assert_eq!(made.header("cache-control"), "no-store");
    let made = made.json();
    let token = Token::parse(made["token"].as_str().unwrap()).unwrap();
    assert_eq!(token.id.to_string(), made["id"].as_str().unwrap());
    let state = cluster.node(0).state();
    assert_eq!(Some(token.cluster_id), state.cluster_id());
    let kept = state.join_token(token.id).unwrap();
    assert_eq!((kept.public, kept.uses_left), (token.public(), 2));
    let ca = &state.cluster_ca().unwrap().certificate_der;
    assert_eq!(cluster::ca::spki_of(ca), Some(token.authority));

    for body in [
        r#"{"ttl":"31d"}"#,
        r#"{"ttl":"soon"}"#,
        r#"{"uses":0}"#,
        r#"{"use":1}"#,
    ] {
        create(body).expect(StatusCode::BAD_REQUEST).await;
    }
    let path = api::paths::JOIN_TOKEN.replace("{id}", &token.id.to_string());
    send(&cluster, 0, Method::DELETE, &path, "")
        .expect(StatusCode::NO_CONTENT)
        .await;
    let listed = cluster.get(0, api::paths::JOIN_TOKENS);
    let listed = listed.expect(StatusCode::OK).await.json();
    assert_eq!(listed[0]["status"], "revoked");
    assert!(!listed.to_string().contains("nwj1"));
    let unknown = api::paths::JOIN_TOKEN.replace("{id}", &Uuid::nil().to_string());
    send(&cluster, 0, Method::DELETE, &unknown, "")
        .expect(StatusCode::NOT_FOUND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_secret_and_approval_are_switched_one_by_one() {
    let cluster = Cluster::one().await;
    let put = |body: &str| send(&cluster, 0, Method::PUT, api::paths::JOIN_SETTINGS, body);
    let settings = put(r#"{"bootstrap":false}"#).expect(StatusCode::OK).await;
    assert_eq!(settings.json()["bootstrap"], false);
    let settings = put(r#"{"approval":"manual"}"#).expect(StatusCode::OK).await;
    let settings = settings.json();
    assert_eq!(
        (&settings["bootstrap"], &settings["approval"]),
        (&false.into(), &"manual".into())
    );

    let rotated = send(
        &cluster,
        0,
        Method::POST,
        api::paths::BOOTSTRAP_ROTATION,
        "{}",
    );
    let rotated = rotated.expect(StatusCode::OK).await;
    assert_eq!(rotated.header("cache-control"), "no-store");
    let rotated = rotated.json();
    assert_eq!(rotated["secret"].as_str().unwrap().len(), 64);
    let settings = cluster.get(0, api::paths::JOIN_SETTINGS);
    let settings = settings.expect(StatusCode::OK).await.json();
    assert_eq!(settings["bootstrap_kid"], rotated["kid"]);
    assert!(
        !settings
            .to_string()
            .contains(rotated["secret"].as_str().unwrap())
    );

    let path = api::paths::MEMBER_APPROVAL.replace("{node_id}", "00000000000000ff");
    send(&cluster, 0, Method::POST, &path, "")
        .expect(StatusCode::NOT_FOUND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_the_ca_is_begun_shown_and_taken_back() {
    let cluster = Cluster::one().await;
    let show = || cluster.get(0, api::paths::CLUSTER_CA);
    let before = show().expect(StatusCode::OK).await.json();
    assert!(before["rotation"].is_null());
    let rotate = |method| send(&cluster, 0, method, api::paths::CA_ROTATION, "{}");
    rotate(Method::DELETE).expect(StatusCode::CONFLICT).await;
    let begun = rotate(Method::POST)
        .expect(StatusCode::ACCEPTED)
        .await
        .json();
    assert_eq!(begun["rotation"]["phase"], "trusting");
    // The only member never says what it trusts in this test, so that the rotation stays where it is.
    assert_eq!(begun["rotation"]["pending"].as_array().unwrap().len(), 1);
    rotate(Method::POST).expect(StatusCode::CONFLICT).await;
    rotate(Method::DELETE).expect(StatusCode::ACCEPTED).await;
    assert_eq!(show().expect(StatusCode::OK).await.json(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn join_settings_are_replaced_only_as_they_were_read() {
    let cluster = Cluster::one().await;
    let path = api::paths::JOIN_SETTINGS;
    let read = cluster.get(0, path).expect(StatusCode::OK).await;
    let tag = read.header("etag").to_owned();
    let put =
        |tag: &str, body: &str| send(&cluster, 0, Method::PUT, path, body).header("if-match", tag);
    let changed = put(&tag, r#"{"approval":"manual"}"#)
        .expect(StatusCode::OK)
        .await;
    let newer = changed.header("etag").to_owned();
    assert_ne!(newer, tag);
    let refused = put(&tag, r#"{"approval":"auto"}"#);
    let refused = refused.expect(StatusCode::PRECONDITION_FAILED).await;
    assert_eq!(refused.header("etag"), newer);
    put("\"0-1\"", "{}")
        .expect(StatusCode::PRECONDITION_FAILED)
        .await;
    put(&newer, r#"{"approval":"auto"}"#)
        .expect(StatusCode::OK)
        .await;
}
