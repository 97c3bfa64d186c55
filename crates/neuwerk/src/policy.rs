//! `neuwerk policy`: read and replace the policy.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use api::client::{PutOutcome, PutPolicy};
use api::policy::{Lint, PendingMember, PolicyRevision};
use serde::Serialize;

use crate::args::{Format, PolicyApply, PolicyGet, Target, Wait};
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

/// Exit code of `apply` while members remain that do not enforce the policy yet.
const PENDING: u8 = 3;

/// What `--json` prints of a policy.
#[derive(Serialize)]
struct Applied<'a> {
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<&'a str>,
    pending: &'a [PendingMember],
    lints: &'a [Lint],
}

/// A policy with its tag, as `get --json` prints it.
#[derive(Serialize)]
struct Tagged<'a> {
    revision: Option<u64>,
    etag: Option<&'a str>,
    policy: serde_json::Value,
}

pub(crate) async fn get(get: PolicyGet) -> Result<(), Failure> {
    let format = if get.target.json {
        Format::Json
    } else {
        get.format
    };
    let client = client(&get.target)?;
    let document = match get.revision {
        None => client.policy_get(format.into()).await?,
        Some(revision) => client.policy_revision(revision, format.into()).await?,
    };
    if get.target.json {
        let policy = serde_json::from_slice(&document.body)
            .map_err(|error| Failure::Failed(format!("the node's policy is not JSON: {error}")))?;
        return print::json(&Tagged {
            revision: document.revision,
            etag: document.etag.as_deref(),
            policy,
        });
    }
    let mut text = String::from_utf8_lossy(&document.body).into_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    print::to_stdout(&text)
}

pub(crate) async fn history(target: Target) -> Result<(), Failure> {
    let history = client(&target)?.policy_history().await?;
    if target.json {
        return print::json(&history);
    }
    print::to_stdout(&history_table(&history.revisions))
}

fn history_table(revisions: &[PolicyRevision]) -> String {
    let heading = ["REVISION", "TIME", "WHO", "BYTES", "HASH", "MESSAGE"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for kept in revisions {
        rows.push(vec![
            kept.revision.to_string(),
            kept.time.clone(),
            kept.author.clone(),
            kept.bytes.to_string(),
            kept.hash.chars().take(12).collect(),
            kept.message.clone(),
        ]);
    }
    print::columns(&rows)
}

pub(crate) async fn apply(apply: PolicyApply) -> Result<ExitCode, Failure> {
    let format = apply.format.unwrap_or_else(|| format_of(&apply.file));
    if apply.dry_run {
        let body = read(&apply.file)?.into();
        let outcome = client(&apply.target)?
            .policy_check(body, format.into())
            .await?;
        if apply.target.json {
            print::json(&outcome)?;
        } else {
            for lint in &outcome.lints {
                print::to_stderr(&format!("warning: {}: {}", lint.path, lint.message));
            }
            let change = if outcome.changed {
                "and differs from the policy in force"
            } else {
                "and is the policy in force"
            };
            print::to_stdout(&format!("the policy is valid, {change}\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let put = PutPolicy {
        body: read(&apply.file)?.into(),
        format: format.into(),
        wait: apply.wait.into(),
        timeout: Some(apply.timeout),
        if_match: apply.if_match.clone(),
        idempotency_key: apply.idempotency_key.clone(),
        message: apply.message.clone(),
    };
    let outcome = client(&apply.target)?.policy_put(put).await?;
    let (applied, code) = match &outcome {
        PutOutcome::Enforced { document, lints } => (
            Applied {
                revision: document.revision,
                etag: document.etag.as_deref(),
                pending: &[],
                lints,
            },
            0,
        ),
        PutOutcome::Pending(pending) => {
            let code = if pending.pending.is_empty() {
                0
            } else {
                PENDING
            };
            (
                Applied {
                    revision: Some(pending.revision),
                    etag: None,
                    pending: &pending.pending,
                    lints: &pending.lints,
                },
                code,
            )
        }
    };
    if apply.target.json {
        print::json(&applied)?;
    } else {
        for lint in applied.lints {
            print::to_stderr(&format!("warning: {}: {}", lint.path, lint.message));
        }
        print::to_stdout(&summary(&applied, apply.wait))?;
    }
    Ok(ExitCode::from(code))
}

/// What became of it, for people.
fn summary(applied: &Applied<'_>, wait: Wait) -> String {
    let revision = applied.revision.map_or_else(
        || "the policy".into(),
        |revision| format!("revision {revision}"),
    );
    let tag = applied
        .etag
        .map_or_else(String::new, |etag| format!(" (tag {etag})"));
    if applied.pending.is_empty() {
        let what = match wait {
            Wait::Committed => "is committed",
            Wait::Own => "is enforced by the node asked",
            Wait::All => "is enforced by all members",
        };
        return format!("{revision} {what}{tag}\n");
    }
    let mut text = format!("{revision} is committed; not enforced yet by:\n");
    for member in applied.pending {
        text.push_str(&format!("  {}: {}\n", member.node_id, member.reason));
    }
    text
}

/// YAML is assumed of all that does not call itself JSON: it takes JSON too.
fn format_of(file: &Path) -> Format {
    if file
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
    {
        Format::Json
    } else {
        Format::Yaml
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin()
            .read_to_end(&mut text)
            .map_err(|error| Failure::Failed(format!("standard input: {error}")))?;
        return Ok(text);
    }
    std::fs::read(file).map_err(|error| Failure::file(file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_who_remains() {
        let member = PendingMember {
            node_id: "00000000000000a1".into(),
            reason: "it is unreachable".into(),
        };
        let pending = Applied {
            revision: Some(7),
            etag: None,
            pending: &[member],
            lints: &[],
        };
        assert_eq!(
            summary(&pending, Wait::All),
            "revision 7 is committed; not enforced yet by:\n  00000000000000a1: it is unreachable\n"
        );
        let done = Applied {
            revision: Some(7),
            etag: Some("\"aa-7\""),
            pending: &[],
            lints: &[],
        };
        assert_eq!(
            summary(&done, Wait::Own),
            "revision 7 is enforced by the node asked (tag \"aa-7\")\n"
        );
    }

    #[test]
    fn the_format_follows_the_name() {
        assert_eq!(format_of(Path::new("a.json")), Format::Json);
        assert_eq!(format_of(Path::new("a.yml")), Format::Yaml);
        assert_eq!(format_of(Path::new("-")), Format::Yaml);
    }
}
