//! Traffic through real nodes, as users make it: curl, iperf3, ping, traceroute, and connections that outlive a policy.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use lab::address::{self, FAMILIES, Family};
use lab::client::{self, Outcome, PATIENCE};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::server::{PORT, pattern};
use lab::{http, management, process, tool, wait};

const SOON: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root; make test runs it"]
fn ordinary_tools_work_through_a_node_and_are_denied_by_it() {
    tool::require(&["curl", "ping", "traceroute", "iperf3"]).unwrap();
    let cluster = one_node();
    for family in FAMILIES {
        let allowed = address::allowed_server(family);
        let denied = address::denied_server(family);
        curl(&cluster, allowed);
        assert!(!ping(&cluster, denied), "{denied}");
        assert!(ping(&cluster, allowed), "{allowed}");
        traceroute(&cluster, allowed);
        iperf3(&cluster, allowed);
        assert_eq!(cluster.probe(1, denied), Outcome::Silent);
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn several_workers_share_the_traffic_and_the_kernel_knows_whose_it_is() {
    let cluster = one_node_with(&["--dataplane-workers=3"]);
    for family in FAMILIES {
        let server = SocketAddr::new(address::allowed_server(family), PORT);
        for size_bytes in 0..40 {
            let source = address::client(1, family);
            client::fetch(&cluster.topology.client, source, server, size_bytes * 1_000).unwrap();
        }
        assert!(ping(&cluster, server.ip()), "{server}");
        traceroute(&cluster, server.ip());
        iperf3(&cluster, server.ip());
        assert_eq!(
            cluster.probe(1, address::denied_server(family)),
            Outcome::Silent
        );
    }
    let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
    let value = |name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    // Only what the kernel's rule leaves out: echo, errors, what neighbours say.
    let handed = value("neuwerk_dp_handed_over_total ");
    assert!((1.0..500.0).contains(&handed), "{handed}");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn bodies_and_datagrams_arrive_unchanged_and_translated() {
    let cluster = one_node();
    let netns = &cluster.topology.client;
    for family in FAMILIES {
        let (source, server) = (
            address::client(1, family),
            SocketAddr::new(address::allowed_server(family), PORT),
        );
        for size_bytes in [0, 1, 1_447, 1_448, 1_449, 65_535, 5_000_000] {
            client::fetch(netns, source, server, size_bytes).unwrap();
        }
        for size_bytes in [1, 1_000, 1_452] {
            let payload = pattern(1, size_bytes);
            assert!(
                client::udp_echo(netns, source, server, &payload, PATIENCE).unwrap(),
                "{server} {size_bytes}"
            );
        }
        let seen = curl_body(&cluster, address::allowed_server(family), "/who");
        assert_eq!(
            seen,
            address::outside(1, family).to_string(),
            "the server sees the node"
        );
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_policy_change_ends_the_connection_that_it_denies_and_no_other() {
    let mut cluster = one_node();
    for family in FAMILIES {
        let both = [
            address::allowed_server(family),
            address::denied_server(family),
        ];
        let api = cluster.api(1).unwrap();
        api.put_policy(&policy_allowing(&both)).unwrap();
        let [kept, ended] = both.map(|server| cluster.live(1, server).unwrap());
        api.put_policy(&policy_allowing(&both[..1])).unwrap();
        wait::until_true("the end of the denied connection", SOON, || {
            Ok(ended.account().ended.is_some())
        })
        .unwrap();
        let lines = kept.account().lines;
        wait::until_true("more lines on the allowed one", SOON, || {
            Ok(kept.account().lines > lines + 50)
        })
        .unwrap();
        assert_eq!(kept.account().ended, None);
        assert_eq!(cluster.probe(1, both[1]), Outcome::Silent);
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn open_connections_outlive_the_crash_of_their_node() {
    // Of several workers each has to know the connections that it had, by ports that it has not given out since.
    let mut cluster = one_node_with(&["--dataplane-workers=3"]);
    let mut connections = Vec::new();
    for family in FAMILIES {
        let server = SocketAddr::new(address::allowed_server(family), PORT);
        let source = address::client(1, family);
        for _ in 0..6 {
            let connect = || client::connect_from(Some(source), server, SOON);
            let stream = cluster.topology.client.enter(connect).unwrap();
            connections.push((family, server, stream));
        }
    }
    cluster.node(1).kill().unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    for (family, server, stream) in &mut connections {
        let answer = http::exchange(stream, "GET", &server.to_string(), "/who", &[], b"").unwrap();
        let seen = address::outside(1, *family).to_string();
        assert_eq!((answer.status, answer.text()), (200, seen));
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_with_one_arm_forwards_translates_and_denies() {
    tool::require(&["curl", "ping"]).unwrap();
    let mut cluster = Cluster::lay_out(1).unwrap();
    cluster.topology.join_sides().unwrap();
    cluster.node(1).take_one_arm().unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    for family in FAMILIES {
        let (allowed, denied) = (
            address::allowed_server(family),
            address::denied_server(family),
        );
        let server = SocketAddr::new(allowed, PORT);
        let source = address::client(1, family);
        let connect = || client::connect_from(Some(source), server, PATIENCE).unwrap();
        let mut stream = cluster.topology.client.enter(connect);
        let answer = http::exchange(&mut stream, "GET", "server", "/who", &[], b"").unwrap();
        let seen = address::inside(1, family).to_string();
        assert_eq!((answer.status, answer.text()), (200, seen));
        cluster.fetch(1, allowed, 1_000_000).unwrap();
        assert!(ping(&cluster, allowed), "{allowed}");
        assert!(!ping(&cluster, denied), "{denied}");
        assert_eq!(cluster.probe(1, denied), Outcome::Silent);
    }
}

/// With checksums that the clients' and servers' kernels leave to their devices, as they do by default.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_by_af_xdp_carries_ordinary_tools_with_two_arms_and_with_one() {
    tool::require(&["curl", "ping"]).unwrap();
    for arms in [2, 1] {
        let mut cluster = node_by_xdp(arms);
        let links = cluster
            .topology
            .node(1)
            .command("ip")
            .args(["link"])
            .output();
        let links = String::from_utf8(links.unwrap().stdout).unwrap();
        assert_eq!(links.matches("prog/xdp").count(), arms, "{links}");
        let policy = policy_allowing(&allowed_servers());
        cluster.api(1).unwrap().put_policy(&policy).unwrap();
        for family in FAMILIES {
            let (allowed, denied) = (
                address::allowed_server(family),
                address::denied_server(family),
            );
            let seen = [address::inside, address::outside][arms - 1](1, family);
            assert_eq!(curl_body(&cluster, allowed, "/who"), seen.to_string());
            curl(&cluster, allowed);
            assert!(ping(&cluster, allowed), "{allowed}");
            assert_eq!(cluster.probe(1, denied), Outcome::Silent);
        }
    }
}

/// As on a container host: the kernel keeps its interfaces and routes what comes in by them into the device that the node
/// has made; what the node sends goes its usual way.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_with_a_tun_device_judges_what_its_host_routes_into_it() {
    tool::require(&["curl", "ping"]).unwrap();
    let mut cluster = node_with_tun();
    check_soft_mode(&mut cluster, TUN_OURS);
}

/// As with virtual machines: the devices are there before the node, as ports of bridges.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_with_tap_devices_in_bridges_forwards_translates_and_denies() {
    tool::require(&["curl", "ping"]).unwrap();
    let mut cluster = node_with_taps();
    check_soft_mode(
        &mut cluster,
        FAMILIES.map(|family| address::outside(1, family).to_string()),
    );
}

/// A node that takes frames by AF_XDP, with two arms or with one.
fn node_by_xdp(arms: usize) -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    cluster.node(1).set_mode("xdp").unwrap();
    if arms == 1 {
        cluster.topology.join_sides().unwrap();
        cluster.node(1).take_one_arm().unwrap();
    }
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    cluster
}

/// The addresses of a node with a TUN device.
const TUN_OURS: [&str; 2] = ["10.64.0.2", "fd64::2"];

/// A node with a TUN device, into which its host routes what comes in by both interfaces.
fn node_with_tun() -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let ours = [format!("{}/30", TUN_OURS[0]), format!("{}/64", TUN_OURS[1])];
    let node = cluster.node(1);
    let ours = ours.each_ref().map(String::as_str);
    node.take_tun("nw0", &ours, &["10.64.0.1", "fd64::1"])
        .unwrap();
    node.configure("policy", &format!("internal_cidr: {:?}", address::INSIDE))
        .unwrap();
    for (family, net) in FAMILIES.into_iter().zip(["10.64.0.0/30", "fd64::/64"]) {
        let [inside, outside] = [address::inside, address::outside].map(|of| of(1, family));
        let nodad = if family == Family::V6 { "nodad" } else { "" };
        let host = cluster.topology.node(1);
        let commands = format!(
            "addr add {} dev in0 {nodad}\n\
             addr add {} dev out0 {nodad}\n\
             route add default via {} dev out0\n\
             rule add iif in0 table 100\n\
             rule add iif out0 table 100",
            address::with_length(inside),
            address::with_length(outside),
            address::router(family),
        );
        host.ip_of(family, &commands).unwrap();
        let back = format!("route add {net} via {outside} dev out0");
        let internet = &cluster.topology.internet;
        internet.ip_of(family, &back).unwrap();
        let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"][family as usize];
        host.sysctl(forwarding, "1").unwrap();
    }
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    for family in FAMILIES {
        let host = cluster.topology.node(1);
        let into = "route add default dev nw0 table 100";
        host.ip_of(family, into).unwrap();
    }
    cluster
}

/// A node with two TAP devices, each of which is in a bridge with an interface.
fn node_with_taps() -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    cluster.node(1).take_taps("tap-in", "tap-out").unwrap();
    let host = cluster.topology.node(1);
    for (port, side) in [("in0", "in"), ("out0", "out")] {
        let commands = format!(
            "tuntap add tap-{side} mode tap multi_queue\n\
             link add br-{side} type bridge mcast_snooping 0\n\
             link set {port} master br-{side}\n\
             link set tap-{side} master br-{side}\n\
             link set br-{side} up"
        );
        host.ip(&commands).unwrap();
    }
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    cluster
}

/// Traffic through node 1 is judged, arrives whole, and is seen to come from these addresses.
fn check_soft_mode(cluster: &mut Cluster, seen: [impl AsRef<str>; 2]) {
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    for (family, seen) in FAMILIES.into_iter().zip(seen) {
        let allowed = address::allowed_server(family);
        let denied = address::denied_server(family);
        assert_eq!(curl_body(cluster, allowed, "/who"), seen.as_ref());
        curl(cluster, allowed);
        assert!(ping(cluster, allowed), "{allowed}");
        assert_eq!(cluster.probe(1, denied), Outcome::Silent);
    }
}

/// What it takes when nothing comes says whether its workers sleep: one that looks again and again takes a whole core.
#[test]
#[ignore = "needs root; make test runs it"]
fn an_idle_node_leaves_the_processors_alone_in_every_mode() {
    for mode in ["packet", "xdp", "tun", "tap"] {
        let mut cluster = match mode {
            "xdp" => node_by_xdp(2),
            "tun" => node_with_tun(),
            "tap" => node_with_taps(),
            _ => one_node(),
        };
        let policy = policy_allowing(&allowed_servers());
        cluster.api(1).unwrap().put_policy(&policy).unwrap();
        // So that its workers have been awake.
        for family in FAMILIES {
            let server = address::allowed_server(family);
            cluster.fetch(1, server, 1_000_000).unwrap();
        }
        let pid = cluster.node(1).process_id().unwrap();
        // The start and the connections' ends come to rest.
        thread::sleep(Duration::from_secs(3));
        let times = || {
            [
                process::processor_time_of_threads(pid, "packets-").unwrap(),
                process::processor_time(pid).unwrap(),
            ]
        };
        let before = times();
        let begin = Instant::now();
        thread::sleep(Duration::from_secs(5));
        let after = times();
        let [workers, all] = [0, 1]
            .map(|i| 100.0 * (after[i] - before[i]).as_secs_f64() / begin.elapsed().as_secs_f64());
        println!("{mode}: {workers:.2} % of a core by the workers, {all:.1} % by all of the node");
        assert!(workers < 1.0, "{mode}: {workers:.2} % of a core");
        assert!(all < 5.0, "{mode}: {all:.1} % of a core");
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn nothing_is_opened_from_outside() {
    let mut cluster = one_node();
    let allow_all = serde_json::json!({"default_policy": "allow"});
    cluster.api(1).unwrap().put_policy(&allow_all).unwrap();
    cluster
        .fetch(1, address::allowed_server(Family::V4), 1000)
        .unwrap();
    for family in FAMILIES {
        let inside = address::client(1, family);
        let _server = lab::server::Server::start(&cluster.topology.client, inside).unwrap();
        let hop = address::outside(1, family);
        let refused = || {
            let page = management::metrics(&cluster.topology.operator, address::metrics(1));
            let counted = r#"neuwerk_dp_drops_total{reason="from_outside"} "#;
            management::sum(&page.unwrap(), counted)
        };
        let before = refused();
        let way = format!("route replace {inside} via {hop} dev out0");
        cluster.topology.internet.ip_of(family, &way).unwrap();
        let outside = address::allowed_server(family);
        let outcome = client::probe(
            &cluster.topology.internet,
            outside,
            SocketAddr::new(inside, PORT),
            PATIENCE,
        );
        assert_ne!(outcome, Outcome::Connected, "{outside} to {inside}");
        assert!(
            refused() > before,
            "what came from {outside} was not refused by the node"
        );
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn the_api_is_not_on_the_data_ports() {
    let cluster = one_node();
    for family in FAMILIES {
        for port in [8443, 8080, 9600, 9601] {
            let target = SocketAddr::new(address::inside(1, family), port);
            let outcome = client::probe(
                &cluster.topology.client,
                address::client(1, family),
                target,
                PATIENCE,
            );
            assert_ne!(outcome, Outcome::Connected, "{target}");
        }
    }
}

/// On a machine that would forward by itself, somebody loads a firewall's rules anew and gives the ports addresses.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_kernel_that_is_brought_back_to_the_data_ports_is_kept_off_again() {
    let cluster = one_node();
    let node = cluster.topology.node(1);
    let (allowed, denied) = (
        address::allowed_server(Family::V4),
        address::denied_server(Family::V4),
    );
    let lines = |program: &str, arguments: &[&str]| {
        let said = tool::run(node.command(program).args(arguments)).unwrap();
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        // Tables stand in the order in which they came.
        lines.sort_unstable();
        lines
    };
    let state = || {
        [
            lines("ip", &["-o", "-4", "address", "show"]),
            lines("nft", &["list", "ruleset"]),
        ]
    };
    let held = state();
    assert!(held[1].concat().contains("neuwerk_hold_in0"), "{held:?}");
    node.sysctl("ipv4/ip_forward", "1").unwrap();
    for number in 1..=3 {
        for (interface, address) in [
            ("in0", address::inside(1, Family::V4)),
            ("out0", address::outside(1, Family::V4)),
        ] {
            node.ip(&format!("address add {address}/24 dev {interface}"))
                .unwrap();
        }
        node.nft("flush ruleset").unwrap();
        wait::until_true("the ports are held again", SOON, || Ok(state() == held)).unwrap();
        assert_eq!(cluster.probe(1, denied), Outcome::Silent, "{number}");
        assert_eq!(cluster.probe(1, allowed), Outcome::Connected, "{number}");
    }
}

/// A single node with the usual policy.
fn one_node() -> Cluster {
    one_node_with(&[])
}

fn one_node_with(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let program = lab::node::binary().unwrap();
    cluster.node(1).set_program(&program, flags);
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    cluster
}

/// A program on the client side, from the address whose packets go through node 1.
fn command(cluster: &Cluster, program: &str, arguments: &[&str]) -> std::process::Command {
    let mut command = cluster.topology.client.command(program);
    command.args(arguments);
    command
}

fn curl_body(cluster: &Cluster, server: IpAddr, path: &str) -> String {
    let source = address::client(1, lab::cluster::family_of(server)).to_string();
    let url = format!("http://{}{path}", SocketAddr::new(server, PORT));
    tool::run(&mut command(
        cluster,
        "curl",
        &[
            "-sS",
            "--fail",
            "--max-time",
            "10",
            "--interface",
            &source,
            &url,
        ],
    ))
    .unwrap()
}

fn curl(cluster: &Cluster, server: IpAddr) {
    let output = cluster.topology.client.run().dir().join("body");
    let source = address::client(1, lab::cluster::family_of(server)).to_string();
    let url = format!("http://{}/bytes/2000000/9", SocketAddr::new(server, PORT));
    let mut curl = command(
        cluster,
        "curl",
        &[
            "-sS",
            "--fail",
            "--max-time",
            "20",
            "--interface",
            &source,
            &url,
            "-o",
        ],
    );
    tool::run(curl.arg(&output)).unwrap();
    assert!(
        std::fs::read(&output).unwrap() == pattern(9, 2_000_000),
        "{url}: the body differs"
    );
}

fn ping(cluster: &Cluster, server: IpAddr) -> bool {
    let source = address::client(1, lab::cluster::family_of(server)).to_string();
    let arguments = [
        "-n",
        "-c3",
        "-i0.2",
        "-W2",
        "-I",
        &source,
        &server.to_string(),
    ];
    command(cluster, "ping", &arguments)
        .output()
        .unwrap()
        .status
        .success()
}

/// The node is the first hop, the server the second.
fn traceroute(cluster: &Cluster, server: IpAddr) {
    let family = lab::cluster::family_of(server);
    let source = address::client(1, family).to_string();
    let arguments = [
        "-n",
        "-q1",
        "-w2",
        "-m5",
        "-s",
        &source,
        &server.to_string(),
    ];
    let printed = tool::run(&mut command(cluster, "traceroute", &arguments)).unwrap();
    let hops: Vec<&str> = printed
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(
        hops,
        [address::inside(1, family).to_string(), server.to_string()],
        "{printed}"
    );
}

/// Both directions; the receiver must have got something.
fn iperf3(cluster: &Cluster, server: IpAddr) {
    let source = address::client(1, lab::cluster::family_of(server)).to_string();
    for direction in [&[][..], &["-R"]] {
        let mut daemon = cluster.topology.internet.command("iperf3");
        let mut daemon = daemon
            .args(["-s", "-1", "-B", &server.to_string()])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let listening = || {
            let sockets = tool::run(
                cluster
                    .topology
                    .internet
                    .command("ss")
                    .args(["-Hltn", "sport = :5201"]),
            )?;
            Ok(!sockets.is_empty())
        };
        wait::until_true("the iperf3 server", SOON, listening).unwrap();
        let server = server.to_string();
        let arguments = [
            "-c",
            &server,
            "-B",
            &source,
            "-t1",
            "-J",
            "--connect-timeout",
            "5000",
        ];
        let printed = tool::run(command(cluster, "iperf3", &arguments).args(direction));
        let _ = daemon.kill();
        let _ = daemon.wait();
        let report: serde_json::Value = serde_json::from_str(&printed.unwrap()).unwrap();
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(
            received > 1_000_000,
            "{server} {direction:?}: {received} bytes"
        );
    }
}
