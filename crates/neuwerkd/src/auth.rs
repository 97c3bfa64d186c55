//! Who may do what: tokens, roles, and the brake on guessing.
//!
//! Everything here is a function of the replicated state, the bytes presented and the time, which
//! is an argument. Sockets and clocks are the caller's.

pub mod limiter;
pub mod minted;
pub mod signatures;
pub mod token;

pub use cluster::command::Role;

use std::sync::Arc;

use bytes::Bytes;
use cluster::Node;
use cluster::transport::{Kind, ServiceError};
use uuid::Uuid;

use minted::{Mint, Minted};

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A token in the `Authorization` header.
    Bearer,
    /// A token in the cookie, which browsers send by themselves.
    Cookie,
    /// The node's own control socket, which only root can open.
    ControlSocket,
    /// The certificate of another member, whose key only its root can read.
    MemberCertificate,
}

/// A caller whose credential was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Subject of the credential.
    pub subject: String,
    /// What it may do.
    pub role: Role,
    /// When the credential ends, seconds since 1970; none: never.
    pub expires_s: Option<u64>,
    /// Service account that it belongs to.
    pub account: Option<Uuid>,
    /// How it was proved.
    pub proof: Proof,
}

impl Identity {
    /// Root on this node.
    pub fn control_socket() -> Self {
        Self {
            subject: "root".into(),
            role: Role::Admin,
            expires_s: None,
            account: None,
            proof: Proof::ControlSocket,
        }
    }

    /// Root on another member.
    pub fn member_root() -> Self {
        Self {
            proof: Proof::MemberCertificate,
            ..Self::control_socket()
        }
    }
}

/// The name of a role in tokens and answers.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Readonly => "readonly",
    }
}

/// The role of this name.
pub fn role_of_name(name: &str) -> Option<Role> {
    match name {
        "admin" => Some(Role::Admin),
        "readonly" => Some(Role::Readonly),
        _ => None,
    }
}

/// Lets other members' root mint tokens here, under their member's certificate. Bodies are JSON:
/// [`api::auth::MintRequest`], answered with [`api::auth::Minted`].
pub fn answer_mint(node: &Node, noted: Arc<Minted>) {
    // Not the node itself, which would then hold itself.
    let states = node.watch();
    let answer = move |from: cluster::NodeId, body: Bytes| -> Result<Bytes, ServiceError> {
        let refused = |error: &dyn std::fmt::Display| ServiceError(error.to_string());
        let request: api::auth::MintRequest =
            serde_json::from_slice(&body).map_err(|error| refused(&error))?;
        let state = states.borrow().clone();
        let now_s = crate::http::now_s();
        let minted = token::mint(&state, &request, Uuid::new_v4(), now_s)
            .map_err(|error| refused(&error))?;
        noted.note(Mint {
            jti: minted.jti.clone(),
            subject: request.sub.trim().to_owned(),
            roles: request.roles,
            kid: minted.kid.clone(),
            at_s: now_s,
            asked_by: Some(from),
        });
        Ok(serde_json::to_vec(&minted)
            .expect("strings and numbers")
            .into())
    };
    node.set_handler(
        Kind::Mint,
        Arc::new(move |from, body| {
            let answered = answer(from, body);
            Box::pin(async move { answered })
        }),
    );
}
