//! `neuwerk status`: how a node and its cluster are, on one screen.

use std::collections::BTreeSet;

use api::health::Ready;
use api::joining::JoinSettings;
use api::stats::{ClusterNodeCatchup, ClusterStats, PortAddresses, StatsSnapshot};
use serde::Serialize;

use crate::args::Target;
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

/// A clock that differs by more is worth a warning: tokens and certificates are compared with it.
const CLOCK_WARNING_MS: u64 = 1_000;

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
    line("tolerates", tolerance(cluster));
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
    for port in &stats.dhcp.ports {
        line("address", address(port));
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

/// What a port that gets its addresses by itself has.
fn address(port: &PortAddresses) -> String {
    if let Some(problem) = &port.problem {
        return problem.clone();
    }
    let mut text = format!("{}: {}", port.port, port.addresses.join(", "));
    if !port.gateways.is_empty() {
        text.push_str(&format!(" via {}", port.gateways.join(", ")));
    }
    if let Some(server) = &port.server {
        text.push_str(&format!(", leased by {server}"));
    }
    text
}

/// How many members may fail, and what that means where it is none.
fn tolerance(cluster: &ClusterStats) -> String {
    match (cluster.failure_tolerance, cluster.node_count) {
        (None, _) => "not known here: this node hears from no leader".into(),
        (Some(0), 1) => {
            "0 (warning: a cluster of one is not highly available; join two more nodes)".into()
        }
        (Some(0), _) => "0 (warning: one more failure stops changes; traffic goes on)".into(),
        (Some(count), _) => format!("{count} (members that may fail now)"),
    }
}

fn members(nodes: &[ClusterNodeCatchup]) -> String {
    let heading = [
        "NODE",
        "NAME",
        "ROLE",
        "VOTES",
        "HEALTHY",
        "LAG",
        "ENFORCES",
        "CONTACT",
        "CLOCK",
        "CERTIFICATE",
        "VERSION",
        "MODE",
        "ADDRESS",
    ];
    let known = |value: Option<u64>, unit: &str| {
        value.map_or_else(|| "-".into(), |value| format!("{value}{unit}"))
    };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let or_dash = |text: Option<&str>| match text {
        None | Some("") => "-".to_owned(),
        Some(text) => text.to_owned(),
    };
    let mut rows = vec![heading.map(String::from).to_vec()];
    for node in nodes {
        let clock = node.clock_offset_ms.map(|offset| format!("{offset:+} ms"));
        let day = |time: &String| time.split('T').next().unwrap_or_default().to_owned();
        let certificate = node.certificate_expires_at.as_ref().map(day);
        rows.push(vec![
            node.node_id.clone(),
            or_dash(Some(&node.name)),
            node.role.clone(),
            yes_no(node.voter),
            yes_no(node.healthy),
            known(node.lag_entries, ""),
            known(node.enforced_revision, ""),
            known(node.last_contact_ms, " ms"),
            or_dash(clock.as_deref()),
            or_dash(certificate.as_deref()),
            or_dash(node.version.as_deref()),
            or_dash(node.mode.as_deref()),
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
        if let Some(offset) = node.clock_offset_ms
            && offset.unsigned_abs() > CLOCK_WARNING_MS
        {
            text.push_str(&format!(
                "{}: warning: its clock differs from the leader's by {offset:+} ms\n",
                node.node_id
            ));
        }
    }
    let hashes: BTreeSet<_> = nodes
        .iter()
        .filter_map(|node| node.configuration_hash.as_deref())
        .collect();
    if hashes.len() > 1 {
        text.push_str("the members' configurations differ (expected where addresses do):\n");
        for node in nodes {
            let hash = node.configuration_hash.as_deref();
            text.push_str(&format!("  {}: {}\n", node.node_id, or_dash(hash)));
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
            "tolerates   0 (warning: one more failure stops changes; traffic goes on)",
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
            "00000000000000a1  -     follower  no     no       -    -         -        -      -            -        \
             -     10.0.0.1:9600",
        );
    }

    #[test]
    fn what_is_known_of_a_member_is_on_the_screen() {
        let mut status = status(Some(1));
        let member = &mut status.stats.cluster.nodes[0];
        member.name = "berlin-1".into();
        (member.voter, member.healthy) = (true, true);
        (member.lag_entries, member.enforced_revision) = (Some(0), Some(7));
        member.last_contact_ms = Some(12);
        member.clock_offset_ms = Some(-1_500);
        member.certificate_expires_at = Some("2027-01-02T03:04:05Z".into());
        member.version = Some("0.1.0".into());
        member.mode = Some("packet".into());
        member.configuration_hash = Some("aa".into());
        let mut other = member.clone();
        other.configuration_hash = Some("bb".into());
        status.stats.cluster.nodes.push(other);
        let screen = screen(&status);
        for part in [
            "berlin-1",
            "12 ms",
            "-1500 ms",
            "2027-01-02",
            "0.1.0",
            "packet",
        ] {
            assert!(screen.contains(part), "no {part:?} in\n{screen}");
        }
        shows(
            &status,
            "00000000000000a1: warning: its clock differs from the leader's by -1500 ms",
        );
        shows(&status, "  00000000000000a1: bb");
        shows(&status, "tolerates   1 (members that may fail now)");
    }

    #[test]
    fn a_cluster_of_one_is_told_that_it_is_not_highly_available() {
        let mut status = status(Some(0));
        status.stats.cluster.node_count = 1;
        assert!(screen(&status).contains("not highly available"));
    }

    #[test]
    fn a_node_that_does_not_know_says_so() {
        shows(
            &status(None),
            "tolerates   not known here: this node hears from no leader",
        );
    }
}
