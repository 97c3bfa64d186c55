//! `policy.*`: what holds before a policy was ever written, and what counts as inside.

use std::time::Duration;

use ipnet::IpNet;

use super::key::{Part, section};
use super::value::choice;

section! {
    /// What holds before a policy was ever written, and what counts as inside.
    Policy, Part::Node;

    /// Default policy of revision 0 in a fresh store. It has no say afterwards: the replicated policy has.
    default: PolicyDefault = PolicyDefault::Deny, flag("default-policy");
    /// Prefixes that count as inside on a node with one arm, beside the port's own and the policy's source groups (groups that have the lowest and the highest address of a family say nothing about it, one by itself or several together).
    internal_cidr: Vec<IpNet> = Vec::new(), flag("internal-cidr");
    /// How long a node that no leader reaches keeps enforcing before it denies everything, counted from the process's
    /// start if none has reached it since. Unset: for ever.
    max_staleness: Option<Duration> = None;
}

choice! {
    /// What happens to traffic that no group decides.
    PolicyDefault {
        /// It passes.
        Allow = "allow",
        /// It is dropped.
        Deny = "deny",
    }
}

impl Policy {
    /// Clears host bits, so that `10.1.2.3/8` means `10.0.0.0/8`.
    pub(super) fn normalise(&mut self) {
        for cidr in &mut self.internal_cidr {
            *cidr = cidr.trunc();
        }
    }
}
