//! One question, asked of upstreams once for all who wait for its answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use ::dns::accept::{Accepted, Wanted};
use ::dns::upstream::Step;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::exchange::{Exchanged, Failure, exchange};
use super::service::{Service, lock};

/// Questions that may be under way at a time.
const UNDER_WAY: usize = 8_192;

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
        let mut outcome = {
            let mut flights = lock(&this.flights.0);
            let full = flights.len() >= UNDER_WAY;
            match flights.entry(*wanted) {
                Entry::Occupied(flight) => flight.get().clone(),
                Entry::Vacant(_) if full => return Some(Outcome::Busy),
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
                    outcome
                }
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }

    async fn resolve(self: &Arc<Self>, wanted: &Wanted, group: &Arc<str>) -> Outcome {
        let now_ms = self.clock.now_ms();
        let mut race = lock(&self.upstreams).race(now_ms);
        let mut asked = JoinSet::new();
        loop {
            let now_ms = self.clock.now_ms();
            let step = race.step(&lock(&self.upstreams), now_ms);
            let until = match step {
                Step::Ask(upstream) => {
                    let (service, wanted) = (Arc::clone(self), *wanted);
                    asked.spawn(
                        async move { (upstream, exchange(&service, upstream, &wanted).await) },
                    );
                    continue;
                }
                Step::TimedOut(upstream) => {
                    lock(&self.upstreams).failed(upstream, now_ms);
                    self.metrics.mismatch("timeout", group);
                    continue;
                }
                Step::GiveUp => return Outcome::Failed,
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
                    let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                    lock(&self.upstreams).answered(upstream, rtt_us);
                    self.metrics.rtt(group, rtt.as_secs_f64());
                    self.keep(wanted, &accepted);
                    return Outcome::Answer(Arc::new(accepted));
                }
                Exchanged::Failed(failure) => {
                    race.failed(upstream);
                    self.metrics.mismatch(failure.as_str(), group);
                    match failure {
                        // It is there, whatever it thinks of this question.
                        Failure::Rejected(_, rtt) => {
                            let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                            lock(&self.upstreams).answered(upstream, rtt_us);
                        }
                        Failure::Here(error) => {
                            tracing::debug!(upstream, %error, "there is no socket for an upstream");
                        }
                        Failure::Io(error) => {
                            tracing::debug!(upstream, %error, "an upstream cannot be asked");
                            lock(&self.upstreams).failed(upstream, self.clock.now_ms());
                        }
                    }
                }
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
