//! A planned restart: the program is replaced, and nobody's connection notices.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::client::{self, connect_from};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::{self, sum};
use lab::node::Node;
use lab::server::PORT;
use lab::{http, tool, wait};
use nix::sys::signal::Signal;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

const SOON: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root; make test runs it"]
fn a_restart_cuts_no_connection_and_refuses_none() {
    let mut cluster = one_node();
    let client = Arc::clone(&cluster.topology.client);
    let operator = Arc::clone(&cluster.topology.operator);
    let at = |family| SocketAddr::new(address::allowed_server(family), PORT);
    // A stream, a connection in which nothing is said meanwhile, and datagrams, each in both families.
    let live = FAMILIES.map(|family| cluster.live(1, at(family).ip()).unwrap());
    let mut idle = FAMILIES.map(|family| {
        let source = Some(address::client(1, family));
        client
            .enter(|| connect_from(source, at(family), SOON))
            .unwrap()
    });
    let datagrams = FAMILIES.map(|family| {
        let socket = client.enter(|| UdpSocket::bind((address::client(1, family), 0)).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(at(family)).unwrap();
        socket
    });
    let echo = |text: &[u8]| {
        for socket in &datagrams {
            socket.send(text).unwrap();
            let mut answer = [0; 64];
            let len = socket.recv(&mut answer).unwrap();
            assert_eq!(&answer[..len], text);
        }
    };
    echo(b"before");

    let (over, attempts) = (AtomicBool::new(false), AtomicU32::new(0));
    let source = address::client(1, Family::V4);
    thread::scope(|scope| {
        let api = scope.spawn(|| {
            operator.enter(|| {
                while !over.load(Ordering::Relaxed) {
                    connect_from(None, address::https(1), SOON)?;
                    attempts.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                std::io::Result::Ok(())
            })
        });
        let transfer = scope.spawn(|| {
            // As long as it takes, so that some of it is always under way.
            while !over.load(Ordering::Relaxed) {
                client::fetch(&client, source, at(Family::V4), 20_000_000)?;
            }
            anyhow::Ok(())
        });
        for _ in 0..2 {
            let said = cluster.node(1).control(&["restart"]).unwrap();
            assert!(said.contains("runs again"), "{said}");
            echo(b"after");
        }
        over.store(true, Ordering::Relaxed);
        api.join().unwrap().expect("no attempt is refused");
        transfer.join().unwrap().unwrap();
    });
    assert!(attempts.load(Ordering::Relaxed) > 20);

    for (family, stream) in FAMILIES.into_iter().zip(&mut idle) {
        let host = at(family).to_string();
        let answer = http::exchange(stream, "GET", &host, "/bytes/1000/7", &[], b"").unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 1000));
    }
    for live in &live {
        let account = live.account();
        assert_eq!(account.ended, None);
        println!("longest gap {:?}", account.longest_gap);
    }
    cluster.wait_node_ready(1).unwrap();
    let page = metrics(&cluster);
    let value = |name: &str| sum(&page, name);
    assert!(
        value("neuwerk_handover_flows_total{outcome=\"taken\"}") >= 6,
        "{page}"
    );
    assert_eq!(
        value("neuwerk_handover_flows_total{outcome=\"refused\"}"),
        0
    );
    assert_eq!(value("neuwerk_dp_flows_picked_up_total"), 0, "{page}");
    assert_eq!(value("neuwerk_dp_resets_sent_total"), 0, "{page}");
}

/// Whatever the node is busy with when it is asked to stop, it gives its interfaces back.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_stop_in_the_midst_of_a_restart_is_obeyed() {
    let mut cluster = one_node();
    let netns = Arc::clone(cluster.topology.node(1));
    let held = || tool::run(netns.command("nft").args(["list", "tables", "netdev"])).unwrap();
    for pause_ms in [0, 20, 50, 100, 200, 400] {
        assert!(held().contains("neuwerk_hold"));
        let node = cluster.node(1);
        let said = |node: &Node| {
            let log = std::fs::read_to_string(node.log_path()).unwrap();
            log.matches("restarting").count()
        };
        let before = said(node);
        node.signal(Signal::SIGUSR2).unwrap();
        wait::until_true("the restart", SOON, || Ok(said(node) > before)).unwrap();
        thread::sleep(Duration::from_millis(pause_ms));
        node.signal(Signal::SIGTERM).unwrap();
        node.wait_stopped().unwrap();
        assert_eq!(held(), "", "after {pause_ms} ms");
        node.start().unwrap();
        cluster.wait_node_ready(1).unwrap();
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_interface_that_is_no_data_port_any_more_is_the_kernels_after_a_restart() {
    let mut cluster = one_node();
    let netns = Arc::clone(cluster.topology.node(1));
    let tables = || tool::run(netns.command("nft").args(["list", "tables", "netdev"])).unwrap();
    assert_eq!(tables().lines().count(), 2);
    let node = cluster.node(1);
    node.take_one_arm().unwrap();
    node.control(&["restart"]).unwrap();
    assert_eq!(tables().lines().count(), 1, "{}", tables());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_whose_configuration_is_refused_goes_on_as_it_is() {
    let mut cluster = one_node();
    let live = cluster
        .live(1, address::allowed_server(Family::V4))
        .unwrap();
    let node = cluster.node(1);
    node.configure("dataplane", "no_such_key: 1").unwrap();
    let error = node.control(&["restart"]).unwrap_err();
    assert!(format!("{error:#}").contains("no_such_key"), "{error:#}");
    assert!(node.is_running());
    assert_eq!(live.account().ended, None);
    assert_eq!(
        management::sum(&metrics(&cluster), "neuwerk_handover_sections_total"),
        0
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_state_that_is_damaged_or_of_another_version_keeps_no_node_from_starting() {
    let mut cluster = one_node();
    let check = |cluster: &mut Cluster, state: &[u8], expected: [(&str, u64); 4]| {
        let file = memfd_create("left", MemfdFlags::ALLOW_SEALING).unwrap();
        let mut file = File::from(file);
        file.write_all(state).unwrap();
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).unwrap();

        let node = cluster.node(1);
        node.terminate().unwrap();
        let script = node.dir().join("started-with-a-state");
        let text = format!(
            "#!/bin/sh\nexport NEUWERK_HANDOVER=\"$$ state={}\"\nexec {} \"$@\"\n",
            file.as_raw_fd(),
            lab::node::binary().unwrap().display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
        node.set_program(&script, &[]);
        node.start().unwrap();
        cluster.wait_node_ready(1).unwrap();
        let page = metrics(cluster);
        for (outcome, count) in expected {
            let name = format!("neuwerk_handover_sections_total{{outcome=\"{outcome}\"}}");
            assert_eq!(sum(&page, &name), count, "{outcome}\n{page}");
        }
        cluster
            .fetch(1, address::allowed_server(Family::V4), 1000)
            .unwrap();
    };
    let of = |taken, unknown, damaged, lost| {
        [
            ("taken", taken),
            ("unknown", unknown),
            ("damaged", damaged),
            ("lost", lost),
        ]
    };
    check(&mut cluster, b"neuwerk handoverXX", of(0, 0, 0, 1));
    let title = b"neuwerk handover\x01\x00";
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let origin = [&[0; 8], boot.trim().as_bytes(), b"0.1.0"].concat();
    let sections = [
        section("origin", 1, &origin),
        section("flows", 0, b"of an older version"),
        section("of-tomorrow", 1, b""),
        section("flows", 1, b"no flows"),
    ]
    .concat();
    let mut state = [&title[..], &sections].concat();
    *state.last_mut().unwrap() ^= 1;
    state.extend(section("flows", 1, &122_u16.to_le_bytes()));
    state.extend([0xee; 40]);
    check(&mut cluster, &state, of(1, 2, 1, 1));
    let log = std::fs::read_to_string(cluster.node(1).log_path()).unwrap();
    assert!(log.contains("is damaged; it is passed over"), "it says so");
}

fn section(name: &str, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(crc32(payload).to_le_bytes());
    let sum = crc32(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// CRC-32 as in ISO 3309.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

fn metrics(cluster: &Cluster) -> String {
    let page = || management::metrics(&cluster.topology.operator, address::metrics(1));
    wait::until("the metrics", SOON, || page().map(Some))
        .unwrap()
        .0
}

fn one_node() -> Cluster {
    let mut cluster = Cluster::start(1).unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    cluster
}
