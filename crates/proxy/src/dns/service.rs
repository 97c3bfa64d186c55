//! From a client's message to the answer, or to the question that has to be asked first.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::dns::accept::{Accepted, Scrub, Wanted};
use ::dns::cache::Mark;
use ::dns::failures::{Failed, Failures};
use ::dns::kind::Kinds;
use ::dns::limit::{Limiter, Shares};
use ::dns::reply::{self, Denial, Extended, ExtendedCode};
use ::dns::special::Addresses;
use ::dns::stored::{Age, STALE_TTL_S};
use ::dns::{Cache, Kind, Query, Rcode, Stored, Unfit, Upstreams};
use policy::{Compiled, NameDecision};
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use super::granting::{Denied, Granted, Granting, Told};
use super::metrics::{Caches, Metrics};
use super::pool::Pool;
use super::resolve::{Flights, Outcome};
use super::{InForce, Settings};

/// Parts of the cache, so that sockets' tasks seldom meet at one.
const SHARDS: usize = 16;
/// Clients whose rates are kept track of.
const CLIENTS: usize = 65_536;
/// Queries that may wait for upstreams at a time.
const WAITING: usize = 8_192;
/// One client's may be this part of those that yet may.
const WAITING_PART: usize = 8;
/// One in so many answers from the cache is timed.
const SAMPLED: u16 = 64;
/// Questions that failed lately and are remembered.
const FAILED: usize = 16_384;
/// For how long an upstream is waited for where there is an answer that has expired (RFC 8767 section 5).
const STALE_AFTER: Duration = Duration::from_millis(1_800);

/// Everything that sockets' tasks share.
pub(super) struct Service {
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    pub(super) upstreams: Mutex<Upstreams>,
    pub(super) pools: Vec<Pool>,
    pub(super) flights: Flights,
    /// Whatever owes a client an answer.
    pub(super) tasks: TaskTracker,
    policy: InForce,
    granting: Arc<dyn Granting>,
    kinds: Kinds,
    caches: Caches,
    pub(super) failures: Mutex<Failures>,
    limiter: Mutex<Limiter>,
    waiting: Arc<Mutex<Shares>>,
    /// The label of clients that no group has.
    no_group: Arc<str>,
}

/// What becomes of a message.
pub(super) enum Handled {
    /// Nothing is answered.
    Silent,
    /// The answer is written.
    Answered,
    /// Something has to be waited for: [`Service::finish`].
    Later(Later),
}

/// A query that waits.
pub(super) struct Later {
    work: Work,
    _waits: Held,
}

/// What it waits for.
enum Work {
    /// An upstream's answer.
    Ask(Box<Ask>),
    /// That the client can reach what this answer tells it.
    Tell {
        answer: Vec<u8>,
        granted: Pin<Box<dyn Future<Output = ()> + Send>>,
    },
}

/// What an upstream is asked for.
struct Ask {
    message: Vec<u8>,
    client: IpAddr,
    name: String,
    wanted: Wanted,
    group: Arc<str>,
    would_deny: bool,
    limit: Option<usize>,
    /// There is an answer that has expired.
    stale: bool,
}

/// What is done where there is an answer that has expired.
enum Expired {
    /// Upstreams are asked, and waited for.
    Ask,
    /// It is served at once.
    Serve {
        /// Upstreams are asked meanwhile.
        ask_behind: bool,
    },
}

/// How a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Datagram,
    Stream,
}

/// A client's hold on something that there is only so much of.
pub(super) struct Held {
    of: Arc<Mutex<Shares>>,
    client: IpAddr,
}

impl Held {
    pub(super) fn take(of: &Arc<Mutex<Shares>>, client: IpAddr) -> Option<Self> {
        lock(of).take(client).then(|| Self {
            of: Arc::clone(of),
            client,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.of).give(self.client);
    }
}

/// An empty cache that takes so many bytes, in its parts.
pub(super) fn caches(bytes: usize) -> Caches {
    (0..SHARDS)
        .map(|_| Mutex::new(Cache::new(bytes / SHARDS)))
        .collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panicked has at worst left a cache or a statistic short of an entry.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    pub(super) fn new(
        settings: Settings,
        policy: InForce,
        granting: Arc<dyn Granting>,
        caches: Caches,
        metrics: Metrics,
    ) -> Self {
        let timeout_ms = u64::try_from(settings.upstream_timeout.as_millis()).unwrap_or(u64::MAX);
        Self {
            clock: Clock::start(),
            upstreams: Mutex::new(Upstreams::new(settings.upstreams.len(), timeout_ms)),
            pools: settings.upstreams.iter().map(|_| Pool::default()).collect(),
            flights: Flights::default(),
            tasks: TaskTracker::new(),
            policy,
            granting,
            kinds: Kinds::new(&settings.more_kinds),
            caches,
            failures: Mutex::new(Failures::new(FAILED)),
            limiter: Mutex::new(Limiter::new(
                CLIENTS,
                settings.client_queries_per_second,
                settings.client_burst,
            )),
            waiting: Arc::new(Mutex::new(Shares::new(WAITING, WAITING_PART))),
            no_group: Arc::from("default"),
            settings,
            metrics,
        }
    }

    /// What is done to an upstream's answer that comes now.
    pub(super) fn scrub(&self) -> Scrub {
        Scrub {
            addresses: Addresses::new(
                (self.settings.own_addresses)(),
                self.settings.allow_private_answers.clone(),
            ),
            allow_ech: self.settings.allow_ech,
        }
    }

    /// Works on a client's message as far as that goes without waiting; `out` gets the answer.
    pub(super) fn handle(
        self: &Arc<Self>,
        message: &[u8],
        client: IpAddr,
        by: By,
        text: &mut String,
        out: &mut Vec<u8>,
    ) -> Handled {
        let client = client.to_canonical();
        let begun = Instant::now();
        let now_ms = self.clock.ms(begun);
        if !lock(&self.limiter).take(client, now_ms) {
            self.metrics.query("drop", "rate_limit", &self.no_group);
            return Handled::Silent;
        }
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unfit::Silent) => return Handled::Silent,
            Err(Unfit::Answer(problem)) => {
                self.metrics.query("refuse", "malformed", &self.no_group);
                reply::unfit(message, problem, out);
                return Handled::Answered;
            }
        };
        let policy = (self.policy)();
        query.name.write_text(text);
        let decision = policy.evaluate_name(client, text);
        let group = decision
            .group
            .and_then(|group| policy.shared_group_id(group))
            .unwrap_or(&self.no_group);
        if !decision.allow || decision.would_deny {
            self.tell_denied(&policy, decision, client, text);
        }
        if !decision.allow {
            self.deny(&query, &policy, decision, text, out);
            self.metrics.query("deny", "policy", group);
            if self.settings.denial == Denial::NxDomain {
                self.metrics.nxdomain("policy");
            }
            return Handled::Answered;
        }
        if query.kind == Kind::ANY {
            reply::any(&query, out);
            self.metrics.query("allow", "any", group);
            return Handled::Answered;
        }
        if !self.kinds.contains(query.kind) {
            let reason = Extended {
                code: ExtendedCode::Prohibited,
                text: "records of this type are not served",
            };
            reply::error(&query, Rcode::Refused, reason, out);
            self.metrics.query("deny", "type", group);
            return Handled::Answered;
        }
        let wanted = Wanted::of(&query);
        let limit = (by == By::Datagram).then(|| query.udp_limit());
        let tag = tag(&policy, decision.group, self.granting.epoch());
        let mut cache = lock(self.shard(&wanted));
        let mut waits = None;
        let mut stale = false;
        if let Some(found) = cache.lookup(&wanted, now_ms) {
            let mut behind = false;
            if found.age == Age::Stale {
                stale = true;
                match self.expired(&wanted, now_ms) {
                    Expired::Serve { ask_behind } => behind = ask_behind,
                    // Without room to wait for a newer one it is better than none.
                    Expired::Ask => waits = Held::take(&self.waiting, client),
                }
            }
            if waits.is_none() {
                found
                    .stored
                    .render(&query, found.age, limit.unwrap_or(usize::MAX), out);
                let known = found.mark.tag == tag && now_ms < found.mark.until_ms;
                let fresh_until_ms = found.fresh_until_ms;
                let unknown = (!known).then(|| (addresses(found.stored), found.fresh_ms));
                drop(cache);
                match stale {
                    true => self.metrics.hits_stale.inc(),
                    false => self.metrics.hits_fresh.inc(),
                };
                self.count_answer(out, group, decision.would_deny);
                // Clients choose the id; one that always takes the same costs a little more.
                if query.id.is_multiple_of(SAMPLED) {
                    let worked = begun.elapsed();
                    self.metrics.worked_cache.observe(worked.as_secs_f64());
                }
                if behind {
                    // Nobody waits for it.
                    let _ = Self::begin(self, &wanted, group);
                }
                let Some((addresses, fresh_ms)) = unknown else {
                    return Handled::Answered;
                };
                let told = Told {
                    group,
                    client,
                    name: text,
                    addresses: &addresses,
                    ttl_s: match stale {
                        true => STALE_TTL_S,
                        false => u32::try_from(fresh_ms.div_ceil(1_000)).unwrap_or(u32::MAX),
                    },
                };
                let granted = self.grant(&told);
                if let Some(granted) = granted.wait {
                    let waits = Held::take(&self.waiting, client);
                    return self.later(waits, &query, group, out, |out| Work::Tell {
                        answer: std::mem::take(out),
                        granted,
                    });
                }
                let until_ms = now_ms.saturating_add(granted.for_ms);
                let mark = Mark { tag, until_ms };
                lock(self.shard(&wanted)).mark(&wanted, fresh_until_ms, mark);
                return Handled::Answered;
            }
        }
        drop(cache);
        if !stale {
            if lock(&self.failures).lookup(&wanted, now_ms) == Some(Failed::Lately) {
                let text = "no upstream gave a usable answer a moment ago";
                self.fail(&query, ExtendedCode::CachedError, text, out);
                self.metrics.query("error", "cached_failure", group);
                return Handled::Answered;
            }
            waits = Held::take(&self.waiting, client);
        }
        self.later(waits, &query, group, out, |_out| {
            Work::Ask(Box::new(Ask {
                message: message.to_vec(),
                client,
                name: text.clone(),
                wanted,
                group: Arc::clone(group),
                would_deny: decision.would_deny,
                limit,
                stale,
            }))
        })
    }

    /// Whether upstreams are waited for although there is an answer, which has expired.
    fn expired(&self, wanted: &Wanted, now_ms: u64) -> Expired {
        let failed = lock(&self.failures).lookup(wanted, now_ms);
        let ask_behind = match failed {
            Some(Failed::Lately) => false,
            Some(Failed::Before) => true,
            None if lock(&self.upstreams).all_suspect() => true,
            None => return Expired::Ask,
        };
        if ask_behind {
            // By this one alone.
            lock(&self.failures).note(wanted, now_ms);
        }
        Expired::Serve { ask_behind }
    }

    /// Has a query wait, if there is room.
    fn later(
        &self,
        waits: Option<Held>,
        query: &Query<'_>,
        group: &Arc<str>,
        out: &mut Vec<u8>,
        work: impl FnOnce(&mut Vec<u8>) -> Work,
    ) -> Handled {
        let Some(waits) = waits else {
            let text = "too many queries are waiting";
            self.fail(query, ExtendedCode::NotReady, text, out);
            self.metrics.query("error", "overload", group);
            return Handled::Answered;
        };
        Handled::Later(Later {
            work: work(out),
            _waits: waits,
        })
    }

    fn grant(&self, told: &Told<'_>) -> Granted {
        if told.addresses.is_empty() {
            return Granted {
                for_ms: u64::MAX,
                wait: None,
            };
        }
        let begun = Instant::now();
        let granted = self.granting.grant(told);
        let worked = begun.elapsed();
        self.metrics.worked_grant.observe(worked.as_secs_f64());
        granted
    }

    /// Waits for what a query needs, and writes the client's answer.
    pub(super) async fn finish(self: Arc<Self>, later: Later, out: &mut Vec<u8>) {
        let Later { work, _waits } = later;
        let waiting = self.metrics.waiting.clone();
        waiting.inc();
        match work {
            Work::Ask(ask) => self.ask(*ask, out).await,
            Work::Tell { answer, granted } => {
                self.wait_for_peers(granted).await;
                *out = answer;
            }
        }
        waiting.dec();
    }

    async fn ask(self: &Arc<Self>, ask: Ask, out: &mut Vec<u8>) {
        let begun = Instant::now();
        let answer = Self::join(self, &ask.wanted, &ask.group);
        let outcome = match ask.stale {
            true => match tokio::time::timeout(STALE_AFTER, answer).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    lock(&self.failures).note(&ask.wanted, self.clock.now_ms());
                    None
                }
            },
            false => answer.await,
        };
        let waited = begun.elapsed();
        self.metrics.waited_upstream.observe(waited.as_secs_f64());
        let Ok(query) = Query::parse(&ask.message) else {
            return out.clear();
        };
        let limit = ask.limit.unwrap_or(usize::MAX);
        let (addresses, ttl_s) = match outcome {
            Some(Outcome::Answer(accepted)) => {
                let addresses = addresses(&accepted.stored);
                if accepted.filtered.is_empty() || !addresses.is_empty() {
                    accepted.stored.render(&query, Age::Seconds(0), limit, out);
                } else {
                    let reason = Extended {
                        code: ExtendedCode::Filtered,
                        text: "the name has addresses only that answers may not have",
                    };
                    reply::no_data(&query, Some(reason), out);
                }
                (addresses, accepted.ttl_s)
            }
            failed => {
                let mut cache = lock(self.shard(&ask.wanted));
                let Some(found) = cache.lookup(&ask.wanted, self.clock.now_ms()) else {
                    drop(cache);
                    let (reason, code, text) = match failed {
                        Some(Outcome::Busy) => (
                            "overload",
                            ExtendedCode::NotReady,
                            "too many questions are under way",
                        ),
                        _ => (
                            "upstream",
                            ExtendedCode::NoReachableAuthority,
                            "no upstream gave a usable answer",
                        ),
                    };
                    self.fail(&query, code, text, out);
                    return self.metrics.query("error", reason, &ask.group);
                };
                found.stored.render(&query, found.age, limit, out);
                self.metrics.hits_stale.inc();
                (addresses(found.stored), STALE_TTL_S)
            }
        };
        self.count_answer(out, &ask.group, ask.would_deny);
        let told = Told {
            group: &ask.group,
            client: ask.client,
            name: &ask.name,
            addresses: &addresses,
            ttl_s,
        };
        if let Some(granted) = self.grant(&told).wait {
            self.wait_for_peers(granted).await;
        }
    }

    async fn wait_for_peers(&self, granted: impl Future<Output = ()>) {
        let begun = Instant::now();
        granted.await;
        let waited = begun.elapsed();
        self.metrics.waited_peers.observe(waited.as_secs_f64());
    }

    /// Keeps an answer, and counts what is in it.
    pub(super) fn keep(&self, wanted: &Wanted, accepted: &Accepted) {
        for (_, special) in &accepted.filtered {
            self.metrics.filtered(special.as_str());
        }
        lock(&self.failures).forget(wanted);
        let now_ms = self.clock.now_ms();
        let mut cache = lock(self.shard(wanted));
        cache.insert(wanted, accepted.stored.clone(), accepted.ttl_s, now_ms);
    }

    fn shard(&self, wanted: &Wanted) -> &Mutex<Cache> {
        // Names differ in their first bytes more than in their last.
        let mix = wanted
            .name
            .wire()
            .iter()
            .take(12)
            .fold(u32::from(wanted.kind.0), |mix, byte| {
                mix.wrapping_mul(31).wrapping_add(u32::from(*byte))
            });
        &self.caches[(mix ^ mix >> 8) as usize % SHARDS]
    }

    /// Looks an answer up when it has been stale for long.
    #[cfg(test)]
    pub(super) fn outlive(&self, wanted: &Wanted) {
        let found = lock(self.shard(wanted)).lookup(wanted, u64::MAX).is_some();
        assert!(!found, "it is kept for ever");
    }

    /// Tells that a name is denied, or would be.
    fn tell_denied(&self, policy: &Compiled, decision: NameDecision, client: IpAddr, name: &str) {
        let of_rule = decision.group.zip(decision.rule);
        self.granting.denied(&Denied {
            client,
            name,
            group: decision.group.and_then(|group| policy.group_id(group)),
            rule: of_rule.and_then(|(group, rule)| policy.rule_id(group, rule)),
            revision: policy.revision(),
            would_deny: decision.would_deny,
        });
    }

    fn deny(
        &self,
        query: &Query<'_>,
        policy: &Compiled,
        decision: NameDecision,
        text: &mut String,
        out: &mut Vec<u8>,
    ) {
        text.clear();
        let group = decision.group.and_then(|group| policy.group_id(group));
        let rule = decision
            .rule
            .and_then(|rule| policy.rule_id(decision.group?, rule));
        // A string takes what is written.
        let _ = match (group, rule) {
            (Some(group), Some(rule)) => write!(text, "denied by rule {rule} of group {group}"),
            (Some(group), None) => write!(text, "no rule by name of group {group} matches"),
            _ => write!(text, "no group has this client"),
        };
        let reason = Extended {
            code: ExtendedCode::Blocked,
            text,
        };
        reply::denied(query, self.settings.denial, reason, out);
    }

    fn fail(&self, query: &Query<'_>, code: ExtendedCode, text: &str, out: &mut Vec<u8>) {
        let reason = Extended { code, text };
        reply::error(query, Rcode::ServFail, reason, out);
    }

    fn count_answer(&self, answer: &[u8], group: &Arc<str>, would_deny: bool) {
        let reason = if would_deny { "audit" } else { "policy" };
        self.metrics.query("allow", reason, group);
        if answer
            .get(3)
            .is_some_and(|flags| flags & 0xf == Rcode::NxDomain as u8)
        {
            self.metrics.nxdomain("upstream");
        }
    }
}

/// Tells what an answer was granted under: the policy, the group and the epoch of grants.
fn tag(policy: &Compiled, group: Option<u32>, epoch: u64) -> u64 {
    let hash = policy.hash();
    let hash = hash
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first));
    // 0 stands for nothing.
    let epoch = epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ u64::from(group.unwrap_or(u32::MAX)) << 20 ^ epoch) | 1
}

fn addresses(stored: &Stored) -> Vec<IpAddr> {
    stored.addresses().collect()
}
