//! Joining anew: a node whose data is stale, damaged or of an old lineage puts it aside and enrols as a new member. Its
//! dataplane goes on enforcing the last-known-good policy meanwhile.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use api::recovery::Rejoining;
use cluster::aside::{self, Away};
use cluster::durable::{self, PRIVATE};
use cluster::identity::Layout;
use cluster::meta::Meta;
use cluster::peers::Peers;
use tokio::sync::oneshot;

use crate::config::{Config, Peer};

/// Where to knock, kept until the node has been let in: whoever starts it again in between must not found a cluster.
const FILE: &str = aside::JOINING;

/// A request to join anew.
#[derive(Debug)]
pub struct Rejoin {
    /// Join listeners, as they were given; none: those that are known.
    pub join: Vec<String>,
    /// What became of it.
    pub answer: oneshot::Sender<Result<Rejoining, String>>,
}

/// Puts this node's data aside, and writes down where it is to knock. The control plane does not run.
///
/// # Errors
/// There is nowhere to knock, or the file system failed.
pub(super) fn put_aside(
    config: &Config,
    layout: &Layout,
    join: &[String],
) -> anyhow::Result<Rejoining> {
    ensure!(
        config.cluster_mode,
        "this node runs without cluster mode: give it cluster.bind first"
    );
    let meta = Meta::load(&layout.data_dir).ok().flatten();
    let join = targets(config, layout, meta.as_ref(), join)?;
    let text = serde_json::to_vec(&join).expect("texts are JSON");
    let path = layout.data_dir.join(FILE);
    durable::replace(&path, &text, PRIVATE).with_context(|| path.display().to_string())?;
    let label = meta
        .as_ref()
        .map_or("node".into(), |meta| format!("node-{}", meta.node_id));
    let aside = aside::replace(layout, &label, Away::Everything)
        .with_context(|| layout.data_dir.display().to_string())?;
    Ok(Rejoining {
        old_node_id: meta.map(|meta| meta.node_id.to_string()),
        kept_at: aside.display().to_string(),
        join,
    })
}

/// Where to knock: as was said, as is configured, or where the members that this node knew listen.
fn targets(
    config: &Config,
    layout: &Layout,
    meta: Option<&Meta>,
    given: &[String],
) -> anyhow::Result<Vec<String>> {
    if !given.is_empty() {
        return given
            .iter()
            .map(|text| {
                let peer = Peer::parse(text).map(|peer| peer.to_string());
                peer.with_context(|| format!("{text} is not a host with a port, as in node1:9601"))
            })
            .collect();
    }
    let configured: Vec<String> = config
        .cluster
        .join
        .iter()
        .map(ToString::to_string)
        .collect();
    if !configured.is_empty() {
        return Ok(configured);
    }
    let known = match (Peers::load(&layout.data_dir), meta) {
        (Ok(Some(peers)), Some(meta)) => peers.join_addresses(meta.node_id),
        _ => Vec::new(),
    };
    ensure!(
        !known.is_empty(),
        "this node knows no other member: say where to join with --join HOST:9601"
    );
    Ok(known)
}

/// Where this node knocks until it has been let in, if it was told to join anew.
///
/// # Errors
/// The file is there and cannot be read.
pub(super) fn pending(data_dir: &Path) -> io::Result<Option<Vec<String>>> {
    let text = match std::fs::read(path(data_dir)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The node has been let in.
///
/// # Errors
/// The file cannot be removed.
pub(super) fn done(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}
