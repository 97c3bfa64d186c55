//! From the configuration to the engine's settings.

use std::sync::Arc;
use std::time::Duration;

use engine::snapshot::{
    Limits, LocalService, NatMapping, Nptv6, PortSettings, Route, Settings, SettingsError, Snat,
    Timeouts,
};
use engine::{Now, Snapshot};
use policy::Compiled;

use crate::config::{self, Config, SourceNat};

/// The port on which `dns.target_ips` answer.
const DNS_PORT: u16 = 53;

/// Whether the engine takes the settings.
///
/// # Errors
/// They contradict each other.
pub(crate) fn check(config: &Config) -> Result<(), SettingsError> {
    let settings = settings(config, Now(0), 1);
    Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).map(|_| ())
}

/// What each of so many workers has of what a node may have in all.
pub(super) fn share(of: u32, workers: usize) -> u32 {
    of.div_ceil(workers.max(1) as u32)
}

/// The engine's settings, apart from the policy, of a node that starts `now` with so many workers.
pub(super) fn settings(config: &Config, now: Now, workers: usize) -> Settings {
    let dataplane = &config.dataplane;
    let admission = &dataplane.admission;
    let mut ports = vec![port(&dataplane.ports.inside)];
    if config.bootstrap.outside_interface.is_some() {
        ports.push(port(&dataplane.ports.outside));
    }
    let idle = dataplane
        .idle_timeout_secs
        .map(|s| Duration::from_secs(u64::from(s)));
    let service = |address: &std::net::IpAddr| LocalService {
        address: *address,
        ports: vec![DNS_PORT],
    };
    Settings {
        ports,
        internal: config.policy.internal_cidr.clone(),
        snat: snat(dataplane.snat),
        nat66: Some(snat(dataplane.nat66)),
        nat_mapping: match dataplane.nat_mapping {
            config::NatMapping::AddressAndPortDependent => NatMapping::AddressAndPortDependent,
            config::NatMapping::EndpointIndependent => NatMapping::EndpointIndependent,
        },
        nptv6: dataplane
            .nptv6
            .prefixes()
            .map(|(inside, outside)| Nptv6 { inside, outside }),
        timeouts: Timeouts {
            fragment: Duration::from_secs(u64::from(dataplane.fragment_timeout_secs)),
            ..idle.map_or_else(Timeouts::default, Timeouts::uniform)
        },
        limits: Limits {
            max_flows: share(dataplane.max_active_flows(), workers),
            max_flows_per_group: admission
                .max_active_flows_per_source_group
                .map(|n| share(n, workers)),
            max_flows_per_source: admission
                .max_active_flows_per_source
                .map(|n| share(n, workers)),
            new_flows_per_source_per_s: admission
                .max_new_flows_per_source_per_sec
                .map(|n| share(n, workers)),
            max_nat_bindings: share(dataplane.max_active_nat_entries(), workers),
            ..Limits::default()
        },
        tcp_window_check: dataplane.tcp_window_check,
        tcp_mss_max: dataplane.tcp_mss_max,
        pick_up_until: now + Duration::from_secs(u64::from(dataplane.tcp_pick_up_secs)),
        services: config.dns.served().iter().map(service).collect(),
        ..Settings::default()
    }
}

fn port(port: &config::Port) -> PortSettings {
    let route = |route: &config::Route| Route {
        destination: route.to,
        via: route.via,
    };
    PortSettings {
        addresses: port.addresses.clone(),
        gateways: port.gateway.clone(),
        routes: port.routes.iter().map(route).collect(),
    }
}

fn snat(nat: SourceNat) -> Snat {
    match nat {
        SourceNat::None => Snat::None,
        SourceNat::Auto => Snat::Auto,
        SourceNat::Static(address) => Snat::Static(address),
    }
}
