//! What the clients do: write as fast as answers come, or on and on through a fault, to see how long nobody could.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::netns::Netns;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::subject::{Subject, record};

/// Between two attempts of the watch at each node.
const ATTEMPT_EVERY: Duration = Duration::from_millis(10);
/// An attempt that is not answered by then is given up.
const ATTEMPT_LIMIT: Duration = Duration::from_millis(900);
/// How long a client that tries again goes on before it calls its write failed.
const RETRY_LIMIT: Duration = Duration::from_secs(5);

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Lets `clients` clients write for `length`, each one write after the other over a connection of its own to node
/// `leader`, and returns the time that each write took. Fails unless every record then holds its last write, and was
/// written as often as was acknowledged.
pub(crate) fn write_for(
    operator: &Netns,
    subject: &Subject,
    leader: u8,
    clients: usize,
    length: Duration,
) -> Result<Vec<Duration>> {
    operator.enter(|| -> Result<Vec<Duration>> {
        let work = async {
            let mut before = Vec::new();
            let mut check = subject.connect(leader, false)?;
            for client in 0..clients {
                before.push(check.read(client).await?.1);
            }
            let mut writers = tokio::task::JoinSet::new();
            for client in 0..clients {
                let mut connection = subject.connect(leader, false)?;
                writers.spawn_local(async move {
                    // The first one makes the connection.
                    connection.write(client, 0, None).await?;
                    let (begin, mut taken) = (Instant::now(), Vec::new());
                    while begin.elapsed() < length {
                        let called = Instant::now();
                        let value = taken.len() as u64 + 1;
                        connection.write(client, value, None).await?;
                        taken.push(called.elapsed());
                    }
                    anyhow::Ok((client, taken))
                });
            }
            let mut all = Vec::new();
            while let Some(ended) = writers.join_next().await {
                let (client, taken) = ended??;
                let (value, count) = check.read(client).await?;
                let acknowledged = taken.len() as u64 + 1;
                ensure!(
                    value == record(client, acknowledged - 1)
                        && count == before[client] + acknowledged,
                    "the record of client {client} holds {value} after {count} writes, \
                     {acknowledged} of them acknowledged after {}",
                    before[client],
                );
                all.extend(taken);
            }
            Ok(all)
        };
        runtime()?.block_on(LocalSet::new().run_until(work))
    })
}

/// Writes through every node, on and on, to see when nobody is acknowledged.
///
/// Every 10 ms each node gets one attempt, whatever became of the earlier ones, so that the gap is the cluster's and not
/// that of a client which waits for an answer that never comes. Beside them, clients that try again at the next node
/// until they are acknowledged, as a caller would.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    /// Writes of clients that tried again, and how many of them failed for good.
    retried: Arc<(AtomicU64, AtomicU64)>,
}

impl Watch {
    pub(crate) fn start(operator: &Netns, subject: &Subject, nodes: u8) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let retried: Arc<(AtomicU64, AtomicU64)> = Arc::default();
        let (stopped, acks, tries) = (stop.clone(), acknowledged.clone(), retried.clone());
        let subject = subject.clone();
        let thread = operator.spawn("bench-watch", move || {
            let work = async {
                let mut tasks = tokio::task::JoinSet::new();
                for node in 1..=nodes {
                    let connection = subject.connect(node, true)?;
                    let client = usize::from(node);
                    tasks.spawn_local(attempts(connection, client, stopped.clone(), acks.clone()));
                    let (subject, stopped, tries) =
                        (subject.clone(), stopped.clone(), tries.clone());
                    tasks.spawn_local(async move {
                        retrying(&subject, node, nodes, &stopped, &tries).await;
                    });
                }
                while let Some(ended) = tasks.join_next().await {
                    ended?;
                }
                Ok(())
            };
            runtime()?.block_on(LocalSet::new().run_until(work))
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
            acknowledged,
            retried,
        })
    }

    /// Waits until writes have been acknowledged without a longer pause for a second.
    pub(crate) fn settle(&self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = Instant::now();
            let steady = now
                .checked_sub(Duration::from_secs(1))
                .is_some_and(|since| {
                    since > begin && longest(&self.times(), since, now) < Duration::from_millis(150)
                });
            if steady {
                return Ok(());
            }
            ensure!(begin.elapsed() < limit, "writes do not go through");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The longest time since `since` in which no write was acknowledged.
    pub(crate) fn longest_gap(&self, since: Instant) -> Duration {
        longest(&self.times(), since, Instant::now())
    }

    /// Ends, and says how many writes of the clients that try again there were, and how many of them failed.
    pub(crate) fn finish(mut self) -> Result<(u64, u64)> {
        self.end()?;
        let (done, failed) = &*self.retried;
        Ok((done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed)))
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread.join().map_err(|_| anyhow!("the watch panicked"))?
    }

    fn times(&self) -> Vec<Instant> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

async fn attempts(
    connection: crate::subject::Connection,
    client: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
) {
    let mut ticks = tokio::time::interval(ATTEMPT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut running = tokio::task::JoinSet::new();
    for value in 0.. {
        ticks.tick().await;
        while running.try_join_next().is_some() {}
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (mut connection, acknowledged) = (connection.clone(), acknowledged.clone());
        running.spawn_local(async move {
            let write = connection.write(client, value, None);
            if let Ok(Ok(())) = tokio::time::timeout(ATTEMPT_LIMIT, write).await {
                let mut times = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                times.push(Instant::now());
            }
        });
    }
}

async fn retrying(
    subject: &Subject,
    first: u8,
    nodes: u8,
    stop: &AtomicBool,
    tries: &(AtomicU64, AtomicU64),
) {
    let client = usize::from(nodes + first);
    let connections: Vec<_> = (1..=nodes)
        .map(|node| subject.connect(node, true))
        .collect();
    let mut node = usize::from(first) - 1;
    for value in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The same key at every attempt, so that a retry is safe.
        let key = format!("watch-{first}-{value}-{:x}", std::process::id());
        let begin = Instant::now();
        loop {
            let written = match &connections[node] {
                Ok(connection) => {
                    let mut connection = connection.clone();
                    let write = connection.write(client, value, Some(&key));
                    matches!(tokio::time::timeout(ATTEMPT_LIMIT, write).await, Ok(Ok(())))
                }
                Err(_) => false,
            };
            if written {
                break;
            }
            if begin.elapsed() > RETRY_LIMIT {
                tries.1.fetch_add(1, Ordering::Relaxed);
                break;
            }
            node = (node + 1) % connections.len();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tries.0.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The longest time between two of `times`, from `since` to `until`.
fn longest(times: &[Instant], since: Instant, until: Instant) -> Duration {
    let mut times: Vec<Instant> = times
        .iter()
        .copied()
        .filter(|at| (since..until).contains(at))
        .collect();
    times.sort_unstable();
    let ends = std::iter::once(since)
        .chain(times)
        .chain([until])
        .collect::<Vec<_>>();
    ends.windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}

/// The value that `percent` of a hundred do not exceed.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Result<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().context("no measurement")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_may_begin_or_end_with_the_time_looked_at() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let gap = |times: &[u64]| {
            let times: Vec<Instant> = times.iter().map(|ms| at(*ms)).collect();
            longest(&times, at(100), at(200)).as_millis()
        };
        assert_eq!(gap(&[]), 100);
        assert_eq!(gap(&[90, 110, 120, 190, 210]), 70);
        assert_eq!(gap(&[160]), 60);
        assert_eq!(gap(&[150, 120]), 50);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        assert_eq!(percentile(&values, 50).unwrap().as_secs(), 10);
        assert_eq!(percentile(&values, 95).unwrap().as_secs(), 19);
        assert_eq!(percentile(&values, 99).unwrap().as_secs(), 20);
        assert_eq!(percentile(&values[..3], 95).unwrap().as_secs(), 3);
        assert!(percentile(&[], 50).is_err());
    }
}
