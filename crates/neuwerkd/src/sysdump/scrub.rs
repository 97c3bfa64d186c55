//! The second line of defence for text that others wrote: logs and what commands print.
//!
//! What is in an archive is chosen by name; only free text can hold what nobody chose. From it go private keys, tokens,
//! the bootstrap secrets that this node knows, and every long word that looks like key material.

use crate::config::Config;

const GONE: &str = "(redacted)";

/// A word of at least so many characters of both cases and with digits is taken for key material.
const SUSPICIOUS: usize = 40;

/// What to take out.
pub(super) struct Scrub {
    secrets: Vec<String>,
}

impl Scrub {
    /// Knows the secrets of the node with this configuration.
    pub(super) fn new(config: Option<&Config>) -> Self {
        let mut secrets = Vec::new();
        if let Some(config) = config
            && let Ok(text) = std::fs::read_to_string(&config.cluster.token_path)
        {
            // A bare secret, or JSON with several: its long words are the secrets, whatever the form.
            let words = text.split(|c: char| c.is_whitespace() || "\"{}[],:".contains(c));
            secrets.extend(words.filter(|word| word.len() >= 16).map(str::to_owned));
        }
        Self { secrets }
    }

    /// `text` without what it should not hold.
    pub(super) fn text(&self, text: &str) -> String {
        let mut kept = String::with_capacity(text.len());
        let mut in_key = false;
        for line in text.split_inclusive('\n') {
            if in_key {
                in_key = !line.contains("-----END");
                continue;
            }
            if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
                in_key = !line.contains("-----END");
                kept.push_str(GONE);
                kept.push('\n');
                continue;
            }
            self.line(line, &mut kept);
        }
        kept
    }

    fn line(&self, line: &str, kept: &mut String) {
        let mut line = line.to_owned();
        for secret in &self.secrets {
            if line.contains(secret) {
                line = line.replace(secret, GONE);
            }
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_+/=.~".contains(c);
        let mut rest = line.as_str();
        while !rest.is_empty() {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            if end == 0 {
                let first = rest.chars().next().map_or(0, char::len_utf8);
                kept.push_str(&rest[..first]);
                rest = &rest[first..];
                continue;
            }
            let word = &rest[..end];
            kept.push_str(if is_suspicious(word) { GONE } else { word });
            rest = &rest[end..];
        }
    }
}

/// Whether a word looks like key material. Hashes and ids, which are hexadecimal, are what logs are read for.
fn is_suspicious(word: &str) -> bool {
    if word.starts_with("eyJ") && word.len() >= 20 {
        return true;
    }
    // Paths and host names are long words too, of short parts.
    word.split(['/', '.', '='])
        .any(|part| part.len() >= SUSPICIOUS && has_mixture(part))
        || (word.len() >= SUSPICIOUS && is_base64(word))
}

fn has_mixture(word: &str) -> bool {
    let has = |test: fn(&u8) -> bool| word.as_bytes().iter().any(test);
    has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit)
}

fn is_base64(word: &str) -> bool {
    let body = word.trim_end_matches('=');
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    body.len() != word.len() && body.bytes().all(alphabet) && has_mixture(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let scrub = Scrub {
            secrets: vec!["0123456789abcdef0123".into()],
        };
        assert_eq!(scrub.text(text), expected);
    }

    #[test]
    fn what_looks_like_a_secret_goes_and_what_logs_are_read_for_stays() {
        check(
            "Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.AAAA end",
            "Bearer (redacted) end",
        );
        check("secret=0123456789abcdef0123\n", "secret=(redacted)\n");
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        check(
            &format!("hash={hash} node=00000000000000a1"),
            &format!("hash={hash} node=00000000000000a1"),
        );
        check(
            "/var/lib/neuwerk/cluster/snapshots/00000000.snap",
            "/var/lib/neuwerk/cluster/snapshots/00000000.snap",
        );
        check(
            "a MC4CAQAwBQYDK2VwBCIEIHVsQmVyUzNjcmV0S2V5MTIzNDU2Nzg5MDEy b",
            "a (redacted) b",
        );
        check(
            "2026-11-25T19:00:00.123456Z  INFO neuwerkd::http::edge: request",
            "2026-11-25T19:00:00.123456Z  INFO neuwerkd::http::edge: request",
        );
    }

    #[test]
    fn private_keys_go_whole() {
        check(
            "a\n-----BEGIN PRIVATE KEY-----\nshort\nlines\n-----END PRIVATE KEY-----\nb\n",
            "a\n(redacted)\nb\n",
        );
        check("x -----BEGIN EC PRIVATE KEY----- y", "(redacted)\n");
    }
}
