//! The members that this node knows, kept beside the store: whom to trust before the state says.
//!
//! A joiner starts with an empty state, and a restarted node replays an old one; both must recognise members that the
//! state does not name yet, or they could never catch up. A member stays known until the state says that it was
//! removed, and node ids are never used twice, so an old file trusts nobody wrongly for longer than an old state does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::enrol::known_members;
use crate::id::{ClusterId, Lineage, NodeId};
use crate::join::{EnrolGrant, KnownMember};
use crate::pem;
use crate::state::State;
use crate::tls::Pins;

/// Everything about other members that outlives a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Content {
    cluster_id: ClusterId,
    lineage: Lineage,
    /// Cluster CAs, PEM.
    authorities: Vec<String>,
    members: BTreeMap<NodeId, KnownMember>,
}

/// The known members, in memory and on disk.
#[derive(Debug)]
pub struct Peers {
    path: PathBuf,
    content: Content,
}

impl Peers {
    /// What the file in `data_dir` says; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged ([`io::ErrorKind::InvalidData`]).
    pub fn load(data_dir: &Path) -> io::Result<Option<Self>> {
        let path = file(data_dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let content = serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(Peers { path, content }))
    }

    /// What a joiner was told.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn granted(data_dir: &Path, grant: &EnrolGrant) -> io::Result<Self> {
        let members = grant
            .members
            .iter()
            .map(|member| (member.node_id, member.clone()));
        let content = Content {
            cluster_id: grant.cluster_id,
            lineage: grant.lineage,
            authorities: grant
                .authorities
                .iter()
                .map(|der| pem::certificate(der))
                .collect(),
            members: members.collect(),
        };
        let peers = Peers {
            path: file(data_dir),
            content,
        };
        peers.store()?;
        Ok(peers)
    }

    /// What a seed knows: itself, once its state says so.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn founded(
        data_dir: &Path,
        cluster_id: ClusterId,
        lineage: Lineage,
        authority: &CertificateDer<'_>,
    ) -> io::Result<Self> {
        let authorities = vec![pem::certificate(authority)];
        let content = Content {
            cluster_id,
            lineage,
            authorities,
            members: BTreeMap::new(),
        };
        let peers = Peers {
            path: file(data_dir),
            content,
        };
        peers.store()?;
        Ok(peers)
    }

    /// Takes over what the state says, and returns whether that changed anything.
    ///
    /// # Errors
    /// The file cannot be written; what is in memory has changed nevertheless.
    pub fn follow(&mut self, state: &State) -> io::Result<bool> {
        let mut content = self.content.clone();
        for member in known_members(state) {
            content.members.insert(member.node_id, member);
        }
        content.members.retain(|id, _| state.removed(*id).is_none());
        let authorities: Vec<String> = state
            .cluster_cas()
            .map(|authority| pem::certificate(&authority.certificate_der))
            .collect();
        if !authorities.is_empty() {
            content.authorities = authorities;
        }
        if content == self.content {
            return Ok(false);
        }
        self.content = content;
        self.store()?;
        Ok(true)
    }

    /// Whom TLS lets in.
    pub fn pins(&self, state: &State) -> Pins {
        let Content {
            cluster_id,
            lineage,
            authorities,
            members,
        } = &self.content;
        Pins {
            cluster_id: *cluster_id,
            lineage: state.lineage().unwrap_or(*lineage),
            members: members
                .values()
                .map(|member| (member.node_id, member.spki))
                .collect(),
            removed: state.removed_ids().collect(),
            authorities: authorities
                .iter()
                .filter_map(|text| pem::parse_certificates(text.as_bytes()).ok())
                .flatten()
                .collect(),
        }
    }

    /// The members themselves, by id.
    pub fn members(&self) -> impl Iterator<Item = &KnownMember> + Clone {
        self.content.members.values()
    }

    /// Join listeners of the others, `host:port`.
    pub fn join_addresses(&self, own: NodeId) -> Vec<String> {
        let others = self
            .content
            .members
            .values()
            .filter(|member| member.node_id != own);
        others.map(|member| member.join_address.clone()).collect()
    }

    fn store(&self) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(&self.content).expect("plain data");
        durable::replace(&self.path, &json, 0o600)
    }
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("peers.json")
}
