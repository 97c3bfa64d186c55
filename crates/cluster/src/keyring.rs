//! This node's own keys, and what they open: the secrets in the replicated state.
//!
//! Secrets are sealed under a data key (AES-256-GCM), and the data key is wrapped for every member's public sealing key
//! (HPKE, RFC 9180: X25519, HKDF-SHA256, AES-256-GCM). So a copy of a log, a snapshot or a backup tells nothing without
//! a member's private key, which never leaves its node. A removal makes a new data key, and seals everything anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use crate::command::{DataKey, FirstKey, Secret, Wrapped};
use crate::id::NodeId;

/// Bytes of an X25519 key, public or private.
pub const KEY_BYTES: usize = 32;

/// Data keys that are kept open: the one in force, and those that are just being replaced.
const OPEN_KEYS: usize = 4;

/// What a wrap is for (HPKE's `info`).
const WRAP_INFO: &[u8] = b"neuwerk data key 1";

/// Why a secret cannot be read or sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The data key has not been wrapped for this node yet: it has just joined, or was off when secrets were sealed.
    #[error("the cluster's secrets have not been shared with this node yet")]
    NotShared,
    /// What is stored was not sealed for this node, or is damaged.
    #[error(
        "the cluster's secrets cannot be opened with this node's sealing key: restore tls/seal.key, or make this a new node"
    )]
    Damaged,
    /// The random source or the cipher failed.
    #[error("cryptography failed")]
    Failed,
}

/// A data key in the open.
pub type OpenKey = Zeroizing<[u8; KEY_BYTES]>;

/// A pair of keys to seal for.
pub struct SealingKey {
    public: [u8; KEY_BYTES],
    private: Zeroizing<[u8; KEY_BYTES]>,
}

impl SealingKey {
    /// A new pair.
    ///
    /// # Errors
    /// [`SealError::Failed`].
    pub fn generate() -> Result<Self, SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SealError::Failed)?;
        let exactly = |bytes: &[u8]| <[u8; KEY_BYTES]>::try_from(bytes);
        Ok(SealingKey {
            public: exactly(&public.0).map_err(|_| SealError::Failed)?,
            private: Zeroizing::new(
                exactly(private.secret_bytes()).map_err(|_| SealError::Failed)?,
            ),
        })
    }

    /// The pair of a private key; none if it is not one.
    pub fn from_private(private: &[u8]) -> Option<Self> {
        use aws_lc_rs::agreement;
        let pair = agreement::PrivateKey::from_private_key(&agreement::X25519, private).ok()?;
        let public = pair.compute_public_key().ok()?;
        Some(SealingKey {
            public: public.as_ref().try_into().ok()?,
            private: Zeroizing::new(private.try_into().ok()?),
        })
    }

    /// The public half.
    pub fn public(&self) -> [u8; KEY_BYTES] {
        self.public
    }

    /// The private half, to be kept on disk.
    pub fn private(&self) -> &[u8; KEY_BYTES] {
        &self.private
    }
}

/// A node's private keys.
#[derive(Default)]
pub struct Keyring {
    own: Option<Own>,
    /// Data keys by epoch.
    open: Mutex<BTreeMap<u64, OpenKey>>,
}

struct Own {
    node_id: NodeId,
    /// The node's identity, PKCS #8: what it vouches with.
    identity: Zeroizing<Vec<u8>>,
    sealing: SealingKey,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring(..)")
    }
}

impl Keyring {
    /// The keys of the member `node_id`.
    pub fn new(node_id: NodeId, identity_pkcs8: &[u8], sealing: SealingKey) -> Arc<Self> {
        Arc::new(Keyring {
            own: Some(Own {
                node_id,
                identity: Zeroizing::new(identity_pkcs8.to_vec()),
                sealing,
            }),
            open: Mutex::default(),
        })
    }

    /// No node's own keys but these data keys, as a backup brings them along.
    pub(crate) fn of_data_keys(keys: impl IntoIterator<Item = (u64, OpenKey)>) -> Arc<Self> {
        Arc::new(Keyring {
            own: None,
            open: Mutex::new(keys.into_iter().collect()),
        })
    }

    /// The public key that others wrap for; none without keys.
    pub fn sealing_key(&self) -> Option<[u8; KEY_BYTES]> {
        self.own.as_ref().map(|own| own.sealing.public())
    }

    /// The node's identity, PKCS #8, with its id; none without keys.
    pub(crate) fn identity(&self) -> Option<(NodeId, &[u8])> {
        self.own
            .as_ref()
            .map(|own| (own.node_id, own.identity.as_slice()))
    }

    /// The data key behind `key`.
    ///
    /// # Errors
    /// [`SealError::NotShared`], [`SealError::Damaged`].
    pub fn data_key(&self, key: &DataKey) -> Result<OpenKey, SealError> {
        let known = |open: &BTreeMap<u64, OpenKey>| open.get(&key.epoch).cloned();
        if let Some(open) = known(&self.lock()) {
            return Ok(open);
        }
        let own = self.own.as_ref().ok_or(SealError::NotShared)?;
        let open = match key.wraps.get(&own.node_id) {
            Some(wrapped) => unwrap(wrapped, key.epoch, &own.sealing)?,
            // A node that goes on under another id, after a recovery, has its sealing key still.
            None => key
                .wraps
                .values()
                .find_map(|wrapped| unwrap(wrapped, key.epoch, &own.sealing).ok())
                .ok_or(SealError::NotShared)?,
        };
        let mut all = self.lock();
        all.insert(key.epoch, open.clone());
        while all.len() > OPEN_KEYS {
            all.pop_first();
        }
        Ok(open)
    }

    /// The bytes of a secret. `key` is the data key in force.
    ///
    /// # Errors
    /// [`SealError::NotShared`], [`SealError::Damaged`].
    pub fn open(
        &self,
        secret: &Secret,
        key: Option<&DataKey>,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (epoch, nonce, sealed) = match secret {
            Secret::Plain(bytes) => return Ok(Zeroizing::new(bytes.to_vec())),
            Secret::Sealed {
                epoch,
                nonce,
                sealed,
            } => (*epoch, nonce, sealed),
        };
        let known = self.lock().get(&epoch).cloned();
        let open = match (known, key) {
            (Some(open), _) => open,
            (None, Some(key)) if key.epoch == epoch => self.data_key(key)?,
            (None, _) => return Err(SealError::NotShared),
        };
        let cipher =
            RandomizedNonceKey::new(&AES_256_GCM, &*open).map_err(|_| SealError::Failed)?;
        let nonce: [u8; 12] = nonce
            .as_slice()
            .try_into()
            .map_err(|_| SealError::Damaged)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let length = cipher
            .open_in_place(Nonce::from(&nonce), aad(epoch), &mut bytes)
            .map_err(|_| SealError::Damaged)?
            .len();
        bytes.truncate(length);
        Ok(bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, OpenKey>> {
        // Nothing in there can panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new data key.
///
/// # Errors
/// [`SealError::Failed`].
pub fn generate_data_key() -> Result<OpenKey, SealError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| SealError::Failed)?;
    Ok(key)
}

/// The first data key of a cluster, shared with its seed.
///
/// # Errors
/// [`SealError::Failed`].
pub fn first_key(seed: NodeId, sealing: &SealingKey) -> Result<(FirstKey, OpenKey), SealError> {
    let (epoch, open) = (1, generate_data_key()?);
    let wraps = [(seed, wrap(&open, epoch, &sealing.public)?)].into();
    let first = FirstKey {
        sealing_key: ByteBuf::from(sealing.public.to_vec()),
        data_key: DataKey { epoch, wraps },
    };
    Ok((first, open))
}

/// Seals `bytes` under the data key of `epoch`.
///
/// # Errors
/// [`SealError::Failed`].
pub fn seal(bytes: &[u8], epoch: u64, key: &OpenKey) -> Result<Secret, SealError> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, &**key).map_err(|_| SealError::Failed)?;
    let mut sealed = bytes.to_vec();
    let nonce = cipher
        .seal_in_place_append_tag(aad(epoch), &mut sealed)
        .map_err(|_| SealError::Failed)?;
    Ok(Secret::Sealed {
        epoch,
        nonce: ByteBuf::from(nonce.as_ref().to_vec()),
        sealed: ByteBuf::from(sealed),
    })
}

/// Wraps the data key of `epoch` for a public sealing key.
///
/// # Errors
/// [`SealError::Failed`]: it is no X25519 key.
pub fn wrap(key: &OpenKey, epoch: u64, public: &[u8]) -> Result<Wrapped, SealError> {
    let public = HpkePublicKey(public.to_vec());
    let (enc, sealed) = SUITE
        .seal(WRAP_INFO, &epoch.to_be_bytes(), &**key, &public)
        .map_err(|_| SealError::Failed)?;
    Ok(Wrapped {
        enc: ByteBuf::from(enc.0),
        sealed: ByteBuf::from(sealed),
    })
}

fn unwrap(wrapped: &Wrapped, epoch: u64, sealing: &SealingKey) -> Result<OpenKey, SealError> {
    let private = HpkePrivateKey::from(sealing.private().to_vec());
    let enc = EncapsulatedSecret(wrapped.enc.to_vec());
    let opened = SUITE
        .open(
            &enc,
            WRAP_INFO,
            &epoch.to_be_bytes(),
            &wrapped.sealed,
            &private,
        )
        .map(Zeroizing::new)
        .map_err(|_| SealError::Damaged)?;
    let key: [u8; KEY_BYTES] = opened
        .as_slice()
        .try_into()
        .map_err(|_| SealError::Damaged)?;
    Ok(Zeroizing::new(key))
}

fn aad(epoch: u64) -> Aad<[u8; 8]> {
    Aad::from(epoch.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn keyring(node_id: NodeId) -> (Arc<Keyring>, [u8; KEY_BYTES]) {
        let sealing = SealingKey::generate().expect("makes one");
        let public = sealing.public();
        (Keyring::new(node_id, &[], sealing), public)
    }

    #[test]
    fn a_secret_is_read_by_those_that_the_data_key_was_wrapped_for() {
        let ((a, for_a), (b, for_b)) = (keyring(A), keyring(B));
        let open = generate_data_key().expect("makes one");
        let mut key = DataKey {
            epoch: 7,
            wraps: [(A, wrap(&open, 7, &for_a).expect("wraps"))].into(),
        };
        let secret = seal(b"hunter2", 7, &open).expect("seals");
        let shown = rmp_serde::to_vec_named(&(&key, &secret)).expect("encodes");
        assert!(!shown.windows(7).any(|part| part == b"hunter2"));
        assert_eq!(
            a.open(&secret, Some(&key)).expect("opens").as_slice(),
            b"hunter2"
        );
        assert_eq!(b.open(&secret, Some(&key)), Err(SealError::NotShared));
        key.wraps.insert(B, wrap(&open, 7, &for_b).expect("wraps"));
        assert_eq!(
            b.open(&secret, Some(&key)).expect("opens").as_slice(),
            b"hunter2"
        );
        // What was wrapped for another member is of no use.
        let (c, _) = keyring(A);
        assert_eq!(c.open(&secret, Some(&key)), Err(SealError::Damaged));
    }

    #[test]
    fn what_was_altered_is_not_opened() {
        let (a, public) = keyring(A);
        let open = generate_data_key().expect("makes one");
        let key = DataKey {
            epoch: 1,
            wraps: [(A, wrap(&open, 1, &public).expect("wraps"))].into(),
        };
        let Secret::Sealed { nonce, sealed, .. } = &seal(b"x", 1, &open).expect("seals") else {
            panic!("not sealed")
        };
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            let secret = Secret::Sealed {
                epoch: 1,
                nonce: nonce.clone(),
                sealed: altered,
            };
            assert_eq!(a.open(&secret, Some(&key)), Err(SealError::Damaged), "{at}");
        }
        // A wrap of another epoch is not this one's.
        let mut later = key.clone();
        later.epoch = 2;
        assert_eq!(a.data_key(&later), Err(SealError::Damaged));
    }

    #[test]
    fn a_sealing_key_is_told_by_its_private_half() {
        let made = SealingKey::generate().expect("makes one");
        let read = SealingKey::from_private(made.private()).expect("reads back");
        assert_eq!(read.public(), made.public());
        assert!(SealingKey::from_private(&[1; 31]).is_none());
    }
}
