//! `neuwerk cluster token|approval|ca` and `members approve`: letting nodes in, and the CA that members are recognised by.

use std::time::Duration;

use api::joining::{
    ClusterCaView, JoinApprovalMode, JoinSettings, JoinSettingsRequest, JoinTokenCreateRequest,
    JoinTokenMeta,
};
use clap::{Args, Subcommand, ValueEnum};

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a join token and print it: place it as the new node's bootstrap-token file.
    Create(Create),
    /// List the join tokens.
    List(Target),
    /// End a join token.
    Revoke(Revoke),
    /// Switch the bootstrap secret off or on, or replace it.
    Bootstrap(Bootstrap),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// How long it admits members, as 30m or 1h; at most 30d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = api::duration::parse)]
    ttl: Duration,
    /// How many members it admits.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    uses: u32,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its id, as listed.
    id: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Bootstrap {
    /// What to do with it.
    what: BootstrapVerb,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BootstrapVerb {
    /// It admits no new members.
    Off,
    /// It admits new members.
    On,
    /// Replace it for the whole cluster and print the new one; the old one admits nobody any more.
    Rotate,
}

#[derive(Debug, Args)]
pub(crate) struct Approval {
    /// Whether a node with a valid credential is let in at once.
    mode: Mode,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// At once.
    Auto,
    /// After `neuwerk cluster members approve`.
    Manual,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// Id of the node that waits.
    node: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Show which CA issues, and how far a rotation is.
    Status(Target),
    /// Replace the CA step by step: trust both, issue from the new one, drop the old one.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Go back to the CA that the rotation began with.
    #[arg(long)]
    abort: bool,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn token(verb: TokenVerb) -> Result<(), Failure> {
    match verb {
        TokenVerb::Create(create) => {
            let request = JoinTokenCreateRequest {
                ttl: Some(api::duration::format(create.ttl)),
                uses: Some(create.uses),
            };
            let token = client(&create.target)?.join_token_create(&request).await?;
            if create.target.json {
                return print::json(&token);
            }
            print::to_stdout(&format!("{}\n", token.token))
        }
        TokenVerb::List(target) => {
            let tokens = client(&target)?.join_tokens().await?;
            if target.json {
                return print::json(&tokens);
            }
            print::to_stdout(&table(&tokens))
        }
        TokenVerb::Revoke(revoke) => Ok(client(&revoke.target)?
            .join_token_revoke(&revoke.id)
            .await?),
        TokenVerb::Bootstrap(bootstrap) => switch_bootstrap(bootstrap).await,
    }
}

async fn switch_bootstrap(bootstrap: Bootstrap) -> Result<(), Failure> {
    let client = client(&bootstrap.target)?;
    let json = bootstrap.target.json;
    if bootstrap.what == BootstrapVerb::Rotate {
        let secret = client.bootstrap_rotate().await?;
        return match json {
            true => print::json(&secret),
            false => print::to_stdout(&format!("{}\n", secret.secret)),
        };
    }
    let request = JoinSettingsRequest {
        bootstrap: Some(bootstrap.what == BootstrapVerb::On),
        approval: None,
    };
    show(&client.join_settings_put(&request).await?, json)
}

pub(crate) async fn approval(approval: Approval) -> Result<(), Failure> {
    let request = JoinSettingsRequest {
        bootstrap: None,
        approval: Some(match approval.mode {
            Mode::Auto => JoinApprovalMode::Auto,
            Mode::Manual => JoinApprovalMode::Manual,
        }),
    };
    let settings = client(&approval.target)?
        .join_settings_put(&request)
        .await?;
    show(&settings, approval.target.json)
}

pub(crate) async fn approve(approve: Approve) -> Result<(), Failure> {
    Ok(client(&approve.target)?
        .member_approve(&approve.node)
        .await?)
}

pub(crate) async fn ca(verb: CaVerb) -> Result<(), Failure> {
    let (view, json) = match verb {
        CaVerb::Status(target) => (client(&target)?.cluster_ca().await?, target.json),
        CaVerb::Rotate(Rotate { abort, target }) => {
            let client = client(&target)?;
            let view = match abort {
                true => client.ca_rotation_abort().await?,
                false => client.ca_rotate().await?,
            };
            (view, target.json)
        }
    };
    match json {
        true => print::json(&view),
        false => print::to_stdout(&ca_screen(&view)),
    }
}

fn show(settings: &JoinSettings, json: bool) -> Result<(), Failure> {
    if json {
        return print::json(settings);
    }
    let bootstrap = if settings.bootstrap { "on" } else { "off" };
    print::to_stdout(&format!(
        "bootstrap secret  {bootstrap}\napproval          {}\n",
        settings.approval.as_str()
    ))
}

fn table(tokens: &[JoinTokenMeta]) -> String {
    let heading = ["TOKEN", "STATUS", "USES LEFT", "EXPIRES", "CREATED BY"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for token in tokens {
        rows.push(vec![
            token.id.clone(),
            token.status.as_str().to_owned(),
            token.uses_left.to_string(),
            token.expires_at.clone(),
            token.created_by.clone(),
        ]);
    }
    print::columns(&rows)
}

fn ca_screen(view: &ClusterCaView) -> String {
    use api::joining::CaRotationPhase::{Issuing, Trusting};
    let mut text = format!("issuing CA  {}\n", view.sha256);
    let Some(rotation) = &view.rotation else {
        text.push_str("rotation    none\n");
        return text;
    };
    let (step, other) = match (rotation.phase, rotation.aborting) {
        (Trusting, _) => ("1 of 2: every member is to trust the new CA", "new CA"),
        (Issuing, false) => (
            "2 of 2: every member is to show a certificate of the new CA",
            "old CA",
        ),
        (Issuing, true) => (
            "aborting: every member is to show a certificate of the old CA again",
            "given up CA",
        ),
    };
    text.push_str(&format!("{other:<10}  {}\n", rotation.other_sha256));
    text.push_str(&format!("rotation    {step}, since {}\n", rotation.since));
    if !rotation.pending.is_empty() {
        text.push_str(&format!("waits for   {}\n", rotation.pending.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::joining::{CaRotationPhase, CaRotationView, JoinTokenStatus};

    #[test]
    fn tokens_are_listed_with_what_is_left_of_them() {
        let token = JoinTokenMeta {
            id: "a-b".into(),
            status: JoinTokenStatus::UsedUp,
            uses_left: 0,
            expires_at: "2030-01-31T12:00:00Z".into(),
            created_by: "root".into(),
            revoked_at: None,
        };
        assert_eq!(
            table(&[token]).lines().nth(1),
            Some("a-b    used up  0          2030-01-31T12:00:00Z  root")
        );
    }

    #[test]
    fn a_rotation_tells_its_step_and_whom_it_waits_for() {
        let mut view = ClusterCaView {
            sha256: "aa".into(),
            key_sha256: "bb".into(),
            rotation: None,
        };
        assert!(ca_screen(&view).contains("rotation    none"));
        view.rotation = Some(CaRotationView {
            phase: CaRotationPhase::Trusting,
            aborting: false,
            since: "2030-01-31T12:00:00Z".into(),
            other_sha256: "cc".into(),
            pending: vec!["00000000000000a1".into()],
        });
        let screen = ca_screen(&view);
        assert!(
            screen.contains("1 of 2") && screen.contains("waits for   00000000000000a1"),
            "{screen}"
        );
    }
}
