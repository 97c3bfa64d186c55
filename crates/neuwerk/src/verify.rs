//! `neuwerk cluster verify`: is the cluster as one would want it after a deployment or a change?

use std::collections::BTreeSet;
use std::process::ExitCode;

use api::health::Ready;
use api::stats::{ClusterNodeCatchup, ClusterStats};

use crate::args::Target;
use crate::check::{self, Finding, Verdict};
use crate::connect::client;
use crate::failure::Failure;

/// Clocks that are further apart make certificates, tokens and logs hard to trust.
const MAX_CLOCK_OFFSET_MS: u64 = 1_000;

pub(crate) async fn verify(target: Target) -> Result<ExitCode, Failure> {
    let client = client(&target)?;
    let ready = client.ready().await?;
    let stats = client.stats().await?.cluster;
    let mut findings = judge(&ready, &stats);
    findings.push(match client.accounts().await {
        Ok(_) => Finding::new("quorum", Verdict::Ok, "a quorum has confirmed a read"),
        Err(error) => Finding::new(
            "quorum",
            Verdict::Failed,
            format!("no quorum confirms a read: {error}"),
        ),
    });
    check::report(&findings, target.json)
}

/// What can be said from the node's own word and from what it knows of the others.
fn judge(ready: &Ready, cluster: &ClusterStats) -> Vec<Finding> {
    vec![
        readiness(ready),
        leader(cluster),
        members(cluster),
        tolerance(cluster),
        same(cluster, "versions", |node| node.version.as_ref()),
        policy(cluster),
        clocks(cluster),
    ]
}

fn readiness(ready: &Ready) -> Finding {
    let failing: Vec<String> = ready
        .failing()
        .map(|check| {
            format!(
                "{}: {}",
                check.name,
                check.detail.as_deref().unwrap_or("not ok")
            )
        })
        .collect();
    if failing.is_empty() {
        Finding::new("ready", Verdict::Ok, "the node asked is ready")
    } else {
        Finding::new("ready", Verdict::Failed, failing.join("; "))
    }
}

fn leader(cluster: &ClusterStats) -> Finding {
    match &cluster.leader_id {
        Some(id) => Finding::new("leader", Verdict::Ok, format!("{id} leads")),
        None => Finding::new("leader", Verdict::Failed, "the node asked knows no leader"),
    }
}

fn members(cluster: &ClusterStats) -> Finding {
    let ill: Vec<String> = cluster
        .nodes
        .iter()
        .filter(|node| !node.healthy)
        .map(
            |node| match (&node.quarantine_reason, &node.replay_failure) {
                (Some(reason), _) | (None, Some(reason)) => format!("{}: {reason}", node.node_id),
                (None, None) => format!("{} is not healthy", node.node_id),
            },
        )
        .collect();
    if ill.is_empty() {
        let detail = format!("all {} are healthy", cluster.nodes.len());
        Finding::new("members", Verdict::Ok, detail)
    } else {
        Finding::new("members", Verdict::Failed, ill.join("; "))
    }
}

fn tolerance(cluster: &ClusterStats) -> Finding {
    let name = "failure tolerance";
    let voters = cluster.nodes.iter().filter(|node| node.voter).count();
    match cluster.failure_tolerance {
        None => Finding::new(name, Verdict::Failed, "the node asked does not know it"),
        Some(0) if voters >= 3 => Finding::new(
            name,
            Verdict::Failed,
            "one more failure stops all changes: bring back the members that are down, or replace them",
        ),
        Some(0) => Finding::new(
            name,
            Verdict::Warning,
            format!("{voters} voters survive no failure: three would survive one"),
        ),
        Some(count) => Finding::new(
            name,
            Verdict::Ok,
            format!("{count} of {voters} voters may fail"),
        ),
    }
}

/// What should be the same everywhere.
fn same(
    cluster: &ClusterStats,
    name: &'static str,
    part: impl Fn(&ClusterNodeCatchup) -> Option<&String>,
) -> Finding {
    let values: BTreeSet<&String> = cluster.nodes.iter().filter_map(part).collect();
    let list: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
    match list.as_slice() {
        [] => Finding::new(name, Verdict::Skipped, "not known here"),
        [one] => Finding::new(name, Verdict::Ok, format!("{one} everywhere")),
        several => Finding::new(
            name,
            Verdict::Warning,
            format!("{}: finish the upgrade", several.join(" and ")),
        ),
    }
}

fn policy(cluster: &ClusterStats) -> Finding {
    let behind: Vec<&str> = cluster
        .nodes
        .iter()
        .filter(|node| node.enforced_hash != node.desired_hash && node.desired_hash.is_some())
        .map(|node| node.node_id.as_str())
        .collect();
    let revision = cluster.policy_revision;
    if behind.is_empty() {
        let detail = format!("every member enforces revision {revision}");
        Finding::new("policy", Verdict::Ok, detail)
    } else {
        let detail = format!("{} not yet at revision {revision}", behind.join(" and "));
        Finding::new("policy", Verdict::Failed, detail)
    }
}

fn clocks(cluster: &ClusterStats) -> Finding {
    let offsets = cluster.nodes.iter().filter_map(|node| node.clock_offset_ms);
    let largest = offsets.map(i64::unsigned_abs).max();
    match largest {
        None => Finding::new("clocks", Verdict::Skipped, "not known here; ask the leader"),
        Some(offset) if offset > MAX_CLOCK_OFFSET_MS => Finding::new(
            "clocks",
            Verdict::Warning,
            format!("{offset} ms apart: run a time service on every node"),
        ),
        Some(offset) => Finding::new("clocks", Verdict::Ok, format!("{offset} ms apart at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::health::Check;

    fn cluster(nodes: usize) -> ClusterStats {
        let node = |n: usize| ClusterNodeCatchup {
            node_id: format!("a{n}"),
            voter: true,
            healthy: true,
            version: Some("1.0.0".into()),
            desired_hash: Some("h".into()),
            enforced_hash: Some("h".into()),
            clock_offset_ms: Some(3),
            ..ClusterNodeCatchup::default()
        };
        ClusterStats {
            leader_id: Some("a0".into()),
            failure_tolerance: Some((nodes as u64 - 1) / 2),
            nodes: (0..nodes).map(node).collect(),
            ..ClusterStats::default()
        }
    }

    /// The verdicts that are not ok, by check.
    fn bad(cluster: &ClusterStats) -> Vec<(&'static str, Verdict)> {
        judge(&Ready::of(vec![]), cluster)
            .into_iter()
            .filter(|finding| finding.verdict != Verdict::Ok)
            .map(|finding| (finding.check, finding.verdict))
            .collect()
    }

    #[test]
    fn three_healthy_members_pass_and_fewer_are_warned_of() {
        assert_eq!(bad(&cluster(3)), []);
        for few in [1, 2] {
            assert_eq!(
                bad(&cluster(few)),
                [("failure tolerance", Verdict::Warning)]
            );
        }
    }

    #[test]
    fn each_thing_that_is_wrong_is_named() {
        use Verdict::{Failed, Skipped, Warning};
        let change = |change: fn(&mut ClusterStats)| {
            let mut cluster = cluster(3);
            change(&mut cluster);
            bad(&cluster)
        };
        assert_eq!(change(|c| c.leader_id = None), [("leader", Failed)]);
        assert_eq!(
            change(|c| c.nodes[1].healthy = false),
            [("members", Failed)]
        );
        let tolerance = "failure tolerance";
        assert_eq!(
            change(|c| c.failure_tolerance = Some(0)),
            [(tolerance, Failed)]
        );
        assert_eq!(
            change(|c| c.failure_tolerance = None),
            [(tolerance, Failed)]
        );
        let newer = |c: &mut ClusterStats| c.nodes[2].version = Some("1.1.0".into());
        assert_eq!(change(newer), [("versions", Warning)]);
        assert_eq!(
            change(|c| c.nodes[2].enforced_hash = None),
            [("policy", Failed)]
        );
        let off = |c: &mut ClusterStats| c.nodes[2].clock_offset_ms = Some(-2_000);
        assert_eq!(change(off), [("clocks", Warning)]);
        let unknown = |c: &mut ClusterStats| {
            for node in &mut c.nodes {
                node.clock_offset_ms = None;
            }
        };
        assert_eq!(change(unknown), [("clocks", Skipped)]);
        let check = Check {
            name: "cluster".into(),
            ok: false,
            detail: None,
        };
        let findings = judge(&Ready::of(vec![check]), &cluster(3));
        assert_eq!(
            findings[0],
            Finding::new("ready", Failed, "cluster: not ok")
        );
    }
}
