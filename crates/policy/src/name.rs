//! Host names in rules: exact names and wildcards, and the regular expressions of `dns_hostname`.
//!
//! Names are compared as DNS does (RFC 4343): ASCII case is ignored, a final dot means nothing.

use std::fmt;

use serde::ser::{Serialize, Serializer};

mod regex;
mod regex_set;
mod table;

pub use regex::{HostnameRegex, MAX_REGEX_BYTES, MAX_REGEX_TOTAL_BYTES, RegexError};
pub(crate) use regex::{RegexBudget, looks_at_both_ends, plain_name};
pub(crate) use regex_set::RegexSet;
pub(crate) use table::{Builder as NameTableBuilder, NameTable, earlier, lowest};

/// Longest name, in bytes, without the final dot (RFC 1035 section 2.3.4).
pub const MAX_NAME_BYTES: usize = 253;
/// Longest label, in bytes (RFC 1035 section 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// How far a pattern reaches below its base name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// `api.example.com`: that name only.
    Exact,
    /// `*.example.com`: exactly one more label.
    OneLabel,
    /// `**.example.com`: one or more labels.
    AnyDepth,
}

/// A name or a wildcard, in lower case and without the final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    reach: Reach,
    base: String,
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left.
    #[error("a name must not be empty")]
    Empty,
    /// A label is empty.
    #[error("a name has no empty label")]
    EmptyLabel,
    /// Longer than a name may be.
    #[error("a name has at most {MAX_NAME_BYTES} bytes")]
    TooLong,
    /// A label is longer than a label may be.
    #[error("a label has at most {MAX_LABEL_BYTES} bytes")]
    LabelTooLong,
    /// A wildcard elsewhere than at the front.
    #[error("a wildcard is the whole first label, `*.` or `**.`")]
    Wildcard,
    /// An international name in its Unicode form.
    #[error("an international name is written in its ASCII form (xn--…)")]
    NotAscii,
    /// A character that host names do not have.
    #[error("a name has letters, digits, `-` and `_` only, not {0:?}")]
    Character(char),
}

impl NamePattern {
    /// Reads `api.example.com`, `*.example.com` or `**.example.com`.
    ///
    /// # Errors
    /// [`NameError`] for what is none of them.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        let (reach, base) = if let Some(base) = text.strip_prefix("**.") {
            (Reach::AnyDepth, base)
        } else if let Some(base) = text.strip_prefix("*.") {
            (Reach::OneLabel, base)
        } else {
            (Reach::Exact, text)
        };
        let base = base.strip_suffix('.').unwrap_or(base);
        if base.is_empty() {
            return Err(NameError::Empty);
        }
        if base.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        for label in base.split('.') {
            check_label(label)?;
        }
        Ok(Self {
            reach,
            base: base.to_ascii_lowercase(),
        })
    }

    /// How far it reaches.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether it matches `name`, which is in lower case and without the final dot.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let above = name
            .strip_suffix(&self.base)
            .and_then(|rest| rest.strip_suffix('.'));
        match self.reach {
            Reach::Exact => name == self.base,
            Reach::OneLabel => above.is_some_and(|labels| !labels.contains('.')),
            Reach::AnyDepth => above.is_some(),
        }
    }

    /// The name, or what follows the wildcard.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }
}

fn check_label(label: &str) -> Result<(), NameError> {
    match label {
        "" => return Err(NameError::EmptyLabel),
        _ if label.contains('*') => return Err(NameError::Wildcard),
        _ if !label.is_ascii() => return Err(NameError::NotAscii),
        _ if label.len() > MAX_LABEL_BYTES => return Err(NameError::LabelTooLong),
        _ => {}
    }
    match label
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
    {
        Some(character) => Err(NameError::Character(character)),
        None => Ok(()),
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = match self.reach {
            Reach::Exact => "",
            Reach::OneLabel => "*.",
            Reach::AnyDepth => "**.",
        };
        write!(f, "{wildcard}{}", self.base)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        #[track_caller]
        fn check(text: &str, want: Result<&str, NameError>) {
            let got = NamePattern::parse(text).map(|p| p.to_string());
            assert_eq!(got, want.map(str::to_owned), "{text:?}");
        }
        check("API.Example.com.", Ok("api.example.com"));
        check("*.example.com", Ok("*.example.com"));
        check("**.example.com", Ok("**.example.com"));
        check(
            "_dmarc.xn--bcher-kva.example",
            Ok("_dmarc.xn--bcher-kva.example"),
        );
        check("com", Ok("com"));
        check("", Err(NameError::Empty));
        check(".", Err(NameError::Empty));
        check("*.", Err(NameError::Empty));
        check("*", Err(NameError::Wildcard));
        check("***.example.com", Err(NameError::Wildcard));
        check("api.*.example.com", Err(NameError::Wildcard));
        check("api*.example.com", Err(NameError::Wildcard));
        check("a..b", Err(NameError::EmptyLabel));
        check(".example.com", Err(NameError::EmptyLabel));
        check("bücher.example", Err(NameError::NotAscii));
        check("a b.example", Err(NameError::Character(' ')));
        check("https://example.com", Err(NameError::Character(':')));
        check(&"a".repeat(64), Err(NameError::LabelTooLong));
        check(&["a"; 128].join("."), Err(NameError::TooLong));
    }
}
