//! Random policy documents, as JSON, and random packets, drawn from the same few addresses, ports
//! and protocols, so that rules overlap and packets hit them.

use std::net::IpAddr;

use policy::Facts;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

/// Networks that lie in, beside and at the edges of one another.
const NETS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "10.1.2.2/31",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "255.255.255.255",
    "::/0",
    "2001:db8::/32",
    "2001:db8:0:1::/64",
    "2001:db8::1/128",
    "fe80::/10",
    "ffff::/16",
];

const ADDRESSES: [&str; 18] = [
    "0.0.0.0",
    "9.255.255.255",
    "10.0.0.0",
    "10.1.2.2",
    "10.1.2.3",
    "10.1.2.4",
    "10.127.255.255",
    "10.128.0.0",
    "192.0.2.1",
    "192.0.2.200",
    "255.255.255.255",
    "::",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:0:1::9",
    "2001:db9::",
    "fe80::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

/// Patterns that lie in and beside one another.
const PATTERNS: [&str; 10] = [
    "example.com",
    "a.example.com",
    "b.a.example.com",
    "*.example.com",
    "**.example.com",
    "*.a.example.com",
    "**.a.example.com",
    "Example.org.",
    "**.org",
    "a",
];

/// Regular expressions over the same names.
const REGEXES: [&str; 8] = [
    "example.com",
    r"^(.*\.)?example\.com$",
    r"[ab]\..*",
    ".*",
    r"A\.EXAMPLE\.(com|org)",
    r"[^.]+\.[^.]+",
    r".*a.*",
    r"\w{1,3}\.a\..*",
];

const PORTS: [u16; 8] = [0, 1, 53, 80, 443, 1024, 8080, 65535];

fn some<T: std::fmt::Debug + Clone + 'static>(
    item: impl Strategy<Value = T>,
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(item, 1..=most)
}

fn net() -> impl Strategy<Value = String> {
    select(&NETS[..]).prop_map(str::to_owned)
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => select(&ADDRESSES[..]).prop_map(str::to_owned),
        1 => any::<IpAddr>().prop_filter_map("mapped addresses are refused", |ip| {
            (ip == ip.to_canonical()).then(|| ip.to_string())
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(&PORTS[..]).prop_map(|p| json!(p)),
        select(&PORTS[..]).prop_map(|p| json!(p.to_string())),
        (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| json!(format!(
            "{}-{}",
            a.min(b),
            a.max(b)
        ))),
    ]
}

/// An optional key of a map.
fn key<V: Into<Value> + std::fmt::Debug + Clone + 'static>(
    name: &'static str,
    likelihood: f64,
    value: impl Strategy<Value = V> + 'static,
) -> BoxedStrategy<Option<(&'static str, Value)>> {
    prop::option::weighted(likelihood, value)
        .prop_map(move |value| value.map(|value| (name, value.into())))
        .boxed()
}

/// A key that is always there.
fn required<V: Into<Value> + std::fmt::Debug + Clone + 'static>(
    name: &'static str,
    value: impl Strategy<Value = V> + 'static,
) -> BoxedStrategy<Option<(&'static str, Value)>> {
    value
        .prop_map(move |value| Some((name, value.into())))
        .boxed()
}

fn map(keys: Vec<BoxedStrategy<Option<(&'static str, Value)>>>) -> BoxedStrategy<Value> {
    keys.prop_map(|keys| {
        let map: Map<String, Value> = keys
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Value::Object(map)
    })
    .boxed()
}

fn matches() -> BoxedStrategy<Value> {
    let destination = || {
        [
            key("dst_cidrs", 0.4, some(net(), 3)),
            key("dst_ips", 0.15, some(address(), 3)),
        ]
    };
    let with = |rest: Vec<BoxedStrategy<Option<(&'static str, Value)>>>| {
        map(destination().into_iter().chain(rest).collect())
    };
    let ports = |protocols: Vec<Value>| {
        with(vec![
            key("proto", 0.7, select(protocols)),
            key("src_ports", 0.2, some(port(), 2)),
            key("dst_ports", 0.5, some(port(), 3)),
        ])
    };
    let icmp = |proto| {
        with(vec![
            proto,
            key(
                "icmp_types",
                0.5,
                some(select(&[0_u8, 1, 3, 8, 11, 128, 129, 255][..]), 3),
            ),
            key("icmp_codes", 0.3, some(select(&[0_u8, 1, 4, 255][..]), 2)),
        ])
    };
    prop_oneof![
        6 => ports(vec![json!("tcp"), json!("UDP"), json!("any"), json!(6), json!(132), json!("17")]),
        2 => icmp(required("proto", Just("icmp"))),
        2 => icmp(required("proto", Just("icmpv6"))),
        1 => icmp(key("proto", 0.3, Just("any"))),
        1 => with(vec![required("proto", select(vec![json!(47), json!(0), json!(255)]))]),
    ]
    .boxed()
}

fn action() -> impl Strategy<Value = String> + 'static {
    select(&["allow", "deny", "Allow", "DENY"][..]).prop_map(str::to_owned)
}

fn mode() -> impl Strategy<Value = String> + 'static {
    select(&["enforce", "enforce", "audit"][..]).prop_map(str::to_owned)
}

fn priority() -> impl Strategy<Value = u32> + 'static {
    prop_oneof![4 => 0_u32..6, 1 => Just(u32::MAX)]
}

fn numbered(items: Vec<Value>, letter: char) -> Value {
    items
        .into_iter()
        .enumerate()
        .map(|(i, mut item)| {
            item["id"] = json!(format!("{letter}{i}"));
            item
        })
        .collect()
}

fn rule() -> BoxedStrategy<Value> {
    let plain = map(vec![
        key("priority", 0.3, priority()),
        required("action", action()),
        key("mode", 0.2, mode()),
        required("match", matches()),
    ]);
    let patterns = some(select(&PATTERNS[..]).prop_map(str::to_owned), 4);
    let name = prop_oneof![
        2 => patterns.prop_map(|list| ("dns_names", json!(list))),
        1 => select(&REGEXES[..]).prop_map(|regex| ("dns_hostname", json!(regex))),
    ];
    let scope = prop::option::of(select(&["group", "client"][..]));
    let named = (plain.clone(), name, scope).prop_map(|(mut rule, (key, value), scope)| {
        rule["match"][key] = value;
        if let Some(scope) = scope {
            rule["grant_scope"] = json!(scope);
        }
        rule
    });
    prop_oneof![2 => plain, 1 => named].boxed()
}

fn sources() -> BoxedStrategy<Value> {
    prop_oneof![
        map(vec![
            required("cidrs", some(net(), 3)),
            key("ips", 0.3, some(address(), 2)),
        ]),
        map(vec![required("ips", some(address(), 4))]),
    ]
    .boxed()
}

fn group() -> BoxedStrategy<Value> {
    // Now and then a group long enough to fill several words and blocks of a set.
    let rules = prop_oneof![
        60 => prop::collection::vec(rule(), 0..8),
        1 => (prop::collection::vec(rule(), 1..8), 1_usize..600).prop_map(|(rules, times)| {
            rules.iter().cycle().take(rules.len() * times).cloned().collect()
        }),
    ];
    map(vec![
        key("priority", 0.3, priority()),
        required("mode", mode()),
        key(
            "on_deny",
            0.3,
            select(&["drop", "reset"][..]).prop_map(str::to_owned),
        ),
        required("sources", sources()),
        key("rules", 0.9, rules.prop_map(|rules| numbered(rules, 'r'))),
        key("default_action", 0.3, action()),
    ])
}

/// A valid document that needs no part but packets and names.
pub fn document() -> BoxedStrategy<Value> {
    map(vec![
        key("default_policy", 0.5, action()),
        key(
            "source_groups",
            0.98,
            prop::collection::vec(group(), 0..8).prop_map(|groups| numbered(groups, 'g')),
        ),
    ])
}

/// A name as a query has it: in lower case, now and then with a label that is no host name's.
pub fn name() -> BoxedStrategy<String> {
    let label = select(
        &[
            "a",
            "b",
            "c-1",
            "example",
            "com",
            "org",
            r"a\046example",
            r"\255",
        ][..],
    );
    prop_oneof![
        3 => prop::collection::vec(label, 1..5).prop_map(|labels| labels.join(".")),
        3 => (
            prop::collection::vec(select(&["a", "b", "xa", r"a\046"][..]), 0..3),
            select(&["example.com", "example.org"][..]),
        )
            .prop_map(|(above, base)| {
                above.into_iter().chain([base]).collect::<Vec<_>>().join(".")
            }),
    ]
    .boxed()
}

/// A source address.
pub fn source() -> BoxedStrategy<IpAddr> {
    address()
        .prop_map(|text| text.parse().expect("an address"))
        .boxed()
}

/// A packet. Its two addresses need not be of the same family: the evaluator does not care.
pub fn facts() -> BoxedStrategy<Facts> {
    let ip = || address().prop_map(|text| text.parse().expect("an address"));
    let port = || {
        prop_oneof![
            4 => select(&PORTS[..]),
            1 => any::<u16>(),
        ]
    };
    let icmp = (
        select(&[0_u8, 1, 3, 8, 11, 128, 129, 200, 255][..]),
        select(&[0_u8, 1, 4, 255][..]),
    );
    let kind = prop_oneof![
        6 => (select(&[6_u8, 17, 132][..]), port(), port()).prop_map(|(n, s, d)| (n, s, d, None)),
        4 => (select(&[1_u8, 58][..]), prop::option::weighted(0.95, icmp))
            .prop_map(|(n, icmp)| (n, 0, 0, icmp)),
        1 => select(&[0_u8, 47, 255][..]).prop_map(|n| (n, 0, 0, None)),
    ];
    (ip(), ip(), kind)
        .prop_map(|(src, dst, (proto, src_port, dst_port, icmp))| Facts {
            src,
            dst,
            proto,
            src_port,
            dst_port,
            icmp,
        })
        .boxed()
}
