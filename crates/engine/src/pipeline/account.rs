//! What each frame is counted as: by direction, protocol, decision and source group, each frame once.
//!
//! What is counted by group is counted nowhere else: totals are sums, so that a packet costs no more than one place.

use super::{Pipeline, Step, fragment};
use crate::counters::{Direction, Protocol};
use crate::port::PortId;
use crate::tally::NO_PLACE;
use crate::wire::proto;
use crate::{DropReason, Verdict};

/// What a frame is to be counted as: found out while it is processed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) direction: Direction,
    /// Where the group that decided is counted.
    pub(super) group: u16,
}

impl Account {
    pub(super) fn new(direction: Direction) -> Account {
        Account {
            direction,
            group: NO_PLACE,
        }
    }
}

/// The same for a frame that is counted once it is known whether it leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uncounted {
    account: Account,
    proto: u8,
    icmp: (u8, u8),
}

impl Default for Uncounted {
    fn default() -> Uncounted {
        Uncounted {
            account: Account::new(Direction::Outbound),
            proto: 0,
            icmp: (0, 0),
        }
    }
}

impl Pipeline {
    /// What a frame from a port is counted as as long as nothing else is known about it.
    #[inline(always)]
    pub(super) fn account(&self, port: PortId) -> Account {
        Account::new(match self.snapshot.two_arms() && port.0 > 0 {
            true => Direction::Inbound,
            false => Direction::Outbound,
        })
    }

    /// Counts the fate of a frame, if it is known by now.
    pub(super) fn count(
        &mut self,
        step: Step,
        account: Account,
        proto: u8,
        icmp: (u8, u8),
        bytes: usize,
    ) {
        match step {
            // One that has turned back is counted where its fate is known.
            Step::TurnFor(..) => {}
            // It may find no room yet, or no neighbour.
            Step::Await(..) | Step::Lane | Step::Whole => {
                self.uncounted = Uncounted {
                    account,
                    proto,
                    icmp,
                };
            }
            Step::Consumed => self.counters.consumed.inc(),
            step => {
                match step.verdict() {
                    Verdict::Forward(_) => self.count_allowed(account, proto, icmp, bytes),
                    Verdict::Drop(reason) if reason.is_denial() => {
                        self.count_denied(account, proto, icmp, bytes);
                    }
                    _ => {}
                }
                self.counters.count_verdict(step.verdict(), bytes);
            }
        }
    }

    /// Counts a frame that passes.
    #[inline(always)]
    pub(super) fn count_allowed(&self, account: Account, proto: u8, icmp: (u8, u8), bytes: usize) {
        let Account { direction, group } = account;
        let (counters, protocol) = (self.group_counters(group), Protocol::of(proto));
        counters.allowed(direction, protocol).count(bytes);
        if protocol == Protocol::Icmp {
            counters.count_icmp(direction, true, kind(proto, icmp));
        }
    }

    /// Counts a frame that the policy refuses, or that may not begin a flow.
    fn count_denied(&self, account: Account, proto: u8, icmp: (u8, u8), bytes: usize) {
        let Account { direction, group } = account;
        let (counters, protocol) = (self.group_counters(group), Protocol::of(proto));
        counters.denied(direction, protocol).count(bytes);
        if protocol == Protocol::Icmp {
            counters.count_icmp(direction, false, kind(proto, icmp));
        }
    }

    /// What the frame is to be counted as that was decided on last, if that was to have it wait, or to hand it to the host.
    pub(crate) fn uncounted(&self) -> Uncounted {
        self.uncounted
    }

    /// Counts a frame that has waited, and leaves now.
    pub(crate) fn count_sent(&self, uncounted: Uncounted, bytes: usize) {
        let Uncounted {
            mut account,
            proto,
            icmp,
        } = uncounted;
        account.group = self.tally.still(account.group);
        self.count_allowed(account, proto, icmp, bytes);
    }

    /// Counts the frame that was decided on last, and has been handed to the host.
    pub(crate) fn count_local(&self, bytes: usize) {
        let Uncounted {
            account,
            proto,
            icmp,
        } = self.uncounted;
        self.count_allowed(account, proto, icmp, bytes);
        self.counters.count_verdict(Verdict::Local, bytes);
    }

    /// Counts a frame that is dropped before or after [`process`](Self::process).
    pub(crate) fn refuse(&mut self, from: Option<PortId>, reason: DropReason, frame: &[u8]) {
        if !self.taps.is_empty() {
            self.note_refused(from, reason, frame);
        }
        let bytes = frame.len();
        if fragment::is_of_fragments(reason) {
            self.counters.fragments.inc();
        }
        self.counters.count_verdict(Verdict::Drop(reason), bytes);
    }
}

/// Family, type and code of an ICMP message.
fn kind(proto: u8, (icmp_type, code): (u8, u8)) -> (bool, u8, u8) {
    (proto == proto::ICMP6, icmp_type, code)
}
