//! The control plane's life on this node: found, join or resume; talk to members; replay the policy; and after a fault
//! start again from disk, with back-off, while the dataplane goes on.
//!
//! One screen, top to bottom: [`supervise`] → [`Control::run`] → [`Control::identity`] → [`Control::serve`],
//! which [`Member::enter`]s, [`Control::open_listeners`] and [`Control::follow`]s.

mod enforce;
mod founding;
pub mod rejoin;
mod report;
mod storage;
mod tempo;
mod trust;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use cluster::command::{Addresses, EventKind, Init};
use cluster::identity::{self, Identity, Layout, NodeKey, OnDisk};
use cluster::join::client::{JoinOptions, join};
use cluster::join::listener::{JoinCounters, JoinListener};
use cluster::join::protocol::Application;
use cluster::join::secret;
use cluster::keyring::Keyring;
use cluster::meta::Meta;
use cluster::node::FEATURE_LEVEL;
use cluster::peers::Peers;
use cluster::replay::{self, Progress};
use cluster::store::files::DiskDirectory;
use cluster::store::{Io, Store};
use cluster::tls::Trust;
use cluster::transport::grpc::GrpcTransport;
use cluster::{Environment, Node, NodeConfig, NodeReport, Role, State, TrustReport};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::drain::Drain;
use crate::grants::Grants;
use crate::handover::{Listening, Sockets};
use crate::http::certificate::{self, Certificates};
use crate::metrics::Links;
use crate::{auth, backup, http, sysdump};
pub use enforce::compile;
pub(crate) use founding::random_u64;

/// First pause after a fault of the control plane, and the longest one.
const RESTART_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How long a node has had no leader before it is taken for one that the cluster was recovered without.
const ALONE_AFTER: Duration = Duration::from_secs(10);

/// How often what failed in replay is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the control plane works with; all of it outlives a restart of the control plane.
pub struct Control {
    /// Where consensus runs: one thread, so that a write is passed from task to task without waking another one.
    pub consensus: runtime::Handle,
    /// The configuration.
    pub config: Arc<Config>,
    /// The management API, which follows whether there is a control plane.
    pub http: Arc<http::App>,
    /// Holder of the server certificate of the management API.
    pub certificates: Arc<Certificates>,
    /// The listening sockets of this process.
    pub sockets: Sockets,
    /// The packet workers.
    pub dataplane: Arc<Dataplane>,
    /// What clients may reach by name.
    pub grants: Arc<Grants>,
    /// Whether this node takes new flows.
    pub drain: Arc<Drain>,
    /// Where other nodes and clients reach this node's management API.
    pub http_address: watch::Receiver<Option<SocketAddr>>,
    /// How far replay has come; starts at the last-known-good policy.
    pub progress: watch::Sender<Progress>,
}

/// Runs the control plane until `stop`, restarting it after faults.
///
/// A request to join anew ends the life that there is, and the next one begins with nothing; other timers for consensus,
/// and a log that was moved away, end it as well.
pub async fn supervise(control: Arc<Control>, stop: CancellationToken) {
    let (mut pause, longest) = RESTART_PAUSES;
    let (asking, mut asked) = mpsc::channel(1);
    control.http.set_rejoin(asking);
    loop {
        let started = tokio::time::Instant::now();
        let life = stop.child_token();
        let (ended, request) = {
            let mut running = std::pin::pin!(control.run(&life));
            tokio::select! {
                ended = &mut running => (ended, None),
                Some(request) = asked.recv() => {
                    life.cancel();
                    (running.await, Some(request))
                }
            }
        };
        control.http.set_node(None);
        if let Some(request) = request {
            control.rejoin(request);
            pause = RESTART_PAUSES.0;
            continue;
        }
        let Err(error) = ended else {
            if stop.is_cancelled() {
                return;
            }
            let waiting = "the control plane starts anew";
            control.http.readiness().set_waiting_for(waiting);
            continue;
        };
        let reason = format!("{error:#}");
        tracing::error!(
            reason,
            "the control plane has stopped and will be restarted; the policy stays in force"
        );
        control.http.readiness().set_waiting_for(reason);
        if started.elapsed() > longest * 2 {
            pause = RESTART_PAUSES.0;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Some(request) = asked.recv() => {
                control.rejoin(request);
                pause = RESTART_PAUSES.0;
            }
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
        }
    }
}

impl Control {
    /// Puts this node's data aside, so that the next life joins anew.
    fn rejoin(&self, request: rejoin::Rejoin) {
        let outcome = rejoin::put_aside(&self.config, &self.layout(), &request.join);
        match &outcome {
            Ok(rejoining) => {
                tracing::warn!(kept_at = rejoining.kept_at, join = ?rejoining.join, "joining anew; the old data was put aside");
                let waiting = format!("joining anew through {}", rejoining.join.join(", "));
                self.http.readiness().set_waiting_for(waiting);
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "this node cannot join anew")
            }
        }
        // Whoever asked may have gone.
        let _ = request
            .answer
            .send(outcome.map_err(|error| format!("{error:#}")));
    }

    fn layout(&self) -> Layout {
        Layout {
            data_dir: self.config.cluster.data_dir.clone(),
            node_id_path: self.config.cluster.node_id_path.clone(),
        }
    }

    /// One life of the control plane: ends well when `stop` is given or it is to begin anew, otherwise with the fault.
    async fn run(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let cluster = &self.config.cluster;
        let layout = self.layout();
        cluster::durable::create_directory(&cluster.data_dir)
            .with_context(|| format!("cannot create {}", cluster.data_dir.display()))?;
        cluster::aside::finish(&layout).with_context(|| {
            format!(
                "a change of {} cannot be finished",
                cluster.data_dir.display()
            )
        })?;
        let Some(member) = self.identity(&layout, stop).await? else {
            return Ok(());
        };
        self.serve(member, &layout, stop).await
    }

    /// The identity to run under: the one on disk, one that a cluster grants, or that of a new cluster's first member.
    /// None when `stop` came first.
    async fn identity(
        &self,
        layout: &Layout,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Member>> {
        let cluster = &self.config.cluster;
        let data_dir = &layout.data_dir;
        let mut meta = Meta::load(data_dir)?;
        if let Some(own) = &meta {
            own.admits(self.config.cluster_mode, data_dir)?;
            match own.admits_join(data_dir) {
                Ok(()) => {}
                Err(_) if cluster.join.is_empty() => {}
                Err(_) if cluster.join_discard_local => {
                    founding::discard(layout)?;
                    meta = None;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        if let OnDisk::Member(identity) = Identity::load(layout, meta.as_ref().map(Meta::owner))? {
            let meta = meta.expect("an identity is only loaded for its owner");
            let peers =
                Peers::load(data_dir)?.ok_or_else(|| founding::missing(data_dir, "peers.json"))?;
            if !data_dir.join(founding::LOG).exists() {
                storage::admit_without_log(data_dir, &identity, &peers)?;
            }
            return Ok(Some(Member {
                identity: *identity,
                peers,
                meta,
                init: None,
            }));
        }
        let anew = rejoin::pending(data_dir).context("it cannot be read where to join anew")?;
        let configured = || cluster.join.iter().map(ToString::to_string).collect();
        let addresses: Vec<String> = anew.unwrap_or_else(configured);
        if addresses.is_empty() {
            return founding::found(&self.config, layout, self.addresses()).map(Some);
        }
        tokio::select! {
            () = stop.cancelled() => Ok(None),
            member = self.join(layout, addresses) => member.map(Some),
        }
    }

    /// Knocks at join listeners until one lets this node in, and writes down who it is from then on.
    async fn join(&self, layout: &Layout, addresses: Vec<String>) -> anyhow::Result<Member> {
        let cluster = &self.config.cluster;
        let key = NodeKey::load_or_create(layout)?;
        let token_path = cluster.token_path.clone();
        let readiness = Arc::clone(&self.http);
        let options = JoinOptions {
            addresses,
            own: vec![cluster.join_bind(), cluster.advertise()],
            held: Arc::new(move || secret::load(&token_path)),
            application: Application {
                csr: key.request().to_vec(),
                name: host_name(),
                addresses: self.addresses(),
                version: env!("CARGO_PKG_VERSION").into(),
                feature_level: FEATURE_LEVEL,
            },
            on_failure: Box::new(move |address, error| {
                let chain = chain(error);
                readiness
                    .readiness()
                    .set_waiting_for(format!("joining through {address}: {chain}"));
            }),
        };
        tracing::info!(addresses = ?options.addresses, "asking to join a cluster");
        let grant = join(&options).await;
        let certificate = grant.certificate.clone().into();
        let authorities = grant
            .authorities
            .iter()
            .map(|der| der.to_vec().into())
            .collect();
        let identity = Identity::issued(key, certificate, authorities)
            .context("the certificate that the cluster issued is not for this node's key")?;
        tracing::info!(cluster_id = %grant.cluster_id, node_id = %grant.node_id, "admitted to the cluster");
        let peers = Peers::granted(&layout.data_dir, &grant)?;
        // The store exists before `meta.json` does: a member without one has lost its data.
        let store = Store::open(&layout.data_dir.join(founding::LOG), Io::Threaded)?;
        tokio::task::spawn_blocking(move || store.close()).await?;
        let meta = Meta::joined(grant.cluster_id, grant.lineage, grant.node_id);
        founding::record(layout, &identity, &meta)?;
        rejoin::done(&layout.data_dir)?;
        Ok(Member {
            identity,
            peers,
            meta,
            init: None,
        })
    }

    /// Opens the store and runs the member on it until `stop`, a fault, or a reason to begin anew; the store is closed
    /// again in any case.
    async fn serve(
        &self,
        mut member: Member,
        layout: &Layout,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let data_dir = &self.config.cluster.data_dir;
        let store = storage::open(&self.config, &member.meta, &member.peers).await?;
        let snapshots = Arc::new(DiskDirectory::open(data_dir.join("snapshots"))?);
        let trust = Trust::new(&member.identity, member.peers.pins(&State::default()))?;
        let sealing = identity::sealing_key(layout)?;
        let node_id = member.identity.node_id;
        let transport = GrpcTransport::new(Arc::clone(&trust));
        let cluster = &self.config.cluster;
        let stretch = (!cluster.has_own_timers()).then(|| tempo::recall(data_dir));
        let config = NodeConfig {
            name: host_name(),
            addresses: self.addresses(),
            incarnation: founding::random_u64(),
            timing: cluster.timing().stretched(stretch.unwrap_or(1)),
            stretch,
            raise_after: Duration::from_secs(self.config.cluster.feature_level_delay_secs.into()),
            keyring: Keyring::new(node_id, member.identity.key.pkcs8(), sealing),
            join_approval: self.config.cluster.join_approval.into(),
            find_at: self.find_at(),
            replace_after: Duration::from_secs(u64::from(self.config.cluster.replace_after_secs)),
            known_members: storage::others(&member.meta, &member.peers),
            refetch: storage::refetch(data_dir),
            ..NodeConfig::new(node_id)
        };
        let environment = Environment::system(data_dir);
        let starting = Node::start(config, environment, store, snapshots, transport.clone());
        let node =
            self.consensus.spawn(starting).await?.map_err(|error| {
                storage::cannot_start(error, data_dir, &member.meta, &member.peers)
            })?;

        // What is spawned for this life of the control plane ends with it.
        let life = CancellationToken::new();
        let ended = life.clone().drop_guard();
        let ending = node.clone();
        let mut failed =
            AbortOnDropHandle::new(self.consensus.spawn(async move { ending.failed().await }));
        let outcome = async {
            member.enter(&node, layout).await?;
            let join = self.open_listeners(&node, &transport, &life).await?;
            self.http.set_links(Links {
                trust: Arc::clone(&trust),
                tally: transport.tally(),
                join,
            });
            self.follow(member, layout, &node, trust, &life);
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = tempo::changed(&node, data_dir) => Ok(()),
                () = storage::moved(data_dir, &node) => Ok(()),
                failure = &mut failed => Err(failure?.into()),
                // The state has no writer any more: consensus has ended, and its failure is about to be told.
                () = self.replay(&node) => Err(node.failed().await.into()),
            }
        }
        .await;
        if outcome.is_ok()
            && let Err(error) = node.transfer_leader(None).await
        {
            tracing::debug!(%error, "leadership is not handed over");
        }
        drop((ended, failed));
        node.shutdown().await;
        outcome
    }

    /// Answers members and joiners, in cluster mode, and returns what is counted of joiners.
    async fn open_listeners(
        &self,
        node: &Node,
        transport: &GrpcTransport,
        life: &CancellationToken,
    ) -> anyhow::Result<Option<Arc<JoinCounters>>> {
        node.answer_enrolments();
        node.answer_events();
        node.set_http_handler(self.http.forward_handler());
        node.set_admin_handler(self.http.admin_handler());
        auth::answer_mint(node, Arc::clone(self.http.minted()));
        sysdump::member::answer(node, &self.http);
        let cluster = &self.config.cluster;
        if !self.config.cluster_mode {
            return Ok(None);
        }
        let bound = self.listen("cluster.bind", "cluster", cluster.bind);
        let (listener, listening) = bound.await?;
        let serving = transport.serve(listener, node.service(), life.clone());
        self.consensus.spawn(async move {
            serve_members(serving).await;
            drop(listening);
        });
        let bound = self.listen("cluster.join_bind", "join", cluster.join_bind());
        let (listener, listening) = bound.await?;
        let join = self.join_listener(node)?;
        let counters = join.counters();
        let serving = join.serve(listener, life.clone());
        tokio::spawn(async move {
            serving.await;
            drop(listening);
        });
        Ok(Some(counters))
    }

    async fn listen(
        &self,
        key: &str,
        name: &'static str,
        address: SocketAddr,
    ) -> anyhow::Result<(TcpListener, Listening)> {
        self.config.off_data_ports(key, address)?;
        self.sockets
            .listen(name, address)
            .await
            .with_context(|| format!("cannot listen on {address} ({key})"))
    }

    /// Spawns what follows the state: trust, certificates, reports, and the management API.
    fn follow(
        &self,
        member: Member,
        layout: &Layout,
        node: &Node,
        trust: Arc<Trust>,
        life: &CancellationToken,
    ) {
        tokio::spawn(watch_lineage(
            Arc::clone(&trust),
            Arc::clone(&self.http),
            life.clone(),
        ));
        let data_dir = self.config.cluster.data_dir.clone();
        tokio::spawn(storage::keep_reserve(data_dir, life.clone()));
        let (told, trusts) = watch::channel(TrustReport::default());
        let follower = trust::Follower {
            trust,
            identity: member.identity,
            peers: member.peers,
            meta: member.meta,
            layout: layout.clone(),
            told,
            told_of: BTreeMap::new(),
        };
        tokio::spawn(follower.run(node.clone(), life.clone()));
        let issuers = node.watch_changes(certificate::is_another_issuer);
        tokio::spawn(self.certificates.clone().follow(issuers, life.clone()));
        tokio::spawn(report::run(self.reporter(node, trusts), life.clone()));
        tokio::spawn(self.tell_mints(node.clone(), life.clone()));
        let keys = self.config.cluster.backup.clone();
        tokio::spawn(backup::run(
            node.clone(),
            keys,
            self.http.backups(),
            life.clone(),
        ));
        tokio::spawn(Arc::clone(&self.drain).follow(node.clone(), life.clone()));
        Arc::clone(&self.grants).keep_in_step(node, life.clone());
        self.http.set_node(Some(node.clone()));
    }

    /// Tells the leader of tokens that were minted here, whenever there is one.
    fn tell_mints(&self, node: Node, life: CancellationToken) -> impl Future<Output = ()> + use<> {
        let minted = Arc::clone(self.http.minted());
        if let Err(error) = minted.open(&self.config.cluster.data_dir) {
            tracing::error!(%error, "the list of tokens minted before cannot be read");
        }
        async move {
            tokio::select! {
                () = life.cancelled() => {}
                () = minted.tell(&node) => {}
            }
        }
    }

    fn join_listener(&self, node: &Node) -> anyhow::Result<Arc<JoinListener>> {
        let path = self.config.cluster.token_path.clone();
        secret::load_or_create(&path)?;
        let (node, enrolling) = (node.clone(), node.clone());
        let enrol = move |request| {
            let node = enrolling.clone();
            Box::pin(async move { node.enrol(request).await }) as _
        };
        let (secrets, tokens) = (
            node.bootstrap_secrets(Arc::new(move || secret::load(&path))),
            node.token_offers(),
        );
        let told = move |source: SocketAddr, reason: String| {
            node.note(EventKind::JoinRefused, source.ip().to_string(), reason);
        };
        Ok(JoinListener::with(
            secrets,
            Some(tokens),
            Arc::new(enrol),
            Some(Box::new(told)),
        )?)
    }

    /// Follows the applied policy until the node stops, retrying what failed.
    async fn replay(&self, node: &Node) {
        let (targets, seen) = watch::channel(None);
        let data_dir = self.config.cluster.data_dir.clone();
        let enforcer = enforce::Enforcer::new(Arc::clone(&self.dataplane), data_dir);
        let feed = async {
            let mut state = node.watch_changes(enforce::is_another_policy);
            let mut last = None;
            loop {
                let newer = enforce::newer(&state.borrow_and_update(), last);
                if let Some(target) = newer {
                    last = Some(target.index);
                    targets.send_replace(Some(target));
                } else if self.progress.borrow().failure.is_some() {
                    targets.send_modify(|_same_again| {});
                }
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        };
        tokio::select! {
            () = feed => {}
            () = replay::run(&enforcer, seen, &self.progress) => {}
        }
    }

    fn reporter(&self, node: &Node, trusts: watch::Receiver<TrustReport>) -> report::Reporter {
        report::Reporter {
            node: node.clone(),
            trusts,
            http: Arc::clone(&self.http),
            http_address: self.http_address.clone(),
            progress: self.progress.subscribe(),
            drain: Arc::clone(&self.drain),
            fixed: NodeReport {
                version: env!("CARGO_PKG_VERSION").into(),
                mode: self.config.bootstrap.data_plane_mode.to_string(),
                configuration_hash: self.config.hash(),
                ..NodeReport::default()
            },
        }
    }

    fn addresses(&self) -> Addresses {
        let cluster = &self.config.cluster;
        let join = SocketAddr::new(cluster.advertise().ip(), cluster.join_bind().port());
        let http = *self.http_address.borrow();
        Addresses {
            cluster: cluster.advertise().to_string(),
            join: join.to_string(),
            http: http.map(|http| http.to_string()).unwrap_or_default(),
        }
    }

    /// Cluster listeners beside the join listeners that were given. A port is the join listener's, which is the one
    /// above the cluster listener's unless configured otherwise; that of a cluster listener will do too.
    fn find_at(&self) -> Vec<String> {
        let joins = self.config.cluster.join.iter();
        joins
            .flat_map(|peer| {
                let host = match peer.ip() {
                    Some(IpAddr::V6(ip)) => format!("[{ip}]"),
                    _ => peer.host.clone(),
                };
                [peer.port.saturating_sub(1), peer.port].map(|port| format!("{host}:{port}"))
            })
            .collect()
    }
}

/// Says so where members go on under another lineage and this node has had no leader for [`ALONE_AFTER`], until `life`
/// ends. One that has a leader meets a member of another lineage as well, where that one was recovered by mistake.
async fn watch_lineage(trust: Arc<Trust>, http: Arc<http::App>, life: CancellationToken) {
    let mut led = tokio::time::Instant::now();
    let mut met_then = 0;
    loop {
        let met = trust.alerts().other_lineage.load(Ordering::Relaxed);
        let leads_somebody = |node: Arc<Node>| !matches!(node.role(), Role::NoLeader { .. });
        if http.member().is_some_and(leads_somebody) {
            (led, met_then) = (tokio::time::Instant::now(), met);
        }
        let superseded = met > met_then && led.elapsed() >= ALONE_AFTER;
        http.readiness().set_superseded(superseded);
        tokio::select! {
            () = life.cancelled() => return http.readiness().set_superseded(false),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Answers other members until it is stopped.
async fn serve_members<E: std::error::Error>(serving: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "the cluster listener has ended");
    }
}

/// An error with what led to it, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// A node that is, or is about to become, a member.
struct Member {
    identity: Identity,
    peers: Peers,
    meta: Meta,
    /// The first entry of a cluster that this node founds.
    init: Option<Init>,
}

impl Member {
    /// Founds the cluster, if that is to be done, and makes sure that the state is the one that this member belongs to.
    async fn enter(&mut self, node: &Node, layout: &Layout) -> anyhow::Result<()> {
        if let Some(init) = self.init.take() {
            node.found(init).await?;
            founding::record(layout, &self.identity, &self.meta)?;
            let Meta {
                cluster_id,
                node_id,
                ..
            } = &self.meta;
            tracing::info!(%cluster_id, %node_id, "founded a cluster");
        }
        Ok(self.meta.admits_state(&node.state(), &layout.data_dir)?)
    }
}
