//! Why a verb did not do what it was asked, as it is printed once, at the edge.

use std::error::Error;
use std::fmt;

use neuwerkd::config::Invalid;

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration or an argument is wrong.
    Usage(String),
    /// A node refused, was not reached, or something else failed.
    Failed(String),
}

impl Failure {
    /// What the process exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
        }
    }

    /// A failure to do something with a file.
    pub(crate) fn file(path: &std::path::Path, error: &std::io::Error) -> Failure {
        Failure::Failed(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Usage(text) | Failure::Failed(text)) = self;
        write!(f, "neuwerk: {text}")
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Failure {
        let count = match invalid.problems.len() {
            1 => "one problem".to_owned(),
            count => format!("{count} problems"),
        };
        let lines: Vec<String> = invalid
            .problems
            .iter()
            .map(|problem| format!("\n  {}: {}", problem.at, problem.reason))
            .collect();
        Failure::Usage(format!("the configuration has {count}:{}", lines.concat()))
    }
}

impl From<api::client::Error> for Failure {
    fn from(error: api::client::Error) -> Failure {
        let mut text = chain(&error);
        if let api::client::Error::Refused(refused) = &error {
            for problem in &refused.body.errors {
                let place = if problem.path.is_empty() {
                    "document"
                } else {
                    &problem.path
                };
                text.push_str(&format!("\n  {place}: {}", problem.reason));
                if let Some(suggestion) = &problem.suggestion {
                    text.push_str(&format!("; did you mean {suggestion}?"));
                }
            }
            if let Some(etag) = &refused.etag {
                text.push_str(&format!("\n  its tag is now {etag}"));
            }
            if let Some(key) = &refused.body.idempotency_key {
                text.push_str(&format!(
                    "\n  try again safely with --idempotency-key {key}"
                ));
            }
            if let Some(wait) = refused.retry_after {
                text.push_str(&format!("\n  try again in {} s", wait.as_secs()));
            }
        }
        if matches!(error, api::client::Error::Endpoint(_)) {
            Failure::Usage(text)
        } else {
            Failure::Failed(text)
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
