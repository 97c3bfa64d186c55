//! Which processor each packet worker stays on.

use std::io;

use anyhow::{Context, ensure};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::{Config, DataPlaneMode};

/// Where one worker stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    cpu: u32,
    /// The key by which an operator has said so.
    key: Option<&'static str>,
}

impl Home {
    /// Keeps the calling thread there, and says where. One that nobody has named is not insisted on.
    ///
    /// # Errors
    /// The processor was named, and cannot be used.
    pub(super) fn take(self) -> anyhow::Result<Option<u32>> {
        let Home { cpu, key } = self;
        match (stay_on(cpu), key) {
            (Ok(()), _) => Ok(Some(cpu)),
            (Err(error), None) => {
                tracing::warn!(cpu, %error, "a packet worker runs on any processor");
                Ok(None)
            }
            (Err(error), Some(key)) => {
                Err(error).with_context(|| format!("{key}: processor {cpu} cannot be used"))
            }
        }
    }
}

/// By worker, where it stays; none for one that runs where the system wants it.
///
/// # Errors
/// A processor that is named is none that this process may use.
pub(super) fn homes(config: &Config, workers: usize) -> anyhow::Result<Vec<Option<Home>>> {
    let usable = usable().context("cannot tell which processors this process may use")?;
    let core_ids = &config.dpdk.core_ids;
    let is_dpdk = config.bootstrap.data_plane_mode == DataPlaneMode::Dpdk;
    let (key, named) = match is_dpdk && !core_ids.is_empty() {
        true => ("dpdk.core_ids", core_ids.clone()),
        false => ("dataplane.worker_cpus", config.dataplane.worker_cpus()),
    };
    for cpu in &named {
        ensure!(
            usable.contains(cpu),
            "{key}: processor {cpu} is none that this process may use, which are {usable:?}"
        );
    }
    if !named.is_empty() {
        let home = |cpu| Home {
            cpu,
            key: Some(key),
        };
        return Ok(fill(named.into_iter().map(home), workers));
    }
    Ok(choose(&usable, is_dpdk, workers))
}

/// Where workers stay if nobody has said so. One alone has nobody to keep out of the way of, and goes where there is room,
/// unless it never sleeps.
fn choose(usable: &[u32], is_dpdk: bool, workers: usize) -> Vec<Option<Home>> {
    if workers > usable.len() || (workers == 1 && !is_dpdk) {
        return vec![None; workers];
    }
    // The first is everybody else's, as long as there are enough without it.
    let skipped = usize::from(workers < usable.len());
    let others = usable.iter().skip(skipped);
    fill(
        others.map(|cpu| Home {
            cpu: *cpu,
            key: None,
        }),
        workers,
    )
}

fn fill(homes: impl Iterator<Item = Home>, workers: usize) -> Vec<Option<Home>> {
    let mut homes: Vec<_> = homes.map(Some).collect();
    homes.resize(workers, None);
    homes
}

/// How nice packet threads are that sleep while nothing comes: they get nine tenths of a processor that others want too, and
/// those what is left even under a flood.
const NICE: i32 = -10;

/// Has the calling thread, which takes packets, come before others on its processor: what waits for too long is lost.
pub(super) fn go_first() {
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::info!(%error, "packet threads come after others, since CAP_SYS_NICE is missing");
    }
}

/// Keeps the calling thread on one processor.
fn stay_on(cpu: u32) -> io::Result<()> {
    if cpu as usize >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    Ok(sched_setaffinity(None, &set)?)
}

/// The processors that the calling thread may use, in order.
fn usable() -> io::Result<Vec<u32>> {
    let set = sched_getaffinity(None)?;
    let numbers = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    Ok(numbers.map(|cpu| cpu as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_workers_have_a_processor_each_and_leave_the_first_to_others() {
        let check = |usable: &[u32], is_dpdk, workers, expected: &[Option<u32>]| {
            let homes = choose(usable, is_dpdk, workers);
            let cpus: Vec<_> = homes.iter().map(|home| home.map(|home| home.cpu)).collect();
            assert_eq!(cpus, expected, "{usable:?} {is_dpdk} {workers}");
        };
        check(&[0, 1], false, 1, &[None]);
        check(&[0, 1], true, 1, &[Some(1)]);
        check(&[4], true, 1, &[Some(4)]);
        check(&[0, 1], false, 2, &[Some(0), Some(1)]);
        check(&[0, 1], false, 3, &[None; 3]);
        check(&[2, 3, 6, 7], false, 2, &[Some(3), Some(6)]);
    }

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let thread = std::thread::spawn(|| {
            let all = usable().unwrap();
            let last = *all.last().unwrap();
            let home = |cpu, key| Home { cpu, key };
            assert_eq!(home(last, Some("key")).take().unwrap(), Some(last));
            assert_eq!(usable().unwrap(), [last]);
            let none = CpuSet::MAX_CPU as u32;
            assert_eq!(home(none, None).take().unwrap(), None);
            let error = home(none, Some("key")).take().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("key: processor {none} cannot be used")
            );
        });
        thread.join().unwrap();
    }
}
