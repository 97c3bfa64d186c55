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

fn served(port: u16) -> Served {
    let config = Config::parse(
        Some(
            "version: 1\nbootstrap: {management_interface: lo, data_interface: eth1}\n\
             dns: {upstreams: ['192.0.2.53:53']}",
        ),
        &crate::config::Flags::default(),
    )
    .unwrap();
    let grants = crate::grants::Grants::nothing();
    let proxy = proxy(
        &config,
        &dataplane(vec![self::port(&["10.0.0.1/24"])]),
        &grants,
        &mut Registry::default(),
    );
    Served {
        proxy: proxy.unwrap().unwrap(),
        sockets: Sockets::default(),
        stop: CancellationToken::new(),
        port,
        open: BTreeMap::new(),
        told: BTreeSet::new(),
    }
}

/// A port that is free over UDP, which the returned socket holds.
fn held() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Whether a denied name is answered as such.
async fn answers(server: SocketAddr) -> bool {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x03net\x00\x00\x01\x00\x01";
    socket.send_to(query, server).await.unwrap();
    let mut answer = [0; 512];
    let read = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut answer)).await;
    matches!(read, Ok(Ok(_)) if answer[3] & 0xf == 3)
}

#[tokio::test]
async fn an_address_that_is_held_over_udp_is_listened_on_once_it_is_free() {
    let (holds, port) = held();
    let mut served = served(port);
    let wanted = BTreeSet::from([IpAddr::from([127, 0, 0, 1])]);
    for _ in 0..2 {
        assert!(!served.follow(&wanted));
        // Its port over TCP is free again.
        drop(TcpListener::bind(("127.0.0.1", port)).unwrap());
    }
    drop(holds);
    assert!(served.follow(&wanted));
    assert!(answers(SocketAddr::from(([127, 0, 0, 1], port))).await);
}

#[tokio::test]
async fn addresses_are_listened_on_while_they_are_there() {
    let (holds, port) = held();
    drop(holds);
    let mut served = served(port);
    let [a, b] = [1, 2].map(|last| IpAddr::from([127, 0, 0, last]));
    assert!(served.follow(&BTreeSet::from([a])));
    assert!(served.follow(&BTreeSet::from([a, b])));
    assert!(answers(SocketAddr::new(a, port)).await && answers(SocketAddr::new(b, port)).await);
    assert!(served.follow(&BTreeSet::from([b])));
    let free = async {
        while TcpListener::bind((a, port)).is_err() || UdpSocket::bind((a, port)).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let free = tokio::time::timeout(Duration::from_secs(10), free).await;
    assert!(free.is_ok(), "its sockets stay open");
    assert!(answers(SocketAddr::new(b, port)).await);
}
