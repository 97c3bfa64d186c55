//! From the generic tree to a [`Document`], collecting everything that is wrong on the way.
//!
//! Each function returns what it could read, or a stand-in after it has reported a problem; the
//! stand-ins never leave, because a document with any problem is refused.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::scalar::{self, Refused, shown, word};
use super::tls::decode_tls;
use super::{
    Action, Document, GrantScope, KubernetesSource, MAX_GROUPS, MAX_NAMES, MAX_RULES, Match, Mode,
    NodeSelector, OnDeny, PodSelector, Rule, SourceGroup, Sources, protocol,
};
use crate::name::{NamePattern, RegexBudget};
use crate::problem::{Invalid, Path, Problems, nearest};
use crate::tree::Value;

const ACTIONS: [(&str, Action); 2] = [("allow", Action::Allow), ("deny", Action::Deny)];
const MODES: [(&str, Mode); 2] = [("audit", Mode::Audit), ("enforce", Mode::Enforce)];
const ON_DENY: [(&str, OnDeny); 2] = [("drop", OnDeny::Drop), ("reset", OnDeny::Reset)];
const GRANT_SCOPES: [(&str, GrantScope); 2] =
    [("group", GrantScope::Group), ("client", GrantScope::Client)];

pub(super) fn document(tree: &Value<'_>) -> Result<Document, Invalid> {
    let mut decoder = Decoder::default();
    let document = decoder.document(tree);
    decoder.problems.into_result(document)
}

/// What is shared by the whole walk.
#[derive(Default)]
pub(super) struct Decoder {
    problems: Problems,
    regexes: RegexBudget,
    rules: usize,
    names: usize,
}

/// The entries of a map whose keys are known.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a, 'de>(&'a [(std::borrow::Cow<'de, str>, Value<'de>)]);

impl<'a, 'de> Fields<'a, 'de> {
    /// The value of a key, or none if it is absent or null.
    pub(super) fn get(self, key: &str) -> Option<&'a Value<'de>> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value)
            .filter(|value| **value != Value::Null)
    }
}

impl Decoder {
    pub(super) fn add(&mut self, path: &Path<'_>, reason: impl Into<String>) {
        self.problems.add(path, reason);
    }

    pub(super) fn accept<T>(&mut self, path: &Path<'_>, result: Result<T, Refused>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(refused) => {
                self.problems
                    .add_with(path, refused.reason, refused.suggestion);
                None
            }
        }
    }

    /// A map with known keys; reports unknown and repeated ones.
    pub(super) fn fields<'a, 'de>(
        &mut self,
        value: &'a Value<'de>,
        path: &Path<'_>,
        known: &[&str],
    ) -> Option<Fields<'a, 'de>> {
        let Value::Map(entries) = value else {
            self.add(path, format!("expected a map, found {}", value.kind()));
            return None;
        };
        let mut seen = 0_u32;
        for (key, _) in entries {
            match known.iter().position(|k| k == key) {
                Some(i) if seen & 1 << i != 0 => self.add(&path.key(key), "key given twice"),
                Some(i) => seen |= 1 << i,
                None => self
                    .problems
                    .add_with(&path.key(key), "unknown key", nearest(key, known)),
            }
        }
        Some(Fields(entries))
    }

    pub(super) fn require<'a, 'de>(
        &mut self,
        fields: Fields<'a, 'de>,
        path: &Path<'_>,
        key: &str,
    ) -> Option<&'a Value<'de>> {
        let value = fields.get(key);
        if value.is_none() {
            self.add(path, format!("key `{key}` is missing"));
        }
        value
    }

    pub(super) fn list<'a, 'de>(
        &mut self,
        value: Option<&'a Value<'de>>,
        path: &Path<'_>,
    ) -> &'a [Value<'de>] {
        match value {
            Some(Value::List(items)) => items,
            Some(other) => {
                self.add(path, format!("expected a list, found {}", other.kind()));
                &[]
            }
            None => &[],
        }
    }

    pub(super) fn string<'a>(&mut self, value: &'a Value<'_>, path: &Path<'_>) -> Option<&'a str> {
        match value {
            Value::Str(text) => Some(text),
            other => {
                self.add(
                    path,
                    format!("expected a string, found {} (quote it)", other.kind()),
                );
                None
            }
        }
    }

    /// A string that is more than white space; taken as written or trimmed, as the caller likes.
    pub(super) fn filled<'a>(&mut self, value: &'a Value<'_>, path: &Path<'_>) -> Option<&'a str> {
        let text = self.string(value, path)?;
        if text.trim().is_empty() {
            self.add(path, "must not be empty");
            return None;
        }
        Some(text)
    }

    pub(super) fn word<T: Copy>(
        &mut self,
        value: Option<&Value<'_>>,
        path: &Path<'_>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.string(value?, path)?;
        let result = word(text, words);
        self.accept(path, result)
    }

    /// A list, each item read by `read`.
    pub(super) fn each<T>(
        &mut self,
        value: Option<&Value<'_>>,
        path: &Path<'_>,
        mut read: impl FnMut(&mut Self, &Value<'_>, &Path<'_>) -> Option<T>,
    ) -> Vec<T> {
        let items = self.list(value, path);
        let mut out = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            out.extend(read(self, item, &path.index(i)));
        }
        out
    }

    /// A list of strings, each read by `read`.
    pub(super) fn each_text<T>(
        &mut self,
        value: Option<&Value<'_>>,
        path: &Path<'_>,
        read: fn(&str) -> Result<T, Refused>,
    ) -> Vec<T> {
        self.each(value, path, |this, item, path| {
            let text = this.string(item, path)?;
            this.accept(path, read(text))
        })
    }

    /// A map with free keys.
    pub(super) fn free_map<T>(
        &mut self,
        value: Option<&Value<'_>>,
        path: &Path<'_>,
        mut read: impl FnMut(&mut Self, &str, &Value<'_>, &Path<'_>) -> Option<(String, T)>,
    ) -> BTreeMap<String, T> {
        let mut out = BTreeMap::new();
        let entries = match value {
            None => return out,
            Some(Value::Map(entries)) => entries,
            Some(other) => {
                self.add(path, format!("expected a map, found {}", other.kind()));
                return out;
            }
        };
        for (key, value) in entries {
            let path = path.key(key);
            if let Some((key, value)) = read(self, key, value, &path)
                && out.insert(key, value).is_some()
            {
                self.add(&path, "key given twice");
            }
        }
        out
    }

    pub(super) fn regex(&mut self, pattern: &str, path: &Path<'_>) {
        if let Err(error) = self.regexes.check(pattern) {
            self.add(path, error.to_string());
        }
    }

    /// Counts names; says so once when there are too many.
    pub(super) fn count_names(&mut self, more: usize) {
        let before = self.names;
        self.names += more;
        if before <= MAX_NAMES && self.names > MAX_NAMES {
            self.add(
                &Path::Root,
                format!("more than {MAX_NAMES} names in one document"),
            );
        }
    }

    fn document(&mut self, tree: &Value<'_>) -> Option<Document> {
        let path = Path::Root;
        if let Value::Map(entries) = tree
            && entries.iter().any(|(key, _)| key == "mode")
        {
            self.add(
                &path.key("mode"),
                "a document has no mode; each source group has its own",
            );
        }
        let known = ["default_policy", "source_groups", "mode"];
        let fields = self.fields(tree, &path, &known)?;
        let default_policy = self.word(
            fields.get("default_policy"),
            &path.key("default_policy"),
            &ACTIONS,
        );
        let path = path.key("source_groups");
        let groups = self.list(fields.get("source_groups"), &path);
        if groups.len() > MAX_GROUPS {
            self.add(
                &path,
                format!("{} groups; at most {MAX_GROUPS}", groups.len()),
            );
            return None;
        }
        let mut ids = HashMap::new();
        let mut source_groups = Vec::with_capacity(groups.len());
        for (i, group) in groups.iter().enumerate() {
            let path = path.index(i);
            if let Some(group) = self.group(group, &path) {
                self.unique(&mut ids, &group.id, i, &path, "source group");
                source_groups.push(group);
            }
        }
        Some(Document {
            default_policy,
            source_groups,
        })
    }

    fn unique(
        &mut self,
        ids: &mut HashMap<String, usize>,
        id: &str,
        index: usize,
        path: &Path<'_>,
        what: &str,
    ) {
        if id.is_empty() {
            return;
        }
        match ids.entry(id.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(index);
            }
            Entry::Occupied(first) => {
                let first = first.get();
                self.add(
                    &path.key("id"),
                    format!("{} is already the id of {what} {first} here", shown(id)),
                );
            }
        }
    }

    fn id(&mut self, fields: Fields<'_, '_>, path: &Path<'_>) -> String {
        self.require(fields, path, "id")
            .and_then(|value| self.filled(value, &path.key("id")))
            .unwrap_or_default()
            .to_owned()
    }

    fn priority(&mut self, fields: Fields<'_, '_>, path: &Path<'_>) -> Option<u32> {
        let result = scalar::number(fields.get("priority")?, "0 to 4294967295");
        self.accept(&path.key("priority"), result)
    }

    fn group(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<SourceGroup> {
        let known = [
            "id",
            "priority",
            "mode",
            "on_deny",
            "sources",
            "rules",
            "default_action",
        ];
        let fields = self.fields(value, path, &known)?;
        let id = self.id(fields, path);
        let priority = self.priority(fields, path);
        let mode = self.require(fields, path, "mode");
        let mode = self.word(mode, &path.key("mode"), &MODES);
        let on_deny = self.word(fields.get("on_deny"), &path.key("on_deny"), &ON_DENY);
        let sources = match self.require(fields, path, "sources") {
            Some(value) => self.sources(value, &path.key("sources")),
            None => Sources::default(),
        };
        let rules = self.rules(fields.get("rules"), &path.key("rules"));
        let default_action = self.word(
            fields.get("default_action"),
            &path.key("default_action"),
            &ACTIONS,
        );
        Some(SourceGroup {
            id,
            priority,
            mode: mode.unwrap_or(Mode::Enforce),
            on_deny,
            sources,
            rules,
            default_action,
        })
    }

    fn sources(&mut self, value: &Value<'_>, path: &Path<'_>) -> Sources {
        let Some(fields) = self.fields(value, path, &["cidrs", "ips", "kubernetes"]) else {
            return Sources::default();
        };
        let given = |key| matches!(fields.get(key), Some(Value::List(items)) if !items.is_empty());
        if !["cidrs", "ips", "kubernetes"].into_iter().any(given) {
            self.add(
                path,
                "no source: give at least one of cidrs, ips, kubernetes",
            );
        }
        Sources {
            cidrs: self.each_text(fields.get("cidrs"), &path.key("cidrs"), scalar::cidr),
            ips: self.each_text(fields.get("ips"), &path.key("ips"), scalar::ip),
            kubernetes: self.each(
                fields.get("kubernetes"),
                &path.key("kubernetes"),
                Self::kubernetes,
            ),
        }
    }

    fn kubernetes(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<KubernetesSource> {
        let known = ["integration", "pod_selector", "node_selector"];
        let fields = self.fields(value, path, &known)?;
        let integration = self
            .require(fields, path, "integration")
            .and_then(|value| self.filled(value, &path.key("integration")))
            .unwrap_or_default()
            .trim()
            .to_owned();
        let pods = fields.get("pod_selector");
        let nodes = fields.get("node_selector");
        if pods.is_some() == nodes.is_some() {
            self.add(path, "give exactly one of pod_selector and node_selector");
        }
        Some(KubernetesSource {
            integration,
            pod_selector: pods.and_then(|v| self.pod_selector(v, &path.key("pod_selector"))),
            node_selector: nodes.and_then(|v| self.node_selector(v, &path.key("node_selector"))),
        })
    }

    fn pod_selector(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<PodSelector> {
        let fields = self.fields(value, path, &["namespace", "match_labels"])?;
        let namespace = self
            .require(fields, path, "namespace")
            .and_then(|value| self.filled(value, &path.key("namespace")))
            .unwrap_or_default()
            .trim()
            .to_owned();
        Some(PodSelector {
            namespace,
            match_labels: self.labels(fields, path),
        })
    }

    fn node_selector(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<NodeSelector> {
        let fields = self.fields(value, path, &["match_labels"])?;
        Some(NodeSelector {
            match_labels: self.labels(fields, path),
        })
    }

    fn labels(&mut self, fields: Fields<'_, '_>, path: &Path<'_>) -> BTreeMap<String, String> {
        let path = path.key("match_labels");
        self.free_map(
            fields.get("match_labels"),
            &path,
            |this, key, value, path| {
                if key.trim().is_empty() {
                    this.add(path, "a label's key must not be empty");
                }
                let value = this.filled(value, path)?;
                Some((key.trim().to_owned(), value.trim().to_owned()))
            },
        )
    }

    fn rules(&mut self, value: Option<&Value<'_>>, path: &Path<'_>) -> Vec<Rule> {
        let items = self.list(value, path);
        let before = self.rules;
        self.rules += items.len();
        if self.rules > MAX_RULES {
            if before <= MAX_RULES {
                self.add(path, format!("more than {MAX_RULES} rules in one document"));
            }
            return Vec::new();
        }
        let mut ids = HashMap::new();
        let mut rules = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let path = path.index(i);
            if let Some(rule) = self.rule(item, &path) {
                self.unique(&mut ids, &rule.id, i, &path, "rule");
                rules.push(rule);
            }
        }
        rules
    }

    fn rule(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<Rule> {
        let known = ["id", "priority", "action", "mode", "grant_scope", "match"];
        let fields = self.fields(value, path, &known)?;
        let id = self.id(fields, path);
        let priority = self.priority(fields, path);
        let action = self.require(fields, path, "action");
        let action = self.word(action, &path.key("action"), &ACTIONS);
        let mode = self.word(fields.get("mode"), &path.key("mode"), &MODES);
        let grant_scope = self.word(
            fields.get("grant_scope"),
            &path.key("grant_scope"),
            &GRANT_SCOPES,
        );
        let matches = self.require(fields, path, "match")?;
        let matches = self.matches(matches, &path.key("match"))?;
        if grant_scope.is_some() && !matches.has_name() {
            self.add(
                &path.key("grant_scope"),
                "nothing is granted by a rule without dns_hostname or dns_names",
            );
        }
        Some(Rule {
            id,
            priority,
            action: action.unwrap_or(Action::Deny),
            mode,
            grant_scope,
            matches,
        })
    }

    fn matches(&mut self, value: &Value<'_>, path: &Path<'_>) -> Option<Match> {
        let known = [
            "dst_cidrs",
            "dst_ips",
            "dns_hostname",
            "dns_names",
            "proto",
            "src_ports",
            "dst_ports",
            "icmp_types",
            "icmp_codes",
            "tls",
        ];
        let fields = self.fields(value, path, &known)?;
        let dst_cidrs = self.each_text(
            fields.get("dst_cidrs"),
            &path.key("dst_cidrs"),
            scalar::cidr,
        );
        let dst_ips = self.each_text(fields.get("dst_ips"), &path.key("dst_ips"), scalar::ip);
        let dns_hostname = self.hostname(fields.get("dns_hostname"), &path.key("dns_hostname"));
        let dns_names = self.each_text(fields.get("dns_names"), &path.key("dns_names"), |text| {
            NamePattern::parse(text).map_err(|e| Refused::new(format!("{}: {e}", shown(text))))
        });
        self.count_names(dns_names.len() + usize::from(dns_hostname.is_some()));
        let ports = |this: &mut Self, item: &Value<'_>, path: &Path<'_>| {
            this.accept(path, scalar::ports(item))
        };
        let byte = |this: &mut Self, item: &Value<'_>, path: &Path<'_>| {
            this.accept(path, scalar::number::<u8>(item, "0 to 255"))
        };
        let proto = fields
            .get("proto")
            .and_then(|value| self.accept(&path.key("proto"), scalar::proto(value)));
        let matches = Match {
            dst_cidrs,
            dst_ips,
            dns_hostname,
            dns_names,
            proto: proto.flatten(),
            src_ports: self.each(fields.get("src_ports"), &path.key("src_ports"), ports),
            dst_ports: self.each(fields.get("dst_ports"), &path.key("dst_ports"), ports),
            icmp_types: self.each(fields.get("icmp_types"), &path.key("icmp_types"), byte),
            icmp_codes: self.each(fields.get("icmp_codes"), &path.key("icmp_codes"), byte),
            tls: fields
                .get("tls")
                .and_then(|value| decode_tls(self, value, &path.key("tls"))),
        };
        let proto_is_sound = fields.get("proto").is_none() || proto.is_some();
        if proto_is_sound {
            self.contradictions(fields, &matches, path);
        }
        Some(matches)
    }

    fn hostname(&mut self, value: Option<&Value<'_>>, path: &Path<'_>) -> Option<String> {
        let pattern = self.filled(value?, path)?.trim();
        self.regex(pattern, path);
        Some(pattern.to_owned())
    }

    /// Selectors that can never hold together. Judged by what was written, so that a list whose
    /// items were refused is not mistaken for one left out.
    fn contradictions(&mut self, fields: Fields<'_, '_>, matches: &Match, path: &Path<'_>) {
        let given = |key: &str| match fields.get(key) {
            Some(Value::List(items)) => !items.is_empty(),
            other => other.is_some(),
        };
        let named = |number: u8| match number {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            protocol::ICMP => "icmp".to_owned(),
            protocol::ICMPV6 => "icmpv6".to_owned(),
            number => format!("protocol {number}"),
        };
        if let Some(number) = matches.proto {
            for key in ["src_ports", "dst_ports"] {
                if given(key) && !protocol::WITH_PORTS.contains(&number) {
                    self.add(&path.key(key), format!("{} has no ports", named(number)));
                }
            }
            for key in ["icmp_types", "icmp_codes"] {
                if given(key) && !matches!(number, protocol::ICMP | protocol::ICMPV6) {
                    let what = key.trim_start_matches("icmp_");
                    self.add(
                        &path.key(key),
                        format!("{} has no ICMP {what}", named(number)),
                    );
                }
            }
            if given("tls") && number != protocol::TCP {
                self.add(
                    &path.key("tls"),
                    format!("TLS is matched on tcp only, not on {}", named(number)),
                );
            }
        } else {
            for key in ["icmp_types", "icmp_codes"] {
                if given(key) && (given("src_ports") || given("dst_ports")) {
                    self.add(
                        &path.key(key),
                        "no packet has both ports and ICMP types or codes",
                    );
                }
                if given(key) && given("tls") {
                    self.add(
                        &path.key(key),
                        "no packet has both TLS and ICMP types or codes",
                    );
                }
            }
        }
        if given("dns_hostname") && given("dns_names") {
            self.add(
                &path.key("dns_hostname"),
                "give either dns_hostname or dns_names, not both",
            );
        }
    }
}
