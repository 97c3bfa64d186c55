//! `neuwerk status`: how a node and its cluster are, on one screen.

use api::health::Ready;
use api::joining::JoinSettings;
use api::stats::{ClusterNodeCatchup, StatsSnapshot};
use serde::Serialize;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

/// What `--json` prints.
#[derive(Serialize)]
struct Status {
    ready: Ready,
    ready_traffic: Ready,
    stats: StatsSnapshot,
    /// How new members are let in; none from a node that does not know.
    join: Option<JoinSettings>,
}

pub(crate) async fn status(target: Target) -> Result<(), Failure> {
    let client = client(&target)?;
    let ready = client.ready().await?;
    let ready_traffic = client.ready_traffic().await?;
    let stats = client.stats().await?;
    // A node whose control plane is down has no say in it, and everything else is worth showing all the same.
    let join = client.join_settings().await.ok();
    let status = Status {
        ready,
        ready_traffic,
        stats,
        join,
    };
    if target.json {
        print::json(&status)
    } else {
        print::to_stdout(&screen(&status))
    }
}

fn screen(status: &Status) -> String {
    let Status {
        ready,
        ready_traffic,
        stats,
        join,
    } = status;
    let cluster = &stats.cluster;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10}  {value}\n"));

    let role = if cluster.is_leader {
        "leader"
    } else {
        "member"
    };
    line("node", format!("{} ({role})", cluster.node_id));
    line(
        "cluster",
        format!("{}, lineage {}", cluster.cluster_id, cluster.lineage),
    );
    line(
        "leader",
        cluster
            .leader_id
            .clone()
            .unwrap_or_else(|| "none is known".into()),
    );
    let failures = match cluster.failure_tolerance {
        None => "not known here".into(),
        Some(0) => "0: one more failure stops changes".into(),
        Some(count) => count.to_string(),
    };
    line(
        "tolerates",
        format!(
            "{failures}{}",
            if cluster.failure_tolerance.is_some() {
                " (members that may fail now)"
            } else {
                ""
            }
        ),
    );
    let (level, supported) = (cluster.feature_level, cluster.feature_level_supported);
    if level < supported {
        let held_back_by = &cluster.feature_level_held_back_by;
        line("features", format!("level {level} of {supported}"));
        if held_back_by.is_empty() {
            line(
                "",
                "every member supports more: the level rises by itself".into(),
            );
        }
        for member in held_back_by {
            line("", format!("held back: {member}"));
        }
    }
    line("policy", format!("revision {}", cluster.policy_revision));
    let yes_no = |ready: &Ready| if ready.ready { "yes" } else { "no" };
    line(
        "ready",
        format!("{} (for traffic: {})", yes_no(ready), yes_no(ready_traffic)),
    );
    for check in ready.failing() {
        line(
            "",
            format!(
                "{}: {}",
                check.name,
                check.detail.as_deref().unwrap_or("not ok")
            ),
        );
    }
    for advice in join.iter().filter_map(|join| join.recommendation.clone()) {
        line("advice", advice);
    }
    for node in join.iter().flat_map(|join| &join.waiting) {
        line(
            "waiting",
            format!("{node} asks to join: neuwerk cluster members approve {node}"),
        );
    }
    let dataplane = &stats.dataplane;
    line(
        "flows",
        format!(
            "{} active, {} translated",
            dataplane.active_flows, dataplane.active_nat_entries
        ),
    );
    line(
        "packets",
        format!(
            "{} allowed, {} denied",
            dataplane.packets.allow, dataplane.packets.deny
        ),
    );
    if !cluster.nodes.is_empty() {
        text.push('\n');
        text.push_str(&members(&cluster.nodes));
    }
    text
}

fn members(nodes: &[ClusterNodeCatchup]) -> String {
    let heading = [
        "NODE", "ROLE", "VOTES", "HEALTHY", "LAG", "ENFORCES", "CONTACT", "ADDRESS",
    ];
    let known = |value: Option<u64>, unit: &str| {
        value.map_or_else(|| "-".into(), |value| format!("{value}{unit}"))
    };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut rows = vec![heading.map(String::from).to_vec()];
    for node in nodes {
        rows.push(vec![
            node.node_id.clone(),
            node.role.clone(),
            yes_no(node.voter),
            yes_no(node.healthy),
            known(node.lag_entries, ""),
            known(node.enforced_revision, ""),
            known(node.last_contact_ms, " ms"),
            node.addr.clone(),
        ]);
    }
    let mut text = print::columns(&rows);
    for node in nodes {
        for reason in [&node.quarantine_reason, &node.replay_failure]
            .into_iter()
            .flatten()
        {
            text.push_str(&format!("{}: {reason}\n", node.node_id));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::health::Check;
    use api::joining::JoinApprovalMode;

    fn status(tolerance: Option<u64>) -> Status {
        let mut stats = StatsSnapshot::default();
        stats.cluster.node_id = "00000000000000a1".into();
        stats.cluster.failure_tolerance = tolerance;
        stats.cluster.nodes = vec![ClusterNodeCatchup {
            node_id: "00000000000000a1".into(),
            addr: "10.0.0.1:9600".into(),
            role: "follower".into(),
            replay_failure: Some("a source group is too large".into()),
            ..ClusterNodeCatchup::default()
        }];
        let failing = Check {
            name: "cluster".into(),
            ok: false,
            detail: Some("no leader for 3 s".into()),
        };
        Status {
            ready: Ready::of(vec![failing]),
            ready_traffic: Ready::of(vec![]),
            stats,
            join: Some(JoinSettings {
                bootstrap: true,
                bootstrap_kid: None,
                bootstrap_rotated_at: None,
                approval: JoinApprovalMode::Manual,
                waiting: vec!["00000000000000b2".into()],
                recommendation: Some("switch it off".into()),
            }),
        }
    }

    #[track_caller]
    fn shows(status: &Status, line: &str) {
        let screen = screen(status);
        assert!(
            screen.lines().any(|shown| shown == line),
            "no {line:?} in\n{screen}"
        );
    }

    #[test]
    fn what_is_wrong_is_on_the_screen() {
        let status = status(Some(0));
        shows(&status, "leader      none is known");
        shows(
            &status,
            "tolerates   0: one more failure stops changes (members that may fail now)",
        );
        shows(&status, "ready       no (for traffic: yes)");
        shows(&status, "            cluster: no leader for 3 s");
        shows(&status, "advice      switch it off");
        shows(
            &status,
            "waiting     00000000000000b2 asks to join: neuwerk cluster members approve 00000000000000b2",
        );
        shows(&status, "00000000000000a1: a source group is too large");
        shows(
            &status,
            "00000000000000a1  follower  no     no       -    -         -        10.0.0.1:9600",
        );
    }

    #[test]
    fn a_node_that_does_not_know_says_so() {
        shows(&status(None), "tolerates   not known here");
    }
}
