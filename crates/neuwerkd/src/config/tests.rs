//! The configuration as an operator meets it: whole files and command lines in, a configuration or problems out.

use std::collections::BTreeSet;

use super::*;

/// Every published key, with values that differ from the defaults where one can choose.
const PUBLISHED: &str = include_str!("tests/published.yaml");

/// What every node needs, as flags.
const NEEDED: &[&str] = &["--management-interface=eth0", "--data-plane-interface=eth1"];

fn flags(args: &[&str]) -> Flags {
    let command = clap::Command::new("run")
        .no_binary_name(true)
        .args(Flags::args());
    Flags::from_matches(&command.try_get_matches_from(args).expect("the flags exist"))
}

fn with(extra: &[&str]) -> Result<Config, Invalid> {
    Config::parse(None, &flags(&[NEEDED, extra].concat()))
}

/// The file with the given lines below what every node needs.
fn file(lines: &str) -> Result<Config, Invalid> {
    let text = format!(
        "version: 1\nbootstrap: {{management_interface: eth0, data_interface: eth1}}\n{lines}"
    );
    Config::parse(Some(&text), &Flags::default())
}

#[track_caller]
fn check(result: Result<Config, Invalid>, expected: &[(&str, &str)]) {
    let problems = result.expect_err("it is refused").problems;
    for (at, words) in expected {
        assert!(
            problems
                .iter()
                .any(|problem| problem.at == *at && problem.reason.contains(words)),
            "no {at}: …{words}… among {problems:#?}"
        );
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn two_interfaces_are_enough() {
    let config = with(&[]).unwrap();
    assert_eq!(config.bootstrap.data_plane_mode, DataPlaneMode::Packet);
    assert!(!config.cluster_mode);
    assert_eq!(config.without_effect, Vec::<String>::new());
    assert_eq!(config, file("").unwrap());
}

#[test]
fn a_published_configuration_starts_with_one_warning() {
    let published = PUBLISHED.replace("data_plane_mode: dpdk", "data_plane_mode: packet");
    let config = Config::parse(Some(&published), &Flags::default())
        .unwrap_or_else(|invalid| panic!("{invalid}"));
    assert_eq!(config.bootstrap.data_plane_mode, DataPlaneMode::Packet);
    assert_eq!(config.cluster.join[0].to_string(), "10.0.0.11:9601");
    assert_eq!(
        config.dataplane.ports.inside.addresses,
        ["10.1.0.5/24".parse().unwrap()]
    );
    for named in ["tls_intercept.h2.pool_shards", "dpdk.workers"] {
        assert!(
            config.without_effect.iter().any(|key| key == named),
            "{named}: {:?}",
            config.without_effect
        );
    }
    let known = |path: &&String| {
        Config::keys()
            .iter()
            .any(|key| key.part.exists() && key.part != Part::Dpdk && key.path == **path)
    };
    let existing: Vec<_> = config.without_effect.iter().filter(known).collect();
    assert!(
        existing.is_empty(),
        "only keys of parts that do not exist are without effect: {existing:?}"
    );
}

#[test]
fn dpdk_is_a_mode_of_builds_that_have_it() {
    let result = Config::parse(Some(PUBLISHED), &Flags::default());
    if !cfg!(feature = "dpdk") {
        let words = "take one built with the feature dpdk, or set packet";
        return check(result, &[("bootstrap.data_plane_mode", words)]);
    }
    let config = result.unwrap_or_else(|invalid| panic!("{invalid}"));
    assert_eq!(config.bootstrap.data_plane_mode, DataPlaneMode::Dpdk);
    let has_effect = |key: &str| !config.without_effect.iter().any(|without| without == key);
    for key in ["dpdk.rx_ring_size", "dpdk.static_mac", "dpdk.workers"] {
        assert!(has_effect(key), "{key}");
    }
    assert!(!has_effect("dpdk.force_netvsc"));
}

#[test]
fn a_published_configuration_at_its_defaults_needs_no_warning() {
    let config =
        file("dns: {upstream_timeout_ms: 2000}\nintegration: {mode: none}\ndpdk: {workers: auto}")
            .unwrap();
    assert_eq!(config.without_effect, Vec::<String>::new());
}

#[test]
fn published_keys_of_the_dataplane_have_an_effect_in_every_mode() {
    let config = file(
        "dataplane: {flow_incomplete_tcp_idle_timeout_secs: 20, flow_incomplete_tcp_syn_sent_idle_timeout_secs: 3}\n\
         dpdk: {overlay: {debug: true, health_probe_debug: true}}",
    )
    .unwrap();
    assert_eq!(config.without_effect, Vec::<String>::new());
}

#[test]
fn a_node_without_addresses_asks_for_them() {
    assert!(with(&[]).is_ok());
    let inside = "--dataplane-ports-inside-addresses=10.1.0.5/24";
    assert!(with(&[inside, "--outside-interface=eth2"]).is_ok());
    let gateway = "--dataplane-ports-inside-gateway=10.2.0.1";
    assert!(
        with(&["--dataplane-nat66=auto", gateway]).is_ok(),
        "it may be on the network that is leased"
    );
}

#[test]
fn a_node_in_mode_tun_without_addresses_says_that_it_forwards_nothing() {
    let reason = |flags: &[&str]| with(flags).unwrap().forwards_nothing();
    let (tun, two) = ("--data-plane-mode=tun", "--outside-interface=tun1");
    let inside = "--dataplane-ports-inside-addresses=10.1.0.5/24";
    let check = |flags: &[&str], key: &str| {
        let reason = reason(flags).unwrap();
        assert!(reason.ends_with(&format!("set {key}")), "{reason}");
    };
    check(&[tun], "dataplane.ports.inside.addresses");
    check(&[tun, two, inside], "dataplane.ports.outside.addresses");
    assert_eq!(reason(&[tun, inside]), None);
    assert_eq!(reason(&["--data-plane-mode=tap"]), None);
}

#[test]
fn what_the_engine_cannot_do_is_refused_before_it_starts() {
    let inside = "--dataplane-ports-inside-addresses=10.1.0.5/24";
    check(
        with(&[
            inside,
            "--outside-interface=eth2",
            "--dataplane-ports-outside-addresses=2001:db8::5/64",
        ]),
        &[(
            "dataplane.snat",
            "needs an IPv4 address on the outside port",
        )],
    );
    check(
        with(&[inside, "--dataplane-nat66=auto"]),
        &[("--dataplane-nat66", "needs a global IPv6 address")],
    );
}

#[test]
fn every_key_has_one_flag_a_type_a_default_and_a_description() {
    let mut flags = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for key in Config::keys() {
        assert!(paths.insert(&key.path), "{} is declared twice", key.path);
        for flag in [key.flag.as_str()].iter().chain(&key.flag_aliases) {
            assert!(flags.insert((*flag).to_owned()), "--{flag} is given twice");
        }
        assert!(key.doc.ends_with('.'), "{}: {:?}", key.path, key.doc);
        assert!(
            !key.kind.is_empty() && (key.required || !key.default.is_empty()),
            "{}",
            key.path
        );
    }
}

#[test]
fn the_published_flags_are_there() {
    let flags: BTreeSet<&str> = Config::keys().iter().map(|key| key.flag.as_str()).collect();
    for flag in include_str!("tests/published_flags.txt").split_whitespace() {
        let alias = Config::keys()
            .iter()
            .any(|key| key.flag_aliases.contains(&flag));
        assert!(flags.contains(flag) || alias, "--{flag}");
    }
}

/// A value, other than the default, that is accepted for this key by itself.
fn sample(key: &Key) -> String {
    let number = |range: &std::ops::RangeInclusive<u64>| {
        let number = (range.start() + 7).min(*range.end()).to_string();
        if number == key.default {
            range.start().to_string()
        } else {
            number
        }
    };
    match (key.path.as_str(), key.kind.trim_start_matches("auto, or ")) {
        ("bootstrap.data_interface", _) => "eth2".into(),
        ("bootstrap.outside_interface", _) => "eth3".into(),
        ("cluster.bind", _) => "10.0.0.1:9600".into(),
        (path, _) if path.ends_with(".gateway") => "fe80::1".into(),
        (path, _) if path.ends_with(".routes") => "fd00::/8 via fe80::1".into(),
        ("dataplane.snat", _) => "192.0.2.1".into(),
        ("dataplane.nat66", _) => "2001:db8::1".into(),
        ("dataplane.nptv6.inside", _) => "fd00:1::/48".into(),
        ("dataplane.nptv6.outside", _) => "2001:db8:1::/48".into(),
        (_, "true or false") => if key.default == "true" {
            "false"
        } else {
            "true"
        }
        .into(),
        (_, "a whole number" | "list of whole number") => {
            key.range.as_ref().map_or("1".into(), number)
        }
        (_, "list of processor or a range of them") => "2".into(),
        (_, "an interface name") => "mgmt0".into(),
        (_, "an IP address" | "list of IP address" | "an IPv4 address") => "10.9.0.53".into(),
        (_, "an address with a port" | "list of address with a port") => "10.9.0.1:5353".into(),
        (_, "list of address with a prefix length") => "10.8.0.9/24".into(),
        (_, "an absolute path") => "/tmp/elsewhere".into(),
        (_, "a text" | "list of text") => "word".into(),
        (_, "a hardware address") => "02:00:00:00:00:01".into(),
        (_, "a length of time (ms, s, m, h, d)") => "15m".into(),
        (_, kind) if kind.starts_with("list of host with a port") => "127.0.0.1:9601".into(),
        (_, choices) => choices
            .split(", ")
            .find(|word| *word != key.default)
            .unwrap_or_default()
            .into(),
    }
}

/// The problems but those that say what else a key needs, which is not the matter here.
fn parsed(file: Option<&str>, args: &[&str]) -> (Option<Config>, Vec<String>) {
    match Config::parse(file, &flags(args)) {
        Ok(config) => (Some(config), Vec::new()),
        Err(invalid) => (
            None,
            invalid
                .problems
                .into_iter()
                .map(|problem| problem.reason)
                .collect(),
        ),
    }
}

#[test]
fn each_flag_equals_its_key() {
    let default = with(&[]).unwrap();
    let mut accepted = 0;
    for key in Config::keys() {
        let sample = sample(key);
        let flag = format!("--{}={sample}", key.flag);
        let by_flag: Vec<&str> = NEEDED
            .iter()
            .copied()
            .filter(|arg| !arg.starts_with(&format!("--{}=", key.flag)))
            .collect();
        let (from_flag, flag_problems) = parsed(None, &[&by_flag[..], &[&flag]].concat());
        let nested = key
            .path
            .split('.')
            .rev()
            .fold(sample.clone(), |below, name| format!("{{{name}: {below}}}"));
        let nested = if sample.contains(": ") || sample.contains("::") {
            nested.replace(&sample, &format!("{sample:?}"))
        } else {
            nested
        };
        let (from_file, file_problems) = parsed(
            Some(&format!("version: 1\n{}", &nested[1..nested.len() - 1])),
            &by_flag,
        );
        assert_eq!(flag_problems, file_problems, "{} {sample}", key.path);
        if let (Some(mut from_flag), Some(mut from_file)) = (from_flag, from_file) {
            accepted += 1;
            // These are named as they were given, which is the one difference.
            assert_eq!(
                from_flag.without_effect.len(),
                from_file.without_effect.len(),
                "{}",
                key.path
            );
            from_flag.without_effect.clear();
            from_file.without_effect.clear();
            assert_eq!(from_flag, from_file, "{}", key.path);
            assert_ne!(from_flag, default, "{} {sample} changes nothing", key.path);
        }
    }
    assert!(
        accepted > Config::keys().len() * 8 / 10,
        "{accepted} of {}",
        Config::keys().len()
    );
}

#[test]
fn a_default_given_as_it_is_shown_changes_nothing() {
    let default = with(&[]).unwrap();
    let is_value = |key: &&Key| {
        let in_words = ["unset", "workers"].contains(&key.default.as_str())
            || key.default.contains([' ', '.', '_']);
        key.shape != Shape::List && !key.required && !in_words
    };
    let keys: Vec<&Key> = Config::keys().iter().filter(is_value).collect();
    assert!(keys.len() > Config::keys().len() / 2, "{}", keys.len());
    for key in keys {
        let given = with(&[&format!("--{}={}", key.flag, key.default)]);
        let mut given = given.unwrap_or_else(|invalid| panic!("{invalid}"));
        given.cluster_mode = false;
        assert_eq!(given, default, "{}", key.path);
    }
}

#[test]
fn each_worker_has_one_processor() {
    let config = file("dataplane: {worker_cpus: [1, 4-6]}").unwrap();
    assert_eq!(config.dataplane.worker_cpus(), [1, 4, 5, 6]);
    assert_eq!(config.dataplane.workers(16), 4, "one for each");
    check(
        file("dataplane: {workers: 3, worker_cpus: [1, 0-2, 2]}"),
        &[
            ("dataplane.worker_cpus", "names 5 processors for the 3 of"),
            ("dataplane.worker_cpus", "names processor 1 more than once"),
            ("dataplane.worker_cpus", "names processor 2 more than once"),
        ],
    );
    check(
        file("dataplane: {worker_cpus: [1, 3-2]}"),
        &[("dataplane.worker_cpus[1]", "write for example 2 or 2-5")],
    );
}

#[test]
fn a_flag_wins_over_the_file() {
    let text = "version: 1\nbootstrap: {management_interface: eth0, data_interface: eth1}\npolicy: {default: allow}";
    let config = Config::parse(Some(text), &flags(&["--default-policy=deny"])).unwrap();
    assert_eq!(config.policy.default, PolicyDefault::Deny);
}

#[test]
fn lists_repeat_or_take_commas() {
    let expected = ["10.0.0.53", "10.0.0.54", "fd00::53"]
        .map(|text| text.parse::<std::net::IpAddr>().unwrap());
    let config = with(&[
        "--dns-target-ip=10.0.0.53",
        "--dns-target-ips",
        "10.0.0.54,fd00::53",
    ])
    .unwrap();
    assert_eq!(config.dns.target_ips, expected);
}

#[test]
fn the_two_published_spellings_of_join_are_one_key() {
    let config = file("cluster: {bind: '10.0.0.1:9600', join_seed: '10.0.0.2:9601'}").unwrap();
    assert_eq!(config.cluster.join[0].to_string(), "10.0.0.2:9601");
    let both = "cluster: {bind: '10.0.0.1:9600', join: a, join_seed: b}";
    check(
        file(both),
        &[("cluster.join_seed", "is another name of cluster.join")],
    );
}

#[test]
fn cluster_mode_is_entered_by_any_of_its_keys_and_by_no_other() {
    for flag in [
        "--cluster-bind=10.0.0.1:9600",
        "--cluster-join-bind=127.0.0.1:9700",
        "--cluster-advertise=127.0.0.1:9600",
        "--join=127.0.0.1:9601",
        "--cluster-data-dir=/tmp/c",
        "--node-id-path=/tmp/n",
        "--bootstrap-token-path=/tmp/t",
        "--cluster-bind=127.0.0.1:9600",
    ] {
        assert!(with(&[flag]).unwrap().cluster_mode, "{flag}");
    }
    assert!(file("cluster: {data_dir: /tmp/c}").unwrap().cluster_mode);
    for flag in [
        "--cluster-heartbeat-ms=60",
        "--cluster-backup-keep=3",
        "--cluster-migrate-from-local",
    ] {
        assert!(!with(&[flag]).unwrap().cluster_mode, "{flag}");
    }
}

#[test]
fn addresses_that_follow_from_others() {
    let cluster = with(&["--cluster-bind=[fd00::1]:9600"]).unwrap().cluster;
    assert_eq!(cluster.join_bind().to_string(), "[fd00::1]:9601");
    assert_eq!(cluster.advertise().to_string(), "[fd00::1]:9600");
    let dataplane = with(&["--dataplane-flow-table-capacity=10"])
        .unwrap()
        .dataplane;
    assert_eq!(
        (dataplane.flow_table_capacity, dataplane.max_active_flows()),
        (1024, 1024)
    );
    assert_eq!(dataplane.max_active_nat_entries(), 1 << 20);
    let overlay = with(&["--encap=geneve"]).unwrap().dataplane;
    assert_eq!(overlay.snat, SourceNat::None);
    let kept = with(&["--encap=geneve", "--snat=auto"]).unwrap().dataplane;
    assert_eq!(kept.snat, SourceNat::Auto);
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "version: 1\nbootstrap: {data_interface: eth1, datainterface: x}\ndns: {upstreams: [1.1.1.1, '8.8.8.8:53', x]}\n\
                runtime: {http_worker_threads: 0}\nfoo: {bar: 1}";
    check(
        Config::parse(Some(text), &flags(&["--metrics-bind=nowhere"])),
        &[
            (
                "bootstrap.management_interface",
                "is required; set it in the file or give --management-interface",
            ),
            (
                "bootstrap.datainterface",
                "did you mean bootstrap.data_interface?",
            ),
            (
                "dns.upstreams[0]",
                "\"1.1.1.1\" is not an address with a port, or tls://ADDRESS#NAME; write for example 9.9.9.9:53 or",
            ),
            ("dns.upstreams[2]", "\"x\""),
            (
                "runtime.http_worker_threads",
                "0 is out of range; it must be 1 to 1024",
            ),
            ("foo.bar", "is not a known key"),
            (
                "--metrics-bind",
                "\"nowhere\" is not an address with a port",
            ),
        ],
    );
}

#[test]
fn resolvers_over_tls() {
    #[track_caller]
    fn check(text: &str, want: Option<&str>) {
        let config = file(&format!("dns: {{upstreams: ['{text}']}}"));
        let shown = config.map(|config| config.dns.upstreams[0].to_string());
        assert_eq!(shown.ok().as_deref(), want, "{text}");
    }
    let quad9 = Some("tls://9.9.9.9:853#dns.quad9.net");
    check("9.9.9.9:53", Some("9.9.9.9:53"));
    check("tls://9.9.9.9:853#dns.quad9.net", quad9);
    check("tls://9.9.9.9#dns.quad9.net", quad9);
    check("tls://9.9.9.9", Some("tls://9.9.9.9:853#9.9.9.9"));
    check("tls://9.9.9.9:8853", Some("tls://9.9.9.9:8853#9.9.9.9"));
    check(
        "tls://[2620:fe::fe]:853#a.b",
        Some("tls://[2620:fe::fe]:853#a.b"),
    );
    check("tls://2620:fe::fe#a.b", Some("tls://[2620:fe::fe]:853#a.b"));
    check(
        "tls://[2620:fe::fe]",
        Some("tls://[2620:fe::fe]:853#2620:fe::fe"),
    );
    for wrong in [
        "tls://dns.quad9.net",
        "tls://9.9.9.9:853#",
        "tls://9.9.9.9#a b",
        "tls://",
        "https://9.9.9.9",
        "9.9.9.9#a.b",
    ] {
        check(wrong, None);
    }
    // As a block of YAML without quotes, and as a flag.
    let plain =
        file("dns:\n  upstreams:\n  - tls://9.9.9.9:853#dns.quad9.net\n  - 1.1.1.1:53").unwrap();
    let flag = "--dns-upstreams=tls://9.9.9.9#dns.quad9.net,1.1.1.1:53";
    let flagged = Config::parse(None, &flags(&[NEEDED, &[flag]].concat())).unwrap();
    assert_eq!(plain.dns.upstreams, flagged.dns.upstreams);
    assert_eq!(plain.dns.upstreams.len(), 2);
}

#[test]
fn what_the_proxy_goes_by() {
    let given = file(
        "dns: {upstream_ca: /etc/ca.pem, denied_answer: refused, allow_ech: true, more_types: [caa, TYPE99],\n\
         cache_bytes: 0, client_queries_per_second: 0, client_burst: 1}",
    )
    .unwrap()
    .dns;
    assert_eq!(given.denied_answer, DeniedAnswer::Refused);
    assert_eq!(given.more_types.len(), 2);
    let flagged = [
        "--dns-upstream-ca=/etc/ca.pem",
        "--dns-denied-answer=refused",
        "--dns-allow-ech",
        "--dns-more-types=CAA,TYPE99",
        "--dns-cache-bytes=0",
        "--dns-client-queries-per-second=0",
        "--dns-client-burst=1",
    ];
    let flagged = Config::parse(None, &flags(&[NEEDED, &flagged].concat())).unwrap();
    assert_eq!(flagged.dns, given);
    check(
        file(
            "dns: {upstream_ca: ca.pem, denied_answer: drop, allow_ech: maybe, more_types: [A6A, ANY, 257],\n\
             cache_bytes: 4000000001, client_queries_per_second: 1000001, client_burst: 0}",
        ),
        &[
            ("dns.upstream_ca", "absolute path"),
            ("dns.denied_answer", "is not one of nxdomain, refused"),
            ("dns.allow_ech", "neither true nor false"),
            (
                "dns.more_types[0]",
                "\"A6A\" is not a type of DNS records; write for example CAA, TLSA or TYPE257",
            ),
            ("dns.more_types[1]", "\"ANY\""),
            ("dns.more_types[2]", "257"),
            (
                "dns.cache_bytes",
                "4000000001 is out of range; it must be 0 to 4000000000",
            ),
            (
                "dns.client_queries_per_second",
                "1000001 is out of range; it must be 0 to 1000000",
            ),
            (
                "dns.client_burst",
                "0 is out of range; it must be 1 to 1000000",
            ),
        ],
    );
}

#[test]
fn unknown_keys_get_a_suggestion() {
    check(
        file("dns: {target_ip: 10.0.0.1}"),
        &[("dns.target_ip", "did you mean dns.target_ips?")],
    );
    check(
        file("dataplane: {max_active_flows: 5}"),
        &[(
            "dataplane.max_active_flows",
            "dataplane.admission.max_active_flows?",
        )],
    );
    check(
        file("htpp: {bind: '10.0.0.1:1'}"),
        &[("htpp.bind", "did you mean http.bind?")],
    );
    check(
        file("zzz: 1"),
        &[("zzz", "docs/configuration.md lists all keys")],
    );
}

#[test]
fn files_that_are_no_configuration() {
    let parse = |text: &str| Config::parse(Some(text), &flags(NEEDED));
    check(parse(""), &[("version", "is required")]);
    check(parse("version: 2"), &[("version", "2 is not a version")]);
    check(parse("- a\n- b"), &[("config file", "must be a mapping")]);
    check(
        parse("a: [unclosed"),
        &[(
            "config file",
            "is not one valid YAML document: unclosed bracket",
        )],
    );
    check(
        parse("version: 1\nversion: 1"),
        &[("config file", "is not one valid YAML document: duplicate")],
    );
    check(
        parse("version: 1\ndns: 5"),
        &[("dns", "is a group of keys")],
    );
    check(
        parse("version: 1\ndns: [a]"),
        &[("dns", "is a group of keys")],
    );
    assert!(
        parse("version: 1\ndns:\nruntime: {}\nhttp: {bind: }").is_ok(),
        "empty groups and keys mean unset"
    );
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let missing = Path::new("/nonexistent/neuwerk.yaml");
    check(
        Config::load(Some(missing), &flags(NEEDED)),
        &[("/nonexistent/neuwerk.yaml", "cannot be read")],
    );
}

#[test]
fn interfaces_do_not_double() {
    check(
        Config::parse(
            None,
            &flags(&["--management-interface=eth0", "--data-plane-interface=eth0"]),
        ),
        &[(
            "--data-plane-interface",
            "eth0 is the management interface already",
        )],
    );
    check(
        with(&["--outside-interface=eth1"]),
        &[("--outside-interface", "eth1 is the inside port already")],
    );
    check(
        with(&["--outside-interface=eth0"]),
        &[("--outside-interface", "management interface already")],
    );
    check(
        with(&["--outside-interface=pci:0000:00:05.0"]),
        &[("--outside-interface", "needs data_plane_mode dpdk")],
    );
}

#[test]
fn settings_of_af_xdp_are_for_its_mode_and_fit_together() {
    let xdp = |keys: &str| {
        let text = format!("dataplane: {{xdp: {{{keys}}}}}");
        Config::parse(
            Some(&format!("version: 1\n{text}")),
            &flags(&[NEEDED, &["--data-plane-mode=xdp"]].concat()),
        )
    };
    let config = xdp("attach: native, zero_copy: on, rx_frames: 256").unwrap();
    assert_eq!(config.bootstrap.data_plane_mode, DataPlaneMode::Xdp);
    assert_eq!(config.without_effect, Vec::<String>::new());
    check(
        with(&["--dataplane-xdp-attach=native"]),
        &[(
            "--dataplane-xdp-attach",
            "is for data_plane_mode xdp, and the mode is packet",
        )],
    );
    check(
        xdp("rx_frames: 1000"),
        &[("dataplane.xdp.rx_frames", "not a power of two; take 1024")],
    );
    check(
        xdp("attach: generic, zero_copy: on"),
        &[("dataplane.xdp.zero_copy", "needs the program in the driver")],
    );
}

#[test]
fn cluster_addresses_must_be_reachable() {
    check(
        with(&["--cluster-bind=0.0.0.0:9600"]),
        &[(
            "--cluster-bind",
            "cannot be advertised; set cluster.advertise",
        )],
    );
    check(
        with(&[
            "--cluster-bind=10.0.0.1:9600",
            "--cluster-advertise=127.0.0.1:9600",
        ]),
        &[("--cluster-advertise", "reachable from this host only")],
    );
    check(
        with(&["--join=10.0.0.2"]),
        &[(
            "--join",
            "10.0.0.2:9601 could not reach back to 127.0.0.1:9600",
        )],
    );
    check(
        with(&["--cluster-bind=127.0.0.1:65535"]),
        &[("--cluster-bind", "leaves no port for joining")],
    );
    check(
        with(&[
            "--cluster-bind=127.0.0.1:9600",
            "--cluster-join-bind=127.0.0.1:9600",
        ]),
        &[("--cluster-join-bind", "is cluster.bind already")],
    );
    assert!(
        with(&[
            "--cluster-bind=0.0.0.0:9600",
            "--cluster-advertise=10.0.0.1:9600",
            "--join=10.0.0.2"
        ])
        .is_ok()
    );
}

#[test]
fn cluster_timers_must_fit_each_other() {
    check(
        with(&["--cluster-heartbeat-ms=150"]),
        &[("cluster.election_min_ms", "less than two heartbeats")],
    );
    check(
        with(&["--cluster-election-min-ms=500"]),
        &[("cluster.election_max_ms", "must be more than")],
    );
    assert!(
        with(&[
            "--cluster-heartbeat-ms=100",
            "--cluster-election-min-ms=300",
            "--cluster-election-max-ms=600"
        ])
        .is_ok()
    );
}

#[test]
fn ports_need_addresses_of_hosts_and_gateways_within_reach() {
    let inside = |rest: &str| file(&format!("dataplane: {{ports: {{inside: {{{rest}}}}}}}"));
    let at = |key: &str| format!("dataplane.ports.inside.{key}");
    check(
        inside("addresses: 10.1.0.0/24"),
        &[(&at("addresses"), "is not an address of a host")],
    );
    check(
        inside("addresses: 10.1.0.5"),
        &[(&at("addresses"), "is not an address with a prefix length")],
    );
    check(
        inside("addresses: 10.1.0.5/24, gateway: 10.2.0.1"),
        &[(&at("gateway"), "10.2.0.1 is in none of the networks")],
    );
    check(
        inside("addresses: 10.1.0.5/24, gateway: 10.1.0.5"),
        &[(&at("gateway"), "is the port's own address")],
    );
    check(
        inside("addresses: 10.1.0.5/24, gateway: [10.1.0.1, 10.1.0.2]"),
        &[(&at("gateway"), "10.1.0.2 is the second of its family")],
    );
    check(
        inside("addresses: 10.2.0.5/24, routes: ['10.0.0.0/8 via 10.1.0.1']"),
        &[(&at("routes"), "10.1.0.1 is in none")],
    );
    assert!(inside("addresses: [10.1.0.5/24, 'fd00::/127'], gateway: [10.1.0.1, 'fe80::1'], routes: '10.0.0.0/8 via 10.1.0.9'").is_ok());
    check(
        with(&["--dataplane-ports-outside-addresses=10.1.0.5/24"]),
        &[(
            "--dataplane-ports-outside-addresses",
            "there is no outside port",
        )],
    );
    check(
        with(&[
            "--outside-interface=eth2",
            "--dataplane-ports-inside-addresses=10.1.0.5/24",
            "--dataplane-ports-outside-addresses=10.1.0.6/24",
        ]),
        &[("--dataplane-ports-outside-addresses", "are of one network")],
    );
}

#[test]
fn the_published_static_keys_spell_the_inside_port() {
    let four = "static_ip: 10.1.0.5, static_prefix_len: 24, static_gateway: 10.1.0.1, static_mac: '02:00:00:00:00:01'";
    let config = file(&format!("dpdk: {{{four}}}")).unwrap();
    assert_eq!(
        config.dataplane.ports.inside.addresses,
        ["10.1.0.5/24".parse().unwrap()]
    );
    assert_eq!(config.without_effect, ["dpdk.static_mac"]);
    check(
        file("dpdk: {static_ip: 10.1.0.5, static_prefix_len: 24}"),
        &[
            ("dpdk.static_gateway", "give all four or none"),
            ("dpdk.static_mac", "give all four or none"),
        ],
    );
    check(
        file(&format!(
            "dpdk: {{{four}}}\ndataplane: {{ports: {{inside: {{addresses: 10.1.0.6/24}}}}}}"
        )),
        &[("dpdk.static_ip", "keep one of the two")],
    );
}

#[test]
fn prefixes_are_translated_in_pairs() {
    let config = |nptv6: &str| file(&format!("dataplane: {{nptv6: {{{nptv6}}}}}"));
    let both = config("inside: \"fd00:1::/48\", outside: \"2001:db8:1::/48\"").unwrap();
    assert!(both.dataplane.nptv6.prefixes().is_some());
    check(
        config("inside: \"fd00:1::/48\""),
        &[("dataplane.nptv6.outside", "is required")],
    );
    check(
        config("inside: 10.0.0.0/8, outside: \"2001:db8:1::/48\""),
        &[("dataplane.nptv6.inside", "is not an IPv6 prefix")],
    );
    check(
        config("inside: \"fd00:1::/48\", outside: \"2001:db8:1::/80\""),
        &[("dataplane.nptv6.outside", "at most 64 bits")],
    );
}

#[test]
fn overlay_networks_are_one_or_a_pair_and_for_vxlan() {
    let at = "dataplane.encap_vni";
    check(
        file("dataplane: {encap_mode: geneve, encap_vni: 5}"),
        &[(at, "is for vxlan")],
    );
    check(
        file("dataplane: {encap_mode: vxlan, encap_vni: 5, encap_vni_internal: 6}"),
        &[(at, "give one or the pair")],
    );
    check(
        file("dataplane: {encap_mode: vxlan, encap_vni_internal: 6}"),
        &[("dataplane.encap_vni_external", "is required")],
    );
    assert!(file("dataplane: {encap_mode: vxlan, encap_vni: 5}").is_ok());
    let same = "encap_vni_internal: 6, encap_vni_external: 6";
    assert!(file(&format!("dataplane: {{encap_mode: vxlan, {same}}}")).is_ok());
    check(
        file(&format!(
            "dataplane: {{encap_mode: vxlan, {same}, encap_udp_port_external: 10800}}"
        )),
        &[("dataplane.encap_vni_external", "another network or port")],
    );
    check(
        with(&["--encap=geneve", "--outside-interface=eth2"]),
        &[("--encap", "needs one data port")],
    );
}

#[test]
fn translation_is_of_its_own_family() {
    check(
        with(&["--snat=fd00::1"]),
        &[("--snat", "fd00::1 is not an IPv4 host address")],
    );
    check(
        with(&["--dataplane-nat66=10.0.0.1"]),
        &[("--dataplane-nat66", "is not an IPv6 host address")],
    );
    check(
        with(&["--snat=0.0.0.0"]),
        &[("--snat", "is not an IPv4 host address")],
    );
}

#[test]
fn a_pool_of_translation_addresses_has_bounds() {
    assert!(with(&["--snat=192.0.2.0/26,198.51.100.7,198.51.100.8"]).is_ok());
    check(
        with(&["--snat=192.0.2.0/26,198.51.100.7-8"]),
        &[("--snat", "is not a translation")],
    );
    for vast in ["192.0.2.0/25", "10.0.0.0/8", "192.0.2.7,10.0.0.0/8"] {
        check(
            with(&[&format!("--snat={vast}")]),
            &[("--snat", "is more than 64 addresses; write fewer")],
        );
    }
    check(
        file("dataplane: {snat: [192.0.2.7, 'fd00::1']}"),
        &[("dataplane.snat", "fd00::1 is not an IPv4 host address")],
    );
    let inside = "--dataplane-ports-inside-addresses=10.1.0.5/24";
    check(
        with(&[
            inside,
            "--dataplane-ports-inside-gateway=10.1.0.1",
            "--snat=10.1.0.0/29",
        ]),
        &[("--snat", "10.1.0.1 is a gateway; leave it out")],
    );
}

#[test]
fn lengths_of_time_have_a_unit() {
    let config = with(&["--policy-max-staleness=90s"]).unwrap();
    assert_eq!(
        config.policy.max_staleness,
        Some(std::time::Duration::from_secs(90))
    );
    check(
        file("policy: {max_staleness: 90}"),
        &[(
            "policy.max_staleness",
            "90 is not a length of time; write for example 15m",
        )],
    );
    check(
        file("policy: {max_staleness: 0s}"),
        &[("policy.max_staleness", "is not a length of time")],
    );
}

#[test]
fn metrics_are_not_public_unless_asked() {
    check(
        with(&["--metrics-bind=0.0.0.0:8080"]),
        &[("--metrics-bind", "or metrics.allow_public_bind: true")],
    );
    assert!(with(&["--metrics-bind=0.0.0.0:8080", "--metrics-allow-public-bind"]).is_ok());
    check(
        with(&[
            "--metrics-bind=0.0.0.0:8080",
            "--metrics-allow-public-bind=false",
        ]),
        &[("--metrics-bind", "or metrics.allow_public_bind: true")],
    );
}

#[test]
fn what_belongs_together_is_given_together() {
    check(
        with(&["--http-cert-path=/c.pem"]),
        &[("--http-cert-path", "needs http.key_path too")],
    );
    check(
        with(&["--integration=gcp-mig", "--gcp-project=p"]),
        &[
            (
                "integration.gcp.region",
                "required by integration.mode gcp-mig",
            ),
            ("integration.gcp.ig_name", "required"),
        ],
    );
}

#[test]
fn nothing_listens_on_the_address_of_a_data_port() {
    let ports = "dataplane: {ports: {inside: {addresses: [10.1.0.1/24, '2001:db8::1/64']}}}";
    check(
        file(&format!("{ports}\nhttp: {{bind: '10.1.0.1:8443'}}")),
        &[(
            "http.bind",
            "10.1.0.1:8443 is an address of the inside data port (dataplane.ports.inside.addresses); take one of eth0",
        )],
    );
    check(
        file(&format!(
            "{ports}\nmetrics: {{bind: '[2001:db8::1]:8080', allow_public_bind: true}}\n\
             cluster: {{bind: '10.1.0.1:9600', join_bind: '10.0.0.1:9601'}}"
        )),
        &[("metrics.bind", "data port"), ("cluster.bind", "data port")],
    );
    file(&format!("{ports}\nhttp: {{bind: '10.1.0.2:8443'}}")).unwrap();
}
