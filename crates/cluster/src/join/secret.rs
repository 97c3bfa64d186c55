//! Bootstrap secrets and join tokens: what a node holds before it is a member of anything.
//!
//! The file is a bare secret, a [join token](super::token), or JSON,
//! `{"tokens":[{"kid","token","valid_from"?,"valid_until"?}]}`, where each token is either. The cluster proves first, to
//! anybody who asks, so a secret must be too long to be guessed offline: shorter ones are refused.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{hmac, rand};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::token::{self, Token as JoinToken};
use crate::durable;

/// Shortest secret, in bytes.
pub const MIN_SECRET_BYTES: usize = 32;

/// Most secrets that a file may hold.
pub const MAX_SECRETS: usize = 8;

const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why a file holds no secret that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Neither a bare secret, nor a join token, nor the JSON form.
    #[error(
        "{} must hold one secret of at least {MIN_SECRET_BYTES} characters, a join token, or \
         {{\"tokens\":[{{\"kid\",\"token\"}}]}}: {reason}", path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A secret that could be guessed offline.
    #[error(
        "the secret in {} is shorter than {MIN_SECRET_BYTES} characters; make one with: \
         (umask 077; openssl rand -hex 32 > {}) and place it on every node", path.display(), path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
    },
    /// The cluster's own secret is sealed, and this node cannot open it now.
    #[error(transparent)]
    Sealed(#[from] crate::keyring::SealError),
    /// The random source failed.
    #[error("no secret could be made")]
    Random,
}

/// One bootstrap secret.
#[derive(Clone)]
pub struct Secret {
    /// Key id; empty for a bare secret.
    pub kid: String,
    /// Not admitted before; milliseconds since 1970.
    pub valid_from_ms: Option<u64>,
    /// Not admitted from then on; milliseconds since 1970.
    pub valid_until_ms: Option<u64>,
    text: Zeroizing<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Secret {
    /// A secret without limits in time; none when it is shorter than [`MIN_SECRET_BYTES`].
    pub fn new(kid: impl Into<String>, text: impl Into<String>) -> Option<Self> {
        let text = Zeroizing::new(text.into());
        (text.len() >= MIN_SECRET_BYTES).then(|| Secret {
            kid: kid.into(),
            valid_from_ms: None,
            valid_until_ms: None,
            text,
        })
    }

    /// Whether it admits members at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        self.valid_from_ms
            .is_none_or(|from| u128::from(from) <= now)
            && self
                .valid_until_ms
                .is_none_or(|until| now < u128::from(until))
    }

    /// The HMAC-SHA256 key.
    pub(super) fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.text.as_bytes())
    }
}

/// What a file holds.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Bootstrap secrets.
    pub secrets: Vec<Secret>,
    /// Join tokens.
    pub tokens: Vec<JoinToken>,
}

impl Held {
    /// Takes in one token of the file. None when it is too short to be a secret.
    fn add(&mut self, kid: String, text: &str) -> Result<Option<&mut Secret>, Unfit> {
        if text.starts_with(token::PREFIX) {
            let token = JoinToken::parse(text).map_err(|error| Unfit::Token(error.to_string()))?;
            self.tokens.push(token);
            return Ok(None);
        }
        self.secrets
            .push(Secret::new(kid, text).ok_or(Unfit::Short)?);
        Ok(self.secrets.last_mut())
    }
}

/// Why a token of the file is none.
enum Unfit {
    Short,
    Token(String),
}

/// Reads what `path` holds. A file that others can read is tightened to 0600, with a warning.
///
/// # Errors
/// [`SecretError`]; a missing file is [`SecretError::Io`] with [`io::ErrorKind::NotFound`].
pub fn load(path: &Path) -> Result<Held, SecretError> {
    let io = |source| SecretError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format_args!("{mode:o}"),
            "others could read the bootstrap secret: permissions tightened to 600; rotate it if that matters"
        );
        file.set_permissions(fs::Permissions::from_mode(durable::PRIVATE))
            .map_err(io)?;
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut content)
        .map_err(io)?;
    parse(path, &content)
}

/// Reads what `path` holds, or makes a secret of 256 random bits if there is no such file: what a seed does.
///
/// # Errors
/// [`SecretError`].
pub fn load_or_create(path: &Path) -> Result<Held, SecretError> {
    match load(path) {
        Err(SecretError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let io = |source| SecretError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = generate()?;
    text.push('\n');
    if let Some(parent) = path.parent() {
        durable::create_directory(parent).map_err(io)?;
    }
    durable::replace(path, text.as_bytes(), durable::PRIVATE).map_err(io)?;
    tracing::info!(path = %path.display(), "made a bootstrap secret: place it on every node that is to join");
    load(path)
}

/// A new secret: 256 random bits, in hexadecimal.
///
/// # Errors
/// [`SecretError::Random`].
pub fn generate() -> Result<Zeroizing<String>, SecretError> {
    let mut bits = Zeroizing::new([0; 32]);
    rand::fill(&mut *bits).map_err(|_| SecretError::Random)?;
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in bits.iter() {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit"));
        }
    }
    Ok(text)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    kid: String,
    token: String,
    #[serde(default)]
    valid_from: Option<When>,
    #[serde(default)]
    valid_until: Option<When>,
}

/// Seconds since 1970, or RFC 3339.
#[derive(Deserialize)]
#[serde(untagged)]
enum When {
    Seconds(u64),
    Text(String),
}

impl When {
    fn ms(&self) -> Result<u64, String> {
        match self {
            When::Seconds(seconds) => Ok(seconds.saturating_mul(1000)),
            When::Text(text) => OffsetDateTime::parse(text, &Rfc3339)
                .ok()
                .and_then(|at| u64::try_from(at.unix_timestamp()).ok())
                .map(|seconds| seconds * 1000)
                .ok_or_else(|| format!("{text:?} is not a time like 2030-01-31T12:00:00Z")),
        }
    }
}

/// `path` is named in errors only.
pub(crate) fn parse(path: &Path, content: &[u8]) -> Result<Held, SecretError> {
    let malformed = |reason: String| SecretError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let unfit = |unfit| match unfit {
        Unfit::Short => SecretError::Short {
            path: path.to_owned(),
        },
        Unfit::Token(reason) => malformed(reason),
    };
    let mut held = Held::default();
    let text = std::str::from_utf8(content)
        .map_err(|_| malformed("it is not text".into()))?
        .trim();
    if !text.starts_with('{') {
        if text.contains(char::is_whitespace) {
            return Err(malformed("there is white space in the secret".into()));
        }
        held.add(String::new(), text).map_err(unfit)?;
        return Ok(held);
    }
    // The message names line and column only; serde_json never repeats a value of the file that is a string here.
    let file: TokenFile = serde_json::from_str(text)
        .map_err(|error| malformed(format!("line {}, column {}", error.line(), error.column())))?;
    if file.tokens.is_empty() || file.tokens.len() > MAX_SECRETS {
        return Err(malformed(format!("it must list 1 to {MAX_SECRETS} tokens")));
    }
    for mut token in file.tokens {
        let ms = |when: &Option<When>| when.as_ref().map(When::ms).transpose();
        let limits = (ms(&token.valid_from), ms(&token.valid_until));
        let text = Zeroizing::new(std::mem::take(&mut token.token));
        if held.secrets.iter().any(|other| other.kid == token.kid) {
            return Err(malformed(format!("kid {:?} is there twice", token.kid)));
        }
        if let Some(secret) = held.add(token.kid, text.trim()).map_err(unfit)? {
            secret.valid_from_ms = limits.0.map_err(malformed)?;
            secret.valid_until_ms = limits.1.map_err(malformed)?;
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LONG: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn both_forms_are_read() {
        let check = |content: &str, kids: &[&str]| {
            let secrets = parse(Path::new("t"), content.as_bytes())
                .expect(content)
                .secrets;
            let found: Vec<_> = secrets.iter().map(|secret| secret.kid.as_str()).collect();
            assert_eq!(found, kids, "{content}");
            assert!(secrets.iter().all(|secret| *secret.text == LONG));
        };
        check(LONG, &[""]);
        check(&format!("  {LONG}\r\n"), &[""]);
        check(
            &format!(r#"{{"tokens":[{{"kid":"a","token":"{LONG}"}}]}}"#),
            &["a"],
        );
        check(
            &format!(
                r#"{{"tokens":[{{"kid":"a","token":"{LONG}"}},{{"kid":"b","token":"{LONG}\n","valid_until":5}}]}}"#
            ),
            &["a", "b"],
        );
    }

    #[test]
    fn a_join_token_may_stand_in_the_same_file() {
        let token = JoinToken::new(
            crate::ClusterId([1; 16]),
            uuid::Uuid::from_u128(7),
            crate::Digest([2; 32]),
            [3; 32],
        );
        let text = token.text();
        let read = |content: &str| parse(Path::new("t"), content.as_bytes());
        let bare = read(&format!("{}\n", *text)).expect("reads");
        assert_eq!(bare.tokens, std::slice::from_ref(&token));
        assert!(bare.secrets.is_empty());
        let both = read(&format!(
            r#"{{"tokens":[{{"kid":"a","token":"{LONG}"}},{{"kid":"b","token":"{}"}}]}}"#,
            *text
        ))
        .expect("reads");
        assert_eq!(both.tokens, [token]);
        assert_eq!(both.secrets[0].kid, "a");
        let error = read(&text[..100]).expect_err("cut").to_string();
        assert!(
            error.contains("copy all of it") && !error.contains(&text[20..60]),
            "{error}"
        );
    }

    #[test]
    fn what_is_neither_is_refused_without_being_shown() {
        let check = |content: &str, says: &str| {
            let error = parse(Path::new("token-file"), content.as_bytes())
                .expect_err(content)
                .to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("token-file"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        check("", "shorter");
        check("hunter2", "shorter");
        check(&format!("{LONG} hunter2"), "white space");
        check(r#"{"tokens":["hunter2"]}"#, "column");
        check(
            r#"{"tokens":[{"kid":"a","token":"hunter2"}]}"#,
            "openssl rand",
        );
        check(r#"{"tokens":[]}"#, "1 to 8");
        check(
            &format!(r#"{{"tokens":[{{"kid":"a","token":"{LONG}","valid_from":"soon"}}]}}"#),
            "not a time",
        );
        check(
            &format!(
                r#"{{"tokens":[{{"kid":"a","token":"{LONG}"}},{{"kid":"a","token":"{LONG}"}}]}}"#
            ),
            "twice",
        );
        assert!(parse(Path::new("t"), &[0xff; 40]).is_err());
    }

    #[test]
    fn limits_in_time_hold() {
        let content = format!(
            r#"{{"tokens":[{{"kid":"a","token":"{LONG}","valid_from":100,"valid_until":"1970-01-01T00:03:20Z"}}]}}"#
        );
        let held = parse(Path::new("t"), content.as_bytes()).expect("reads");
        let secret = &held.secrets[0];
        for (seconds, valid) in [
            (0, false),
            (99, false),
            (100, true),
            (199, true),
            (200, false),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(secret.is_valid(now), valid, "{seconds}");
        }
    }

    #[test]
    fn a_seed_makes_one_secret_and_keeps_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sub/bootstrap-token");
        let made = load_or_create(&path).expect("makes one").secrets;
        assert_eq!(made[0].text.len(), 64);
        let again = load_or_create(&path).expect("reads it").secrets;
        assert_eq!(*again[0].text, *made[0].text);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_file_that_others_can_read_is_tightened() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("bootstrap-token");
        fs::write(&path, LONG).expect("writes");
        for open in [0o644, 0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).expect("sets");
            load(&path).expect("reads");
            assert_eq!(mode(&path), 0o600, "{open:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("sets");
        load(&path).expect("reads");
        assert_eq!(mode(&path), 0o400);
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("kid-1", LONG).expect("long enough");
        let shown = format!("{secret:?}");
        assert!(shown.contains("kid-1") && !shown.contains(LONG), "{shown}");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("is there").permissions().mode() & 0o777
    }
}
