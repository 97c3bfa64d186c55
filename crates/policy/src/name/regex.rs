//! The regular expressions of the document: checked against limits when it is read, compiled for
//! whole names.
//!
//! What is matched is ASCII, so `\w`, `\d`, `\s`, `.` and ignoring case mean their ASCII selves.
//! That keeps automata small; each one and all of a document together are bounded, because a few
//! bytes like `(a{1000}){1000}` ask for gigabytes.

use regex_automata::meta;
use regex_automata::nfa::thompson::NFA;
use regex_automata::util::syntax;

/// Longest regular expression, in bytes.
pub const MAX_REGEX_BYTES: usize = 4_096;
/// Most memory for the automaton of one regular expression, in bytes.
const MAX_AUTOMATON_BYTES: usize = 256 << 10;
/// Most memory for the automata of all regular expressions of a document, in bytes.
pub const MAX_REGEX_TOTAL_BYTES: usize = 256 << 20;

/// Why a regular expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// Nothing to match.
    #[error("a regular expression must not be empty")]
    Empty,
    /// The text itself is too long.
    #[error("a regular expression has at most {MAX_REGEX_BYTES} bytes")]
    TooLong,
    /// Not a regular expression.
    #[error("not a regular expression: {0}")]
    Syntax(String),
    /// Its automaton needs more memory than one may have.
    #[error("this regular expression needs more than {MAX_AUTOMATON_BYTES} bytes of memory")]
    TooLarge,
    /// The document's regular expressions need more memory than they may have together.
    #[error(
        "with this one the document's regular expressions need more than \
         {MAX_REGEX_TOTAL_BYTES} bytes of memory"
    )]
    TooManyTogether,
}

pub(super) fn syntax() -> syntax::Config {
    syntax::Config::new()
        .case_insensitive(true)
        .unicode(false)
        .utf8(false)
        .nest_limit(64)
}

/// Checks the regular expressions of one document against what they may need together.
#[derive(Debug)]
pub(crate) struct RegexBudget {
    left_bytes: usize,
}

impl Default for RegexBudget {
    fn default() -> Self {
        Self {
            left_bytes: MAX_REGEX_TOTAL_BYTES,
        }
    }
}

impl RegexBudget {
    /// Whether `pattern` is a regular expression within the limits.
    pub(crate) fn check(&mut self, pattern: &str) -> Result<(), RegexError> {
        if pattern.is_empty() {
            return Err(RegexError::Empty);
        }
        if pattern.len() > MAX_REGEX_BYTES {
            return Err(RegexError::TooLong);
        }
        // By itself first: what only parses once it is wrapped would escape its wrapping.
        syntax::parse_with(pattern, &syntax()).map_err(|e| RegexError::Syntax(one_line(&e)))?;
        let limit = MAX_AUTOMATON_BYTES.min(self.left_bytes);
        let nfa = NFA::compiler()
            .syntax(syntax())
            .configure(NFA::config().utf8(false).nfa_size_limit(Some(limit)))
            .build(&whole(pattern))
            .map_err(|e| match e.size_limit() {
                Some(MAX_AUTOMATON_BYTES) => RegexError::TooLarge,
                Some(_) => RegexError::TooManyTogether,
                None => RegexError::Syntax(one_line(&e)),
            })?;
        self.left_bytes = self.left_bytes.saturating_sub(nfa.memory_usage());
        Ok(())
    }
}

/// The parser's messages draw the pattern over several lines; the last one says what is wrong.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim().trim_start_matches("error: ").to_owned()
}

pub(super) fn whole(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

/// A compiled `dns_hostname`: matches whole names, ASCII case ignored.
#[derive(Debug, Clone)]
pub struct HostnameRegex(meta::Regex);

impl HostnameRegex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`RegexError`] if it is none, or beyond the limits for a single one.
    pub fn compile(pattern: &str) -> Result<Self, RegexError> {
        RegexBudget::default().check(pattern)?;
        meta::Regex::builder()
            .syntax(syntax())
            .configure(
                meta::Config::new()
                    .utf8_empty(false)
                    .nfa_size_limit(Some(2 * MAX_AUTOMATON_BYTES))
                    .hybrid_cache_capacity(MAX_AUTOMATON_BYTES),
            )
            .build(&whole(pattern))
            .map(Self)
            .map_err(|e| RegexError::Syntax(one_line(&e)))
    }

    /// Whether it matches all of `name`, which is without the final dot.
    #[must_use]
    pub fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

/// The name, if the pattern is nothing but one name with its dots escaped or not.
pub(crate) fn plain_name(pattern: &str) -> Option<String> {
    let inner = pattern.strip_prefix('^').unwrap_or(pattern);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    let name = inner.replace(r"\.", ".");
    let plain = name.contains('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    plain.then_some(name)
}

/// Whether the pattern itself already holds on to both ends of the name, so that matching the
/// whole name does not narrow it.
pub(crate) fn looks_at_both_ends(pattern: &str) -> bool {
    syntax::parse_with(pattern, &syntax()).is_ok_and(|hir| {
        let properties = hir.properties();
        properties.look_set_prefix().contains_anchor_haystack()
            && properties.look_set_suffix().contains_anchor_haystack()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_match() {
        #[track_caller]
        fn check(pattern: &str, name: &str, want: bool) {
            let regex = HostnameRegex::compile(pattern).unwrap();
            assert_eq!(regex.is_match(name), want, "{pattern} on {name}");
        }
        check(r"api\.example\.com", "api.example.com", true);
        check(r"api\.example\.com", "API.Example.COM", true);
        check(r"api\.example\.com", "api.example.com.evil.net", false);
        check(r"api\.example\.com", "my-api.example.com", false);
        check("api.example.com", "api-example.com", true);
        check("api.example.com", "api-example.com.evil.net", false);
        check(r"^(.*\.)?example\.com$", "a.b.example.com", true);
        check("a|b", "b", true);
        check("a|ab", "ab", true);
        check("a|b", "ab", false);
        check("(?m)^a$", "a\nb", false);
        check(r"\w+", "a1_", true);
    }

    #[test]
    fn what_is_refused() {
        #[track_caller]
        fn check(pattern: &str, want: &str) {
            let error = RegexBudget::default()
                .check(pattern)
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{pattern}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        check("", "must not be empty");
        check("(", "not a regular expression: unclosed group");
        check(")", "not a regular expression: unopened group");
        check("a)|(b", "not a regular expression: unopened group");
        check(
            "[z-a]",
            "not a regular expression: invalid character class range",
        );
        check("(?x) a # b", "not a regular expression: unclosed group");
        check("(a{1000}){1000}", "more than 262144 bytes");
        check(&"(".repeat(100), "not a regular expression");
        check(&"a".repeat(MAX_REGEX_BYTES + 1), "at most 4096 bytes");
        check("(?=a)", "look-around");
        check(r"\p{Greek}", "Unicode");
    }

    #[test]
    fn all_of_a_document_are_bounded_together() {
        let mut budget = RegexBudget {
            left_bytes: 100_000,
        };
        let mut accepted = 0;
        let error = loop {
            match budget.check(r"[a-z]{1,60}\.example\.com") {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert!(accepted > 0 && accepted < 1000);
        assert_eq!(error, RegexError::TooManyTogether);
    }

    #[test]
    fn plain_names_are_recognised() {
        assert_eq!(
            plain_name(r"^api\.example\.com$").as_deref(),
            Some("api.example.com")
        );
        assert_eq!(
            plain_name("api.example.com").as_deref(),
            Some("api.example.com")
        );
        assert_eq!(plain_name(r".*\.example\.com"), None);
        assert_eq!(plain_name("localhost"), None);
    }

    #[test]
    fn ends_are_recognised() {
        #[track_caller]
        fn check(pattern: &str, want: bool) {
            assert_eq!(looks_at_both_ends(pattern), want, "{pattern}");
        }
        check("^a$", true);
        check("^(a|b)$", true);
        check("^a$|^b$", true);
        check("a", false);
        check("^a", false);
        check("a$", false);
        check("^a|b$", false);
    }
}
