//! Liveness and readiness.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the `cluster` check's detail begins on a node that was removed from its cluster; what to do follows.
pub const REMOVED: &str = "this node was removed from the cluster";

/// Answer of `GET /health`: the process lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: String,
}

/// Answer of `GET /ready` (200 or 503) and `GET /ready/traffic`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Whether every check is ok.
    pub ready: bool,
    /// The checks, in a fixed order.
    pub checks: Vec<Check>,
}

impl Ready {
    /// Ready when every check is ok.
    pub fn of(checks: Vec<Check>) -> Self {
        Self {
            ready: checks.iter().all(|check| check.ok),
            checks,
        }
    }

    /// The checks that are not ok.
    pub fn failing(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.ok)
    }
}

/// One thing that must be well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Its name, for example `policy_replication`.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// Why it is not, or what it stands at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ok: bool) -> Check {
        Check {
            name: name.into(),
            ok,
            detail: None,
        }
    }

    #[test]
    fn ready_means_every_check() {
        assert!(Ready::of(vec![check("a", true), check("b", true)]).ready);
        let not = Ready::of(vec![check("a", true), check("b", false)]);
        assert!(!not.ready);
        assert_eq!(
            not.failing().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["b"]
        );
    }
}
