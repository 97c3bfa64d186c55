//! The DNS proxy as this node runs it: by which settings, and where it listens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::dns::reply::Denial;
use anyhow::Context as _;
use prometheus_client::registry::Registry;
use proxy::dns::{Proxy, Settings, Tls, Upstream, bind_tcp, bind_udp};
use rustix::process::Resource;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{Config, DeniedAnswer, Dns};
use crate::dataplane::Dataplane;
use crate::grants::{Grants, Programming};
use crate::handover::{Listening, Sockets};
use crate::interfaces;

/// The port of DNS (RFC 1035 section 4.2).
const PORT: u16 = 53;
/// Threads of the proxy, and sockets on each address.
pub(crate) const THREADS: u32 = 2;
/// How long the first queries wait until peers can be told of their answers.
const PEERS_WAIT: Duration = Duration::from_secs(2);
/// How often an address that cannot be listened on yet is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the addresses of the management interface are looked at where all are listened on.
const LOOK: Duration = Duration::from_secs(5);
/// For how long what the host said of its addresses is believed.
const HOST_FOR: Duration = Duration::from_secs(1);

/// The proxy, if there are resolvers that it can ask.
///
/// # Errors
/// Resolvers are to be asked over TLS, and there are no certificates to trust.
pub(crate) fn proxy(
    config: &Config,
    dataplane: &Arc<Dataplane>,
    grants: &Arc<Grants>,
    registry: &mut Registry,
) -> anyhow::Result<Option<Proxy>> {
    let dns = &config.dns;
    if dns.upstreams.is_empty() {
        return Ok(None);
    }
    raise_descriptors();
    let own = Own {
        dataplane: Arc::clone(dataplane),
        host: Mutex::default(),
    };
    let settings = Settings {
        upstreams: upstreams(dns)?,
        upstream_timeout: Duration::from_millis(dns.upstream_timeout_ms.into()),
        allow_private_answers: dns.allow_private_answers.clone(),
        own_addresses: Arc::new(move || own.addresses()),
        allow_ech: dns.allow_ech,
        more_kinds: dns.more_types.iter().map(|kind| kind.0).collect(),
        denial: match dns.denied_answer {
            DeniedAnswer::NxDomain => Denial::NxDomain,
            DeniedAnswer::Refused => Denial::Refused,
        },
        cache_bytes: usize::try_from(dns.cache_bytes).unwrap_or(usize::MAX),
        client_queries_per_second: dns.client_queries_per_second,
        client_burst: dns.client_burst,
    };
    let denied = Arc::clone(dataplane.denied_names());
    let granting = Arc::new(Programming(Arc::clone(grants), denied));
    let dataplane = Arc::clone(dataplane);
    let policy = Box::new(move || dataplane.policy());
    Ok(Some(Proxy::new(settings, policy, granting, registry)))
}

/// Lets the process have as many descriptors as it may at all: each question to an upstream has a socket of its own.
fn raise_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The resolvers, and whom those over TLS have to be known to.
fn upstreams(dns: &Dns) -> anyhow::Result<Vec<Upstream>> {
    let encrypted = dns.upstreams.iter().any(|upstream| upstream.tls.is_some());
    let trust = match encrypted {
        true => Some(trust(&dns.upstream_ca).with_context(|| {
            format!(
                "dns.upstream_ca: {} is of no use, and dns.upstreams has resolvers over TLS: install ca-certificates, or \
                 name a file of certificates in PEM",
                dns.upstream_ca.display()
            )
        })?),
        false => None,
    };
    let upstreams = dns.upstreams.iter().map(|upstream| Upstream {
        address: upstream.address,
        tls: upstream
            .tls
            .clone()
            .zip(trust.clone())
            .map(|(name, config)| Tls { config, name }),
    });
    Ok(upstreams.collect())
}

/// Who may sign for resolvers.
fn trust(path: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let found: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    // A host has some that are too old to be read.
    let (taken, _) = roots.add_parsable_certificates(found);
    anyhow::ensure!(taken > 0, "there is no certificate in it");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// This node's own addresses.
struct Own {
    dataplane: Arc<Dataplane>,
    /// The host's, and when it said so.
    host: Mutex<Option<(Instant, Vec<IpAddr>)>>,
}

impl Own {
    /// Those that it has now: the host's, and the data ports', whoever they have them from.
    fn addresses(&self) -> Vec<IpAddr> {
        let snapshot = self.dataplane.snapshot();
        let settings = snapshot.settings();
        let ports = settings.ports.iter().flat_map(|port| &port.addresses);
        let services = settings.services.iter().map(|service| service.address);
        let mut own: Vec<IpAddr> = ports.map(ipnet::IpNet::addr).chain(services).collect();
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        match &*host {
            Some((since, addresses)) if since.elapsed() < HOST_FOR => own.extend(addresses),
            before => {
                // The last known ones are better than none.
                let addresses = interfaces::addresses().unwrap_or_else(|error| {
                    tracing::warn!(%error, "the host does not say its addresses");
                    before
                        .clone()
                        .map_or(Vec::new(), |(_, addresses)| addresses)
                });
                own.extend(&addresses);
                *host = Some((Instant::now(), addresses));
            }
        }
        own
    }
}

/// The sockets of the proxy, and what keeps them open for the process that comes after this one.
pub(crate) struct Listener {
    pub(crate) proxy: Proxy,
    pub(crate) config: Arc<Config>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) sockets: Sockets,
    pub(crate) stop: CancellationToken,
}

impl Listener {
    /// Listens on the management addresses and on those that clients inside ask, each as soon as and as long as it is
    /// there, until it is to stop; then queries that were read are answered still.
    pub(crate) async fn run(self) {
        // Whoever is answered may connect through any node.
        let in_touch = tokio::time::timeout(PEERS_WAIT, self.grants.in_touch());
        let _ = self.stop.run_until_cancelled(in_touch).await;
        let mut served = Served {
            proxy: self.proxy,
            sockets: self.sockets,
            stop: self.stop,
            port: PORT,
            open: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        let interface = self.config.bootstrap.management_interface.as_str();
        let mut management = Vec::new();
        let mut told = false;
        while !served.stop.is_cancelled() {
            match interfaces::global_addresses(interface) {
                Ok(addresses) => management = addresses,
                // The last known ones are better than none.
                Err(error) => tracing::warn!(%error, "the host does not say its addresses"),
            }
            if management.is_empty() && !told {
                told = true;
                tracing::warn!(
                    interface,
                    "the DNS proxy finds no global address yet; trying on"
                );
            }
            let inside = self.config.dns.served().iter();
            let wanted = management.iter().chain(inside).copied().collect();
            let complete = served.follow(&wanted) && !management.is_empty();
            let pause = if complete { LOOK } else { RETRY };
            let pause = tokio::time::sleep(pause);
            served.stop.run_until_cancelled(pause).await;
        }
        served.proxy.stopped().await;
        drop(served.open);
    }
}

/// Where the proxy listens.
struct Served {
    proxy: Proxy,
    sockets: Sockets,
    stop: CancellationToken,
    port: u16,
    open: BTreeMap<IpAddr, Open>,
    /// Addresses that cannot be listened on, which the log has.
    told: BTreeSet<IpAddr>,
}

/// The sockets of one address. Their tasks end with it.
struct Open {
    _listening: Vec<Listening>,
    _stop: DropGuard,
}

impl Served {
    /// Listens on these addresses alone. Whether it does on all of them.
    fn follow(&mut self, wanted: &BTreeSet<IpAddr>) -> bool {
        self.told.retain(|address| wanted.contains(address));
        self.open.retain(|address, _| {
            let stays = wanted.contains(address);
            if !stays {
                tracing::info!(%address, "the DNS proxy listens no more");
            }
            stays
        });
        for address in wanted {
            if self.open.contains_key(address) {
                continue;
            }
            match self.open(SocketAddr::new(*address, self.port)) {
                Ok(open) => {
                    tracing::info!(%address, "the DNS proxy listens");
                    self.told.remove(address);
                    self.open.insert(*address, open);
                }
                Err(error) => {
                    if self.told.insert(*address) {
                        tracing::warn!(%address, %error, "the DNS proxy cannot listen yet; trying on");
                    }
                }
            }
        }
        self.told.is_empty()
    }

    /// Binds all sockets of an address, and only then has them served: what is served holds its port.
    fn open(&self, address: SocketAddr) -> std::io::Result<Open> {
        let ip = address.ip();
        let (listener, listening) = self.sockets.open(
            &format!("dns-tcp-{ip}"),
            |socket: &TcpListener| matches!(socket.local_addr(), Ok(at) if at == address),
            || bind_tcp(address),
        )?;
        let (mut all, mut sockets) = (vec![listening], Vec::new());
        for number in 0..THREADS {
            let (socket, listening) = self.sockets.open(
                &format!("dns-udp-{ip}-{number}"),
                |socket: &UdpSocket| matches!(socket.local_addr(), Ok(at) if at == address),
                || bind_udp(address),
            )?;
            all.push(listening);
            sockets.push(socket);
        }
        let stop = self.stop.child_token();
        let open = Open {
            _listening: all,
            _stop: stop.clone().drop_guard(),
        };
        self.proxy.serve_tcp(listener, &stop)?;
        for socket in sockets {
            self.proxy.serve_udp(socket, &stop)?;
        }
        Ok(open)
    }
}

#[cfg(test)]
mod tests;
