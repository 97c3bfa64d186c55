//! What is logged and how: `NEUWERK_LOG_LEVEL`, `RUST_LOG`, `NEUWERK_LOG_FORMAT`. The only environment variables that
//! the program reads.

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

/// A variable that holds something else than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("NEUWERK_LOG_FORMAT: {0:?} is not one of plain, json")]
pub struct UnknownFormat(String);

impl Log {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Log, UnknownFormat> {
        Log::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Log, UnknownFormat> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let format = match set("NEUWERK_LOG_FORMAT").as_deref() {
            None | Some("plain") => Format::Plain,
            Some("json") => Format::Json,
            Some(other) => return Err(UnknownFormat(other.to_owned())),
        };
        let filter = set("NEUWERK_LOG_LEVEL")
            .or_else(|| set("RUST_LOG"))
            .unwrap_or_else(|| "info".into());
        Ok(Log { filter, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            .map_err(|value| UnknownFormat(value.into()));
        assert_eq!(log, expected);
    }

    #[test]
    fn the_products_own_variable_wins_over_the_general_one() {
        check(&[], Ok(("info", Format::Plain)));
        check(&[("RUST_LOG", "debug")], Ok(("debug", Format::Plain)));
        check(
            &[("RUST_LOG", "debug"), ("NEUWERK_LOG_LEVEL", "warn")],
            Ok(("warn", Format::Plain)),
        );
        check(
            &[("NEUWERK_LOG_LEVEL", " "), ("NEUWERK_LOG_FORMAT", "json")],
            Ok(("info", Format::Json)),
        );
        check(&[("NEUWERK_LOG_FORMAT", "xml")], Err("xml"));
    }
}
