//! Keeps what this node trusts and shows as the state says: pins, authorities, its own certificate and the vouchers for
//! it, in TLS and in the files that outlive a restart.
//!
//! Certificates are swapped under the listeners: connections that are open notice nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::command::EventKind;
use cluster::identity::{self, Identity, Layout};
use cluster::meta::Meta;
use cluster::peers::Peers;
use cluster::tls::Trust;
use cluster::{Digest, Node, NodeId, State, TrustReport};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it looks for what no change of the state tells.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The same stranger is told of again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(60 * 60);

/// Follows the membership for one life of the control plane.
pub(super) struct Follower {
    pub(super) trust: Arc<Trust>,
    pub(super) identity: Identity,
    pub(super) peers: Peers,
    pub(super) meta: Meta,
    pub(super) layout: Layout,
    /// What the leader is told of it.
    pub(super) told: watch::Sender<TrustReport>,
    /// Members at whose address somebody else answers, and when that was told.
    pub(super) told_of: BTreeMap<NodeId, tokio::time::Instant>,
}

impl Follower {
    /// Follows until `life` or the node ends.
    pub(super) async fn run(mut self, node: Node, life: CancellationToken) {
        // Most changes of the state are none of the members', and come by the thousand.
        let mut state = node.watch_changes(|old, new| !old.has_same_members(new));
        let sealing_key = match identity::sealing_key(&self.layout) {
            Ok(key) => key.public().to_vec(),
            Err(error) => {
                tracing::error!(%error, "the cluster's secrets cannot be shared with this node");
                Vec::new()
            }
        };
        let mut vouchers = Vec::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Arc::clone(&state.borrow_and_update());
            self.follow_members(&now);
            let shown = now.vouchers_of(self.identity.node_id);
            if self.follow_certificate(&now) | (shown != vouchers) {
                self.show(&shown);
                vouchers = shown;
            }
            let report = TrustReport {
                sealing_key: sealing_key.clone(),
                authorities: self
                    .identity
                    .authorities
                    .iter()
                    .map(|authority| Digest::of(authority))
                    .collect(),
                certificate: Some(Digest::of(&self.identity.certificate)),
            };
            self.told.send_if_modified(|told| {
                let news = *told != report;
                *told = report;
                news
            });
            tokio::select! {
                () = life.cancelled() => return,
                changed = state.changed() => if changed.is_err() { return },
                _ = look.tick() => {
                    self.tell_of_strangers(&node);
                    self.tell_of_dates(&node);
                }
            }
        }
    }

    /// Alerts when somebody else answers at a member's address: a machine that was set up anew, most likely.
    fn tell_of_strangers(&mut self, node: &Node) {
        let now = tokio::time::Instant::now();
        for (node_id, address) in self.trust.take_strangers() {
            let told = self.told_of.get(&node_id);
            if told.is_some_and(|at| now.duration_since(*at) < TELL_AGAIN) {
                continue;
            }
            self.told_of.insert(node_id, now);
            tracing::error!(
                %node_id, address,
                "a node of another cluster answers at a member's address: if that machine was set up anew, remove the \
                 member and let the machine join"
            );
            let detail = format!(
                "somebody else answers where {node_id} was: a node of another cluster or lineage"
            );
            node.note(EventKind::ForeignCluster, address, detail);
        }
    }

    /// Puts on record whose certificate is out of date: that member has the wrong time, or was off for long.
    fn tell_of_dates(&self, node: &Node) {
        if node.state().feature_level() < EventKind::OutOfDate.level() {
            return;
        }
        for node_id in self.trust.take_out_of_date() {
            let detail = "its certificate is out of date: check both clocks; it will be renewed";
            node.note(EventKind::OutOfDate, node_id.to_string(), detail.into());
        }
    }

    fn follow_members(&mut self, now: &State) {
        if let Err(error) = self.peers.follow(now) {
            tracing::warn!(%error, "the list of known members cannot be written");
        }
        if self.meta.note_members(now)
            && let Err(error) = self.meta.store(&self.layout.data_dir)
        {
            tracing::warn!(%error, "it cannot be written down that there are several members");
        }
        if let Err(error) = self.trust.set_pins(self.peers.pins(now)) {
            tracing::error!(%error, "the trusted keys stay as they were");
        }
    }

    /// Takes over the certificate that the leader has issued, and the authorities; true when either is new.
    fn follow_certificate(&mut self, now: &State) -> bool {
        let own = now.member(self.identity.node_id);
        let Some(certificate) = own.and_then(|own| own.certificate.as_ref()) else {
            return false;
        };
        let certificate = CertificateDer::from(certificate.der.clone());
        let authorities = now
            .cluster_cas()
            .map(|authority| authority.certificate_der.clone().into())
            .collect();
        match self.identity.renew(&self.layout, certificate, authorities) {
            Ok(news) => news,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "this node's certificate is in use but cannot be written"
                );
                true
            }
        }
    }

    fn show(&self, vouchers: &[CertificateDer<'static>]) {
        let Identity {
            certificate, key, ..
        } = &self.identity;
        match self
            .trust
            .set_certificate(certificate, key.pkcs8(), vouchers)
        {
            Ok(()) => tracing::debug!("another certificate is shown to members"),
            Err(error) => tracing::error!(%error, "the old certificate stays in use"),
        }
    }
}
