//! The figures: each beside the yardstick's and the target, as a table and as JSON, in the shape of the forwarding
//! bench's report.

use serde_json::{Value, json};

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// It is only told.
    None,
    /// At most this.
    AtMost(f64),
    /// At most this times the yardstick's.
    RatioAtMost(f64),
    /// At least this times the yardstick's.
    RatioAtLeast(f64),
}

/// One line of the result.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// etcd's, where it was measured in the same run.
    pub(crate) yardstick: Option<f64>,
    pub(crate) target: Target,
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        self.yardstick.map(|yardstick| self.value / yardstick)
    }

    /// None: nothing is wanted of it.
    pub(crate) fn met(&self) -> Option<bool> {
        match self.target {
            Target::None => None,
            Target::AtMost(limit) => Some(self.value <= limit),
            Target::RatioAtMost(limit) => Some(self.ratio().is_some_and(|ratio| ratio <= limit)),
            Target::RatioAtLeast(limit) => Some(self.ratio().is_some_and(|ratio| ratio >= limit)),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let target = match self.target {
            Target::None => None,
            Target::AtMost(limit) | Target::RatioAtMost(limit) | Target::RatioAtLeast(limit) => {
                Some(limit)
            }
        };
        json!({
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "yardstick": self.yardstick,
            "ratio": self.ratio(),
            "target": target,
            "met": self.met(),
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        let target = match self.target {
            Target::None => String::new(),
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::RatioAtMost(limit) => format!("ratio <= {limit}"),
            Target::RatioAtLeast(limit) => format!("ratio >= {limit}"),
        };
        let verdict = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        format!(
            "{:<58} {:>10.2} {:>10} {:<9} {:>6}  {:<13} {}",
            self.what,
            self.value,
            number(self.yardstick),
            self.unit,
            number(self.ratio()),
            target,
            verdict
        )
    }
}

/// The heading over [`Line::to_text`].
pub(crate) fn heading() -> String {
    format!(
        "{:<58} {:>10} {:>10} {:<9} {:>6}  {}",
        "", "neuwerk", "etcd", "unit", "ratio", "target"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_held_against_its_own_kind_of_target() {
        check(2.0, Some(4.0), Target::RatioAtMost(0.5), Some(true));
        check(2.1, Some(4.0), Target::RatioAtMost(0.5), Some(false));
        check(4.0, Some(4.0), Target::RatioAtLeast(1.0), Some(true));
        check(3.9, Some(4.0), Target::RatioAtLeast(1.0), Some(false));
        check(3.0, None, Target::AtMost(3.0), Some(true));
        check(3.1, Some(9.0), Target::AtMost(3.0), Some(false));
        check(3.1, None, Target::RatioAtMost(1.0), Some(false));
        check(3.1, None, Target::None, None);
    }

    fn check(value: f64, yardstick: Option<f64>, target: Target, met: Option<bool>) {
        let line = Line {
            what: "x".into(),
            value,
            unit: "s",
            yardstick,
            target,
        };
        assert_eq!(line.met(), met, "{line:?}");
        assert_eq!(line.to_json()["met"], json!(met));
    }
}
