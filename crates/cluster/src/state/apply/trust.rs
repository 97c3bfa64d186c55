//! The rules of trust: who is vouched for, who reads secrets, which CA issues, who waits for approval.

use std::collections::BTreeSet;

use serde_bytes::ByteBuf;

use super::*;
use crate::command::{
    DataKey, FirstKey, JoinApproval, Sealing, TrustChange, TrustRefusal, Wrapped,
};
use crate::command::{Secret, Voucher};

/// The level that all of this came with: what happens by itself must not happen before, for older versions would not do
/// it, and states would differ.
const LEVEL: u32 = 2;

impl Trust {
    /// Of a cluster whose first entry came with sealed secrets.
    pub(super) fn sealed(seed: NodeId, first: FirstKey) -> Self {
        let FirstKey {
            sealing_key,
            data_key,
        } = first;
        Trust {
            sealing_keys: [(seed, sealing_key)].into(),
            data_key: Some(data_key),
            ..Trust::default()
        }
    }
}

fn refused<T>(refusal: TrustRefusal) -> Result<T, Refusal> {
    Err(Refusal::Trust(refusal))
}

impl State {
    pub(super) fn change_trust(
        &mut self,
        change: TrustChange,
        context: &Context,
    ) -> Result<Response, Refusal> {
        match change {
            TrustChange::Vouch { node_id, voucher } => self.keep_voucher(node_id, voucher),
            TrustChange::Approve { node_id } => self.approve(node_id, context),
            TrustChange::SetSealingKey { node_id, public } => self.set_sealing_key(node_id, public),
            TrustChange::Seal(sealing) => self.seal(*sealing, context),
            TrustChange::Wrap {
                node_id,
                epoch,
                wrapped,
            } => self.wrap(node_id, epoch, wrapped),
            TrustChange::StartCaRotation { next } => self.start_ca_rotation(next, context),
            TrustChange::IssueFromNextCa => self.issue_from_next_ca(context),
            TrustChange::FinishCaRotation => self.finish_ca_rotation(context),
            TrustChange::AbortCaRotation => self.abort_ca_rotation(context),
            TrustChange::PutBootstrapSecret { kid, secret } => {
                self.put_bootstrap_secret(kid, secret, context)
            }
        }
    }

    fn trust_mut(&mut self) -> &mut Trust {
        &mut self.root_mut().trust
    }

    fn check_member(&self, node_id: NodeId) -> Result<(), Refusal> {
        if self.removed.contains_key(&node_id) {
            return Err(Refusal::MemberRemoved);
        }
        match self.members.contains_key(&node_id) {
            true => Ok(()),
            false => Err(Refusal::NotFound {
                record: Record::Member,
            }),
        }
    }

    fn keep_voucher(&mut self, node_id: NodeId, voucher: Voucher) -> Result<Response, Refusal> {
        self.check_member(node_id)?;
        self.check_member(voucher.by)?;
        // The first word stands: whoever gave it was a member when nobody knew the other.
        self.trust_mut().vouchers.entry(node_id).or_insert(voucher);
        Ok(Response::Done)
    }

    /// Called for every new reservation.
    pub(super) fn hold_for_approval(&mut self, node_id: NodeId) {
        let manual = self
            .settings()
            .is_some_and(|(settings, _)| settings.join_approval == JoinApproval::Manual);
        if manual && self.feature_level() >= LEVEL {
            self.trust_mut().waiting.insert(node_id);
        }
    }

    pub(super) fn check_approved(&self, node_id: NodeId) -> Result<(), Refusal> {
        match self.waits_for_approval(node_id) {
            true => refused(TrustRefusal::NotApproved),
            false => Ok(()),
        }
    }

    fn approve(&mut self, node_id: NodeId, context: &Context) -> Result<Response, Refusal> {
        self.check_member(node_id)?;
        if self.trust_mut().waiting.remove(&node_id) {
            let action = Action::Changed(Record::Member);
            self.record_with(action, node_id.to_string(), "approved".into(), context);
        }
        Ok(Response::Done)
    }

    fn set_sealing_key(&mut self, node_id: NodeId, public: ByteBuf) -> Result<Response, Refusal> {
        self.check_member(node_id)?;
        check_len_bytes(Record::Member, &public, 32)?;
        let trust = self.trust_mut();
        let before = trust.sealing_keys.insert(node_id, public.clone());
        if before.is_some_and(|before| before != public)
            && let Some(key) = &mut trust.data_key
        {
            // What was wrapped for the old one is of no use to anybody.
            key.wraps.remove(&node_id);
        }
        Ok(Response::Done)
    }

    fn seal(&mut self, sealing: Sealing, context: &Context) -> Result<Response, Refusal> {
        let epoch = self.data_key().map_or(1, |key| key.epoch + 1);
        let readers: BTreeSet<NodeId> = self.readers().collect();
        let kids = self.keys.keys().collect::<BTreeSet<_>>();
        let fits = sealing.key.epoch == epoch
            && sealing.of == self.secrets_digest()
            && !readers.is_empty()
            && sealing.key.wraps.keys().copied().collect::<BTreeSet<_>>() == readers
            && sealing.signing_keys.keys().collect::<BTreeSet<_>>() == kids
            && sealing.other_ca.is_some() == self.ca_rotation().is_some()
            && sealing.bootstrap.is_some() == self.bootstrap_secret().is_some();
        if !fits {
            return refused(TrustRefusal::Stale);
        }
        let Sealing {
            key,
            of: _,
            cluster_ca,
            https_ca,
            other_ca,
            signing_keys,
            bootstrap,
        } = sealing;
        for (kid, secret) in signing_keys {
            if let Some(record) = self.keys.get_mut(&kid) {
                Arc::make_mut(record).key.key_pkcs8 = secret;
            }
        }
        let root = self.root_mut();
        root.cluster_ca.key_pkcs8 = cluster_ca;
        root.https_ca.key_pkcs8 = https_ca;
        root.trust.data_key = Some(key);
        if let (Some(rotation), Some(secret)) = (&mut root.trust.rotation, other_ca) {
            rotation.other.key_pkcs8 = secret;
        }
        if let (Some(kept), Some(secret)) = (&mut root.trust.bootstrap, bootstrap) {
            kept.secret = secret;
        }
        let detail = format!("secrets sealed under data key {epoch}");
        let action = Action::Changed(Record::Cluster);
        self.record_with(action, "data-key".into(), detail, context);
        Ok(Response::Done)
    }

    fn wrap(&mut self, node_id: NodeId, epoch: u64, wrapped: Wrapped) -> Result<Response, Refusal> {
        self.check_member(node_id)?;
        let reads = self.readers().any(|id| id == node_id);
        match &mut self.trust_mut().data_key {
            Some(DataKey {
                epoch: current,
                wraps,
            }) if *current == epoch && reads => {
                wraps.insert(node_id, wrapped);
                Ok(Response::Done)
            }
            _ => refused(TrustRefusal::Stale),
        }
    }

    fn start_ca_rotation(
        &mut self,
        next: Authority,
        context: &Context,
    ) -> Result<Response, Refusal> {
        if self.ca_rotation().is_some() {
            return refused(TrustRefusal::RotationUnderWay);
        }
        self.check_sealed(&next.key_pkcs8)?;
        self.trust_mut().rotation = Some(CaRotation {
            other: next,
            phase: CaPhase::Trusting,
            aborting: false,
            started_ms: context.time_ms,
        });
        self.record_rotation("both CAs are trusted", context);
        Ok(Response::Done)
    }

    fn issue_from_next_ca(&mut self, context: &Context) -> Result<Response, Refusal> {
        self.swap_ca(CaPhase::Trusting, context)?;
        self.record_rotation("the new CA issues", context);
        Ok(Response::Done)
    }

    /// The CA that issues and the one that is only trusted change places.
    fn swap_ca(&mut self, from: CaPhase, context: &Context) -> Result<(), Refusal> {
        let root = self.root_mut();
        match &mut root.trust.rotation {
            Some(rotation) if rotation.phase == from => {
                std::mem::swap(&mut root.cluster_ca, &mut rotation.other);
                rotation.phase = CaPhase::Issuing;
                rotation.started_ms = context.time_ms;
                Ok(())
            }
            _ => refused(TrustRefusal::NoRotation),
        }
    }

    fn finish_ca_rotation(&mut self, context: &Context) -> Result<Response, Refusal> {
        let finished = self
            .trust_mut()
            .rotation
            .take_if(|rotation| rotation.phase == CaPhase::Issuing);
        match finished {
            Some(rotation) if rotation.aborting => self.record_rotation("aborted", context),
            Some(_) => self.record_rotation("the old CA is not trusted any more", context),
            None => return refused(TrustRefusal::NoRotation),
        }
        Ok(Response::Done)
    }

    fn abort_ca_rotation(&mut self, context: &Context) -> Result<Response, Refusal> {
        match self
            .ca_rotation()
            .map(|rotation| (rotation.phase, rotation.aborting))
        {
            None => return refused(TrustRefusal::NoRotation),
            // Nobody has a certificate of the new one yet.
            Some((CaPhase::Trusting, _)) => {
                self.trust_mut().rotation = None;
                self.record_rotation("aborted", context);
            }
            Some((CaPhase::Issuing, true)) => {}
            Some((CaPhase::Issuing, false)) => {
                self.swap_ca(CaPhase::Issuing, context)?;
                if let Some(rotation) = &mut self.trust_mut().rotation {
                    rotation.aborting = true;
                }
                self.record_rotation("aborting: the old CA issues again", context);
            }
        }
        Ok(Response::Done)
    }

    fn record_rotation(&mut self, what: &str, context: &Context) {
        let action = Action::Changed(Record::Cluster);
        self.record_with(action, "cluster-ca".into(), what.into(), context);
    }

    fn put_bootstrap_secret(
        &mut self,
        kid: String,
        secret: Secret,
        context: &Context,
    ) -> Result<Response, Refusal> {
        check_len(Record::Settings, &kid, 128)?;
        self.check_sealed(&secret)?;
        let detail = format!("bootstrap secret {kid}");
        self.trust_mut().bootstrap = Some(BootstrapSecret {
            kid,
            secret,
            since_ms: context.time_ms,
        });
        let action = Action::Changed(Record::Settings);
        self.record_with(action, "bootstrap-secret".into(), detail, context);
        Ok(Response::Done)
    }

    /// A secret comes sealed under the data key in force, or in clear while there is none.
    pub(super) fn check_sealed(&self, secret: &Secret) -> Result<(), Refusal> {
        match secret.epoch() == self.data_key().map(|key| key.epoch) {
            true => Ok(()),
            false => refused(TrustRefusal::Stale),
        }
    }

    /// What is kept of a former member: nothing but the links in the chains of those who stay.
    pub(super) fn forget_trust_in(&mut self, node_id: NodeId) {
        let mut needed = BTreeSet::new();
        for id in self.members.keys() {
            let mut of = *id;
            while needed.insert(of)
                && let Some(voucher) = self.voucher(of)
            {
                of = voucher.by;
            }
        }
        if self.root.as_ref().is_none_or(|root| root.trust.is_empty()) {
            return;
        }
        let trust = self.trust_mut();
        trust.vouchers.retain(|id, _| needed.contains(id));
        trust.sealing_keys.remove(&node_id);
        trust.waiting.remove(&node_id);
    }
}

fn check_len_bytes(record: Record, bytes: &[u8], limit_bytes: usize) -> Result<(), Refusal> {
    match bytes.len() == limit_bytes {
        true => Ok(()),
        false => Err(Refusal::TooLarge {
            record,
            limit_bytes: limit_bytes as u64,
        }),
    }
}

#[cfg(test)]
mod tests;
