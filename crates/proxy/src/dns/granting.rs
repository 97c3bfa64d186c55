//! Letting clients reach what they are told, before they are told.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

/// What a client is about to be told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The id of the group that let it ask.
    pub group: &'a Arc<str>,
    /// Who asked.
    pub client: IpAddr,
    /// The name, as [`policy::Compiled::evaluate_name`] takes it.
    pub name: &'a str,
    /// The addresses in the answer.
    pub addresses: &'a [IpAddr],
    /// For how long the client may believe it, in seconds.
    pub ttl_s: u32,
}

/// A name that the policy denies to a client, or would deny if it were not in audit mode.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    /// Who asked.
    pub client: IpAddr,
    /// The name, as [`policy::Compiled::evaluate_name`] takes it.
    pub name: &'a str,
    /// The id of the group that decided; none if no group has the client.
    pub group: Option<&'a str>,
    /// The id of the rule that decided; none if no rule by name matched.
    pub rule: Option<&'a str>,
    /// The revision of the policy that decided.
    pub revision: u64,
    /// The client is answered all the same.
    pub would_deny: bool,
}

/// What became of it.
pub struct Granted {
    /// For how long the same answer may be given to clients of the same group without asking again, in milliseconds.
    pub for_ms: u64,
    /// Ends when the answer may leave; none: at once.
    pub wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Grants clients what they are told, and hears of what they are not to be told.
pub trait Granting: Send + Sync {
    /// Sees to it that packets to these addresses are judged by the rules that the name matches.
    fn grant(&self, told: &Told<'_>) -> Granted;

    /// Hears of what is denied, before that is answered. May not block.
    fn denied(&self, _denied: &Denied<'_>) {}

    /// Changes when something has ended before the time that [`Granted`] said.
    fn epoch(&self) -> u64 {
        0
    }
}

/// Grants nothing, and lets every answer leave: for policies without rules by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGrants;

impl Granting for NoGrants {
    fn grant(&self, _told: &Told<'_>) -> Granted {
        Granted {
            for_ms: u64::MAX,
            wait: None,
        }
    }
}
