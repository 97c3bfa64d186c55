//! From the configuration to the engine's settings.

use std::sync::Arc;
use std::time::Duration;

use engine::overlay::{Encapsulation, Overlay, VxlanTunnel};
use engine::snapshot::{
    Limits, LocalService, NatMapping, Nptv6, PortSettings, Probes, Route, Settings, SettingsError,
    Snat, Timeouts,
};
use engine::{Now, Snapshot};
use policy::Compiled;

use super::addresses::without_addresses;
use crate::config::{self, Auto, CloudProvider, Config, Mac, SourceNat};

/// UDP ports of tunnels, unless configured.
const VXLAN_PORT: u16 = 10_800;
const GENEVE_PORT: u16 = 6081;

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

/// Whether it takes them if the ports have these addresses.
pub(super) fn is_usable(config: &Config, ports: &[PortSettings]) -> bool {
    let settings = Settings {
        ports: ports.to_vec(),
        ..settings(config, Now(0), 1)
    };
    Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).is_ok()
}

/// What each of so many workers has of what a node may have in all.
pub(super) fn share(of: u32, workers: usize) -> u32 {
    of.div_ceil(workers.max(1) as u32)
}

/// The engine's settings, apart from the policy, of a node that starts `now` with so many workers.
pub(super) fn settings(config: &Config, now: Now, workers: usize) -> Settings {
    let dataplane = &config.dataplane;
    let admission = &dataplane.admission;
    let ports = without_addresses(&configured_ports(config));
    let service = |address: &std::net::IpAddr| LocalService {
        address: *address,
        ports: vec![DNS_PORT],
    };
    Settings {
        ports,
        internal: config.policy.internal_cidr.clone(),
        snat: snat(&dataplane.snat),
        nat66: Some(snat(&dataplane.nat66)),
        nat_mapping: match dataplane.nat_mapping {
            config::NatMapping::AddressAndPortDependent => NatMapping::AddressAndPortDependent,
            config::NatMapping::EndpointIndependent => NatMapping::EndpointIndependent,
        },
        nptv6: dataplane
            .nptv6
            .prefixes()
            .map(|(inside, outside)| Nptv6 { inside, outside }),
        overlay: overlay(config),
        timeouts: timeouts(dataplane),
        limits: Limits {
            max_flows: share(dataplane.max_active_flows(), workers),
            // The workers count these together.
            max_flows_per_group: admission.max_active_flows_per_source_group,
            max_flows_per_source: admission.max_active_flows_per_source,
            new_flows_per_source_per_s: admission.max_new_flows_per_source_per_sec,
            max_nat_bindings: share(dataplane.max_active_nat_entries(), workers),
            ..Limits::default()
        },
        tcp_window_check: dataplane.tcp_window_check,
        tcp_mss_max: dataplane.tcp_mss_max,
        pick_up_until: now + Duration::from_secs(u64::from(dataplane.tcp_pick_up_secs)),
        services: config.dns.served().iter().map(service).collect(),
        probes: probes(config),
        ..Settings::default()
    }
}

/// The ports as configured. One without addresses gets its own, and until then leads nowhere.
pub(super) fn configured_ports(config: &Config) -> Vec<PortSettings> {
    let ports = &config.dataplane.ports;
    let mut all = vec![port(&ports.inside)];
    if config.bootstrap.outside_interface.is_some() {
        all.push(port(&ports.outside));
    }
    // The pin is about the port that leads to the default gateway.
    if let Some(last) = all.last_mut() {
        last.gateway_mac = config.dpdk.gateway_mac.map(|Mac(mac)| mac);
    }
    all
}

/// Whether health probes are answered, once the node is ready.
fn probes(config: &Config) -> Probes {
    let answered = match config.dataplane.health_probe {
        Auto::Auto => config.bootstrap.cloud_provider != CloudProvider::None,
        Auto::Fixed(answered) => answered,
    };
    if answered {
        Probes::NotReady
    } else {
        Probes::Off
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
        acquires: port.addresses.is_empty(),
        ..PortSettings::default()
    }
}

fn overlay(config: &Config) -> Option<Overlay> {
    let (dataplane, dpdk) = (&config.dataplane, &config.dpdk.overlay);
    let vxlan = |vni: Option<u32>, udp_port| VxlanTunnel {
        vni: vni.unwrap_or_default(),
        udp_port,
    };
    let encapsulation = match dataplane.encap_mode {
        config::EncapMode::None => return None,
        config::EncapMode::Geneve => Encapsulation::Geneve {
            udp_port: dataplane.encap_udp_port.unwrap_or(GENEVE_PORT),
        },
        config::EncapMode::Vxlan if dataplane.encap_vni.is_some() => {
            let port = dataplane.encap_udp_port.unwrap_or(VXLAN_PORT);
            Encapsulation::Vxlan(vxlan(dataplane.encap_vni, port))
        }
        config::EncapMode::Vxlan => Encapsulation::VxlanPair {
            internal: vxlan(
                dataplane.encap_vni_internal,
                dataplane.encap_udp_port_internal,
            ),
            external: vxlan(
                dataplane.encap_vni_external,
                dataplane.encap_udp_port_external,
            ),
            swap: dpdk.swap_tunnels,
        },
    };
    Some(Overlay {
        encapsulation,
        mtu: u16::try_from(dataplane.encap_mtu).unwrap_or(u16::MAX),
        fixed_source_port: dpdk.force_tunnel_src_port,
    })
}

/// How long flows may be idle: the more special of two keys goes before the other.
fn timeouts(dataplane: &config::Dataplane) -> Timeouts {
    let seconds = |s: u32| Duration::from_secs(u64::from(s));
    let idle = dataplane.idle_timeout_secs.map(seconds);
    let mut timeouts = idle.map_or_else(Timeouts::default, Timeouts::uniform);
    timeouts.fragment = seconds(dataplane.fragment_timeout_secs);
    if let Some(incomplete_s) = dataplane.flow_incomplete_tcp_idle_timeout_secs {
        timeouts.tcp_syn_sent = seconds(incomplete_s);
        timeouts.tcp_syn_received = seconds(incomplete_s);
    }
    if let Some(syn_sent_s) = dataplane.flow_incomplete_tcp_syn_sent_idle_timeout_secs {
        timeouts.tcp_syn_sent = seconds(syn_sent_s);
    }
    timeouts
}

fn snat(nat: &SourceNat) -> Snat {
    match nat {
        SourceNat::None => Snat::None,
        SourceNat::Auto => Snat::Auto,
        SourceNat::Static(address) => Snat::Static(*address),
        SourceNat::Pool(_) => Snat::Pool(nat.addresses()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of a node with these lines below `dataplane`.
    fn of(lines: &str) -> Settings {
        let text = format!(
            "version: 1\nbootstrap: {{management_interface: eth0, data_interface: eth1}}\ndataplane: {{{lines}}}"
        );
        let config = Config::parse(Some(&text), &config::Flags::default());
        settings(
            &config.unwrap_or_else(|invalid| panic!("{invalid}")),
            Now(0),
            1,
        )
    }

    #[test]
    fn half_open_connections_have_times_of_their_own() {
        #[track_caller]
        fn check(lines: &str, syn_sent_s: u64, syn_received_s: u64, established_s: u64) {
            let timeouts = of(lines).timeouts;
            let of_tcp = [
                timeouts.tcp_syn_sent,
                timeouts.tcp_syn_received,
                timeouts.tcp_established,
            ];
            let expected = [syn_sent_s, syn_received_s, established_s].map(Duration::from_secs);
            assert_eq!(of_tcp, expected, "{lines}");
        }
        let (incomplete, syn_sent) = (
            "flow_incomplete_tcp_idle_timeout_secs",
            "flow_incomplete_tcp_syn_sent_idle_timeout_secs",
        );
        check("", 30, 60, 7440);
        check(&format!("{syn_sent}: 3"), 3, 60, 7440);
        check(&format!("{incomplete}: 7"), 7, 7, 7440);
        check(&format!("{incomplete}: 7, {syn_sent}: 3"), 3, 7, 7440);
        check(
            &format!("{incomplete}: 400, idle_timeout_secs: 20"),
            400,
            400,
            20,
        );
        check("idle_timeout_secs: 20", 20, 20, 20);
    }

    #[test]
    fn a_pool_has_each_of_its_addresses() {
        let addresses = |texts: &[&str]| texts.iter().map(|a| a.parse().unwrap()).collect();
        let settings = of(
            "snat: [192.0.2.7, 198.51.100.0/30], nat66: {mode: pool, addresses: '2001:db8:7::/127'}",
        );
        let snat = addresses(&["192.0.2.7", "198.51.100.1", "198.51.100.2"]);
        let nat66 = addresses(&["2001:db8:7::", "2001:db8:7::1"]);
        assert_eq!(settings.snat, Snat::Pool(snat));
        assert_eq!(settings.nat66, Some(Snat::Pool(nat66)));
    }
}
