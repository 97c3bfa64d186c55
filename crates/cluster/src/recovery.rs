//! Recovery when a quorum is lost for good: what a data directory holds, which of several holds most, and a new lineage
//! that goes on from it.
//!
//! Everything here is offline: it works on the data of nodes that do not run. An entry that was acknowledged is on the
//! disks of a majority of the voters, so the best of *all* surviving directories, by Raft's own comparison of logs, holds
//! everything if a majority of the voters survives, and may lack the newest writes otherwise. Every entry of the log that
//! is chosen counts, committed or not: nobody is left to say otherwise.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_bytes::ByteBuf;

use crate::aside::{self, Away};
use crate::backup::Backup;
use crate::ca::{CaError, Csr};
use crate::command::{Addresses, Command, Refusal, Suffrage, TrustChange};
use crate::feature::FEATURE_LEVEL;
use crate::id::{ClusterId, Lineage, NodeId};
use crate::identity::{self, Identity, IdentityError, Layout, NodeKey};
use crate::keyring::{self, Keyring, SealError};
use crate::lkg::{self, LkgError};
use crate::meta::{Meta, MetaError};
use crate::node::Tokio;
use crate::peers::Peers;
use crate::raft::image::{Coverage, Image, Shelf};
use crate::raft::machine::apply;
use crate::raft::{Address, LeaderId, LogId, Membership, Vote};
use crate::replay::Target;
use crate::state::{Member, Standing, State};
use crate::store::files::DiskDirectory;
use crate::store::{Io, LogStore, Store, StoreError};

/// The log, in the data directory.
pub const LOG: &str = "raft.redb";

/// The snapshots, in the data directory.
pub const SNAPSHOTS: &str = "snapshots";

/// Why data cannot be used for a recovery.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Nothing is there.
    #[error("{} holds no data of a member", .0.display())]
    Nothing(PathBuf),
    /// Its description cannot be read.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Its node runs.
    #[error("{} is in use: stop its node first", .0.display())]
    InUse(PathBuf),
    /// Its log cannot be read.
    #[error("{}: {source}", data_dir.display())]
    Log {
        /// The directory.
        data_dir: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// Neither log nor snapshots give a state.
    #[error("{}: {why}", data_dir.display())]
    Unusable {
        /// The directory.
        data_dir: PathBuf,
        /// Why.
        why: String,
    },
    /// Directories of different clusters, or of different lineages of one.
    #[error(
        "{} holds cluster {found}, {} holds {expected}: give directories of one cluster and lineage only",
        other.display(), first.display()
    )]
    Mixed {
        /// The first directory.
        first: PathBuf,
        /// What it holds.
        expected: String,
        /// One that differs.
        other: PathBuf,
        /// What that holds.
        found: String,
    },
    /// The node was removed before the quorum was lost.
    #[error(
        "node {0} was removed from the cluster: its data cannot go on; use another node's, or restore a backup"
    )]
    Removed(NodeId),
    /// A backup is restored where nothing is.
    #[error(
        "{} holds a node's data or identity: a backup is restored where there is none. Put it aside with: \
         mv {} {}.old && rm -f {}",
        .0.data_dir.display(), .0.data_dir.display(), .0.data_dir.display(), .0.node_id_path.display()
    )]
    Occupied(Layout),
    /// No identity can be made for the node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster CA in the state cannot issue one.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The secrets in the backup cannot be opened with the keys in it.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The policy cannot be written to where it is enforced from.
    #[error(transparent)]
    Lkg(#[from] LkgError),
    /// The state refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The file system failed.
    #[error("{}: {source}", data_dir.display())]
    Io {
        /// The directory.
        data_dir: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// The end of a log. Greater is better: this is how Raft compares logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Term of the last entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// What a data directory holds.
pub struct Holding {
    /// The directory.
    pub data_dir: PathBuf,
    /// Whose data it is.
    pub meta: Meta,
    /// The end of its log.
    pub end: End,
    /// What it knows to have been committed. What comes after may never have been acknowledged to anybody.
    pub committed_index: u64,
    /// Those who vote, as far as it knows.
    pub voters: Vec<NodeId>,
    /// The state at the end of the log.
    pub state: State,
    /// What is wrong with the log: the state is the newest snapshot's then.
    pub damage: Option<String>,
    last: LogId,
    vote: Option<Vote>,
}

impl std::fmt::Debug for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holding")
            .field("data_dir", &self.data_dir)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Reads what a member left in its data directory. It is not changed, but for what the opening of any log repairs.
///
/// # Errors
/// Any [`RecoveryError`] but those about several directories.
pub async fn survey(data_dir: &Path) -> Result<Holding, RecoveryError> {
    let at = |source| RecoveryError::Io {
        data_dir: data_dir.to_owned(),
        source,
    };
    let unusable = |why: String| RecoveryError::Unusable {
        data_dir: data_dir.to_owned(),
        why,
    };
    let meta = Meta::load(data_dir)?.ok_or_else(|| RecoveryError::Nothing(data_dir.to_owned()))?;
    let log = data_dir.join(LOG);
    if !log.exists() {
        return Err(unusable(format!("{LOG} is missing")));
    }
    let mut damage = None;
    let store = match Store::open(&log, Io::Inline) {
        Ok(store) => Some(store),
        Err(StoreError::Locked) => return Err(RecoveryError::InUse(data_dir.to_owned())),
        Err(StoreError::Corrupt { what }) => {
            damage = Some(what);
            None
        }
        Err(source) => {
            return Err(RecoveryError::Log {
                data_dir: data_dir.to_owned(),
                source,
            });
        }
    };
    let snapshots = DiskDirectory::open(data_dir.join(SNAPSHOTS)).map_err(at)?;
    let newest = Shelf::new(Arc::new(snapshots)).newest().map_err(at)?;
    let (mut covered, mut state) =
        newest.map_or_else(Default::default, |(covered, state, _)| (covered, state));
    let (mut vote, mut committed) = (None, None);
    if let Some(store) = &store {
        let contents = store.contents().map_err(at)?;
        (vote, committed) = (contents.vote, contents.committed);
        let from = covered.last.map_or(0, |last| last.index + 1);
        if contents.first > from && !contents.entries.is_empty() {
            return Err(unusable(format!(
                "the entries from {from} to {} are missing",
                contents.first - 1
            )));
        }
        for entry in contents.entries {
            if entry.log_id.index >= from {
                apply(&mut state, &mut covered, entry.log_id, entry.payload)
                    .map_err(|error| unusable(error.to_string()))?;
            }
        }
        store.close();
    }
    let last = covered
        .last
        .ok_or_else(|| unusable("its log is empty".into()))?;
    meta.admits_state(&state, data_dir)?;
    if !state.is_initialised() {
        return Err(unusable(
            "its log has not come to the first entry of a cluster".into(),
        ));
    }
    Ok(Holding {
        data_dir: data_dir.to_owned(),
        meta,
        end: End {
            term: last.leader_id.term,
            index: last.index,
        },
        committed_index: committed.map_or(0, |id: LogId| id.index).min(last.index),
        voters: covered.membership.membership().voter_ids().collect(),
        state,
        damage,
        last,
        vote,
    })
}

/// The directory that holds most, and what may be lost with those that are not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its place among the holdings.
    pub best: usize,
    /// Voters of the best one's membership.
    pub voters: usize,
    /// Of these, how many are here.
    pub here: usize,
}

impl Choice {
    /// Whether a majority of the voters is here: nothing that was acknowledged can be missing, and the nodes can simply
    /// be started.
    pub fn has_quorum(&self) -> bool {
        self.here > self.voters / 2
    }
}

/// Compares what several directories hold.
///
/// # Errors
/// [`RecoveryError::Mixed`].
pub fn choose(holdings: &[Holding]) -> Result<Option<Choice>, RecoveryError> {
    let Some(first) = holdings.first() else {
        return Ok(None);
    };
    let named = |holding: &Holding| {
        let Meta {
            cluster_id,
            lineage,
            ..
        } = &holding.meta;
        format!("{cluster_id}, lineage {lineage}")
    };
    if let Some(other) = holdings.iter().find(|other| named(other) != named(first)) {
        return Err(RecoveryError::Mixed {
            first: first.data_dir.clone(),
            expected: named(first),
            other: other.data_dir.clone(),
            found: named(other),
        });
    }
    // An intact log goes before a damaged one of which only the snapshot can be read.
    let best = (0..holdings.len()).max_by_key(|n| {
        (
            holdings[*n].end,
            holdings[*n].damage.is_none(),
            std::cmp::Reverse(*n),
        )
    });
    Ok(best.map(|best| {
        let voters = &holdings[best].voters;
        let here = |id: &&NodeId| {
            holdings
                .iter()
                .any(|holding| holding.meta.node_id == **id && holding.damage.is_none())
        };
        Choice {
            best,
            voters: voters.len(),
            here: voters.iter().filter(here).count(),
        }
    }))
}

/// A cluster that goes on under a new lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The new lineage.
    pub lineage: Lineage,
    /// Its only member.
    pub node_id: NodeId,
    /// Where the old data is kept; none if there was none.
    pub aside: Option<PathBuf>,
}

/// Goes on from `holding`, in its directory, under a new lineage and with its node as the only member. `now_ms` is the wall
/// clock. The node keeps its identity; its old data is put aside.
///
/// # Errors
/// [`RecoveryError::Removed`], [`RecoveryError::Refused`], [`RecoveryError::Io`].
pub async fn recover(holding: Holding, now_ms: u64) -> Result<Begun, RecoveryError> {
    let lineage = Lineage(random_u64());
    let Holding {
        data_dir,
        mut meta,
        mut state,
        last,
        vote,
        ..
    } = holding;
    let node_id = meta.node_id;
    let sole = state
        .member(node_id)
        .map(|member| member.as_ref().clone())
        .ok_or(RecoveryError::Removed(node_id))?;
    let detail = format!(
        "recovered from what node {node_id} held, up to index {}",
        last.index
    );
    state.begin_lineage(lineage, sole, now_ms, &detail)?;
    let old = std::mem::replace(&mut meta.lineage, lineage);
    let term = vote
        .map_or(0, |vote| vote.leader_id.term)
        .max(last.leader_id.term);
    let layout = Layout {
        // Who the node is does not change, so this is not looked at.
        node_id_path: data_dir.join("node_id"),
        data_dir: data_dir.clone(),
    };
    let at = |source| RecoveryError::Io {
        data_dir: data_dir.clone(),
        source,
    };
    write(&layout, &meta, &state, last, term)
        .await
        .map_err(at)?;
    let aside = aside::replace(&layout, &format!("lineage-{old}"), Away::Replaced).map_err(at)?;
    Ok(Begun {
        cluster_id: meta.cluster_id,
        lineage,
        node_id,
        aside: Some(aside),
    })
}

/// Puts what `backup` holds to work on a node that has no data: under a new lineage, with this node as the only member,
/// of a new identity. `now_ms` is the wall clock. Its policy is enforced from the node's first moment on.
///
/// # Errors
/// [`RecoveryError::Occupied`], and whatever making an identity and writing may run into.
pub async fn restore(backup: Backup, layout: &Layout, now_ms: u64) -> Result<Begun, RecoveryError> {
    let at = |source| RecoveryError::Io {
        data_dir: layout.data_dir.clone(),
        source,
    };
    if !aside::is_vacant(layout).map_err(at)? {
        return Err(RecoveryError::Occupied(layout.clone()));
    }
    let Backup {
        description,
        state,
        keys,
    } = backup;
    let keys = keys.into_iter().map(|key| (key.epoch, key.key));
    let mut state = state.read_with(Keyring::of_data_keys(keys));
    let (cluster_id, lineage) = (description.cluster_id, Lineage(random_u64()));
    let node_id = NodeId(random_u64());
    let authority = state.cluster_ca().ok_or(Refusal::NotInitialised)?;
    let ca = state.open_ca(authority)?;
    let key = NodeKey::load_or_create(layout)?;
    let now = UNIX_EPOCH + Duration::from_millis(now_ms);
    let name = host_name();
    let certificate =
        ca.issue_node(cluster_id, node_id, &name, &Csr::parse(key.request())?, now)?;
    let sole = Member {
        node_id,
        name,
        // The node itself says where it is reached, once it runs.
        addresses: Addresses::default(),
        spki: key.spki(),
        csr: None,
        certificate: Some(certificate.clone()),
        joined_ms: now_ms,
        incarnation: 0,
        feature_level: FEATURE_LEVEL,
        standing: Standing::Member,
        suffrage: Suffrage::Auto,
        draining: false,
    };
    let detail = format!("restored from a backup of index {}", description.index);
    state.begin_lineage(lineage, sole, now_ms, &detail)?;

    let authorities = state
        .cluster_cas()
        .map(|authority| authority.certificate_der.clone().into())
        .collect();
    let identity = Identity::issued(key, certificate.der.into(), authorities)
        .expect("issued for this very key");
    identity.store(layout)?;
    share_secrets(&mut state, layout, node_id, now_ms)?;
    if let Some(target) = policy_of(&state) {
        lkg::write(&layout.data_dir, &target)?;
    }
    // As one that has joined: the command line that the node is started with may name others, and stays.
    let mut meta = Meta::new(cluster_id, lineage, node_id);
    meta.joined = true;
    let last = LogId::new(
        <LeaderId as openraft::vote::RaftLeaderIdExt>::new_committed(1, node_id),
        state.index(),
    );
    write(layout, &meta, &state, last, 1).await.map_err(at)?;
    aside::replace(layout, "before-restore", Away::Replaced).map_err(at)?;
    identity.commit(layout)?;
    Ok(Begun {
        cluster_id,
        lineage,
        node_id,
        aside: None,
    })
}

/// Wraps the data key for the sealing key of this node, which is made if there is none.
fn share_secrets(
    state: &mut State,
    layout: &Layout,
    node_id: NodeId,
    now_ms: u64,
) -> Result<(), RecoveryError> {
    let Some((epoch, open)) = state.open_data_key()? else {
        return Ok(());
    };
    let public = identity::sealing_key(layout)?.public();
    let set = TrustChange::SetSealingKey {
        node_id,
        public: ByteBuf::from(public.to_vec()),
    };
    let wrap = TrustChange::Wrap {
        node_id,
        epoch,
        wrapped: keyring::wrap(&open, epoch, &public)?,
    };
    for change in [set, wrap] {
        state.decide(Command::Trust(change), node_id, now_ms)?;
    }
    Ok(())
}

/// The policy in force, as a node keeps it to enforce it first.
fn policy_of(state: &State) -> Option<Target> {
    let policy = state.policy()?;
    Some(Target {
        lineage: state.lineage()?,
        index: policy.index,
        revision: policy.revision,
        hash: policy.hash.0,
        document: state.document(policy)?.into(),
    })
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Never 0, which stands for "none" in places.
fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source does not fail");
    u64::from_ne_bytes(bytes).max(1)
}

/// Writes a log that begins with `state`, with the member of `meta` as its only voter, to the place for new data.
async fn write(
    layout: &Layout,
    meta: &Meta,
    state: &State,
    last: LogId,
    term: u64,
) -> io::Result<()> {
    let node_id = meta.node_id;
    let next = aside::prepare(layout)?;
    let store = Store::open(&next.join(LOG), Io::Inline).map_err(io::Error::other)?;
    LogStore::<Tokio>::new(store.clone())
        .begin(Vote::new(term, node_id), last)
        .await?;
    store.close();
    let addresses = state
        .member(node_id)
        .map(|member| member.addresses.cluster.clone());
    let address = Address {
        cluster: addresses.unwrap_or_default(),
    };
    let membership =
        openraft::Membership::new(vec![[node_id].into()], BTreeMap::from([(node_id, address)]))
            .map_err(io::Error::other)?;
    let covered = Coverage {
        last: Some(last),
        membership: Membership::new(Some(last), membership),
    };
    let snapshots = DiskDirectory::open(next.join(SNAPSHOTS))?;
    let image = Image::encode_at_once(&covered, state);
    Shelf::new(Arc::new(snapshots)).put(&covered, &image)?;
    let authority = state
        .cluster_ca()
        .map(|authority| authority.certificate_der.clone())
        .unwrap_or_default();
    Peers::founded(&next, meta.cluster_id, meta.lineage, &authority.into())?;
    meta.store(&next).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{self, Description, Opener, Recipient};
    use crate::ca::{Ca, Purpose};
    use crate::command::{AccountSpec, AccountStatus, Author, Document, Init, Role, Stamped};
    use crate::node::{Environment, Node, NodeConfig};
    use crate::transport::memory::Switchboard;

    const POLICY: &[u8] = br#"{"default_policy":"deny"}"#;
    const NOW_MS: u64 = 1_700_000_000_000;

    fn layout(root: &Path) -> Layout {
        Layout {
            data_dir: root.join("cluster"),
            node_id_path: root.join("node_id"),
        }
    }

    fn init(node_id: NodeId) -> Init {
        let cluster_id = ClusterId([1; 16]);
        let now = UNIX_EPOCH + Duration::from_millis(NOW_MS);
        let ca = Ca::create(Purpose::Members, cluster_id, now).expect("creates");
        Init {
            cluster_ca: ca.authority(),
            feature_level: FEATURE_LEVEL,
            seed: crate::command::FirstMember {
                node_id,
                ..crate::state::tests::init().seed
            },
            ..crate::state::tests::init()
        }
    }

    /// A log as a member leaves it: a cluster of three voters, a policy and an account after it.
    async fn member(root: &Path, node_id: u64, accounts: usize, term: u64) -> Layout {
        let layout = layout(root);
        let node_id = NodeId(node_id);
        std::fs::create_dir_all(&layout.data_dir).expect("creates");
        let store = Store::open(&layout.data_dir.join(LOG), Io::Inline).expect("opens");
        let mut commands = vec![
            Command::Init(Box::new(init(NodeId(1)))),
            Command::PutPolicy {
                document: Document::Inline(ByteBuf::from(POLICY)),
                if_match: None,
                message: String::new(),
            },
        ];
        commands.extend((0..accounts).map(|n| {
            Command::CreateAccount(AccountSpec {
                name: format!("a{n}"),
                description: String::new(),
                role: Role::Admin,
                status: AccountStatus::Active,
            })
        }));
        let voters: std::collections::BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
        let nodes: BTreeMap<NodeId, Address> =
            voters.iter().map(|id| (*id, Address::default())).collect();
        let membership = openraft::Membership::new(vec![voters], nodes).expect("voters are nodes");
        let payloads = std::iter::once(openraft::EntryPayload::Membership(membership)).chain(
            commands.into_iter().enumerate().map(|(n, command)| {
                openraft::EntryPayload::Normal(crate::raft::Proposal::new(&Stamped {
                    command,
                    time_ms: NOW_MS,
                    seed: [n as u8; 32],
                    author: Author::default(),
                    idempotency_key: None,
                    request: None,
                }))
            }),
        );
        let entries = payloads
            .enumerate()
            .map(|(index, payload)| crate::raft::Entry {
                log_id: LogId::new(
                    <LeaderId as openraft::vote::RaftLeaderIdExt>::new_committed(term, NodeId(1)),
                    index as u64,
                ),
                payload,
            });
        LogStore::<Tokio>::new(store.clone())
            .fill(Vote::new(term, node_id), entries)
            .await
            .expect("writes");
        store.close();
        Meta::joined(ClusterId([1; 16]), Lineage(2), node_id)
            .store(&layout.data_dir)
            .expect("writes");
        layout
    }

    #[tokio::test]
    async fn the_longest_log_of_the_highest_term_is_the_best() {
        let root = tempfile::tempdir().expect("a directory");
        let mut holdings = Vec::new();
        for (node_id, accounts, term) in [(1, 2, 3), (2, 5, 3), (3, 1, 2)] {
            let layout = member(
                &root.path().join(node_id.to_string()),
                node_id,
                accounts,
                term,
            )
            .await;
            holdings.push(survey(&layout.data_dir).await.expect("is read"));
        }
        let choice = choose(&holdings)
            .expect("one cluster")
            .expect("there are some");
        assert_eq!((choice.best, choice.here, choice.voters), (1, 3, 3));
        assert!(choice.has_quorum());
        assert_eq!(holdings[1].state.accounts().count(), 5);
        holdings.truncate(1);
        let choice = choose(&holdings)
            .expect("one cluster")
            .expect("there is one");
        assert!(!choice.has_quorum());
    }

    #[tokio::test]
    async fn data_of_another_lineage_is_not_mixed_in() {
        let root = tempfile::tempdir().expect("a directory");
        let one = member(&root.path().join("1"), 1, 1, 1).await;
        let other = member(&root.path().join("2"), 2, 1, 1).await;
        let first = survey(&one.data_dir).await.expect("is read");
        let begun = recover(survey(&other.data_dir).await.expect("is read"), NOW_MS).await;
        // Node 2 is no member of the state that it holds: it was reserved by nobody.
        assert!(
            matches!(begun, Err(RecoveryError::Removed(NodeId(2)))),
            "{begun:?}"
        );
        recover(first, NOW_MS).await.expect("recovers");
        let holdings = [
            survey(&one.data_dir).await.expect("is read"),
            survey(&other.data_dir).await.expect("is read"),
        ];
        assert!(matches!(
            choose(&holdings),
            Err(RecoveryError::Mixed { .. })
        ));
        assert!(matches!(
            survey(&root.path().join("nowhere")).await,
            Err(RecoveryError::Nothing(_))
        ));
    }

    #[tokio::test]
    async fn a_recovered_node_leads_alone_with_everything_that_it_held() {
        let root = tempfile::tempdir().expect("a directory");
        let layout = member(root.path(), 1, 3, 7).await;
        let held = survey(&layout.data_dir).await.expect("is read");
        let index = held.end.index;
        let begun = recover(held, NOW_MS).await.expect("recovers");
        assert!(
            begun
                .aside
                .expect("the old data is kept")
                .join(LOG)
                .exists()
        );
        let node = started(&layout, begun.node_id).await;
        assert_eq!(node.lineage(), Some(begun.lineage));
        let state = node.state();
        assert_eq!(state.accounts().count(), 3);
        let policy = state.policy().expect("there is one");
        assert_eq!(state.document(policy).as_deref(), Some(POLICY));
        assert!(node.status().last_index > index, "its own entries follow");
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_backup_is_restored_on_an_empty_node_only() {
        let root = tempfile::tempdir().expect("a directory");
        let old = member(&root.path().join("old"), 1, 4, 7).await;
        let held = survey(&old.data_dir).await.expect("is read");
        let (key, recipient) = backup::generate_key();
        let description =
            Description::of(&held.state, NodeId(1), NOW_MS).expect("there is a cluster");
        let recipient = Recipient::key(&recipient).expect("is one");
        let file = backup::seal(&description, &held.state, &[], &recipient).expect("seals");
        let opened = || {
            let opener = Opener::keys(&key).expect("is one");
            backup::open(&file, &opener).expect("opens")
        };
        let occupied = restore(opened(), &old, NOW_MS).await;
        assert!(
            matches!(occupied, Err(RecoveryError::Occupied(_))),
            "{occupied:?}"
        );

        let fresh = layout(&root.path().join("fresh"));
        let begun = restore(opened(), &fresh, NOW_MS).await.expect("restores");
        assert_ne!(begun.lineage, Lineage(2));
        let kept = lkg::read(&fresh.data_dir)
            .expect("reads")
            .expect("there is one");
        assert_eq!(&*kept.document, POLICY);
        let meta = Meta::load(&fresh.data_dir)
            .expect("reads")
            .expect("is there");
        Identity::load(&fresh, Some(meta.owner())).expect("fits the data");
        let node = started(&fresh, begun.node_id).await;
        let state = node.state();
        assert_eq!(state.accounts().count(), 4);
        assert_eq!(state.members().count(), 1);
        assert!(state.removed(NodeId(1)).is_some());
        node.shutdown().await;
    }

    /// The node on this data, once it leads.
    async fn started(layout: &Layout, node_id: NodeId) -> Node {
        let store = Store::open(&layout.data_dir.join(LOG), Io::Threaded).expect("opens");
        let snapshots = DiskDirectory::open(layout.data_dir.join(SNAPSHOTS)).expect("opens");
        let board = Switchboard::new();
        let environment = Environment::system(&layout.data_dir);
        let node = Node::start(
            NodeConfig::new(node_id),
            environment,
            store,
            Arc::new(snapshots),
            board.transport(node_id),
        )
        .await
        .expect("starts");
        let leads = async {
            while !matches!(node.role(), crate::Role::Leader { .. })
                || node.read_index().await.is_err()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), leads)
            .await
            .expect("it leads");
        node
    }
}
