//! The evaluation semantics, one row a case.

use super::*;
use crate::Document;

/// A packet in words: `[proto] src[:port] > dst[:port] [type/code]`, proto tcp unless said.
fn packet(text: &str) -> Facts {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let proto = match words[0] {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "icmpv6" => 58,
        "sctp" => 132,
        "gre" => 47,
        _ => {
            words.insert(0, "tcp");
            6
        }
    };
    assert_eq!(words[2], ">", "{text}");
    let end = |word: &str| match word.parse::<std::net::SocketAddr>() {
        Ok(socket) => (socket.ip(), socket.port()),
        Err(_) => (word.trim_matches(['[', ']']).parse().unwrap(), 0),
    };
    let (src, src_port) = end(words[1]);
    let (dst, dst_port) = end(words[3]);
    let icmp = words.get(4).map(|word| {
        let (kind, code) = word.split_once('/').unwrap();
        (kind.parse().unwrap(), code.parse().unwrap())
    });
    Facts {
        src,
        dst,
        proto,
        src_port,
        dst_port,
        icmp,
    }
}

fn compiled(yaml: &str) -> Compiled {
    let document = match Document::parse_yaml(yaml.as_bytes()) {
        Ok(document) => document,
        Err(invalid) => panic!("{invalid}"),
    };
    Compiled::compile(&document, 7).unwrap()
}

/// `allow group/rule`, `audit group/rule` (an allow that is recorded), `deny group`, `deny`, …
fn verdict(compiled: &Compiled, facts: &Facts) -> String {
    let decision = compiled.evaluate(facts);
    let mut text = match (decision.allow, decision.would_deny) {
        (true, false) => "allow",
        (true, true) => "audit",
        (false, false) => "deny",
        (false, true) => "denied and allowed at once",
    }
    .to_owned();
    if let Some(group) = decision.group {
        text += &format!(" {}", compiled.group_id(group).unwrap());
        if let Some(rule) = decision.rule {
            text += &format!("/{}", compiled.rule_id(group, rule).unwrap());
        }
    }
    let want_cause = match (decision.group, decision.rule) {
        (_, Some(_)) => Cause::Rule,
        (Some(_), None) => Cause::GroupDefault,
        (None, None) => Cause::DefaultPolicy,
    };
    assert_eq!(decision.cause, want_cause);
    // The last step of the walk tells the same.
    let last = compiled.explain(facts).pop().unwrap();
    let told = match last {
        Step::Matched {
            action, audited, ..
        }
        | Step::GroupDefault { action, audited } => (action == Action::Allow || audited, audited),
        Step::DefaultPolicy { action } => (action == Action::Allow, false),
        other => panic!("{other} decides nothing"),
    };
    assert_eq!(told, (decision.allow, decision.would_deny));
    text
}

#[track_caller]
fn check(yaml: &str, cases: &[(&str, &str)]) {
    let compiled = compiled(yaml);
    for (text, want) in cases {
        assert_eq!(verdict(&compiled, &packet(text)), *want, "{text}");
    }
}

#[test]
fn without_a_group_the_default_policy_decides() {
    let any = "10.0.0.1:1000 > 192.0.2.1:80";
    check("default_policy: allow", &[(any, "allow")]);
    check("default_policy: deny", &[(any, "deny")]);
    check("{}", &[(any, "deny")]);
    check("source_groups: []", &[(any, "deny")]);
}

#[test]
fn the_source_chooses_the_groups() {
    check(
        "
default_policy: allow
source_groups:
- {id: nets, mode: enforce, sources: {cidrs: [10.0.0.0/8, '2001:db8::/32']}, default_action: deny}
- {id: ips, mode: enforce, sources: {ips: [192.168.0.1, 'fd00::1']}, default_action: deny}
",
        &[
            ("10.0.0.0:1 > 192.0.2.1:80", "deny nets"),
            ("10.255.255.255:1 > 192.0.2.1:80", "deny nets"),
            ("9.255.255.255:1 > 192.0.2.1:80", "allow"),
            ("11.0.0.0:1 > 192.0.2.1:80", "allow"),
            ("[2001:db8::1]:1 > [2001:db9::1]:80", "deny nets"),
            ("[2001:db9::1]:1 > [2001:db8::1]:80", "allow"),
            ("192.168.0.1:1 > 192.0.2.1:80", "deny ips"),
            ("192.168.0.2:1 > 192.0.2.1:80", "allow"),
            ("[fd00::1]:1 > [2001:db8::1]:80", "deny ips"),
        ],
    );
}

#[test]
fn groups_go_by_priority_then_position() {
    let any = "10.0.0.1:1 > 192.0.2.1:80";
    // Without priorities, by position.
    check(
        "
source_groups:
- {id: a, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: allow}
- {id: b, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: deny}
",
        &[(any, "allow a")],
    );
    // Lower goes first.
    check(
        "
source_groups:
- {id: a, priority: 9, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: allow}
- {id: b, priority: 3, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: deny}
",
        &[(any, "deny b")],
    );
    // An absent one counts as the position, and equal ones go by position.
    check(
        "
source_groups:
- {id: a, priority: 1, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: allow}
- {id: b, mode: enforce, sources: {cidrs: [10.0.0.0/8]}, default_action: deny}
- {id: c, priority: 0, mode: enforce, sources: {cidrs: [10.0.0.0/9]}, default_action: deny}
",
        &[(any, "deny c"), ("10.128.0.1:1 > 192.0.2.1:80", "allow a")],
    );
}

#[test]
fn rules_go_by_priority_then_position_and_the_first_decides() {
    check(
        "
source_groups:
- id: g
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules:
  - {id: wide, priority: 5, action: allow, match: {dst_cidrs: [192.0.2.0/24]}}
  - {id: one, action: deny, match: {dst_ips: [192.0.2.1]}}
  - {id: last, priority: 5, action: deny, match: {dst_cidrs: [192.0.2.0/24]}}
",
        &[
            ("10.0.0.1:1 > 192.0.2.1:80", "deny g/one"),
            ("10.0.0.1:1 > 192.0.2.2:80", "allow g/wide"),
            ("10.0.0.1:1 > 192.0.3.2:80", "deny"),
        ],
    );
}

#[test]
fn a_group_that_does_not_decide_passes_on() {
    check(
        "
default_policy: allow
source_groups:
- id: narrow
  mode: enforce
  sources: {ips: [10.0.0.1]}
  rules: [{id: web, action: deny, match: {proto: tcp, dst_ports: [80]}}]
- id: wide
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules: [{id: web, action: allow, match: {proto: tcp, dst_ports: [80, 443]}}]
- id: rest
  mode: enforce
  sources: {cidrs: [10.0.0.0/16]}
  default_action: deny
",
        &[
            ("10.0.0.1:1 > 192.0.2.1:80", "deny narrow/web"),
            ("10.0.0.1:1 > 192.0.2.1:443", "allow wide/web"),
            ("10.0.0.1:1 > 192.0.2.1:22", "deny rest"),
            ("10.9.0.1:1 > 192.0.2.1:22", "allow"),
        ],
    );
}

#[test]
fn the_default_action_comes_before_later_groups() {
    check(
        "
source_groups:
- {id: a, mode: enforce, sources: {ips: [10.0.0.1]}, default_action: deny}
- id: b
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules: [{id: all, action: allow, match: {}}]
",
        &[
            ("10.0.0.1:1 > 192.0.2.1:80", "deny a"),
            ("10.0.0.2:1 > 192.0.2.1:80", "allow b/all"),
        ],
    );
}

#[test]
fn audit_turns_a_deny_into_a_recorded_allow() {
    let group = |mode: &str, rule_mode: &str| {
        format!(
            "
source_groups:
- id: g
  mode: {mode}
  sources: {{ips: [10.0.0.1]}}
  default_action: deny
  rules:
  - {{id: no, action: deny{rule_mode}, match: {{dst_ports: [1]}}}}
  - {{id: yes, action: allow{rule_mode}, match: {{dst_ports: [2]}}}}
"
        )
    };
    let (no, yes, other) = (
        "10.0.0.1:1 > 192.0.2.1:1",
        "10.0.0.1:1 > 192.0.2.1:2",
        "10.0.0.1:1 > 192.0.2.1:3",
    );
    check(
        &group("enforce", ""),
        &[(no, "deny g/no"), (yes, "allow g/yes"), (other, "deny g")],
    );
    check(
        &group("audit", ""),
        &[(no, "audit g/no"), (yes, "allow g/yes"), (other, "audit g")],
    );
    check(
        &group("enforce", ", mode: audit"),
        &[(no, "audit g/no"), (yes, "allow g/yes"), (other, "deny g")],
    );
    check(
        &group("audit", ", mode: enforce"),
        &[(no, "deny g/no"), (yes, "allow g/yes"), (other, "audit g")],
    );
}

#[test]
fn the_default_policy_is_never_audited() {
    check(
        "
default_policy: deny
source_groups: [{id: g, mode: audit, sources: {ips: [10.0.0.1]}}]
",
        &[("10.0.0.1:1 > 192.0.2.1:1", "deny")],
    );
}

/// One rule that allows, in a group that has every source.
#[track_caller]
fn check_match(matches: &str, cases: &[(&str, bool)]) {
    let compiled = compiled(&format!(
        "
source_groups:
- id: g
  mode: enforce
  sources: {{cidrs: [0.0.0.0/0, '::/0']}}
  rules: [{{id: r, action: allow, match: {matches}}}]
"
    ));
    for (text, want) in cases {
        let want = if *want { "allow g/r" } else { "deny" };
        assert_eq!(verdict(&compiled, &packet(text)), want, "{text}");
    }
}

#[test]
fn an_empty_match_holds_for_everything() {
    check_match(
        "{}",
        &[
            ("10.0.0.1:1 > 192.0.2.1:1", true),
            ("udp [2001:db8::1]:1 > [2001:db8::2]:1", true),
            ("icmp 10.0.0.1 > 192.0.2.1 8/0", true),
            ("gre 10.0.0.1 > 192.0.2.1", true),
        ],
    );
}

#[test]
fn destinations_are_a_union() {
    check_match(
        "{dst_cidrs: [192.0.2.0/24, 192.0.2.128/25, '2001:db8::/32'], dst_ips: [198.51.100.1, '::1']}",
        &[
            ("10.0.0.1:1 > 192.0.2.200:1", true),
            ("10.0.0.1:1 > 192.0.3.0:1", false),
            ("10.0.0.1:1 > 198.51.100.1:1", true),
            ("10.0.0.1:1 > 198.51.100.2:1", false),
            ("[fd00::1]:1 > [2001:db8:ffff::1]:1", true),
            ("[fd00::1]:1 > [2001:db9::1]:1", false),
            ("[fd00::1]:1 > [::1]:1", true),
        ],
    );
    // A destination of one family leaves out the other.
    check_match(
        "{dst_cidrs: [0.0.0.0/0]}",
        &[
            ("10.0.0.1:1 > 255.255.255.255:1", true),
            ("[fd00::1]:1 > [2001:db8::1]:1", false),
        ],
    );
}

#[test]
fn protocols_and_ports() {
    check_match(
        "{proto: tcp}",
        &[
            ("10.0.0.1:1 > 192.0.2.1:1", true),
            ("udp 10.0.0.1:1 > 192.0.2.1:1", false),
        ],
    );
    check_match(
        "{proto: 47}",
        &[
            ("gre 10.0.0.1 > 192.0.2.1", true),
            ("10.0.0.1:1 > 192.0.2.1:1", false),
        ],
    );
    check_match(
        "{proto: udp, src_ports: ['1000-2000', 5], dst_ports: [53]}",
        &[
            ("udp 10.0.0.1:1000 > 192.0.2.1:53", true),
            ("udp 10.0.0.1:2000 > 192.0.2.1:53", true),
            ("udp 10.0.0.1:5 > 192.0.2.1:53", true),
            ("udp 10.0.0.1:2001 > 192.0.2.1:53", false),
            ("udp 10.0.0.1:1000 > 192.0.2.1:54", false),
            ("10.0.0.1:1000 > 192.0.2.1:53", false),
        ],
    );
    // Ports without a protocol: those that have ports, even if the range is all of them.
    check_match(
        "{dst_ports: ['0-65535']}",
        &[
            ("10.0.0.1:1 > 192.0.2.1:0", true),
            ("udp 10.0.0.1:1 > 192.0.2.1:65535", true),
            ("sctp 10.0.0.1:1 > 192.0.2.1:1", true),
            ("gre 10.0.0.1 > 192.0.2.1", false),
            ("icmp 10.0.0.1 > 192.0.2.1 0/0", false),
        ],
    );
}

#[test]
fn icmp_types_and_codes() {
    // The published default: errors and echo replies, no echo requests.
    check_match(
        "{proto: icmp}",
        &[
            ("icmp 10.0.0.1 > 192.0.2.1 0/0", true),
            ("icmp 10.0.0.1 > 192.0.2.1 3/4", true),
            ("icmp 10.0.0.1 > 192.0.2.1 11/0", true),
            ("icmp 10.0.0.1 > 192.0.2.1 8/0", false),
            ("icmp 10.0.0.1 > 192.0.2.1 3/1", false),
            ("icmpv6 [fd00::1] > [2001:db8::1] 3/0", false),
            ("10.0.0.1:1 > 192.0.2.1:1", false),
        ],
    );
    check_match(
        "{proto: icmpv6}",
        &[
            ("icmpv6 [fd00::1] > [2001:db8::1] 2/0", true),
            ("icmpv6 [fd00::1] > [2001:db8::1] 1/4", true),
            ("icmpv6 [fd00::1] > [2001:db8::1] 129/0", true),
            ("icmpv6 [fd00::1] > [2001:db8::1] 128/0", false),
            ("icmpv6 [fd00::1] > [2001:db8::1] 135/0", false),
            ("icmp 10.0.0.1 > 192.0.2.1 3/0", false),
        ],
    );
    // With types only, any code; with codes only, any type.
    check_match(
        "{proto: icmp, icmp_types: [8]}",
        &[
            ("icmp 10.0.0.1 > 192.0.2.1 8/7", true),
            ("icmp 10.0.0.1 > 192.0.2.1 0/0", false),
        ],
    );
    check_match(
        "{proto: icmpv6, icmp_codes: [0]}",
        &[
            ("icmpv6 [fd00::1] > [2001:db8::1] 128/0", true),
            ("icmpv6 [fd00::1] > [2001:db8::1] 1/4", false),
        ],
    );
    // Without a protocol they are those of ICMP.
    check_match(
        "{icmp_types: [8]}",
        &[
            ("icmp 10.0.0.1 > 192.0.2.1 8/0", true),
            ("icmpv6 [fd00::1] > [2001:db8::1] 8/0", false),
            ("10.0.0.1:8 > 192.0.2.1:8", false),
        ],
    );
    // A fragment without the ICMP header has no type.
    check_match(
        "{proto: icmp, icmp_types: [0, 8]}",
        &[("icmp 10.0.0.1 > 192.0.2.1", false)],
    );
}

#[test]
fn on_deny_is_that_of_the_group_that_decided() {
    let compiled = compiled(
        "
source_groups:
- {id: a, mode: enforce, on_deny: reset, sources: {ips: [10.0.0.1]}, default_action: deny}
- {id: b, mode: enforce, on_deny: drop, sources: {ips: [10.0.0.2]}, default_action: deny}
- {id: c, mode: enforce, sources: {ips: [10.0.0.3]}, default_action: deny}
- {id: d, mode: enforce, on_deny: reset, sources: {ips: [10.0.0.4]}}
",
    );
    let on_deny = |text| compiled.evaluate(&packet(text)).on_deny;
    assert_eq!(on_deny("10.0.0.1:1 > 192.0.2.1:1"), OnDeny::Reset);
    assert_eq!(on_deny("10.0.0.2:1 > 192.0.2.1:1"), OnDeny::Drop);
    assert_eq!(on_deny("10.0.0.3:1 > 192.0.2.1:1"), OnDeny::Drop);
    assert_eq!(on_deny("10.0.0.4:1 > 192.0.2.1:1"), OnDeny::Drop);
}

#[test]
fn groups_for_everyone_tell_no_source_and_hide_none() {
    #[track_caller]
    fn check(groups: &[&str], told: &[&str], others: &[&str]) {
        let written = groups.iter().enumerate().map(|(i, cidrs)| {
            format!("- {{id: g{i}, mode: enforce, sources: {{cidrs: [{cidrs}]}}, default_action: deny}}\n")
        });
        let compiled = compiled(&format!(
            "source_groups:\n{}",
            written.collect::<Vec<_>>().concat()
        ));
        let tells = |source: &&&str| compiled.tells_source(source.parse().unwrap());
        assert_eq!(told.iter().filter(tells).count(), told.len(), "{groups:?}");
        assert_eq!(others.iter().filter(tells).count(), 0, "{groups:?}");
    }
    let all = "0.0.0.0/0, '::/0'";
    let bogons = "0.0.0.0/8, 127.0.0.0/8, 240.0.0.0/4, '::/8', 'ff00::/8'";
    let far = [
        "0.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "198.51.100.1",
        "255.255.255.255",
        "::",
        "2001:db8::1",
        "fc00::",
    ];
    let clients = "10.0.0.0/8, 'fd00::/8'";
    let near = ["10.0.0.0", "10.255.255.255", "fd00::1"];
    check(&[clients], &near, &far);
    check(&[clients, all], &near, &far);
    check(&[all], &[], &far);
    check(&[all, bogons], &[], &far);
    check(&[bogons, clients, all], &near, &far);
    // Everyone but some is no different, in one group or in several.
    check(
        &[
            "0.0.0.0/5, 8.0.0.0/7, 11.0.0.0/8, 12.0.0.0/6, 16.0.0.0/4, 32.0.0.0/3, 64.0.0.0/2, 128.0.0.0/1",
        ],
        &[],
        &far,
    );
    check(
        &["0.0.0.0/1", "128.0.0.0/1", "'::/1'", "'8000::/1'"],
        &[],
        &far,
    );
    check(
        &["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "240.0.0.0/4"],
        &[],
        &far[..5],
    );
    // What nobody has, in a group for each, hides no clients.
    check(&["0.0.0.0/8", "240.0.0.0/4", clients], &near, &far);
    check(
        &["128.0.0.0/1"],
        &["198.51.100.1", "255.255.255.255"],
        &["11.0.0.0", "2001:db8::1"],
    );
    assert!(!Compiled::deny_all().tells_source([10, 0, 0, 1].into()));
}

#[test]
fn explain_prints_the_walk() {
    let compiled = compiled(
        "
default_policy: allow
source_groups:
- {id: far, mode: enforce, sources: {ips: [10.9.9.9]}, default_action: deny}
- id: web
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules:
  - {id: https, action: allow, match: {proto: tcp, dst_ports: [443]}}
  - {id: lan, action: allow, match: {dst_cidrs: [192.168.0.0/16], proto: udp}}
- id: old
  mode: audit
  sources: {cidrs: [10.0.0.0/8]}
  rules:
  - {id: telnet, action: deny, match: {proto: tcp, dst_ports: [23]}}
  - {id: ping, action: allow, match: {proto: icmp, icmp_types: [8], icmp_codes: [0]}}
",
    );
    let walk = |text| {
        let steps = compiled.explain(&packet(text));
        let lines: Vec<String> = steps.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    assert_eq!(
        walk("10.0.0.1:1 > 192.0.2.1:23"),
        "\
group far: does not have this source
group web: has this source
  rule https: differs in destination port
  rule lan: differs in destination, protocol
  no default action: on to the next group
group old: has this source
  rule telnet: matches: deny, which audit mode only records: allow"
    );
    assert_eq!(
        walk("10.9.9.9:1 > 192.0.2.1:443"),
        "\
group far: has this source
  default action: deny"
    );
    assert_eq!(
        walk("icmp 172.16.0.1 > 192.0.2.1 8/0"),
        "\
group far: does not have this source
group web: does not have this source
group old: does not have this source
default policy: allow"
    );
    assert!(
        walk("icmp 10.0.0.1 > 192.0.2.1 0/1")
            .contains("rule ping: differs in ICMP type, ICMP code")
    );
}
