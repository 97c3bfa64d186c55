//! PEM (RFC 7468): certificates and keys as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// Text that is not the PEM that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PEM section {expected} that can be read")]
pub struct PemError {
    expected: &'static str,
}

/// One certificate as PEM, with a final newline.
pub fn certificate(der: &[u8]) -> String {
    section("CERTIFICATE", der).as_str().to_owned()
}

/// A PKCS #8 private key as PEM, wiped when dropped.
pub fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    section("PRIVATE KEY", pkcs8)
}

/// Every certificate in `text`, in order; other sections are skipped.
///
/// # Errors
/// A section that cannot be read, or no certificate at all.
pub fn parse_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let wrong = PemError {
        expected: "CERTIFICATE",
    };
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| wrong)?;
    if found.is_empty() {
        return Err(wrong);
    }
    Ok(found)
}

/// The first PKCS #8 private key in `text`, as DER.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn parse_private_key(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, PemError> {
    PrivatePkcs8KeyDer::from_pem_slice(text)
        .map(|key| Zeroizing::new(key.secret_pkcs8_der().to_vec()))
        .map_err(|_| PemError {
            expected: "PRIVATE KEY",
        })
}

fn section(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / 64 + 80));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for len in [1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let text = certificate(&der) + &certificate(&[9]);
            let read = parse_certificates(text.as_bytes()).expect("our own PEM");
            assert_eq!(read[0].as_ref(), der, "{len}");
            assert_eq!(read[1].as_ref(), [9]);
            let key = private_key(&der);
            assert_eq!(
                *parse_private_key(key.as_bytes()).expect("our own PEM"),
                der
            );
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for text in ["", "hello", "-----BEGIN CERTIFICATE-----\n!!\n"] {
            assert!(parse_certificates(text.as_bytes()).is_err(), "{text}");
            assert!(parse_private_key(text.as_bytes()).is_err(), "{text}");
        }
        let key = private_key(&[1]);
        assert!(parse_certificates(key.as_bytes()).is_err());
    }
}
