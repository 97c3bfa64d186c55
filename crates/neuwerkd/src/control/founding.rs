//! Founding a cluster, and the files that say which one this node belongs to.
//!
//! `meta.json` is the point of no return: whatever lies in the data directory without it, beside the note that a founding
//! was under way, is the leftover of an attempt that nobody was told of, and is begun anew.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use cluster::ca::{Ca, Csr, Purpose};
use cluster::command::{Addresses, Document, FirstMember, Init, Settings};
use cluster::identity::{self, Identity, Layout, NodeKey};
use cluster::keyring::{self, Keyring};
use cluster::meta::Meta;
use cluster::node::FEATURE_LEVEL;
use cluster::peers::Peers;
use cluster::{ClusterId, Lineage, NodeId};

use super::{Member, host_name};
use crate::auth::token;
use crate::config::{Config, PolicyDefault};

/// The log, in the data directory.
pub(super) const LOG: &str = "raft.redb";

/// Exists while a cluster is being founded.
const NOTE: &str = "founding";

/// Makes a new cluster's authorities, its first signing key and its first member. Nothing is recorded yet.
///
/// # Errors
/// The data directory cannot be used, or holds data that belongs to nobody known.
pub(super) fn found(
    config: &Config,
    layout: &Layout,
    addresses: Addresses,
) -> anyhow::Result<Member> {
    let note = layout.data_dir.join(NOTE);
    if note.exists() {
        discard(layout)?;
    } else if layout.data_dir.join(LOG).exists() {
        bail!(
            "{0} holds a log but no meta.json that says whose it is: restore {0} from a backup, or move it away to start empty",
            layout.data_dir.display()
        );
    }
    cluster::durable::replace(&note, b"a cluster is being founded\n", 0o600)?;

    let now = SystemTime::now();
    let mut bytes = [0; 16];
    random(&mut bytes);
    let cluster_id = ClusterId(bytes);
    let lineage = Lineage(random_u64());
    let node_id = NodeId(random_u64());
    let key = NodeKey::load_or_create(layout)?;
    let members_ca = Ca::create(Purpose::Members, cluster_id, now)?;
    let https_ca = Ca::create(Purpose::Https, cluster_id, now)?;
    let host = config.cluster.advertise().ip().to_string();
    let request = Csr::parse(key.request())?;
    let certificate = members_ca.issue_node(cluster_id, node_id, &host, &request, now)?;
    let spki = key.spki();
    let authorities = vec![members_ca.certificate().clone()];
    let identity = Identity::issued(key, certificate.der.clone().into(), authorities)
        .context("the node's own certificate does not fit its key")?;
    let peers = Peers::founded(
        &layout.data_dir,
        cluster_id,
        lineage,
        members_ca.certificate(),
    )?;
    let policy = match config.policy.default {
        PolicyDefault::Allow => r#"{"default_policy":"allow"}"#,
        PolicyDefault::Deny => r#"{"default_policy":"deny"}"#,
    };
    let policy = policy::Document::parse_json(policy.as_bytes())
        .map_err(|error| anyhow::anyhow!("the default policy does not parse: {error}"))?;
    let (first_key, data_key) = keyring::first_key(node_id, &identity::sealing_key(layout)?)?;
    let epoch = first_key.data_key.epoch;
    let mut signing_key = token::generate_key(uuid::Uuid::new_v4().to_string())
        .ok()
        .context("no signing key can be made")?;
    let signs = Keyring::default().open(&signing_key.key_pkcs8, None)?;
    signing_key.key_pkcs8 = keyring::seal(&signs, epoch, &data_key)?;
    let init = Init {
        cluster_id,
        lineage,
        settings: Settings {
            join_approval: config.cluster.join_approval.into(),
            ..Settings::default()
        },
        cluster_ca: members_ca.sealed_authority(epoch, &data_key)?,
        https_ca: https_ca.sealed_authority(epoch, &data_key)?,
        signing_key,
        seed: FirstMember {
            node_id,
            name: host_name(),
            addresses,
            spki,
            certificate,
        },
        policy: Some(Document::Inline(policy.to_json().into())),
        feature_level: FEATURE_LEVEL,
        version: env!("CARGO_PKG_VERSION").into(),
        first_key: Some(first_key),
    };
    let meta = Meta::new(cluster_id, lineage, node_id);
    Ok(Member {
        identity,
        peers,
        meta,
        init: Some(init),
    })
}

/// Removes log, snapshots and whose they are. The last-known-good policy stays: it is what this node enforces.
///
/// # Errors
/// A file cannot be removed.
pub(super) fn discard(layout: &Layout) -> anyhow::Result<()> {
    let data_dir = &layout.data_dir;
    for file in [
        &layout.node_id_path,
        &data_dir.join("meta.json"),
        &data_dir.join(LOG),
    ] {
        remove_if_there(file)?;
    }
    let snapshots = data_dir.join("snapshots");
    if snapshots.exists() {
        std::fs::remove_dir_all(&snapshots)
            .with_context(|| format!("cannot remove {}", snapshots.display()))?;
    }
    Ok(())
}

/// A member's data directory without something that it cannot go on without.
pub(super) fn missing(data_dir: &Path, file: &str) -> anyhow::Error {
    anyhow!(
        "{0} belongs to a member but lacks {file}: restore {0} from a backup, or remove this node from the cluster and \
         make it a new one with: rm -r {0}",
        data_dir.display()
    )
}

/// Writes down that this node belongs to the cluster of `identity` from now on.
///
/// # Errors
/// The files cannot be written.
pub(super) fn record(layout: &Layout, identity: &Identity, meta: &Meta) -> anyhow::Result<()> {
    identity.store(layout)?;
    meta.store(&layout.data_dir)?;
    identity.commit(layout)?;
    remove_if_there(&layout.data_dir.join(NOTE))
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Never 0, which stands for "none" in places.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    random(&mut bytes);
    u64::from_ne_bytes(bytes).max(1)
}

fn random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source does not fail");
}
