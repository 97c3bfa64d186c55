//! The leader's housekeeping of trust: vouches for newcomers, keeps secrets sealed for exactly the members, renews
//! certificates, and takes a rotation of the cluster CA from step to step.
//!
//! Like the rest of the steward's work every step looks at what is there, so that any leader goes on where another
//! stopped. Certificates are made from the public keys in those that they replace, by log time: a member need not be up,
//! nor have the right time, to be renewed, and finds its certificate in the state.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::AsyncRuntime;
use serde_bytes::ByteBuf;

use super::{Node, locked};
use crate::ca::{self, CaError, NODE_LIFETIME};
use crate::command::{Authority, JoinApproval};
use crate::command::{
    Certificate, Command, DataKey, Response, Sealing, Secret, Settings, SigningKey, TrustChange,
};
use crate::id::{Digest, NodeId};
use crate::keyring::{self, SealError};
use crate::state::{CaPhase, Member, Standing, State};
use crate::status::TrustReport;
use crate::voucher;

/// The level from which there are vouchers, sealed secrets and rotations.
const LEVEL: u32 = 2;

/// A certificate is renewed at this part of its life, and up to [`RENEW_SPREAD`] later, by its serial number: members
/// that joined together are not renewed together.
const RENEW_FROM: f64 = 0.5;

/// See [`RENEW_FROM`].
const RENEW_SPREAD: f64 = 0.3;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Whether a certificate is to be replaced at `now_ms`. A date in the future is a wrong clock's, and is put right.
fn is_due(certificate: &Certificate, now_ms: u64) -> bool {
    let life_ms = u64::try_from(NODE_LIFETIME.as_millis()).expect("a month");
    let part = f64::from(Digest::of(&certificate.serial).0[0]) / 256.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of a month in milliseconds"
    )]
    let left_ms = (life_ms as f64 * (1.0 - RENEW_FROM - RENEW_SPREAD * part)) as u64;
    now_ms < certificate.not_before_ms || now_ms.saturating_add(left_ms) >= certificate.not_after_ms
}

impl<R: AsyncRuntime> Node<R> {
    /// Takes the next steps, if any are due.
    pub(super) async fn tend_trust(&self) {
        let state = self.state();
        if self.is_locked_out(&state) {
            return self.hand_over_to_a_reader(&state).await;
        }
        let commands = self.trust_steps(&state);
        for command in commands {
            match self.propose(command).await {
                Ok(applied) => {
                    if let Response::Refused(refusal) = applied.response {
                        tracing::debug!(%refusal, "a step of trust was overtaken");
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a step of trust could not be taken yet");
                    return;
                }
            }
        }
    }

    fn trust_steps(&self, state: &State) -> Vec<Command> {
        let mut commands = Vec::new();
        if state.feature_level() >= LEVEL {
            let changes = self
                .approval_setting(state)
                .into_iter()
                .chain(self.new_sealing_keys(state).map(Command::Trust))
                .chain(self.attempted(self.seal_step(state)).map(Command::Trust))
                .chain(self.attempted(self.vouch_step(state)).map(Command::Trust))
                .chain(self.rotation_step(state).map(Command::Trust));
            commands.extend(changes);
        }
        commands.extend(self.attempted(self.renewal(state)));
        commands
    }

    /// What a step came to; why it failed is for the log.
    fn attempted<T>(&self, step: Result<Option<T>, StepError>) -> impl Iterator<Item = T> {
        let step = step.unwrap_or_else(|error| {
            let mut last = locked(&self.inner.trust_failure);
            let text = error.to_string();
            // The same failure again, five times a second, is no news.
            if last.as_ref() != Some(&text) {
                tracing::warn!(
                    error = text,
                    "the leader cannot tend certificates and secrets"
                );
                *last = Some(text);
            }
            None
        });
        step.into_iter()
    }

    /// `cluster.join_approval: manual` on the leader becomes the cluster's setting.
    fn approval_setting(&self, state: &State) -> Option<Command> {
        let (settings, revision) = state.settings()?;
        let wanted = self.inner.config.join_approval;
        if wanted == JoinApproval::Auto || settings.join_approval == wanted {
            return None;
        }
        Some(Command::PutSettings {
            settings: Settings {
                join_approval: wanted,
                ..settings.clone()
            },
            if_match: Some(revision),
        })
    }

    /// Sealing keys that members have reported and that are not on record.
    fn new_sealing_keys(&self, state: &State) -> impl Iterator<Item = TrustChange> {
        let reports = locked(&self.inner.reports);
        let new: Vec<TrustChange> = reports
            .iter()
            .filter(|(id, _)| state.member(**id).is_some())
            .filter_map(|(id, received)| {
                let public = &received.report.node.trust.sealing_key;
                let known = state.sealing_key(*id) == Some(public.as_slice());
                (public.len() == keyring::KEY_BYTES && !known).then(|| TrustChange::SetSealingKey {
                    node_id: *id,
                    public: ByteBuf::from(public.clone()),
                })
            })
            .collect();
        new.into_iter()
    }

    /// Makes a new data key when there is none, or a former member holds it; wraps it for those who lack it.
    fn seal_step(&self, state: &State) -> Result<Option<TrustChange>, StepError> {
        let readers: BTreeSet<NodeId> = state.readers().collect();
        if !readers.contains(&self.node_id()) {
            return Ok(None);
        }
        let Some(key) = state.data_key() else {
            // Whoever is up must be able to go on reading: their keys come with their next report.
            let members = self.inner.leader_members();
            let waits = members
                .iter()
                .any(|member| member.live && !readers.contains(&member.node_id));
            return match waits {
                true => Ok(None),
                false => Ok(Some(seal_anew(state, &readers)?)),
            };
        };
        if key.wraps.keys().any(|id| state.member(*id).is_none()) {
            return Ok(Some(seal_anew(state, &readers)?));
        }
        let Some(lacks) = readers.iter().find(|id| !key.wraps.contains_key(id)) else {
            return Ok(None);
        };
        let open = self.inner.config.keyring.data_key(key)?;
        let public = state.sealing_key(*lacks).unwrap_or_default();
        Ok(Some(TrustChange::Wrap {
            node_id: *lacks,
            epoch: key.epoch,
            wrapped: keyring::wrap(&open, key.epoch, public)?,
        }))
    }

    /// A leader that was off when secrets were sealed cannot share them with anybody, itself included.
    async fn hand_over_to_a_reader(&self, state: &State) {
        let reads = |id| {
            state
                .data_key()
                .is_some_and(|key| key.wraps.contains_key(&id))
        };
        let members = self.inner.leader_members();
        let to = members
            .iter()
            .filter(|member| member.live && member.voter && member.node_id != self.node_id())
            .find(|member| reads(member.node_id));
        if let Some(to) = to {
            tracing::info!(to = %to.node_id, "handing leadership to a member that can read the cluster's secrets");
            if let Err(error) = self.transfer_leader(Some(to.node_id)).await {
                tracing::warn!(%error, "a leader that cannot read the cluster's secrets cannot hand over");
            }
        }
    }

    /// Whether this leader cannot read the secrets that it is to work with.
    fn is_locked_out(&self, state: &State) -> bool {
        let keyring = &self.inner.config.keyring;
        state
            .data_key()
            .is_some_and(|key| keyring.data_key(key).is_err())
    }

    /// Vouches for a member that nobody has vouched for.
    fn vouch_step(&self, state: &State) -> Result<Option<TrustChange>, StepError> {
        let own = state.member(self.node_id());
        let own_certificate = own.and_then(|own| own.certificate.as_ref());
        let (Some((by, identity)), Some(own_certificate), Some(cluster_id)) = (
            self.inner.config.keyring.identity(),
            own_certificate,
            state.cluster_id(),
        ) else {
            return Ok(None);
        };
        let unknown = state
            .members()
            .filter(|member| member.node_id != by && state.voucher(member.node_id).is_none())
            .find_map(|member| Some((member.node_id, member.certificate.as_ref()?)));
        let Some((node_id, certificate)) = unknown else {
            return Ok(None);
        };
        let voucher = voucher::vouch(
            (by, identity, &own_certificate.der),
            cluster_id,
            (node_id, &certificate.der),
        )?;
        Ok(Some(TrustChange::Vouch { node_id, voucher }))
    }

    /// Renews one certificate that is due, or that the issuing CA has not issued while a rotation is under way.
    fn renewal(&self, state: &State) -> Result<Option<Command>, StepError> {
        let (Some(authority), Some(cluster_id)) = (state.cluster_ca(), state.cluster_id()) else {
            return Ok(None);
        };
        // Log time, so that a wrong clock on one node dates no certificate; it stands still while nothing is written.
        let now_ms = state
            .time_ms()
            .max((self.inner.environment.wall_clock_ms)());
        let changes_ca = state
            .ca_rotation()
            .is_some_and(|rotation| rotation.phase == CaPhase::Issuing);
        let due = |member: &&std::sync::Arc<Member>| {
            member.certificate.as_ref().is_some_and(|certificate| {
                is_due(certificate, now_ms)
                    || (changes_ca
                        && !ca::is_issued_by(&certificate.der, &authority.certificate_der))
            })
        };
        let confirmed = state
            .members()
            .filter(|member| member.standing == Standing::Member);
        let Some(member) = confirmed.into_iter().find(due) else {
            return Ok(None);
        };
        let Some(old) = &member.certificate else {
            return Ok(None);
        };
        let ca = state.open_ca(authority)?;
        let now: SystemTime = UNIX_EPOCH + Duration::from_millis(now_ms);
        let host = crate::join::host(&member.addresses.cluster);
        let certificate = ca.renew_node(cluster_id, member.node_id, host, &old.der, now)?;
        tracing::info!(node = %member.node_id, "renewing a member's certificate");
        Ok(Some(Command::ConfirmMember {
            node_id: member.node_id,
            certificate,
        }))
    }

    /// Takes a rotation of the CA one step on once every live member has taken the last one. Members that are down are
    /// not waited for: they are recognised by their keys, and find their certificates in the state.
    fn rotation_step(&self, state: &State) -> Option<TrustChange> {
        let rotation = state.ca_rotation()?;
        self.rotation_pending(state)
            .is_empty()
            .then_some(match rotation.phase {
                CaPhase::Trusting => TrustChange::IssueFromNextCa,
                CaPhase::Issuing => TrustChange::FinishCaRotation,
            })
    }

    /// Live members that the rotation of the CA waits for; on the leader.
    pub fn rotation_pending(&self, state: &State) -> Vec<NodeId> {
        let Some(rotation) = state.ca_rotation() else {
            return Vec::new();
        };
        let trusted = Digest::of(&rotation.other.certificate_der);
        let authority = state.cluster_ca();
        let has_taken = |member: &Member, said: &TrustReport| match rotation.phase {
            CaPhase::Trusting => said.authorities.contains(&trusted),
            CaPhase::Issuing => member.certificate.as_ref().is_some_and(|certificate| {
                said.certificate == Some(Digest::of(&certificate.der))
                    && authority
                        .is_some_and(|ca| ca::is_issued_by(&certificate.der, &ca.certificate_der))
            }),
        };
        self.inner
            .leader_members()
            .into_iter()
            .filter(|seen| seen.live)
            .filter(|seen| {
                let said = seen.report.as_ref().map(|report| &report.trust);
                let taken = state
                    .member(seen.node_id)
                    .zip(said)
                    .is_none_or(|(member, said)| has_taken(member, said));
                // A member that has said nothing yet has taken nothing.
                said.is_none() || !taken
            })
            .map(|seen| seen.node_id)
            .collect()
    }

    /// `command` with its secrets sealed, once there is a data key.
    pub(super) fn sealed(&self, mut command: Command) -> Result<Command, SealError> {
        let state = self.state();
        let Some(key) = state.data_key() else {
            return Ok(command);
        };
        let secret = match &mut command {
            Command::AddSigningKey(SigningKey { key_pkcs8, .. }) => key_pkcs8,
            Command::Trust(TrustChange::StartCaRotation {
                next: Authority { key_pkcs8, .. },
            }) => key_pkcs8,
            Command::Trust(TrustChange::PutBootstrapSecret { secret, .. }) => secret,
            _ => return Ok(command),
        };
        if let Secret::Plain(bytes) = &*secret {
            let open = self.inner.config.keyring.data_key(key)?;
            *secret = keyring::seal(bytes, key.epoch, &open)?;
        }
        Ok(command)
    }
}

/// Every secret of `state` under a new data key for `readers`.
fn seal_anew(state: &State, readers: &BTreeSet<NodeId>) -> Result<TrustChange, StepError> {
    let epoch = state.data_key().map_or(1, |key| key.epoch + 1);
    let open = keyring::generate_data_key()?;
    let again = |secret: &Secret| -> Result<Secret, SealError> {
        keyring::seal(&state.open(secret)?, epoch, &open)
    };
    let authority = |authority: Option<&Authority>| {
        authority
            .map(|authority| again(&authority.key_pkcs8))
            .transpose()
    };
    let wraps = readers.iter().filter_map(|id| {
        let public = state.sealing_key(*id)?;
        Some(keyring::wrap(&open, epoch, public).map(|wrapped| (*id, wrapped)))
    });
    let signing_keys = state.signing_keys().map(|record| {
        let kid = record.key.kid.clone();
        again(&record.key.key_pkcs8).map(|secret| (kid, secret))
    });
    let rotation = state.ca_rotation();
    let missing = || SealError::NotShared;
    Ok(TrustChange::Seal(Box::new(Sealing {
        key: DataKey {
            epoch,
            wraps: wraps.collect::<Result<_, _>>()?,
        },
        of: state.secrets_digest(),
        cluster_ca: authority(state.cluster_ca())?.ok_or_else(missing)?,
        https_ca: authority(state.https_ca())?.ok_or_else(missing)?,
        other_ca: authority(rotation.map(|rotation| &rotation.other))?,
        signing_keys: signing_keys.collect::<Result<_, _>>()?,
        bootstrap: state
            .bootstrap_secret()
            .map(|bootstrap| again(&bootstrap.secret))
            .transpose()?,
    })))
}

#[cfg(test)]
mod scenes;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    #[test]
    fn certificates_are_renewed_between_a_half_and_four_fifths_of_their_life() {
        let issued_ms = 1_000 * DAY_MS;
        let mut days = BTreeSet::new();
        for serial in 0..=255_u8 {
            let certificate = Certificate {
                der: Vec::new(),
                serial: vec![serial],
                not_before_ms: issued_ms - DAY_MS,
                not_after_ms: issued_ms + 30 * DAY_MS,
            };
            let due_on = (0..60).find(|day| is_due(&certificate, issued_ms + day * DAY_MS));
            let due_on = due_on.expect("some day");
            assert!((15..=24).contains(&due_on), "{due_on}");
            days.insert(due_on);
            // Long past it, and by a clock that is decades behind.
            assert!(is_due(&certificate, issued_ms + 400 * DAY_MS));
            assert!(is_due(&certificate, 0));
        }
        assert!(days.len() > 5, "they are spread: {days:?}");
    }
}
