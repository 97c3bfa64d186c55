//! What the policy denies, and what it would deny if it were not in audit mode.
//!
//! Packet workers tell it over bounded rings, one each, which are emptied ten times a second; what finds no room there is lost
//! and counted. Here it is gathered by what was denied to whom: a client that asks again and again is one finding.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Event;
use engine::event::FlowFacts;
use policy::Compiled;

use super::Dataplane;

/// Denials of one worker that may wait.
pub(super) const RING: usize = 1024;
/// How often they are taken.
const PAUSE: Duration = Duration::from_millis(100);
/// Findings that are kept. Beyond that the one that was seen last longest ago goes.
const MAX_FINDINGS: usize = 10_000;
/// A finding has one line in the log in so long, and all of them so many each time that denials are taken.
const LOG_AGAIN_S: u64 = 60;
const LOG_LINES: usize = 20;

/// What kind of flow was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// One with ports, or of a protocol without.
    Packet,
    /// An ICMP query.
    Icmp,
}

impl FindingKind {
    /// The published name.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Packet => "l4_deny",
            FindingKind::Icmp => "icmp_deny",
        }
    }
}

/// What was denied, to whom, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Which kind of flow.
    pub kind: FindingKind,
    /// It was let pass all the same, since the policy is in audit mode there.
    pub would_deny: bool,
    /// The source group that decided, if one did.
    pub group: Option<String>,
    /// Its rule that decided, if one did.
    pub rule: Option<String>,
    /// Where the flow was to go.
    pub dst: IpAddr,
    /// To which port; 0 where there is none.
    pub dst_port: u16,
    /// By which IP protocol.
    pub proto: u8,
    /// Type and code of an ICMP query.
    pub icmp: Option<(u8, u8)>,
}

/// How often and when something was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Packets that began such a flow.
    pub count: u64,
    /// When that happened first, seconds since 1970.
    pub first_seen_s: u64,
    /// When that happened last.
    pub last_seen_s: u64,
    /// Where the last of them came from.
    pub last_source: IpAddr,
    /// The policy revision that decided last.
    pub revision: u64,
    /// Its place in the order in which findings were seen last.
    place: u64,
    /// When it was in the log last.
    logged_s: Option<u64>,
}

/// The findings of a node since it started.
#[derive(Debug, Default)]
pub struct Findings {
    by_subject: HashMap<Arc<Subject>, Finding>,
    /// By the order in which they were seen last.
    order: BTreeMap<u64, Arc<Subject>>,
    next_place: u64,
    /// Findings that had to go for want of room.
    forgotten: u64,
}

impl Findings {
    /// All of them, those that were seen last first.
    pub fn newest(&self) -> impl Iterator<Item = (&Subject, &Finding)> {
        let newest = self.order.values().rev();
        newest.filter_map(|subject| Some((&**subject, self.by_subject.get(subject)?)))
    }

    /// How many had to go for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Takes a denial in. Returns what is known of it now.
    fn note(&mut self, subject: Subject, flow: &FlowFacts, now_s: u64) -> &mut Finding {
        let place = self.next_place;
        self.next_place += 1;
        let known = self.by_subject.get(&subject).map(|finding| finding.place);
        let subject = match known.and_then(|place| self.order.remove(&place)) {
            Some(subject) => subject,
            None => {
                self.make_room();
                Arc::new(subject)
            }
        };
        self.order.insert(place, Arc::clone(&subject));
        let finding = self.by_subject.entry(subject).or_insert(Finding {
            count: 0,
            first_seen_s: now_s,
            last_seen_s: now_s,
            last_source: flow.src,
            revision: flow.revision,
            place,
            logged_s: None,
        });
        finding.count += 1;
        finding.last_seen_s = now_s;
        (finding.last_source, finding.revision) = (flow.src, flow.revision);
        finding.place = place;
        finding
    }

    fn make_room(&mut self) {
        if self.by_subject.len() < MAX_FINDINGS {
            return;
        }
        if let Some((_, oldest)) = self.order.pop_first() {
            self.by_subject.remove(&oldest);
            self.forgotten += 1;
        }
    }

    /// Takes in what a worker has told, by the policy in force. `lines` is how many lines the log may have of it still.
    fn take(&mut self, event: &Event, policy: &Compiled, now_s: u64, lines: &mut usize) {
        let (flow, icmp, would_deny) = match event {
            Event::Denied { flow, icmp } => (flow, *icmp, false),
            Event::Opened {
                flow,
                icmp,
                would_deny: true,
            } => (flow, *icmp, true),
            Event::Opened { .. } | Event::Closed { .. } => return,
        };
        let subject = subject(flow, icmp, would_deny, policy);
        let finding = self.note(subject.clone(), flow, now_s);
        let is_due = |logged_s: u64| now_s.saturating_sub(logged_s) >= LOG_AGAIN_S;
        if *lines == 0 || !finding.logged_s.is_none_or(is_due) {
            return;
        }
        finding.logged_s = Some(now_s);
        *lines -= 1;
        tracing::debug!(
            kind = subject.kind.name(),
            would_deny,
            source_group = subject.group,
            rule = subject.rule,
            revision = flow.revision,
            source = %flow.src,
            destination = %flow.dst,
            port = flow.dst_port,
            protocol = flow.proto,
            count = finding.count,
            "the policy denies a flow"
        );
    }
}

/// Group and rule have names while the policy that decided is in force.
fn subject(
    flow: &FlowFacts,
    icmp: Option<(u8, u8)>,
    would_deny: bool,
    policy: &Compiled,
) -> Subject {
    let group = flow.group.filter(|_| flow.revision == policy.revision());
    let rule = group.zip(flow.rule);
    Subject {
        kind: match icmp {
            None => FindingKind::Packet,
            Some(_) => FindingKind::Icmp,
        },
        would_deny,
        group: group.and_then(|group| Some(policy.group_id(group)?.to_owned())),
        rule: rule.and_then(|(group, rule)| Some(policy.rule_id(group, rule)?.to_owned())),
        dst: flow.dst,
        // An identifier is no port.
        dst_port: if icmp.is_some() { 0 } else { flow.dst_port },
        proto: flow.proto,
        icmp,
    }
}

impl Dataplane {
    /// What the policy has denied.
    pub fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Denials that were lost since the workers told them faster than they were taken.
    pub fn denials_lost(&self) -> u64 {
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.counters.events_lost.get())
            .sum()
    }

    /// Takes what the workers tell, again and again.
    pub async fn keep_gathering(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PAUSE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.gather();
        }
    }

    /// Takes what the workers have told by now, at most what their rings hold.
    pub(crate) fn gather(&self) {
        let policy = self.policy();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.unwrap_or_default().as_secs();
        let mut lines = LOG_LINES;
        for worker in &self.workers {
            let events = worker.events.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events.try_iter().take(RING) {
                self.findings().take(&event, &policy, now_s, &mut lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use policy::Document;

    use super::*;

    fn policy(revision: u64) -> Compiled {
        let document = br#"{"source_groups":[{"id":"clients","mode":"enforce","sources":{"cidrs":["10.0.0.0/8"]},
            "rules":[{"id":"no","action":"deny","match":{"proto":"udp"}}]}]}"#;
        Compiled::compile(&Document::parse_json(document).unwrap(), revision).unwrap()
    }

    fn flow(dst_port: u16) -> FlowFacts {
        FlowFacts {
            src: "10.0.0.2".parse().unwrap(),
            dst: "198.51.100.1".parse().unwrap(),
            proto: 17,
            src_port: 5000,
            dst_port,
            group: Some(0),
            rule: Some(0),
            revision: 3,
        }
    }

    fn denied(dst_port: u16) -> Event {
        Event::Denied {
            flow: flow(dst_port),
            icmp: None,
        }
    }

    #[track_caller]
    fn check(findings: &Findings, expected: &[(u16, u64, u64, u64)]) {
        let found = findings.newest().map(|(subject, finding)| {
            let (first, last) = (finding.first_seen_s, finding.last_seen_s);
            (subject.dst_port, finding.count, first, last)
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_denied_again_is_the_same_finding() {
        let (mut findings, policy) = (Findings::default(), policy(3));
        for (now_s, port) in [(10, 53), (11, 80), (12, 53)] {
            findings.take(&denied(port), &policy, now_s, &mut 0);
        }
        check(&findings, &[(53, 2, 10, 12), (80, 1, 11, 11)]);
        let (subject, finding) = findings.newest().next().unwrap();
        let named = (subject.group.as_deref(), subject.rule.as_deref());
        assert_eq!(named, (Some("clients"), Some("no")));
        assert_eq!((finding.revision, finding.last_source), (3, flow(53).src));
    }

    #[test]
    fn a_flow_is_a_finding_if_it_would_be_denied() {
        let (mut findings, policy) = (Findings::default(), policy(3));
        for would_deny in [false, true] {
            let opened = Event::Opened {
                flow: flow(53),
                icmp: None,
                would_deny,
            };
            findings.take(&opened, &policy, 1, &mut 0);
        }
        findings.take(&denied(53), &policy, 2, &mut 0);
        let found = findings.newest();
        let found: Vec<_> = found
            .map(|(subject, f)| (subject.would_deny, f.count))
            .collect();
        assert_eq!(found, [(false, 1), (true, 1)]);
    }

    #[test]
    fn an_icmp_query_has_type_and_code_and_no_port() {
        let mut findings = Findings::default();
        let query = Event::Denied {
            flow: flow(7),
            icmp: Some((8, 0)),
        };
        findings.take(&query, &policy(3), 1, &mut 0);
        let (subject, _) = findings.newest().next().unwrap();
        assert_eq!(
            (subject.kind.name(), subject.icmp, subject.dst_port),
            ("icmp_deny", Some((8, 0)), 0)
        );
    }

    #[test]
    fn group_and_rule_are_named_by_the_policy_that_decided_only() {
        let mut findings = Findings::default();
        findings.take(&denied(53), &policy(4), 1, &mut 0);
        let (subject, finding) = findings.newest().next().unwrap();
        assert_eq!((&subject.group, &subject.rule), (&None, &None));
        assert_eq!(finding.revision, 3);
    }

    #[test]
    fn the_finding_that_was_seen_last_longest_ago_makes_room() {
        let (mut findings, policy) = (Findings::default(), policy(3));
        let mut see = |port: usize, now_s| {
            let port = u16::try_from(port).unwrap();
            findings.take(&denied(port), &policy, now_s, &mut 0);
        };
        for port in 1..=MAX_FINDINGS {
            see(port, 1);
        }
        see(1, 2);
        see(MAX_FINDINGS + 1, 3);
        assert_eq!(findings.newest().count(), MAX_FINDINGS);
        assert_eq!(findings.forgotten(), 1);
        let ports: Vec<_> = findings.newest().map(|(s, _)| s.dst_port).collect();
        assert!(ports.contains(&1) && !ports.contains(&2));
    }

    #[test]
    fn the_log_has_a_line_of_each_now_and_then() {
        let (mut findings, policy) = (Findings::default(), policy(3));
        let mut lines_for = |port, now_s, allowed| {
            let mut lines = allowed;
            findings.take(&denied(port), &policy, now_s, &mut lines);
            allowed - lines
        };
        assert_eq!(lines_for(53, 10, 5), 1);
        assert_eq!(lines_for(53, 69, 5), 0);
        assert_eq!(lines_for(53, 70, 5), 1);
        assert_eq!(lines_for(80, 70, 0), 0);
        assert_eq!(lines_for(80, 71, 5), 1);
    }
}
