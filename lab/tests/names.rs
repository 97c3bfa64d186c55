//! Names on one node: real resolvers and clients, an upstream that misbehaves, a restart under queries.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::address::{self, FAMILIES, Family};
use lab::client::{self, Outcome, PATIENCE};
use lab::cluster::Cluster;
use lab::names::{
    self, A, ALT_PORT, Ask, LONG_CHAIN, Names, RESOLVER, Reply, SPECIAL, Stream, UNBOUND,
    connect_through, kind_of, percentile, policy, right, service, wrong,
};
use lab::netns::Netns;
use lab::server::PORT;
use lab::{tool, wait};

/// A client that resolves and connects.
const CONNECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/connect.c");
const SOON: Duration = Duration::from_secs(10);
/// How long a connection is waited for that should not come about: longer than a node holds a first packet back.
const BRIEFLY: Duration = Duration::from_millis(300);
/// Queries go on for so long before, between and after two restarts: some hundreds of them.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(1);
/// An answer that is longer than a datagram may be, and the number of its first address.
const OVERSIZED: &str = "oversized";
const OVERSIZED_FROM: u32 = 5_000;
/// Less than the time after which a first packet is sent again.
const FIRST_PACKET: Duration = Duration::from_millis(900);

#[test]
#[ignore = "needs root; make test runs it"]
fn real_resolvers_ask_a_node_and_reach_what_it_has_answered() {
    tool::require(&["dig", "unbound", "curl", "cc", "musl-gcc"]).unwrap();
    let mut cluster = Cluster::lay_out(1).unwrap();
    let names = Names::lay_out(&cluster, &[UNBOUND]).unwrap();
    let _unbound = names.unbound().unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.api(1).unwrap().put_policy(&policy()).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    let operator = Arc::clone(&cluster.topology.operator);

    // At every address, over both transports, for both families.
    let management = SocketAddr::new(address::management(1).into(), 53);
    let mut number = 10;
    for (netns, server) in [
        (&client, service(Family::V4)),
        (&client, service(Family::V6)),
        (&operator, management),
    ] {
        for (kind, family) in [("A", Family::V4), ("AAAA", Family::V6)] {
            for transport in ["+notcp", "+tcp"] {
                number += 1;
                let name = format!("n{number}.fresh.test");
                let said = dig(netns, server.ip(), &[&name, kind, transport, "+short"]);
                assert_eq!(said.trim(), right(number, family).to_string(), "{server}");
            }
        }
    }
    let own = dig(
        &client,
        service(Family::V4).ip(),
        &["n1.own.fresh.test", "+short"],
    );
    assert_eq!(
        own.trim(),
        right(1, Family::V4).to_string(),
        "of unbound's own"
    );

    let denied = dig(&client, service(Family::V4).ip(), &["n1.denied.test"]);
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
    assert!(denied.contains("EDE: "), "{denied}");
    assert!(denied.contains("SOA"), "{denied}");
    assert!(!names.resolver.was_asked("n1.denied.test"));

    for family in FAMILIES {
        // glibc, then at once a connection.
        let name = "n50.fresh.test";
        let address = right(50, family);
        let database = match family {
            Family::V4 => "ahostsv4",
            Family::V6 => "ahostsv6",
        };
        assert_eq!(probe(&client, address, PORT, BRIEFLY), Outcome::Silent);
        let said = tool::run(client.command("getent").args([database, name])).unwrap();
        assert!(said.starts_with(&address.to_string()), "{said}");
        assert_eq!(
            probe(&client, address, PORT, FIRST_PACKET),
            Outcome::Connected
        );
        assert_eq!(probe(&client, address, ALT_PORT, BRIEFLY), Outcome::Silent);

        let version = match family {
            Family::V4 => "--ipv4",
            Family::V6 => "--ipv6",
        };
        for number in 60..70 {
            let url = format!("http://n{number}.fresh.test/");
            let mut curl = client.command("curl");
            // A first packet that is lost is sent again after a second.
            curl.args(["--silent", "--show-error", "--fail", version]);
            curl.args(["--max-time", "5", "--connect-timeout", "5"]);
            let said = tool::run(curl.args(["--write-out", "\n%{time_connect}", &url])).unwrap();
            let (body, seconds) = said.split_once('\n').unwrap();
            assert_eq!(body, format!("n{number}.fresh.test"));
            assert!(seconds.parse::<f64>().unwrap() < 0.9, "{url}: {seconds} s");
        }
    }

    // Programs of both C libraries, which ask for both families at once.
    let dir = client.run().dir();
    for (number, compiler) in (80..).zip(["cc", "musl-gcc"]) {
        let program = dir.join(compiler);
        let mut compile = Command::new(compiler);
        compile.args(["-O2", "-o"]).arg(&program);
        tool::run(compile.arg(CONNECT)).unwrap();
        for nth in 0..10 {
            let name = format!("n{}.fresh.test", 10 * number + nth);
            let mut connect = client.command(&program);
            let said = tool::run(connect.args([&name, "80"])).unwrap();
            let (_, millis) = said.trim().split_once(' ').unwrap();
            assert!(
                millis.parse::<u32>().unwrap() < 900,
                "{compiler} {name}: {said}"
            );
        }
    }

    // What the asker alone is granted.
    let reply = ask(&client, &Ask::new("n75.asked.test", A));
    assert_eq!(reply.addresses, [right(75, Family::V4)]);
    let granted = SocketAddr::new(right(75, Family::V4), PORT);
    let other = address::client(1, Family::V4);
    assert_eq!(
        client::probe(&client, other, granted, BRIEFLY),
        Outcome::Silent
    );
    assert_eq!(
        probe(&client, granted.ip(), PORT, FIRST_PACKET),
        Outcome::Connected
    );
    let again = Ask::new("n75.asked.test", A).from(other);
    assert_eq!(ask(&client, &again).addresses, [granted.ip()]);
    assert_eq!(
        client::probe(&client, other, granted, FIRST_PACKET),
        Outcome::Connected
    );

    // Two names on one address: to each its own port.
    for (number, [first, second]) in [
        (70, [("fresh", PORT), ("alt", ALT_PORT)]),
        (71, [("alt", ALT_PORT), ("fresh", PORT)]),
    ] {
        let address = right(number, Family::V4);
        let resolve = |zone: &str| {
            let reply = ask(&client, &Ask::new(&format!("n{number}.{zone}.test"), A));
            assert_eq!(reply.addresses, [address]);
        };
        let reaches = |port| probe(&client, address, port, FIRST_PACKET) == Outcome::Connected;
        resolve(first.0);
        assert_eq!([first.1, second.1].map(reaches), [true, false]);
        resolve(second.0);
        assert_eq!([first.1, second.1].map(reaches), [true, true]);
    }

    let api = cluster.api(1).unwrap();
    let cache = api.get_json("/api/v1/dns-cache").unwrap();
    let entries = cache["entries"].as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["hostname"] == "n70.alt.test")
        .unwrap_or_else(|| panic!("{cache}"));
    assert_eq!(entry["ips"][0], right(70, Family::V4).to_string());
    assert!(entry["last_seen"].is_i64(), "{entry}");
    let grants = api.get("/api/v1/dns/grants").unwrap();
    assert_eq!(grants.status, 200, "{}", grants.text());
    let text = grants.text();
    for part in ["n70.alt.test", "n70.fresh.test", "\"alt\"", "\"clients\""] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_grant_ends_when_its_time_is_up_unless_a_flow_uses_it() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let _names = Names::lay_out(&cluster, &[RESOLVER]).unwrap();
    let node = cluster.node(1);
    node.configure("dataplane", "dns_allowlist_idle_secs: 1")
        .unwrap();
    node.start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.api(1).unwrap().put_policy(&policy()).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    let (used, unused) = (800, 801);
    let name = |number: u32| format!("n{number}.ttl1.fresh.test");
    let address = |number| right(number, Family::V4);
    for number in [used, unused] {
        let reply = ask(&client, &Ask::new(&name(number), A));
        assert_eq!(reply.addresses, [address(number)]);
    }
    let begin = Instant::now();
    let live = SocketAddr::new(address(used), PORT);
    let live = client.enter(|| connect_through(1, live, FIRST_PACKET).unwrap());

    let from = address::spread_client(Family::V4).to_string();
    let node = cluster.node(1);
    let explained = |number: u32| {
        let said = node.control(&["explain", "dns", &name(number), "--from", &from]);
        said.unwrap()
    };
    for (number, uses) in [(used, "1 flows"), (unused, "0 flows")] {
        let said = explained(number);
        println!("{said}");
        assert!(said.contains("verdict      allow"), "{said}");
        let grant = format!("{} by fresh", address(number));
        assert!(said.contains(&grant) && said.contains(uses), "{said}");
    }
    // The least that a grant lasts is a minute.
    let over = || Ok(!explained(unused).contains(" by fresh"));
    let patience = Duration::from_secs(90);
    wait::until_true("the end of the unused grant", patience, over).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(60));
    let outcome = |number| probe(&client, address(number), PORT, FIRST_PACKET);
    assert_eq!(outcome(unused), Outcome::Silent);
    assert_eq!(outcome(used), Outcome::Connected);
    drop(live);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_upstream_that_misbehaves_has_no_wrong_address_granted() {
    let (mut cluster, _names) = names::start(1).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    // What is asked for and whether its address is to be reached: none where both would do.
    let mut cases = vec![
        ("late300", Some(true)),
        ("never", Some(false)),
        ("wrong-id", Some(false)),
        ("wrong-question", Some(false)),
        ("other-name", Some(false)),
        (OVERSIZED, None),
        ("truncated", Some(true)),
        ("truncated-wrong", Some(false)),
        ("truncated-never", Some(false)),
        ("chain", Some(true)),
        ("long-chain", None),
        ("broken-chain", Some(false)),
        ("loop", Some(false)),
        ("garbage", Some(false)),
        ("noise", Some(false)),
        ("spoofed", Some(true)),
        ("spoofed-question", Some(true)),
        ("spoofed-elsewhere", Some(true)),
        ("error", Some(false)),
    ];
    cases.extend(SPECIAL.iter().map(|special| (special.label, Some(true))));
    let cases: Vec<_> = (100..)
        .zip(cases)
        .map(|(number, case)| match case {
            // Has the addresses of the numbers behind its own as well.
            (label, _) if label == OVERSIZED => (OVERSIZED_FROM, case),
            _ => (number, case),
        })
        .flat_map(|(number, case)| FAMILIES.map(|family| (number, case, family)))
        .collect();
    // A node keeps few packets for a next hop that it does not know yet.
    for family in FAMILIES {
        ask(&client, &Ask::new("n99.fresh.test", kind_of(family)));
        assert_eq!(
            probe(&client, right(99, family), PORT, PATIENCE),
            Outcome::Connected
        );
    }
    // All at once.
    let mut failures: Vec<String> = thread::scope(|scope| {
        let checked: Vec<_> = cases
            .iter()
            .map(|&(number, (label, expected), family)| {
                let client = &client;
                scope.spawn(move || check_hostile(client, number, label, expected, family))
            })
            .collect();
        checked
            .into_iter()
            .flat_map(|checked| checked.join().unwrap())
            .collect()
    });
    for special in SPECIAL.iter().filter(|special| special.routed) {
        if probe(&client, special.address, PORT, BRIEFLY) != Outcome::Silent {
            failures.push(format!("{special:?} is granted"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");

    // A huge answer: cut short over UDP, as many addresses over TCP as an answer may have, and all of them are granted.
    for (number, count) in [(400, 500), (410, 1_000), (420, 2_000)] {
        let huge = Ask::new(&format!("n{number}.many{count}.hostile.test"), A);
        let short = client.enter(|| huge.send(SOON)).unwrap();
        assert!(short.truncated, "{count}: {short:?}");
        let whole = client.enter(|| huge.send_over_tcp(SOON)).unwrap();
        let told = count.min(512);
        assert_eq!(whole.addresses.len(), told, "{whole:?}");
        for address in [whole.addresses[0], whole.addresses[told - 1]] {
            let outcome = probe(&client, address, PORT, FIRST_PACKET);
            assert_eq!(outcome, Outcome::Connected, "{address} of {count}");
        }
    }
    println!("a chain of {LONG_CHAIN}: {:?}", {
        let ask = Ask::new("n450.long-chain.hostile.test", A);
        client.enter(|| ask.send(SOON)).unwrap().addresses
    });

    let api = cluster.api(1).unwrap();
    for path in ["/api/v1/dns-cache", "/api/v1/dns/grants"] {
        let listed = api.get(path).unwrap();
        assert_eq!(listed.status, 200, "{path}: {}", listed.text());
        let listed = listed.text();
        let forged = ["\"203.0.113.", "\"2001:db8:e:"].map(str::to_owned);
        let special = SPECIAL
            .iter()
            .map(|special| format!("\"{}\"", special.address));
        for address in special.chain(forged) {
            assert!(!listed.contains(&address), "{address} in {path}: {listed}");
        }
    }
    cluster.node(1).ensure_running().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn queries_that_are_never_answered_hold_up_no_others() {
    let (mut cluster, _names) = names::start(1).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    client.enter(|| {
        let slow = thread::spawn(|| Ask::new("n90.late1500.hostile.test", A).send(SOON));
        let mut times = Vec::new();
        let mut number = 10_000;
        for round in 0..2 {
            // The node gives them up after two seconds.
            let first = 200 * round;
            let others = address::client(1, Family::V4);
            let _outstanding =
                Stream::unanswerable(others, service(Family::V4), first, 200).unwrap();
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(1_900) {
                number += 1;
                let ask = Ask::new(&format!("n{number}.fresh.test"), A);
                let reply = ask.send(SOON).unwrap();
                assert_eq!(reply.addresses, [right(number, Family::V4)], "{reply:?}");
                times.push(reply.time);
            }
        }
        println!(
            "{} queries beside 200 without an answer: p50 {:?} p99 {:?} most {:?}",
            times.len(),
            percentile(&times, 50),
            percentile(&times, 99),
            percentile(&times, 100)
        );
        // Timers of the unanswered ones count in seconds.
        assert!(percentile(&times, 99) < Duration::from_millis(200));
        assert!(percentile(&times, 100) < Duration::from_millis(1000));
        let slow = slow.join().unwrap().unwrap();
        assert_eq!(slow.addresses, [right(90, Family::V4)]);
    });
    cluster.node(1).ensure_running().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn clients_are_answered_whatever_the_host_does_to_its_lane() {
    let (mut cluster, _names) = names::start(1).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    let netns = Arc::clone(cluster.topology.node(1));
    let is_answered = |server| {
        let ask = Ask::new("n1.fresh.test", A).at(server);
        Ok(client.enter(|| ask.send(BRIEFLY)).is_ok())
    };
    for taken in [
        "link set svc0 down\nlink set svc0 up\n",
        "route flush table 28279\naddress flush dev svc0\n",
    ] {
        netns.ip(taken).unwrap();
        for family in FAMILIES {
            let what = format!("an answer over {family:?} after {taken}");
            wait::until_true(&what, SOON, || is_answered(service(family))).unwrap();
        }
    }
    netns.ip("link del svc0\n").unwrap();
    let node = cluster.node(1);
    wait::until_true("the end of a node without a lane", SOON, || {
        Ok(!node.is_running())
    })
    .unwrap();
    let log = std::fs::read_to_string(node.log_path()).unwrap();
    assert!(log.contains("the device of the host lane has gone"));
    node.start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    assert!(is_answered(service(Family::V4)).unwrap());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn no_query_is_lost_while_the_program_is_replaced() {
    let (mut cluster, _names) = names::start(1).unwrap();
    let client = Arc::clone(&cluster.topology.client);
    let operator = Arc::clone(&cluster.topology.operator);
    let inside = address::spread_client(Family::V4);
    let kept = ask(&client, &Ask::new("n500.fresh.test", A)).addresses[0];
    let over = AtomicBool::new(false);
    let management = SocketAddr::new(address::management(1).into(), 53);
    let operator_address = IpAddr::from(address::OPERATOR);
    let (through_port, at_management, over_tcp, restarts) = thread::scope(|scope| {
        let run = |netns: &Arc<Netns>, source, server| {
            let (netns, over) = (Arc::clone(netns), &over);
            scope.spawn(move || netns.enter(|| Stream::run(source, server, over)))
        };
        let through_port = run(&client, inside, service(Family::V4));
        let at_management = run(&operator, operator_address, management);
        let over_tcp = scope.spawn(|| {
            operator.enter(|| {
                let mut failed = Vec::new();
                for number in 600_u32.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let ask = Ask::new(&format!("n{number}.fresh.test"), A).at(management);
                    match ask.from(operator_address).send_over_tcp(SOON) {
                        Ok(reply) if reply.addresses.len() == 1 => {}
                        other => failed.push(format!("n{number}: {other:?}")),
                    }
                    thread::sleep(Duration::from_millis(4));
                }
                failed
            })
        });
        let restarts: Vec<_> = (0..2)
            .map(|_| {
                thread::sleep(BETWEEN_RESTARTS);
                let said = cluster.node(1).control(&["restart"]);
                // What was granted is granted still.
                (said, probe(&client, kept, PORT, PATIENCE))
            })
            .collect();
        thread::sleep(BETWEEN_RESTARTS);
        over.store(true, Ordering::Relaxed);
        (
            through_port.join().unwrap().unwrap(),
            at_management.join().unwrap().unwrap(),
            over_tcp.join().unwrap(),
            restarts,
        )
    });
    for (what, stream) in [("service", &through_port), ("management", &at_management)] {
        println!(
            "{what}: {} sent, {} lost, p50 {:?} p99 {:?} most {:?}",
            stream.sent,
            stream.lost.len(),
            percentile(&stream.times, 50),
            percentile(&stream.times, 99),
            percentile(&stream.times, 100)
        );
    }
    println!("over TCP: {} lost", over_tcp.len());
    assert!(at_management.sent > 200, "{}", at_management.sent);
    assert_eq!(at_management.lost, [], "at the management address");
    assert!(over_tcp.is_empty(), "over TCP: {over_tcp:#?}");
    assert!(through_port.sent > 200, "{}", through_port.sent);
    assert_eq!(through_port.lost, [], "through the data port");
    for (said, reached) in restarts {
        assert!(said.unwrap().contains("runs again"));
        assert_eq!(reached, Outcome::Connected);
    }
}

/// Asks for one name of the scripted upstream and says what is wrong with what came of it.
fn check_hostile(
    client: &Netns,
    number: u32,
    label: &str,
    expected: Option<bool>,
    family: Family,
) -> Vec<String> {
    let (good, bad) = (right(number, family), wrong(number, family));
    let ask = Ask::new(&format!("n{number}.{label}.hostile.test"), kind_of(family));
    let reply = client.enter(|| ask.send(SOON));
    let addresses = reply.as_ref().map_or(&[][..], |reply| &reply.addresses);
    let answered = addresses.contains(&good);
    let reached = |address, limit| probe(client, address, PORT, limit) == Outcome::Connected;
    let limit = if answered { FIRST_PACKET } else { BRIEFLY };
    let claims = [
        ("an answer of some kind", reply.is_ok()),
        (
            "no other address",
            addresses.iter().all(|address| *address == good) || label == OVERSIZED,
        ),
        (
            "the address, if there is one",
            expected.is_none_or(|expected| answered == expected),
        ),
        (
            // That one may be answered over TCP alone.
            "granted what is answered",
            reached(good, limit) == answered || label == OVERSIZED,
        ),
        ("nothing forged granted", !reached(bad, BRIEFLY)),
    ];
    claims
        .into_iter()
        .filter(|(_, holds)| !holds)
        .map(|(claim, _)| format!("{label} {family:?}: not {claim}: {reply:?}"))
        .collect()
}

/// What `dig` prints, without retries.
fn dig(netns: &Netns, server: IpAddr, arguments: &[&str]) -> String {
    let mut dig: Command = netns.command("dig");
    dig.arg(format!("@{server}")).args(["+tries=1", "+time=5"]);
    tool::run(dig.args(arguments)).unwrap()
}

fn ask(client: &Netns, ask: &Ask) -> Reply {
    client.enter(|| ask.send(SOON)).unwrap()
}

fn probe(client: &Netns, address: IpAddr, port: u16, limit: Duration) -> Outcome {
    let family = lab::cluster::family_of(address);
    let source = address::spread_client(family);
    client::probe(client, source, SocketAddr::new(address, port), limit)
}
