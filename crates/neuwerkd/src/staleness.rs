//! Whether a policy is in force: that of the cluster, or, once no leader has been heard for `policy.max_staleness`, none.

use std::sync::Arc;
use std::time::Duration;

use cluster::Role;
use cluster::replay::Progress;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dataplane::Dataplane;
use crate::http;
use crate::readiness::Part;

/// How often it is looked whether a leader is heard.
const LOOK: Duration = Duration::from_millis(500);

/// What says which policy is in force, and takes it out of force.
pub(crate) struct InForce {
    /// How long it is enforced without a leader; none: for ever.
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) dataplane: Arc<Dataplane>,
    pub(crate) app: Arc<http::App>,
    pub(crate) progress: watch::Receiver<Progress>,
}

impl InForce {
    /// Follows replay and, if there is a limit, the leader. Ends with replay.
    pub(crate) async fn follow(mut self) {
        let mut contact = self
            .max_staleness
            .map(|limit| Contact::new(limit, Instant::now()));
        loop {
            if let Some(contact) = &mut contact
                && contact.look(self.hears_leader(), Instant::now())
            {
                self.deny(contact).await;
            }
            self.tell(contact.as_ref());
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if contact.is_some() => {}
            }
        }
    }

    fn hears_leader(&self) -> bool {
        let node = self.app.member();
        node.is_some_and(|node| !matches!(node.role(), Role::NoLeader { .. }))
    }

    /// Denies everything, or stops to.
    async fn deny(&self, contact: &Contact) {
        let limit = api::duration::format(contact.limit);
        if contact.stale {
            tracing::warn!(
                limit,
                "no leader was heard for policy.max_staleness: everything is denied"
            );
        } else {
            tracing::info!("a leader is heard: the policy is in force again");
        }
        if let Err(error) = self.dataplane.set_denying(contact.stale).await {
            tracing::error!(%error, "not every packet worker has taken that over");
        }
    }

    fn tell(&mut self, contact: Option<&Contact>) {
        let readiness = self.app.readiness();
        let enforced = self.progress.borrow_and_update().enforced;
        match contact.filter(|contact| contact.stale) {
            Some(contact) => readiness.set_failed(
                Part::PolicyReady,
                format!(
                    "everything is denied: no leader was heard for {} (policy.max_staleness)",
                    api::duration::format(contact.limit)
                ),
            ),
            None if enforced.index > 0 => {
                let detail = format!("revision {} is enforced", enforced.revision);
                readiness.set_ok(Part::PolicyReady, detail);
            }
            None => {}
        }
    }
}

/// When a leader was last heard.
struct Contact {
    limit: Duration,
    at: Instant,
    stale: bool,
}

impl Contact {
    fn new(limit: Duration, now: Instant) -> Self {
        Contact {
            limit,
            at: now,
            stale: false,
        }
    }

    /// Takes note of whether a leader is heard now, and tells whether what is to be enforced has changed by it.
    fn look(&mut self, heard: bool, now: Instant) -> bool {
        if heard {
            self.at = now;
        }
        let stale = now.duration_since(self.at) >= self.limit;
        std::mem::replace(&mut self.stale, stale) != stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_of_the_whole_limit_changes_what_is_enforced_and_a_word_changes_it_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut contact = Contact::new(Duration::from_secs(60), start);
        let mut looks = Vec::new();
        for (heard, seconds) in [
            (false, 59),
            (true, 59),
            (false, 118),
            (false, 119),
            (false, 300),
        ] {
            looks.push((contact.look(heard, at(seconds)), contact.stale));
        }
        let quiet = (false, false);
        assert_eq!(looks, [quiet, quiet, quiet, (true, true), (false, true)]);
        assert!(contact.look(true, at(301)) && !contact.stale);
    }
}
