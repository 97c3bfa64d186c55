//! The figures, as a table for people and as JSON.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

/// What is wanted of a figure.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each bench wants something else")]
pub(crate) enum Target {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
}

/// One line of the result.
pub(crate) struct Line {
    /// What was measured.
    pub(crate) what: String,
    /// The engine's figure.
    pub(crate) value: f64,
    /// The yardstick's; not a number if there is none.
    pub(crate) yardstick: f64,
    /// The unit of both.
    pub(crate) unit: &'static str,
    /// What is wanted: of the ratio, or of the value if there is no yardstick. None for what is only told.
    pub(crate) target: Option<Target>,
}

impl Line {
    /// A figure that is wanted for itself.
    #[allow(dead_code, reason = "not every bench has one")]
    pub(crate) fn alone(what: String, value: f64, unit: &'static str, target: Target) -> Self {
        Self {
            what,
            value,
            yardstick: f64::NAN,
            unit,
            target: Some(target),
        }
    }

    fn ratio(&self) -> f64 {
        self.value / self.yardstick
    }

    fn met(&self) -> Option<bool> {
        let judged = if self.yardstick.is_nan() {
            self.value
        } else {
            self.ratio()
        };
        self.target.map(|target| match target {
            Target::AtLeast(least) => judged >= least,
            Target::AtMost(most) => judged <= most,
        })
    }

    fn to_json(&self) -> Value {
        let known = |number: f64| Some(number).filter(|number| !number.is_nan());
        json!({
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "yardstick": known(self.yardstick),
            "ratio": known(self.ratio()),
            "target": self.target.map(|(Target::AtLeast(target) | Target::AtMost(target))| target),
            "met": self.met(),
        })
    }

    fn to_text(&self) -> String {
        let known = |number: f64| match number {
            number if number.is_nan() => "-".to_owned(),
            number => format!("{number:.2}"),
        };
        let target = match self.target {
            Some(Target::AtLeast(target)) => format!("≥ {target}"),
            Some(Target::AtMost(target)) => format!("≤ {target}"),
            None => String::new(),
        };
        let verdict = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        format!(
            "{:<56} {:>10} {:>10} {:<10} {:>6} {target:>8} {verdict}",
            self.what,
            known(self.value),
            known(self.yardstick),
            self.unit,
            known(self.ratio()),
        )
    }
}

/// The middle of a few measurements.
#[allow(dead_code, reason = "not every bench repeats")]
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the table under the names of the two that are compared, and writes `target/bench/NAME.json`.
pub(crate) fn publish(name: &str, compared: [&str; 2], lines: &[Line]) -> Result<()> {
    let [ours, yardstick] = compared;
    println!(
        "\n{:<56} {ours:>10} {yardstick:>10} {:<10} {:>6} {:>8}",
        name, "unit", "ratio", "target"
    );
    for line in lines {
        println!("{}", line.to_text());
    }
    let directory = directory();
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.json"));
    let result: Vec<Value> = lines.iter().map(Line::to_json).collect();
    fs::write(&path, format!("{:#}\n", json!(result)))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// `bench` where cargo builds.
fn directory() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    built.join("bench")
}
