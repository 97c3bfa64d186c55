//! `cluster.*`: membership, listeners, where the replicated state lies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use cluster::Timing;
use cluster::backup::Recipient;

use super::key::{Part, section};
use super::net::Peer;
use super::read::Reader;
use super::value::choice;

/// Where the cluster listens unless told otherwise: on this host only.
const BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9600);

section! {
    /// Replication of policy, accounts and keys between nodes. A node is always a cluster of one; giving any of the
    /// keys marked "turns cluster mode on" opens its listeners.
    Cluster, Part::Cluster;

    /// Address and port on which members talk to each other.
    bind: SocketAddr = BIND, enables_cluster();
    /// Address and port on which new members ask to join.
    join_bind: Option<SocketAddr> = None, default_is("the address of cluster.bind, its port + 1"), enables_cluster();
    /// Address and port under which other members reach `cluster.bind`.
    advertise: Option<SocketAddr> = None, default_is("cluster.bind"), enables_cluster();
    /// Join listeners of members to join, or to find again; one's own is skipped. None: found a cluster.
    /// The port may be left out (9601).
    join: Vec<Peer> = Vec::new(), flag("join"), file_alias("join_seed"), enables_cluster();
    /// Lets a standalone node that holds state of its own join a cluster, which discards that state.
    join_discard_local: bool = false, flag("join-discard-local");
    /// Whether a new member with a valid proof is taken in at once, or waits for `neuwerk cluster members approve`.
    /// `manual` on any member that leads holds for the whole cluster.
    join_approval: JoinApproval = JoinApproval::Auto;
    /// Log, snapshots, identity and last known good policy.
    data_dir: PathBuf = PathBuf::from("/var/lib/neuwerk/cluster"), enables_cluster();
    /// This node's id.
    node_id_path: PathBuf = PathBuf::from("/var/lib/neuwerk/node_id"), flag("node-id-path"), enables_cluster();
    /// The secret by which a new member and the cluster recognise each other.
    token_path: PathBuf = PathBuf::from("/var/lib/neuwerk/bootstrap-token"),
        flag("bootstrap-token-path"), enables_cluster();
    /// How often the leader is heard.
    heartbeat_ms: Option<u32> = None, unit("ms"), range(10..=60_000),
        default_is("100, times what round trips and syncs need");
    /// Shortest silence after which a follower stands for election.
    election_min_ms: Option<u32> = None, unit("ms"), range(10..=600_000),
        default_is("200, times what round trips and syncs need");
    /// Longest silence after which a follower stands for election.
    election_max_ms: Option<u32> = None, unit("ms"), range(10..=600_000),
        default_is("400, times what round trips and syncs need");
    /// After an upgrade: how long every member must have run the new version, without a break, before the cluster uses
    /// what the old one does not understand. Until then each node can go back to the old version.
    feature_level_delay_secs: u32 = 600, unit("s"), range(0..=31_536_000);
    /// How long a voter must have been unreachable before a member that does not vote takes its place, if there is one.
    /// The leader's value holds.
    replace_after_secs: u32 = 600, unit("s"), range(10..=2_592_000);
    /// Accepted and not needed: the state of a standalone node is already that of a cluster of one.
    migrate_from_local: bool = false, part(Part::Migration);
    /// Accepted and not needed, see `migrate_from_local`.
    migrate_force: bool = false, part(Part::Migration);
    /// Accepted and not needed, see `migrate_from_local`.
    migrate_verify: bool = false, part(Part::Migration);

    group backup: Backup;
}

section! {
    /// Scheduled backups of the replicated state.
    Backup, Part::Backup;

    /// Where backups are written. Unset: none are.
    directory: Option<PathBuf> = None;
    /// Time between two backups.
    interval_secs: u32 = 86_400, unit("s"), range(60..=31_536_000);
    /// How many backups are kept.
    keep: u32 = 7, range(1..=10_000);
    /// Public key that backups are sealed for, as `neuwerk cluster backup keygen` prints it.
    recipient: Option<String> = None;
}

impl Backup {
    /// Whom backups are sealed for.
    pub fn recipient(&self) -> Option<Recipient> {
        Recipient::key(self.recipient.as_deref()?).ok()
    }

    fn check(&self, reader: &mut Reader) {
        if let Some(key) = &self.recipient
            && let Err(error) = Recipient::key(key)
        {
            reader.problem("cluster.backup.recipient", error.to_string());
        }
        if self.directory.is_some() && self.recipient.is_none() {
            reader.problem(
                "cluster.backup.directory",
                "backups need cluster.backup.recipient to be sealed for".into(),
            );
        }
    }
}

choice! {
    /// How a new member with a valid proof is taken in.
    JoinApproval {
        /// At once.
        Auto = "auto",
        /// When an operator says so.
        Manual = "manual",
    }
}

impl From<JoinApproval> for cluster::command::JoinApproval {
    fn from(approval: JoinApproval) -> Self {
        match approval {
            JoinApproval::Auto => Self::Auto,
            JoinApproval::Manual => Self::Manual,
        }
    }
}

impl Cluster {
    /// Where new members ask to join.
    pub fn join_bind(&self) -> SocketAddr {
        self.join_bind
            .unwrap_or_else(|| SocketAddr::new(self.bind.ip(), self.bind.port().saturating_add(1)))
    }

    /// Under which address other members reach this one.
    pub fn advertise(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.bind)
    }

    /// Whether the timers of consensus are configured; otherwise they follow what the members measure.
    pub fn has_own_timers(&self) -> bool {
        let keys = [
            self.heartbeat_ms,
            self.election_min_ms,
            self.election_max_ms,
        ];
        keys.iter().any(Option::is_some)
    }

    /// The timers of consensus, as they are configured or for a LAN.
    pub fn timing(&self) -> Timing {
        let default = Timing::default();
        let or = |key: Option<u32>, default: u64| key.map_or(default, u64::from);
        Timing {
            heartbeat_ms: or(self.heartbeat_ms, default.heartbeat_ms),
            election_min_ms: or(self.election_min_ms, default.election_min_ms),
            election_max_ms: or(self.election_max_ms, default.election_max_ms),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader) {
        let advertise = self.advertise();
        let advertise_key = if self.advertise.is_some() {
            "cluster.advertise"
        } else {
            "cluster.bind"
        };
        let remedy = "set cluster.advertise to an address that the other members reach";
        let remote = |peer: &&Peer| peer.ip().is_some_and(|ip| !ip.is_loopback());
        if advertise.ip().is_unspecified() {
            reader.problem(
                advertise_key,
                format!("{advertise} cannot be advertised; {remedy}"),
            );
        } else if advertise.ip().is_loopback() && !self.bind.ip().is_loopback() {
            reader.problem(
                advertise_key,
                format!("{advertise} is reachable from this host only; {remedy}"),
            );
        } else if let Some(peer) = self.join.iter().find(remote)
            && advertise.ip().is_loopback()
        {
            let reason = format!(
                "{peer} could not reach back to {advertise}; set cluster.bind to an address that the other members reach"
            );
            reader.problem("cluster.join", reason);
        }
        if self.join_bind.is_none() && self.bind.port() == u16::MAX {
            reader.problem(
                "cluster.bind",
                "65535 leaves no port for joining; set cluster.join_bind".into(),
            );
        } else if self.join_bind() == self.bind && self.bind.port() != 0 {
            reader.problem(
                "cluster.join_bind",
                format!("{} is cluster.bind already; choose another port", self.bind),
            );
        }
        self.check_timers(reader);
        self.backup.check(reader);
    }

    /// A follower must hear several heartbeats before it may lose patience.
    fn check_timers(&self, reader: &mut Reader) {
        let Timing {
            heartbeat_ms,
            election_min_ms: min_ms,
            election_max_ms: max_ms,
        } = self.timing();
        if self.heartbeat_ms.or(self.election_min_ms).is_some()
            && min_ms < heartbeat_ms.saturating_mul(2)
        {
            let reason =
                format!("{min_ms} ms is less than two heartbeats of {heartbeat_ms} ms; raise it");
            reader.problem("cluster.election_min_ms", reason);
        }
        if self.election_min_ms.or(self.election_max_ms).is_some() && max_ms <= min_ms {
            let reason =
                format!("{max_ms} ms must be more than cluster.election_min_ms, {min_ms} ms");
            reader.problem("cluster.election_max_ms", reason);
        }
    }
}
