//! One question, asked of upstreams once for all who wait for its answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::dns::Upstreams;
use ::dns::accept::{Accepted, Wanted};
use ::dns::upstream::Step;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::exchange::{Exchanged, Failure, exchange};
use super::service::{Service, lock};

/// Questions that may be under way at a time.
const UNDER_WAY: usize = 8_192;

/// Why an upstream failed that was waited for in vain.
const TIMEOUT: &str = "timeout";

/// Questions under way, and where their outcome will be.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Wanted, watch::Receiver<Option<Outcome>>>>);

/// What became of a question.
#[derive(Clone)]
pub(super) enum Outcome {
    Answer(Arc<Accepted>),
    /// No upstream gave a usable answer.
    Failed,
    /// Too many questions are under way.
    Busy,
}

impl Service {
    /// Waits for the outcome of a question that is under way, or begins it.
    pub(super) async fn join(
        this: &Arc<Self>,
        wanted: &Wanted,
        group: &Arc<str>,
    ) -> Option<Outcome> {
        let Some(mut outcome) = Self::begin(this, wanted, group) else {
            return Some(Outcome::Busy);
        };
        let outcome = outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }

    /// Where the outcome of a question will be that is under way, or is begun; none if there are too many.
    pub(super) fn begin(
        this: &Arc<Self>,
        wanted: &Wanted,
        group: &Arc<str>,
    ) -> Option<watch::Receiver<Option<Outcome>>> {
        let mut flights = lock(&this.flights.0);
        let full = flights.len() >= UNDER_WAY;
        match flights.entry(*wanted) {
            Entry::Occupied(flight) => Some(flight.get().clone()),
            Entry::Vacant(_) if full => None,
            Entry::Vacant(vacant) => {
                let (tell, outcome) = watch::channel(None);
                vacant.insert(outcome.clone());
                let landing = Landing {
                    service: Arc::clone(this),
                    wanted: *wanted,
                };
                let group = Arc::clone(group);
                // Of its own, so that it goes on if this client does not wait any longer.
                tokio::spawn(async move {
                    let outcome = landing.service.resolve(&landing.wanted, &group).await;
                    drop(landing);
                    tell.send_replace(Some(outcome));
                });
                Some(outcome)
            }
        }
    }

    async fn resolve(self: &Arc<Self>, wanted: &Wanted, group: &Arc<str>) -> Outcome {
        let now_ms = self.clock.now_ms();
        let (mut race, probe) = {
            let mut upstreams = lock(&self.upstreams);
            (upstreams.race(now_ms), upstreams.probe(now_ms))
        };
        if let Some(upstream) = probe {
            tokio::spawn(Arc::clone(self).probe(upstream, *wanted));
        }
        let mut asked = JoinSet::new();
        // Some upstream was not asked for want of something here, which may be over in a moment.
        let mut scarce = false;
        loop {
            let now_ms = self.clock.now_ms();
            let step = race.step(&lock(&self.upstreams), now_ms);
            let until = match step {
                Step::Ask(upstream) => {
                    self.metrics.upstreams[upstream].questions.inc();
                    let (service, wanted) = (Arc::clone(self), *wanted);
                    asked.spawn(
                        async move { (upstream, exchange(&service, upstream, &wanted).await) },
                    );
                    continue;
                }
                Step::TimedOut(upstream) => {
                    self.metrics.mismatch(TIMEOUT, group);
                    self.failed(upstream, TIMEOUT, Upstreams::failed);
                    continue;
                }
                Step::GiveUp => {
                    if !scarce {
                        lock(&self.failures).note(wanted, now_ms);
                    }
                    return Outcome::Failed;
                }
                Step::Wait(until) => until,
            };
            let done = tokio::select! {
                done = asked.join_next(), if !asked.is_empty() => done,
                () = tokio::time::sleep_until(self.clock.at(until)) => None,
            };
            let Some(Ok((upstream, exchanged))) = done else {
                continue;
            };
            match exchanged {
                Exchanged::Answer(accepted, rtt) => {
                    let now_ms = self.clock.now_ms();
                    let overtaken: Vec<usize> = {
                        let upstreams = lock(&self.upstreams);
                        race.overtaken(&upstreams, upstream, now_ms).collect()
                    };
                    for slow in overtaken {
                        self.failed(slow, "slow", Upstreams::failed);
                    }
                    self.answered(upstream, rtt);
                    self.metrics.rtt(group, rtt.as_secs_f64());
                    self.keep(wanted, &accepted);
                    return Outcome::Answer(Arc::new(accepted));
                }
                Exchanged::Failed(failure) => {
                    race.failed(upstream);
                    scarce |= matches!(failure, Failure::Here(_));
                    self.metrics.mismatch(failure.reason(), group);
                    self.unusable(upstream, &failure, Upstreams::failed);
                }
            }
        }
    }

    /// Tries an upstream that is passed over with a question that others are asked meanwhile.
    async fn probe(self: Arc<Self>, upstream: usize, wanted: Wanted) {
        self.metrics.upstreams[upstream].questions.inc();
        let limit = self.settings.upstream_timeout;
        match tokio::time::timeout(limit, exchange(&self, upstream, &wanted)).await {
            Ok(Exchanged::Answer(_, rtt)) => self.answered(upstream, rtt),
            Ok(Exchanged::Failed(failure)) => {
                self.unusable(upstream, &failure, Upstreams::probe_failed);
            }
            Err(_) => self.failed(upstream, TIMEOUT, Upstreams::probe_failed),
        }
    }

    fn answered(&self, upstream: usize, rtt: Duration) {
        let metrics = &self.metrics.upstreams[upstream];
        metrics.rtt.observe(rtt.as_secs_f64());
        let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        let mut upstreams = lock(&self.upstreams);
        upstreams.answered(upstream, rtt_us);
        metrics.suspect.set(0);
    }

    /// Notes a failure by `note`, which tells one of a race from one of a probe.
    fn failed(
        &self,
        upstream: usize,
        reason: &'static str,
        note: impl FnOnce(&mut Upstreams, usize, u64),
    ) {
        self.metrics.upstream_failed(upstream, reason);
        let mut upstreams = lock(&self.upstreams);
        note(&mut upstreams, upstream, self.clock.now_ms());
        let suspect = upstreams.health(upstream).is_some_and(|h| h.is_suspect());
        self.metrics.upstreams[upstream].suspect.set(suspect.into());
    }

    /// Notes an exchange that brought no answer that counts.
    fn unusable(
        &self,
        upstream: usize,
        failure: &Failure,
        note: impl FnOnce(&mut Upstreams, usize, u64),
    ) {
        match failure {
            // It is there, whatever it thinks of this question.
            Failure::Rejected(_, rtt) => {
                self.metrics.upstream_failed(upstream, failure.reason());
                self.answered(upstream, *rtt);
            }
            Failure::Here(error) => {
                tracing::debug!(upstream, %error, "there is no socket for an upstream");
                self.metrics.upstream_failed(upstream, failure.reason());
            }
            Failure::Io(error) => {
                tracing::debug!(upstream, %error, "an upstream cannot be asked");
                self.failed(upstream, failure.reason(), note);
            }
        }
    }
}

/// Takes a question off the list however it ends.
struct Landing {
    service: Arc<Service>,
    wanted: Wanted,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.service.flights.0).remove(&self.wanted);
    }
}
