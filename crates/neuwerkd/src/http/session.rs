//! Who the caller is: whoami, login by token, logout, and minting on this node.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use api::auth::{AuthUser, MintRequest, Minted, TokenLoginRequest};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{HeaderValue, StatusCode};

use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::{App, Origin, gate, now_s};
use crate::auth::minted::Mint;
use crate::auth::token::{self, MintError};
use crate::auth::{Identity, Proof, role_name};
use api::error::Reason;

/// The cookie that holds a token.
pub const COOKIE_NAME: &str = "neuwerk_auth";

pub(super) static WHOAMI: Doc = Doc::new("Tell who the caller is").answers(&[(
    200,
    "The caller",
    Some(openapi::json("AuthUser")),
)]);

pub(super) async fn whoami(Extension(identity): Extension<Identity>) -> Json<AuthUser> {
    Json(user(&identity))
}

pub(super) static LOGIN: Doc = Doc::new("Exchange a token for a cookie")
    .takes(openapi::json("TokenLoginRequest"))
    .answers(&[
        (200, "The cookie is set", Some(openapi::json("AuthUser"))),
        (400, "Not a login request", Some(openapi::ERROR)),
        (
            429,
            "Too many failures from this address",
            Some(openapi::ERROR),
        ),
    ]);

pub(super) async fn login(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    body: Bytes,
) -> Answer {
    let source = source_of(&origin);
    let now = Instant::now();
    let paused = {
        let logins = app.logins.lock().unwrap_or_else(PoisonError::into_inner);
        source.and_then(|source| logins.pause(source, now))
    };
    if let Some(pause) = paused {
        app.metrics.auth(false, "rate_limited");
        return Err(Refused::rate_limited(pause));
    }
    let request: TokenLoginRequest = super::openapi::parse(&body)?;
    let presented = request.token.trim();
    let presented = token::strip_scheme(presented).unwrap_or(presented);
    if presented.is_empty() || presented.len() > token::MAX_TOKEN_BYTES {
        return Err(Refused::bad_request(format!(
            "token must have 1 to {} characters",
            token::MAX_TOKEN_BYTES
        )));
    }
    let node = app.node()?;
    match gate::verify(&app, &node, presented, Proof::Bearer).await {
        Ok(identity) => {
            app.metrics.auth(true, "login");
            let cookie =
                format!("{COOKIE_NAME}={presented}; HttpOnly; Secure; SameSite=Strict; Path=/");
            let cookie = HeaderValue::try_from(cookie)
                .map_err(|_| Refused::bad_request("the token is malformed"))?;
            Ok(([(SET_COOKIE, cookie)], Json(user(&identity))).into_response())
        }
        Err(invalid) => {
            app.metrics.auth(false, invalid.as_str());
            if let Some(source) = source {
                let mut logins = app.logins.lock().unwrap_or_else(PoisonError::into_inner);
                logins.failed(source, now);
            }
            Err(Refused::unauthorized(invalid.to_string()))
        }
    }
}

pub(super) static LOGOUT: Doc =
    Doc::new("Clear the cookie").answers(&[(204, "The cookie is cleared", None)]);

pub(super) async fn logout() -> Response {
    let cookie = format!("{COOKIE_NAME}=; HttpOnly; Secure; SameSite=Strict; Path=/; Max-Age=0");
    let cookie = HeaderValue::try_from(cookie).expect("a constant of ASCII");
    (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]).into_response()
}

pub(super) static MINT: Doc =
    Doc::new("Mint a token outside the service accounts; over the node's control socket only")
        .takes(openapi::json("MintRequest"))
        .answers(&[
            (
                200,
                "The token, which is not kept",
                Some(openapi::json("Minted")),
            ),
            (400, "Not a mint request", Some(openapi::ERROR)),
        ]);

pub(super) async fn mint(State(app): State<Arc<App>>, body: Bytes) -> Answer<Json<Minted>> {
    let request: MintRequest = super::openapi::parse(&body)?;
    mint_for(&app, &request).map(Json)
}

fn mint_for(app: &App, request: &MintRequest) -> Answer<Minted> {
    let node = app.node()?;
    let minted = token::mint(&node.state(), request, uuid::Uuid::new_v4(), now_s());
    let minted = minted.map_err(|error| match error {
        MintError::NoKey | MintError::Sealed(_) => {
            Refused::unavailable(Reason::NotReady, error.to_string())
        }
        _ => Refused::bad_request(error.to_string()),
    })?;
    app.minted().note(Mint {
        jti: minted.jti.clone(),
        subject: request.sub.trim().to_owned(),
        roles: request.roles.clone(),
        kid: minted.kid.clone(),
        at_s: now_s(),
        asked_by: None,
    });
    Ok(minted)
}

fn user(identity: &Identity) -> AuthUser {
    AuthUser {
        sub: identity.subject.clone(),
        roles: vec![role_name(identity.role).into()],
        exp: identity
            .expires_s
            .map(|s| i64::try_from(s).unwrap_or(i64::MAX)),
        sa_id: identity.account.map(|id| id.to_string()),
    }
}

/// Whose failures count together; none over the control socket, where nothing is guessed.
fn source_of(origin: &Origin) -> Option<IpAddr> {
    match origin {
        Origin::Network(address) => Some(address.ip()),
        Origin::ControlSocket | Origin::MemberRoot(_) | Origin::Member { .. } => None,
    }
}
