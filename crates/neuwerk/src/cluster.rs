//! `neuwerk cluster`: who the members are, who votes, who takes new flows, and who is to go.

use std::process::ExitCode;
use std::time::Duration;

use api::Client;
use api::changes::ChangeView;
use api::cluster::{
    ClusterMemberView, ClusterMembersResponse, PromoteClusterMemberRequest,
    ReplaceClusterVotersRequest, TransferRequest,
};
use clap::ArgMatches;
use tokio::time::Instant;

use crate::args::{
    Cluster, Confirm, DrainNode, Leave, MemberChange, MembersVerb, Target, Transfer, Undrain,
    VotersVerb, WaitFor,
};
use crate::connect::{block_on, client};
use crate::failure::Failure;
use crate::{backup, joining, preflight, print, recovery, verify};

/// How long a decided change of the membership is waited for.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(crate) fn perform(verb: Cluster, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let done = match verb {
        Cluster::Members { verb, target } => block_on(members(verb, target)),
        Cluster::Voters(VotersVerb::Set {
            ids,
            confirm,
            target,
        }) => block_on(set_voters(&ids, confirm, target)),
        Cluster::Token(verb) => block_on(joining::token(verb)),
        Cluster::Approval(approval) => block_on(joining::approval(approval)),
        Cluster::Ca(verb) => block_on(joining::ca(verb)),
        Cluster::Changes {
            since,
            limit,
            target,
        } => block_on(changes(since, limit, target)),
        Cluster::Recover(recover) => block_on(recovery::recover(recover)),
        Cluster::Rejoin(rejoin) => block_on(recovery::rejoin(rejoin)),
        Cluster::Restore(restore) => block_on(recovery::restore(restore)),
        Cluster::Backup(backup) => block_on(backup::perform(*backup)),
        Cluster::Leave(leave) => block_on(self::leave(leave)),
        Cluster::Transfer(transfer) => block_on(self::transfer(transfer)),
        Cluster::Drain(drain) => block_on(self::drain(drain)),
        Cluster::Undrain(undrain) => block_on(self::undrain(undrain)),
        Cluster::Wait(wait) => block_on(self::wait(wait)),
        Cluster::Verify(target) => return block_on(verify::verify(target)),
        Cluster::Preflight(preflight) => {
            let matches = matches.subcommand_matches("preflight");
            let matches = matches.expect("the verb is preflight");
            return block_on(preflight::preflight(preflight, matches));
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

async fn members(verb: Option<MembersVerb>, target: Target) -> Result<(), Failure> {
    match verb {
        None => list(target).await,
        Some(MembersVerb::List(target)) => list(target).await,
        Some(MembersVerb::Approve(approve)) => joining::approve(approve).await,
        Some(MembersVerb::Promote { auto, change }) => promote(auto, change).await,
        Some(MembersVerb::Demote(change)) => demote(change).await,
        Some(MembersVerb::Remove(change)) => remove(change).await,
    }
}

async fn list(target: Target) -> Result<(), Failure> {
    let answer = client(&target)?.members().await?;
    show(&answer, &target)
}

fn show(answer: &ClusterMembersResponse, target: &Target) -> Result<(), Failure> {
    if target.json {
        return print::json(answer);
    }
    let mut text = table(&answer.members);
    if answer.failure_tolerance == Some(0) && answer.members.len() > 1 {
        text.push_str("WARNING: one more failure stops all changes\n");
    }
    print::to_stdout(&text)
}

async fn promote(auto: bool, change: MemberChange) -> Result<(), Failure> {
    let asked = Asked::new(&change.target).await?;
    let id = asked.find(&change.node)?;
    let force = asked.force(&change.confirm)?;
    let request = PromoteClusterMemberRequest { auto, force };
    asked.client.member_promote(&id, &request).await?;
    let votes = |member: &ClusterMemberView| auto || member.is_voter;
    asked.until(&id, "vote", votes).await?;
    list(change.target).await
}

async fn demote(change: MemberChange) -> Result<(), Failure> {
    let asked = Asked::new(&change.target).await?;
    let id = asked.find(&change.node)?;
    let force = asked.force(&change.confirm)?;
    asked.client.member_demote(&id, force).await?;
    asked
        .until(&id, "stop voting", |member| !member.is_voter)
        .await?;
    list(change.target).await
}

async fn remove(change: MemberChange) -> Result<(), Failure> {
    let asked = Asked::new(&change.target).await?;
    let id = asked.find(&change.node)?;
    let force = asked.force(&change.confirm)?;
    if asked.own().await? == id {
        return leave_as(&asked, &id, force).await;
    }
    asked.client.member_remove(&id, force).await?;
    asked.until(&id, "be gone", |_| false).await?;
    list(change.target).await
}

async fn set_voters(ids: &[String], confirm: Confirm, target: Target) -> Result<(), Failure> {
    let asked = Asked::new(&target).await?;
    let ids = ids
        .iter()
        .map(|node| asked.find(node))
        .collect::<Result<Vec<String>, Failure>>()?;
    let force = asked.force(&confirm)?;
    let request = ReplaceClusterVotersRequest {
        ids: ids.clone(),
        force,
    };
    asked.client.voters_set(&request).await?;
    for id in &ids {
        asked.until(id, "vote", |member| member.is_voter).await?;
    }
    list(target).await
}

async fn leave(leave: Leave) -> Result<(), Failure> {
    let asked = Asked::new(&leave.target).await?;
    let force = asked.force(&leave.confirm)?;
    let own = asked.own().await?;
    leave_as(&asked, &own, force).await
}

/// Takes the node that is asked out: what becomes of it, only it itself can tell in the end.
async fn leave_as(asked: &Asked, own: &str, force: bool) -> Result<(), Failure> {
    // The answer may be cut off by the removal that it tells of: the node knows what became of it.
    let unanswered = match asked.client.member_remove(own, force).await {
        Ok(_) => None,
        Err(error) if error.leaves_open() => Some(error),
        Err(error) => return Err(error.into()),
    };
    let give_up = Instant::now() + CHANGE_LIMIT;
    loop {
        let ready = asked.client.ready().await?;
        let is_removed = |check: &api::health::Check| {
            let detail = check.detail.as_deref().unwrap_or_default();
            check.name == "cluster" && detail.starts_with(api::health::REMOVED)
        };
        if ready.checks.iter().any(is_removed) {
            return print::to_stdout(&format!(
                "{own} has left its cluster, and enforces its policy until it is stopped.\n\
                 To make it a new member: neuwerk cluster rejoin\n"
            ));
        }
        if Instant::now() >= give_up {
            if let Some(error) = unanswered {
                return Err(error.into());
            }
            return Err(Failure::Failed(format!(
                "{own} is on its way out but was not told yet that it is gone; ask another member: neuwerk cluster members"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn transfer(transfer: Transfer) -> Result<(), Failure> {
    let asked = Asked::new(&transfer.target).await?;
    let node_id = match &transfer.node {
        Some(node) => Some(asked.find(node)?),
        None => None,
    };
    let answer = asked.client.transfer(&TransferRequest { node_id }).await?;
    if transfer.target.json {
        return print::json(&answer);
    }
    print::to_stdout(&format!("{} leads\n", answer.leader_id))
}

async fn drain(drain: DrainNode) -> Result<(), Failure> {
    let asked = Asked::new(&drain.target).await?;
    let id = asked.node(drain.node.as_deref()).await?;
    let force = asked.force(&drain.confirm)?;
    let mut answer = asked.client.member_drain(&id, force).await?;
    if let Some(limit) = drain.wait {
        let give_up = Instant::now() + limit;
        let is_drained = |answer: &ClusterMembersResponse| {
            answer.members.iter().any(|member| {
                member.node_id == id && member.drain_state.as_deref() == Some("drained")
            })
        };
        while !is_drained(&answer) {
            if Instant::now() >= give_up {
                return Err(Failure::Failed(format!("{id} still has flows")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
            answer = asked.client.members().await?;
        }
    }
    show(&answer, &drain.target)
}

async fn undrain(undrain: Undrain) -> Result<(), Failure> {
    let asked = Asked::new(&undrain.target).await?;
    let id = asked.node(undrain.node.as_deref()).await?;
    let answer = asked.client.member_undrain(&id).await?;
    show(&answer, &undrain.target)
}

async fn wait(wait: WaitFor) -> Result<(), Failure> {
    let give_up = Instant::now() + wait.timeout;
    loop {
        let reason = match client(&wait.target) {
            Ok(client) => unready(&client, wait.members).await,
            Err(failure) => Some(failure.to_string()),
        };
        let Some(reason) = reason else { return Ok(()) };
        if Instant::now() >= give_up {
            return Err(Failure::Failed(format!("not ready in time: {reason}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why the node is not as it should be.
async fn unready(client: &Client, members: Option<usize>) -> Option<String> {
    match client.ready().await {
        Err(error) => return Some(error.to_string()),
        Ok(ready) => {
            if let Some(check) = ready.failing().next() {
                let detail = check.detail.as_deref().unwrap_or("not ok");
                return Some(format!("{}: {detail}", check.name));
            }
        }
    }
    let wanted = members?;
    match client.stats().await {
        Err(error) => Some(error.to_string()),
        Ok(stats) => {
            let nodes = &stats.cluster.nodes;
            let healthy = nodes.iter().filter(|node| node.healthy).count();
            let voters = nodes.iter().filter(|node| node.voter).count();
            let enough = healthy >= wanted && voters >= wanted.min(3);
            (!enough).then(|| format!("{healthy} healthy members, {voters} voters"))
        }
    }
}

/// A node that is asked, and the members that it knew at first.
struct Asked {
    client: Client,
    members: ClusterMembersResponse,
}

impl Asked {
    async fn new(target: &Target) -> Result<Asked, Failure> {
        let client = client(target)?;
        let members = client.members().await?;
        Ok(Asked { client, members })
    }

    /// The id of the node that is asked.
    async fn own(&self) -> Result<String, Failure> {
        Ok(self.client.stats().await?.cluster.node_id)
    }

    async fn node(&self, node: Option<&str>) -> Result<String, Failure> {
        match node {
            Some(node) => self.find(node),
            None => self.own().await,
        }
    }

    fn find(&self, node: &str) -> Result<String, Failure> {
        find(&self.members.members, node).map_err(Failure::Usage)
    }

    /// Whether to do what endangers the quorum.
    fn force(&self, confirm: &Confirm) -> Result<bool, Failure> {
        let name = &self.members.cluster_name;
        match &confirm.confirm {
            Some(typed) if typed == name => Ok(true),
            Some(typed) => Err(Failure::Usage(format!(
                "--confirm {typed}: that is not the name of this cluster; nothing was done"
            ))),
            None => Ok(confirm.force),
        }
    }

    /// Waits until the member is as wanted, or gone.
    async fn until(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&ClusterMemberView) -> bool,
    ) -> Result<(), Failure> {
        let give_up = Instant::now() + CHANGE_LIMIT;
        loop {
            // While the leader changes there may be no answer for a moment.
            if let Ok(now) = self.client.members().await {
                let member = now.members.iter().find(|member| member.node_id == id);
                if member.is_none_or(&wanted) {
                    return Ok(());
                }
            }
            if Instant::now() >= give_up {
                return Err(Failure::Failed(format!(
                    "it is decided that {id} is to {what}, and it will as soon as it can; see neuwerk cluster members"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The id of the member that an operator means: by id, by name if only one has it, or by an address.
fn find(members: &[ClusterMemberView], node: &str) -> Result<String, String> {
    let is_meant = |member: &&ClusterMemberView| {
        let host = |address: &str| {
            address
                .rsplit_once(':')
                .is_some_and(|(host, _)| host.trim_matches(['[', ']']) == node)
        };
        member.node_id.eq_ignore_ascii_case(node)
            || member.name == node
            || member.addr == node
            || member.http_addr == node
            || host(&member.addr)
    };
    let mut meant = members.iter().filter(is_meant);
    match (meant.next(), meant.next()) {
        (Some(member), None) => Ok(member.node_id.clone()),
        (Some(_), Some(_)) => Err(format!(
            "{node} is the name of several members: give the id"
        )),
        (None, _) => {
            let known: Vec<String> = members
                .iter()
                .map(|member| format!("{} ({})", member.node_id, member.name))
                .collect();
            Err(format!(
                "{node} is no member; there are {}",
                known.join(", ")
            ))
        }
    }
}

async fn changes(since: u64, limit: u16, target: Target) -> Result<(), Failure> {
    let log = client(&target)?.changes(since, limit.into()).await?;
    if target.json {
        return print::json(&log);
    }
    print::to_stdout(&change_table(&log.changes))
}

fn change_table(changes: &[ChangeView]) -> String {
    let heading = ["INDEX", "TIME", "WHO", "AT", "WHAT", "WHICH"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for change in changes {
        let which = match change.detail.as_str() {
            "" => change.subject.clone(),
            detail => format!("{} ({detail})", change.subject),
        };
        rows.push(vec![
            change.index.to_string(),
            change.time.clone(),
            change.actor.clone(),
            change.node_id.clone().unwrap_or_else(|| "-".into()),
            format!("{} {}", change.record, change.action),
            which,
        ]);
    }
    print::columns(&rows)
}

fn table(members: &[ClusterMemberView]) -> String {
    let heading = [
        "NODE", "NAME", "ROLE", "VOTES", "LIVE", "STATE", "ADDRESS", "API", "VERSION",
    ]
    .map(String::from)
    .to_vec();
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let votes = |member: &ClusterMemberView| match &member.pinned {
        Some(_) => format!("{} (pinned)", yes_no(member.is_voter)),
        None => yes_no(member.is_voter),
    };
    let state = |member: &ClusterMemberView| match (&member.drain_state, member.leaving) {
        (_, true) => "leaving".to_owned(),
        (Some(drain), false) => drain.clone(),
        (None, false) => "-".to_owned(),
    };
    let row = |member: &ClusterMemberView| {
        vec![
            member.node_id.clone(),
            or_dash(&member.name),
            member.role.clone(),
            votes(member),
            member.live.map_or_else(|| "-".into(), yes_no),
            state(member),
            member.addr.clone(),
            or_dash(&member.http_addr),
            member.version.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    print::columns(
        &std::iter::once(heading)
            .chain(members.iter().map(row))
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node_id: &str, name: &str, addr: &str) -> ClusterMemberView {
        ClusterMemberView {
            node_id: node_id.into(),
            name: name.into(),
            addr: addr.into(),
            role: "follower".into(),
            is_voter: true,
            ..ClusterMemberView::default()
        }
    }

    #[test]
    fn the_change_log_names_who_and_what() {
        let change = ChangeView {
            index: 7,
            time: "2026-01-01T00:00:00Z".into(),
            actor: "root".into(),
            node_id: None,
            action: "event".into(),
            record: "break_glass".into(),
            subject: "ops".into(),
            detail: "jti j".into(),
        };
        assert_eq!(
            change_table(&[change]).lines().nth(1),
            Some("7      2026-01-01T00:00:00Z  root  -   break_glass event  ops (jti j)")
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let text = table(&[member("00000000000000a1", "", "10.0.0.1:9600")]);
        assert_eq!(
            text.lines().nth(1),
            Some("00000000000000a1  -     follower  yes    -     -      10.0.0.1:9600  -    -")
        );
    }

    #[test]
    fn a_member_is_named_by_id_name_or_address() {
        let members = [
            member("00000000000000a1", "berlin-1", "10.0.0.1:9600"),
            member("00000000000000a2", "twin", "10.0.0.2:9600"),
            member("00000000000000a3", "twin", "[fd00::3]:9600"),
        ];
        let found = |node| find(&members, node).ok();
        for node in [
            "00000000000000a1",
            "00000000000000A1",
            "berlin-1",
            "10.0.0.1",
            "10.0.0.1:9600",
        ] {
            assert_eq!(found(node).as_deref(), Some("00000000000000a1"), "{node}");
        }
        assert_eq!(found("fd00::3").as_deref(), Some("00000000000000a3"));
        assert_eq!(found("twin"), None);
        assert_eq!(found("a1"), None, "half an id may be another's tomorrow");
    }
}
