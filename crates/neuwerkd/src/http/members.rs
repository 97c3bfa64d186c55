//! The members of the cluster, as this node knows them.

use std::sync::Arc;

use api::cluster::{ClusterMemberView, ClusterMembersResponse};
use axum::Json;
use axum::extract::State;
use cluster::{MemberRole, MemberStatus};

use super::App;
use super::error::Answer;
use super::openapi::{self, Doc};

pub(super) static LIST: Doc = Doc::new("List the members").answers(&[(
    200,
    "Every member that is not removed",
    Some(openapi::json("ClusterMembersResponse")),
)]);

pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Json<ClusterMembersResponse>> {
    let node = app.node()?;
    let leads = matches!(node.role(), cluster::Role::Leader { .. });
    let members = node.members();
    let members = members
        .into_iter()
        .map(|member| view(member, leads))
        .collect();
    Ok(Json(ClusterMembersResponse { members }))
}

fn view(member: MemberStatus, leads: bool) -> ClusterMemberView {
    ClusterMemberView {
        node_id: member.node_id.to_string(),
        addr: member.address,
        role: role_name(member.role).into(),
        is_voter: member.voter,
        cloud_status: "unknown".into(),
        drain_state: member.leaving.then(|| "draining".into()),
        termination_event_id: None,
        auto_evict_reason: None,
        name: member.name,
        http_addr: member.http_address,
        live: leads.then_some(member.live),
        version: member
            .report
            .map(|report| report.version)
            .filter(|version| !version.is_empty()),
    }
}

/// The word for a member's part in node.
pub(super) fn role_name(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Leader => "leader",
        MemberRole::Follower => "follower",
        MemberRole::Learner => "learner",
        MemberRole::Joining => "joining",
    }
}
