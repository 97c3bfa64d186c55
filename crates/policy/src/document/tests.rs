//! What is accepted and in which form it is kept; what is refused and how that reads.

use super::*;

fn parse(yaml: &str) -> Document {
    match Document::parse_yaml(yaml.as_bytes()) {
        Ok(document) => document,
        Err(invalid) => panic!("{invalid}"),
    }
}

/// A document of one group whose only rule has this match.
fn with_match(matches: &str) -> String {
    format!(
        "source_groups: [{{id: g, mode: enforce, sources: {{ips: [10.0.0.1]}}, \
         rules: [{{id: r, action: allow, match: {matches}}}]}}]"
    )
}

/// The problems of a document, one a line.
#[track_caller]
fn refused(yaml: &str, want: &[&str]) {
    let got = match Document::parse_yaml(yaml.as_bytes()) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(invalid) => invalid.to_string(),
    };
    assert_eq!(got.lines().collect::<Vec<_>>(), want, "{yaml}");
}

/// The problems of a match, their paths from the match on.
#[track_caller]
fn refused_match(matches: &str, want: &[&str]) {
    let want: Vec<String> = want
        .iter()
        .map(|line| format!("source_groups[0].rules[0].match{line}"))
        .collect();
    let want: Vec<&str> = want.iter().map(String::as_str).collect();
    refused(&with_match(matches), &want);
}

/// The canonical form of a match.
#[track_caller]
fn kept(matches: &str, want: &str) {
    let document = parse(&with_match(matches));
    let got = serde_json::to_string(&document.source_groups[0].rules[0].matches).unwrap();
    assert_eq!(got, want, "{matches}");
}

/// Everything of the published schema and everything new, in one document.
const FULL: &str = include_str!("../../../../fuzz/corpus/policy_document/full.yaml");

#[test]
fn the_whole_schema_is_read_and_written_back() {
    let document = parse(FULL);
    assert_eq!(
        Document::parse_json(&document.to_json()),
        Ok(document.clone())
    );
    assert_eq!(
        Document::parse_yaml(document.to_yaml().as_bytes()),
        Ok(document.clone())
    );
    assert_eq!(document.source_groups.len(), 3);
    assert_eq!(document.source_groups[0].rules.len(), 6);
}

#[test]
fn canonical_json_is_the_published_shape() {
    let document = parse(
        "
default_policy: DENY
source_groups:
- rules:
  - {match: {dst_ports: ['443', 80-90], proto: 6}, id: web, action: Allow, priority: null}
  sources: {ips: ['2001:DB8::1'], cidrs: [10.1.2.3/8, 192.0.2.1]}
  mode: audit
  id: apps
- {id: empty, mode: enforce, on_deny: reset, sources: {ips: [10.0.0.1]}}
",
    );
    assert_eq!(
        String::from_utf8(document.to_json()).unwrap(),
        concat!(
            r#"{"default_policy":"deny","source_groups":["#,
            r#"{"id":"apps","mode":"audit","#,
            r#""sources":{"cidrs":["10.0.0.0/8","192.0.2.1/32"],"ips":["2001:db8::1"]},"#,
            r#""rules":[{"id":"web","action":"allow","#,
            r#""match":{"proto":"tcp","dst_ports":[443,"80-90"]}}]},"#,
            r#"{"id":"empty","mode":"enforce","on_deny":"reset","sources":{"ips":["10.0.0.1"]},"rules":[]}"#,
            r#"]}"#
        )
    );
}

#[test]
fn leaves_are_kept_in_normal_form() {
    kept("{}", "{}");
    kept("{proto: any}", "{}");
    kept("{proto: 58}", r#"{"proto":"icmpv6"}"#);
    kept("{proto: '89'}", r#"{"proto":89}"#);
    kept("{dns_hostname: ' ^a$ '}", r#"{"dns_hostname":"^a$"}"#);
    kept(
        "{dns_names: ['*.Example.COM.']}",
        r#"{"dns_names":["*.example.com"]}"#,
    );
    kept("{tls: {sni: 'x.*'}}", r#"{"tls":{"sni":"x.*"}}"#);
    kept(
        "{tls: {sni: [A.example.]}}",
        r#"{"tls":{"sni":["a.example"]}}"#,
    );
    kept("{tls: {sni: {regex: x}}}", r#"{"tls":{"sni":"x"}}"#);
    kept(
        "{tls: {sni: {exact: [A], regex: x}}}",
        r#"{"tls":{"sni":{"exact":["a"],"regex":"x"}}}"#,
    );
    kept(
        "{tls: {server_dn: 'cn = a\\, b , o=X'}}",
        r#"{"tls":{"server_dn":"CN=a\\, b,O=X"}}"#,
    );
    let fingerprint = ["AB"; 32].join(":");
    kept(
        &format!("{{tls: {{fingerprint_sha256: ['{fingerprint}']}}}}"),
        &format!(
            r#"{{"tls":{{"fingerprint_sha256":["{}"]}}}}"#,
            "ab".repeat(32)
        ),
    );
    kept(
        "{tls: {mode: intercept, http: {request: {host: {exact: [A.b]}, methods: [get], headers: {exact: {X-A: ['1']}}}}}}",
        concat!(
            r#"{"tls":{"mode":"intercept","http":{"request":{"host":{"exact":["a.b"]},"#,
            r#""methods":["GET"],"headers":{"exact":{"x-a":["1"]}}}}}}"#
        ),
    );
}

#[test]
fn structure() {
    refused("[]", &["document: expected a map, found a list"]);
    refused("", &["document: expected a map, found null"]);
    refused(
        "mode: audit",
        &["mode: a document has no mode; each source group has its own"],
    );
    refused(
        "{default_polcy: deny, default_policy: maybe, source_groups: {}}",
        &[
            "default_polcy: unknown key (did you mean `default_policy`?)",
            "default_policy: \"maybe\" is none of allow, deny",
            "source_groups: expected a list, found a map",
        ],
    );
    refused(
        "{default_policy: deny, default_policy: allow}",
        &["default_policy: key given twice"],
    );
    refused(
        "source_groups: [{<<: {id: a}}]",
        &[
            "source_groups[0][\"<<\"]: unknown key",
            "source_groups[0]: key `id` is missing",
            "source_groups[0]: key `mode` is missing",
            "source_groups[0]: key `sources` is missing",
        ],
    );
}

#[test]
fn everything_wrong_is_told_at_once() {
    refused(
        "
source_groups:
- id: ''
  mode: enfroce
  priority: -1
  sources: {cidrs: [10.0.0.0/40], ips: [10.0.0.0/8], cidr: []}
  rules:
  - {id: 7, action: allow, match: {dst_port: [443]}}
  - {id: x, action: permit, match: {dst_ports: [443, 70000, 90-80]}, mode: off}
  - {id: x, action: denny}
",
        &[
            "source_groups[0].id: must not be empty",
            "source_groups[0].priority: -1 is out of range (0 to 4294967295)",
            "source_groups[0].mode: \"enfroce\" is none of audit, enforce (did you mean `enforce`?)",
            "source_groups[0].sources.cidr: unknown key (did you mean `cidrs`?)",
            "source_groups[0].sources.cidrs[0]: \"10.0.0.0/40\" has no valid prefix length",
            "source_groups[0].sources.ips[0]: \"10.0.0.0/8\" is a network; write it under the key for networks",
            "source_groups[0].rules[0].id: expected a string, found a number (quote it)",
            "source_groups[0].rules[0].match.dst_port: unknown key (did you mean `dst_ports`?)",
            "source_groups[0].rules[1].action: \"permit\" is none of allow, deny",
            "source_groups[0].rules[1].mode: \"off\" is none of audit, enforce",
            "source_groups[0].rules[1].match.dst_ports[1]: 70000 is not a port (0 to 65535)",
            "source_groups[0].rules[1].match.dst_ports[2]: the range 90-80 ends before it starts (did you mean \"80-90\"?)",
            "source_groups[0].rules[2].action: \"denny\" is none of allow, deny (did you mean `deny`?)",
            "source_groups[0].rules[2]: key `match` is missing",
        ],
    );
}

#[test]
fn ids_are_unique_where_they_must_be() {
    refused(
        "
source_groups:
- {id: a, mode: audit, sources: {ips: [10.0.0.1]}, rules: [{id: r, action: deny, match: {}}, {id: r, action: deny, match: {}}]}
- {id: b, mode: audit, sources: {ips: [10.0.0.1]}, rules: [{id: r, action: deny, match: {}}]}
- {id: a, mode: audit, sources: {ips: [10.0.0.1]}}
",
        &[
            "source_groups[0].rules[1].id: \"r\" is already the id of rule 0 here",
            "source_groups[2].id: \"a\" is already the id of source group 0 here",
        ],
    );
}

#[test]
fn sources() {
    let group =
        |sources: &str| format!("source_groups: [{{id: g, mode: audit, sources: {sources}}}]");
    let empty = "source_groups[0].sources: no source: give at least one of cidrs, ips, kubernetes";
    refused(&group("{}"), &[empty]);
    refused(&group("{cidrs: [], ips: []}"), &[empty]);
    refused(
        &group("{kubernetes: [{integration: ' '}]}"),
        &[
            "source_groups[0].sources.kubernetes[0].integration: must not be empty",
            "source_groups[0].sources.kubernetes[0]: give exactly one of pod_selector and node_selector",
        ],
    );
    refused(
        &group(
            "{kubernetes: [{integration: k, pod_selector: {match_labels: {a: '', ' ': b}}, node_selector: {}}]}",
        ),
        &[
            "source_groups[0].sources.kubernetes[0]: give exactly one of pod_selector and node_selector",
            "source_groups[0].sources.kubernetes[0].pod_selector: key `namespace` is missing",
            "source_groups[0].sources.kubernetes[0].pod_selector.match_labels.a: must not be empty",
            "source_groups[0].sources.kubernetes[0].pod_selector.match_labels[\" \"]: a label's key must not be empty",
        ],
    );
}

#[test]
fn contradictory_selectors() {
    refused_match(
        "{proto: icmp, dst_ports: [1]}",
        &[".dst_ports: icmp has no ports"],
    );
    refused_match(
        "{proto: 58, src_ports: [1]}",
        &[".src_ports: icmpv6 has no ports"],
    );
    refused_match(
        "{proto: 47, src_ports: [1]}",
        &[".src_ports: protocol 47 has no ports"],
    );
    refused_match(
        "{proto: tcp, icmp_types: [8]}",
        &[".icmp_types: tcp has no ICMP types"],
    );
    refused_match(
        "{proto: udp, icmp_codes: [0]}",
        &[".icmp_codes: udp has no ICMP codes"],
    );
    refused_match(
        "{proto: udp, tls: {}}",
        &[".tls: TLS is matched on tcp only, not on udp"],
    );
    refused_match(
        "{icmp_types: [8], dst_ports: [1]}",
        &[".icmp_types: no packet has both ports and ICMP types or codes"],
    );
    refused_match(
        "{icmp_codes: [8], tls: {}}",
        &[".icmp_codes: no packet has both TLS and ICMP types or codes"],
    );
    refused_match(
        "{dns_hostname: a, dns_names: [a.b]}",
        &[".dns_hostname: give either dns_hostname or dns_names, not both"],
    );
    // What contradicts nothing.
    kept("{proto: any, dst_ports: [1]}", r#"{"dst_ports":[1]}"#);
    kept("{proto: icmp, dst_ports: []}", r#"{"proto":"icmp"}"#);
    kept("{proto: any, icmp_types: [8]}", r#"{"icmp_types":[8]}"#);
}

#[test]
fn names() {
    refused_match(
        "{dns_names: ['*.*.example.com', '', b ü.de]}",
        &[
            ".dns_names[0]: \"*.*.example.com\": a wildcard is the whole first label, `*.` or `**.`",
            ".dns_names[1]: \"\": a name must not be empty",
            ".dns_names[2]: \"b ü.de\": an international name is written in its ASCII form (xn--…)",
        ],
    );
    refused_match(
        "{dns_hostname: '  '}",
        &[".dns_hostname: must not be empty"],
    );
    refused_match(
        "{dns_hostname: '('}",
        &[".dns_hostname: not a regular expression: unclosed group"],
    );
    refused(
        "source_groups: [{id: g, mode: audit, sources: {ips: [10.0.0.1]}, rules: [{id: r, action: allow, grant_scope: client, match: {}}]}]",
        &[
            "source_groups[0].rules[0].grant_scope: nothing is granted by a rule without dns_hostname or dns_names",
        ],
    );
}

#[test]
fn tls() {
    refused_match(
        "{tls: {mode: intercept}}",
        &[".tls: mode intercept needs the key `http`"],
    );
    refused_match(
        "{tls: {http: {request: {methods: [GET]}}}}",
        &[".tls.http: HTTP is only seen in mode intercept"],
    );
    refused_match(
        "{tls: {mode: intercept, sni: a, http: {response: {headers: {require_present: [x]}}}}}",
        &[".tls.sni: mode intercept cannot be combined with handshake selectors"],
    );
    refused_match(
        "{tls: {sni: [], server_san: {}, server_cn: 3, server_dn: nobody, fingerprint_sha256: [abc], trust_anchors_pem: [x]}}",
        &[
            ".tls.sni: must not be empty",
            ".tls.server_dn: \"nobody\" is no distinguished name: \"nobody\" is not of the form TYPE=value",
            ".tls.server_san: empty: give at least one of exact, regex",
            ".tls.server_cn: expected a regular expression, a list of names or a map of both, found a number",
            ".tls.fingerprint_sha256[0]: \"abc\" is not a SHA-256 fingerprint of 64 hexadecimal digits",
            ".tls.trust_anchors_pem[0]: no PEM certificate in it",
        ],
    );
    let pem = |label: &str| format!("-----BEGIN {label}-----\\nAAAA\\n-----END {label}-----\\n");
    refused_match(
        &format!(
            "{{tls: {{trust_anchors_pem: [\"{}\", \"{}\"]}}}}",
            pem("PRIVATE KEY"),
            pem("CERTIFICATE")
        ),
        &[
            ".tls.trust_anchors_pem[0]: a PEM block of kind \"PRIVATE KEY\"; only CERTIFICATE is taken",
            ".tls.trust_anchors_pem[1]: a PEM block that holds no X.509 certificate",
        ],
    );
}

#[test]
fn http() {
    let refused_http = |http: &str, want: &[&str]| {
        let want: Vec<String> = want.iter().map(|line| format!(".tls.http{line}")).collect();
        let want: Vec<&str> = want.iter().map(String::as_str).collect();
        refused_match(
            &format!("{{tls: {{mode: intercept, http: {http}}}}}"),
            &want,
        );
    };
    refused_http("{}", &[": empty: give at least one of request, response"]);
    refused_http(
        "{request: {}, response: {}}",
        &[
            ".request: empty: give at least one of host, methods, path, query, headers",
            ".response: empty: give at least one of headers",
        ],
    );
    refused_http(
        "{request: {methods: ['GE T'], path: {}, host: {exact: []}, query: {keys_present: ['']}}}",
        &[
            ".request.host: empty: give at least one of exact, regex",
            ".request.methods[0]: \"GE T\" is not a token as HTTP methods and header names are",
            ".request.path: empty: give at least one of exact, prefix, regex",
            ".request.query.keys_present[0]: a query key must not be empty",
        ],
    );
    refused_http(
        "{request: {headers: {exact: {x-a: []}, deny_present: [X-A], regex: {'x b': '.', c: '['}}}}",
        &[
            ".request.headers.exact.x-a: must not be empty",
            ".request.headers.regex[\"x b\"]: \"x b\" is not a token as HTTP methods and header names are",
            ".request.headers.regex.c: not a regular expression: unclosed character class",
            ".request.headers.deny_present[0]: the header \"x-a\" is both wanted and denied",
        ],
    );
    refused_http(
        "{response: {headers: {exact: {X-A: ['1'], x-a: ['2']}}}}",
        &[".response.headers.exact.x-a: key given twice"],
    );
}

#[test]
fn limits() {
    let group = |rules: &str| {
        format!(
            "{{\"id\":\"%\",\"mode\":\"audit\",\"sources\":{{\"ips\":[\"::\"]}},\"rules\":[{rules}]}}"
        )
    };
    let numbered = |item: &str, n: usize| {
        let items: Vec<String> = (0..n).map(|i| item.replace('%', &i.to_string())).collect();
        items.join(",")
    };
    let document = |groups: String| format!("{{\"source_groups\":[{groups}]}}");
    let problem = |json: String| match Document::parse_json(json.as_bytes()) {
        Ok(_) => None,
        Err(invalid) => Some(invalid.to_string()),
    };
    let groups = |n| document(numbered(&group(""), n));
    assert_eq!(problem(groups(MAX_GROUPS)), None);
    assert_eq!(
        problem(groups(MAX_GROUPS + 1)).unwrap(),
        "source_groups: 10001 groups; at most 10000"
    );
    let rule = "{\"id\":\"%\",\"action\":\"deny\",\"match\":{}}";
    let rules = |n| document(group(&numbered(rule, n)));
    assert_eq!(problem(rules(MAX_RULES)), None);
    assert_eq!(
        problem(rules(MAX_RULES + 1)).unwrap(),
        "source_groups[0].rules: more than 100000 rules in one document"
    );
    let names = |n| {
        let names = numbered("\"a%.example\"", n);
        document(group(&format!(
            "{{\"id\":\"r\",\"action\":\"deny\",\"match\":{{\"dns_names\":[{names}]}}}}"
        )))
    };
    assert_eq!(problem(names(MAX_NAMES)), None);
    assert_eq!(
        problem(names(MAX_NAMES + 1)).unwrap(),
        "document: more than 1000000 names in one document"
    );
}

#[test]
fn priorities_order_by_number_then_position() {
    let order = |priorities: &[Option<u32>]| in_order(priorities.iter().copied());
    assert_eq!(order(&[None, None, None]), [0, 1, 2]);
    assert_eq!(order(&[Some(5), None, Some(0)]), [2, 1, 0]);
    assert_eq!(order(&[Some(1), None, Some(1)]), [0, 1, 2]);
    assert_eq!(order(&[Some(u32::MAX), None]), [1, 0]);
}
