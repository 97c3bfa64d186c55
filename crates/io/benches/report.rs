//! The figures: medians of the repetitions, as a table and as JSON.

use serde_json::{Value, json};

/// One line of the result.
pub(crate) struct Line {
    /// What was measured.
    pub(crate) what: String,
    /// The engine's median.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The kernel's median.
    pub(crate) yardstick: f64,
    /// The ratio that is wanted; none for what is only told.
    pub(crate) target: Option<f64>,
}

impl Line {
    fn ratio(&self) -> f64 {
        self.value / self.yardstick
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|target| self.ratio() >= target)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "yardstick": self.yardstick,
            "ratio": self.ratio(),
            "target": self.target,
            "met": self.met(),
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let verdict = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        format!(
            "{:<52} {:>10.2} {:>10.2} {:<12} {:>6.2} {}",
            self.what,
            self.value,
            self.yardstick,
            self.unit,
            self.ratio(),
            verdict
        )
    }
}

/// The heading over [`Line::to_text`].
pub(crate) fn heading() -> String {
    format!(
        "{:<52} {:>10} {:>10} {:<12} {:>6}",
        "median", "engine", "kernel", "unit", "ratio"
    )
}

/// The middle of a few measurements.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
