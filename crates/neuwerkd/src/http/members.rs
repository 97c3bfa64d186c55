//! The members of the cluster: who they are, who votes, who takes new flows, and who is to go.
//!
//! What would leave the cluster without a failure that it survives, or cannot be done with the members that are live, is
//! refused unless it is forced; the refusal says why and what to do. No force makes consensus do without a quorum: a
//! forced change that is not possible now is kept, and carried out once it is.

use std::sync::Arc;
use std::time::Duration;

use api::cluster::{
    ClusterMemberView, ClusterMembersResponse, ClusterVotersResponse, PromoteClusterMemberRequest,
    RemoveClusterMemberRequest, ReplaceClusterVotersRequest, TransferRequest, TransferResponse,
};
use api::error::Reason;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use axum::{Extension, Json};
use bytes::Bytes;
use cluster::command::{Command, Record, Refusal, Suffrage};
use cluster::node::{Foresight, TransferError, Wish};
use cluster::state::{Member, Standing};
use cluster::{MemberRole, MemberStatus, Node, NodeId};
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::change::Change;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::revision::{conflict, etag, if_match};
use super::{App, Origin};

/// How long an answer waits for the voters to change. They do within a second, unless members are slow.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) static LIST: Doc = Doc::new("List the members").answers(&[(
    200,
    "Every member that is not removed",
    Some(openapi::json("ClusterMembersResponse")),
)]);

pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Json<ClusterMembersResponse>> {
    let node = app.node()?;
    Ok(Json(members(&node)))
}

fn members(node: &Node) -> ClusterMembersResponse {
    let leads = matches!(node.role(), cluster::Role::Leader { .. });
    let state = node.state();
    let views = node.members().into_iter().map(|member| {
        let record = state.member(member.node_id);
        view(member, record.map(|record| &**record), leads)
    });
    ClusterMembersResponse {
        members: views.collect(),
        cluster_name: state
            .settings()
            .map(|(settings, _)| settings.cluster_name.clone())
            .unwrap_or_default(),
        failure_tolerance: node.status().failure_tolerance.map(u64::from),
    }
}

fn view(member: MemberStatus, record: Option<&Member>, leads: bool) -> ClusterMemberView {
    let drained = member.report.as_ref().is_some_and(|report| report.drained);
    let pinned = match record.map(|record| record.suffrage) {
        Some(Suffrage::Voter) => Some("voter".into()),
        Some(Suffrage::Learner) => Some("learner".into()),
        Some(Suffrage::Auto) | None => None,
    };
    ClusterMemberView {
        node_id: member.node_id.to_string(),
        addr: member.address,
        role: role_name(member.role).into(),
        is_voter: member.voter,
        cloud_status: "unknown".into(),
        drain_state: record
            .is_some_and(|record| record.draining)
            .then(|| if drained { "drained" } else { "draining" }.into()),
        termination_event_id: None,
        auto_evict_reason: None,
        name: member.name,
        http_addr: member.http_address,
        live: leads.then_some(member.live),
        version: member
            .report
            .map(|report| report.version)
            .filter(|version| !version.is_empty()),
        leaving: member.leaving,
        pinned,
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

/// What the answers of a change of the voters are.
const VOTERS_CHANGED: &[(u16, &str, Option<openapi::Media>)] = &[
    (
        200,
        "It is done; the voters now",
        Some(openapi::json("ClusterVotersResponse")),
    ),
    (
        202,
        "It is decided and will be carried out; the voters then",
        Some(openapi::json("ClusterVotersResponse")),
    ),
    (404, "No such member", Some(openapi::ERROR)),
    (
        409,
        "It would endanger the quorum, or cannot be done now; `force` does it as soon as it can be",
        Some(openapi::ERROR),
    ),
];

pub(super) static VOTERS: Doc = Doc::new("Who votes").answers(&[(
    200,
    "The voters, and the entity tag of who is a member and who decides whether it votes",
    Some(openapi::json("ClusterVotersResponse")),
)]);

pub(super) async fn voters(State(app): State<Arc<App>>) -> Answer {
    let node = app.node()?;
    let state = node.state();
    let voters = voting(&node).iter().map(ToString::to_string).collect();
    let tag = etag(&state, state.suffrage_tag());
    Ok(([tag], Json(ClusterVotersResponse { voters })).into_response())
}

pub(super) static SET_VOTERS: Doc = Doc::new("Set who votes")
    .takes(openapi::json("ReplaceClusterVotersRequest"))
    .conditional()
    .idempotent()
    .answers(VOTERS_CHANGED);

pub(super) async fn set_voters(change: Change, headers: HeaderMap, body: Bytes) -> Answer {
    let request: ReplaceClusterVotersRequest = openapi::parse(&body)?;
    let wanted: Vec<NodeId> = request
        .ids
        .iter()
        .map(|id| parse_id(id))
        .collect::<Answer<_>>()?;
    if wanted.len() > 3 && wanted.len().is_multiple_of(2) {
        return Err(Refused::bad_request(format!(
            "{} voters survive no more failures than {}: name an odd number of members",
            wanted.len(),
            wanted.len() - 1
        )));
    }
    let state = change.state();
    if let Some(unknown) = wanted.iter().find(|id| state.member(**id).is_none()) {
        return Err(Refused::not_found(&format!("member {unknown}")));
    }
    let suffrage = |id: NodeId| {
        if wanted.contains(&id) {
            Suffrage::Voter
        } else {
            Suffrage::Learner
        }
    };
    let all = state
        .members()
        .filter(|member| member.standing == Standing::Member)
        .map(|member| (member.node_id, suffrage(member.node_id)));
    let wish = Wish::Suffrage(all.collect());
    let if_match = if_match(&headers, &state)?;
    change_votes(&change, wish, if_match, request.force, CHANGE_LIMIT).await
}

pub(super) static REMOVE: Doc = Doc::new("Take a member out of the cluster, for good")
    .takes(openapi::json("RemoveClusterMemberRequest"))
    .idempotent()
    .answers(VOTERS_CHANGED);

pub(super) async fn remove(
    change: Change,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer {
    let RemoveClusterMemberRequest { force } = optional(&body)?;
    let wish = Wish::Remove(known(&change, &id)?);
    let own = change.node().node_id();
    let entered_at = origin.entered_at(own);
    // The answer would have to go by a member that is none any more.
    let patience = if entered_at != own && wish == Wish::Remove(entered_at) {
        Duration::ZERO
    } else {
        CHANGE_LIMIT
    };
    change_votes(&change, wish, None, force, patience).await
}

pub(super) static PROMOTE: Doc = Doc::new("Have a member vote, or leave that to the cluster again")
    .takes(openapi::json("PromoteClusterMemberRequest"))
    .idempotent()
    .answers(VOTERS_CHANGED);

pub(super) async fn promote(change: Change, Path(id): Path<String>, body: Bytes) -> Answer {
    let request: PromoteClusterMemberRequest = optional(&body)?;
    let suffrage = if request.auto {
        Suffrage::Auto
    } else {
        Suffrage::Voter
    };
    let wish = Wish::Suffrage([(known(&change, &id)?, suffrage)].into());
    change_votes(&change, wish, None, request.force, CHANGE_LIMIT).await
}

pub(super) static DEMOTE: Doc = Doc::new("Have a member vote no more, until it is promoted")
    .takes(openapi::json("RemoveClusterMemberRequest"))
    .idempotent()
    .answers(VOTERS_CHANGED);

pub(super) async fn demote(change: Change, Path(id): Path<String>, body: Bytes) -> Answer {
    let RemoveClusterMemberRequest { force } = optional(&body)?;
    let wish = Wish::Suffrage([(known(&change, &id)?, Suffrage::Learner)].into());
    change_votes(&change, wish, None, force, CHANGE_LIMIT).await
}

/// Grants a wish if that is safe, or forced, and waits a little until the voters are as they should be.
async fn change_votes(
    change: &Change,
    wish: Wish,
    if_match: Option<u64>,
    force: bool,
    patience: Duration,
) -> Answer {
    if if_match.is_some_and(|tag| tag != change.state().suffrage_tag()) {
        return Err(changed_in_between(&change.state()));
    }
    let told = change.node().foresee(&wish);
    if !force && let Some(objection) = objection(&told) {
        return Err(Refused::new(StatusCode::CONFLICT, objection));
    }
    let command = match &wish {
        Wish::Remove(node_id) => Command::RemoveMember { node_id: *node_id },
        Wish::Suffrage(members) => Command::SetSuffrage {
            members: members.clone(),
            if_match,
        },
    };
    match change.answered(command).await?.accepted() {
        Err(Refusal::Conflict { .. }) => return Err(changed_in_between(&change.state())),
        other => other?,
    };
    // A leader that is to go hands over before; the rest is its successor's.
    let leads = || matches!(change.node().role(), cluster::Role::Leader { .. });
    let waiting = tokio::time::timeout(patience, async {
        while !is_granted(change.node(), &wish) && leads() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    // What is not done in time is done later all the same.
    let _ = waiting.await;
    let (status, voters) = if is_granted(change.node(), &wish) {
        (StatusCode::OK, voting(change.node()))
    } else {
        (StatusCode::ACCEPTED, told.voters.into_iter().collect())
    };
    let voters = voters.iter().map(ToString::to_string).collect();
    Ok((status, Json(ClusterVotersResponse { voters })).into_response())
}

fn changed_in_between(state: &cluster::State) -> Refused {
    let current = state.suffrage_tag();
    let record = Record::Member;
    conflict(Refusal::Conflict { record, current }, "who votes", state)
}

/// Why a change is not to be made without force.
fn objection(told: &Foresight) -> Option<String> {
    if !told.possible {
        let missing: Vec<String> = told.missing.iter().map(ToString::to_string).collect();
        let why = if missing.is_empty() {
            "the members that would vote cannot yet: they must have caught up, and voters stay odd above three"
                .to_owned()
        } else {
            format!(
                "too few of those that would vote then are live; {} not: bring it back, or remove it first",
                missing.join(" and ")
            )
        };
        return Some(format!("this cannot be done now: {why}"));
    }
    (told.tolerance_now > 0 && told.tolerance_after == 0).then(|| {
        format!(
            "{} voters would be left and no failure survived, where {} may fail now: add a member first, or force it",
            told.voters.len(),
            told.tolerance_now
        )
    })
}

fn is_granted(node: &Node, wish: &Wish) -> bool {
    let votes = |id: &NodeId| {
        let members = node.members();
        members.iter().any(|m| m.node_id == *id && m.voter)
    };
    match wish {
        Wish::Remove(id) => node.state().removed(*id).is_some(),
        Wish::Suffrage(members) => members.iter().all(|(id, suffrage)| match suffrage {
            Suffrage::Auto => true,
            Suffrage::Voter => votes(id),
            Suffrage::Learner => !votes(id),
        }),
    }
}

fn voting(node: &Node) -> Vec<NodeId> {
    let members = node.members().into_iter();
    members.filter(|m| m.voter).map(|m| m.node_id).collect()
}

/// What the answers of a drain and of its end are.
const DRAIN_CHANGED: &[(u16, &str, Option<openapi::Media>)] = &[
    (
        200,
        "It is decided; `drain_state` tells how far it is",
        Some(openapi::json("ClusterMembersResponse")),
    ),
    (404, "No such member", Some(openapi::ERROR)),
    (
        409,
        "No live member would take new flows; `force` does it nevertheless",
        Some(openapi::ERROR),
    ),
];

pub(super) static DRAIN: Doc = Doc::new("Have a member refuse new flows, and keep those it has")
    .takes(openapi::json("RemoveClusterMemberRequest"))
    .idempotent()
    .answers(DRAIN_CHANGED);

pub(super) async fn drain(
    change: Change,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Json<ClusterMembersResponse>> {
    let RemoveClusterMemberRequest { force } = optional(&body)?;
    let node_id = known(&change, &id)?;
    let state = change.state();
    let takes_flows = |member: &MemberStatus| {
        let draining = state.member(member.node_id).is_some_and(|m| m.draining);
        member.node_id != node_id && member.live && !draining
    };
    if !force && !change.node().members().iter().any(takes_flows) {
        return Err(Refused::new(
            StatusCode::CONFLICT,
            "no live member would be left that takes new flows: undrain or add one first, or force it",
        ));
    }
    set_draining(&change, node_id, true).await
}

pub(super) static UNDRAIN: Doc = Doc::new("Have a member take new flows again")
    .idempotent()
    .answers(DRAIN_CHANGED);

pub(super) async fn undrain(
    change: Change,
    Path(id): Path<String>,
) -> Answer<Json<ClusterMembersResponse>> {
    let node_id = known(&change, &id)?;
    set_draining(&change, node_id, false).await
}

async fn set_draining(
    change: &Change,
    node_id: NodeId,
    draining: bool,
) -> Answer<Json<ClusterMembersResponse>> {
    change
        .done(Command::DrainMember { node_id, draining })
        .await?;
    Ok(Json(members(change.node())))
}

pub(super) static TRANSFER: Doc = Doc::new("Hand leadership over")
    .takes(openapi::json("TransferRequest"))
    .answers(&[
        (
            200,
            "Who leads now",
            Some(openapi::json("TransferResponse")),
        ),
        (404, "No such member", Some(openapi::ERROR)),
        (
            409,
            "The member, or every other one, is no live voter",
            Some(openapi::ERROR),
        ),
    ]);

pub(super) async fn transfer(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Answer<Json<TransferResponse>> {
    let TransferRequest { node_id } = optional(&body)?;
    let node = app.node()?;
    let to = node_id.as_deref().map(parse_id).transpose()?;
    if let Some(to) = to
        && node.state().member(to).is_none()
    {
        return Err(Refused::not_found(&format!("member {to}")));
    }
    let leader_id = if to == Some(node.node_id()) {
        node.node_id()
    } else {
        node.transfer_leader(to)
            .await
            .map_err(|error| match error {
                TransferError::NoCandidate => Refused::new(StatusCode::CONFLICT, error.to_string()),
                TransferError::NotLeader | TransferError::Timeout => {
                    Refused::unavailable(Reason::NoLeader, error.to_string())
                }
            })?
    };
    Ok(Json(TransferResponse {
        leader_id: leader_id.to_string(),
    }))
}

/// A body that may be left out.
fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Answer<T> {
    if body.is_empty() {
        return Ok(T::default());
    }
    openapi::parse(body)
}

pub(super) fn parse_id(text: &str) -> Answer<NodeId> {
    text.parse()
        .map_err(|_| Refused::not_found(&format!("member {text}; an id has 16 hexadecimal digits")))
}

fn known(change: &Change, text: &str) -> Answer<NodeId> {
    let id = parse_id(text)?;
    match change.state().member(id) {
        Some(_) => Ok(id),
        None => Err(Refused::not_found(&format!("member {id}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(now: u32, after: u32, possible: bool, missing: &[u64]) -> Foresight {
        Foresight {
            tolerance_now: now,
            tolerance_after: after,
            possible,
            voters: [NodeId(1), NodeId(2)].into(),
            missing: missing.iter().map(|id| NodeId(*id)).collect(),
        }
    }

    #[test]
    fn only_what_costs_the_last_failure_or_a_quorum_is_objected_to() {
        assert_eq!(objection(&told(1, 1, true, &[])), None);
        assert_eq!(objection(&told(2, 1, true, &[])), None);
        assert_eq!(
            objection(&told(0, 0, true, &[])),
            None,
            "there is none to lose"
        );
        let text = objection(&told(1, 0, true, &[])).expect("an objection");
        assert!(text.contains("no failure survived"), "{text}");
        let text = objection(&told(0, 0, false, &[3])).expect("an objection");
        assert!(text.contains("0000000000000003 not"), "{text}");
    }
}
