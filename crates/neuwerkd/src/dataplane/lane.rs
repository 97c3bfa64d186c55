//! The host's side of the host lane while packets flow: whoever configures the machine's network may take away what is not
//! its own.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use io::tun::Upkeep;

use super::Dataplane;

/// How often it is looked at.
const LANE_AGE: Duration = Duration::from_secs(5);

impl Dataplane {
    /// Has the host's side of the lane looked after.
    pub(super) fn look_after(&mut self, lane: Upkeep) {
        *self.lane() = Some(lane);
    }

    /// Lays the lane again, again and again, where the host has lost something of it.
    pub async fn keep_lane(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LANE_AGE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            let this = Arc::clone(&self);
            let lay = move || this.lane().as_ref().map_or(Ok(false), Upkeep::lay_again);
            // It waits for whoever else configures the machine.
            let Ok(laid) = tokio::task::spawn_blocking(lay).await else {
                return;
            };
            match &laid {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(
                        "the host lane had lost addresses, routes or rules, and has them again"
                    );
                }
                Err(error) if !failed => {
                    tracing::warn!(%error, "the host lane has lost addresses, routes or rules");
                }
                Err(_) => {}
            }
            failed = laid.is_err();
        }
    }

    /// Whether its device was removed. While it is being laid this is not known, and not waited for.
    pub(super) fn lane_has_gone(&self) -> bool {
        let lane = self.lane.try_lock();
        lane.is_ok_and(|lane| lane.as_ref().is_some_and(Upkeep::has_gone))
    }

    fn lane(&self) -> MutexGuard<'_, Option<Upkeep>> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
