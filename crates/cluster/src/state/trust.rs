//! What the members trust beyond their pins, and how their secrets are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use super::{Standing, State};
use crate::ca::{Ca, CaError};
use crate::command::{Authority, DataKey, Secret, SigningKey, Voucher};
use crate::id::{Digest, NodeId};
use crate::keyring::{Keyring, OpenKey, SealError};
use crate::voucher::MAX_LINKS;

/// How far a rotation of the cluster CA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaPhase {
    /// Both CAs are trusted, the old one issues.
    Trusting,
    /// Both CAs are trusted, the new one issues.
    Issuing,
}

/// A rotation of the cluster CA. While there is one, [`State::cluster_ca`] is the CA that issues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// The CA that is trusted and does not issue: the new one while `Trusting`, the old one while `Issuing`.
    pub other: Authority,
    /// How far it is.
    pub phase: CaPhase,
    /// It goes back to the CA that it began with.
    pub aborting: bool,
    /// Log time at which it began.
    pub started_ms: u64,
}

/// The bootstrap secret, once it was rotated. Before that it is only in the members' files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapSecret {
    /// Its key id: no other admits members.
    pub kid: String,
    /// The secret, text.
    pub secret: Secret,
    /// Log time at which it was made.
    pub since_ms: u64,
}

/// Everything of feature level 2 that the members trust and keep secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// By the member that they are for; of former members those that others' chains lead through.
    pub(super) vouchers: BTreeMap<NodeId, Voucher>,
    /// What secrets are wrapped for.
    pub(super) sealing_keys: BTreeMap<NodeId, ByteBuf>,
    /// Joiners that wait for an administrator.
    pub(super) waiting: BTreeSet<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data_key: Option<DataKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rotation: Option<CaRotation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bootstrap: Option<BootstrapSecret>,
}

impl Trust {
    pub(super) fn is_empty(&self) -> bool {
        *self == Trust::default()
    }
}

/// A node's keys beside the state, which they are no part of: states are equal whoever reads them.
#[derive(Debug, Clone, Default)]
pub(super) struct Reader(Option<Arc<Keyring>>);

impl PartialEq for Reader {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl State {
    /// The same state, whose secrets are read with `keyring`.
    pub(crate) fn read_with(mut self, keyring: Arc<Keyring>) -> Self {
        self.reader = Reader(Some(keyring));
        self
    }

    fn trust(&self) -> Option<&Trust> {
        self.root.as_ref().map(|root| &root.trust)
    }

    /// The bytes of a secret.
    ///
    /// # Errors
    /// [`SealError`]: this node cannot read it, or not yet.
    pub fn open(&self, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SealError> {
        match &self.reader.0 {
            Some(keyring) => keyring.open(secret, self.data_key()),
            None => Keyring::default().open(secret, None),
        }
    }

    /// An authority of this state, ready to issue.
    ///
    /// # Errors
    /// Its key cannot be read, or is not one.
    pub fn open_ca(&self, authority: &Authority) -> Result<Ca, CaError> {
        let key = self.open(&authority.key_pkcs8)?;
        Ca::from_parts(authority.certificate_der.clone().into(), key)
    }

    /// The data key in force, wrapped; none while secrets are in clear.
    pub fn data_key(&self) -> Option<&DataKey> {
        self.trust()?.data_key.as_ref()
    }

    /// The data key in force with its epoch, in the open; none while secrets are in clear.
    ///
    /// # Errors
    /// [`SealError`]: this node cannot open it, or not yet.
    pub(crate) fn open_data_key(&self) -> Result<Option<(u64, OpenKey)>, SealError> {
        let Some(key) = self.data_key() else {
            return Ok(None);
        };
        let keyring = self.reader.0.as_ref().ok_or(SealError::NotShared)?;
        Ok(Some((key.epoch, keyring.data_key(key)?)))
    }

    /// The public sealing key of a member.
    pub fn sealing_key(&self, node_id: NodeId) -> Option<&[u8]> {
        let key = self.trust()?.sealing_keys.get(&node_id)?;
        Some(key.as_slice())
    }

    /// Whether the member waits for an administrator to let it in.
    pub fn waits_for_approval(&self, node_id: NodeId) -> bool {
        self.trust()
            .is_some_and(|trust| trust.waiting.contains(&node_id))
    }

    /// The rotation of the cluster CA that is under way.
    pub fn ca_rotation(&self) -> Option<&CaRotation> {
        self.trust()?.rotation.as_ref()
    }

    /// Every cluster CA that is trusted, the one that issues first.
    pub fn cluster_cas(&self) -> impl Iterator<Item = &Authority> {
        let other = self.ca_rotation().map(|rotation| &rotation.other);
        self.cluster_ca().into_iter().chain(other)
    }

    /// The replicated bootstrap secret, once there is one.
    pub fn bootstrap_secret(&self) -> Option<&BootstrapSecret> {
        self.trust()?.bootstrap.as_ref()
    }

    /// The voucher for a member.
    pub fn voucher(&self, node_id: NodeId) -> Option<&Voucher> {
        self.trust()?.vouchers.get(&node_id)
    }

    /// Every voucher between `node_id` and members of old, nearest first, as TLS shows them.
    pub fn vouchers_of(&self, node_id: NodeId) -> Vec<CertificateDer<'static>> {
        let mut shown = Vec::new();
        let mut seen = BTreeSet::new();
        let mut of = node_id;
        while seen.len() < MAX_LINKS
            && seen.insert(of)
            && let Some(voucher) = self.voucher(of)
        {
            shown.push(voucher.certificate.to_vec().into());
            shown.push(voucher.signer.to_vec().into());
            of = voucher.by;
        }
        shown
    }

    /// Members that are to read secrets.
    pub(crate) fn readers(&self) -> impl Iterator<Item = NodeId> {
        self.members()
            .filter(|member| member.standing != Standing::Joining)
            .map(|member| member.node_id)
            .filter(|id| self.sealing_key(*id).is_some())
    }

    /// Every secret here, as it is kept.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let authorities = self.cluster_cas().chain(self.https_ca());
        authorities
            .map(|authority| &authority.key_pkcs8)
            .chain(self.keys.values().map(|record| {
                let SigningKey { key_pkcs8, .. } = &record.key;
                key_pkcs8
            }))
            .chain(self.bootstrap_secret().map(|bootstrap| &bootstrap.secret))
    }

    /// Tells whether any secret was changed, added or taken away.
    pub fn secrets_digest(&self) -> Digest {
        let encoded: Vec<Vec<u8>> = self
            .secrets()
            .map(|secret| {
                rmp_serde::to_vec_named(secret)
                    .expect("a secret has no value that MessagePack lacks")
            })
            .collect();
        Digest::of_parts(encoded.iter().map(Vec::as_slice))
    }
}
