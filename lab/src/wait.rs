//! Waiting for something that another process does: asked again and again, with a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks until there is an answer and returns it with the time that it took. An error counts as "not yet".
///
/// # Errors
/// After `limit`: says what was waited for and the last error.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let begin = Instant::now();
    let mut last = None;
    loop {
        match ask() {
            Ok(Some(answer)) => return Ok((answer, begin.elapsed())),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if begin.elapsed() > limit {
            match last {
                Some(error) => bail!("{what}: not within {limit:?}; last: {error:#}"),
                None => bail!("{what}: not within {limit:?}"),
            }
        }
        thread::sleep(PAUSE);
    }
}

/// Asks until the condition holds and returns the time that it took.
///
/// # Errors
/// As [`until`].
pub fn until_true(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    until(what, limit, || Ok(ask()?.then_some(()))).map(|((), time)| time)
}
