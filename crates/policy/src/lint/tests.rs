//! Each warning where it belongs, and nowhere else.

use crate::Document;

/// The warnings, one a line.
#[track_caller]
fn check(yaml: &str, want: &[&str]) {
    let document = match Document::parse_yaml(yaml.as_bytes()) {
        Ok(document) => document,
        Err(invalid) => panic!("{invalid}"),
    };
    let got: Vec<String> = document
        .lint()
        .into_iter()
        .map(|lint| format!("{}: {}", lint.path, lint.message))
        .collect();
    assert_eq!(got.len(), want.len(), "{got:#?}");
    for (got, want) in got.iter().zip(want) {
        assert!(got.starts_with(want), "{got}\nis not\n{want}");
    }
}

/// Warnings about the rules of a group of IPv4 and IPv6 sources, from `rules` on.
#[track_caller]
fn check_rules(rules: &[&str], want: &[&str]) {
    let rules: Vec<String> = rules
        .iter()
        .enumerate()
        .map(|(i, rule)| format!("  - {{id: r{i}, {rule}}}\n"))
        .collect();
    let want: Vec<String> = want
        .iter()
        .map(|w| format!("source_groups[0].rules{w}"))
        .collect();
    let want: Vec<&str> = want.iter().map(String::as_str).collect();
    check(
        &format!(
            "source_groups:\n- id: g\n  mode: enforce\n  sources: {{cidrs: [10.0.0.0/8, 'fd00::/8']}}\n  rules:\n{}",
            rules.concat()
        ),
        &want,
    );
}

#[test]
fn a_sound_document_has_no_warnings() {
    check("default_policy: deny", &[]);
    check_rules(
        &[
            "action: allow, match: {proto: tcp, dst_ports: [443], dst_ips: [192.0.2.1]}",
            "action: deny, match: {proto: tcp, dst_ports: [443], dst_cidrs: [192.0.2.0/24]}",
            "action: allow, match: {proto: tcp, dst_ports: [443, 80]}",
            "action: allow, match: {proto: icmp}",
            "action: allow, match: {proto: icmp, icmp_types: [8]}",
            "action: allow, match: {proto: icmpv6}",
        ],
        &[],
    );
}

#[test]
fn shadowed_rules() {
    check_rules(
        &[
            "action: allow, match: {proto: tcp, dst_cidrs: [192.0.2.0/24], dst_ports: [1-100]}",
            "action: deny, match: {proto: tcp, dst_ips: [192.0.2.1], dst_ports: [7, 80-90]}",
            "action: deny, match: {proto: tcp, dst_ips: [192.0.2.1], dst_ports: [101]}",
            "action: deny, match: {dst_ips: [192.0.2.1], dst_ports: [80]}",
            "action: deny, match: {proto: tcp, dst_ips: [192.0.2.1, 192.0.3.1], dst_ports: [80]}",
        ],
        &["[1]: shadowed: rule \"r0\" before it"],
    );
    // By what is evaluated first, not by what is written first.
    check_rules(
        &[
            "action: deny, priority: 5, match: {proto: udp, dst_ports: [53]}",
            "action: allow, match: {proto: udp, dst_ports: [53]}",
            "action: allow, match: {proto: 132}",
            "action: allow, match: {proto: 132, dst_ports: [53]}",
        ],
        &["[0]: shadowed: rule \"r1\"", "[3]: shadowed: rule \"r2\""],
    );
    // A rule by name also answers queries; the same one twice is shadowed.
    check_rules(
        &[
            "action: deny, match: {}",
            "action: allow, match: {dns_names: [a.example]}",
            "action: allow, match: {dns_names: [a.example]}",
            "action: allow, match: {proto: tcp, tls: {sni: [a]}}",
        ],
        &["[2]: shadowed: rule \"r1\"", "[3]: shadowed: rule \"r0\""],
    );
}

#[test]
fn rules_that_never_match() {
    check(
        "
source_groups:
- id: four
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules:
  - {id: a, action: allow, match: {dst_cidrs: ['2001:db8::/32']}}
  - {id: b, action: allow, match: {proto: icmpv6}}
  - {id: c, action: allow, match: {dst_ips: [192.0.2.1, '::1'], proto: tcp}}
- id: six
  mode: enforce
  sources: {cidrs: ['fd00::/8']}
  rules:
  - {id: a, action: allow, match: {icmp_types: [8]}}
  - {id: b, action: allow, match: {dst_cidrs: ['::/0'], proto: icmpv6}}
",
        &[
            "source_groups[0].rules[0]: never matches",
            "source_groups[0].rules[1]: never matches",
            "source_groups[1].rules[0]: never matches",
        ],
    );
    check_rules(
        &["action: allow, match: {dst_ips: ['::1'], proto: icmp}"],
        &["[0]: never matches"],
    );
}

#[test]
fn groups_that_are_never_reached() {
    check(
        "
source_groups:
- {id: late, priority: 9, mode: enforce, sources: {ips: [10.1.1.1, 10.2.2.2]}, default_action: allow}
- {id: wide, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: deny}
- {id: partly, mode: enforce, sources: {ips: [10.1.1.1, 11.1.1.1]}, default_action: deny}
- {id: open, mode: enforce, sources: {cidrs: [12.0.0.0/8]}}
- {id: after, mode: enforce, sources: {cidrs: [12.0.0.0/9]}, rules: [{id: r, action: allow, match: {}}]}
- {id: last, mode: enforce, sources: {cidrs: [12.0.0.0/9]}}
",
        &[
            "source_groups[0]: never reached: group \"wide\" before it",
            "source_groups[5]: never reached: group \"after\" before it",
        ],
    );
}

#[test]
fn ports_open_to_all_beside_names() {
    let name = "action: allow, match: {dns_names: [a.example]}";
    let warning = "[1]: allows these ports to every address";
    check_rules(
        &[name, "action: allow, match: {dst_ports: [443]}"],
        &[warning],
    );
    check_rules(
        &[
            name,
            "action: allow, match: {proto: tcp, dst_cidrs: [0.0.0.0/0]}",
        ],
        &[warning],
    );
    check_rules(&[name, "action: deny, match: {dst_ports: [443]}"], &[]);
    check_rules(
        &[name, "action: allow, match: {dst_cidrs: [192.0.2.0/24]}"],
        &[],
    );
    check_rules(&[name, "action: allow, match: {proto: icmp}"], &[]);
    check_rules(&["action: allow, match: {dst_ports: [443]}"], &[]);
}

#[test]
fn public_suffixes() {
    check_rules(
        &["action: allow, match: {dns_names: ['**.com', '*.org', com, '**.example.com']}"],
        &[
            "[0].match.dns_names[0]: **.com takes in every name",
            "[0].match.dns_names[1]: *.org takes in every name",
        ],
    );
}

#[test]
fn audit_without_effect() {
    check_rules(
        &[
            "action: allow, mode: audit, match: {dst_ports: [1]}",
            "action: deny, mode: audit, match: {dst_ports: [2]}",
        ],
        &["[0].mode: audit has no effect on a rule that allows"],
    );
    let group = |rest: &str| {
        format!("source_groups: [{{id: g, mode: audit, sources: {{ips: [10.0.0.1]}}{rest}}}]")
    };
    let warning = "source_groups[0].mode: audit has no effect";
    check(&group(""), &[warning]);
    check(
        &group(", rules: [{id: r, action: deny, mode: enforce, match: {dst_ports: [1]}}]"),
        &[warning],
    );
    check(&group(", default_action: deny"), &[]);
    check(
        &group(", rules: [{id: r, action: deny, match: {dst_ports: [1]}}]"),
        &[],
    );
}

#[test]
fn regular_expressions_that_mean_less_than_before() {
    check_rules(
        &[
            r"action: allow, match: {dns_hostname: '^api\.example\.com$'}",
            r"action: allow, match: {dns_hostname: '^(.+\.)?example\.com$'}",
            r"action: allow, match: {dns_hostname: 'example\.(com|net)'}",
            r"action: allow, match: {dns_hostname: '^.*\.example$', dst_ports: [443]}",
        ],
        &[
            "[0].match.dns_hostname: a plain name as a regular expression; dns_names: [api.example.com]",
            "[2].match.dns_hostname: matched against the whole name",
            "[3].match.dns_hostname: the other selectors hold for this name's addresses only",
        ],
    );
}

#[test]
fn a_large_document_is_linted_in_bounded_time() {
    let mut yaml = String::from(
        "source_groups:\n- id: g\n  mode: enforce\n  sources: {ips: [10.0.0.1]}\n  rules:\n",
    );
    for i in 0..20_000_u32 {
        let (proto, port) = (["tcp", "udp"][i as usize % 2], i / 2);
        yaml += &format!(
            "  - {{id: r{i}, action: allow, match: {{proto: {proto}, src_ports: [{port}]}}}}\n"
        );
    }
    check(&yaml, &[]);
}

/// A query comes before any packet, and has no port of what is reached later.
#[test]
fn a_deny_by_name_and_port_denies_the_query() {
    check_rules(
        &[
            "action: deny, match: {dns_names: [a.example.com], proto: tcp, dst_ports: [22]}",
            "action: deny, match: {dns_names: [b.example.com]}",
            "action: allow, match: {dns_names: ['**.example.com'], proto: tcp, dst_ports: [443]}",
            "action: deny, match: {proto: tcp, dst_ports: [22]}",
        ],
        &["[0]: denies every query for these names too"],
    );
}
