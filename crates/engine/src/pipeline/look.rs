//! Working on the control side's questions, a step in each turn.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use policy::Compiled;

use super::{Pipeline, icmp_of};
use crate::clock::{Now, TICK_SHIFT};
use crate::counters::CloseReason;
use crate::event::FlowFacts;
use crate::flow::{Flow, FlowId};
use crate::grant::Table;
use crate::look::{By, Desk, Filter, FlowState, FlowView, Question, Survey, Task, decided};
use crate::tcp::End;
use crate::wire::proto;

/// What one step may cost, in places of the table that are looked at: about ten nanoseconds each.
const STEP: u32 = 512;
/// What else costs, in the same unit: a flow that is shown, one that the policy is asked about, and
/// one that is closed.
const SHOWN: u32 = 4;
const JUDGED: u32 = 16;
const CLOSED: u32 = 32;

impl Pipeline {
    /// Works on questions from `desk` from now on.
    pub(crate) fn set_desk(&mut self, desk: Desk) {
        self.desk = Some(desk);
    }

    /// Whether there is a question to go on with.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.desk.as_ref().is_some_and(|desk| !desk.is_idle())
    }

    /// Goes on with the control side's question, if there is one.
    #[inline]
    pub(crate) fn handle_questions(&mut self, now: Now) {
        if self.is_asked() {
            self.go_on(now);
        }
    }

    #[cold]
    fn go_on(&mut self, now: Now) {
        let Some(mut open) = self.desk.as_mut().and_then(Desk::take) else {
            return;
        };
        let (question, place) = open.parts();
        if self.step(now, question, place) {
            open.answer();
        } else if let Some(desk) = &mut self.desk {
            desk.put_back(open);
        }
    }

    /// One step. True once the question is answered.
    fn step(&mut self, now: Now, question: &mut Question, place: &mut u32) -> bool {
        let Question {
            filter,
            policy,
            task,
        } = question;
        if let Task::Watch(tap) = task {
            self.taps.add(now, tap);
            return true;
        }
        let mut budget = STEP;
        while let Some(flow) = self.flows.at(*place) {
            if budget == 0 {
                return false;
            }
            let id = FlowId::of(*place);
            let mut cost = 1;
            if flow.is_live()
                && filter.matches(&flow)
                && self.is_meant(filter, policy, &flow, &mut cost)
            {
                cost += match task {
                    Task::List { next, page } => {
                        if page.len() == page.capacity() {
                            *next = Some(*place);
                            return true;
                        }
                        page.push(self.view(now, &flow, policy, 0));
                        SHOWN
                    }
                    Task::Top { by, ranks, .. } => {
                        rank(by, ranks, &flow, *place);
                        0
                    }
                    Task::Mark { .. } | Task::Watch(_) => 0,
                    Task::Kill { reset, killed } => {
                        *killed += 1;
                        self.kill(now, id, *reset);
                        CLOSED
                    }
                    Task::Survey(survey) => count(survey, &flow, policy, self.grants_under(policy)),
                };
            }
            if let Task::Mark { marks } = task
                && marks.len() < marks.capacity()
            {
                marks.push(total(&flow));
            }
            *place += 1;
            budget = budget.saturating_sub(cost);
        }
        match task {
            Task::List { next, .. } => *next = None,
            Task::Top { by, ranks, page } => {
                while let Some(Reverse((value, place))) = ranks.peek().copied() {
                    if budget < SHOWN {
                        return false;
                    }
                    budget -= SHOWN;
                    ranks.pop();
                    let recent = if matches!(by, By::BytesSince(_)) {
                        value
                    } else {
                        0
                    };
                    if let Some(flow) = self.flows.at(place).filter(Flow::is_live) {
                        page.push(self.view(now, &flow, policy, recent));
                    }
                }
            }
            Task::Mark { .. } | Task::Kill { .. } | Task::Survey(_) | Task::Watch(_) => {}
        }
        true
    }

    /// Whether the decision on a flow is meant; asked only if that matters.
    fn is_meant(
        &self,
        filter: &Filter,
        policy: &Arc<Compiled>,
        flow: &Flow,
        cost: &mut u32,
    ) -> bool {
        if filter.group.is_none() && filter.rule.is_none() {
            return true;
        }
        if is_stale(flow, policy) {
            *cost += JUDGED;
        }
        let (group, rule, _) = decided(flow, policy, self.grants_under(policy));
        filter.matches_decision(group, rule)
    }

    /// What is granted to the rules of a policy, if it is the one in force.
    fn grants_under(&self, policy: &Arc<Compiled>) -> Option<&Table> {
        Arc::ptr_eq(policy, self.snapshot.policy()).then_some(&*self.grants)
    }

    fn kill(&mut self, now: Now, id: FlowId, reset: bool) {
        let flow = self.flows.get(id);
        if reset && flow.proto == proto::TCP && !flow.is_finished() {
            self.reset_ends(now, &flow);
        }
        self.close(id, CloseReason::Killed);
    }

    fn view(&self, now: Now, flow: &Flow, policy: &Arc<Compiled>, recent_bytes: u64) -> FlowView {
        let (group, rule, allowed) = decided(flow, policy, self.grants_under(policy));
        let idle = now.tick().since(flow.last_seen);
        let expires = flow.idle(self.snapshot.idle()).saturating_sub(idle);
        let time = |ticks: u32| Duration::from_nanos(u64::from(ticks) << TICK_SHIFT);
        FlowView {
            facts: FlowFacts {
                group,
                rule,
                ..self.describe(flow)
            },
            icmp: icmp_of(flow),
            nat: flow.is_translated().then(|| (flow.nat.ip(), flow.nat_port)),
            state: FlowState::of(flow),
            allowed,
            idle: time(idle),
            expires: time(expires),
            bytes: flow.bytes,
            packets: flow.packets,
            recent_bytes,
        }
    }
}

fn is_stale(flow: &Flow, policy: &Compiled) -> bool {
    flow.revision != policy.revision() as u32
}

fn total(flow: &Flow) -> u64 {
    flow.bytes[End::Client as usize].wrapping_add(flow.bytes[End::Server as usize])
}

/// Keeps a flow if it is among the first.
fn rank(
    by: &By,
    ranks: &mut std::collections::BinaryHeap<Reverse<(u64, u32)>>,
    flow: &Flow,
    place: u32,
) {
    let value = match by {
        By::Bytes => total(flow),
        By::Packets => flow.packets.iter().map(|n| u64::from(*n)).sum(),
        By::BytesSince(marks) => {
            let mark = marks.get(place as usize).copied().unwrap_or(0);
            // Less than the mark: the place has another flow now.
            total(flow).checked_sub(mark).unwrap_or_else(|| total(flow))
        }
    };
    if ranks.len() < ranks.capacity() {
        ranks.push(Reverse((value, place)));
    } else if let Some(mut least) = ranks.peek_mut()
        && least.0.0 < value
    {
        *least = Reverse((value, place));
    }
}

/// Counts a flow, and returns what that cost.
fn count(survey: &mut Survey, flow: &Flow, policy: &Arc<Compiled>, grants: Option<&Table>) -> u32 {
    survey.states[FlowState::of(flow) as usize] += 1;
    let mut cost = 1;
    if is_stale(flow, policy) {
        survey.stale += 1;
        cost += JUDGED;
    }
    let (group, ..) = decided(flow, policy, grants);
    let last = survey.groups.len() - 1;
    let group = group.map_or(last, |group| (group as usize).min(last));
    survey.groups[group] += 1;
    if flow.is_translated() {
        cost += 1;
        survey.count_binding(flow.nat, flow.nat_port, flow.proto);
    }
    cost
}
