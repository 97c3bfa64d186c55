//! Where flows that use grants are counted.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use engine::grant::{UseId, Uses};

use crate::claims::Key;

/// A rule by the ids that stay the same from policy to policy.
pub(crate) type RuleId = u32;

/// How long after a table was replaced no worker judges by it any more: far above a worker's turn, in milliseconds.
pub(crate) const SETTLED_MS: u64 = 1_000;

/// Rules by their ids.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    numbers: HashMap<(Arc<str>, Arc<str>), RuleId>,
    ids: Vec<(Arc<str>, Arc<str>)>,
}

impl Rules {
    pub(crate) fn number(&mut self, group: &str, rule: &str) -> RuleId {
        let key = (Arc::from(group), Arc::from(rule));
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let number = u32::try_from(self.ids.len()).expect("fewer rules than memory holds");
        self.ids.push((Arc::clone(&key.0), Arc::clone(&key.1)));
        self.numbers.insert(key, number);
        number
    }

    pub(crate) fn group(&self, rule: RuleId) -> &str {
        &self.ids[rule as usize].0
    }
}

/// A counter of an address's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) rule: RuleId,
    pub(crate) client: Option<IpAddr>,
    pub(crate) id: UseId,
    /// The names of the address for which the policy in force derives the rule.
    pub(crate) holders: u32,
    /// The same of the policy in preparation.
    pub(crate) next_holders: u32,
}

impl Counted {
    /// Whether no policy in force derives the rule any more, and flows that were judged by it have not been judged again
    /// yet.
    pub(crate) fn is_stray(&self) -> bool {
        self.holders == 0
    }
}

/// A counter that no grant has any more, until it is certain that no worker enters it.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) since_ms: u64,
    pub(crate) address: IpAddr,
    pub(crate) counted: Counted,
    /// The name whose end took the last grant away; none if a policy edit did.
    pub(crate) ended: Option<Key>,
}

/// Counters in use and free ones.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) uses: Arc<Uses>,
    free: Vec<UseId>,
    taken: u32,
    left: VecDeque<Left>,
}

impl Counters {
    /// One that nothing has entered; none if there are no more.
    pub(crate) fn take(&mut self) -> Option<UseId> {
        self.free.pop().or_else(|| {
            let place = (self.taken < Uses::CAPACITY).then_some(self.taken)?;
            self.taken += 1;
            Some(UseId::at(place))
        })
    }

    /// Takes a counter back.
    pub(crate) fn leave(
        &mut self,
        address: IpAddr,
        counted: Counted,
        ended: Option<Key>,
        now_ms: u64,
    ) {
        self.left.push_back(Left {
            since_ms: now_ms,
            address,
            counted,
            ended,
        });
    }

    /// Frees counters that nobody can enter any more, and hands out those that a worker has entered meanwhile.
    pub(crate) fn settle(&mut self, now_ms: u64) -> Vec<Left> {
        let mut entered = Vec::new();
        while let Some(left) = self
            .left
            .pop_front_if(|left| left.since_ms + SETTLED_MS <= now_ms)
        {
            if self.uses.of(left.counted.id) == 0 {
                self.free.push(left.counted.id);
            } else {
                entered.push(left);
            }
        }
        entered
    }

    /// Counters that are not free.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.taken as usize - self.free.len()
    }
}
