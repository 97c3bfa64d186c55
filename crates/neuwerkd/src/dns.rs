//! The DNS proxy as this node runs it: by which settings, and where it listens.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::dns::reply::Denial;
use prometheus_client::registry::Registry;
use proxy::dns::{Proxy, Settings, Upstream};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::grants::{Grants, Programming};
use crate::interfaces;

/// The port of DNS (RFC 1035 section 4.2).
const PORT: u16 = 53;
/// Threads of the proxy, and sockets on each address.
pub(crate) const THREADS: u32 = 2;
/// Most memory for answers.
const CACHE_BYTES: usize = 64 << 20;
/// What one client may ask: more than a busy resolver does, less than what would starve the others.
const CLIENT_QUERIES_PER_SECOND: u32 = 10_000;
const CLIENT_BURST: u32 = 20_000;
/// How often an address that cannot be listened on yet is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The proxy, if there are resolvers that it can ask.
pub(crate) fn proxy(
    config: &Config,
    dataplane: &Arc<Dataplane>,
    grants: &Arc<Grants>,
    registry: &mut Registry,
) -> Option<Proxy> {
    let dns = &config.dns;
    if dns.upstreams.is_empty() {
        return None;
    }
    let ports = &config.dataplane.ports;
    let own_ports = [&ports.inside, &ports.outside]
        .into_iter()
        .flat_map(|port| port.addresses.iter().map(ipnet::IpNet::addr));
    let own_addresses = interfaces::addresses().unwrap_or_default();
    let settings = Settings {
        upstreams: dns
            .upstreams
            .iter()
            .map(|address| Upstream {
                address: *address,
                tls: None,
            })
            .collect(),
        upstream_timeout: Duration::from_millis(dns.upstream_timeout_ms.into()),
        allow_private_answers: dns.allow_private_answers.clone(),
        own_addresses: own_addresses.into_iter().chain(own_ports).collect(),
        allow_ech: false,
        more_kinds: Vec::new(),
        denial: Denial::NxDomain,
        cache_bytes: CACHE_BYTES,
        client_queries_per_second: CLIENT_QUERIES_PER_SECOND,
        client_burst: CLIENT_BURST,
    };
    let dataplane = Arc::clone(dataplane);
    let policy = Box::new(move || dataplane.policy());
    let granting = Arc::new(Programming(Arc::clone(grants)));
    Some(Proxy::new(settings, policy, granting, registry))
}

/// Listens on the management address and on those that clients inside ask, each as soon as it is there.
pub(crate) async fn listen(proxy: Proxy, config: Arc<Config>, stop: CancellationToken) {
    let mut missing: Vec<Option<IpAddr>> = vec![None];
    missing.extend(config.dns.served().iter().copied().map(Some));
    let mut told = false;
    loop {
        missing.retain(|address| match open(&proxy, &config, *address, &stop) {
            Ok(address) => {
                tracing::info!(%address, "the DNS proxy listens");
                false
            }
            Err(error) => {
                if !told {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the DNS proxy cannot listen yet; trying on");
                }
                true
            }
        });
        told = true;
        if missing.is_empty() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Listens on an address, or on that of the management interface.
fn open(
    proxy: &Proxy,
    config: &Config,
    address: Option<IpAddr>,
    stop: &CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let management = config.bootstrap.management_interface.as_str();
    let address = match address {
        Some(address) => address,
        None => interfaces::management_address(management)?
            .ok_or_else(|| anyhow::anyhow!("{management} has no global address"))?,
    };
    let address = SocketAddr::new(address, PORT);
    proxy
        .listen(address, THREADS as usize, stop)
        .map_err(|error| anyhow::anyhow!("cannot listen on {address}: {error}"))
}
