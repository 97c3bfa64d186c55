//! Checks for people and scripts: what was looked at, what came of it, and one exit code for all.

use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;
use crate::print;

/// What came of a check, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It is well.
    Ok,
    /// It could not be looked at from here.
    Skipped,
    /// It works and should be better.
    Warning,
    /// It does not work.
    Failed,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found; with a remedy where it is not well.
    pub(crate) detail: String,
}

impl Finding {
    pub(crate) fn new(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
        Finding {
            check,
            verdict,
            detail: detail.into(),
        }
    }
}

/// Exit code of warnings.
const WARNINGS: u8 = 4;
/// Exit code of failed checks.
const FAILED: u8 = 5;

/// Prints the findings, and says what to exit with.
pub(crate) fn report(findings: &[Finding], json: bool) -> Result<ExitCode, Failure> {
    if json {
        print::json(&findings)?;
    } else {
        print::to_stdout(&table(findings))?;
    }
    Ok(ExitCode::from(exit_code(findings)))
}

fn exit_code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.verdict).max() {
        None | Some(Verdict::Ok | Verdict::Skipped) => 0,
        Some(Verdict::Warning) => WARNINGS,
        Some(Verdict::Failed) => FAILED,
    }
}

fn table(findings: &[Finding]) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Skipped => "skipped",
                Verdict::Warning => "WARNING",
                Verdict::Failed => "FAILED",
            };
            vec![verdict.into(), finding.check.into(), finding.detail.clone()]
        })
        .collect();
    print::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let code = |verdicts: &[Verdict]| {
            let findings: Vec<Finding> = verdicts
                .iter()
                .map(|verdict| Finding::new("disk", *verdict, ""))
                .collect();
            exit_code(&findings)
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[Verdict::Ok, Verdict::Skipped]), 0);
        assert_eq!(code(&[Verdict::Warning, Verdict::Ok]), 4);
        assert_eq!(code(&[Verdict::Failed, Verdict::Warning]), 5);
    }
}
