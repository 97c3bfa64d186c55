//! A node's identity on disk: its key pair, made here and never sent anywhere, its certificate and its id.
//!
//! The order of writing makes every crash harmless. `tls/node.key` and `tls/node.csr` come before enrolment, so that a
//! retry is the same request; then the certificates ([`Identity::store`]); then the store writes its `meta.json`; and
//! `node_id` last ([`Identity::commit`]). What cannot come from a crash is refused, with the command that repairs it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::ca;
use crate::durable::{self, PRIVATE, PUBLIC};
use crate::id::{ClusterId, Digest, NodeId};
use crate::keyring::SealingKey;
use crate::pem;

/// Why this node has no identity that it may use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// `node_id` is there, the data is not.
    #[error(
        "this node is {node_id}, but {} holds no data of it: restore the data, or make this a new node with: \
         rm -r {} {}", data_dir.display(), node_id_path.display(), tls_dir.display()
    )]
    WithoutData {
        /// The id on disk.
        node_id: NodeId,
        /// Where the data should be.
        data_dir: PathBuf,
        /// File of the node's id.
        node_id_path: PathBuf,
        /// Directory of its key and certificates.
        tls_dir: PathBuf,
    },
    /// The data is there, the identity it belongs to is not.
    #[error(
        "{} holds the data of node {node_id}, but {} is missing: restore it, or make this a new node (its copy of the \
         data is lost) with: rm -r {}", data_dir.display(), missing.display(), data_dir.display()
    )]
    WithoutIdentity {
        /// Whose data it is.
        node_id: NodeId,
        /// Where the data is.
        data_dir: PathBuf,
        /// What is missing.
        missing: PathBuf,
    },
    /// Data, certificate and `node_id` are not of one node.
    #[error(
        "{} names node {found}, the data in {} belongs to node {expected}: restore the file that belongs to the data, \
         or make this a new node with: rm -r {} {}",
        file.display(), data_dir.display(), data_dir.display(), node_id_path.display()
    )]
    Mismatch {
        /// Which file disagrees with the data.
        file: PathBuf,
        /// Node that it names.
        found: String,
        /// Node that the data belongs to.
        expected: NodeId,
        /// Where the data is.
        data_dir: PathBuf,
        /// File of the node's id.
        node_id_path: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("{0} is not {expected}: restore it from a copy, or put the node's data aside and join anew with: neuwerk \
        cluster rejoin --join HOST:9601", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The file system failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// No key or request could be made.
    #[error("no key pair could be made")]
    Key(#[source] rcgen::Error),
}

/// Where the parts of an identity are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `cluster.data_dir`.
    pub data_dir: PathBuf,
    /// `cluster.node_id_path`.
    pub node_id_path: PathBuf,
}

impl Layout {
    /// Directory of key and certificates.
    pub fn tls_dir(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    /// The node's private key, PEM.
    pub fn node_key_path(&self) -> PathBuf {
        self.tls_dir().join("node.key")
    }

    /// The node's certificate, PEM.
    pub fn node_certificate_path(&self) -> PathBuf {
        self.tls_dir().join("node.crt")
    }

    /// The cluster's trusted CA certificates, PEM.
    pub fn ca_certificate_path(&self) -> PathBuf {
        self.tls_dir().join("ca.crt")
    }

    /// The key that the cluster's secrets are wrapped for: 64 hexadecimal digits.
    pub fn sealing_key_path(&self) -> PathBuf {
        self.tls_dir().join("seal.key")
    }

    fn node_request_path(&self) -> PathBuf {
        self.tls_dir().join("node.csr")
    }
}

/// A node's key pair, with the one request that it enrols with.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    request: Vec<u8>,
    spki: Digest,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey")
            .field("spki", &self.spki)
            .finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Makes a key pair in memory.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the random source fails.
    pub fn create() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Key)?;
        Self::with_request(pair, None)
    }

    /// The key pair in a PKCS #8 document, with a new request.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when it is not an ECDSA P-256 key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        Self::with_request(ca::key_pair(pkcs8).map_err(IdentityError::Key)?, None)
    }

    /// The key pair in `layout`, made durably if there is none.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`], [`IdentityError::Io`], [`IdentityError::Key`].
    pub fn load_or_create(layout: &Layout) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(layout)? {
            return Ok(key);
        }
        let key = Self::create()?;
        key.store(layout)?;
        Ok(key)
    }

    fn load(layout: &Layout) -> Result<Option<Self>, IdentityError> {
        let path = layout.node_key_path();
        let Some(text) = read(&path)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let pair = pem::parse_private_key(&text)
            .ok()
            .and_then(|pkcs8| ca::key_pair(&pkcs8).ok())
            .ok_or(IdentityError::Unreadable {
                path,
                expected: "an ECDSA P-256 private key",
            })?;
        let stored = read(&layout.node_request_path())?;
        let had_request = stored.is_some();
        let key = Self::with_request(pair, stored)?;
        if !had_request {
            key.store(layout)?;
        }
        Ok(Some(key))
    }

    fn with_request(pair: KeyPair, stored: Option<Vec<u8>>) -> Result<Self, IdentityError> {
        let spki = Digest::of(&pair.subject_public_key_info());
        let belongs = |der: &Vec<u8>| ca::Csr::parse(der).is_ok_and(|csr| csr.spki() == spki);
        let request = match stored.filter(belongs) {
            Some(der) => der,
            None => {
                // The key is all that will be used of it.
                let mut params = CertificateParams::default();
                params.distinguished_name = DistinguishedName::new();
                let request = params.serialize_request(&pair);
                request.map_err(IdentityError::Key)?.der().to_vec()
            }
        };
        Ok(NodeKey {
            pkcs8: Zeroizing::new(pair.serialized_der().to_vec()),
            request,
            spki,
        })
    }

    fn store(&self, layout: &Layout) -> Result<(), IdentityError> {
        let tls = layout.tls_dir();
        durable::create_directory(&tls).map_err(at(&tls))?;
        write(&layout.node_request_path(), &self.request, PUBLIC)?;
        let text = pem::private_key(&self.pkcs8);
        write(&layout.node_key_path(), text.as_bytes(), PRIVATE)
    }

    /// The PKCS #10 request, DER: always the same one for this key.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// SHA-256 of the SubjectPublicKeyInfo, DER: what peers pin.
    pub fn spki(&self) -> Digest {
        self.spki
    }

    /// PKCS #8 private key, DER.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// The key pair in `layout` that the cluster's secrets are wrapped for, made durably if there is none.
///
/// # Errors
/// [`IdentityError::Unreadable`], [`IdentityError::Io`].
pub fn sealing_key(layout: &Layout) -> Result<SealingKey, IdentityError> {
    let path = layout.sealing_key_path();
    if let Some(text) = read(&path)?.map(Zeroizing::new) {
        let private = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim().parse::<Digest>().ok());
        return private
            .and_then(|private| SealingKey::from_private(&Zeroizing::new(private.0)[..]))
            .ok_or(IdentityError::Unreadable {
                path,
                expected: "a key of 64 hexadecimal digits",
            });
    }
    let key = SealingKey::generate().map_err(|error| IdentityError::Io {
        path: path.clone(),
        source: io::Error::other(error),
    })?;
    let tls = layout.tls_dir();
    durable::create_directory(&tls).map_err(at(&tls))?;
    let text = Zeroizing::new(format!("{}\n", Digest(*key.private())));
    write(&path, text.as_bytes(), PRIVATE)?;
    Ok(key)
}

/// Who the node is, and how it proves that.
#[derive(Debug)]
pub struct Identity {
    /// The cluster that the node belongs to.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: NodeId,
    /// Its key pair.
    pub key: NodeKey,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The cluster CAs that it trusts.
    pub authorities: Vec<CertificateDer<'static>>,
}

/// Whose data the store holds, from its `meta.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: NodeId,
}

/// What is on disk.
#[derive(Debug)]
pub enum OnDisk {
    /// No cluster knows this node yet.
    Nothing,
    /// A member.
    Member(Box<Identity>),
}

impl Identity {
    /// Puts an identity together from what was issued.
    ///
    /// None when the certificate is not for `key` or names no member.
    pub fn issued(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Option<Self> {
        let (cluster_id, node_id) = ca::member_of(&certificate)?;
        (ca::spki_of(&certificate)? == key.spki()).then_some(Identity {
            cluster_id,
            node_id,
            key,
            certificate,
            authorities,
        })
    }

    /// Reads the identity that belongs to the data of `owner`. `owner` is none when there is no data.
    ///
    /// # Errors
    /// An identity without its data, data without its identity, or parts of different nodes, each with its remedy.
    pub fn load(layout: &Layout, owner: Option<Owner>) -> Result<OnDisk, IdentityError> {
        let recorded = read_node_id(&layout.node_id_path)?;
        let Some(owner) = owner else {
            // Key and certificates alone are what an enrolment that was cut short leaves: it goes on from there.
            return match recorded {
                None => Ok(OnDisk::Nothing),
                Some(node_id) => Err(IdentityError::WithoutData {
                    node_id,
                    data_dir: layout.data_dir.clone(),
                    node_id_path: layout.node_id_path.clone(),
                    tls_dir: layout.tls_dir(),
                }),
            };
        };
        let missing = |path: PathBuf| IdentityError::WithoutIdentity {
            node_id: owner.node_id,
            data_dir: layout.data_dir.clone(),
            missing: path,
        };
        let mismatch = |file: PathBuf, found: String| IdentityError::Mismatch {
            file,
            found,
            expected: owner.node_id,
            data_dir: layout.data_dir.clone(),
            node_id_path: layout.node_id_path.clone(),
        };
        if let Some(found) = recorded.filter(|found| *found != owner.node_id) {
            return Err(mismatch(layout.node_id_path.clone(), found.to_string()));
        }
        let certificate_path = layout.node_certificate_path();
        let key = NodeKey::load(layout)?.ok_or_else(|| missing(layout.node_key_path()))?;
        let certificate = read_certificates(&certificate_path)?
            .ok_or_else(|| missing(certificate_path.clone()))?
            .remove(0);
        let authorities = read_certificates(&layout.ca_certificate_path())?
            .ok_or_else(|| missing(layout.ca_certificate_path()))?;
        let identity =
            Identity::issued(key, certificate, authorities).ok_or(IdentityError::Unreadable {
                path: certificate_path.clone(),
                expected: "the certificate of the key beside it",
            })?;
        if (identity.cluster_id, identity.node_id) != (owner.cluster_id, owner.node_id) {
            let found = format!("{} of cluster {}", identity.node_id, identity.cluster_id);
            return Err(mismatch(certificate_path, found));
        }
        // Data and certificate without `node_id`: a crash just before the last step, which is made up for here.
        if recorded.is_none() {
            identity.commit(layout)?;
        }
        Ok(OnDisk::Member(Box::new(identity)))
    }

    /// Takes over a certificate that replaces the old one, and the authorities to trust from now on; writes them down.
    /// False when nothing is new.
    ///
    /// # Errors
    /// [`IdentityError::Io`]: it is taken over all the same, and written next time.
    pub fn renew(
        &mut self,
        layout: &Layout,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<bool, IdentityError> {
        let fits = ca::spki_of(&certificate) == Some(self.key.spki())
            && ca::member_of(&certificate) == Some((self.cluster_id, self.node_id));
        let news = self.certificate != certificate || self.authorities != authorities;
        if !fits || !news || authorities.is_empty() {
            return Ok(false);
        }
        self.certificate = certificate;
        self.authorities = authorities;
        self.store(layout)?;
        Ok(true)
    }

    /// Writes key and certificates. The node is no member on disk before [`Identity::commit`].
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn store(&self, layout: &Layout) -> Result<(), IdentityError> {
        self.key.store(layout)?;
        let authorities: String = self
            .authorities
            .iter()
            .map(|der| pem::certificate(der))
            .collect();
        write(
            &layout.ca_certificate_path(),
            authorities.as_bytes(),
            PUBLIC,
        )?;
        let certificate = pem::certificate(&self.certificate);
        write(
            &layout.node_certificate_path(),
            certificate.as_bytes(),
            PUBLIC,
        )
    }

    /// Writes `node_id`; called once the store has recorded the same id.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn commit(&self, layout: &Layout) -> Result<(), IdentityError> {
        if let Some(parent) = layout.node_id_path.parent() {
            durable::create_directory(parent).map_err(at(parent))?;
        }
        let text = format!("{}\n", self.node_id);
        write(&layout.node_id_path, text.as_bytes(), PUBLIC)
    }
}

fn read_node_id(path: &Path) -> Result<Option<NodeId>, IdentityError> {
    let Some(content) = read(path)? else {
        return Ok(None);
    };
    let parsed = std::str::from_utf8(&content)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| IdentityError::Unreadable {
        path: path.to_owned(),
        expected: "a node id of 16 hexadecimal digits",
    })
}

fn read_certificates(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, IdentityError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    pem::parse_certificates(&text)
        .map(Some)
        .map_err(|_| IdentityError::Unreadable {
            path: path.to_owned(),
            expected: "a PEM certificate",
        })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    durable::replace(path, content, mode).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealing_key_is_made_once_and_kept_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = Layout {
            data_dir: directory.path().to_owned(),
            node_id_path: directory.path().join("node_id"),
        };
        let made = sealing_key(&layout).expect("makes one");
        let again = sealing_key(&layout).expect("reads it");
        assert_eq!(made.public(), again.public());
        let path = layout.sealing_key_path();
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "garbage").expect("writes");
        assert!(sealing_key(&layout).is_err());
    }
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    const OWNER: Owner = Owner {
        cluster_id: ClusterId([1; 16]),
        node_id: NodeId(7),
    };

    #[test]
    fn a_member_is_read_back_with_its_key() {
        let (_directory, layout) = layout();
        let identity = enrolled(&layout, OWNER);
        identity.commit(&layout).expect("writes");
        let again = load(&layout, Some(OWNER)).expect("a member");
        assert_eq!(again.node_id, OWNER.node_id);
        assert_eq!(again.key.pkcs8(), identity.key.pkcs8());
        assert_eq!(again.certificate, identity.certificate);
        assert_eq!(again.authorities, identity.authorities);
        let mode = fs::metadata(layout.node_key_path())
            .expect("is there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn the_request_stays_the_same_over_restarts() {
        let (_directory, layout) = layout();
        let first = NodeKey::load_or_create(&layout).expect("makes one");
        let again = NodeKey::load_or_create(&layout).expect("reads it");
        assert_eq!(first.request(), again.request());
        fs::write(layout.node_request_path(), "of something else").expect("writes");
        let mended = NodeKey::load_or_create(&layout).expect("makes a request");
        assert_eq!(mended.spki(), first.spki());
        let csr = ca::Csr::parse(mended.request()).expect("well formed");
        assert_eq!(csr.spki(), first.spki());
    }

    #[test]
    fn what_a_crash_leaves_goes_on() {
        let (_directory, layout) = layout();
        assert!(load(&layout, None).is_none(), "an empty directory");
        NodeKey::load_or_create(&layout).expect("makes one");
        assert!(load(&layout, None).is_none(), "a key");
        enrolled(&layout, OWNER);
        assert!(load(&layout, None).is_none(), "a certificate");
        assert!(load(&layout, Some(OWNER)).is_some(), "data, no node_id");
        assert!(layout.node_id_path.exists(), "node_id is made up for");
    }

    #[test]
    fn what_no_crash_leaves_is_refused_with_a_remedy() {
        let check = |spoil: &dyn Fn(&Layout), owner: Option<Owner>, says: &str| {
            let (_directory, layout) = layout();
            let identity = enrolled(&layout, OWNER);
            identity.commit(&layout).expect("writes");
            spoil(&layout);
            let error = Identity::load(&layout, owner).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("restore"), "{error}");
        };
        let gone = |path: PathBuf| fs::remove_file(path).expect("was there");
        let other = |node: u64, cluster: u8| Owner {
            cluster_id: ClusterId([cluster; 16]),
            node_id: NodeId(node),
        };
        check(&|_| {}, None, "holds no data of it");
        check(
            &|l| gone(l.node_key_path()),
            Some(OWNER),
            "node.key is missing",
        );
        check(
            &|l| gone(l.node_certificate_path()),
            Some(OWNER),
            "node.crt is missing",
        );
        check(
            &|l| gone(l.ca_certificate_path()),
            Some(OWNER),
            "ca.crt is missing",
        );
        check(
            &|_| {},
            Some(other(8, 1)),
            "belongs to node 0000000000000008",
        );
        check(&|_| {}, Some(other(7, 2)), "of cluster 0101");
        check(
            &|l| gone(l.node_id_path.clone()),
            Some(other(8, 1)),
            "node.crt names node",
        );
        let spoil = |path: PathBuf| fs::write(path, "x").expect("writes");
        check(
            &|l| spoil(l.node_id_path.clone()),
            Some(OWNER),
            "16 hexadecimal digits",
        );
        check(&|l| spoil(l.node_key_path()), Some(OWNER), "private key");
        check(
            &|l| spoil(l.ca_certificate_path()),
            Some(OWNER),
            "PEM certificate",
        );
        let foreign_key = |l: &Layout| NodeKey::create().expect("makes").store(l).expect("writes");
        check(&foreign_key, Some(OWNER), "of the key beside it");
    }

    fn load(layout: &Layout, owner: Option<Owner>) -> Option<Identity> {
        match Identity::load(layout, owner).expect("nothing to refuse") {
            OnDisk::Nothing => None,
            OnDisk::Member(identity) => Some(*identity),
        }
    }

    fn enrolled(layout: &Layout, owner: Owner) -> Identity {
        let now = SystemTime::UNIX_EPOCH;
        let ca = ca::Ca::create(ca::Purpose::Members, owner.cluster_id, now).expect("creates");
        let key = NodeKey::load_or_create(layout).expect("makes one");
        let csr = ca::Csr::parse(key.request()).expect("our own");
        let issued = ca
            .issue_node(owner.cluster_id, owner.node_id, "192.0.2.1", &csr, now)
            .expect("issues");
        let identity =
            Identity::issued(key, issued.der.into(), vec![ca.certificate().clone()]).expect("fits");
        identity.store(layout).expect("writes");
        identity
    }

    fn layout() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = Layout {
            data_dir: directory.path().join("cluster"),
            node_id_path: directory.path().join("node_id"),
        };
        (directory, layout)
    }
}
