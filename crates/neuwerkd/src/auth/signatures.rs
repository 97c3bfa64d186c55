//! Signatures that were found good, so that a client's second request does not pay for the same proof again.
//!
//! Only the signature is remembered. Whether its key, the token and the account are still good, and whether its time has
//! come or gone, is asked of the state and the clock at every request; a key under the same id but with other bytes is
//! another key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cluster::{Digest, State};

use super::token::{self, Claims, Invalid, MAX_TOKEN_BYTES};
use super::{Identity, Proof};

/// Tokens remembered. A token's claims take about a kilobyte.
const KEPT: usize = 512;

/// What a token says, and the key that signed it.
#[derive(Debug)]
struct Signed {
    claims: Claims,
    public: Vec<u8>,
}

/// Tokens with good signatures, by their hash: the tokens themselves are secrets.
#[derive(Debug, Default)]
pub struct Signatures {
    good: Mutex<HashMap<Digest, Arc<Signed>>>,
}

impl Signatures {
    /// Verifies a token at `now_s`, seconds since 1970: at full cost the first time, by its hash from then on.
    ///
    /// # Errors
    /// Why the token is not accepted.
    pub fn verify(
        &self,
        state: &State,
        token: &str,
        now_s: u64,
        proof: Proof,
    ) -> Result<Identity, Invalid> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Invalid::Malformed);
        }
        let hash = Digest::of(token.as_bytes());
        let known = self.good().get(&hash).cloned();
        if let Some(signed) = known {
            // A key that is gone, retired or replaced takes the long way, which says so.
            let same = state
                .signing_key(&signed.claims.kid)
                .is_some_and(|key| key.retired_ms.is_none() && key.key.public == signed.public);
            if same {
                return token::judge(state, &signed.claims, now_s, proof);
            }
        }
        let (claims, key) = token::read(state, token)?;
        let public = key.public.clone();
        let signed = Arc::new(Signed { claims, public });
        let mut good = self.good();
        if good.len() >= KEPT {
            // Whoever is still there proves it once more.
            good.clear();
        }
        good.insert(hash, Arc::clone(&signed));
        drop(good);
        token::judge(state, &signed.claims, now_s, proof)
    }

    fn good(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Signed>>> {
        // Nothing in there can panic half-way.
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
