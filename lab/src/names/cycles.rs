//! Cycles of resolving a fresh name through one node and connecting to its address, at once, through another, both drawn
//! anew each time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stub::{Ask, connect_through, kind_of};
use super::{NUMBERS, right, service};
use crate::address::FAMILIES;
use crate::netns::Netns;
use crate::server::PORT;

/// Clients at a time.
const CLIENTS: u64 = 4;
/// What a query may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Shorter than the time after which a first packet is sent again (RFC 6298: one second): a connection that takes longer
/// has lost one.
const FIRST_PACKET: Duration = Duration::from_millis(900);

/// Numbers that no name has had yet.
static NEXT: AtomicU32 = AtomicU32::new(1_000);

/// A name that nobody has asked for yet, and its number.
#[must_use]
pub(super) fn fresh() -> (u32, String) {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < NUMBERS, "out of fresh names");
    (number, format!("n{number}.fresh.test"))
}

/// What came of some cycles.
#[derive(Debug, Default)]
pub struct Cycles {
    /// Times from question to answer.
    pub resolve: Vec<Duration>,
    /// Times from the first packet to the established connection.
    pub connect: Vec<Duration>,
    /// What did not come about, with when.
    pub failed: Vec<String>,
}

impl Cycles {
    /// Runs `count` cycles over these nodes.
    pub fn run(client: &Netns, nodes: &[u8], count: usize) -> Cycles {
        let left = AtomicU32::new(u32::try_from(count).expect("a number of cycles"));
        let more = || {
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            taken.is_ok()
        };
        Cycles::while_true(client, nodes, more)
    }

    /// Runs cycles over these nodes until `over` is set.
    pub fn run_until(client: &Netns, nodes: &[u8], over: &AtomicBool) -> Cycles {
        Cycles::while_true(client, nodes, || !over.load(Ordering::Relaxed))
    }

    fn while_true(client: &Netns, nodes: &[u8], more: impl Fn() -> bool + Sync) -> Cycles {
        let all = Mutex::new(Cycles::default());
        let (begin, more, kept) = (Instant::now(), &more, &all);
        thread::scope(|scope| {
            for seed in 1..=CLIENTS {
                scope.spawn(move || {
                    client.enter(|| {
                        let mut random = seed;
                        while more() {
                            let drawn = [0, 1, 2].map(|_| draw(&mut random));
                            let done = cycle(nodes, drawn);
                            let mut all = kept.lock().unwrap_or_else(PoisonError::into_inner);
                            match done {
                                Ok([resolve, connect]) => {
                                    all.resolve.push(resolve);
                                    all.connect.push(connect);
                                }
                                Err(error) => {
                                    let at = begin.elapsed();
                                    all.failed.push(format!("after {at:?}: {error:#}"));
                                }
                            }
                        }
                    });
                });
            }
        });
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails unless every cycle succeeded, and returns a line that says how long they took.
    ///
    /// # Errors
    /// With the first cycles that did not.
    pub fn summary(&self) -> Result<String> {
        let count = self.resolve.len();
        let times = |times: &[Duration]| {
            format!(
                "p50 {:?} p99 {:?} most {:?}",
                percentile(times, 50),
                percentile(times, 99),
                percentile(times, 100)
            )
        };
        let line = format!(
            "{count} cycles; resolve {}; connect {}",
            times(&self.resolve),
            times(&self.connect)
        );
        let some: Vec<_> = self.failed.iter().take(20).map(String::as_str).collect();
        ensure!(
            self.failed.is_empty(),
            "{} cycles failed beside {line}\n{}",
            self.failed.len(),
            some.join("\n")
        );
        Ok(line)
    }
}

/// The time that so many of a hundred do not exceed; zero if there are none.
#[must_use]
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let nth = (times.len() * percent).div_ceil(100).max(1) - 1;
    times.get(nth).copied().unwrap_or_default()
}

/// One cycle, in the current namespace; the times of its two halves.
fn cycle(nodes: &[u8], [a, b, c]: [u64; 3]) -> Result<[Duration; 2]> {
    let pick = |drawn: u64| nodes[usize::try_from(drawn).expect("64 bits") % nodes.len()];
    let (resolver, hop) = (pick(a), pick(b));
    let family = FAMILIES[usize::from(c % 2 == 0)];
    let (number, name) = fresh();
    let ask = Ask::new(&name, kind_of(family))
        .at(service(FAMILIES[usize::from(c % 4 < 2)]))
        .through(resolver);
    let reply = ask.send(PATIENCE)?;
    let address = right(number, family);
    ensure!(
        reply.addresses == [address],
        "{name} through node {resolver}: {reply:?}"
    );
    let begin = Instant::now();
    match connect_through(hop, SocketAddr::new(address, PORT), FIRST_PACKET) {
        Ok(_) => Ok([reply.time, begin.elapsed()]),
        Err(error) => anyhow::bail!(
            "{name} ({address}) resolved through node {resolver} in {:?}, connect through node {hop}: {error} after {:?}",
            reply.time,
            begin.elapsed()
        ),
    }
}

fn draw(random: &mut u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let check = |percent, millis| {
            assert_eq!(percentile(&times, percent), Duration::from_millis(millis));
        };
        check(0, 1);
        check(50, 100);
        check(99, 198);
        check(100, 200);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
