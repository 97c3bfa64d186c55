//! What `dpdk.overlay.debug` and `health_probe_debug` have logged: once a second, what was counted in it. Single packets are
//! for `neuwerk trace`: a line for each would hold them up.

use std::sync::Arc;
use std::time::Duration;

use engine::{DropReason, WorkerCounters};

use super::Dataplane;

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

impl Dataplane {
    /// Logs what came in `tunnels`, and which health `probes` came, once in each second in which any did.
    pub async fn keep_debugging(self: Arc<Self>, tunnels: bool, probes: bool) {
        if !tunnels && !probes {
            return;
        }
        let (mut of_tunnels, mut of_probes) = (self.tunnels(), self.probes());
        let mut ticks = tokio::time::interval(PAUSE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if tunnels && let Some(counted) = moved(&mut of_tunnels, self.tunnels()) {
                let [taken_out, put_in, not_taken_out, not_put_in, too_large] = counted;
                tracing::info!(
                    taken_out,
                    put_in,
                    not_taken_out,
                    not_put_in,
                    too_large,
                    "packets in tunnels"
                );
            }
            if probes && let Some(counted) = moved(&mut of_probes, self.probes()) {
                let [answered, not_ready, limited] = counted;
                tracing::info!(answered, not_ready, limited, "health probes");
            }
        }
    }

    fn tunnels(&self) -> [u64; 5] {
        let dropped = |reason| self.sum(|worker| worker.dropped(reason).packets.get());
        let tunnels = |worker: &WorkerCounters,
                       read: fn(&engine::counters::TunnelCounters) -> u64| {
            worker.overlay.iter().map(read).sum::<u64>()
        };
        [
            self.sum(|worker| tunnels(worker, |kind| kind.taken_out.get())),
            self.sum(|worker| tunnels(worker, |kind| kind.put_in.get())),
            dropped(DropReason::OverlayDecap),
            dropped(DropReason::OverlayEncap),
            dropped(DropReason::OverlayMtu),
        ]
    }

    fn probes(&self) -> [u64; 3] {
        [
            self.sum(|worker| worker.probes_answered.get()),
            self.sum(|worker| worker.probes_not_ready.get()),
            self.sum(|worker| worker.probes_limited.get()),
        ]
    }

    fn sum(&self, read: impl Fn(&WorkerCounters) -> u64) -> u64 {
        let workers = self.workers.iter();
        workers.map(|worker| read(&worker.counters)).sum()
    }
}

/// By how much counters have grown, if any has; from `before`, which becomes `now`.
fn moved<const N: usize>(before: &mut [u64; N], now: [u64; N]) -> Option<[u64; N]> {
    let grown: [u64; N] = std::array::from_fn(|i| now[i].wrapping_sub(before[i]));
    *before = now;
    grown.iter().any(|by| *by > 0).then_some(grown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_happened_is_told() {
        let mut before = [5, 0, 7];
        assert_eq!(moved(&mut before, [5, 0, 7]), None);
        assert_eq!(moved(&mut before, [6, 0, 9]), Some([1, 0, 2]));
        assert_eq!(moved(&mut before, [6, 0, 9]), None);
    }
}
