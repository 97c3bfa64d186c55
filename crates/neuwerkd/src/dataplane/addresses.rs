//! Addresses that data ports get by themselves, where none are configured: which ports ask, what is made of what the
//! packet worker has learned, and what is remembered over a restart.
//!
//! The worker tells all that it knows at every change; here that becomes the ports' settings, and those are published if
//! they differ. A lease that is renewed unchanged changes nothing for any flow.

mod merge;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Now;
use engine::acquire::{Config as Asking, DhcpConfig, Held, Learned, Lease, Stable, Standing};
use engine::port::PortId;
use engine::snapshot::PortSettings;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use merge::{merge, networks, overlap};

use super::settings::{configured_ports, is_usable};
use super::{Dataplane, PORT_NAMES, monotonic};
use crate::config::{Config, DataPlaneMode, Mac};
use crate::http::App;
use crate::readiness::{Part, Readiness};

/// What is remembered, beside the node's id.
const FILE: &str = "addresses.json";

/// What a packet worker needs to ask for addresses.
pub struct Acquire {
    /// The ports that have none.
    pub ports: Vec<(PortId, Asking)>,
    /// What the ports have to begin with.
    pub settings: Vec<PortSettings>,
    /// Hears all that is known whenever it changes.
    pub tell: watch::Sender<Vec<Learned>>,
}

/// The addresses of one port, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortAddresses {
    /// What the port is called.
    pub name: &'static str,
    /// Its lease.
    pub lease: Option<Lease>,
    /// When that ends, seconds since 1970; none: never.
    pub expires_epoch_s: Option<u64>,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Its default routers.
    pub gateways: Vec<IpAddr>,
    /// Why it has no address, if it has none.
    pub problem: Option<String>,
}

/// The addresses of all ports that get theirs by themselves.
#[derive(Debug, Clone, Default)]
pub struct Acquired {
    /// The ports.
    pub ports: Vec<PortAddresses>,
    /// How often a lease came, went, or said something else.
    pub lease_changes: u64,
}

impl Acquired {
    /// Whether every port that asks holds a lease.
    pub fn is_leased(&self) -> bool {
        !self.ports.is_empty() && self.ports.iter().all(|port| port.lease.is_some())
    }

    /// When the first of the leases ends, seconds since 1970; 0: never, or there is none.
    pub fn expiry_epoch_s(&self) -> u64 {
        let ends = self.ports.iter().filter_map(|port| port.expires_epoch_s);
        ends.min().unwrap_or(0)
    }
}

/// Follows what the packet worker learns.
pub struct Addresses {
    /// The ports as configured.
    base: Vec<PortSettings>,
    interfaces: Vec<String>,
    learned: watch::Receiver<Vec<Learned>>,
    kept: Kept,
    /// Whether that is what the file has.
    is_kept: bool,
    file: PathBuf,
    published: Vec<PortSettings>,
    leases: Vec<Option<Lease>>,
    acquired: Acquired,
}

/// What is remembered over a restart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// What opaque IPv6 identifiers are made with (RFC 7217), hexadecimal.
    secret: String,
    /// By interface.
    leases: BTreeMap<String, KeptLease>,
    /// By interface, the networks that it is on, as far as they were learned.
    networks: BTreeMap<String, Vec<IpNet>>,
}

impl Kept {
    /// The networks of each of these interfaces.
    fn networks(&self, interfaces: &[String]) -> Vec<Vec<IpNet>> {
        let of = |interface| self.networks.get(interface).cloned().unwrap_or_default();
        interfaces.iter().map(of).collect()
    }

    /// Takes in on which networks the ports are now. Those of a family that a port has none of now stay, and nobody is on
    /// them instead before that port is on others.
    fn remember(&mut self, interfaces: &[String], ports: &[PortSettings]) {
        let before = self.networks(interfaces);
        for v4 in [true, false] {
            let of_family = |net: &IpNet| net.addr().is_ipv4() == v4;
            let now = |index: usize| {
                let nets = networks(&ports[index]).map(IpNet::trunc).filter(of_family);
                nets.collect::<Vec<IpNet>>()
            };
            for (index, interface) in interfaces.iter().enumerate() {
                if now(index).is_empty() {
                    continue;
                }
                let others =
                    (0..ports.len()).filter(|other| *other != index && now(*other).is_empty());
                let held: Vec<&IpNet> = others.flat_map(|other| &before[other]).collect();
                let mut now = now(index);
                now.retain(|net| !held.iter().any(|held| overlap(held, net)));
                let kept = self.networks.entry(interface.clone()).or_default();
                kept.retain(|net| !of_family(net));
                kept.extend(now);
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptLease {
    address: Ipv4Addr,
    prefix_len: u8,
    server: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    routes: Vec<(Ipv4Net, Ipv4Addr)>,
    dns: Vec<Ipv4Addr>,
    mtu: Option<u16>,
    /// Seconds since 1970; none: it never ends.
    expires_epoch_s: Option<u64>,
}

/// Both clocks at one moment, to lead a time from one to the other.
#[derive(Clone, Copy)]
struct Clocks {
    monotonic: Now,
    epoch: Duration,
}

impl Clocks {
    fn now() -> Clocks {
        Clocks {
            monotonic: monotonic(),
            epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    fn epoch_s(self, at: Now) -> Option<u64> {
        (at != Now(u64::MAX)).then(|| (self.epoch + self.monotonic.until(at)).as_secs())
    }

    fn monotonic(self, epoch_s: Option<u64>) -> Now {
        let Some(epoch_s) = epoch_s else {
            return Now(u64::MAX);
        };
        self.monotonic + Duration::from_secs(epoch_s).saturating_sub(self.epoch)
    }
}

impl KeptLease {
    fn of(lease: &Lease, clocks: Clocks) -> KeptLease {
        KeptLease {
            address: lease.address,
            prefix_len: lease.prefix_len,
            server: lease.server,
            gateway: lease.gateway,
            routes: lease.routes.clone(),
            dns: lease.dns.clone(),
            mtu: lease.mtu,
            expires_epoch_s: clocks.epoch_s(lease.expires),
        }
    }

    /// None if it makes no sense as an address.
    fn lease(&self, clocks: Clocks) -> Option<Lease> {
        Ipv4Net::new(self.address, self.prefix_len).ok()?;
        Some(Lease {
            address: self.address,
            prefix_len: self.prefix_len,
            server: self.server,
            gateway: self.gateway,
            routes: self.routes.clone(),
            dns: self.dns.clone(),
            mtu: self.mtu,
            renew_at: clocks.monotonic,
            rebind_at: clocks.monotonic,
            expires: clocks.monotonic(self.expires_epoch_s),
        })
    }
}

/// Which ports of a node have to ask for addresses, and who follows what they learn; none if all are configured, or
/// there is no Ethernet to ask on.
///
/// A process that takes over begins with what the one before it `held`, so that flows find their addresses.
pub(super) fn prepare(
    config: &Config,
    interfaces: Vec<String>,
    held: &[Held],
) -> Option<(Acquire, Addresses)> {
    let base = configured_ports(config);
    let is_ethernet = config.bootstrap.data_plane_mode != DataPlaneMode::Tun;
    if !is_ethernet || !base.iter().any(|port| port.acquires) {
        return None;
    }
    let file = config.cluster.node_id_path.with_file_name(FILE);
    let mut kept: Kept = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was remembered of the data ports' addresses cannot be read");
            Kept::default()
        }),
        Err(_) => Kept::default(),
    };
    let secret = unhex(&kept.secret).unwrap_or_else(|| {
        let mut fresh = [0; 16];
        aws_lc_rs::rand::fill(&mut fresh).expect("the system has randomness");
        kept.secret = fresh.iter().map(|byte| format!("{byte:02x}")).collect();
        fresh
    });
    let (clocks, dataplane, dpdk) = (Clocks::now(), &config.dataplane, &config.dpdk);
    let last = base.len() - 1;
    // A lease of a server that is no longer the configured one is worth nothing.
    let trusts = |index: usize, lease: &Lease| {
        let pin = dpdk.dhcp_server_ip.filter(|_| index == last);
        pin.is_none_or(|pin| pin == lease.server)
    };
    let held = |index: usize| {
        let mut held = held
            .iter()
            .find(|h| h.interface == interfaces[index])?
            .clone();
        held.learned.port = PortId(index as u8);
        let lease = held.learned.lease;
        held.learned.lease = lease.filter(|lease| trusts(index, lease));
        Some(held)
    };
    let asking = |index: usize| {
        // Pins are about the port that leads to the default gateway.
        let pinned = index == last;
        let mac = |mac: Option<Mac>| mac.filter(|_| pinned).map(|Mac(mac)| mac);
        let remembered = kept.leases.get(&interfaces[index]);
        Asking {
            dhcp: DhcpConfig {
                timeout: Duration::from_secs(dataplane.dhcp_timeout_secs.into()),
                retry_max: dataplane.dhcp_retry_max,
                lease_min: Duration::from_secs(dataplane.dhcp_lease_min_secs.into()),
                server_ip: dpdk.dhcp_server_ip.filter(|_| pinned),
                server_mac: mac(dpdk.dhcp_server_mac),
                remembered: remembered
                    .and_then(|lease| lease.lease(clocks))
                    .filter(|lease| trusts(index, lease)),
            },
            stable: Stable {
                interface: interfaces[index].clone(),
                secret,
            },
            router_mac: mac(dpdk.gateway_mac),
            held: held(index),
        }
    };
    let acquiring = base.iter().enumerate().filter(|(_, port)| port.acquires);
    let ports: Vec<_> = acquiring
        .map(|(index, _)| (PortId(index as u8), asking(index)))
        .collect();
    let held = ports.iter().flat_map(|(_, asking)| &asking.held);
    let mut begins: Vec<Learned> = held.map(|held| held.learned.clone()).collect();
    let mut settings = merge(&base, &begins, &kept.networks(&interfaces)).0;
    if !is_usable(config, &settings) {
        begins.clear();
        settings = without_addresses(&base);
    }
    let mut leases = vec![None; base.len()];
    for told in &begins {
        leases[usize::from(told.port.0)].clone_from(&told.lease);
    }
    let (tell, learned) = watch::channel(begins);
    let acquire = Acquire {
        ports,
        settings: settings.clone(),
        tell,
    };
    let addresses = Addresses {
        published: settings,
        leases,
        base,
        interfaces,
        learned,
        kept,
        is_kept: file.exists(),
        file,
        acquired: Acquired::default(),
    };
    Some((acquire, addresses))
}

/// The settings of ports that have learned nothing yet.
pub(super) fn without_addresses(base: &[PortSettings]) -> Vec<PortSettings> {
    merge(base, &[], &[]).0
}

impl Addresses {
    /// Publishes what the packet worker learns, as long as it runs.
    pub async fn follow(
        mut self,
        dataplane: Arc<Dataplane>,
        readiness: Arc<Readiness>,
        app: Arc<App>,
    ) {
        loop {
            let learned = self.learned.borrow_and_update().clone();
            self.take_in(&learned, &dataplane, &readiness, &app).await;
            if self.learned.changed().await.is_err() {
                return;
            }
        }
    }

    async fn take_in(
        &mut self,
        learned: &[Learned],
        dataplane: &Dataplane,
        readiness: &Readiness,
        app: &App,
    ) {
        let before = self.kept.networks(&self.interfaces);
        let (ports, clashes) = merge(&self.base, learned, &before);
        let mut problems = Vec::new();
        // Who is on the link of a port can say what he likes of networks: that alone does not make a node unfit.
        let lack = ports.iter().any(|port| port.addresses.is_empty());
        if lack {
            problems = clashes;
        } else if ports != self.published {
            for problem in clashes {
                tracing::warn!("{problem}");
            }
        }
        if ports != self.published {
            match dataplane.set_ports(ports.clone()) {
                Ok(()) => self.published = ports,
                Err(error) => problems.push(format!(
                    "what the data ports have learned cannot be used: {error}"
                )),
            }
        }
        let names = PORT_NAMES[self.base.len() - 1];
        let clocks = Clocks::now();
        let mut shown = Vec::new();
        for told in learned {
            let index = usize::from(told.port.0);
            let port = &self.published[index];
            let lacks = port.addresses.is_empty().then(|| why(told.standing));
            let problem =
                lacks.map(|why| format!("the {} port has no address: {why}", names[index]));
            problems.extend(problem.clone());
            let before = std::mem::replace(&mut self.leases[index], told.lease.clone());
            if terms(before.as_ref()) != terms(told.lease.as_ref()) {
                self.acquired.lease_changes += 1;
                say(names[index], told);
            }
            shown.push(PortAddresses {
                name: names[index],
                lease: told.lease.clone(),
                expires_epoch_s: told
                    .lease
                    .as_ref()
                    .and_then(|lease| clocks.epoch_s(lease.expires)),
                addresses: port.addresses.clone(),
                gateways: port.gateways.clone(),
                problem,
            });
        }
        if learned.is_empty() {
            problems.push("the data ports have no address yet".into());
        }
        match problems.is_empty() {
            true => readiness.set_ok(Part::DataplaneConfig, ""),
            false => readiness.set_failed(Part::DataplaneConfig, problems.join("; ")),
        }
        self.acquired.ports = shown;
        app.set_acquired(self.acquired.clone());
        self.keep(learned, clocks).await;
    }

    /// Remembers leases and networks as they are now. What has ended is remembered until another comes: it may be had again.
    async fn keep(&mut self, learned: &[Learned], clocks: Clocks) {
        let mut kept = self.kept.clone();
        for told in learned {
            if let Some(lease) = &told.lease {
                let interface = self.interfaces[usize::from(told.port.0)].clone();
                kept.leases.insert(interface, KeptLease::of(lease, clocks));
            }
        }
        kept.remember(&self.interfaces, &self.published);
        if kept == self.kept && self.is_kept {
            return;
        }
        // Also while it cannot be written.
        self.kept = kept.clone();
        let bytes = serde_json::to_vec_pretty(&kept).expect("plain data");
        let file = self.file.clone();
        let write = move || cluster::durable::replace(&file, &bytes, 0o600);
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => self.is_kept = true,
            Ok(Err(error)) => {
                self.is_kept = false;
                tracing::warn!(%error, "the data ports' addresses cannot be remembered over a restart");
            }
            Err(_) => tracing::error!("remembering the data ports' addresses panicked"),
        }
    }
}

/// What of a lease a change is worth speaking of: all but its times.
fn terms(lease: Option<&Lease>) -> Option<Lease> {
    lease.map(|lease| Lease {
        renew_at: Now(0),
        rebind_at: Now(0),
        expires: Now(0),
        ..lease.clone()
    })
}

fn say(port: &str, told: &Learned) {
    match &told.lease {
        Some(lease) => {
            let (address, length) = (lease.address, lease.prefix_len);
            tracing::info!(port, %address, length, server = %lease.server, "the port has a lease");
        }
        None => {
            let reason = why(told.standing);
            tracing::warn!(port, reason, "the port has lost its lease");
        }
    }
}

fn why(standing: Standing) -> &'static str {
    match standing {
        Standing::Asking | Standing::Holding => "DHCP servers and routers are being asked for one",
        Standing::Unanswered => "no DHCP server answers and no router advertises a prefix",
        Standing::Refused => "the DHCP server refused the address that was asked for",
        Standing::Taken => "another station has the address that was leased",
        Standing::Expired => "the lease has expired and no DHCP server answers",
    }
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| text.len() == 32)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::acquire::{Advertised, Heard};

    use crate::config::Flags;

    pub(super) fn lease(address: &str) -> Lease {
        let net: Ipv4Net = address.parse().unwrap();
        Lease {
            address: net.addr(),
            prefix_len: net.prefix_len(),
            server: "10.0.0.1".parse().unwrap(),
            gateway: Some("10.0.0.1".parse().unwrap()),
            routes: Vec::new(),
            dns: Vec::new(),
            mtu: Some(1400),
            renew_at: Now(0),
            rebind_at: Now(0),
            expires: Now(u64::MAX),
        }
    }

    pub(super) fn told(index: u8, lease: Option<Lease>) -> Learned {
        Learned {
            port: PortId(index),
            lease,
            standing: Standing::Holding,
            advertised: Advertised::default(),
            duplicates: 0,
        }
    }

    #[test]
    fn a_process_that_takes_over_begins_with_what_the_one_before_had() {
        let dir = tempfile::tempdir().unwrap();
        let prepare = |lines: &str, interface: &str| {
            let text = format!(
                "version: 1\nbootstrap: {{management_interface: eth0, data_interface: eth1}}\n\
                 cluster: {{node_id_path: {}/node_id}}\n{lines}",
                dir.path().display()
            );
            let config = Config::parse(Some(&text), &Flags::default()).unwrap();
            let held = Held {
                interface: interface.into(),
                mac: [2; 6],
                learned: told(1, Some(lease("10.0.0.9/24"))),
                heard: Heard::default(),
            };
            super::prepare(&config, vec!["eth1".into()], &[held])
        };
        let (acquire, addresses) = prepare("", "eth1").unwrap();
        let expected: IpNet = "10.0.0.9/24".parse().unwrap();
        assert_eq!(acquire.settings[0].addresses, [expected]);
        assert_eq!(addresses.published, acquire.settings);
        let held = acquire.ports[0].1.held.as_ref().unwrap();
        assert_eq!(held.learned.port, PortId(0), "the first port by now");
        assert_eq!(addresses.leases[0], held.learned.lease);

        let begins_without = |lines, interface| {
            let (acquire, addresses) = prepare(lines, interface).unwrap();
            assert!(acquire.settings[0].addresses.is_empty(), "{lines}");
            assert_eq!(addresses.leases, [None]);
        };
        begins_without("", "eth2");
        begins_without("dpdk: {dhcp_server_ip: 10.0.0.2}\n", "eth1");
        let configured = "dataplane: {ports: {inside: {addresses: 10.0.0.5/24}}}\n";
        assert!(prepare(configured, "eth1").is_none());
    }

    #[test]
    fn a_lease_is_remembered_by_the_time_of_day() {
        let clocks = |monotonic_s: u64, epoch_s: u64| Clocks {
            monotonic: Now(monotonic_s * 1_000_000_000),
            epoch: Duration::from_secs(epoch_s),
        };
        let held = Lease {
            expires: Now(100_000_000_000),
            ..lease("10.0.0.9/24")
        };
        let kept = KeptLease::of(&held, clocks(40, 5000));
        assert_eq!(kept.expires_epoch_s, Some(5060));
        let text = serde_json::to_string(&kept).unwrap();
        let read: KeptLease = serde_json::from_str(&text).unwrap();
        let again = read.lease(clocks(7, 5050)).unwrap();
        assert_eq!(
            (again.address, again.expires),
            (held.address, Now(17_000_000_000))
        );
        assert!(
            read.lease(clocks(7, 6000)).unwrap().expires <= Now(7_000_000_000),
            "it has expired"
        );
        let endless = KeptLease::of(&lease("10.0.0.9/24"), clocks(40, 5000));
        assert_eq!(endless.lease(clocks(1, 1)).unwrap().expires, Now(u64::MAX));
    }
}
