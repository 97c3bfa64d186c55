//! The leader's side of a join: from a verified request to membership.
//!
//! One log entry consumes the credential and reserves the node id; the certificate is issued from the request's public
//! key alone; a second entry makes the joiner a member. Each step is idempotent by the request's hash, so a joiner that
//! lost the answer asks again and gets the same id.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use openraft::AsyncRuntime;
use serde_bytes::ByteBuf;

use crate::ca::CaError;
use crate::command::{Author, Command};
use crate::join::{EnrolGrant, EnrolRefusal, EnrolRequest, KnownMember};
use crate::node::{Node, ProposeError};
use crate::state::{Standing, State};
use crate::status::Role;
use crate::transport::{Kind, ServiceError};
use crate::{NodeId, Refusal, Response};

/// How long the leader may take when another member asks it.
const LEADER_DEADLINE: Duration = Duration::from_secs(8);

/// The members of `state` that a peer may meet, as a joiner is told of them.
pub fn known_members(state: &State) -> Vec<KnownMember> {
    let met = state
        .members()
        .filter(|member| member.standing != Standing::Joining);
    met.map(|member| KnownMember {
        node_id: member.node_id,
        cluster_address: member.addresses.cluster.clone(),
        join_address: member.addresses.join.clone(),
        spki: member.spki,
    })
    .collect()
}

impl<R: AsyncRuntime> Node<R> {
    /// Lets other members pass join requests on to this node, for as long as it leads.
    pub fn answer_enrolments(&self) {
        let node = self.clone();
        self.set_handler(
            Kind::Enrol,
            Arc::new(move |from, body| {
                let node = node.clone();
                Box::pin(async move {
                    let request: EnrolRequest = rmp_serde::from_slice(&body)
                        .map_err(|error| ServiceError(format!("unreadable request: {error}")))?;
                    let outcome = node.admit(&request, from).await;
                    Ok(Bytes::from(
                        rmp_serde::to_vec_named(&outcome).expect("plain data"),
                    ))
                })
            }),
        );
    }

    /// Makes a member of a joiner that has proved its credential, here or on the leader.
    ///
    /// # Errors
    /// An [`EnrolRefusal`] with the reason, for the joiner's operator.
    pub async fn enrol(&self, request: EnrolRequest) -> Result<EnrolGrant, EnrolRefusal> {
        if let Role::Follower { .. } = self.role() {
            let body = rmp_serde::to_vec_named(&request).expect("plain data");
            let answer = self
                .ask_leader(Kind::Enrol, body.into(), LEADER_DEADLINE)
                .await;
            let answer = answer.map_err(|error| later(format!("the leader: {error}")))?;
            return rmp_serde::from_slice(&answer)
                .map_err(|error| later(format!("the leader's answer is unreadable: {error}")))?;
        }
        self.admit(&request, self.node_id()).await
    }

    /// The leader's part. `via` is the member at which the joiner knocked.
    async fn admit(&self, request: &EnrolRequest, via: NodeId) -> Result<EnrolGrant, EnrolRefusal> {
        let reservation = request
            .reservation()
            .map_err(|error| never(error.to_string()))?;
        let author = || Author {
            subject: "join".into(),
            node: Some(via),
        };
        check_level(request, &self.state())?;
        let reserved = self
            .propose_as(Command::ReserveMember(reservation), author(), None)
            .await
            .map_err(not_committed)?;
        let node_id = match reserved.response {
            Response::Reserved { node_id } => node_id,
            Response::Refused(refusal) => return Err(refused(&refusal)),
            other => return Err(never(format!("unexpected answer {other:?}"))),
        };

        let state = self.state();
        let (Some(cluster_id), Some(lineage), Some(authority)) =
            (state.cluster_id(), state.lineage(), state.cluster_ca())
        else {
            return Err(later("the cluster is not initialised yet".into()));
        };
        if state.waits_for_approval(node_id) {
            return Err(later(format!(
                "it waits for an administrator: neuwerk cluster members approve {node_id}"
            )));
        }
        let ca = match state.open_ca(authority) {
            Err(CaError::Sealed(error)) => return Err(later(error.to_string())),
            opened => opened.map_err(|error| never(error.to_string()))?,
        };
        // Log time, so that a wrong clock on one node dates no certificate.
        let now: SystemTime = UNIX_EPOCH + Duration::from_millis(state.time_ms());
        let certificate = request
            .issue(&ca, cluster_id, node_id, now)
            .map_err(|error| never(error.to_string()))?;
        let confirm = Command::ConfirmMember {
            node_id,
            certificate: certificate.clone(),
        };
        let confirmed = self
            .propose_as(confirm, author(), None)
            .await
            .map_err(not_committed)?;
        confirmed
            .response
            .accepted()
            .map_err(|refusal| refused(&refusal))?;

        Ok(EnrolGrant {
            cluster_id,
            lineage,
            node_id,
            certificate: certificate.der,
            authorities: state
                .cluster_cas()
                .map(|ca| ByteBuf::from(ca.certificate_der.clone()))
                .collect(),
            members: known_members(&self.state()),
        })
    }
}

/// Whether the joiner would understand what the cluster writes.
fn check_level(request: &EnrolRequest, state: &State) -> Result<(), EnrolRefusal> {
    let (offered, level) = (request.feature_level, state.feature_level());
    if offered >= level {
        return Ok(());
    }
    let (joiner, needed) = (&request.version, state.feature_version());
    let needed = match needed {
        "" => "the version of the members".to_owned(),
        version => format!("version {version} or newer"),
    };
    Err(later(format!(
        "the cluster is at feature level {level}, version {joiner} supports {offered}: start {needed} on the new node"
    )))
}

fn not_committed(error: ProposeError) -> EnrolRefusal {
    later(error.to_string())
}

/// What the state refuses now may be allowed once an administrator has acted, except for an id that is gone for good.
fn refused(refusal: &Refusal) -> EnrolRefusal {
    EnrolRefusal {
        retry: *refusal != Refusal::MemberRemoved,
        reason: refusal.to_string(),
    }
}

fn later(reason: String) -> EnrolRefusal {
    EnrolRefusal {
        retry: true,
        reason,
    }
}

fn never(reason: String) -> EnrolRefusal {
    EnrolRefusal {
        retry: false,
        reason,
    }
}
