//! A backup: the whole replicated state in one file, sealed for a key that the operator holds.
//!
//! The file is a line that names the format, a line of JSON that says what is in it (for people, and for choosing among
//! many), the sealed part, and a last line with the SHA-256 of all before it. The sealed part is an age file
//! (age-encryption.org/v1), for a recipient or a passphrase. In it: the same description, the data keys that the state's
//! secrets are sealed under, and the state as a snapshot with a checksum of its own. So a file can be checked without
//! the key for having been copied whole, and with the key for everything that a restore needs.

use age::secrecy::SecretString;
use age::{scrypt, x25519};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use crate::feature::VERSION;
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::keyring::{KEY_BYTES, OpenKey, SealError};
use crate::raft::image::{Coverage, Image};
use crate::state::{SnapshotError, State};

const MAGIC: &[u8] = b"neuwerk-backup 1\n";

/// What every version's first line begins with.
const MAGIC_STEM: &[u8] = b"neuwerk-backup ";

/// The last line: a SHA-256 in hexadecimal digits, and its end.
const SUM_LINE_BYTES: usize = 65;

/// The second line is not longer than this.
const MAX_DESCRIPTION_BYTES: usize = 64 * 1024;

/// scrypt's cost is not believed above this, as a power of two: a file must not stop whoever looks at it.
const MAX_WORK_FACTOR: u8 = 22;

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its name.
    #[serde(default)]
    pub cluster_name: String,
    /// Its lineage.
    pub lineage: Lineage,
    /// Node that made the backup.
    pub node_id: NodeId,
    /// Wall clock of that node, milliseconds since 1970.
    pub created_ms: u64,
    /// Log index of the state.
    pub index: u64,
    /// Log time of the state, milliseconds since 1970.
    pub log_time_ms: u64,
    /// The policy in force; none if none was ever put.
    #[serde(default)]
    pub policy_revision: Option<u64>,
    /// Members.
    pub members: usize,
    /// Service accounts.
    pub accounts: usize,
    /// Feature level in force: what a version must support to restore this.
    pub feature_level: u32,
    /// Version that made the backup.
    pub version: String,
}

impl Description {
    /// Of a state as node `node_id` has it at `created_ms`; none while there is no cluster.
    pub fn of(state: &State, node_id: NodeId, created_ms: u64) -> Option<Self> {
        Some(Description {
            cluster_id: state.cluster_id()?,
            cluster_name: state.settings()?.0.cluster_name.clone(),
            lineage: state.lineage()?,
            node_id,
            created_ms,
            index: state.index(),
            log_time_ms: state.time_ms(),
            policy_revision: state.policy().map(|policy| policy.revision),
            members: state.members().count(),
            accounts: state.accounts().count(),
            feature_level: state.feature_level(),
            version: VERSION.into(),
        })
    }
}

/// A key that secrets in the state are sealed under, in the open.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochKey {
    /// Its epoch.
    pub epoch: u64,
    /// The key.
    pub key: OpenKey,
}

/// Whom a backup is sealed for.
#[derive(Clone)]
pub enum Recipient {
    /// Whoever has the private half of this key.
    Key(Box<x25519::Recipient>),
    /// Whoever knows this passphrase.
    Passphrase(SecretString),
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Recipient::Key(key) => write!(f, "Key({key})"),
            Recipient::Passphrase(_) => f.write_str("Passphrase(..)"),
        }
    }
}

impl Recipient {
    /// A public key, as [`generate_key`] and `age-keygen` print it.
    ///
    /// # Errors
    /// [`BackupError::NotARecipient`].
    pub fn key(text: &str) -> Result<Self, BackupError> {
        let key = text.trim().parse();
        key.map(|key| Recipient::Key(Box::new(key)))
            .map_err(|why: &str| BackupError::NotARecipient { why: why.into() })
    }

    /// A passphrase; white space around it does not count.
    ///
    /// # Errors
    /// [`BackupError::WeakPassphrase`].
    pub fn passphrase(text: &str) -> Result<Self, BackupError> {
        passphrase(text).map(Recipient::Passphrase)
    }
}

/// What opens a backup.
pub enum Opener {
    /// Private keys.
    Keys(Vec<x25519::Identity>),
    /// A passphrase.
    Passphrase(SecretString),
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(..)")
    }
}

impl Opener {
    /// The private keys in a file as [`generate_key`] and `age-keygen` write it.
    ///
    /// # Errors
    /// [`BackupError::NotAKey`].
    pub fn keys(text: &str) -> Result<Self, BackupError> {
        let lines = text.lines().map(str::trim);
        let keys = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.parse().map_err(|_: &str| BackupError::NotAKey))
            .collect::<Result<Vec<x25519::Identity>, _>>()?;
        match keys.is_empty() {
            true => Err(BackupError::NotAKey),
            false => Ok(Opener::Keys(keys)),
        }
    }

    /// A passphrase.
    ///
    /// # Errors
    /// [`BackupError::WeakPassphrase`].
    pub fn passphrase(text: &str) -> Result<Self, BackupError> {
        passphrase(text).map(Opener::Passphrase)
    }
}

fn passphrase(text: &str) -> Result<SecretString, BackupError> {
    let text = text.trim();
    if text.chars().count() < MIN_PASSPHRASE {
        return Err(BackupError::WeakPassphrase);
    }
    Ok(SecretString::from(text.to_owned()))
}

/// Characters that a passphrase has at least.
const MIN_PASSPHRASE: usize = 12;

/// A new key: the file to keep, and the recipient to seal for.
pub fn generate_key() -> (Zeroizing<String>, String) {
    use age::secrecy::ExposeSecret as _;
    let key = x25519::Identity::generate();
    let recipient = key.to_public().to_string();
    let text = format!(
        "# Opens neuwerk's backups. Keep it away from the nodes.\n# recipient: {recipient}\n{}\n",
        key.to_string().expose_secret()
    );
    (Zeroizing::new(text), recipient)
}

/// Why a backup cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No public key.
    #[error(
        "this is not a recipient, which begins with age1 ({why}): make a key with: neuwerk cluster backup keygen"
    )]
    NotARecipient {
        /// What is wrong with it.
        why: String,
    },
    /// No private key.
    #[error(
        "there is no line in it that begins with AGE-SECRET-KEY-1, as neuwerk cluster backup keygen writes it"
    )]
    NotAKey,
    /// Too short a passphrase.
    #[error("a passphrase has {MIN_PASSPHRASE} characters at least")]
    WeakPassphrase,
    /// Something else.
    #[error("this is not a backup of neuwerk")]
    NotABackup,
    /// Made by a newer version.
    #[error("this backup has a format that version {VERSION} does not know: use a newer version")]
    Format,
    /// Cut off, or changed.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// Sealed for somebody else.
    #[error("the backup is not sealed for this key or passphrase")]
    NotForThis,
    /// The node cannot read the secrets that belong to it.
    #[error("no backup can be made on this node now")]
    NotReady(#[source] SealError),
    /// It could not be sealed.
    #[error("the backup cannot be sealed: {0}")]
    Seal(String),
    /// The state in it cannot be read.
    #[error(transparent)]
    State(#[from] SnapshotError),
}

/// What is sealed besides the state.
#[derive(Serialize, Deserialize)]
pub(crate) struct Inner {
    description: Description,
    #[serde(default)]
    keys: Vec<InnerKey>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct InnerKey {
    epoch: u64,
    key: ByteBuf,
}

impl Drop for InnerKey {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.key.zeroize();
    }
}

/// An opened backup.
pub struct Backup {
    /// What is in it.
    pub description: Description,
    /// The state.
    pub state: State,
    /// The keys that secrets in it are sealed under.
    pub keys: Vec<EpochKey>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// The keys that the secrets in `state` are sealed under; none while they are in clear.
///
/// # Errors
/// [`BackupError::NotReady`]: they have not been shared with this node yet.
pub fn keys(state: &State) -> Result<Vec<EpochKey>, BackupError> {
    let key = state.open_data_key().map_err(BackupError::NotReady)?;
    Ok(key
        .map(|(epoch, key)| EpochKey { epoch, key })
        .into_iter()
        .collect())
}

/// Makes the file. Takes a while for a passphrase (a second) and a large state: not for an async task.
///
/// # Errors
/// [`BackupError::Seal`].
pub fn seal(
    description: &Description,
    state: &State,
    keys: &[EpochKey],
    recipient: &Recipient,
) -> Result<Vec<u8>, BackupError> {
    let inner = Inner {
        description: description.clone(),
        keys: keys
            .iter()
            .map(|key| InnerKey {
                epoch: key.epoch,
                key: ByteBuf::from(key.key.to_vec()),
            })
            .collect(),
    };
    let inner = Zeroizing::new(
        rmp_serde::to_vec_named(&inner).expect("a description has no value that MessagePack lacks"),
    );
    // Where the state stood in a log that will not exist is of no use to the one that begins with it.
    let image = Image::encode_at_once(&Coverage::default(), state)
        .joined()
        .expect("it is in memory");
    let length = u32::try_from(inner.len()).expect("a description and a few keys are small");
    let content = Zeroizing::new([&length.to_be_bytes(), inner.as_slice(), &image].concat());
    let sealed = match recipient {
        Recipient::Key(key) => age::encrypt(&**key, &content),
        Recipient::Passphrase(text) => {
            age::encrypt(&scrypt::Recipient::new(text.clone()), &content)
        }
    };
    let sealed = sealed.map_err(|error| BackupError::Seal(error.to_string()))?;
    let described = serde_json::to_string(description).expect("ids and numbers are JSON");
    Ok(checked(
        &[described.as_bytes(), b"\n", sealed.as_slice()].concat(),
    ))
}

/// `content` as a whole file, whatever it says.
pub(crate) fn checked(content: &[u8]) -> Vec<u8> {
    let mut file = [MAGIC, content].concat();
    let sum = Digest::of(&file);
    file.extend_from_slice(format!("{sum}\n").as_bytes());
    file
}

/// Checks that a file is whole, and says what is in it. Needs no key, so what it says may have been made up.
///
/// # Errors
/// [`BackupError::NotABackup`], [`BackupError::Format`], [`BackupError::Damaged`].
pub fn inspect(file: &[u8]) -> Result<Description, BackupError> {
    parts(file).map(|(description, _)| description)
}

/// Description and sealed part.
fn parts(file: &[u8]) -> Result<(Description, &[u8]), BackupError> {
    let Some(rest) = file.strip_prefix(MAGIC) else {
        return Err(match file.starts_with(MAGIC_STEM) {
            true => BackupError::Format,
            false => BackupError::NotABackup,
        });
    };
    let (content, line) = file
        .split_at_checked(file.len().wrapping_sub(SUM_LINE_BYTES))
        .filter(|(content, _)| content.len() > MAGIC.len())
        .ok_or(BackupError::Damaged("it is cut off"))?;
    if line != format!("{}\n", Digest::of(content)).as_bytes() {
        return Err(BackupError::Damaged("it does not match its checksum"));
    }
    let end = rest
        .iter()
        .take(MAX_DESCRIPTION_BYTES)
        .position(|byte| *byte == b'\n')
        .ok_or(BackupError::Damaged("it has no description"))?;
    let description = serde_json::from_slice(&rest[..end])
        .map_err(|_| BackupError::Damaged("its description cannot be read"))?;
    let sealed = content
        .get(MAGIC.len() + end + 1..)
        .ok_or(BackupError::Damaged("it is cut off"))?;
    Ok((description, sealed))
}

/// Opens a backup and reads all of it.
///
/// # Errors
/// Any [`BackupError`] but those of sealing.
pub fn open(file: &[u8], opener: &Opener) -> Result<Backup, BackupError> {
    let (described, sealed) = parts(file)?;
    let content = Zeroizing::new(unseal(sealed, opener)?);
    let cut_off = || BackupError::Damaged("its content is cut off");
    let (length, rest) = content.split_at_checked(4).ok_or_else(cut_off)?;
    let length = u32::from_be_bytes(length.try_into().expect("4 bytes"));
    let (inner, image) = rest.split_at_checked(length as usize).ok_or_else(cut_off)?;
    let inner: Inner = rmp_serde::from_slice(inner)
        .map_err(|_| BackupError::Damaged("its content cannot be read"))?;
    if inner.description != described {
        return Err(BackupError::Damaged(
            "it says something else than what is sealed in it",
        ));
    }
    let (_, state) = Image::decode(image).map_err(|error| match error.into_state() {
        Some(error) => BackupError::State(error),
        None => BackupError::Damaged("the state in it does not match its checksum"),
    })?;
    if state.cluster_id() != Some(described.cluster_id) || state.index() != described.index {
        return Err(BackupError::Damaged("the state in it is another one"));
    }
    let keys = inner.keys.iter().map(|key| {
        let exactly = <[u8; KEY_BYTES]>::try_from(key.key.as_slice());
        Ok(EpochKey {
            epoch: key.epoch,
            key: Zeroizing::new(exactly.map_err(|_| BackupError::Damaged("a key in it is none"))?),
        })
    });
    Ok(Backup {
        keys: keys.collect::<Result<_, BackupError>>()?,
        description: described,
        state,
    })
}

fn unseal(sealed: &[u8], opener: &Opener) -> Result<Vec<u8>, BackupError> {
    let read = |error: age::DecryptError| match error {
        age::DecryptError::NoMatchingKeys
        | age::DecryptError::DecryptionFailed
        | age::DecryptError::KeyDecryptionFailed => BackupError::NotForThis,
        age::DecryptError::Io(_) => BackupError::Damaged("its sealed part is cut off or changed"),
        _ => BackupError::Damaged("its sealed part cannot be read"),
    };
    match opener {
        Opener::Keys(keys) => {
            let mut last = BackupError::NotForThis;
            for key in keys {
                match age::decrypt(key, sealed).map_err(read) {
                    Ok(content) => return Ok(content),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        Opener::Passphrase(text) => {
            let mut identity = scrypt::Identity::new(text.clone());
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            age::decrypt(&identity, sealed).map_err(read)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Author, Command, Stamped};

    const PASSPHRASE: &str = "correct horse battery";

    fn state() -> State {
        let mut state = State::default();
        let stamped = Stamped {
            command: Command::Init(Box::new(crate::state::tests::init())),
            time_ms: 5,
            seed: [1; 32],
            author: Author::default(),
            idempotency_key: None,
            request: None,
        };
        state.apply(1, stamped);
        state
    }

    fn keys() -> Vec<EpochKey> {
        vec![EpochKey {
            epoch: 3,
            key: Zeroizing::new([7; KEY_BYTES]),
        }]
    }

    fn sealed(recipient: &Recipient) -> Vec<u8> {
        let state = state();
        let description = Description::of(&state, NodeId(1), 9).expect("there is a cluster");
        seal(&description, &state, &keys(), recipient).expect("seals")
    }

    fn pair() -> (Recipient, Opener) {
        let (file, recipient) = generate_key();
        (
            Recipient::key(&recipient).expect("is one"),
            Opener::keys(&file).expect("is one"),
        )
    }

    #[test]
    fn what_went_in_comes_out() {
        let (recipient, opener) = pair();
        let file = sealed(&recipient);
        let backup = open(&file, &opener).expect("opens");
        assert_eq!(backup.state, state());
        assert!(backup.keys == keys());
        assert_eq!(inspect(&file).expect("is whole"), backup.description);
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed() {
        let recipient = Recipient::passphrase(PASSPHRASE).expect("is long enough");
        let file = sealed(&recipient);
        let right = Opener::passphrase(&format!("{PASSPHRASE}\n")).expect("is long enough");
        open(&file, &right).expect("opens");
        let wrong = Opener::passphrase("wrong horse battery").expect("is long enough");
        assert!(matches!(open(&file, &wrong), Err(BackupError::NotForThis)));
        assert!(Recipient::passphrase("short").is_err());
    }

    #[test]
    fn another_key_does_not_open_it_and_says_so() {
        let file = sealed(&pair().0);
        let opened = open(&file, &pair().1);
        assert!(matches!(opened, Err(BackupError::NotForThis)), "{opened:?}");
    }

    #[test]
    fn nothing_that_is_secret_can_be_read_without_the_key() {
        let file = sealed(&pair().0);
        let holds = |needle: &[u8]| file.windows(needle.len()).any(|part| part == needle);
        assert!(!holds(&[7; 32]), "the data key");
        assert!(!holds(b"key_pkcs8"), "the state");
    }

    #[test]
    fn damage_is_found_with_and_without_the_key() {
        let (recipient, opener) = pair();
        let file = sealed(&recipient);
        // Every byte matters; a few stand for all.
        for at in (0..file.len()).step_by(file.len() / 50) {
            let mut spoilt = file.clone();
            spoilt[at] ^= 1;
            assert!(inspect(&spoilt).is_err(), "byte {at}");
        }
        for length in [0, 5, MAGIC.len(), MAGIC.len() + 70, file.len() - 1] {
            assert!(inspect(&file[..length]).is_err(), "cut at {length}");
        }
        // Somebody who mends the checksum is found out by the seal.
        let mut forged = file[..file.len() - SUM_LINE_BYTES].to_vec();
        let at = forged.len() - 10;
        forged[at] ^= 1;
        let sum = Digest::of(&forged);
        forged.extend_from_slice(format!("{sum}\n").as_bytes());
        inspect(&forged).expect("nothing to see without the key");
        assert!(matches!(
            open(&forged, &opener),
            Err(BackupError::Damaged(_))
        ));
    }

    #[test]
    fn other_files_are_told_apart() {
        assert!(matches!(
            inspect(b"PK\x03\x04"),
            Err(BackupError::NotABackup)
        ));
        assert!(matches!(
            inspect(b"neuwerk-backup 9\n"),
            Err(BackupError::Format)
        ));
        assert!(matches!(
            Opener::keys("# nothing\n"),
            Err(BackupError::NotAKey)
        ));
        let error = Recipient::key("ssh-rsa AAA")
            .expect_err("is none")
            .to_string();
        assert!(error.contains("keygen"), "{error}");
    }
}
