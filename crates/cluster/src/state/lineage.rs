//! A new lineage: the state goes on with one member, and the history that others may still hold counts no more.

use std::sync::Arc;

use super::{Action, Change, Member, Standing, State};
use crate::command::{Author, Command, EventKind, Refusal, Response, Stamped, Suffrage};
use crate::id::{Lineage, NodeId};

impl State {
    /// Makes `sole` the only member, under the lineage `lineage`, at log time `time_ms` or later. All other members are
    /// removed, so that their ids and keys are never taken again and none of them is let in.
    ///
    /// # Errors
    /// There is no cluster, or `sole` was removed from it.
    pub(crate) fn begin_lineage(
        &mut self,
        lineage: Lineage,
        sole: Member,
        time_ms: u64,
        detail: &str,
    ) -> Result<(), Refusal> {
        let old = self.lineage().ok_or(Refusal::NotInitialised)?;
        let node_id = sole.node_id;
        if self.removed.contains_key(&node_id) {
            return Err(Refusal::MemberRemoved);
        }
        let sole = Member {
            standing: Standing::Member,
            // Alone, it must be able to vote.
            suffrage: Suffrage::Auto,
            ..sole
        };
        self.members.insert(node_id, Arc::new(sole));
        let others: Vec<NodeId> = self
            .members
            .keys()
            .copied()
            .filter(|id| *id != node_id)
            .collect();
        // By the rules that hold for any removal, so that nothing of a former member is left over.
        for other in others {
            for command in [
                Command::RemoveMember { node_id: other },
                Command::ReleaseMember { node_id: other },
            ] {
                self.decide(command, node_id, time_ms)?;
            }
        }
        if let Some(root) = &mut self.root {
            Arc::make_mut(root).lineage = lineage;
        }
        // An older version that may still be started on this state must be able to read it.
        if EventKind::Recovered.level() <= self.feature_level() {
            self.changes.push_back(Arc::new(Change {
                index: self.index,
                time_ms: self.time_ms,
                author: Author::system(node_id),
                action: Action::Event(EventKind::Recovered),
                subject: old.to_string(),
                detail: detail.to_owned(),
            }));
        }
        Ok(())
    }

    /// Applies a command outside of any log, at the index that the state is at.
    ///
    /// # Errors
    /// The state refuses it.
    pub(crate) fn decide(
        &mut self,
        command: Command,
        by: NodeId,
        time_ms: u64,
    ) -> Result<Response, Refusal> {
        let stamped = Stamped {
            command,
            time_ms,
            seed: [0; 32],
            author: Author::system(by),
            idempotency_key: None,
            request: None,
        };
        self.apply(self.index, stamped).accepted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Story;

    #[test]
    fn one_member_goes_on_and_no_other_comes_back() {
        let mut story = Story::founded();
        let others = [story.member(2), story.member(3)];
        let sole = story
            .state
            .member(NodeId(1))
            .expect("the seed")
            .as_ref()
            .clone();
        let before = story.state.clone();
        story
            .state
            .begin_lineage(Lineage(77), sole.clone(), 1, "from /d")
            .expect("begins");
        let state = &story.state;
        assert_eq!(state.lineage(), Some(Lineage(77)));
        assert_eq!(state.index(), before.index());
        assert_eq!(
            state.members().map(|m| m.node_id).collect::<Vec<_>>(),
            [NodeId(1)]
        );
        for other in others {
            assert!(state.removed(other).is_some());
        }
        let policy = |state: &State| state.policy().map(|policy| policy.hash);
        assert_eq!(policy(state), policy(&before));
        // It reads back as any state does.
        let again = State::from_records(state.records()).expect("is read");
        assert_eq!(again, *state);
        let removed = before.member(others[0]).expect("was one").as_ref().clone();
        assert_eq!(
            story.state.begin_lineage(Lineage(78), removed, 1, ""),
            Err(Refusal::MemberRemoved)
        );
    }
}
