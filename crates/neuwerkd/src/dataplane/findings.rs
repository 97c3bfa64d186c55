//! What the policy denies, and what it would deny if it were not in audit mode.
//!
//! Packet workers tell it over bounded rings, one each, and the DNS proxy over another; they are emptied ten times a second,
//! and what finds no room there is lost and counted. Here it is gathered by what was denied to whom: a client that asks again
//! and again is one finding.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Event;
use engine::event::FlowFacts;
use policy::Compiled;
use proxy::dns::Denied;

use super::Dataplane;

/// Denials that may wait, of one worker or of the proxy.
pub(super) const RING: usize = 1024;
/// How often they are taken.
const PAUSE: Duration = Duration::from_millis(100);
/// Findings that are kept of flows, and as many of names. Beyond that the one that was seen last longest ago goes.
const MAX_FINDINGS: usize = 10_000;
/// A finding has one line in the log in so long, and all of them so many each time that denials are taken.
const LOG_AGAIN_S: u64 = 60;
const LOG_LINES: usize = 20;

/// What was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A query for a name.
    Name,
    /// A flow with ports, or of a protocol without.
    Packet,
    /// A flow that an ICMP query begins.
    Icmp,
}

impl FindingKind {
    /// All kinds.
    pub const ALL: [FindingKind; 3] = [FindingKind::Name, FindingKind::Packet, FindingKind::Icmp];

    /// The published name.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Name => "dns_deny",
            FindingKind::Packet => "l4_deny",
            FindingKind::Icmp => "icmp_deny",
        }
    }
}

/// What was denied, to whom, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Which kind it is of.
    pub kind: FindingKind,
    /// It was let pass all the same, since the policy is in audit mode there.
    pub would_deny: bool,
    /// The source group that decided, if one did.
    pub group: Option<String>,
    /// Its rule that decided, if one did.
    pub rule: Option<String>,
    /// The name that was asked for.
    pub hostname: Option<String>,
    /// Where the flow was to go.
    pub dst: Option<IpAddr>,
    /// To which port; 0 where there is none.
    pub dst_port: u16,
    /// By which IP protocol.
    pub proto: Option<u8>,
    /// Type and code of an ICMP query.
    pub icmp: Option<(u8, u8)>,
}

/// How often and when something was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Queries, or packets that began such a flow.
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
    /// Apart, since whoever asks for many names is not to hide what becomes of packets.
    flows: Table,
    names: Table,
    next_place: u64,
    /// Findings that had to go for want of room.
    forgotten: u64,
}

#[derive(Debug, Default)]
struct Table {
    by_subject: HashMap<Arc<Subject>, Finding>,
    /// By the order in which they were seen last.
    order: BTreeMap<u64, Arc<Subject>>,
}

impl Table {
    /// How many had to go so that another one has room.
    fn make_room(&mut self) -> u64 {
        if self.by_subject.len() < MAX_FINDINGS {
            return 0;
        }
        let oldest = self.order.pop_first();
        let gone = oldest.and_then(|(_, oldest)| self.by_subject.remove(&oldest));
        u64::from(gone.is_some())
    }
}

impl Findings {
    /// All of them, those that were seen last first.
    pub fn newest(&self) -> impl Iterator<Item = (&Subject, &Finding)> {
        let tables = [&self.flows, &self.names].into_iter();
        let mut all: Vec<_> = tables
            .flat_map(|table| &table.by_subject)
            .map(|(subject, finding)| (&**subject, finding))
            .collect();
        all.sort_unstable_by_key(|(_, finding)| Reverse(finding.place));
        all.into_iter()
    }

    /// How many had to go for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Takes in that something was denied to a client by a revision of the policy. `lines` is how many lines the log may
    /// have of it still.
    fn note(
        &mut self,
        subject: Subject,
        (source, revision): (IpAddr, u64),
        now_s: u64,
        lines: &mut usize,
    ) {
        let place = self.next_place;
        self.next_place += 1;
        let table = match subject.kind {
            FindingKind::Name => &mut self.names,
            FindingKind::Packet | FindingKind::Icmp => &mut self.flows,
        };
        let known = table.by_subject.get(&subject).map(|finding| finding.place);
        let subject = match known.and_then(|place| table.order.remove(&place)) {
            Some(subject) => subject,
            None => {
                self.forgotten += table.make_room();
                Arc::new(subject)
            }
        };
        table.order.insert(place, Arc::clone(&subject));
        let finding = table.by_subject.entry(Arc::clone(&subject));
        let finding = finding.or_insert(Finding {
            count: 0,
            first_seen_s: now_s,
            last_seen_s: now_s,
            last_source: source,
            revision,
            place,
            logged_s: None,
        });
        finding.count += 1;
        finding.last_seen_s = now_s;
        (finding.last_source, finding.revision) = (source, revision);
        finding.place = place;
        let is_due = |logged_s: u64| now_s.saturating_sub(logged_s) >= LOG_AGAIN_S;
        if *lines > 0 && finding.logged_s.is_none_or(is_due) {
            finding.logged_s = Some(now_s);
            *lines -= 1;
            log(&subject, finding);
        }
    }

    /// Takes in what a worker has told, by the policy in force.
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
        self.note(subject, (flow.src, flow.revision), now_s, lines);
    }

    /// The same of what the DNS proxy has told.
    fn take_name(&mut self, denied: DeniedName, now_s: u64, lines: &mut usize) {
        let subject = Subject {
            kind: FindingKind::Name,
            would_deny: denied.would_deny,
            group: denied.group,
            rule: denied.rule,
            hostname: Some(denied.name),
            dst: None,
            dst_port: 0,
            proto: None,
            icmp: None,
        };
        self.note(subject, (denied.client, denied.revision), now_s, lines);
    }
}

fn log(subject: &Subject, finding: &Finding) {
    tracing::debug!(
        kind = subject.kind.name(),
        would_deny = subject.would_deny,
        source_group = subject.group,
        rule = subject.rule,
        revision = finding.revision,
        source = %finding.last_source,
        hostname = subject.hostname,
        destination = subject.dst.map(tracing::field::display),
        port = subject.dst_port,
        protocol = subject.proto,
        count = finding.count,
        "the policy denies"
    );
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
        hostname: None,
        dst: Some(flow.dst),
        // An identifier is no port.
        dst_port: if icmp.is_some() { 0 } else { flow.dst_port },
        proto: Some(flow.proto),
        icmp,
    }
}

/// A name that was denied, until it is taken in.
#[derive(Debug)]
struct DeniedName {
    client: IpAddr,
    name: String,
    group: Option<String>,
    rule: Option<String>,
    revision: u64,
    would_deny: bool,
}

/// Where the DNS proxy tells of names that are denied; never blocks.
#[derive(Debug)]
pub(crate) struct DeniedNames {
    ring: SyncSender<DeniedName>,
    lost: AtomicU64,
}

impl DeniedNames {
    /// With the end from which they are taken.
    pub(crate) fn new() -> (Arc<DeniedNames>, Taken) {
        let (ring, taken) = sync_channel(RING);
        let lost = AtomicU64::new(0);
        (Arc::new(DeniedNames { ring, lost }), Taken(taken))
    }

    /// Tells of one.
    pub(crate) fn tell(&self, denied: &Denied<'_>) {
        let denied = DeniedName {
            client: denied.client,
            name: denied.name.to_owned(),
            group: denied.group.map(str::to_owned),
            rule: denied.rule.map(str::to_owned),
            revision: denied.revision,
            would_deny: denied.would_deny,
        };
        if self.ring.try_send(denied).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The other end of [`DeniedNames`].
#[derive(Debug)]
pub(crate) struct Taken(Receiver<DeniedName>);

impl Dataplane {
    /// What the policy has denied.
    pub fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the DNS proxy tells of names that are denied.
    pub(crate) fn denied_names(&self) -> &Arc<DeniedNames> {
        &self.denied_names.0
    }

    /// Denials that were lost since they were told faster than they were taken.
    pub fn denials_lost(&self) -> u64 {
        let workers = self.workers.iter();
        let of_workers: u64 = workers.map(|w| w.counters.events_lost.get()).sum();
        of_workers + self.denied_names().lost.load(Ordering::Relaxed)
    }

    /// Takes what workers and proxy tell, again and again.
    pub async fn keep_gathering(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PAUSE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.gather();
        }
    }

    /// Takes what they have told by now, at most what their rings hold.
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
        let names = self.denied_names.1.lock();
        let names = names.unwrap_or_else(PoisonError::into_inner);
        for denied in names.0.try_iter().take(RING) {
            self.findings().take_name(denied, now_s, &mut lines);
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
    fn names_are_findings_beside_flows_and_do_not_crowd_them_out() {
        let (names, Taken(taken)) = DeniedNames::new();
        let mut findings = Findings::default();
        findings.take(&denied(53), &policy(3), 1, &mut 0);
        let mut ask = |name: &str| {
            names.tell(&Denied {
                client: "10.0.0.2".parse().unwrap(),
                name,
                group: Some("clients"),
                rule: None,
                revision: 3,
                would_deny: false,
            });
            for denied in taken.try_iter() {
                findings.take_name(denied, 2, &mut 0);
            }
        };
        for n in 0..=MAX_FINDINGS {
            ask(&format!("{n}.example.com"));
        }
        assert_eq!(findings.forgotten(), 1);
        let kinds = |kind| findings.newest().filter(move |(s, _)| s.kind == kind);
        assert_eq!(kinds(FindingKind::Name).count(), MAX_FINDINGS);
        assert_eq!(kinds(FindingKind::Packet).count(), 1);
        let (newest, _) = findings.newest().next().unwrap();
        assert_eq!(newest.hostname.as_deref(), Some("10000.example.com"));
    }

    #[test]
    fn names_that_nobody_takes_are_lost_and_counted() {
        let (names, _taken) = DeniedNames::new();
        for _ in 0..RING + 7 {
            names.tell(&Denied {
                client: "10.0.0.2".parse().unwrap(),
                name: "example.com",
                group: None,
                rule: None,
                revision: 3,
                would_deny: true,
            });
        }
        assert_eq!(names.lost.load(Ordering::Relaxed), 7);
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
