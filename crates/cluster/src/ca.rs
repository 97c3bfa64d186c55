//! Certificate authorities: one for the members, one for the management API.
//!
//! Both are ECDSA P-256 and live in the replicated state, so that any leader can issue. A member's certificate is made
//! from the *public key* of its request and nothing else in it; names come from the log. Time is an argument, so that
//! issuing can be tested for any clock.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::command::{Authority, Certificate, Secret};
use crate::id::{ClusterId, Digest, NodeId};
use crate::keyring::{self, OpenKey, SealError};
use crate::pem;

/// A member's certificate lives this long, and is renewed at 50–80 % of it.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The management API's server certificate lives this long: the most that browsers accept of public authorities.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(397 * 24 * 60 * 60);

/// An authority lives this long.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Certificates begin this long before they are issued, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

/// Largest certificate request that is looked at, in bytes.
pub const MAX_CSR_BYTES: usize = 4096;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is not a PKCS #10 request signed by the key that it names.
    #[error("the certificate request cannot be read or is not signed by its own key")]
    Request(#[source] rcgen::Error),
    /// The request's key is not ECDSA P-256, or the request is larger than [`MAX_CSR_BYTES`].
    #[error(
        "the certificate request must hold an ECDSA P-256 key in at most {MAX_CSR_BYTES} bytes"
    )]
    RequestKind,
    /// A stored authority cannot be read.
    #[error("the certificate authority's certificate or key cannot be read")]
    Authority(#[source] rcgen::Error),
    /// The authority's key is sealed, and this node cannot open it now.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// The authority's key does not belong to its certificate.
    #[error("the certificate authority's key does not belong to its certificate")]
    KeyMismatch,
    /// A name cannot stand in a certificate.
    #[error("{name:?} is neither an IP address nor a DNS name")]
    Name {
        /// The name as given.
        name: String,
    },
    /// Encoding or signing failed.
    #[error("the certificate could not be made")]
    Issue(#[source] rcgen::Error),
}

/// What an authority signs; shown in its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Certificates of members, for the traffic between them.
    Members,
    /// Server certificates of the management API.
    Https,
}

/// An authority that can issue. Its key is wiped when it is dropped.
pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key_pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes an authority with a new key for the cluster `cluster_id`.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the random source or the encoder fails.
    pub fn create(
        purpose: Purpose,
        cluster_id: ClusterId,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Issue)?;
        let title = match purpose {
            Purpose::Members => "Neuwerk cluster CA",
            Purpose::Https => "Neuwerk HTTPS CA",
        };
        let mut params = params(now, CA_LIFETIME)?;
        params.distinguished_name = named(&format!("{title} {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::Issue)?.into();
        let key_pkcs8 = Zeroizing::new(key.serialized_der().to_vec());
        Self::from_parts(certificate, key_pkcs8)
    }

    /// An authority of its certificate and its key, PKCS #8. Those in the replicated state are opened by
    /// [`State::open_ca`](crate::State::open_ca).
    ///
    /// # Errors
    /// [`CaError::Authority`] or [`CaError::KeyMismatch`].
    pub fn from_parts(
        certificate: CertificateDer<'static>,
        key_pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, CaError> {
        let key = key_pair(&key_pkcs8).map_err(CaError::Authority)?;
        let spki = spki_of(&certificate)
            .ok_or(CaError::Authority(rcgen::Error::CouldNotParseCertificate))?;
        if spki != Digest::of(&key.subject_public_key_info()) {
            return Err(CaError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Authority)?;
        Ok(Ca {
            certificate,
            issuer,
            key_pkcs8,
        })
    }

    /// The form that is kept in the replicated state, with the key in clear.
    pub fn authority(&self) -> Authority {
        Authority {
            certificate_der: self.certificate.to_vec(),
            key_pkcs8: Secret::plain(self.key_pkcs8.to_vec()),
        }
    }

    /// The form that is kept in the replicated state, with the key sealed under the data key of `epoch`.
    ///
    /// # Errors
    /// [`SealError::Failed`].
    pub fn sealed_authority(&self, epoch: u64, key: &OpenKey) -> Result<Authority, SealError> {
        Ok(Authority {
            certificate_der: self.certificate.to_vec(),
            key_pkcs8: keyring::seal(&self.key_pkcs8, epoch, key)?,
        })
    }

    /// The same authority again.
    #[cfg(test)]
    pub(crate) fn reopened(&self) -> Self {
        Self::from_parts(self.certificate.clone(), self.key_pkcs8.clone()).expect("our own")
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's own certificate, for a trust store.
    pub fn certificate_pem(&self) -> String {
        pem::certificate(&self.certificate)
    }

    /// Issues a member's certificate: SAN `neuwerk://<cluster-id>/node/<node-id>` and, where `host` is an address or a
    /// DNS name, that too. Of the request only the public key is used.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the random source or the encoder fails.
    pub fn issue_node(
        &self,
        cluster_id: ClusterId,
        node_id: NodeId,
        host: &str,
        request: &Csr,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        self.issue_member(cluster_id, node_id, host, &request.key, now)
    }

    /// Issues a new certificate for a member whose `certificate` is to be replaced: for the same key.
    ///
    /// # Errors
    /// [`CaError::Issue`], [`CaError::Authority`] when the old one cannot be read.
    pub fn renew_node(
        &self,
        cluster_id: ClusterId,
        node_id: NodeId,
        host: &str,
        certificate: &[u8],
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let unreadable = || CaError::Authority(rcgen::Error::CouldNotParseCertificate);
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| unreadable())?;
        let key =
            SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(CaError::Authority)?;
        self.issue_member(cluster_id, node_id, host, &key, now)
    }

    fn issue_member(
        &self,
        cluster_id: ClusterId,
        node_id: NodeId,
        host: &str,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let mut params = params(now, NODE_LIFETIME)?;
        params.distinguished_name = named(&node_id.to_string());
        params.subject_alt_names = vec![node_san(cluster_id, node_id)?];
        params.subject_alt_names.extend(san(host).ok());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let issued = params
            .signed_by(key, &self.issuer)
            .map_err(CaError::Issue)?;
        Ok(described(&params, issued.der()))
    }

    /// Signs what a joiner with a join token is to check with the authority's key (ECDSA P-256, SHA-256, DER).
    ///
    /// # Errors
    /// [`CaError::Issue`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        use rcgen::SigningKey as _;
        self.issuer.key().sign(message).map_err(CaError::Issue)
    }

    /// Makes a key and issues a server certificate for it, valid for `names`: IP addresses and DNS names. The first
    /// one becomes the subject.
    ///
    /// # Errors
    /// [`CaError::Name`] for a name that is neither; [`CaError::Issue`] when the random source or the encoder fails.
    pub fn issue_server(&self, names: &[String], now: SystemTime) -> Result<Server, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Issue)?;
        let mut params = params(now, SERVER_LIFETIME)?;
        params.distinguished_name = named(names.first().map_or("neuwerk", String::as_str));
        for name in names {
            let name = san(name)?;
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Issue)?;
        Ok(Server {
            certificate: described(&params, issued.der()),
            key_pkcs8: Zeroizing::new(key.serialized_der().to_vec()),
        })
    }
}

/// A server certificate with its key.
pub struct Server {
    /// The certificate.
    pub certificate: Certificate,
    /// PKCS #8 private key, DER.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
}

/// A certificate request that is signed by the key it names.
pub struct Csr {
    der: Vec<u8>,
    key: rcgen::PublicKey,
    spki: Digest,
}

impl Csr {
    /// Reads a PKCS #10 request (RFC 2986) and checks its signature.
    ///
    /// # Errors
    /// [`CaError::Request`], [`CaError::RequestKind`].
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CaError::RequestKind);
        }
        // Nothing may follow the request: it would be covered by neither signature nor key.
        match X509CertificationRequest::from_der(der) {
            Ok(([], _)) => {}
            _ => {
                let unreadable = rcgen::Error::CouldNotParseCertificationRequest;
                return Err(CaError::Request(unreadable));
            }
        }
        let parsed = CertificateSigningRequestDer::from(der);
        let key = CertificateSigningRequestParams::from_der(&parsed)
            .map_err(CaError::Request)?
            .public_key;
        // The signature algorithm alone does not tell the curve: an uncompressed P-256 point is 0x04 and 64 bytes.
        let point = key.der_bytes();
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || point.len() != 65 || point[0] != 4 {
            return Err(CaError::RequestKind);
        }
        let spki = Digest::of(&key.subject_public_key_info());
        Ok(Csr {
            der: der.to_vec(),
            key,
            spki,
        })
    }

    /// The request itself.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the request: the same request again is the same joiner.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// SHA-256 of the SubjectPublicKeyInfo, DER: what peers pin.
    pub fn spki(&self) -> Digest {
        self.spki
    }
}

/// The name that a member's certificate carries.
pub fn node_uri(cluster_id: ClusterId, node_id: NodeId) -> String {
    format!("neuwerk://{cluster_id}/node/{node_id}")
}

/// SHA-256 of the SubjectPublicKeyInfo of a certificate; none when it is not one.
pub fn spki_of(certificate: &[u8]) -> Option<Digest> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Digest::of(parsed.public_key().raw))
}

/// Whether the key in `signer`, X.509 DER, made `signature` over `message`: ECDSA P-256, SHA-256, DER.
pub fn has_signed(signer: &[u8], message: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let Ok((_, signer)) = x509_parser::parse_x509_certificate(signer) else {
        return false;
    };
    let point = &signer.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &**point)
        .verify(message, signature)
        .is_ok()
}

/// Whether the key of `authority` signed `certificate`: both X.509, DER.
pub fn is_issued_by(certificate: &[u8], authority: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| {
        let (message, signature) = (
            certificate.tbs_certificate.as_ref(),
            &certificate.signature_value.data,
        );
        has_signed(authority, message, signature)
    })
}

/// Which member of which cluster a certificate names; none unless it holds exactly one such name.
pub fn member_of(certificate: &[u8]) -> Option<(ClusterId, NodeId)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix("neuwerk://"),
            _ => None,
        });
    let (cluster_id, node_id) = uris.next()?.split_once("/node/")?;
    if uris.next().is_some() {
        return None;
    }
    Some((cluster_id.parse().ok()?, node_id.parse().ok()?))
}

/// Reads an ECDSA P-256 key.
pub(crate) fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ECDSA_P256_SHA256)
}

fn params(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    // A clock in 1970 must not lead to dates that X.509 cannot hold.
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = OffsetDateTime::UNIX_EPOCH + since_epoch.saturating_sub(BACKDATE);
    params.not_after = OffsetDateTime::UNIX_EPOCH + since_epoch + lifetime;
    params.serial_number = Some(random_serial()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// RFC 5280, 4.1.2.2: positive, at most 20 bytes; 126 random bits.
pub(crate) fn random_serial() -> Result<SerialNumber, CaError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| CaError::Issue(rcgen::Error::RingUnspecified))?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

/// The name of a member, as it stands in its certificate.
pub(crate) fn node_san(cluster_id: ClusterId, node_id: NodeId) -> Result<SanType, CaError> {
    let uri = node_uri(cluster_id, node_id)
        .try_into()
        .map_err(CaError::Issue)?;
    Ok(SanType::URI(uri))
}

pub(crate) fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // RFC 5280: at most 64 characters.
    let common_name: String = common_name.chars().take(64).collect();
    name.push(DnType::CommonName, common_name);
    name
}

fn san(name: &str) -> Result<SanType, CaError> {
    let wrong = || CaError::Name {
        name: name.to_owned(),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wildcard_free = name.strip_prefix("*.").unwrap_or(name);
    rustls_pki_types::DnsName::try_from(wildcard_free).map_err(|_| wrong())?;
    name.to_owned()
        .try_into()
        .map(SanType::DnsName)
        .map_err(|_| wrong())
}

fn described(params: &CertificateParams, der: &[u8]) -> Certificate {
    let ms = |at: OffsetDateTime| u64::try_from(at.unix_timestamp()).unwrap_or(0) * 1000;
    Certificate {
        der: der.to_vec(),
        serial: params
            .serial_number
            .as_ref()
            .map(SerialNumber::to_bytes)
            .unwrap_or_default(),
        not_before_ms: ms(params.not_before),
        not_after_ms: ms(params.not_after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Keyring;
    use x509_parser::parse_x509_certificate;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    const CLUSTER: ClusterId = ClusterId([0xab; 16]);
    const NODE: NodeId = NodeId(0x0123_4567_89ab_cdef);

    #[test]
    fn a_member_is_issued_its_id_and_host_for_thirty_days() {
        let ca = ca(Purpose::Members);
        for (host, sans) in [
            ("192.0.2.7", 2),
            ("fw-1.example", 2),
            ("2001:db8::1", 2),
            ("", 1),
        ] {
            let (key, csr) = request();
            let issued = ca
                .issue_node(CLUSTER, NODE, host, &csr, now())
                .expect("issues");
            assert_eq!(member_of(&issued.der), Some((CLUSTER, NODE)), "{host}");
            assert_eq!(
                spki_of(&issued.der),
                Some(Digest::of(&key.subject_public_key_info()))
            );
            assert_eq!(issued.not_after_ms - issued.not_before_ms, 31 * DAY_MS);
            let (_, parsed) = parse_x509_certificate(&issued.der).expect("parses");
            parsed
                .verify_signature(Some(
                    parse_x509_certificate(ca.certificate())
                        .expect("parses")
                        .1
                        .public_key(),
                ))
                .expect("signed by the CA");
            assert!(!parsed.is_ca());
            let names = parsed.subject_alternative_name().expect("readable");
            assert_eq!(
                names.expect("present").value.general_names.len(),
                sans,
                "{host}"
            );
            assert_eq!(parsed.tbs_certificate.raw_serial(), issued.serial);
        }
    }

    #[test]
    fn nothing_but_the_key_is_taken_from_a_request() {
        let key = KeyPair::generate().expect("generates");
        let mut asks = CertificateParams::new(vec!["bank.example".to_owned()]).expect("a name");
        asks.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        asks.distinguished_name = named("root");
        let der = asks.serialize_request(&key).expect("a request");
        let csr = Csr::parse(der.der()).expect("well formed");
        let issued = ca(Purpose::Members)
            .issue_node(CLUSTER, NODE, "192.0.2.7", &csr, now())
            .expect("issues");
        let (_, parsed) = parse_x509_certificate(&issued.der).expect("parses");
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().to_string(), format!("CN={NODE}"));
        assert!(!issued.der.windows(4).any(|window| window == b"bank"));
    }

    #[test]
    fn requests_of_other_kinds_are_refused() {
        let check = |der: &[u8], what: &str| assert!(Csr::parse(der).is_err(), "{what}");
        for algorithm in [
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let key = KeyPair::generate_for(algorithm).expect("generates");
            let der = CertificateParams::default()
                .serialize_request(&key)
                .expect("a request");
            check(der.der(), &format!("{algorithm:?}"));
        }
        let (_, good) = request();
        check(b"", "empty");
        check(&[good.der.as_slice(), &[0]].concat(), "trailing");
        check(&good.der[..good.der.len() - 1], "truncated");
        check(&[0x30; MAX_CSR_BYTES + 1], "large");
        let mut forged = good.der.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        check(&forged, "signature");
    }

    #[test]
    fn an_authority_survives_the_state() {
        let first = ca(Purpose::Https);
        let again = reopened(&first.authority()).expect("our own");
        assert_eq!(again.certificate(), first.certificate());
        let served = again
            .issue_server(&["192.0.2.1".into(), "fw.example".into()], now())
            .expect("issues");
        let (_, parsed) = parse_x509_certificate(&served.certificate.der).expect("parses");
        let (_, root) = parse_x509_certificate(first.certificate()).expect("parses");
        assert_eq!(parsed.issuer(), root.subject());
        parsed
            .verify_signature(Some(root.public_key()))
            .expect("signed by the first");
        key_pair(&served.key_pkcs8).expect("the key reads back");
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let mut mixed = ca(Purpose::Members).authority();
        mixed.key_pkcs8 = ca(Purpose::Members).authority().key_pkcs8.clone();
        assert!(matches!(reopened(&mixed), Err(CaError::KeyMismatch)));
    }

    #[test]
    fn server_names_are_checked_and_not_repeated() {
        let ca = ca(Purpose::Https);
        for name in ["", "a b", "user@host", "http://x", "192.0.2.1:80"] {
            assert!(
                matches!(
                    ca.issue_server(&[name.to_owned()], now()),
                    Err(CaError::Name { .. })
                ),
                "{name}"
            );
        }
        let names = ["::1", "localhost", "::1", "*.fw.example"].map(str::to_owned);
        let served = ca.issue_server(&names, now()).expect("issues");
        let (_, parsed) = parse_x509_certificate(&served.certificate.der).expect("parses");
        let sans = parsed.subject_alternative_name().expect("readable");
        assert_eq!(sans.expect("present").value.general_names.len(), 3);
    }

    #[test]
    fn a_clock_in_1970_still_issues() {
        let early = UNIX_EPOCH + Duration::from_secs(60);
        let ca = Ca::create(Purpose::Members, CLUSTER, early).expect("creates");
        let (_, csr) = request();
        let issued = ca
            .issue_node(CLUSTER, NODE, "192.0.2.7", &csr, early)
            .expect("issues");
        assert_eq!(issued.not_before_ms, 0);
        assert_eq!(issued.not_after_ms, 30 * DAY_MS + 60_000);
    }

    #[test]
    fn names_of_others_are_not_members() {
        let (_, csr) = request();
        let good = ca(Purpose::Members)
            .issue_node(CLUSTER, NODE, "", &csr, now())
            .expect("issues");
        assert!(member_of(&good.der[1..]).is_none());
        let served = ca(Purpose::Https)
            .issue_server(&["fw.example".into()], now())
            .expect("issues");
        assert!(member_of(&served.certificate.der).is_none());
    }

    fn ca(purpose: Purpose) -> Ca {
        Ca::create(purpose, CLUSTER, now()).expect("creates")
    }

    fn reopened(authority: &Authority) -> Result<Ca, CaError> {
        let key = Keyring::default()
            .open(&authority.key_pkcs8, None)
            .expect("in clear");
        Ca::from_parts(authority.certificate_der.clone().into(), key)
    }

    #[test]
    fn a_renewal_is_for_the_same_key_and_name() {
        let ca = ca(Purpose::Members);
        let (_, csr) = request();
        let first = ca
            .issue_node(CLUSTER, NODE, "192.0.2.7", &csr, now())
            .expect("issues");
        let later = now() + NODE_LIFETIME * 2;
        let renewed = ca
            .renew_node(CLUSTER, NODE, "192.0.2.8", &first.der, later)
            .expect("renews");
        assert_eq!(spki_of(&renewed.der), Some(csr.spki()));
        assert_eq!(member_of(&renewed.der), Some((CLUSTER, NODE)));
        assert_ne!(renewed.serial, first.serial);
        assert_eq!(renewed.not_after_ms, first.not_after_ms + 60 * DAY_MS);
        assert!(is_issued_by(&renewed.der, ca.certificate()));
        let other = Ca::create(Purpose::Members, CLUSTER, now()).expect("creates");
        assert!(!is_issued_by(&renewed.der, other.certificate()));
        assert!(!is_issued_by(&[], ca.certificate()));
        assert!(ca.renew_node(CLUSTER, NODE, "", b"", later).is_err());
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_900_000_000)
    }

    fn request() -> (KeyPair, Csr) {
        let key = KeyPair::generate().expect("generates");
        let der = CertificateParams::default()
            .serialize_request(&key)
            .expect("a request");
        let csr = Csr::parse(der.der()).expect("well formed");
        (key, csr)
    }
}
