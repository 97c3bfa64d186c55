//! `neuwerk cluster`: who the members are.

use api::changes::ChangeView;
use api::cluster::ClusterMemberView;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

pub(crate) async fn members(target: Target) -> Result<(), Failure> {
    let answer = client(&target)?.members().await?;
    if target.json {
        return print::json(&answer);
    }
    print::to_stdout(&table(&answer.members))
}

pub(crate) async fn changes(since: u64, limit: u16, target: Target) -> Result<(), Failure> {
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
        "NODE", "NAME", "ROLE", "VOTES", "LIVE", "ADDRESS", "API", "VERSION",
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
    let row = |member: &ClusterMemberView| {
        vec![
            member.node_id.clone(),
            or_dash(&member.name),
            member.role.clone(),
            yes_no(member.is_voter),
            member.live.map_or_else(|| "-".into(), yes_no),
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
        let member = ClusterMemberView {
            node_id: "00000000000000a1".into(),
            addr: "10.0.0.1:9600".into(),
            role: "follower".into(),
            is_voter: true,
            ..ClusterMemberView::default()
        };
        let text = table(&[member]);
        assert_eq!(
            text.lines().nth(1),
            Some("00000000000000a1  -     follower  yes    -     10.0.0.1:9600  -    -")
        );
    }
}
