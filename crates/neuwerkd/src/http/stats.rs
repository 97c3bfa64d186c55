//! Counters of this node, and the cluster as this node sees it.

use std::sync::Arc;

use api::stats::{
    ClusterNodeCatchup, ClusterStats, DataplaneStats, DecisionCounters, DhcpStats, DnsStats,
    PortAddresses, StatsSnapshot,
};
use axum::Json;
use axum::extract::State;
use cluster::{MemberStatus, Node, PolicyMark, Role};
use engine::counters::{Direction, Protocol, Total};
use engine::{DropReason, WorkerCounters};

use super::error::Answer;
use super::members::role_name;
use super::openapi::{self, Doc};
use super::{App, rfc3339};
use crate::dataplane::{self, Acquired};

pub(super) static READ: Doc = Doc::new("Read counters and the state of the cluster").answers(&[(
    200,
    "This node's counters, and the cluster as this node sees it",
    Some(openapi::json("StatsSnapshot")),
)]);

pub(super) async fn read(State(app): State<Arc<App>>) -> Answer<Json<StatsSnapshot>> {
    let node = app.node()?;
    Ok(Json(app.stats(&node)))
}

impl App {
    /// What `GET /api/v1/stats` answers.
    pub(crate) fn stats(&self, node: &Node) -> StatsSnapshot {
        StatsSnapshot {
            dataplane: DataplaneStats {
                nat_port_utilization: self.surveyed().map_or(0.0, |shown| shown.port_utilization),
                ..traffic(&self.counters.load())
            },
            dns: self.names.get().map_or_else(DnsStats::default, names),
            dhcp: dhcp(&self.acquired()),
            cluster: cluster(node),
            backup: self.backups().stats(),
            ..StatsSnapshot::default()
        }
    }
}

fn names(metrics: &proxy::dns::Metrics) -> DnsStats {
    let totals = metrics.totals();
    DnsStats {
        queries_allow: totals.allowed,
        queries_deny: totals.denied,
        nxdomain_policy: totals.nxdomain_policy,
        nxdomain_upstream: totals.nxdomain_upstream,
    }
}

fn dhcp(acquired: &Acquired) -> DhcpStats {
    let port = |port: &dataplane::PortAddresses| PortAddresses {
        port: port.name.into(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        gateways: port.gateways.iter().map(ToString::to_string).collect(),
        dns: port
            .lease
            .iter()
            .flat_map(|lease| &lease.dns)
            .map(ToString::to_string)
            .collect(),
        server: port.lease.as_ref().map(|lease| lease.server.to_string()),
        lease_expiry_epoch: port.expires_epoch_s,
        problem: port.problem.clone(),
    };
    DhcpStats {
        lease_active: acquired.is_leased(),
        lease_expiry_epoch: acquired.expiry_epoch_s(),
        ports: acquired.ports.iter().map(port).collect(),
    }
}

/// The sum over all workers, without what only a look through their tables tells.
fn traffic(workers: &[Arc<WorkerCounters>]) -> DataplaneStats {
    let sum =
        |value: &dyn Fn(&WorkerCounters) -> u64| workers.iter().map(|worker| value(worker)).sum();
    let volumes = |value: &dyn Fn(&WorkerCounters, Direction, Protocol) -> (u64, u64)| {
        let mut total = (0, 0);
        for worker in workers {
            for direction in Direction::ALL {
                for protocol in Protocol::ALL {
                    let (packets, bytes) = value(worker, direction, protocol);
                    total = (total.0 + packets, total.1 + bytes);
                }
            }
        }
        total
    };
    let both = |total: Total| (total.packets, total.bytes);
    let allow = volumes(&|worker, direction, protocol| both(worker.allowed(direction, protocol)));
    let deny = volumes(&|worker, direction, protocol| both(worker.denied(direction, protocol)));
    let drops_of = |reason: DropReason| sum(&|worker| worker.dropped(reason).packets.get());
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.name().to_owned(), drops_of(*reason)))
        .filter(|(_, packets)| *packets > 0)
        .collect();
    DataplaneStats {
        active_flows: sum(&|worker| worker.flows_active.get()),
        active_nat_entries: sum(&|worker| worker.nat_active.get()),
        flows_opened: sum(&|worker| worker.flows_opened.get()),
        flows_closed: sum(&|worker| worker.flows_closed()),
        ipv4_fragments_dropped: sum(&|worker| worker.fragments.get()),
        ipv4_ttl_exceeded: drops_of(DropReason::TtlExceeded),
        packets: decisions(allow.0, deny.0),
        bytes: decisions(allow.1, deny.1),
        drops,
        workers: workers.len() as u64,
        ..DataplaneStats::default()
    }
}

fn decisions(allow: u64, deny: u64) -> DecisionCounters {
    DecisionCounters {
        allow,
        deny,
        pending_tls: 0,
    }
}

/// The cluster as this node sees it. Every member that hears from the leader gives the same figures.
fn cluster(node: &Node) -> ClusterStats {
    let (status, state) = (node.status(), node.state());
    let is_leader = matches!(status.role, Role::Leader { .. });
    let leader_id = match status.role {
        Role::Leader { .. } => Some(status.node_id),
        Role::Follower { leader_id, .. } => Some(leader_id),
        Role::NoLeader { .. } => None,
    };
    let newest = state.policy().map(|policy| PolicyMark::of(&state, policy));
    let features = node.features();
    let members = node.members();
    // Whoever leads, or hears from a leader, knows how far every member is; nobody else does.
    let known = status.failure_tolerance.is_some();
    let nodes: Vec<_> = members
        .iter()
        .map(|member| catchup(member, &state, newest, known))
        .collect();
    let followers = nodes.iter().filter(|node| node.role != "leader");
    ClusterStats {
        is_leader,
        current_term: status.term,
        last_log_index: status.last_index,
        last_applied: status.applied_index,
        node_count: nodes.len() as u64,
        follower_count: followers.clone().count() as u64,
        followers_caught_up: followers.filter(|node| node.caught_up).count() as u64,
        node_id: status.node_id.to_string(),
        leader_id: leader_id.map(|id| id.to_string()),
        failure_tolerance: status.failure_tolerance.map(u64::from),
        detection_time_ms: status.detection_time_ms,
        cluster_id: status
            .cluster_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        lineage: status
            .lineage
            .map(|lineage| lineage.to_string())
            .unwrap_or_default(),
        policy_revision: newest.map_or(0, |mark| mark.revision),
        feature_level: features.level.into(),
        feature_level_supported: features.supported.into(),
        feature_level_held_back_by: features.held_back_by,
        nodes,
    }
}

fn catchup(
    member: &MemberStatus,
    state: &cluster::State,
    newest: Option<PolicyMark>,
    known: bool,
) -> ClusterNodeCatchup {
    let report = member.report.as_ref();
    let enforces = match (&newest, report) {
        (None, _) => true,
        (Some(newest), Some(report)) => report.enforced.reaches(newest),
        (Some(_), None) => false,
    };
    // What the member itself presents goes before what was last issued to it.
    let issued = state
        .member(member.node_id)
        .and_then(|member| Some(member.certificate.as_ref()?.not_after_ms));
    let certificate_ends_ms = report
        .and_then(|report| report.certificate_expires_ms)
        .or(issued);
    let quarantine = report.and_then(|report| report.quarantine.clone());
    let filled = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    ClusterNodeCatchup {
        node_id: member.node_id.to_string(),
        addr: member.address.clone(),
        role: role_name(member.role).into(),
        caught_up: known && member.lag == 0,
        matched_index: known.then_some(member.matched_index),
        lag_entries: known.then_some(member.lag),
        voter: member.voter,
        healthy: member.live && quarantine.is_none() && enforces,
        version: report.and_then(|report| filled(&report.version)),
        mode: report.and_then(|report| filled(&report.mode)),
        configuration_hash: report.and_then(|report| filled(&report.configuration_hash)),
        last_contact_ms: member.last_contact_ms,
        applied_index: report.map(|_| member.applied_index),
        desired_revision: newest.map(|mark| mark.revision),
        desired_hash: newest.map(|mark| mark.hash.to_string()),
        enforced_revision: report.map(|report| report.enforced.revision),
        enforced_hash: report.map(|report| report.enforced.hash.to_string()),
        replay_failure: report.and_then(|report| report.compile_error.clone()),
        quarantine_reason: quarantine,
        state_checked_index: member.checked_index,
        certificate_expires_at: certificate_ends_ms
            .map(rfc3339)
            .filter(|text| !text.is_empty()),
        clock_offset_ms: member.clock_offset_ms,
        name: member.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use policy::{Compiled, Document};
    use prometheus_client::registry::Registry;
    use proxy::dns::{NoGrants, Proxy, Settings};
    use tokio::net::UdpSocket;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const POLICY: &str = r#"{"source_groups":[{"id":"web","mode":"enforce","sources":{"cidrs":["127.0.0.0/8"]},
        "rules":[{"id":"ok","action":"allow","match":{"dns_names":["a.net"]}}]}]}"#;

    /// An allowed name, though there is no resolver to ask, and two that are denied.
    #[tokio::test]
    async fn queries_are_counted() {
        let document = Document::parse_json(POLICY.as_bytes()).unwrap();
        let policy = Arc::new(Compiled::compile(&document, 1).unwrap());
        let settings = Settings {
            upstreams: vec![],
            upstream_timeout: std::time::Duration::from_secs(1),
            allow_private_answers: vec![],
            own_addresses: Arc::new(Vec::new),
            allow_ech: false,
            more_kinds: vec![],
            denial: dns::reply::Denial::NxDomain,
            cache_bytes: 1 << 20,
            client_queries_per_second: 0,
            client_burst: 0,
        };
        let proxy = Proxy::new(
            settings,
            Box::new(move || Arc::clone(&policy)),
            Arc::new(NoGrants),
            &mut Registry::default(),
        );
        let stop = CancellationToken::new();
        let address = proxy
            .listen((Ipv4Addr::LOCALHOST, 0).into(), 1, &stop)
            .unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // ANY is answered at once (RFC 8482).
        for (name, kind) in [(b'a', 255), (b'b', 1), (b'c', 255)] {
            let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            query.extend([1, name, 3, b'n', b'e', b't', 0, 0, kind, 0, 1]);
            socket.send_to(&query, address).await.unwrap();
            socket.recv(&mut [0; 512]).await.unwrap();
        }
        let expected = DnsStats {
            queries_allow: 1,
            queries_deny: 2,
            nxdomain_policy: 2,
            nxdomain_upstream: 0,
        };
        assert_eq!(names(proxy.metrics()), expected);
        stop.cancel();
    }
}
