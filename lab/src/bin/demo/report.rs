//! What the demo shows while it runs, and the table at its end.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Width of the column that says what was checked.
const WIDTH: usize = 66;

/// The lines so far.
pub(crate) struct Report {
    begin: Instant,
    lines: Vec<Line>,
}

struct Line {
    what: String,
    figure: String,
    ok: bool,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            begin: Instant::now(),
            lines: Vec::new(),
        }
    }

    /// Says what comes next.
    pub(crate) fn step(&self, title: &str) {
        println!("\n[{:6.1} s] {title}", self.begin.elapsed().as_secs_f64());
    }

    /// Runs one check, shows its figure or why it failed, and keeps it for the table.
    pub(crate) fn check<F: Display>(&mut self, what: &str, check: impl FnOnce() -> Result<F>) {
        let (ok, figure) = match check() {
            Ok(figure) => (true, figure.to_string()),
            Err(error) => (false, format!("{error:#}")),
        };
        let line = Line {
            what: what.to_owned(),
            figure,
            ok,
        };
        println!("  {line}");
        self.lines.push(line);
    }

    /// Prints the table; whether every line held.
    pub(crate) fn conclude(&self) -> bool {
        println!("\n{:=<width$}", "", width = WIDTH + 30);
        for line in &self.lines {
            println!("{line}");
        }
        let failed = self.lines.iter().filter(|line| !line.ok).count();
        println!("{:=<width$}", "", width = WIDTH + 30);
        println!(
            "{} checks, {failed} failed, {:.0} s",
            self.lines.len(),
            self.begin.elapsed().as_secs_f64()
        );
        failed == 0
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.ok { "ok  " } else { "FAIL" };
        write!(f, "{mark}  {:<WIDTH$}  {}", self.what, self.figure)
    }
}

/// A duration as people read it.
pub(crate) fn span(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}
