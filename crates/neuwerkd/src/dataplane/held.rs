//! The interfaces that the kernel is kept off while packets flow: whoever configures the machine's network may bring it
//! back.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use io::packet::{Changes, Hold};

/// How often it is looked at where nothing is told of changes, and how long not where much is.
const AGE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);
/// How often it is said at most.
const QUIET: Duration = Duration::from_secs(60);

/// Interfaces that are held, and held again at once when the kernel has them again; dropping it gives them back.
pub(super) struct Held(Arc<Mutex<Vec<Hold>>>);

impl Held {
    pub(super) fn new(holds: Vec<Hold>) -> anyhow::Result<Held> {
        let held = Held(Arc::new(Mutex::new(holds)));
        if !lock(&held.0).is_empty() {
            let changes = Changes::listen().context("listening to what the kernel changes")?;
            let holds = Arc::clone(&held.0);
            thread::Builder::new()
                .name("hold".to_owned())
                .spawn(move || keep(&changes, &holds))
                .context("starting the thread that keeps the kernel off the data ports")?;
        }
        Ok(held)
    }

    /// Does not give them back: they stay held beyond this process.
    pub(super) fn forget(&self) {
        std::mem::forget(std::mem::take(&mut *lock(&self.0)));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.0).clear();
    }
}

fn lock(holds: &Mutex<Vec<Hold>>) -> MutexGuard<'_, Vec<Hold>> {
    holds.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until there is none to be held.
fn keep(changes: &Changes, holds: &Mutex<Vec<Hold>>) {
    let mut failed = false;
    let mut said: Option<Instant> = None;
    loop {
        if let Err(error) = changes.wait(AGE) {
            tracing::warn!(%error, "what the kernel changes is not told, and looked for every five seconds");
            thread::sleep(AGE);
        }
        let mut holds = lock(holds);
        if holds.is_empty() {
            return;
        }
        let outcomes = holds.iter_mut().map(Hold::hold_again);
        let all = outcomes.reduce(|all, one| Ok(all? | one?));
        drop(holds);
        match &all {
            // Others may bring it back again and again.
            Some(Ok(true)) if said.is_none_or(|said| said.elapsed() >= QUIET) => {
                said = Some(Instant::now());
                tracing::warn!(
                    "the kernel had a data port again, by addresses or by rules of nftables that were changed; it is kept off again"
                );
            }
            Some(Err(error)) if !failed => tracing::error!(
                error = error as &dyn Error,
                "the kernel cannot be kept off a data port"
            ),
            _ => {}
        }
        failed = matches!(all, Some(Err(_)));
        thread::sleep(PAUSE);
    }
}
