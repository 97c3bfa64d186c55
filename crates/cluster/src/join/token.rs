//! Join tokens: what an administrator hands to a node that is to join.
//!
//! A token carries the cluster's id, the hash of the key of the cluster's CA, which the joiner pins, and a seed from which
//! both sides derive an Ed25519 key. The cluster keeps the public half only, with a time and a number of uses, so that
//! nothing in its state, its log or its backups admits anybody.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::id::{ClusterId, Digest};

/// How every token begins; the digit is the version of the form.
pub const PREFIX: &str = "nwj1.";

/// Cluster id, token id, hash of the CA's key, seed.
const CONTENT_BYTES: usize = 16 + 16 + 32 + 32;

/// Against slips in copying.
const CHECKSUM_BYTES: usize = 4;

/// Text that is no join token. Never shows any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise.
    #[error("it is not a join token: those begin with {PREFIX}")]
    Prefix,
    /// Too long, too short, or with a character that does not belong there.
    #[error("the join token is damaged: copy all of it, and nothing else")]
    Damaged,
}

/// A join token, with the seed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster that it is for.
    pub cluster_id: ClusterId,
    /// Which token: its name in lists.
    pub id: Uuid,
    /// SHA-256 of the SubjectPublicKeyInfo of the cluster's CA.
    pub authority: Digest,
    seed: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A token of a random seed.
    pub fn new(cluster_id: ClusterId, id: Uuid, authority: Digest, seed: [u8; 32]) -> Self {
        Token {
            cluster_id,
            id,
            authority,
            seed: Zeroizing::new(seed),
        }
    }

    /// Reads [`Token::text`]'s output.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let mut bytes = Zeroizing::new([0; CONTENT_BYTES + CHECKSUM_BYTES + 2]);
        let length = URL_SAFE_NO_PAD
            .decode_slice(encoded, &mut bytes[..])
            .map_err(|_| TokenError::Damaged)?;
        let (content, checksum) = bytes[..length]
            .split_at_checked(CONTENT_BYTES)
            .ok_or(TokenError::Damaged)?;
        if checksum != &Digest::of(content).0[..CHECKSUM_BYTES] {
            return Err(TokenError::Damaged);
        }
        let part = |from: usize| content[from..].first_chunk().copied();
        let part16 = |from: usize| content[from..].first_chunk::<16>().copied();
        let (Some(cluster_id), Some(id), Some(authority), Some(seed)) =
            (part16(0), part16(16), part(32), part(64))
        else {
            return Err(TokenError::Damaged);
        };
        Ok(Token::new(
            ClusterId(cluster_id),
            Uuid::from_bytes(id),
            Digest(authority),
            seed,
        ))
    }

    /// The token as it is handed over.
    pub fn text(&self) -> Zeroizing<String> {
        let mut content = Zeroizing::new(Vec::with_capacity(CONTENT_BYTES + CHECKSUM_BYTES));
        content.extend_from_slice(&self.cluster_id.0);
        content.extend_from_slice(self.id.as_bytes());
        content.extend_from_slice(&self.authority.0);
        content.extend_from_slice(&*self.seed);
        let checksum = Digest::of(&content);
        content.extend_from_slice(&checksum.0[..CHECKSUM_BYTES]);
        let mut text = Zeroizing::new(String::with_capacity(160));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*content, &mut text);
        text
    }

    /// The public half, which the cluster keeps.
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.key().public_key().as_ref());
        public
    }

    /// Signs `message` with the private half: 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key().sign(message).as_ref().to_vec()
    }

    fn key(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&*self.seed).expect("every 32 bytes are a seed")
    }
}

/// Whether `signature` over `message` was made by the holder of the token whose public half is `public`.
pub fn verify(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(message, signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        let id = Uuid::from_u128(7);
        Token::new(ClusterId([1; 16]), id, Digest([2; 32]), [3; 32])
    }

    #[test]
    fn a_token_is_read_back_and_signs_for_its_public_half() {
        let text = token().text();
        assert!(
            text.starts_with(PREFIX) && text.len() < 150,
            "{}",
            text.len()
        );
        let read = Token::parse(&format!(" {}\n", *text)).expect("reads back");
        assert_eq!(read, token());
        let signature = read.sign(b"message");
        assert!(verify(&token().public(), b"message", &signature));
        assert!(!verify(&token().public(), b"another", &signature));
        assert!(!verify(&[9; 32], b"message", &signature));
        assert!(!verify(&token().public(), b"message", b""));
    }

    #[test]
    fn every_slip_in_copying_is_found() {
        let text = token().text();
        for at in 0..text.len() {
            let mut cut = text.to_string();
            cut.remove(at);
            assert!(Token::parse(&cut).is_err(), "without character {at}");
            let mut changed = text.to_string();
            let other = if changed.as_bytes()[at] == b'A' {
                "B"
            } else {
                "A"
            };
            changed.replace_range(at..=at, other);
            assert!(
                Token::parse(&changed).is_err(),
                "with another character {at}"
            );
        }
        assert_eq!(
            Token::parse(&format!("{}A", *text)),
            Err(TokenError::Damaged)
        );
        assert_eq!(Token::parse("nwj2.AAAA"), Err(TokenError::Prefix));
    }

    #[test]
    fn a_token_is_never_printed() {
        let shown = format!("{:?}", token());
        assert!(
            shown.contains("00000000-0000") && !shown.contains('3'),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn anything_may_be_parsed(text in "(nwj1\\.)?[-_A-Za-z0-9]{0,200}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(&*token.text(), text.trim());
            }
        }
    }
}
