//! `neuwerk auth`: tokens for the management API, and the keys that sign them.

use std::time::Duration;

use api::auth::{MintRequest, Minted, SigningKeyStatus, SigningKeyView};
use neuwerkd::member::{self, MemberError};
use neuwerkd::member::{HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;

use crate::args::{KeyVerb, Mint, Through};
use crate::connect::control;
use crate::failure::Failure;
use crate::print;

/// How long another member may take to mint, which it does by itself.
const MINT_LIMIT: Duration = Duration::from_secs(10);

/// How long another member may take for what it passes on to the leader.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn mint(mint: Mint) -> Result<(), Failure> {
    let request = MintRequest {
        sub: mint.sub,
        roles: mint.roles,
        ttl: Some(api::duration::format(mint.ttl)),
        kid: mint.kid,
    };
    let through = &mint.through;
    let minted = match &through.cluster_addr {
        Some(address) => {
            match member::mint(&through.cluster_tls_dir, address, &request, MINT_LIMIT).await {
                Err(MemberError::Own(_)) => at_home(through, &request).await?,
                asked => asked.map_err(|error| Failure::Failed(error.to_string()))?,
            }
        }
        None => at_home(through, &request).await?,
    };
    if mint.json {
        return print::json(&minted);
    }
    print::to_stdout(&format!("{}\n", minted.token))
}

/// Asks this node.
async fn at_home(through: &Through, request: &MintRequest) -> Result<Minted, Failure> {
    Ok(control(&through.control_socket)?
        .mint_token(request)
        .await?)
}

pub(crate) async fn key(verb: KeyVerb) -> Result<(), Failure> {
    match verb {
        KeyVerb::List { through, json } => {
            let keys = match remote(&through, "GET", api::paths::KEYS, None).await? {
                Some(answer) => read(&answer)?,
                None => control(&through.control_socket)?.keys().await?,
            };
            if json {
                return print::json(&keys);
            }
            print::to_stdout(&table(&keys))
        }
        KeyVerb::Rotate {
            through,
            idempotency_key,
            json,
        } => {
            let retry = idempotency_key.as_deref();
            let key: SigningKeyView =
                match remote(&through, "POST", api::paths::KEYS, retry).await? {
                    Some(answer) => read(&answer)?,
                    None => control(&through.control_socket)?.key_rotate(retry).await?,
                };
            if json {
                return print::json(&key);
            }
            print::to_stdout(&format!("{} signs from now on\n", key.kid))
        }
        KeyVerb::Retire { kid, through } => {
            let path = api::paths::KEY.replace("{kid}", &kid);
            match remote(&through, "DELETE", &path, None).await? {
                Some(answer) => accepted(&answer)?,
                None => {
                    let client = control(&through.control_socket)?;
                    client.key_retire(&kid, None).await?;
                }
            }
            print::to_stdout(&format!(
                "{kid} is retired: its tokens do not work any more\n"
            ))
        }
    }
}

/// What the member that `through` names answers; none where that is this node, or no member is named.
async fn remote(
    through: &Through,
    method: &str,
    path: &str,
    idempotency_key: Option<&str>,
) -> Result<Option<HttpResponse>, Failure> {
    let Some(address) = &through.cluster_addr else {
        return Ok(None);
    };
    let key = idempotency_key.map(|key| {
        let name = api::headers::IDEMPOTENCY_KEY.to_owned();
        (name, key.as_bytes().to_vec().into())
    });
    let request = HttpRequest {
        method: method.into(),
        path_and_query: path.into(),
        headers: key.into_iter().collect(),
        ..HttpRequest::default()
    };
    match member::ask(&through.cluster_tls_dir, address, &request, LEADER_LIMIT).await {
        Ok(answer) => Ok(Some(answer)),
        Err(MemberError::Own(_)) => Ok(None),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

fn read<T: DeserializeOwned>(answer: &HttpResponse) -> Result<T, Failure> {
    accepted(answer)?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::Failed(format!("the member's answer cannot be read: {error}")))
}

fn accepted(answer: &HttpResponse) -> Result<(), Failure> {
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    let body: api::ErrorBody = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|_| api::ErrorBody::new(format!("status {}", answer.status)));
    let retry = body.idempotency_key.map_or_else(String::new, |key| {
        format!("\n  try again safely with --idempotency-key {key}")
    });
    Err(Failure::Failed(format!("{}{retry}", body.error)))
}

fn table(keys: &[SigningKeyView]) -> String {
    let heading = ["KID", "STATUS", "SIGNS", "CREATED", "RETIRED"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for key in keys {
        rows.push(vec![
            key.kid.clone(),
            match key.status {
                SigningKeyStatus::Active => "active".into(),
                SigningKeyStatus::Retired => "retired".into(),
            },
            if key.signs { "yes" } else { "no" }.into(),
            key.created_at.clone(),
            key.retired_at.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    print::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_listed() {
        let key = SigningKeyView {
            kid: "k1".into(),
            status: SigningKeyStatus::Active,
            signs: true,
            created_at: "2026-01-01T00:00:00Z".into(),
            retired_at: None,
            public_key_sha256: String::new(),
        };
        assert_eq!(
            table(&[key]),
            "KID  STATUS  SIGNS  CREATED               RETIRED\n\
             k1   active  yes    2026-01-01T00:00:00Z  -\n"
        );
    }

    #[test]
    fn a_members_refusal_is_told_with_the_key_to_retry_under() {
        let answer = HttpResponse {
            status: 504,
            headers: Vec::new(),
            body: br#"{"error":"who knows","reason":"fate_unknown","idempotency_key":"k"}"#
                .to_vec()
                .into(),
        };
        let told = accepted(&answer).unwrap_err().to_string();
        assert_eq!(
            told,
            "neuwerk: who knows\n  try again safely with --idempotency-key k"
        );
    }
}
