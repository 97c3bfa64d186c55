//! What is wrong with a document: every problem at once, each with its path, a reason and, where
//! something known is near, a suggestion.
//!
//! Paths are kept as a chain of borrowed segments while the decoder walks the tree and are only
//! written out when there is something to report.

use std::fmt::{self, Write as _};

/// Problems listed by name; what is beyond them is only counted, in one last entry.
pub const MAX_PROBLEMS: usize = 1_000;

/// One problem of a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where, e.g. `source_groups[2].rules[0].match.dst_ports[1]`; empty for the document as a whole.
    pub path: String,
    /// What is wrong, as a clause without a full stop.
    pub reason: String,
    /// What was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str("document")?;
        } else {
            f.write_str(&self.path)?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, " (did you mean {suggestion}?)")?;
        }
        Ok(())
    }
}

/// A document that was refused. Displays one problem a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// Everything that is wrong with it, in the order of the document; at least one and at most
    /// [`MAX_PROBLEMS`] + 1 entries.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Collects problems up to [`MAX_PROBLEMS`] and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    listed: Vec<Problem>,
    beyond: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, path: &Path<'_>, reason: impl Into<String>) {
        self.push(path, reason.into(), None);
    }

    pub(crate) fn add_with(
        &mut self,
        path: &Path<'_>,
        reason: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.push(path, reason.into(), suggestion);
    }

    fn push(&mut self, path: &Path<'_>, reason: String, suggestion: Option<String>) {
        if self.listed.len() < MAX_PROBLEMS {
            self.listed.push(Problem {
                path: path.to_string(),
                reason,
                suggestion,
            });
        } else {
            self.beyond += 1;
        }
    }

    pub(crate) fn into_result<T>(mut self, value: Option<T>) -> Result<T, Invalid> {
        if self.beyond > 0 {
            self.listed.push(Problem {
                path: String::new(),
                reason: format!("{} more problems are not listed", self.beyond),
                suggestion: None,
            });
        }
        match value {
            Some(value) if self.listed.is_empty() => Ok(value),
            _ => {
                debug_assert!(!self.listed.is_empty(), "no value and no reason for it");
                Err(Invalid {
                    problems: self.listed,
                })
            }
        }
    }
}

impl Invalid {
    /// A single problem of the document as a whole.
    pub(crate) fn whole(reason: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem {
                path: String::new(),
                reason: reason.into(),
                suggestion: None,
            }],
        }
    }
}

/// A place in the document, as a chain towards the root.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => {
                let plain = !key.is_empty()
                    && key
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                let shown: String = key.chars().take(64).collect();
                match (parent, plain) {
                    (_, false) => write!(f, "{parent}[{shown:?}]"),
                    (Path::Root, true) => f.write_str(&shown),
                    (_, true) => write!(f, "{parent}.{shown}"),
                }
            }
        }
    }
}

/// The known word nearest to `given`, if it is near enough to be what was meant.
pub(crate) fn nearest(given: &str, known: &[&str]) -> Option<String> {
    if given.len() > 64 {
        return None;
    }
    let given = given.to_ascii_lowercase();
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&given, word), word))
        .filter(|(distance, word)| *distance <= 1 + word.len().min(given.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| format!("`{word}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_document() {
        let root = Path::Root;
        let groups = root.key("source_groups");
        let group = groups.index(2);
        let headers = group.key("exact");
        assert_eq!(root.to_string(), "");
        assert_eq!(group.to_string(), "source_groups[2]");
        assert_eq!(
            headers.key("a b").to_string(),
            "source_groups[2].exact[\"a b\"]"
        );
        assert_eq!(headers.key("").to_string(), "source_groups[2].exact[\"\"]");
    }

    #[test]
    fn near_misses_find_their_word() {
        #[track_caller]
        fn check(given: &str, want: Option<&str>) {
            let known = ["dst_ports", "dst_cidrs", "proto", "allow", "deny"];
            assert_eq!(nearest(given, &known).as_deref(), want);
        }
        check("dst_port", Some("`dst_ports`"));
        check("DST_PORTS", Some("`dst_ports`"));
        check("protcol", Some("`proto`"));
        check("protocol", None);
        check("alow", Some("`allow`"));
        check("permit", None);
        check("", None);
        check(&"x".repeat(100), None);
    }

    #[test]
    fn problems_beyond_the_limit_are_counted() {
        let mut problems = Problems::default();
        for i in 0..MAX_PROBLEMS + 5 {
            problems.add(&Path::Root.index(i), "no");
        }
        let invalid = problems.into_result(Some(())).unwrap_err();
        assert_eq!(invalid.problems.len(), MAX_PROBLEMS + 1);
        assert_eq!(
            invalid.problems.last().map(ToString::to_string).as_deref(),
            Some("document: 5 more problems are not listed")
        );
    }
}
