//! Every row of the route table with every kind of credential, and what ends a credential.

use cluster::command::{AccountSpec, AccountStatus, Role, TokenSpec};

use super::*;
use crate::http::route::{Access, ROUTES, Row};

/// A path with its parameters filled in.
fn concrete(row: &Row) -> String {
    let id = Uuid::nil().to_string();
    row.path
        .replace("{id}", &id)
        .replace("{token_id}", &id)
        .replace("{node_id}", "00000000000000ff")
        .replace("{kid}", "none")
}

/// What a credential of each kind is answered: let in, or refused with a status.
fn expected(access: Access) -> [Option<StatusCode>; 5] {
    let (unknown, forbidden) = (Some(StatusCode::UNAUTHORIZED), Some(StatusCode::FORBIDDEN));
    match access {
        //                none     garbage  expired  readonly   admin
        Access::Public => [None, None, None, None, None],
        Access::Any => [unknown, unknown, unknown, None, None],
        Access::Admin => [unknown, unknown, unknown, forbidden, None],
        Access::Node => [unknown, unknown, unknown, forbidden, forbidden],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_every_credential() {
    let cluster = Cluster::one().await;
    let credentials = [
        None,
        Some("garbage".to_owned()),
        Some(cluster.token_ending(&["admin"], now_s() - token::SKEW_S - 1)),
        Some(cluster.token(&["readonly"])),
        Some(cluster.token(&["admin"])),
    ];
    for row in ROUTES {
        for (credential, refused) in credentials.iter().zip(expected(row.access)) {
            let mut ask = cluster
                .ask(0, row.method.clone(), &concrete(row))
                .json("{}");
            if let Some(token) = credential {
                ask = ask.token(token);
            }
            let answered = ask.send().await;
            let context = format!("{} {credential:?}: {}", row.name, answered.text);
            match refused {
                Some(status) => assert_eq!(answered.status, status, "{context}"),
                None => {
                    let refusals = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
                    assert!(!refusals.contains(&answered.status), "{context}");
                    assert_ne!(
                        answered.status,
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "{context}"
                    );
                }
            }
        }
        let root = cluster
            .ask(0, row.method.clone(), &concrete(row))
            .json("{}")
            .by_root();
        let answered = root.send().await;
        assert_ne!(answered.status, StatusCode::UNAUTHORIZED, "{}", row.name);
        assert_ne!(answered.status, StatusCode::FORBIDDEN, "{}", row.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_signed_by_another_key_under_our_name_is_refused() {
    let cluster = Cluster::one().await;
    let foreign = token::generate_key("k1".into()).unwrap();
    let state = cluster.node(0).state();
    let ours = token::mint(
        &state,
        &api::auth::MintRequest {
            sub: "x".into(),
            roles: vec!["admin".into()],
            ttl: None,
            kid: None,
        },
        Uuid::new_v4(),
        now_s(),
    );
    let ours = ours.unwrap().token;
    let claims = token::Claims {
        iss: token::ISSUER.into(),
        aud: token::ISSUER.into(),
        sub: "x".into(),
        exp: None,
        iat: now_s(),
        jti: String::new(),
        kid: "k1".into(),
        sa_id: None,
        scope: None,
        roles: vec!["admin".into()],
    };
    let forged = token::sign(&cluster::State::default(), &foreign, &claims).unwrap();
    let whoami = |token: String| {
        cluster
            .ask(0, Method::GET, api::paths::WHOAMI)
            .token(&token)
    };
    whoami(forged).expect(StatusCode::UNAUTHORIZED).await;
    // Our header and claims with another signature, and `alg: none`.
    let (unsigned, _) = ours.rsplit_once('.').unwrap();
    whoami(format!("{unsigned}.{}", "A".repeat(86)))
        .expect(StatusCode::UNAUTHORIZED)
        .await;
    let (_, claims) = unsigned.split_once('.').unwrap();
    whoami(format!("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{claims}."))
        .expect(StatusCode::UNAUTHORIZED)
        .await;
    whoami(ours).expect(StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_key_ends_its_tokens_and_a_new_one_does_not() {
    let cluster = Cluster::one().await;
    let old = cluster.token(&["admin"]);
    let add = Command::AddSigningKey(token::generate_key("k2".into()).unwrap());
    cluster.commit(add).await.accepted().unwrap();
    let new = cluster.token(&["admin"]);
    let whoami = |token: &str| cluster.ask(0, Method::GET, api::paths::WHOAMI).token(token);
    whoami(&old).expect(StatusCode::OK).await;
    let retire = Command::RetireSigningKey { kid: "k1".into() };
    cluster.commit(retire).await.accepted().unwrap();
    whoami(&old).expect(StatusCode::UNAUTHORIZED).await;
    whoami(&new).expect(StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_bounds_its_tokens() {
    let cluster = Cluster::one().await;
    let spec = |role, status| AccountSpec {
        name: "ci".into(),
        description: String::new(),
        role,
        status,
    };
    let created = cluster
        .commit(Command::CreateAccount(spec(
            Role::Admin,
            AccountStatus::Active,
        )))
        .await;
    let Response::Record { id, .. } = created else {
        panic!("{created:?}")
    };
    let path = api::paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", &id.to_string());
    let admin = cluster.token(&["admin"]);
    let made = cluster
        .ask(0, Method::POST, &path)
        .token(&admin)
        .json("{}")
        .expect(StatusCode::CREATED)
        .await;
    let token = made.json()["token"].as_str().unwrap().to_owned();

    let whoami = || {
        cluster
            .ask(0, Method::GET, api::paths::WHOAMI)
            .token(&token)
    };
    assert_eq!(
        whoami().expect(StatusCode::OK).await.json()["roles"][0],
        "admin"
    );
    // Demoting the account demotes its tokens.
    let demote = Command::UpdateAccount {
        id,
        if_match: None,
        spec: spec(Role::Readonly, AccountStatus::Active),
    };
    cluster.commit(demote).await.accepted().unwrap();
    assert_eq!(
        whoami().expect(StatusCode::OK).await.json()["roles"][0],
        "readonly"
    );
    // Revoking one ends that one.
    let other = cluster
        .ask(0, Method::POST, &path)
        .token(&admin)
        .json("{}")
        .expect(StatusCode::CREATED)
        .await;
    let other_id = other.json()["token_meta"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let revoke = cluster
        .ask(0, Method::DELETE, &format!("{path}/{other_id}"))
        .token(&admin);
    revoke.expect(StatusCode::NO_CONTENT).await;
    let other = other.json()["token"].as_str().unwrap().to_owned();
    let revoked = cluster
        .ask(0, Method::GET, api::paths::WHOAMI)
        .token(&other);
    revoked.expect(StatusCode::UNAUTHORIZED).await;
    whoami().expect(StatusCode::OK).await;
    // Disabling the account ends them all.
    cluster
        .commit(Command::DisableAccount { id, if_match: None })
        .await
        .accepted()
        .unwrap();
    whoami().expect(StatusCode::UNAUTHORIZED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_overtake_the_key_that_signed_it() {
    let cluster = Cluster::one().await;
    let key = token::generate_key("k2".into()).unwrap();
    let claims = token::Claims {
        kid: key.kid.clone(),
        ..cluster.claims(&["admin"], now_s() + 3600)
    };
    let token = token::sign(&cluster.node(0).state(), &key, &claims).unwrap();
    let whoami = || {
        let ask = cluster.ask(0, Method::GET, api::paths::WHOAMI);
        ask.token(&token)
    };
    whoami().expect(StatusCode::UNAUTHORIZED).await;
    // Asked first, and waiting by the time the key arrives.
    let add = cluster.commit(Command::AddSigningKey(key));
    let (_, added) = tokio::join!(biased; whoami().expect(StatusCode::OK), add);
    added.accepted().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_unknown_account_is_refused() {
    let cluster = Cluster::one().await;
    let state = cluster.node(0).state();
    let key = &state.active_signing_key().unwrap().key;
    let spec = TokenSpec {
        name: None,
        role: Role::Admin,
        kid: key.kid.clone(),
        ttl_ms: None,
    };
    let claims = token::Claims {
        iss: token::ISSUER.into(),
        aud: token::ISSUER.into(),
        sub: "x".into(),
        exp: None,
        iat: now_s(),
        jti: Uuid::new_v4().to_string(),
        kid: spec.kid,
        sa_id: Some(Uuid::new_v4()),
        scope: None,
        roles: vec!["admin".into()],
    };
    let token = token::sign(&state, key, &claims).unwrap();
    cluster
        .ask(0, Method::GET, api::paths::WHOAMI)
        .token(&token)
        .expect(StatusCode::UNAUTHORIZED)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn login_gives_a_cookie_that_browsers_keep_to_themselves() {
    let cluster = Cluster::one().await;
    let token = cluster.token(&["admin"]);
    let body = serde_json::json!({ "token": format!("Bearer {token}") }).to_string();
    let login = cluster
        .ask(0, Method::POST, api::paths::TOKEN_LOGIN)
        .json(&body);
    let answered = login.expect(StatusCode::OK).await;
    let cookie = answered.header("set-cookie").to_owned();
    for part in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(answered.header("cache-control"), "no-store");
    let pair = cookie.split(';').next().unwrap().to_owned();
    let whoami = cluster
        .ask(0, Method::GET, api::paths::WHOAMI)
        .header("cookie", &pair);
    assert_eq!(whoami.expect(StatusCode::OK).await.json()["sub"], "tester");
    // Another site cannot make the browser change anything.
    let put = || {
        cluster
            .ask(0, Method::PUT, api::paths::POLICY)
            .header("cookie", &pair)
            .json(POLICY)
    };
    put()
        .header("sec-fetch-site", "cross-site")
        .expect(StatusCode::FORBIDDEN)
        .await;
    put()
        .header("sec-fetch-site", "same-origin")
        .expect(StatusCode::OK)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_different_tokens_is_slowed_down() {
    let cluster = Cluster::one().await;
    let login = |token: &str| {
        let body = serde_json::json!({ "token": token }).to_string();
        cluster
            .ask(0, Method::POST, api::paths::TOKEN_LOGIN)
            .json(&body)
    };
    for n in 0..crate::auth::limiter::MAX_FAILURES {
        login(&format!("guess-{n}"))
            .expect(StatusCode::UNAUTHORIZED)
            .await;
    }
    let good = cluster.token(&["admin"]);
    let answered = login(&good).expect(StatusCode::TOO_MANY_REQUESTS).await;
    let seconds: u64 = answered.header("retry-after").parse().unwrap();
    assert!(seconds <= 120, "{seconds}");
    // Another address is not held up.
    let mut elsewhere = login(&good);
    elsewhere.origin = Origin::Network("192.0.2.8:1".parse().unwrap());
    elsewhere.expect(StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_told_apart() {
    let cluster = Cluster::one().await;
    let nothing = cluster
        .get(0, "/api/v1/policies")
        .expect(StatusCode::NOT_FOUND)
        .await;
    assert!(nothing.json()["error"].is_string());
    let answered = cluster.ask(0, Method::POST, api::paths::POLICY);
    let answered = answered.expect(StatusCode::METHOD_NOT_ALLOWED).await;
    assert!(
        answered.header("allow").contains("PUT"),
        "{:?}",
        answered.headers
    );
    assert!(answered.json()["error"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_its_request_id_and_the_security_headers() {
    let cluster = Cluster::one().await;
    for path in ["/health", "/nowhere", api::paths::WHOAMI] {
        let answered = cluster
            .ask(0, Method::GET, path)
            .header("x-request-id", "mine-1")
            .send()
            .await;
        assert_eq!(answered.header("x-request-id"), "mine-1");
        assert_eq!(answered.header("x-content-type-options"), "nosniff");
        assert_eq!(answered.header("x-frame-options"), "DENY");
        assert_eq!(answered.header("referrer-policy"), "no-referrer");
        assert!(
            answered
                .header("strict-transport-security")
                .starts_with("max-age=31536000")
        );
        assert!(
            answered
                .header("content-security-policy")
                .contains("default-src 'self'")
        );
    }
    let unusable = cluster
        .ask(0, Method::GET, "/health")
        .header("x-request-id", "a b")
        .send()
        .await;
    assert!(Uuid::try_parse(unusable.header("x-request-id")).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_is_taken_in_before_it_is_refused() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;

    let cluster = Cluster::one().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let body = |pieces: usize| {
        let taken = Arc::clone(&taken);
        let pieces = futures::stream::iter(0..pieces).map(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 16 * 1024]))
        });
        Body::from_stream(pieces)
    };
    for (pieces, expected) in [(4, 4), (1_000, 17)] {
        let put = cluster.ask(0, Method::PUT, api::paths::POLICY);
        let refused = put.token("garbage").body(body(pieces)).send().await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(taken.swap(0, Ordering::Relaxed), expected);
    }
}
