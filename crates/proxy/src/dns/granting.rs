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

/// What became of it.
pub struct Granted {
    /// For how long the same answer may be given to clients of the same group without asking again, in milliseconds.
    pub for_ms: u64,
    /// Ends when the answer may leave; none: at once.
    pub wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Grants clients what they are told.
pub trait Granting: Send + Sync {
    /// Sees to it that packets to these addresses are judged by the rules that the name matches.
    fn grant(&self, told: &Told<'_>) -> Granted;

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
