//! What a process takes, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

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
