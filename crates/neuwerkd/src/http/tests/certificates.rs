//! The HTTPS certificate from boot to swap.

use std::os::unix::fs::PermissionsExt as _;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::*;
use crate::http::certificate::{Certificates, OperatorFiles, Settings as CertificateSettings};

fn settings(dir: &tempfile::TempDir) -> CertificateSettings {
    CertificateSettings {
        tls_dir: dir.path().join("tls"),
        operator: None,
    }
}

fn load(settings: &CertificateSettings) -> Arc<Certificates> {
    Certificates::load(settings.clone(), vec!["127.0.0.1".into()]).unwrap()
}

fn founded() -> cluster::State {
    let mut state = cluster::State::default();
    let stamped = cluster::Stamped {
        command: Command::Init(Box::new(init(NodeId(1)))),
        time_ms: 0,
        seed: [0; 32],
        author: Default::default(),
        idempotency_key: None,
        request: None,
    };
    state.apply(1, stamped).accepted().unwrap();
    state
}

#[test]
fn temporary_then_issued_then_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let certificates = load(&settings);
    let temporary = certificates.leaf();
    let now = SystemTime::now();
    // Nothing to issue from yet.
    assert!(
        !certificates
            .refresh(&cluster::State::default(), now)
            .unwrap()
    );
    assert_eq!(certificates.leaf(), temporary);

    let state = founded();
    assert!(certificates.refresh(&state, now).unwrap());
    let issued = certificates.leaf();
    assert_ne!(issued, temporary);
    assert!(!certificates.refresh(&state, now).unwrap());
    let ca = std::fs::read(settings.tls_dir.join("ca.crt")).unwrap();
    let ca = CertificateDer::from_pem_slice(&ca).unwrap();
    assert_eq!(ca.to_vec(), state.https_ca().unwrap().certificate_der);
    let key = std::fs::metadata(settings.tls_dir.join("server.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    assert_eq!(load(&settings).leaf(), issued);
}

#[test]
fn another_name_and_half_of_the_life_bring_another_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = load(&settings(&dir));
    let (state, now) = (founded(), SystemTime::now());
    assert!(certificates.refresh(&state, now).unwrap());
    certificates.add_name("127.0.0.1".into());
    assert!(!certificates.refresh(&state, now).unwrap());
    certificates.add_name("192.0.2.1".into());
    assert!(certificates.refresh(&state, now).unwrap());
    assert!(
        certificates
            .refresh(&state, now + cluster::ca::SERVER_LIFETIME / 2)
            .unwrap()
    );
}

#[test]
fn the_operators_files_win_and_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        std::fs::write(dir.path().join("own.crt"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("own.key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    };
    let first = write(&["one.example"]);
    let mut settings = settings(&dir);
    settings.operator = Some(OperatorFiles {
        cert_path: dir.path().join("own.crt"),
        key_path: dir.path().join("own.key"),
        ca_path: Some(dir.path().join("own.crt")),
    });
    let certificates = load(&settings);
    assert_eq!(certificates.leaf(), first);
    let (state, now) = (founded(), SystemTime::now());
    assert!(!certificates.refresh(&state, now).unwrap());
    assert_eq!(certificates.leaf(), first);
    let exported = std::fs::read(settings.tls_dir.join("ca.crt")).unwrap();
    assert_eq!(
        CertificateDer::from_pem_slice(&exported).unwrap().to_vec(),
        first
    );

    let second = write(&["two.example"]);
    let later = now + Duration::from_secs(10);
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("own.crt"))
        .unwrap();
    file.set_modified(later).unwrap();
    assert!(certificates.refresh(&state, now).unwrap());
    assert_eq!(certificates.leaf(), second);

    // A broken file keeps the old certificate in use.
    std::fs::write(dir.path().join("own.key"), "nothing").unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("own.key"))
        .unwrap();
    file.set_modified(later + Duration::from_secs(10)).unwrap();
    assert!(certificates.refresh(&state, now).is_err());
    assert_eq!(certificates.leaf(), second);
}
