//! What is refused, what is carried along, and that large documents stay within bounds.

use super::*;
use crate::Facts;

fn document(yaml: &str) -> Document {
    match Document::parse_yaml(yaml.as_bytes()) {
        Ok(document) => document,
        Err(invalid) => panic!("{invalid}"),
    }
}

#[test]
fn parts_not_built_are_refused_place_by_place() {
    let document = document(
        "
source_groups:
- id: a
  mode: enforce
  sources: {ips: [10.0.0.1], kubernetes: [{integration: k, node_selector: {}}]}
  rules:
  - {id: ok, action: allow, match: {dst_ports: [443]}}
  - {id: re, action: allow, match: {dns_hostname: 'x\\.example', dst_ports: [443]}}
  - {id: names, action: allow, match: {dns_names: ['**.example.com']}}
  - {id: sni, action: allow, match: {tls: {sni: x}}}
  - {id: http, action: allow, match: {tls: {mode: intercept, http: {request: {methods: [get]}}}}}
",
    );
    let error = Compiled::compile(&document, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\
source_groups[0].sources.kubernetes: sources from Kubernetes need the Kubernetes integration, \
which this version does not have yet
source_groups[0].rules[3].match.tls: rules by TLS handshake need TLS inspection, which this \
version does not have yet
source_groups[0].rules[4].match.tls: rules by HTTP request need TLS interception, which this \
version does not have yet"
    );
}

#[test]
fn revision_and_hash_are_carried() {
    let one = document("source_groups: [{id: a, mode: enforce, sources: {cidrs: [10.1.1.1/8]}}]");
    let same = document("source_groups: [{mode: ENFORCE, sources: {cidrs: [10.0.0.0/8]}, id: a}]");
    let other = document("source_groups: [{id: b, mode: enforce, sources: {cidrs: [10.0.0.0/8]}}]");
    let hash = |document| Compiled::compile(document, 3).unwrap().hash();
    assert_eq!(hash(&one), hash(&same));
    assert_ne!(hash(&one), hash(&other));
    assert_eq!(hash(&one), <[u8; 32]>::from(Sha256::digest(one.to_json())));
    assert_eq!(Compiled::compile(&one, 3).unwrap().revision(), 3);
    assert_eq!(Compiled::deny_all().revision(), 0);
}

#[test]
fn positions_outside_have_no_id() {
    let compiled = Compiled::compile(
        &document(
            "
source_groups:
- id: a
  mode: enforce
  sources: {ips: [10.0.0.1]}
  rules: [{id: r, action: allow, match: {}}]
",
        ),
        1,
    )
    .unwrap();
    assert_eq!(compiled.group_count(), 1);
    assert_eq!(compiled.group_id(0), Some("a"));
    assert_eq!(compiled.group_id(1), None);
    assert_eq!(compiled.rule_id(0, 0), Some("r"));
    assert_eq!(compiled.rule_id(0, 1), None);
    assert_eq!(compiled.rule_id(1, 0), None);
}

/// The last rule of each of many groups is found, far down the list.
#[test]
fn many_groups_and_rules() {
    let mut yaml = String::from("source_groups:\n");
    for g in 0..400 {
        yaml += &format!(
            "- id: g{g}\n  mode: enforce\n  sources: {{cidrs: [10.{}.{}.0/24]}}\n  rules:\n",
            g / 250,
            g % 250
        );
        for r in 0..25 {
            yaml += &format!(
                "  - {{id: r{r}, action: allow, match: {{proto: tcp, dst_ports: [{}]}}}}\n",
                1000 + r
            );
        }
    }
    let compiled = Compiled::compile(&document(&yaml), 1).unwrap();
    for g in [0_u32, 1, 63, 64, 163, 164, 249, 399] {
        for r in [0_u32, 24] {
            let decision = compiled.evaluate(&Facts {
                src: std::net::Ipv4Addr::new(10, (g / 250) as u8, (g % 250) as u8, 9).into(),
                dst: std::net::Ipv4Addr::new(192, 0, 2, 1).into(),
                proto: 6,
                src_port: 1,
                dst_port: 1000 + r as u16,
                icmp: None,
            });
            assert_eq!((decision.group, decision.rule), (Some(g), Some(r)));
        }
    }
}
