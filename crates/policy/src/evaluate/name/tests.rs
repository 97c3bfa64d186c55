//! One document, many queries and packets.

use super::*;
use crate::document::{Document, protocol};

fn compiled() -> Compiled {
    let yaml = r"
default_policy: allow
source_groups:
- id: later
  priority: 9
  mode: enforce
  sources: {cidrs: [10.0.0.0/8]}
  rules: [{id: any, action: allow, match: {dns_hostname: '.*'}}]
- id: a
  mode: enforce
  sources: {cidrs: [10.1.0.0/16]}
  rules:
  - {id: https, action: allow, match: {dns_names: ['**.example.com'], proto: tcp, dst_ports: [443]}}
  - {id: bad, action: deny, match: {dns_names: [bad.example.com, evil.net]}}
  - {id: http, action: allow, grant_scope: client, match: {dns_names: [api.example.com], proto: tcp, dst_ports: [80]}}
  - {id: near, action: allow, match: {dns_names: [near.net], dst_cidrs: [192.0.2.0/24]}}
  - {id: re, action: allow, match: {dns_hostname: '.*cdn[0-9]+\.net'}}
  - {id: watched, action: deny, mode: audit, match: {dns_names: [watched.net]}}
  - {id: plain, action: allow, match: {dst_ips: [198.51.100.9]}}
- id: b
  mode: audit
  sources: {ips: ['2001:db8::1']}
  rules: []
";
    let document = Document::parse_yaml(yaml.as_bytes()).unwrap();
    Compiled::compile(&document, 1).unwrap()
}

fn named(compiled: &Compiled, group: &str, rule: &str) -> Option<NameRule> {
    compiled.name_rules().find(|name_rule| {
        let (g, r) = compiled.name_rule_position(*name_rule).unwrap();
        (compiled.group_id(g), compiled.rule_id(g, r)) == (Some(group), Some(rule))
    })
}

#[test]
fn queries() {
    let compiled = compiled();
    #[track_caller]
    fn check(compiled: &Compiled, source: &str, name: &str, want: &str) {
        let decision = compiled.evaluate_name(source.parse().unwrap(), name);
        let group = decision
            .group
            .and_then(|g| compiled.group_id(g))
            .unwrap_or("-");
        let rule = decision
            .rule
            .and_then(|r| compiled.rule_id(decision.group?, r))
            .unwrap_or("-");
        let verdict = match (decision.allow, decision.would_deny) {
            (true, false) => "allow",
            (true, true) => "would deny",
            (false, _) => "deny",
        };
        assert_eq!(
            format!("{verdict} {group} {rule}"),
            want,
            "{name} from {source}"
        );
        let walk = compiled.explain_name(source.parse().unwrap(), name);
        let last = walk.last().unwrap().to_string();
        let denied = last.contains("deny") && !last.contains("allow");
        assert_eq!(denied, verdict == "deny", "{last}");
        assert!(rule == "-" || last.contains(rule), "{last}");
    }
    let c = &compiled;
    check(c, "10.1.0.1", "api.example.com", "allow a https");
    check(c, "10.1.0.1", "bad.example.com", "allow a https");
    check(c, "10.1.0.1", "evil.net", "deny a bad");
    check(c, "10.1.0.1", "x.cdn07.net", "allow a re");
    check(c, "10.1.0.1", "x.cdn07.net.evil.net", "deny a -");
    check(c, "10.1.0.1", r"x\046example.com", "deny a -");
    check(c, "10.1.0.1", "watched.net", "would deny a watched");
    // The first group that has the source decides, even if only a later one has a rule.
    check(c, "10.1.0.1", "other.org", "deny a -");
    check(c, "10.2.0.1", "other.org", "allow later any");
    check(c, "2001:db8::1", "other.org", "would deny b -");
    check(c, "192.0.2.1", "other.org", "deny - -");
    check(c, "2001:db8::2", "other.org", "deny - -");
}

#[test]
fn addresses_are_granted_to_every_rule_that_names_them() {
    let compiled = compiled();
    let rules = |group: &str, name: &str| {
        let mut rules = Vec::new();
        compiled.rules_by_name(compiled.group_by_id(group).unwrap(), name, &mut rules);
        let ids: Vec<&str> = rules
            .iter()
            .map(|rule| {
                let (group, rule) = compiled.name_rule_position(*rule).unwrap();
                compiled.rule_id(group, rule).unwrap()
            })
            .collect();
        ids.join(" ")
    };
    assert_eq!(rules("a", "api.example.com"), "https http");
    assert_eq!(rules("a", "bad.example.com"), "https bad");
    assert_eq!(rules("later", "bad.example.com"), "any");
    assert_eq!(rules("b", "bad.example.com"), "");
    let http = named(&compiled, "a", "http").unwrap();
    assert_eq!(compiled.grant_scope(http), GrantScope::Client);
    let https = named(&compiled, "a", "https").unwrap();
    assert_eq!(compiled.grant_scope(https), GrantScope::Group);
    assert_eq!(named(&compiled, "a", "plain"), None);
    assert_eq!(named(&compiled, "a", "none"), None);
}

#[test]
fn packets_to_granted_addresses() {
    let compiled = compiled();
    #[track_caller]
    fn check(compiled: &Compiled, granted: &[&str], packet: (&str, &str, u16), want: &str) {
        let mut rules: Vec<NameRule> = granted
            .iter()
            .map(|id| {
                let (group, rule) = id.split_once('/').unwrap_or(("a", id));
                named(compiled, group, rule).unwrap()
            })
            .collect();
        rules.sort_unstable();
        let facts = Facts {
            src: packet.0.parse().unwrap(),
            dst: packet.1.parse().unwrap(),
            proto: protocol::TCP,
            src_port: 40_000,
            dst_port: packet.2,
            icmp: None,
        };
        let (decision, _) = compiled.evaluate_granted(&facts, &rules);
        let rule = decision
            .rule
            .and_then(|r| compiled.rule_id(decision.group?, r))
            .unwrap_or("-");
        assert_eq!(
            (decision.allow, rule),
            (!want.starts_with('!'), want.trim_start_matches('!'))
        );
        let walk = compiled.explain_granted(&facts, &rules);
        let last = walk.last().unwrap().to_string();
        assert!(rule == "-" || last.contains(rule), "{last}");
    }
    let c = &compiled;
    let (client, far, near) = ("10.1.0.1", "203.0.113.7", "192.0.2.7");
    // Nothing granted: the groups have no default, so the document's decides.
    check(c, &[], (client, far, 443), "-");
    check(c, &["https"], (client, far, 443), "https");
    check(c, &["https"], (client, far, 80), "-");
    check(c, &["https", "http"], (client, far, 80), "http");
    check(c, &["bad"], (client, far, 443), "!bad");
    // Two names on one address: the first rule that holds decides.
    check(c, &["https", "bad"], (client, far, 443), "https");
    check(c, &["https", "bad"], (client, far, 80), "!bad");
    check(c, &["near"], (client, near, 22), "near");
    check(c, &["near"], (client, far, 22), "-");
    check(c, &["later/any"], (client, far, 22), "any");
    // A grant of a group that does not have the source is none.
    check(c, &["https"], ("10.2.0.1", far, 443), "-");
    check(c, &["re"], (client, "198.51.100.9", 1), "re");
    check(c, &[], (client, "198.51.100.9", 1), "plain");
}

#[test]
fn the_walk_names_what_differs() {
    let compiled = compiled();
    let facts = Facts {
        src: "10.1.0.1".parse().unwrap(),
        dst: "203.0.113.7".parse().unwrap(),
        proto: protocol::TCP,
        src_port: 1,
        dst_port: 80,
        icmp: None,
    };
    let near = named(&compiled, "a", "near").unwrap();
    let walk: Vec<String> = compiled
        .explain_granted(&facts, &[near])
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        walk.contains(&"  rule https: differs in name, destination port".to_owned()),
        "{walk:?}"
    );
    assert!(
        walk.contains(&"  rule near: differs in destination".to_owned()),
        "{walk:?}"
    );
    assert!(
        walk.contains(&"  rule plain: differs in destination".to_owned()),
        "{walk:?}"
    );
}
