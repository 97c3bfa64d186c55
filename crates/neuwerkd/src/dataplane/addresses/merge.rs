//! What becomes of the settings of ports when they learn addresses, routers and routes.

use std::net::{IpAddr, Ipv4Addr};

use engine::acquire::{Advertised, Learned, Lease};
use engine::snapshot::{PortSettings, Route};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::dataplane::PORT_NAMES;

/// The ports' settings with what they have learned, and what of that cannot be used. Of two ports that say they are on one
/// network, that one keeps it which had it `before`: whoever is on the link of the other takes nothing away from it.
pub(super) fn merge(
    base: &[PortSettings],
    learned: &[Learned],
    before: &[Vec<IpNet>],
) -> (Vec<PortSettings>, Vec<String>) {
    let with = |(index, base): (usize, &PortSettings)| {
        let told = learned
            .iter()
            .find(|told| usize::from(told.port.0) == index);
        if base.acquires {
            merge_port(base, told)
        } else {
            base.clone()
        }
    };
    let mut ports: Vec<_> = base.iter().enumerate().map(with).collect();
    let mut problems = Vec::new();
    if let [inside, outside] = &ports[..] {
        let had = |index: usize, net: &IpNet| {
            let mut had = before.get(index).into_iter().flatten();
            had.any(|had| overlap(had, net))
        };
        let mut yielded = [Vec::new(), Vec::new()];
        for (a, b) in clashes(inside, outside) {
            let outside_yields = outside.acquires && (!inside.acquires || !had(1, b) || had(0, a));
            let index = usize::from(outside_yields);
            yielded[index].push(if outside_yields { *b } else { *a });
        }
        for (index, yielded) in yielded.iter().enumerate().filter(|(_, y)| !y.is_empty()) {
            let name = PORT_NAMES[1][index];
            problems.push(format!(
                "the {name} port was given an address of the other port's network; ports need one each"
            ));
            ports[index] = without(&ports[index], yielded);
        }
    }
    (ports, problems)
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Networks of one port and of another that have addresses in common.
fn clashes<'a>(
    one: &'a PortSettings,
    other: &'a PortSettings,
) -> impl Iterator<Item = (&'a IpNet, &'a IpNet)> {
    let pairs = networks(one).flat_map(|a| networks(other).map(move |b| (a, b)));
    pairs.filter(|(a, b)| overlap(a, b))
}

/// The settings of a port but for these networks, and for what is reached through them.
fn without(port: &PortSettings, these: &[IpNet]) -> PortSettings {
    let mut port = port.clone();
    port.addresses.retain(|net| !these.contains(net));
    port.on_link.retain(|net| !these.contains(net));
    let left = port.clone();
    let is_reached = |via: IpAddr| {
        let mut families = left.addresses.iter().map(|own| own.addr().is_ipv4());
        is_on_link(&left, via) && families.any(|v4| v4 == via.is_ipv4())
    };
    port.gateways.retain(|via| is_reached(*via));
    port.routes.retain(|route| is_reached(route.via));
    port
}

pub(super) fn networks(port: &PortSettings) -> impl Iterator<Item = &IpNet> {
    port.addresses.iter().chain(&port.on_link)
}

fn merge_port(base: &PortSettings, told: Option<&Learned>) -> PortSettings {
    let mut port = PortSettings {
        gateways: Vec::new(),
        routes: Vec::new(),
        ..base.clone()
    };
    if let Some(told) = told {
        if let Some(lease) = &told.lease {
            add_lease(&mut port, lease);
        }
        add_advertised(&mut port, &told.advertised);
    }
    // What the operator has set goes before what was learned, as far as it can be reached.
    for gateway in &base.gateways {
        if is_on_link(&port, *gateway) {
            port.gateways
                .retain(|learned| learned.is_ipv4() != gateway.is_ipv4());
            port.gateways.push(*gateway);
        }
    }
    let reachable = base
        .routes
        .iter()
        .filter(|route| is_on_link(&port, route.via));
    let mut routes: Vec<_> = reachable.cloned().collect();
    routes.append(&mut port.routes);
    port.routes = routes;
    port
}

fn is_on_link(port: &PortSettings, via: IpAddr) -> bool {
    let link_local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
    networks(port).any(|net| net.contains(&via)) || link_local && !port.addresses.is_empty()
}

fn add_lease(port: &mut PortSettings, lease: &Lease) {
    let Ok(own) = Ipv4Net::new(lease.address, lease.prefix_len) else {
        return;
    };
    port.addresses.push(own.into());
    port.mtu = smaller(port.mtu, lease.mtu);
    let (direct, through): (Vec<_>, Vec<_>) = lease
        .routes
        .iter()
        .partition(|(_, via)| via.is_unspecified());
    for (to, _) in direct {
        port.on_link.push(to.into());
    }
    let reach = |port: &mut PortSettings, via: Ipv4Addr| {
        // A router outside the prefix is on the link all the same: clouds lease single addresses.
        if !is_on_link(port, via.into()) {
            port.on_link.push(Ipv4Net::from(via).into());
        }
    };
    for (to, via) in through {
        reach(port, via);
        port.routes.push(Route {
            destination: to.into(),
            via: via.into(),
        });
    }
    if let Some(gateway) = lease.gateway {
        reach(port, gateway);
        port.gateways.push(gateway.into());
    }
}

fn add_advertised(port: &mut PortSettings, advertised: &Advertised) {
    for own in &advertised.addresses {
        let net = advertised
            .on_link
            .iter()
            .find(|net| net.contains(&own.address));
        let length = net.map_or(128, Ipv6Net::prefix_len);
        port.addresses
            .extend(IpNet::new(own.address.into(), length).ok());
    }
    let known = |net: &&Ipv6Net| {
        !port
            .addresses
            .iter()
            .any(|own| own.trunc() == IpNet::from(**net))
    };
    let further: Vec<IpNet> = advertised
        .on_link
        .iter()
        .filter(known)
        .map(|net| (*net).into())
        .collect();
    port.on_link.extend(further);
    port.mtu = smaller(port.mtu, advertised.mtu);
    // A router without any address of ours leads nowhere: its answers could not come back.
    if port.addresses.is_empty() {
        return;
    }
    port.gateways.extend(advertised.router.map(IpAddr::from));
    port.routes
        .extend(advertised.routes.iter().map(|(to, via)| Route {
            destination: (*to).into(),
            via: (*via).into(),
        }));
}

fn smaller(one: Option<u16>, other: Option<u16>) -> Option<u16> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::Snapshot;
    use engine::acquire::Address6;
    use engine::snapshot::{Settings, Snat};
    use policy::Compiled;

    use super::*;
    use crate::dataplane::addresses::Kept;
    use crate::dataplane::addresses::tests::{lease, told};

    fn port(addresses: &[&str]) -> PortSettings {
        PortSettings {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            acquires: addresses.is_empty(),
            ..PortSettings::default()
        }
    }

    /// The engine takes whatever is made of what was learned.
    fn check(base: &[PortSettings], learned: &[Learned]) -> (Vec<PortSettings>, Vec<String>) {
        let (ports, problems) = merge(base, learned, &[]);
        let settings = Settings {
            ports: ports.clone(),
            nat66: Some(Snat::Auto),
            ..Settings::default()
        };
        Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).unwrap();
        (ports, problems)
    }

    #[test]
    fn a_lease_becomes_address_gateway_and_mtu() {
        let (ports, problems) = check(&[port(&[])], &[told(0, Some(lease("10.0.0.9/24")))]);
        assert_eq!(ports[0].addresses, ["10.0.0.9/24".parse().unwrap()]);
        assert_eq!(ports[0].gateways, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((ports[0].on_link.len(), ports[0].mtu), (0, Some(1400)));
        assert!(problems.is_empty());
        assert_eq!(check(&[port(&[])], &[]).0, [port(&[])]);
    }

    #[test]
    fn a_router_outside_the_prefix_is_on_the_link() {
        let mut single = lease("10.0.0.9/32");
        single.routes = vec![
            ("10.7.0.0/16".parse().unwrap(), Ipv4Addr::UNSPECIFIED),
            ("10.8.0.0/16".parse().unwrap(), "10.0.0.3".parse().unwrap()),
        ];
        let (ports, _) = check(&[port(&[])], &[told(0, Some(single))]);
        let expected: [IpNet; 3] =
            ["10.7.0.0/16", "10.0.0.3/32", "10.0.0.1/32"].map(|n| n.parse().unwrap());
        assert_eq!(ports[0].on_link, expected);
        assert_eq!(ports[0].routes.len(), 1);
    }

    #[test]
    fn advertised_prefixes_become_addresses_and_the_router_a_gateway() {
        let mut learned = told(0, None);
        learned.advertised = Advertised {
            addresses: ["2001:db8::9", "2001:db8:1::9"]
                .map(|a| Address6 {
                    address: a.parse().unwrap(),
                    deprecated: false,
                })
                .to_vec(),
            on_link: vec![
                "2001:db8::/64".parse().unwrap(),
                "2001:db8:2::/64".parse().unwrap(),
            ],
            router: Some("fe80::1".parse().unwrap()),
            routes: vec![(
                "2001:db8:8::/48".parse().unwrap(),
                "fe80::2".parse().unwrap(),
            )],
            mtu: None,
        };
        let (ports, _) = check(&[port(&[])], &[learned.clone()]);
        let addresses: [IpNet; 2] =
            ["2001:db8::9/64", "2001:db8:1::9/128"].map(|n| n.parse().unwrap());
        assert_eq!(ports[0].addresses, addresses);
        assert_eq!(ports[0].on_link, ["2001:db8:2::/64".parse().unwrap()]);
        assert_eq!((ports[0].gateways.len(), ports[0].routes.len()), (1, 1));

        learned.advertised.addresses.clear();
        let (ports, _) = check(&[port(&[])], &[learned]);
        assert!(
            ports[0].gateways.is_empty() && ports[0].routes.is_empty(),
            "{ports:?}"
        );
    }

    #[test]
    fn what_the_operator_set_goes_first_as_far_as_it_can_be_reached() {
        let mut base = port(&[]);
        base.gateways = vec!["10.0.0.7".parse().unwrap()];
        base.routes = vec![Route {
            destination: "10.9.0.0/16".parse().unwrap(),
            via: "10.0.0.8".parse().unwrap(),
        }];
        let (ports, _) = check(&[base.clone()], &[told(0, Some(lease("10.0.0.9/24")))]);
        assert_eq!(ports[0].gateways, base.gateways);
        assert_eq!(ports[0].routes, base.routes);
        let (ports, _) = check(&[base], &[]);
        assert!(ports[0].gateways.is_empty() && ports[0].routes.is_empty());
    }

    #[test]
    fn two_ports_never_share_a_network() {
        let (ports, problems) = check(
            &[port(&["10.0.0.2/24"]), port(&[])],
            &[told(1, Some(lease("10.0.0.9/16")))],
        );
        assert!(ports[1].addresses.is_empty());
        assert!(problems[0].contains("the outside port"), "{problems:?}");
        let both = [
            told(0, Some(lease("10.0.0.9/24"))),
            told(1, Some(lease("10.0.0.10/24"))),
        ];
        let (ports, _) = check(&[port(&[]), port(&[])], &both);
        assert_eq!((ports[0].addresses.len(), ports[1].addresses.len()), (1, 0));
    }

    /// Anybody inside can advertise the network that the node has outside.
    #[test]
    fn a_network_stays_with_the_port_that_had_it_first() {
        let base = [port(&[]), port(&[])];
        let advertised = |index, on_link: &str, own: &[&str]| {
            let mut learned = told(index, None);
            let address = |own: &&str| Address6 {
                address: own.parse().unwrap(),
                deprecated: false,
            };
            learned.advertised = Advertised {
                addresses: own.iter().map(address).collect(),
                on_link: vec![on_link.parse().unwrap()],
                router: Some("fe80::1".parse().unwrap()),
                routes: vec![],
                mtu: None,
            };
            learned
        };
        let mut outside = advertised(1, "2001:db8::/64", &["2001:db8::9"]);
        outside.lease = Some(Lease {
            gateway: Some("192.0.2.1".parse().unwrap()),
            ..lease("192.0.2.9/24")
        });
        let inside = told(0, Some(lease("10.0.0.9/24")));
        let (before, problems) = merge(&base, &[inside.clone(), outside.clone()], &[]);
        assert!(problems.is_empty());

        let mut claims = advertised(0, "2001:db8::/64", &[]);
        claims.lease.clone_from(&inside.lease);
        let had: Vec<Vec<IpNet>> = before
            .iter()
            .map(|port| networks(port).copied().collect())
            .collect();
        let (ports, problems) = merge(&base, &[claims.clone(), outside.clone()], &had);
        assert!(problems[0].contains("the inside port"), "{problems:?}");
        assert_eq!(ports[1], before[1]);
        assert_eq!(ports[0].addresses, before[0].addresses);

        // Also where the outside port has got another address in it meanwhile, and where it gets one more network that
        // the inside port says it had first.
        let mut more = advertised(1, "2001:db8::/64", &["2001:db8::a"]);
        more.lease.clone_from(&outside.lease);
        more.advertised
            .on_link
            .push("2001:db8:1::/64".parse().unwrap());
        claims
            .advertised
            .on_link
            .push("2001:db8:1::/64".parse().unwrap());
        let mut had = had;
        had[0].push("2001:db8:1::/64".parse().unwrap());
        let (ports, problems) = merge(&base, &[claims.clone(), more], &had);
        assert_eq!(problems.len(), 2, "{problems:?}");
        let on_link = |index: usize| {
            ports[index]
                .on_link
                .iter()
                .filter(|net| net.prefix_len() == 64)
                .collect::<Vec<_>>()
        };
        assert_eq!(ports[1].addresses.len(), 2);
        assert!(on_link(1).is_empty(), "its own is that of its addresses");
        assert_eq!(on_link(0), [&"2001:db8:1::/64".parse::<IpNet>().unwrap()]);
        claims.advertised.on_link.pop();

        // Who speaks up first after a start is not the one who had it.
        let interfaces = ["inside", "outside"].map(String::from);
        let mut kept = Kept::default();
        kept.remember(&interfaces, &before);
        let (ports, _) = merge(&base, &[claims.clone()], &kept.networks(&interfaces));
        assert!(
            networks(&ports[0]).any(|net| overlap(net, &had[1][1])),
            "nobody else is there yet"
        );
        kept.remember(&interfaces, &ports);
        let (ports, _) = merge(
            &base,
            &[claims.clone(), outside.clone()],
            &kept.networks(&interfaces),
        );
        assert_eq!(ports[1], before[1]);

        // Where nobody had it, the outside port yields, and keeps what is not in question.
        let (ports, problems) = merge(&base, &[claims, outside], &[]);
        assert!(problems[0].contains("the outside port"), "{problems:?}");
        assert_eq!(ports[1].addresses, ["192.0.2.9/24".parse().unwrap()]);
        let gateways: Vec<bool> = ports[1].gateways.iter().map(IpAddr::is_ipv4).collect();
        assert_eq!(gateways, [true], "none of IPv6");
    }
}
