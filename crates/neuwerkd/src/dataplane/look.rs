//! Asking the packet workers about their flows.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use engine::look::{
    By, Filter, FlowView, PORT_PROTOCOLS, PORTS_PER_ADDRESS, PortUse, Question, Survey, Task,
};
use policy::Compiled;
use tokio::sync::oneshot;

use super::{Dataplane, WorkerThread};

/// How long a worker may take to answer. A table of a million flows takes a few dozen milliseconds
/// of a worker that is idle, and some more of a busy one.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How old the counts may be that metrics show. Counting takes some milliseconds per million flows.
const SURVEY_AGE: Duration = Duration::from_secs(10);

/// A worker has not answered.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Too many questions wait for it already, or it has ended.
    #[error("packet worker {worker} takes no more questions: try again in a moment")]
    Busy {
        /// Its index.
        worker: usize,
    },
    /// It has not answered in time.
    #[error("packet worker {worker} has not answered within {} s", ANSWER_LIMIT.as_secs())]
    Late {
        /// Its index.
        worker: usize,
    },
}

/// A flow, and the worker that has it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The worker's index.
    pub worker: usize,
    /// The flow.
    pub view: FlowView,
}

/// A page of flows.
#[derive(Debug)]
pub struct Page {
    /// The policy whose groups and rules they name.
    pub policy: Arc<Compiled>,
    /// The flows.
    pub flows: Vec<Found>,
    /// Where the next page begins: worker, and place in its table.
    pub next: Option<(usize, u32)>,
}

/// What [`Dataplane::top`] sorts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Bytes in both directions.
    Bytes,
    /// Packets in both directions.
    Packets,
    /// Bytes per second, measured for so long.
    Rate(Duration),
}

impl Dataplane {
    /// Flows from a place on, `limit` at most. Group and rule of the filter are those of the policy beside it.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn flows(
        &self,
        (policy, filter): (Arc<Compiled>, &Filter),
        from: (usize, u32),
        limit: usize,
    ) -> Result<Page, LookError> {
        let mut flows = Vec::new();
        let (mut worker, mut place) = from;
        while worker < self.workers.len() {
            let task = Task::list(place, limit - flows.len());
            if let Task::List { next, page } = self.ask(worker, filter, &policy, task).await? {
                flows.extend(page.into_iter().map(|view| Found { worker, view }));
                if let Some(next) = next {
                    let next = Some((worker, next));
                    return Ok(Page {
                        policy,
                        flows,
                        next,
                    });
                }
            }
            (worker, place) = (worker + 1, 0);
            if flows.len() == limit {
                break;
            }
        }
        let next = (worker < self.workers.len()).then_some((worker, 0));
        Ok(Page {
            policy,
            flows,
            next,
        })
    }

    /// The first `count` flows in an order, largest first. Group and rule of the filter are those of the policy beside it.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn top(
        &self,
        (policy, filter): (Arc<Compiled>, &Filter),
        order: Order,
        count: usize,
    ) -> Result<Page, LookError> {
        let mut marks = Vec::new();
        if let Order::Rate(interval) = order {
            let begun = Instant::now();
            for worker in 0..self.workers.len() {
                let capacity = self.workers[worker].counters.flow_capacity.get();
                let places = usize::try_from(capacity).unwrap_or(usize::MAX);
                let mark = Task::Mark {
                    marks: Vec::with_capacity(places),
                };
                if let Task::Mark { marks: made } =
                    self.ask(worker, &Filter::default(), &policy, mark).await?
                {
                    marks.push(made);
                }
            }
            tokio::time::sleep(interval.saturating_sub(begun.elapsed())).await;
        }
        let mut marks = marks.into_iter();
        let mut flows = Vec::new();
        for worker in 0..self.workers.len() {
            let by = match order {
                Order::Bytes => By::Bytes,
                Order::Packets => By::Packets,
                Order::Rate(_) => By::BytesSince(marks.next().unwrap_or_default()),
            };
            let top = Task::top(by, count);
            if let Task::Top { page, .. } = self.ask(worker, filter, &policy, top).await? {
                flows.extend(page.into_iter().map(|view| Found { worker, view }));
            }
        }
        let value = |found: &Found| match order {
            Order::Bytes => found.view.bytes.iter().sum::<u64>(),
            Order::Packets => found.view.packets.iter().map(|n| u64::from(*n)).sum(),
            Order::Rate(_) => found.view.recent_bytes,
        };
        flows.sort_by_key(|found| std::cmp::Reverse(value(found)));
        flows.truncate(count);
        Ok(Page {
            policy,
            flows,
            next: None,
        })
    }

    /// Ends flows, by the policy that the filter's group and rule are of, and returns how many. The ends of TCP connections
    /// are told by resets if `reset` says so.
    ///
    /// # Errors
    /// A worker does not answer: it may end them all the same, and others have ended so many.
    pub async fn kill(
        &self,
        (policy, filter): (&Arc<Compiled>, &Filter),
        reset: bool,
    ) -> Result<u64, (u64, LookError)> {
        let mut all = 0;
        for worker in 0..self.workers.len() {
            let task = Task::Kill { reset, killed: 0 };
            let answer = self.ask(worker, filter, policy, task).await;
            if let Task::Kill { killed, .. } = answer.map_err(|error| (all, error))? {
                all += killed;
            }
        }
        Ok(all)
    }

    /// Counts what is in the table of each worker, by the policy that is returned with it.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn survey(&self) -> Result<(Vec<Survey>, Arc<Compiled>), LookError> {
        let snapshot = self.published.load_full();
        let policy = Arc::clone(snapshot.policy());
        let mut surveys = Vec::new();
        for worker in 0..self.workers.len() {
            let addresses = snapshot.translation_addresses();
            let survey = Survey::new(policy.group_count(), addresses);
            let task = Task::Survey(Box::new(survey));
            let filter = Filter::default();
            if let Task::Survey(survey) = self.ask(worker, &filter, &policy, task).await? {
                surveys.push(*survey);
            }
        }
        Ok((surveys, policy))
    }

    /// Counts what metrics show, again and again, until the workers have ended.
    pub async fn keep_surveying(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SURVEY_AGE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look_over().await;
        }
    }

    /// Counts what metrics show; what was counted before stays if a worker does not answer.
    pub(crate) async fn look_over(&self) {
        let idle = self.active_flows() == 0;
        let shown = if idle {
            Some(Shown::default())
        } else {
            let counted = self.survey().await.ok();
            counted.map(|(surveys, policy)| Shown::of(surveys, &policy))
        };
        if let Some(shown) = shown {
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
        }
    }

    /// What was counted last.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn ask(
        &self,
        worker: usize,
        filter: &Filter,
        policy: &Arc<Compiled>,
        task: Task,
    ) -> Result<Task, LookError> {
        let WorkerThread { asker, waker, .. } = &self.workers[worker];
        let question = Question {
            filter: filter.clone(),
            policy: Arc::clone(policy),
            task,
        };
        let (sender, answer) = oneshot::channel();
        let reply = Box::new(move |question| drop(sender.send(question)));
        asker
            .ask(question, reply)
            .map_err(|_| LookError::Busy { worker })?;
        waker.wake();
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(question)) => Ok(question.task),
            Ok(Err(_)) => Err(LookError::Busy { worker }),
            Err(_) => Err(LookError::Late { worker }),
        }
    }
}

/// What metrics show of the flow tables, [`SURVEY_AGE`] old at most.
#[derive(Debug, Default)]
pub struct Shown {
    /// The share of the ports of all translation addresses of one family that one protocol uses, 0 to 1; of families and
    /// protocols the largest.
    pub port_utilization: f64,
    /// TCP flows of which only the first SYN has been seen, by worker.
    pub syn_only: Vec<u64>,
    /// Flows by source group; `default` for those that none decided.
    pub groups: Vec<(String, u64)>,
}

impl Shown {
    fn of(surveys: Vec<Survey>, policy: &Compiled) -> Shown {
        let syn_only = |survey: &Survey| survey.states[engine::look::FlowState::SynSent as usize];
        let syn_only = surveys.iter().map(syn_only).collect();
        let Some(survey) = summed(surveys) else {
            return Shown::default();
        };
        let name = |index: usize| {
            let id = u32::try_from(index)
                .ok()
                .and_then(|index| policy.group_id(index));
            id.unwrap_or("default").to_owned()
        };
        let mut groups = BTreeMap::new();
        for (index, flows) in survey.groups.iter().enumerate() {
            // A policy may have a group of that name.
            *groups.entry(name(index)).or_default() += *flows;
        }
        Shown {
            port_utilization: {
                let share = |v4| {
                    let family = survey.ports.iter().filter(|p| p.address.is_ipv4() == v4);
                    share_in_use(family.map(PortUse::used))
                };
                f64::max(share(true), share(false))
            },
            syn_only,
            groups: groups.into_iter().collect(),
        }
    }
}

/// What all workers have counted.
pub fn summed(surveys: Vec<Survey>) -> Option<Survey> {
    surveys.into_iter().reduce(|mut sum, other| {
        sum.add(&other);
        sum
    })
}

/// The share of an address's ports that the protocol uses which uses most of them, 0 to 1.
pub fn utilization(ports: &PortUse) -> f64 {
    share_in_use([ports.used()].into_iter())
}

/// The share of the ports of all these addresses that the protocol uses which uses most of them, 0 to 1; 0 without any
/// address. Each has its ports in use by protocol.
fn share_in_use(addresses: impl Iterator<Item = [u32; PORT_PROTOCOLS.len()]>) -> f64 {
    let (mut used, mut available) = ([0; PORT_PROTOCOLS.len()], 0);
    for of_address in addresses {
        available += u64::from(PORTS_PER_ADDRESS);
        for (sum, ports) in used.iter_mut().zip(of_address) {
            // Ports below 1024 that clients kept may add to those that are given out.
            *sum += u64::from(ports.min(PORTS_PER_ADDRESS));
        }
    }
    let most: u64 = used.into_iter().max().unwrap_or(0);
    most as f64 / available.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_ports_in_use_is_that_of_all_addresses_together() {
        #[track_caller]
        fn check(addresses: &[[u32; 3]], expected: f64) {
            assert_eq!(share_in_use(addresses.iter().copied()), expected);
        }
        let all = PORTS_PER_ADDRESS;
        check(&[], 0.0);
        check(&[[0, 0, 0]], 0.0);
        check(&[[all / 4, all / 2, 7]], 0.5);
        check(&[[all, 0, 0], [0, 0, 0]], 0.5);
        check(&[[all, 0, 0], [0, all / 2, 0]], 0.5);
        check(&[[65_536, 0, 0]], 1.0);
    }
}
