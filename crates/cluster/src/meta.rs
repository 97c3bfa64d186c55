//! `meta.json`: whose data a directory holds, so that data and identity of different nodes, clusters or lineages are
//! never run together.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, PRIVATE};
use crate::id::{ClusterId, Lineage, NodeId};
use crate::identity::Owner;
use crate::state::State;

const FILE: &str = "meta.json";

/// Format written by this version.
const FORMAT: u32 = 1;

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The file system failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} cannot be read: restore {} from a backup, or make this a new node with: rm -r {}",
        path.display(), data_dir.display(), data_dir.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The directory.
        data_dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A newer version has written it.
    #[error("{} has format {found}, this version knows up to {FORMAT}: start the version that was here before", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Data of a cluster of several members, started without cluster mode.
    #[error("{} holds the data of a cluster of several members: start with --cluster-bind ADDR, or make this a new \
        node with: rm -r {}", data_dir.display(), data_dir.display())]
    NotStandalone {
        /// The directory.
        data_dir: PathBuf,
    },
    /// A node with a cluster of its own, told to join another.
    #[error("{} holds a cluster of this node's own, which joining another would discard: drop --join, or give \
        --join-discard-local to discard it", data_dir.display())]
    OwnCluster {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The state in the directory belongs to another cluster or lineage than the rest of it.
    #[error("the log in {} belongs to {found}, the rest of it to {expected}: restore {} from one backup",
        data_dir.display(), data_dir.display())]
    Foreign {
        /// The directory.
        data_dir: PathBuf,
        /// Cluster and lineage of the log.
        found: String,
        /// Cluster and lineage of the rest.
        expected: String,
    },
}

/// Whose data it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    format: u32,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its lineage.
    pub lineage: Lineage,
    /// The node.
    pub node_id: NodeId,
    /// The node came in by joining; otherwise it has founded the cluster.
    #[serde(default)]
    pub joined: bool,
    /// The cluster was seen with more than one member. Never unset: another member may have gone on without this one.
    #[serde(default)]
    pub several_members: bool,
}

impl Meta {
    /// Of a node that has founded its cluster.
    pub fn new(cluster_id: ClusterId, lineage: Lineage, node_id: NodeId) -> Self {
        Meta {
            format: FORMAT,
            cluster_id,
            lineage,
            node_id,
            joined: false,
            several_members: false,
        }
    }

    /// Of a node that was let into a cluster.
    pub fn joined(cluster_id: ClusterId, lineage: Lineage, node_id: NodeId) -> Self {
        Meta {
            joined: true,
            several_members: true,
            ..Self::new(cluster_id, lineage, node_id)
        }
    }

    /// Reads it from a data directory; none if the directory belongs to nobody yet.
    ///
    /// # Errors
    /// It cannot be read, or not by this version.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MetaError> {
        let path = data_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MetaError::Io { path, source }),
        };
        let meta: Meta = serde_json::from_slice(&text).map_err(|source| MetaError::Unreadable {
            path: path.clone(),
            data_dir: data_dir.to_owned(),
            source,
        })?;
        if meta.format > FORMAT {
            return Err(MetaError::Format {
                path,
                found: meta.format,
            });
        }
        Ok(Some(meta))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// [`MetaError::Io`].
    pub fn store(&self, data_dir: &Path) -> Result<(), MetaError> {
        let path = data_dir.join(FILE);
        let mut text = serde_json::to_vec_pretty(self).expect("ids and flags are JSON");
        text.push(b'\n');
        durable::replace(&path, &text, PRIVATE).map_err(|source| MetaError::Io { path, source })
    }

    /// The node and cluster that the data belongs to.
    pub fn owner(&self) -> Owner {
        Owner {
            cluster_id: self.cluster_id,
            node_id: self.node_id,
        }
    }

    /// Whether the data may run in this mode: what knows several members never runs as standalone.
    ///
    /// # Errors
    /// [`MetaError::NotStandalone`].
    pub fn admits(&self, cluster_mode: bool, data_dir: &Path) -> Result<(), MetaError> {
        if !cluster_mode && self.several_members {
            return Err(MetaError::NotStandalone {
                data_dir: data_dir.to_owned(),
            });
        }
        Ok(())
    }

    /// Whether the data may run with `--join`: a member resumes, but a cluster of this node's own is not discarded
    /// without being told to.
    ///
    /// # Errors
    /// [`MetaError::OwnCluster`].
    pub fn admits_join(&self, data_dir: &Path) -> Result<(), MetaError> {
        if self.joined || self.several_members {
            return Ok(());
        }
        Err(MetaError::OwnCluster {
            data_dir: data_dir.to_owned(),
        })
    }

    /// Whether `state` is of this cluster and lineage, or of none yet.
    ///
    /// # Errors
    /// [`MetaError::Foreign`].
    pub fn admits_state(&self, state: &State, data_dir: &Path) -> Result<(), MetaError> {
        let (Some(cluster_id), Some(lineage)) = (state.cluster_id(), state.lineage()) else {
            return Ok(());
        };
        if (cluster_id, lineage) == (self.cluster_id, self.lineage) {
            return Ok(());
        }
        Err(MetaError::Foreign {
            data_dir: data_dir.to_owned(),
            found: format!("cluster {cluster_id}, lineage {lineage}"),
            expected: format!("cluster {}, lineage {}", self.cluster_id, self.lineage),
        })
    }

    /// Takes note of the members in `state`. True if that is news, to be stored.
    pub fn note_members(&mut self, state: &State) -> bool {
        let news = !self.several_members && state.members().count() > 1;
        self.several_members |= news;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta::new(ClusterId([1; 16]), Lineage(2), NodeId(3))
    }

    #[test]
    fn it_reads_back_and_names_the_remedy_otherwise() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path();
        assert_eq!(Meta::load(dir).expect("loads"), None);
        meta().store(dir).expect("stores");
        assert_eq!(Meta::load(dir).expect("loads"), Some(meta()));
        std::fs::write(dir.join(FILE), b"{").expect("writes");
        let error = Meta::load(dir).expect_err("cannot be read").to_string();
        assert!(error.contains("restore"), "{error}");
        let newer = Meta {
            format: 9,
            ..meta()
        };
        newer.store(dir).expect("stores");
        assert!(matches!(
            Meta::load(dir),
            Err(MetaError::Format { found: 9, .. })
        ));
    }

    #[test]
    fn what_knows_several_members_never_runs_alone() {
        let dir = Path::new("/d");
        let several = Meta {
            several_members: true,
            ..meta()
        };
        for (meta, cluster_mode, join, runs) in [
            (meta(), false, false, true),
            (meta(), true, false, true),
            (meta(), true, true, false),
            (several.clone(), false, false, false),
            (several.clone(), true, false, true),
            (several, true, true, true),
            (
                Meta::joined(ClusterId([1; 16]), Lineage(2), NodeId(3)),
                false,
                false,
                false,
            ),
            (
                Meta::joined(ClusterId([1; 16]), Lineage(2), NodeId(3)),
                true,
                true,
                true,
            ),
        ] {
            let admitted =
                meta.admits(cluster_mode, dir).is_ok() && (!join || meta.admits_join(dir).is_ok());
            assert_eq!(admitted, runs, "{meta:?} {cluster_mode} {join}");
        }
    }
}
