//! Mutual TLS 1.3 between members, judged by the replicated membership.
//!
//! A peer is who it says when its key is the one pinned for its id, the id is the one that was dialled, and it has not
//! been removed. So removal is revocation, at once and for connections that are open (no session is ever resumed), while
//! the *dates* and the *issuer* of a certificate decide nothing: an expired certificate of a current member, or one of
//! the CA before a rotation that it slept through, raises an alert and is renewed, and a cluster whose clocks are wrong
//! still works. Whom the pins do not name yet must show an unbroken chain of [vouchers](crate::voucher) that begins at a
//! pinned key; such a peer is remembered until the membership is known.
//!
//! The client names whom it wants in the server name, `<node>.<lineage>.<cluster>.neuwerk`; a server completes no
//! handshake for any other name than its own.

mod connections;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::identity::Identity;
use crate::state::MAX_MEMBERS;
use crate::voucher;

use connections::Connections;
pub use connections::{Admission, PeerStream};
pub use verify::denied;

/// ALPN of steady traffic between members.
pub const ALPN_CLUSTER: &[u8] = b"neuwerk/1";

/// Stands for whichever member answers, where a server name has a member's id.
const ANY: &str = "any";

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate or its key cannot be used.
    #[error("the node's certificate and key cannot be used for TLS")]
    Certificate(#[source] rustls::Error),
    /// A CA certificate cannot be used.
    #[error("a CA certificate of the cluster cannot be used")]
    Authority(#[source] rustls::Error),
}

/// Why a peer is not let in. Shown to this node's operator, never to the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The certificate cannot be read.
    #[error("its certificate cannot be read")]
    Unreadable,
    /// The certificate names no member of any cluster, or one of another.
    #[error("its certificate is not of this cluster")]
    ForeignCluster,
    /// Another member answered at the address that was dialled.
    #[error("{found} answered where {dialled} was dialled")]
    NotDialled {
        /// Whom we wanted.
        dialled: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// A node shows this node's own identity: a copy of this machine is running.
    #[error("it has the identity of this node: a cloned machine is running")]
    Myself,
    /// No member has this id.
    #[error("{0} is not a member")]
    Unknown(NodeId),
    /// The member was removed.
    #[error("{0} was removed from the cluster")]
    Removed(NodeId),
    /// A member that was removed, as far as its handshake still tells.
    #[error("it was removed from the cluster")]
    Revoked,
    /// The key is not the one that the membership pins.
    #[error("the key is not the one that {0} joined with")]
    WrongKey(NodeId),
}

/// The membership as TLS sees it.
#[derive(Debug, Clone)]
pub struct Pins {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its lineage.
    pub lineage: Lineage,
    /// Every current member, with the SHA-256 of its SubjectPublicKeyInfo.
    pub members: BTreeMap<NodeId, Digest>,
    /// Members that were removed.
    pub removed: BTreeSet<NodeId>,
    /// The cluster CAs that are trusted.
    pub authorities: Vec<CertificateDer<'static>>,
}

/// Pins with what is derived from them.
#[derive(Debug)]
struct Judge {
    pins: Pins,
    roots: RootCertStore,
}

/// Whom a handshake was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialled {
    /// This member.
    Member(NodeId),
    /// Whichever member is there.
    Any,
    /// Nobody: the peer has dialled this node.
    Nobody,
}

/// A peer that has been let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    node_id: NodeId,
    /// SHA-256 of its SubjectPublicKeyInfo.
    spki: Digest,
    /// The pinned member whose word is taken for it; none if it is pinned itself.
    vouched_by: Option<NodeId>,
    /// Whether a CA that is trusted issued the certificate, and its dates include now.
    dated: bool,
}

/// Counts of what operators should know of.
#[derive(Debug, Default)]
pub struct Alerts {
    /// Handshakes with a current member whose certificate has expired, is not valid yet by this clock, or is of a CA
    /// that is not trusted (any more).
    pub out_of_date: AtomicU64,
    /// Handshakes that were refused, both ways.
    pub denied: AtomicU64,
    /// Handshakes with a node that shows this node's own identity.
    pub duplicate_identity: AtomicU64,
    /// Handshakes meant for another node, cluster or lineage: a stale address, or a member that was set up anew.
    pub misdirected: AtomicU64,
    /// Members that proved to be there, under another lineage: the cluster was recovered without this node.
    pub other_lineage: AtomicU64,
}

/// Members whose certificates are out of date.
#[derive(Debug, Default)]
struct Dates {
    /// By the last certificate that each has shown.
    wrong: BTreeSet<NodeId>,
    /// Whom nobody has heard of yet.
    untold: BTreeSet<NodeId>,
}

/// This node's identity towards its peers, whom it trusts, and its open connections.
///
/// Shared by the transport, which uses the two configurations, and by whoever follows the membership, who calls
/// [`Trust::set_pins`] after every change of it.
#[derive(Debug)]
pub struct Trust {
    node_id: NodeId,
    judge: ArcSwap<Judge>,
    certified: ArcSwap<CertifiedKey>,
    /// Keys that pinned members vouch for and the pins do not name: of members that joined while this node was off.
    vouched: Mutex<BTreeMap<NodeId, Digest>>,
    /// Members at whose address somebody else answers, by the address.
    strangers: Mutex<BTreeMap<NodeId, String>>,
    connections: Arc<Connections>,
    alerts: Alerts,
    dates: Mutex<Dates>,
    /// A member has said that this node was removed.
    removed: AtomicBool,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    /// Trusts the members in `pins`, and shows `identity` to them.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(identity: &Identity, pins: Pins) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certified = certified(&provider, &identity.certificate, identity.key.pkcs8())?;
        Ok(Arc::new(Trust {
            node_id: identity.node_id,
            judge: ArcSwap::from_pointee(Judge::new(pins)?),
            certified: ArcSwap::from_pointee(certified),
            vouched: Mutex::default(),
            strangers: Mutex::default(),
            connections: Arc::default(),
            alerts: Alerts::default(),
            dates: Mutex::default(),
            removed: AtomicBool::new(false),
            provider,
        }))
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// What operators should know of.
    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// The pins in force.
    pub fn pins(&self) -> Pins {
        self.judge.load().pins.clone()
    }

    /// Replaces the pins. Open connections of those who are no members any more, or have another key, are closed.
    ///
    /// # Errors
    /// [`TlsError::Authority`]: the old pins stay in force.
    pub fn set_pins(&self, pins: Pins) -> Result<(), TlsError> {
        let judge = Arc::new(Judge::new(pins)?);
        // A copy, for whoever is admitted looks there while the connections are locked.
        let vouched = {
            let mut vouched = self.vouched();
            vouched.retain(|node_id, _| {
                let pins = &judge.pins;
                !pins.members.contains_key(node_id) && !pins.removed.contains(node_id)
            });
            vouched.clone()
        };
        self.connections.retain(
            || self.judge.store(Arc::clone(&judge)),
            |node_id, spki| {
                judge.pins.members.get(&node_id).or(vouched.get(&node_id)) == Some(&spki)
            },
        );
        Ok(())
    }

    /// Shows a new certificate from now on: a renewal, for the same key or another one, with the vouchers for it.
    /// Connections that are open notice nothing.
    ///
    /// # Errors
    /// [`TlsError::Certificate`]: the old one stays in use.
    pub fn set_certificate(
        &self,
        certificate: &CertificateDer<'static>,
        pkcs8: &[u8],
        vouchers: &[CertificateDer<'static>],
    ) -> Result<(), TlsError> {
        let mut certified = certified(&self.provider, certificate, pkcs8)?;
        certified.cert.extend_from_slice(vouchers);
        self.certified.store(Arc::new(certified));
        Ok(())
    }

    fn vouched(&self) -> MutexGuard<'_, BTreeMap<NodeId, Digest>> {
        // Nothing in there can panic half-way.
        self.vouched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a client names `node_id` to it.
    pub fn server_name(&self, node_id: NodeId) -> ServerName<'static> {
        let judge = self.judge.load();
        let name = format!(
            "{node_id}.{}.{}.neuwerk",
            judge.pins.lineage, judge.pins.cluster_id
        );
        ServerName::DnsName(DnsName::try_from(name).expect("hexadecimal labels are DNS names"))
    }

    /// How a client asks `node_id` whether it is there under whatever lineage. No connection comes of it.
    pub(crate) fn any_lineage_name(&self, node_id: NodeId) -> ServerName<'static> {
        let name = format!(
            "{node_id}.any.{}.neuwerk",
            self.judge.load().pins.cluster_id
        );
        ServerName::DnsName(DnsName::try_from(name).expect("hexadecimal labels are DNS names"))
    }

    /// How a client names any member of its cluster and lineage.
    pub(crate) fn any_name(&self) -> ServerName<'static> {
        let judge = self.judge.load();
        let name = format!(
            "{ANY}.{}.{}.neuwerk",
            judge.pins.lineage, judge.pins.cluster_id
        );
        ServerName::DnsName(DnsName::try_from(name).expect("hexadecimal labels are DNS names"))
    }

    /// Whether a client that `wanted` a name means this node in its cluster and lineage: by its id, or as any member.
    pub(crate) fn is_meant(&self, wanted: Option<&str>) -> bool {
        [self.server_name(self.node_id), self.any_name()]
            .iter()
            .any(|name| wanted == Some(name.to_str().as_ref()))
    }

    /// Whether a member has said that this node was removed from the cluster. It proved its own key in the handshake
    /// in which it said so, so that nobody else can.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// A member let this node in, or refused it because it was removed.
    pub(crate) fn note_removed(&self, removed: bool) {
        if self.removed.swap(removed, Ordering::Relaxed) != removed && removed {
            tracing::error!(
                "this node was removed from the cluster; the policy stays in force. To make it a new member: \
                 neuwerk cluster rejoin"
            );
        }
    }

    /// Configuration for connections to members, dialled by [`Trust::server_name`].
    pub fn client_config(self: &Arc<Self>) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider supports TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Verifier(Arc::clone(self))))
            .with_client_cert_resolver(Arc::new(verify::Shown(Arc::clone(self))));
        config.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// Configuration for connections from members.
    pub fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider supports TLS 1.3")
            .with_client_cert_verifier(Arc::new(verify::Verifier(Arc::clone(self))))
            .with_cert_resolver(Arc::new(verify::Shown(Arc::clone(self))));
        config.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// Registers a connection whose handshake is complete, so that it is closed when its peer is removed, or when
    /// `within` is cancelled.
    ///
    /// # Errors
    /// [`Denied`] when the membership has changed since the handshake.
    pub fn admit(
        &self,
        certificate: &CertificateDer<'_>,
        within: &CancellationToken,
    ) -> Result<Admission, Denied> {
        let spki = crate::ca::spki_of(certificate).ok_or(Denied::Unreadable)?;
        let (_, node_id) = crate::ca::member_of(certificate).ok_or(Denied::ForeignCluster)?;
        Connections::admit(&self.connections, (node_id, spki), within, || {
            self.known(node_id, spki)
        })
    }

    /// How many connections with `node_id` are open.
    pub fn connections(&self, node_id: NodeId) -> usize {
        self.connections.count(node_id)
    }

    /// Counts a member whose certificate is out of date, and says so once until it has another.
    fn note_dates(&self, peer: &Peer) {
        let mut dates = self.dates.lock().unwrap_or_else(PoisonError::into_inner);
        if peer.dated {
            dates.wrong.remove(&peer.node_id);
            return;
        }
        self.alerts.out_of_date.fetch_add(1, Ordering::Relaxed);
        if dates.wrong.insert(peer.node_id) {
            dates.untold.insert(peer.node_id);
            tracing::warn!(
                node = %peer.node_id,
                "a member's certificate is out of date: check both clocks; it will be renewed"
            );
        }
    }

    /// The members that have shown a certificate which is out of date since this was last asked, also those that have
    /// shown another by now. Each is in it again only after it has.
    pub fn take_out_of_date(&self) -> BTreeSet<NodeId> {
        let mut dates = self.dates.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut dates.untold)
    }

    /// A handshake was meant for another node, cluster or lineage than the one that answered.
    pub(crate) fn note_misdirected(&self) {
        self.alerts.misdirected.fetch_add(1, Ordering::Relaxed);
    }

    /// A member proved to be there, under another lineage.
    pub(crate) fn note_other_lineage(&self) {
        self.alerts.other_lineage.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody answers where `node_id` was dialled, who is not that member of this cluster.
    pub(crate) fn note_stranger(&self, node_id: NodeId, address: &str) {
        self.note_misdirected();
        self.strangers().insert(node_id, address.to_owned());
    }

    /// The members at whose address somebody else has answered since this was last asked.
    pub fn take_strangers(&self) -> BTreeMap<NodeId, String> {
        std::mem::take(&mut self.strangers())
    }

    fn strangers(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        // Nothing in there can panic half-way.
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `spki` is the key of the member `node_id`, by the pins or by a voucher.
    fn known(&self, node_id: NodeId, spki: Digest) -> Result<(), Denied> {
        let pinned = self.judge.load().pinned(node_id, spki);
        match pinned {
            Err(Denied::Unknown(_)) if self.vouched().get(&node_id) == Some(&spki) => Ok(()),
            pinned => pinned,
        }
    }

    /// Keeps in mind a peer that was vouched for.
    fn remember(&self, peer: Peer) -> Result<Peer, Denied> {
        let Some(by) = peer.vouched_by else {
            return Ok(peer);
        };
        let mut vouched = self.vouched();
        if vouched.len() >= MAX_MEMBERS && !vouched.contains_key(&peer.node_id) {
            return Err(Denied::Unknown(peer.node_id));
        }
        if vouched.insert(peer.node_id, peer.spki) != Some(peer.spki) {
            tracing::info!(
                node = %peer.node_id, %by,
                "a member that joined while this node was off is vouched for by one that it knows"
            );
        }
        Ok(peer)
    }

    /// The rules, with what `shown` behind the certificate proves about a peer that the pins do not name.
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        dialled: Dialled,
        now: UnixTime,
    ) -> Result<(), Denied> {
        let judged = self
            .judge
            .load()
            .judge(self.node_id, certificate, shown, dialled, now)
            .and_then(|peer| self.remember(peer));
        match &judged {
            Ok(peer) => self.note_dates(peer),
            // Looking for members, a node may find itself.
            Err(Denied::Myself) if dialled == Dialled::Any => {}
            Err(denied) => {
                self.alerts.denied.fetch_add(1, Ordering::Relaxed);
                if *denied == Denied::Myself {
                    self.alerts
                        .duplicate_identity
                        .fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        judged.map(drop)
    }
}

impl Judge {
    fn new(pins: Pins) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in &pins.authorities {
            roots.add(authority.clone()).map_err(TlsError::Authority)?;
        }
        Ok(Judge { pins, roots })
    }

    /// Whether `spki` is the key that `node_id` joined with.
    fn pinned(&self, node_id: NodeId, spki: Digest) -> Result<(), Denied> {
        match self.pins.members.get(&node_id) {
            Some(pinned) if *pinned == spki => Ok(()),
            Some(_) => Err(Denied::WrongKey(node_id)),
            None if self.pins.removed.contains(&node_id) => Err(Denied::Removed(node_id)),
            None => Err(Denied::Unknown(node_id)),
        }
    }

    /// The rules, in the order in which they tell an operator most.
    fn judge(
        &self,
        me: NodeId,
        certificate: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        dialled: Dialled,
        now: UnixTime,
    ) -> Result<Peer, Denied> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| Denied::Unreadable)?;
        let spki = Digest::of(parsed.public_key().raw);
        let (cluster_id, node_id) =
            crate::ca::member_of(certificate).ok_or(Denied::ForeignCluster)?;
        if cluster_id != self.pins.cluster_id {
            return Err(Denied::ForeignCluster);
        }
        if node_id == me {
            return Err(Denied::Myself);
        }
        match dialled {
            Dialled::Member(dialled) if dialled != node_id => {
                return Err(Denied::NotDialled {
                    dialled,
                    found: node_id,
                });
            }
            _ => {}
        }
        let vouched_by = match self.pinned(node_id, spki) {
            Err(unknown @ Denied::Unknown(_)) => {
                Some(voucher::vouched_for(&self.pins, node_id, spki, shown).ok_or(unknown)?)
            }
            pinned => {
                pinned?;
                None
            }
        };
        let issued = verify::issued_by(certificate, &self.roots, now);
        Ok(Peer {
            node_id,
            spki,
            vouched_by,
            dated: issued.is_ok(),
        })
    }
}

fn certified(
    provider: &CryptoProvider,
    certificate: &CertificateDer<'static>,
    pkcs8: &[u8],
) -> Result<CertifiedKey, TlsError> {
    let key = PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into();
    CertifiedKey::from_der(vec![certificate.clone()], key, provider)
        .and_then(|certified| certified.keys_match().map(|()| certified))
        .map_err(TlsError::Certificate)
}

#[cfg(test)]
pub(crate) mod tests;
