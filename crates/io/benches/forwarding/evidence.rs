//! Whether an attack has taken place: what the node and the sink must have seen of it, and not of anything else.

use anyhow::{Result, ensure};
use engine::DropReason;

use crate::forwarder::Account;

/// Why pieces of datagrams are dropped.
pub(crate) const FRAGMENTS: [DropReason; 3] = [
    DropReason::Fragment,
    DropReason::FragmentOverlap,
    DropReason::FragmentLimit,
];
/// Why else packets are dropped under attack alone.
const REFUSALS: [DropReason; 7] = [
    DropReason::PolicyDenied,
    DropReason::FlowTableFull,
    DropReason::SourceGroupFull,
    DropReason::SourceFull,
    DropReason::SourceRate,
    DropReason::NatTableFull,
    DropReason::NatPortsExhausted,
];

/// What an attacker has sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    /// Of these, while the victims were measured, and how long that was.
    pub(crate) paced: u64,
    pub(crate) seconds: f64,
}

impl Sent {
    /// The rate while the victims were measured.
    pub(crate) fn per_s(&self) -> f64 {
        self.paced as f64 / self.seconds
    }
}

/// What was seen of an attack.
pub(crate) struct Seen<'a> {
    pub(crate) sent: Sent,
    /// What arrived behind the node.
    pub(crate) passed: u64,
    pub(crate) account: &'a Account,
}

impl Seen<'_> {
    /// What came faster than the node took it in was lost at its port, and counted there.
    fn lost(&self) -> u64 {
        self.account.ports[0].rx_dropped
    }

    /// What holds for every attack, and then what its name says.
    pub(crate) fn check(
        &self,
        rate: u64,
        flows: u64,
        took_place: fn(&Seen) -> Result<()>,
    ) -> Result<()> {
        let Seen { sent, account, .. } = self;
        let attained = sent.per_s();
        ensure!(
            attained >= rate as f64 * 0.9,
            "the attack came at {attained:.0} packets/s instead of {rate}"
        );
        let dropped: u64 = account.drops.iter().map(|(_, packets)| packets).sum();
        let had = self.passed + dropped + self.lost();
        ensure!(
            had * 10 > sent.packets * 9,
            "of {} frames of the attack the node has had {had}",
            sent.packets
        );
        // Some of the victims' may have ended since.
        ensure!(
            account.active * 100 >= flows * 99,
            "{} flows were in the table at the end, of {flows} that the attack keeps there",
            account.active
        );
        took_place(self)
    }

    /// Each frame is of a flow that is not there, and there is no room for it unless another gives way. Where clients and
    /// ports come again, after 832,040 frames, theirs have given way.
    pub(crate) fn opens_flows(&self) -> Result<()> {
        let Account {
            opened, evicted, ..
        } = self.account;
        ensure!(
            opened * 10 >= self.passed * 9,
            "{opened} flows were opened by the {} frames that passed",
            self.passed
        );
        // As many as the table or the ports have room for found a free place; of what came while victims were measured, each
        // that the node took in found none.
        ensure!(
            evicted * 4 >= self.sent.paced.saturating_sub(self.lost()) && *evicted > 0,
            "{evicted} flows gave way to the {} frames sent while victims were measured",
            self.sent.paced
        );
        Ok(())
    }

    /// Most frames are of flows that are there.
    pub(crate) fn uses_flows_again(&self) -> Result<()> {
        let opened = self.account.opened;
        ensure!(
            self.passed >= opened * 2,
            "{opened} flows were opened, and {} frames passed: too few to use each again",
            self.passed
        );
        Ok(())
    }

    /// The node itself has dropped the frames, for one of these reasons.
    pub(crate) fn is_refused(&self, reasons: &[DropReason]) -> Result<()> {
        let (sent, lost) = (self.sent.packets, self.lost());
        let dropped = self.account.dropped(reasons);
        ensure!(
            dropped * 10 >= sent.saturating_sub(lost) * 9 && dropped * 2 >= sent,
            "of {sent} frames {dropped} were dropped for {}, {lost} lost before the node",
            names(reasons)
        );
        Ok(())
    }
}

/// That nothing looks like an attack while there is none.
pub(crate) fn check_calm(passed: u64, account: &Account) -> Result<()> {
    ensure!(
        passed == 0,
        "{passed} frames of an attack arrived while nobody attacked"
    );
    ensure!(
        account.evicted == 0,
        "{} flows gave way to others while nobody attacked",
        account.evicted
    );
    for reasons in [&FRAGMENTS[..], &REFUSALS] {
        let dropped = account.dropped(reasons);
        ensure!(
            dropped == 0,
            "{dropped} packets were dropped for {} while nobody attacked",
            names(reasons)
        );
    }
    Ok(())
}

fn names(reasons: &[DropReason]) -> String {
    let names: Vec<_> = reasons.iter().map(|reason| reason.name()).collect();
    names.join(" or ")
}
