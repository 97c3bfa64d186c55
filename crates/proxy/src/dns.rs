//! The DNS proxy.
//!
//! Each listening socket has a task that reads a query, decides and, if the answer is at hand, writes it
//! at once. What is not at hand is asked of an upstream by a task of its own, one for all who ask the
//! same at a time, so that a slow upstream delays nobody else. Memory is bounded at each step: clients'
//! rates, questions under way, clients waiting, connections, the cache. A message that goes wrong ends
//! nothing but its own answer.

mod batch;
mod clock;
mod exchange;
mod granting;
mod metrics;
mod pool;
mod resolve;
mod service;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::dns::Kind;
use ::dns::reply::Denial;
use ipnet::IpNet;
use policy::Compiled;
use prometheus_client::registry::Registry;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

pub use granting::{Denied, Granted, Granting, NoGrants, Told};
pub use metrics::{FAMILIES, Metrics, Totals};
use service::Service;

/// What the proxy goes by.
#[derive(Clone)]
pub struct Settings {
    /// Who is asked, in this order.
    pub upstreams: Vec<Upstream>,
    /// How long one upstream may take.
    pub upstream_timeout: Duration,
    /// Private ranges that answers may point into.
    pub allow_private_answers: Vec<IpNet>,
    /// This node's own addresses, which no answer may have; asked for at each answer of an upstream.
    pub own_addresses: OwnAddresses,
    /// ECH keys stay in answers.
    pub allow_ech: bool,
    /// Types that may be asked for beside the usual ones.
    pub more_kinds: Vec<Kind>,
    /// How denied names are answered.
    pub denial: Denial,
    /// Most memory for answers, in bytes.
    pub cache_bytes: usize,
    /// Queries a second that one client may send steadily; 0 for no limit.
    pub client_queries_per_second: u32,
    /// Queries that one client may send at once.
    pub client_burst: u32,
}

/// A resolver.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    /// What it is asked over TLS with (RFC 7858), if it is; else over UDP and TCP.
    pub tls: Option<Tls>,
}

/// How an upstream proves itself.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whom to trust.
    pub config: Arc<ClientConfig>,
    /// The name in its certificate.
    pub name: ServerName<'static>,
}

/// Hands out the node's addresses as they are now.
pub type OwnAddresses = Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>;

/// Hands out the policy in force.
pub type InForce = Box<dyn Fn() -> Arc<Compiled> + Send + Sync>;

/// A running proxy.
#[derive(Clone)]
pub struct Proxy {
    service: Arc<Service>,
}

impl Proxy {
    /// A proxy that listens nowhere yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        policy: InForce,
        granting: Arc<dyn Granting>,
        registry: &mut Registry,
    ) -> Self {
        let caches = service::caches(settings.cache_bytes);
        let metrics = Metrics::register(registry, &settings.upstreams, &caches);
        let service = Service::new(settings, policy, granting, caches, metrics);
        Self {
            service: Arc::new(service),
        }
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.service.metrics
    }

    /// Listens on an address, over UDP and TCP, until `stop`. Must be called within a tokio runtime;
    /// over UDP there are `sockets` sockets, each with a task.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn listen(
        &self,
        address: SocketAddr,
        sockets: usize,
        stop: &CancellationToken,
    ) -> std::io::Result<SocketAddr> {
        let listener = bind_tcp(address)?;
        let address = listener.local_addr()?;
        self.serve_tcp(listener, stop)?;
        for _ in 0..sockets {
            self.serve_udp(bind_udp(address)?, stop)?;
        }
        Ok(address)
    }

    /// Answers over UDP until `stop`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub fn serve_udp(
        &self,
        socket: std::net::UdpSocket,
        stop: &CancellationToken,
    ) -> std::io::Result<()> {
        let socket = UdpSocket::from_std(socket)?;
        let serving = udp::serve(Arc::clone(&self.service), socket, stop.clone());
        self.service.tasks.spawn(serving);
        Ok(())
    }

    /// The same over TCP.
    ///
    /// # Errors
    /// As [`serve_udp`](Self::serve_udp).
    pub fn serve_tcp(
        &self,
        listener: std::net::TcpListener,
        stop: &CancellationToken,
    ) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let serving = tcp::serve(Arc::clone(&self.service), listener, stop.clone());
        self.service.tasks.spawn(serving);
        Ok(())
    }

    /// Waits until every query that came before the stop is answered, over TCP also one that was on its way.
    pub async fn stopped(&self) {
        self.service.tasks.close();
        self.service.tasks.wait().await;
    }
}

/// A socket for [`Proxy::serve_udp`]; an address may have several.
///
/// # Errors
/// Those of `bind(2)`.
pub fn bind_udp(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    udp::bind(address)
}

/// A listener for [`Proxy::serve_tcp`].
///
/// # Errors
/// Those of `bind(2)`.
pub fn bind_tcp(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    tcp::bind(address)
}

#[cfg(test)]
mod attack_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
