//! What a process takes, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The time that all threads of a process have had a processor for, to a hundredth of a second.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("a name in parentheses")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |number: usize| -> Result<u64> { Ok(fields.get(number).context("a field")?.parse()?) };
    // utime and stime are fields 14 and 15 of the line; a tick is a hundredth of a second on every Linux.
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// The same of those of its threads whose name begins with `prefix`, to the nanosecond.
///
/// # Errors
/// When there is no such process, or no such thread.
pub fn processor_time_of_threads(pid: u32, prefix: &str) -> Result<Duration> {
    let (mut threads, mut spent_ns) = (0, 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        // One that has ended meanwhile is none of them.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else {
            continue;
        };
        if !name.starts_with(prefix) {
            continue;
        }
        let stat = fs::read_to_string(thread.join("schedstat"))?;
        let on_processor = stat.split_whitespace().next().context("a field")?;
        spent_ns += on_processor.parse::<u64>()?;
        threads += 1;
    }
    ensure!(threads > 0, "no thread of {pid} is called {prefix}");
    Ok(Duration::from_nanos(spent_ns))
}
