//! What a policy document means for a packet, read naively from the document: every group and
//! every rule in turn, nothing prepared, nothing shared with the compiled form. The compiled form
//! must agree with it on verdict and reason.

use std::net::IpAddr;

use policy::document::{Document, Match, NamePattern, Rule, SourceGroup};
use policy::name::{HostnameRegex, Reach};
use policy::{Action, Cause, Decision, Facts, Mode, NameDecision, OnDeny};

pub mod generate;

/// Judges a packet whose destination is granted to no name.
#[must_use]
pub fn evaluate(document: &Document, facts: &Facts) -> Decision {
    evaluate_granted(document, facts, &[])
}

/// Judges a packet whose destination is granted to some rules, given as positions of group and rule.
#[must_use]
pub fn evaluate_granted(document: &Document, facts: &Facts, granted: &[(u32, u32)]) -> Decision {
    for (g, group) in by_priority(&document.source_groups, |group| group.priority) {
        if !has_source(group, facts.src) {
            continue;
        }
        for (r, rule) in by_priority(&group.rules, |rule| rule.priority) {
            let named = has_name(&rule.matches);
            if named && !granted.contains(&(g as u32, r as u32)) {
                continue;
            }
            if matches(&rule.matches, facts) {
                return decided(group, g, Some((r, rule)), rule.action);
            }
        }
        if let Some(action) = group.default_action {
            return decided(group, g, None, action);
        }
    }
    Decision {
        allow: document.default_policy == Some(Action::Allow),
        would_deny: false,
        group: None,
        rule: None,
        on_deny: OnDeny::Drop,
        cause: Cause::DefaultPolicy,
    }
}

/// Judges a query: the first group that has the source decides, in it the first rule whose name
/// matches; without one it is a deny.
#[must_use]
pub fn evaluate_name(document: &Document, source: IpAddr, name: &str) -> NameDecision {
    let groups = by_priority(&document.source_groups, |group| group.priority);
    let Some((g, group)) = groups.into_iter().find(|(_, g)| has_source(g, source)) else {
        return NameDecision {
            allow: false,
            would_deny: false,
            group: None,
            rule: None,
        };
    };
    let rules = by_priority(&group.rules, |rule| rule.priority);
    let rule = rules.into_iter().find(|(_, r)| names(&r.matches, name));
    let action = rule.map_or(Action::Deny, |(_, rule)| rule.action);
    let decision = decided(group, g, rule, action);
    NameDecision {
        allow: decision.allow,
        would_deny: decision.would_deny,
        group: decision.group,
        rule: decision.rule,
    }
}

/// The rules of a group, in order, that a name's addresses are granted to.
#[must_use]
pub fn rules_by_name(document: &Document, group: u32, name: &str) -> Vec<(u32, u32)> {
    let rules = &document.source_groups[group as usize].rules;
    by_priority(rules, |rule| rule.priority)
        .into_iter()
        .filter(|(_, rule)| names(&rule.matches, name))
        .map(|(r, _)| (group, r as u32))
        .take(policy::MAX_RULES_PER_NAME)
        .collect()
}

fn has_name(wanted: &Match) -> bool {
    wanted.dns_hostname.is_some() || !wanted.dns_names.is_empty()
}

/// Whether a rule by name is about `name`: patterns label by label, expressions over the whole of it.
fn names(wanted: &Match, name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    let pattern = |pattern: &NamePattern| {
        let base: Vec<&str> = pattern.base().split('.').collect();
        labels.ends_with(&base)
            && match pattern.reach() {
                Reach::Exact => labels.len() == base.len(),
                Reach::OneLabel => labels.len() == base.len() + 1,
                Reach::AnyDepth => labels.len() > base.len(),
            }
    };
    wanted.dns_names.iter().any(pattern)
        || wanted.dns_hostname.as_ref().is_some_and(|regex| {
            HostnameRegex::compile(regex).is_ok_and(|regex| regex.is_match(name))
        })
}

/// Lower priority first; without one the position counts; equal ones in order of position.
fn by_priority<T>(items: &[T], priority: impl Fn(&T) -> Option<u32>) -> Vec<(usize, &T)> {
    let mut items: Vec<(usize, &T)> = items.iter().enumerate().collect();
    items.sort_by_key(|(i, item)| priority(item).map_or(*i, |p| p as usize));
    items
}

fn has_source(group: &SourceGroup, source: IpAddr) -> bool {
    let sources = &group.sources;
    sources.ips.contains(&source) || sources.cidrs.iter().any(|net| net.contains(&source))
}

fn matches(wanted: &Match, facts: &Facts) -> bool {
    destination(wanted, facts)
        && protocol(wanted, facts)
        && ports(wanted, facts)
        && icmp(wanted, facts)
}

fn destination(wanted: &Match, facts: &Facts) -> bool {
    if wanted.dst_cidrs.is_empty() && wanted.dst_ips.is_empty() {
        return true;
    }
    wanted.dst_ips.contains(&facts.dst)
        || wanted.dst_cidrs.iter().any(|net| net.contains(&facts.dst))
}

fn protocol(wanted: &Match, facts: &Facts) -> bool {
    wanted.proto.is_none_or(|proto| proto == facts.proto)
}

/// Ports are asked of TCP, UDP, DCCP, SCTP and UDP-Lite; other protocols have none to match.
fn ports(wanted: &Match, facts: &Facts) -> bool {
    if wanted.src_ports.is_empty() && wanted.dst_ports.is_empty() {
        return true;
    }
    let one_of = |ranges: &[policy::document::PortRange], port: u16| {
        ranges.is_empty() || ranges.iter().any(|r| r.start <= port && port <= r.end)
    };
    matches!(facts.proto, 6 | 17 | 33 | 132 | 136)
        && one_of(&wanted.src_ports, facts.src_port)
        && one_of(&wanted.dst_ports, facts.dst_port)
}

/// Types and codes are those of ICMP unless the rule says ICMPv6; a rule for one of the two with
/// neither has a default set.
fn icmp(wanted: &Match, facts: &Facts) -> bool {
    let (types, codes): (&[u8], &[u8]) = match wanted.proto {
        Some(1) if wanted.icmp_types.is_empty() && wanted.icmp_codes.is_empty() => {
            (&[0, 3, 11], &[0, 4])
        }
        Some(58) if wanted.icmp_types.is_empty() && wanted.icmp_codes.is_empty() => {
            (&[1, 2, 3, 4, 129], &[])
        }
        _ => (&wanted.icmp_types, &wanted.icmp_codes),
    };
    if types.is_empty() && codes.is_empty() {
        return true;
    }
    let right_protocol = facts.proto == wanted.proto.unwrap_or(1);
    right_protocol
        && facts.icmp.is_some_and(|(kind, code)| {
            (types.is_empty() || types.contains(&kind))
                && (codes.is_empty() || codes.contains(&code))
        })
}

fn decided(
    group: &SourceGroup,
    group_index: usize,
    rule: Option<(usize, &Rule)>,
    action: Action,
) -> Decision {
    let mode = rule.and_then(|(_, rule)| rule.mode).unwrap_or(group.mode);
    let (allow, would_deny) = match (action, mode) {
        (Action::Allow, _) => (true, false),
        (Action::Deny, Mode::Enforce) => (false, false),
        (Action::Deny, Mode::Audit) => (true, true),
    };
    Decision {
        allow,
        would_deny,
        group: Some(group_index as u32),
        rule: rule.map(|(r, _)| r as u32),
        on_deny: group.on_deny.unwrap_or(OnDeny::Drop),
        cause: if rule.is_some() {
            Cause::Rule
        } else {
            Cause::GroupDefault
        },
    }
}

#[cfg(test)]
mod tests {
    use policy::{Compiled, Step};
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &serde_json::Value) -> Document {
        let text = serde_json::to_vec(json).expect("a value is JSON");
        match Document::parse_json(&text) {
            Ok(document) => document,
            Err(invalid) => panic!("{invalid}\n{json:#}"),
        }
    }

    /// The rule that the last step of the walk names.
    fn explained(compiled: &Compiled, facts: &Facts) -> (Option<String>, Option<String>) {
        let steps = compiled.explain(facts);
        let group = steps.iter().rev().find_map(|step| match step {
            Step::Group { group } => Some(group.clone()),
            _ => None,
        });
        match steps.last() {
            Some(Step::Matched { rule, .. }) => (group, Some(rule.clone())),
            Some(Step::GroupDefault { .. }) => (group, None),
            Some(Step::DefaultPolicy { .. }) => (None, None),
            other => panic!("{other:?} decides nothing"),
        }
    }

    proptest! {
        #[test]
        fn compiled_agrees_with_the_document(
            json in generate::document(),
            packets in prop::collection::vec(generate::facts(), 24),
        ) {
            let document = parse(&json);
            let compiled = Compiled::compile(&document, 1).expect("small and needs nothing else");
            for facts in &packets {
                let want = evaluate(&document, facts);
                prop_assert_eq!(compiled.evaluate(facts), want, "{:?}", facts);
                let group = want.group.map(|g| &document.source_groups[g as usize]);
                let rule = want.rule.and_then(|r| Some(&group?.rules[r as usize]));
                prop_assert_eq!(
                    explained(&compiled, facts),
                    (group.map(|g| g.id.clone()), rule.map(|r| r.id.clone()))
                );
            }
        }

        #[test]
        fn queries_agree_with_the_document(
            json in generate::document(),
            queries in prop::collection::vec((generate::source(), generate::name()), 24),
            packets in prop::collection::vec((generate::facts(), generate::name()), 8),
        ) {
            let document = parse(&json);
            let compiled = Compiled::compile(&document, 1).expect("small and needs nothing else");
            for (source, name) in &queries {
                let want = evaluate_name(&document, *source, name);
                prop_assert_eq!(compiled.evaluate_name(*source, name), want, "{} {}", source, name);
                let walk = compiled.explain_name(*source, name);
                let decides = match walk.last() {
                    Some(Step::Matched { rule, .. }) => Some(rule.as_str()),
                    _ => None,
                };
                let group = want.group.map(|g| &document.source_groups[g as usize]);
                let rule = want.rule.and_then(|r| Some(group?.rules[r as usize].id.as_str()));
                prop_assert_eq!(decides, rule, "{:?}", walk);
            }
            let mut rules = Vec::new();
            for (facts, name) in &packets {
                // As the proxy does: what the client's group names is granted.
                let Some(group) = evaluate_name(&document, facts.src, name).group else { continue };
                compiled.rules_by_name(group, name, &mut rules);
                let granted: Vec<(u32, u32)> = rules
                    .iter()
                    .filter_map(|rule| compiled.name_rule_position(*rule))
                    .collect();
                prop_assert_eq!(&granted, &rules_by_name(&document, group, name));
                let want = evaluate_granted(&document, facts, &granted);
                let (decision, decided) = compiled.evaluate_granted(facts, &rules);
                prop_assert_eq!(decision, want, "{:?}", facts);
                let position = want.group.zip(want.rule);
                let by_name = position.filter(|position| granted.contains(position));
                prop_assert_eq!(decided.and_then(|rule| compiled.name_rule_position(rule)), by_name);
            }
        }

        #[test]
        fn documents_survive_being_written(json in generate::document()) {
            let document = parse(&json);
            let bytes = document.to_json();
            prop_assert_eq!(&Document::parse_json(&bytes), &Ok(document.clone()));
            prop_assert_eq!(&Document::parse_yaml(&bytes), &Ok(document.clone()));
            let yaml = document.to_yaml();
            prop_assert_eq!(&Document::parse_yaml(yaml.as_bytes()), &Ok(document));
        }
    }

    /// The property is worth something only if packets meet rules: each way of being decided has
    /// its share.
    #[test]
    fn generated_packets_meet_generated_rules() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;

        let mut runner = TestRunner::deterministic();
        let (mut rules, mut later_rules, mut defaults, mut nothing, mut total) = (0, 0, 0, 0, 0);
        for _ in 0..200 {
            let json = generate::document()
                .new_tree(&mut runner)
                .expect("no filter")
                .current();
            let document = parse(&json);
            for _ in 0..10 {
                let facts = generate::facts()
                    .new_tree(&mut runner)
                    .expect("no filter")
                    .current();
                let decision = evaluate(&document, &facts);
                total += 1;
                match decision.cause {
                    Cause::Rule => {
                        rules += 1;
                        later_rules += usize::from(decision.rule > Some(0));
                    }
                    Cause::GroupDefault => defaults += 1,
                    Cause::DefaultPolicy => nothing += 1,
                }
            }
        }
        let shares = [rules, later_rules, defaults, nothing].map(|n| n * 100 / total);
        assert!(
            shares.iter().all(|percent| *percent >= 5),
            "rule, later rule, group default, nothing: {shares:?} percent"
        );
    }
}
