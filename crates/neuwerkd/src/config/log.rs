//! What is logged and how: `NEUWERK_LOG_LEVEL`, `RUST_LOG`, `NEUWERK_LOG_FORMAT`. The only environment variables that
//! are settings.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level (`info`), or directives by target (`info,engine=debug`).
    pub filter: String,
    /// Shape of a line.
    pub format: Format,
}

/// Why the log cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A format that there is not.
    #[error("NEUWERK_LOG_FORMAT: {0:?} is not one of plain, json")]
    Format(String),
    /// A filter that cannot be read.
    #[error(
        "NEUWERK_LOG_LEVEL or RUST_LOG: {filter:?} is neither a level (error, warn, info, debug, trace) \
         nor a list of target=level: {reason}"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has a log already.
    #[error("the log was set up before")]
    Twice,
}

impl Log {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Log, LogError> {
        Log::from_variables(|name| std::env::var(name).ok())
    }

    /// Sends the process's log to standard error from now on, and remembers its end. To be called once.
    pub fn install(&self) -> Result<RecentLog, LogError> {
        let recent = RecentLog::default();
        let writer = recent.clone();
        let lines = tracing_subscriber::fmt()
            .with_env_filter(self.env_filter()?)
            .with_writer(move || writer.clone());
        let installed = match self.format {
            Format::Plain => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
            Format::Json => lines.json().flatten_event(true).try_init(),
        };
        installed.map_err(|_| LogError::Twice)?;
        Ok(recent)
    }

    fn env_filter(&self) -> Result<EnvFilter, LogError> {
        // A bare word that is no level would be taken for a target of which all is logged.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let is_bare = |part: &&str| !part.contains(['=', '[']);
        let unknown = self
            .filter
            .split(',')
            .map(str::trim)
            .filter(is_bare)
            .find(|word| !levels.contains(&word.to_ascii_lowercase().as_str()));
        let refused = |reason: String| LogError::Filter {
            filter: self.filter.clone(),
            reason,
        };
        if let Some(word) = unknown {
            return Err(refused(format!("there is no level {word:?}")));
        }
        EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|error| refused(error.to_string()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Log, LogError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let format = match set("NEUWERK_LOG_FORMAT").as_deref() {
            None | Some("plain") => Format::Plain,
            Some("json") => Format::Json,
            Some(other) => return Err(LogError::Format(other.to_owned())),
        };
        let filter = set("NEUWERK_LOG_LEVEL")
            .or_else(|| set("RUST_LOG"))
            .unwrap_or_else(|| "info,openraft=error".into());
        Ok(Log { filter, format })
    }
}

/// The end of the log, for support archives: a node without a journal has its last words, too.
#[derive(Clone, Default)]
pub struct RecentLog(Arc<Mutex<VecDeque<u8>>>);

/// Bytes of the log that are remembered.
const RECENT_BYTES: usize = 512 * 1024;

impl RecentLog {
    /// Its whole lines.
    pub fn lines(&self) -> String {
        let kept = self.kept();
        let is_cut = kept.len() >= RECENT_BYTES;
        let bytes: Vec<u8> = kept.iter().copied().collect();
        drop(kept);
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once('\n') {
            Some((_, whole)) if is_cut => whole.to_owned(),
            _ => text.into_owned(),
        }
    }

    fn remember(&self, bytes: &[u8]) {
        let mut kept = self.kept();
        let bytes = &bytes[bytes.len().saturating_sub(RECENT_BYTES)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(RECENT_BYTES);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for RecentLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.remember(bytes);
        std::io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_remembered_in_whole_lines() {
        let log = RecentLog::default();
        log.remember(b"first\n");
        assert_eq!(log.lines(), "first\n");
        let line = [b"x".repeat(1_000), b"\n".to_vec()].concat();
        for _ in 0..600 {
            log.remember(&line);
        }
        let lines = log.lines();
        assert!(lines.len() < RECENT_BYTES && lines.len() > RECENT_BYTES - 2_000);
        assert!(lines.lines().all(|line| line.len() == 1_000));
    }

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Result<(&str, Format), &str>) {
        let found = variables.to_vec();
        let log = Log::from_variables(|name| {
            found
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        });
        let expected = expected
            .map(|(filter, format)| Log {
                filter: filter.into(),
                format,
            })
            .map_err(|value| LogError::Format(value.into()));
        assert_eq!(log, expected);
    }

    #[test]
    fn the_products_own_variable_wins_over_the_general_one() {
        check(&[], Ok(("info,openraft=error", Format::Plain)));
        check(&[("RUST_LOG", "debug")], Ok(("debug", Format::Plain)));
        check(
            &[("RUST_LOG", "debug"), ("NEUWERK_LOG_LEVEL", "warn")],
            Ok(("warn", Format::Plain)),
        );
        check(
            &[("NEUWERK_LOG_LEVEL", " "), ("NEUWERK_LOG_FORMAT", "json")],
            Ok(("info,openraft=error", Format::Json)),
        );
        check(&[("NEUWERK_LOG_FORMAT", "xml")], Err("xml"));
    }

    #[test]
    fn filters_are_levels_or_levels_by_target() {
        let filter = |text: &str| {
            Log {
                filter: text.into(),
                format: Format::Plain,
            }
            .env_filter()
        };
        for good in [
            "info",
            "WARN",
            "off",
            "info,engine=debug",
            "neuwerkd::http=trace",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["loud", "info,enginedebug", "engine=loud"] {
            assert!(matches!(filter(bad), Err(LogError::Filter { .. })), "{bad}");
        }
    }
}
