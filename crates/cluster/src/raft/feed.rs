//! The applied state, for those who follow it: every change of it, or only the changes that concern them.
//!
//! States come by the thousand a second while many write. Who follows all of them is woken as often.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::state::State;

/// Where the state machine publishes.
pub(crate) struct Feed {
    all: watch::Sender<Arc<State>>,
    chosen: Arc<Chosen>,
}

/// Those who follow only some changes. The state machine owns it: their channels close when that ends.
#[derive(Default)]
pub(crate) struct Chosen(Mutex<Vec<Tell>>);

/// Shows a state to one of them; false: nobody listens any more.
type Tell = Box<dyn FnMut(&Arc<State>) -> bool + Send>;

impl Feed {
    pub(crate) fn new(state: State) -> Self {
        Feed {
            all: watch::Sender::new(Arc::new(state)),
            chosen: Arc::default(),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.all.subscribe()
    }

    pub(crate) fn chosen(&self) -> Weak<Chosen> {
        Arc::downgrade(&self.chosen)
    }

    pub(crate) fn publish(&self, state: State) {
        let state = Arc::new(state);
        self.all.send_replace(Arc::clone(&state));
        self.chosen.tells().retain_mut(|tell| tell(&state));
    }
}

impl Chosen {
    /// Follows the changes from one state to a later one for which `differs` is true; `all` is where all are published.
    pub(crate) fn follow(
        &self,
        all: &watch::Receiver<Arc<State>>,
        differs: impl Fn(&State, &State) -> bool + Send + 'static,
    ) -> watch::Receiver<Arc<State>> {
        // Held, so that what is published from now on is shown to the new one as well.
        let mut tells = self.tells();
        let mut last = all.borrow().clone();
        let (sender, receiver) = watch::channel(Arc::clone(&last));
        tells.push(Box::new(move |state| {
            if differs(&last, state) {
                last = Arc::clone(state);
                sender.send_replace(Arc::clone(state));
            }
            !sender.is_closed()
        }));
        receiver
    }

    fn tells(&self) -> MutexGuard<'_, Vec<Tell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Author, Command, Stamped};

    fn founded() -> State {
        let mut state = State::default();
        let founding = Stamped {
            command: Command::Init(Box::new(crate::state::tests::init())),
            time_ms: 5,
            seed: [1; 32],
            author: Author::default(),
            idempotency_key: None,
            request: None,
        };
        state.apply(1, founding);
        state
    }

    #[test]
    fn only_those_changes_are_told_that_were_asked_for() {
        let feed = Feed::new(State::default());
        let chosen = feed.chosen().upgrade().unwrap();
        let all = feed.watch();
        let mut lineages = chosen.follow(&all, |old, new| old.lineage() != new.lineage());
        feed.publish(State::default());
        assert!(!lineages.has_changed().unwrap());
        feed.publish(founded());
        assert!(lineages.has_changed().unwrap());
        assert!(lineages.borrow_and_update().lineage().is_some());
        feed.publish(founded());
        assert!(!lineages.has_changed().unwrap());
    }

    #[test]
    fn who_has_gone_is_forgotten_and_who_is_left_hears_of_the_end() {
        let feed = Feed::new(State::default());
        let chosen = feed.chosen().upgrade().unwrap();
        let gone = chosen.follow(&feed.watch(), |_, _| true);
        let left = chosen.follow(&feed.watch(), |_, _| false);
        drop(gone);
        feed.publish(founded());
        assert_eq!(chosen.tells().len(), 1);
        assert!(left.has_changed().is_ok());
        drop((chosen, feed));
        assert!(left.has_changed().is_err());
    }
}
