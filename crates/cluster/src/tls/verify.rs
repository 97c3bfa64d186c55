//! rustls' view of the membership: whom to let in, and which certificate to show to whom.
//!
//! Signatures are checked by rustls' provider; only the question *whose* certificate is answered here.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::{ANY, Denied, Dialled, Trust};

/// Whether one of `roots` issued `certificate`, at a moment.
pub(super) fn issued_by(
    certificate: &CertificateDer<'_>,
    roots: &RootCertStore,
    moment: UnixTime,
) -> Result<(), Error> {
    // Members' certificates are for both directions, so that one check serves both.
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(certificate)?,
        roots,
        &[],
        moment,
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all,
    )
}

/// Lets in whom the membership lets in.
#[derive(Debug)]
pub(super) struct Verifier(pub(super) Arc<Trust>);

impl Verifier {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        dialled: Dialled,
        now: UnixTime,
    ) -> Result<(), Error> {
        self.0
            .judge(certificate, shown, dialled, now)
            .map_err(|denied| refuse(denied, dialled))
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let dialled = dialled(server_name)
            .ok_or_else(|| Error::General("the server name names no member".into()))?;
        self.verify(end_entity, intermediates, dialled, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hint: it would tell strangers which cluster this is.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, Dialled::Nobody, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Shows this node's certificate: to servers always, to clients only when they want this very node, or any member.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Trust>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name();
        // A member of another lineage may learn that it is one: this node shows who it is, and goes no further.
        let any = self.0.any_lineage_name(self.0.node_id);
        if wanted == Some(any.to_str().as_ref()) {
            return Some(self.0.certified.load_full());
        }
        if !self.0.is_meant(wanted) {
            self.0.note_misdirected();
            tracing::debug!(
                wanted,
                "a handshake was meant for another node, cluster or lineage"
            );
            return None;
        }
        Some(self.0.certified.load_full())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which member a server name asks for.
fn dialled(name: &ServerName<'_>) -> Option<Dialled> {
    let ServerName::DnsName(name) = name else {
        return None;
    };
    match name.as_ref().split('.').next()? {
        ANY => Some(Dialled::Any),
        id => id.parse().ok().map(Dialled::Member),
    }
}

/// A removed node is told that it was, by an alert of its own; everybody else learns nothing.
fn refuse(denied: Denied, dialled: Dialled) -> Error {
    if dialled == Dialled::Nobody && matches!(denied, Denied::Removed(_)) {
        return Error::InvalidCertificate(CertificateError::Revoked);
    }
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(denied))))
}

/// Why a handshake failed, when it was this node that refused the peer.
pub fn denied(error: &Error) -> Option<&Denied> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(source))) => {
            source.downcast_ref()
        }
        Error::InvalidCertificate(CertificateError::Revoked) => Some(&Denied::Revoked),
        _ => None,
    }
}

fn tls12() -> Error {
    // Neither configuration offers it, so that rustls never asks.
    Error::General("TLS 1.2 is not offered".into())
}
