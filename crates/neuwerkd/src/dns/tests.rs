use engine::port::memory::MemoryPort;
use engine::snapshot::{LocalService, PortSettings, Settings};
use policy::Compiled;

use super::*;
use crate::dataplane::Opened;
use crate::handover::Received;

fn port(addresses: &[&str]) -> PortSettings {
    PortSettings {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..PortSettings::default()
    }
}

/// No worker has to run for what is published.
fn dataplane(ports: Vec<PortSettings>) -> Arc<Dataplane> {
    type Open = fn() -> anyhow::Result<Opened<MemoryPort, MemoryPort>>;
    let settings = Settings {
        ports,
        services: vec![LocalService {
            address: "10.9.9.53".parse().unwrap(),
            ports: vec![53],
        }],
        ..Settings::default()
    };
    let policy = Arc::new(Compiled::deny_all());
    let nothing = Arc::new(Received::nothing());
    let open = Vec::<Open>::new();
    let grants = crate::grants::Grants::nothing();
    let judging = crate::dataplane::Judging { policy, grants };
    Arc::new(Dataplane::start(settings, judging, 1024, None, open, &nothing).unwrap())
}

/// As by DHCP or router advertisements: the proxy need not be told.
#[test]
fn addresses_that_ports_learn_later_are_the_nodes_own() {
    let dataplane = dataplane(vec![port(&["10.0.0.1/24"]), port(&[])]);
    let own = Own {
        dataplane: Arc::clone(&dataplane),
        host: Mutex::default(),
    };
    let has = |address: &str| own.addresses().contains(&address.parse().unwrap());
    assert!(has("10.0.0.1") && has("127.0.0.1") && has("10.9.9.53"));
    assert!(!has("198.51.100.7"));
    let learned = vec![
        port(&["10.0.0.1/24"]),
        port(&["198.51.100.7/24", "2001:db8::7/64"]),
    ];
    dataplane.set_ports(learned).unwrap();
    assert!(has("198.51.100.7") && has("2001:db8::7") && has("127.0.0.1"));
    dataplane
        .set_ports(vec![port(&["10.0.0.1/24"]), port(&[])])
        .unwrap();
    assert!(!has("198.51.100.7"));
}

fn dns(upstream: &str, ca: &Path) -> Dns {
    let text = format!(
        "version: 1\nbootstrap: {{management_interface: lo, data_interface: eth1}}\n\
         dns: {{upstreams: ['{upstream}'], upstream_ca: {}}}",
        ca.display()
    );
    Config::parse(Some(&text), &crate::config::Flags::default())
        .unwrap()
        .dns
}

#[test]
fn certificates_are_needed_for_tls_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let over = |upstream: &str| {
        upstreams(&dns(upstream, &ca))
            .map(|upstreams| upstreams[0].tls.is_some())
            .map_err(|error| format!("{error:#}"))
    };
    assert_eq!(over("9.9.9.9:53"), Ok(false));
    let refused = over("tls://9.9.9.9").unwrap_err();
    assert!(refused.starts_with("dns.upstream_ca: "), "{refused}");
    std::fs::write(&ca, "no certificate").unwrap();
    let refused = over("tls://9.9.9.9").unwrap_err();
    assert!(
        refused.ends_with("there is no certificate in it"),
        "{refused}"
    );
    let key = rcgen::generate_simple_self_signed(vec!["dns.example".into()]).unwrap();
    std::fs::write(&ca, key.cert.pem()).unwrap();
    assert_eq!(over("tls://9.9.9.9"), Ok(true));
}
