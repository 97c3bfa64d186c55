//! The log and what watches over it: opened with its witness and its reserve, and with what to do when it cannot be.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::identity::Identity;
use cluster::meta::Meta;
use cluster::node::StartError;
use cluster::peers::Peers;
use cluster::store::reserve::Reserve;
use cluster::store::witness::FileWitness;
use cluster::store::{Io, Store, StoreError};
use cluster::transport::Peer;
use cluster::{Node, Role};
use tokio_util::sync::CancellationToken;

use super::founding::LOG;
use crate::config::Config;

/// What this boot of the kernel has seen acknowledged, in the run directory.
const WITNESS: &str = "witness";

/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Opens the member's log. A log that is gone begins anew, for the other members have it.
///
/// # Errors
/// It cannot be opened; the text says what to do next.
pub(super) async fn open(config: &Config, meta: &Meta, peers: &Peers) -> anyhow::Result<Store> {
    let data_dir = config.cluster.data_dir.clone();
    let reserve = Reserve::new(&data_dir);
    let others = others(meta, peers).len();
    let run_dir = config.runtime.run_dir.clone();
    let owner = format!("{} {} {}", meta.cluster_id, meta.lineage, meta.node_id);
    let opening = tokio::task::spawn_blocking(move || {
        if let Err(error) = reserve.keep() {
            tracing::debug!(%error, "the reserve cannot be kept");
        }
        let store = Store::open(&data_dir.join(LOG), Io::Threaded)
            .map_err(|error| in_quarantine(error, &data_dir, others))?;
        watch(&store, run_dir, owner)?;
        anyhow::Ok(store)
    });
    opening.await?
}

/// Has a file in the run directory remember what the store acknowledges, as long as the kernel runs.
fn watch(store: &Store, run_dir: PathBuf, owner: String) -> anyhow::Result<()> {
    let boot = match FileWitness::kernel_boot() {
        Ok(boot) => boot,
        Err(error) => {
            tracing::warn!(%error, "the boot cannot be told: the other members are asked instead");
            return Ok(());
        }
    };
    // If there is no directory, there is no file in it either that could be believed.
    if let Err(error) = cluster::durable::create_directory(&run_dir) {
        tracing::warn!(%error, directory = %run_dir.display(), "the run directory cannot be made");
    }
    let path = run_dir.join(WITNESS);
    let witness = Arc::new(FileWitness::new(path.clone(), owner, boot));
    store
        .set_witness(witness)
        .with_context(|| format!("{} is out of date and cannot be removed", path.display()))
}

/// The other members that this node knows.
pub(super) fn others(meta: &Meta, peers: &Peers) -> Vec<Peer> {
    peers
        .members()
        .filter(|member| member.node_id != meta.node_id)
        .map(|member| Peer {
            node_id: member.node_id,
            address: member.cluster_address.clone(),
        })
        .collect()
}

/// Whether a member may begin with an empty log.
///
/// # Errors
/// Nobody else has what was in it.
pub(super) fn admit_without_log(
    data_dir: &Path,
    identity: &Identity,
    peers: &Peers,
) -> anyhow::Result<()> {
    let node_id = identity.node_id;
    if peers.members().all(|member| member.node_id == node_id) {
        return Err(super::founding::missing(data_dir, LOG));
    }
    tracing::warn!(
        log = %data_dir.join(LOG).display(),
        "the log is gone: this node comes back as a learner and fetches everything from the other members"
    );
    Ok(())
}

/// The command after which this node fetches everything anew from the other members.
pub(super) fn refetch(data_dir: &Path) -> String {
    let dir = data_dir.display();
    format!("mkdir -p {dir}/damaged && mv {dir}/{LOG} {dir}/snapshots {dir}/damaged/")
}

/// What to do about data that is damaged: nothing is cut off, and nothing is thrown away.
fn remedy(data_dir: &Path, others: usize) -> String {
    match others {
        0 => format!(
            "no other member has the data; to go on from a backup, stop this node, then: mv {0} {0}.damaged && neuwerk \
             cluster restore --from BACKUP --key-file KEY",
            data_dir.display()
        ),
        _ => format!(
            "the other members have the data; to fetch it from them: {}",
            refetch(data_dir)
        ),
    }
}

fn in_quarantine(error: StoreError, data_dir: &Path, others: usize) -> anyhow::Error {
    let damaged = matches!(error, StoreError::Corrupt { .. });
    let error = anyhow::Error::from(error);
    if damaged {
        error.context(format!("in quarantine; {}", remedy(data_dir, others)))
    } else {
        error
    }
}

/// A node that cannot start from its data, with what to do about it.
pub(super) fn cannot_start(
    error: StartError,
    data_dir: &Path,
    meta: &Meta,
    peers: &Peers,
) -> anyhow::Error {
    let damaged = matches!(error, StartError::Snapshots(_) | StartError::Consensus(_));
    let error = anyhow::Error::from(error);
    if damaged {
        let others = others(meta, peers).len();
        error.context(format!("in quarantine; {}", remedy(data_dir, others)))
    } else {
        error
    }
}

/// Waits until the log is no longer where it was opened, because somebody has moved it away as a quarantine says, or has
/// removed it: what is written to it from then on is lost with the process.
///
/// Only while another member leads, which has what was in it: otherwise the open file may be the last copy. And not where
/// the whole directory is gone, say with its disk: a node that begins there has no identity any more.
pub(super) async fn moved(data_dir: &Path, node: &Node) {
    let log = data_dir.join(LOG);
    let is_replaceable = || {
        let leads_another = matches!(node.role(), Role::Follower { .. });
        leads_another && Meta::load(data_dir).is_ok_and(|meta| meta.is_some())
    };
    let mut opened = None;
    let mut missing = 0;
    loop {
        let is_there = match tokio::fs::metadata(&log).await.map(|file| file.ino()) {
            Ok(now) => *opened.get_or_insert(now) == now,
            // A disk that fails is told by whoever writes to it.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        missing = match is_there || !is_replaceable() {
            true => 0,
            false => missing + 1,
        };
        // Twice: a directory that is being removed loses one file after the other.
        if missing == 2 {
            return tracing::warn!(log = %log.display(), "the log is not there any more: starting without it");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps the reserve until `life` ends.
pub(super) async fn keep_reserve(data_dir: PathBuf, life: CancellationToken) {
    let reserve = Arc::new(Reserve::new(&data_dir));
    loop {
        tokio::select! {
            () = life.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let reserve = Arc::clone(&reserve);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || reserve.keep()).await {
            tracing::debug!(%error, "the reserve cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_prints_the_next_command() {
        let damaged = || StoreError::Corrupt {
            what: "entry 7 does not match its checksum".into(),
        };
        let text = |others| format!("{:#}", in_quarantine(damaged(), Path::new("/d"), others));
        let several = text(2);
        assert!(
            several.contains("mkdir -p /d/damaged && mv /d/raft.redb /d/snapshots /d/damaged/"),
            "{several}"
        );
        assert!(several.contains("entry 7"), "{several}");
        assert!(
            text(0).contains("mv /d /d.damaged && neuwerk cluster restore --from"),
            "{}",
            text(0)
        );
        let locked = in_quarantine(StoreError::Locked, Path::new("/d"), 2);
        assert!(!format!("{locked:#}").contains("quarantine"));
    }
}
