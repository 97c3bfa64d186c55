//! The node as a whole: what starts in which order, and how it stops.
//!
//! The dataplane comes first, under the last-known-good policy, and goes last. Management listens before there is a
//! control plane, so that a node which waits to join can say what it waits for. Runtimes keep apart what must not
//! stall one another: packets (plain threads), consensus, the rest of the control plane, and everything that talks HTTP.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cluster::replay::{Mark, Progress, Target};
use policy::Compiled;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backup::Backups;
use crate::config::{self, Config, RecentLog};
use crate::control::{self, Control};
use crate::dataplane::{Dataplane, HeldDataplane, Judging};
use crate::drain::Drain;
use crate::grants::Grants;
use crate::handover::{Leaving, Listening, Received, Sockets, Successor};
use crate::http::certificate::Certificates;
use crate::metrics::Metrics;
use crate::readiness::{Part, Readiness};
use crate::signals::{Asked, Signals};
use crate::staleness::InForce;
use crate::{http, interfaces};

/// How often the packet workers are looked after.
const WATCHDOG: Duration = Duration::from_millis(500);

/// How often a listener that cannot be opened yet is tried again: the interface may still be without an address.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// Longest wait for connections and tasks once the node is drained.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait for resolvers' answers to queries that were read before.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Where a running node listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Management API; none while its interface has no address.
    pub http: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
}

/// A running node.
pub struct Running {
    /// Where it listens, as far as it does yet.
    pub addresses: watch::Receiver<Addresses>,
    app: Arc<http::App>,
    drain: Arc<Drain>,
    grants: Arc<Grants>,
    dataplane: HeldDataplane,
    stop_control: CancellationToken,
    stop_http: CancellationToken,
    stop_dns: CancellationToken,
    dns_tasks: TaskTracker,
    control_tasks: TaskTracker,
    http_tasks: TaskTracker,
    sockets: Sockets,
    drain_timeout: Duration,
    // Last, since tasks run on them.
    control_runtime: Runtime,
    consensus_runtime: Runtime,
    http_runtime: Runtime,
    dns_runtime: Option<Runtime>,
}

/// Starts a node and returns once packets flow under its last-known-good policy. `log` is what support archives show
/// of the process's log; `received` what the process before this one left.
///
/// # Errors
/// The dataplane cannot start, or what is on disk cannot be read.
pub fn start(config: Config, log: RecentLog, received: Received) -> anyhow::Result<Running> {
    let config = Arc::new(config);
    if !config.without_effect.is_empty() {
        let keys = config.without_effect.join(", ");
        tracing::warn!(keys, "settings without effect in this release");
    }
    let management = config.bootstrap.management_interface.as_str();
    if !interfaces::exists(management) {
        bail!("bootstrap.management_interface: there is no interface {management}");
    }

    let (policy, progress) = last_known_good(&config);
    let readiness = Arc::new(Readiness::default());
    let received = Arc::new(received);
    let grants = Grants::open(&config);
    let judging = Judging {
        policy,
        grants: Arc::clone(&grants),
    };
    let mut dataplane = HeldDataplane::start(&config, judging, &received)?;
    dataplane.ports().close_unclaimed();
    let acquiring = dataplane.take_addresses();
    let handed_over = received.report();
    received.tell();
    let sockets = received.sockets.clone();
    // The memory of what was handed over is free from here on.
    drop(received);
    if !config.cluster_mode {
        sockets.close_unclaimed(&["cluster", "join"]);
    }
    match (config.forwards_nothing(), &acquiring) {
        (Some(reason), _) => {
            tracing::warn!(reason, "nothing is forwarded");
            readiness.set_failed(Part::DataplaneConfig, reason);
        }
        (None, Some(_)) => {
            readiness.set_failed(Part::DataplaneConfig, "the data ports have no address yet");
        }
        (None, None) => readiness.set_ok(Part::DataplaneConfig, ""),
    }
    match progress.enforced.index {
        0 => {}
        _ => readiness.set_ok(Part::PolicyReady, "the last-known-good policy is enforced"),
    }

    let consensus_runtime = runtime("consensus", 1)?;
    let control_runtime = runtime("control", config.runtime.controlplane_worker_threads)?;
    let drain = control_runtime.block_on(Drain::resume(
        Arc::clone(dataplane.dataplane()),
        Arc::clone(&readiness),
        &config.cluster.data_dir,
    ));
    let http_runtime = runtime("http", config.runtime.http_worker_threads)?;
    let (stop_control, stop_http) = (CancellationToken::new(), CancellationToken::new());
    let stop_dns = CancellationToken::new();
    let (control_tasks, http_tasks) = (TaskTracker::new(), TaskTracker::new());
    let dns_tasks = TaskTracker::new();

    let mut metrics = Metrics::default();
    crate::metrics::handover::register(metrics.registry(), &handed_over);
    grants.register(metrics.registry());
    let proxy = crate::dns::proxy(&config, dataplane.dataplane(), &grants, metrics.registry())?;
    let app = http::App::new(Arc::clone(&readiness), metrics.http());
    app.set_dataplane(dataplane.dataplane());
    if let Some(proxy) = &proxy {
        app.set_names(proxy.metrics().clone());
    }
    control_runtime.spawn(Arc::clone(dataplane.dataplane()).keep_surveying());
    control_runtime.spawn(Arc::clone(dataplane.dataplane()).keep_gathering());
    control_runtime.spawn(Arc::clone(dataplane.dataplane()).keep_lane());
    let debug = &config.dpdk.overlay;
    let debugging = Arc::clone(dataplane.dataplane());
    control_runtime.spawn(debugging.keep_debugging(debug.debug, debug.health_probe_debug));
    app.set_support(Arc::clone(&config), log);
    app.set_backups(Arc::new(Backups::new(&config.cluster.backup)));
    let certificates = Certificates::new(&config)?;
    let (addresses, seen) = watch::channel(Addresses::default());
    let (http_address, advertised) = watch::channel(None);
    let (progress, _) = watch::channel(progress);
    let control = Arc::new(Control {
        consensus: consensus_runtime.handle().clone(),
        config: Arc::clone(&config),
        http: Arc::clone(&app),
        certificates: Arc::clone(&certificates),
        sockets: sockets.clone(),
        dataplane: Arc::clone(dataplane.dataplane()),
        grants: Arc::clone(&grants),
        drain: Arc::clone(&drain),
        http_address: advertised,
        progress,
    });

    let listeners = Listeners {
        config: Arc::clone(&config),
        app: Arc::clone(&app),
        certificates,
        metrics,
        addresses,
        http_address,
        sockets: sockets.clone(),
        stop: stop_http.clone(),
    };
    http_tasks.spawn_on(listeners.run(http_tasks.clone()), http_runtime.handle());
    let watched = Arc::clone(dataplane.dataplane());
    let watchdog = watchdog(watched, Arc::clone(&readiness), stop_control.clone());
    control_tasks.spawn_on(watchdog, control_runtime.handle());
    control_runtime.spawn(Arc::clone(&grants).keep(stop_control.clone()));
    let telling = Arc::clone(&grants).tell(Arc::clone(&readiness), stop_control.clone());
    control_runtime.spawn(telling);
    let in_force = InForce {
        max_staleness: config.policy.max_staleness,
        dataplane: Arc::clone(dataplane.dataplane()),
        app: Arc::clone(&app),
        progress: control.progress.subscribe(),
    };
    control_runtime.spawn(in_force.follow());
    if let Some(acquiring) = acquiring {
        let follow = acquiring.follow(
            Arc::clone(dataplane.dataplane()),
            Arc::clone(&readiness),
            Arc::clone(&app),
        );
        control_runtime.spawn(follow);
    }
    let dns_runtime = match proxy {
        None => None,
        Some(proxy) => {
            let dns_runtime = runtime("dns", crate::dns::THREADS)?;
            let listener = crate::dns::Listener {
                proxy,
                config: Arc::clone(&config),
                grants: Arc::clone(&grants),
                sockets: sockets.clone(),
                stop: stop_dns.clone(),
            };
            dns_tasks.spawn_on(listener.run(), dns_runtime.handle());
            Some(dns_runtime)
        }
    };
    control_tasks.spawn_on(
        control::supervise(control, stop_control.clone()),
        control_runtime.handle(),
    );

    Ok(Running {
        addresses: seen,
        app,
        grants,
        drain,
        dataplane,
        stop_control,
        stop_http,
        stop_dns,
        dns_tasks,
        control_tasks,
        http_tasks,
        sockets,
        drain_timeout: Duration::from_secs(u64::from(config.runtime.drain_timeout_secs)),
        control_runtime,
        consensus_runtime,
        http_runtime,
        dns_runtime,
    })
}

impl Running {
    /// Waits until the node is to stop, or to be replaced by a program that takes its configuration.
    fn wait_for_its_end(&self, signals: &Signals) -> anyhow::Result<Option<Successor>> {
        while signals.wait()? == Asked::ToRestart {
            let checked = Successor::of_this_process().and_then(|successor| {
                self.control_runtime.block_on(successor.check())?;
                Ok(successor)
            });
            match checked {
                Ok(successor) => return Ok(Some(successor)),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "this node is not restarted, and goes on");
                }
            }
        }
        Ok(None)
    }

    /// Takes no new flows, tells load balancers so, and waits until the last flow has ended or the drain time is over;
    /// then hands over leadership, stops listening, and gives the interfaces back.
    pub fn drain(self) {
        tracing::info!("draining");
        let dataplane = Arc::clone(self.dataplane.dataplane());
        self.control_runtime.block_on(async {
            self.drain.stop().await;
            let drained = async {
                while dataplane.active_flows() > 0 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            if tokio::time::timeout(self.drain_timeout, drained)
                .await
                .is_err()
            {
                let flows = dataplane.active_flows();
                tracing::info!(flows, "the drain time is over, the remaining flows are cut");
            }
            self.sockets.close();
        });
        drop(self.stop_control_plane());
        tracing::info!("stopped");
    }

    /// Hands leadership over and ends the control plane, while packets flow on.
    fn stop_control_plane(self) -> HeldDataplane {
        self.control_runtime.block_on(async {
            // Requests go on while leadership changes: until their listeners close, this node forwards them.
            self.app.hand_over().await;
            // Nor would who follows packets end by themselves.
            self.dataplane.dataplane().stop_watches();
            self.stop_http.cancel();
            self.http_tasks.close();
            if tokio::time::timeout(STOP_LIMIT, self.http_tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!("the management listeners did not stop in time");
            }
            // Names are resolved while peers can be told of them. Whoever asks from now on waits in the sockets for the next process.
            self.stop_dns.cancel();
            self.dns_tasks.close();
            if tokio::time::timeout(ANSWER_LIMIT, self.dns_tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!("not every query was answered in time");
            }
            self.stop_control.cancel();
            self.control_tasks.close();
            if tokio::time::timeout(STOP_LIMIT, self.control_tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!("the control plane did not stop in time");
            }
        });
        self.grants.write_down(true);
        self.http_runtime.shutdown_timeout(Duration::from_secs(1));
        if let Some(dns_runtime) = self.dns_runtime {
            dns_runtime.shutdown_timeout(Duration::from_secs(1));
        }
        self.control_runtime
            .shutdown_timeout(Duration::from_secs(1));
        self.consensus_runtime
            .shutdown_timeout(Duration::from_secs(1));
        self.dataplane
    }

    /// Puts the program anew in this process's place, with its flows and listening sockets: the control plane stops first,
    /// the packet workers last, so that packets wait only while one program goes and the next one comes. Returns only if
    /// that fails.
    ///
    /// # Errors
    /// The program cannot be started; nothing runs any more.
    pub fn hand_over(self, successor: &Successor) -> anyhow::Result<Infallible> {
        tracing::info!("restarting");
        let sockets = self.sockets.clone();
        sockets.keep();
        let dataplane = self.stop_control_plane();
        let state = Leaving::begin(dataplane.dataplane().seed()).inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::error!(error, "flows are not handed over");
        });
        dataplane.ports().keep();
        let state = match state {
            Ok(state) => dataplane.dataplane().leave(state),
            Err(_) => None,
        };
        dataplane.leave_held();
        let failed = successor.replace_this_process(state, &sockets, dataplane.ports());
        // Whoever starts this node again finds the interfaces held, and no host that answers in its place.
        dataplane.keep_held();
        failed
    }
}

/// Runs a node until SIGTERM or SIGINT, which drain it; a second one ends the process at once. SIGUSR2 has it replace
/// its program ([`handover`](crate::handover)). To be called before there are threads, all of which leave these signals
/// alone.
///
/// # Errors
/// As [`start`].
pub fn run(config: Config, log: RecentLog) -> anyhow::Result<()> {
    let signals = Signals::block()?;
    mem::heap::give_back();
    let running = start(config, log, Received::take())?;
    // Without systemd there is nobody to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Some(successor) = running.wait_for_its_end(&signals)? {
        // A stop that is asked for from now on is left to the next program.
        let never = running.hand_over(&successor)?;
        match never {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let second = move || {
        if signals.wait_for_stop().is_ok() {
            tracing::warn!("asked to stop a second time: ending at once");
            std::process::exit(1);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(second)?;
    running.drain();
    Ok(())
}

fn runtime(name: &'static str, threads: u32) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads as usize)
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("cannot start the {name} threads"))
}

/// The policy to enforce before anything else is known: the last one that was in force here; without one that can be
/// read and enforced, deny everything.
fn last_known_good(config: &Config) -> (Arc<Compiled>, Progress) {
    let denied = || (Arc::new(Compiled::deny_all()), Progress::default());
    let read = cluster::lkg::read(&config.cluster.data_dir).map_err(anyhow::Error::from);
    let compiled = read.and_then(|kept| {
        let compile = |target: &Target| control::compile(target).map_err(anyhow::Error::msg);
        kept.map(|target| Ok((compile(&target)?, target)))
            .transpose()
    });
    match compiled {
        Ok(Some((policy, target))) => {
            tracing::info!(
                revision = target.revision,
                "enforcing the last-known-good policy"
            );
            let mark = Mark::from(&target);
            (
                Arc::new(policy),
                Progress {
                    compiled: mark,
                    enforced: mark,
                    failure: None,
                },
            )
        }
        Ok(None) => denied(),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "there is no usable last-known-good policy: everything is denied until one is replicated"
            );
            denied()
        }
    }
}

/// Tells load balancers when a port's link is down, has their probes answered as long as the node is ready for traffic, and
/// ends the process when the packet workers no longer work: its supervisor starts it again, and a load balancer has seen
/// `/ready/traffic` fail before.
async fn watchdog(dataplane: Arc<Dataplane>, readiness: Arc<Readiness>, stop: CancellationToken) {
    let mut faults = 0;
    let mut was_down = None;
    loop {
        match dataplane.fault() {
            None => {
                faults = 0;
                let down = dataplane.link_down();
                if down != was_down {
                    match &down {
                        Some(reason) => tracing::warn!(reason, "this node does not forward"),
                        None => tracing::info!("the links of all data ports are up again"),
                    }
                }
                match &down {
                    Some(reason) => readiness.set_failed(Part::DataplaneRunning, reason.clone()),
                    None => readiness.set_ok(Part::DataplaneRunning, ""),
                }
                was_down = down;
            }
            Some(fault) => {
                faults += 1;
                readiness.set_failed(Part::DataplaneRunning, fault.clone());
                if faults > 4 {
                    tracing::error!(fault, "packets do not flow: ending, to be started again");
                    std::process::exit(70);
                }
            }
        }
        dataplane.set_ready(readiness.ready_traffic().ready);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WATCHDOG) => {}
        }
    }
}

/// The management listeners.
struct Listeners {
    config: Arc<Config>,
    app: Arc<http::App>,
    certificates: Arc<Certificates>,
    metrics: Metrics,
    addresses: watch::Sender<Addresses>,
    http_address: watch::Sender<Option<SocketAddr>>,
    sockets: Sockets,
    stop: CancellationToken,
}

impl Listeners {
    /// Opens the listeners as soon as they can be.
    async fn run(self, tasks: TaskTracker) {
        let socket = self.config.runtime.control_socket();
        tasks.spawn(http::control::serve(
            socket,
            Arc::clone(&self.app),
            self.stop.clone(),
        ));
        let https = self.open(
            "http.bind",
            "http",
            self.config.http.bind,
            config::HTTP_PORT,
        );
        if let Some((listener, listening, address)) = https.await {
            self.addresses
                .send_modify(|addresses| addresses.http = Some(address));
            self.http_address
                .send_replace(Some(self.config.http.advertise.unwrap_or(address)));
            tracing::info!(%address, "the management API listens");
            let serving = http::listen::serve(
                listener,
                Arc::clone(&self.app),
                Arc::clone(&self.certificates),
                self.stop.clone(),
            );
            tasks.spawn(async move {
                serving.await;
                drop(listening);
            });
        }
        let metrics = self.open(
            "metrics.bind",
            "metrics",
            self.config.metrics.bind,
            config::METRICS_PORT,
        );
        if let Some((listener, listening, address)) = metrics.await {
            if let Some(reason) = self.config.metrics.refusal(address) {
                tracing::warn!(reason, "there is no metrics listener");
                return;
            }
            self.addresses
                .send_modify(|addresses| addresses.metrics = Some(address));
            tracing::info!(%address, "the metrics listener listens");
            let serving =
                crate::metrics::serve(listener, self.metrics, self.app, self.stop.clone());
            tasks.spawn(async move {
                serving.await;
                drop(listening);
            });
        }
    }

    /// Binds the configured address, or `port` on the management interface's first global address, trying until that
    /// works; none if the node stops first.
    async fn open(
        &self,
        key: &str,
        name: &'static str,
        bind: Option<SocketAddr>,
        port: u16,
    ) -> Option<(TcpListener, Listening, SocketAddr)> {
        let mut told = false;
        loop {
            match self.try_open(key, name, bind, port).await {
                Ok(opened) => return Some(opened),
                Err(error) => {
                    if !told {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "a listener cannot be opened yet; trying on"
                        );
                        told = true;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(LISTEN_RETRY) => {}
            }
        }
    }

    async fn try_open(
        &self,
        key: &str,
        name: &'static str,
        bind: Option<SocketAddr>,
        port: u16,
    ) -> anyhow::Result<(TcpListener, Listening, SocketAddr)> {
        let interface = self.config.bootstrap.management_interface.as_str();
        let address = match bind {
            Some(address) => address,
            None => interfaces::management_address(interface)?
                .map(|ip: IpAddr| SocketAddr::new(ip, port))
                .with_context(|| {
                    format!("{interface} has no global address; give it one, or set {key}")
                })?,
        };
        self.config.off_data_ports(key, address)?;
        let bound = self.sockets.listen(name, address).await;
        let (listener, listening) =
            bound.with_context(|| format!("cannot listen on {address} ({key})"))?;
        let address = listener.local_addr()?;
        Ok((listener, listening, address))
    }
}
