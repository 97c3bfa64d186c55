//! Vouchers: how a node that was off recognises members that joined while it was.
//!
//! Peers are recognised by the keys that the replicated membership pins, so a node that missed a join would keep the new
//! member out for ever; if the members that it knows are gone, it would never find its way back, and its vote would be
//! lost. Therefore the leader that lets a member in also signs the newcomer's name and key with its own node key. Members
//! show these vouchers behind their certificate in every handshake, as far back as there are any, and a node accepts an
//! unknown member when an unbroken chain of them begins at a key that it pins. No authority's word is enough for that:
//! somebody who has stolen the CA's key, or who was removed, can add nobody; and a chain through a member that is known
//! to be removed is worth nothing.
//!
//! A voucher is an X.509 certificate, so that TLS carries it. Its dates mean nothing.

use rcgen::{CertificateParams, Issuer, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use serde_bytes::ByteBuf;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ca::{self, CaError};
use crate::command::Voucher;
use crate::id::{ClusterId, Digest, NodeId};
use crate::tls::Pins;

/// Longest chain that is shown or looked at; TLS carries 64 KiB of certificates, a link is below 1.5 KiB.
pub const MAX_LINKS: usize = 24;

/// Vouches, as `by` with its node key, for the key in `certificate`, which must name a member of `cluster_id`.
///
/// # Errors
/// [`CaError`] when a key or the certificate cannot be used.
pub fn vouch(
    (by, identity_pkcs8, own_certificate): (NodeId, &[u8], &[u8]),
    cluster_id: ClusterId,
    (node_id, certificate): (NodeId, &[u8]),
) -> Result<Voucher, CaError> {
    let unreadable = || CaError::Authority(rcgen::Error::CouldNotParseCertificate);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    let key =
        SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(CaError::Authority)?;
    let signer = ca::key_pair(identity_pkcs8).map_err(CaError::Authority)?;
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = ca::named(&by.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = ca::named(&node_id.to_string());
    params.subject_alt_names = vec![ca::node_san(cluster_id, node_id)?];
    params.serial_number = Some(ca::random_serial()?);
    let issued = params
        .signed_by(&key, &Issuer::from_params(&issuer, signer))
        .map_err(CaError::Issue)?;
    Ok(Voucher {
        by,
        certificate: ByteBuf::from(issued.der().to_vec()),
        signer: ByteBuf::from(own_certificate.to_vec()),
    })
}

/// A certificate that was shown, read.
struct Shown<'a> {
    der: &'a [u8],
    node_id: NodeId,
    spki: Digest,
    /// The member that signed it; none if that was an authority.
    by: Option<NodeId>,
}

impl<'a> Shown<'a> {
    fn read(der: &'a CertificateDer<'_>, cluster_id: ClusterId) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let (cluster, node_id) = ca::member_of(der)?;
        if cluster != cluster_id {
            return None;
        }
        let issuer = certificate.issuer().iter_common_name().next();
        let by = issuer
            .and_then(|name| name.as_str().ok())
            .and_then(|name| name.parse().ok());
        Some(Shown {
            spki: Digest::of(certificate.public_key().raw),
            der,
            node_id,
            by,
        })
    }

    fn is_signed_with_key_of(&self, other: &Shown<'_>) -> bool {
        ca::is_issued_by(self.der, other.der)
    }
}

/// The pinned member at the other end of an unbroken chain of vouchers for `node_id` with the key `spki`; none if what
/// was shown proves nothing to a node with these pins.
pub(crate) fn vouched_for(
    pins: &Pins,
    node_id: NodeId,
    spki: Digest,
    shown: &[CertificateDer<'_>],
) -> Option<NodeId> {
    let shown: Vec<Shown<'_>> = shown
        .iter()
        .take(2 * MAX_LINKS)
        .filter_map(|der| Shown::read(der, pins.cluster_id))
        .collect();
    let (mut node_id, mut spki) = (node_id, spki);
    for _ in 0..MAX_LINKS {
        let voucher = shown
            .iter()
            .find(|link| link.node_id == node_id && link.spki == spki && link.by.is_some())?;
        let by = voucher.by?;
        if pins.removed.contains(&by) {
            return None;
        }
        let signer = shown
            .iter()
            .find(|link| link.node_id == by && voucher.is_signed_with_key_of(link))?;
        match pins.members.get(&by) {
            Some(pinned) if *pinned == signer.spki => return Some(by),
            Some(_) => return None,
            None => (node_id, spki) = (by, signer.spki),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::SystemTime;

    use super::*;
    use crate::ca::{Ca, Csr, Purpose};
    use crate::id::Lineage;
    use crate::identity::NodeKey;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    /// Members by number, each with a key and a certificate of the cluster's CA.
    struct World {
        members: BTreeMap<u64, (NodeKey, Vec<u8>)>,
    }

    impl World {
        fn new() -> Self {
            let now = SystemTime::now();
            let ca = Ca::create(Purpose::Members, CLUSTER, now).expect("creates");
            let members = (1..=40).map(|n| {
                let key = NodeKey::create().expect("makes one");
                let csr = Csr::parse(key.request()).expect("our own");
                let issued = ca.issue_node(CLUSTER, NodeId(n), "", &csr, now);
                (n, (key, issued.expect("issues").der))
            });
            World {
                members: members.collect(),
            }
        }

        /// What `by` shows of its word for `of`.
        fn link(&self, by: u64, of: u64) -> [CertificateDer<'static>; 2] {
            let (key, own) = &self.members[&by];
            let other = &self.members[&of].1;
            let voucher = vouch((NodeId(by), key.pkcs8(), own), CLUSTER, (NodeId(of), other))
                .expect("vouches");
            [voucher.certificate, voucher.signer].map(|der| der.into_vec().into())
        }

        fn pins(&self, known: &[u64], removed: &[u64]) -> Pins {
            Pins {
                cluster_id: CLUSTER,
                lineage: Lineage(1),
                members: known
                    .iter()
                    .map(|n| (NodeId(*n), self.members[n].0.spki()))
                    .collect(),
                removed: removed.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>(),
                authorities: Vec::new(),
            }
        }

        fn judge(
            &self,
            pins: &Pins,
            of: u64,
            links: &[[CertificateDer<'static>; 2]],
        ) -> Option<NodeId> {
            let spki = self.members[&of].0.spki();
            vouched_for(pins, NodeId(of), spki, links.as_flattened())
        }
    }

    #[test]
    fn a_chain_that_begins_at_a_known_key_is_enough() {
        let world = World::new();
        let links = [world.link(3, 4), world.link(2, 3), world.link(1, 2)];
        for (known, expected) in [
            (&[1][..], Some(NodeId(1))),
            (&[2], Some(NodeId(2))),
            (&[3, 1], Some(NodeId(3))),
            (&[5, 6], None),
            (&[], None),
        ] {
            assert_eq!(
                world.judge(&world.pins(known, &[]), 4, &links),
                expected,
                "{known:?}"
            );
        }
        // Whoever was removed vouches for nobody, and nobody speaks through it.
        assert_eq!(world.judge(&world.pins(&[1], &[3]), 4, &links), None);
        assert_eq!(world.judge(&world.pins(&[1], &[2]), 4, &links), None);
    }

    #[test]
    fn a_broken_or_forged_chain_is_worth_nothing() {
        let world = World::new();
        let pins = world.pins(&[1], &[]);
        assert_eq!(
            world.judge(&pins, 4, &[world.link(3, 4), world.link(1, 2)]),
            None
        );
        assert_eq!(world.judge(&pins, 4, &[]), None);
        // Somebody with a certificate of the CA, and a key of his own, in member 1's name.
        let other = World::new();
        let [voucher, _] = other.link(1, 4);
        let [_, genuine] = world.link(1, 4);
        assert_eq!(world.judge(&pins, 4, &[[voucher, genuine]]), None);
        let mut impostor = other.link(1, 4);
        assert_eq!(
            other.judge(&pins, 4, &[impostor.clone()]),
            None,
            "another key under a known id"
        );
        impostor.swap(0, 1);
        assert_eq!(world.judge(&pins, 4, &[impostor]), None);
        // A voucher for another key of the same name.
        assert_eq!(
            vouched_for(
                &pins,
                NodeId(4),
                Digest([9; 32]),
                world.link(1, 4).as_slice()
            ),
            None
        );
    }

    #[test]
    fn circles_and_long_chains_end() {
        let world = World::new();
        let circle = [world.link(3, 4), world.link(4, 3)];
        assert_eq!(world.judge(&world.pins(&[1], &[]), 4, &circle), None);
        let chain: Vec<_> = (1..40).rev().map(|n| world.link(n, n + 1)).collect();
        assert_eq!(world.judge(&world.pins(&[1], &[]), 40, &chain), None);
        assert_eq!(
            world.judge(&world.pins(&[30], &[]), 40, &chain),
            Some(NodeId(30))
        );
        let size: usize = chain
            .as_flattened()
            .iter()
            .take(2 * MAX_LINKS)
            .map(|der| der.len())
            .sum();
        assert!(size < 48 * 1024, "{size}");
    }
}
