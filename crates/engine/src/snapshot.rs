//! Everything that decides about packets, in one immutable value that workers load once a burst.

mod settings;

pub use settings::{
    Limits, LocalService, NatMapping, Nptv6, PortSettings, Probes, Route, Settings, SettingsError,
    Snat, Timeouts,
};

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv6Net};
use policy::{Compiled, Decision, Facts};

use crate::address::{Addr, Prefix};
use crate::clock::ticks;
use crate::flow::Flow;
use crate::grant;
use crate::nat::PrefixPair;
use crate::nat::prefix::MAX_LEN;
use crate::port::PortId;
use crate::route::{Hop, RouteTable};
use crate::tcp::End;
use crate::wire::ndp::solicited_node;

/// Inside or outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Inside,
    Outside,
}

/// One of our own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnAddress {
    pub(crate) address: Addr,
    pub(crate) port: PortId,
    pub(crate) prefix: Prefix,
}

/// Idle times in ticks.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct IdleTicks {
    pub(crate) syn_sent: u32,
    pub(crate) syn_received: u32,
    pub(crate) established: u32,
    pub(crate) closing: u32,
    pub(crate) time_wait: u32,
    pub(crate) reset: u32,
    pub(crate) udp: u32,
    pub(crate) icmp: u32,
    pub(crate) other: u32,
    pub(crate) fragment: u32,
    /// The least of those of flows: what was used within it has not expired, whatever it is.
    pub(crate) least: u32,
}

#[derive(Debug)]
struct Network {
    settings: Settings,
    idle: IdleTicks,
    routes: RouteTable,
    own: Vec<OwnAddress>,
    internal: Vec<Prefix>,
    nat4: Vec<Addr>,
    nat6: Vec<Addr>,
    /// All that packets may come to for a NAT port: these, and where they are chosen by themselves the outside port's
    /// others, by which older flows go on.
    by_port: Vec<Addr>,
    nptv6: Option<PrefixPair>,
    /// Translation is asked for, and there is no address for it at the moment: IPv4, IPv6.
    nat_missing: [bool; 2],
    services: Vec<(Addr, Vec<u16>)>,
    two_arms: bool,
    /// Addresses that stations of a link are told of.
    announced: Vec<(PortId, Addr)>,
    /// By port, the groups in which others ask for our IPv6 addresses.
    groups: Vec<Vec<Addr>>,
}

/// NAT addresses that links are told of at most: all at once have to find room in a burst.
const MAX_ANNOUNCED: usize = 256;

/// Policy and settings under one generation. Immutable; published through
/// `Arc<arc_swap::ArcSwap<Snapshot>>`.
#[derive(Debug)]
pub struct Snapshot {
    generation: u64,
    /// The generation under which something changed last that the verdict on a flow depends on.
    epoch: u64,
    policy: Arc<Compiled>,
    network: Arc<Network>,
    /// What addresses are granted to under this policy: newer ones are published here, without a generation of their own.
    grants: Arc<ArcSwap<grant::Table>>,
}

impl Snapshot {
    /// Checks and indexes the settings. Generations begin at 1 and grow with each publication.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn new(
        generation: u64,
        policy: Arc<Compiled>,
        settings: Settings,
    ) -> Result<Snapshot, SettingsError> {
        let network = Arc::new(Network::new(settings)?);
        let grants = Arc::new(ArcSwap::from_pointee(grant::Table::default()));
        Ok(Snapshot::assemble(
            (generation, generation),
            policy,
            network,
            grants,
        ))
    }

    /// The same settings under another policy, with these grants, which are for its rules; cheap.
    pub fn with_policy(
        &self,
        generation: u64,
        policy: Arc<Compiled>,
        grants: grant::Table,
    ) -> Snapshot {
        let grants = Arc::new(ArcSwap::from_pointee(grants));
        let network = Arc::clone(&self.network);
        Snapshot::assemble((generation, generation), policy, network, grants)
    }

    fn assemble(
        (generation, epoch): (u64, u64),
        policy: Arc<Compiled>,
        network: Arc<Network>,
        grants: Arc<ArcSwap<grant::Table>>,
    ) -> Snapshot {
        Snapshot {
            generation,
            epoch,
            policy,
            network,
            grants,
        }
    }

    /// The same policy under other settings. Flows are judged again only if the settings differ in what their translation
    /// depends on.
    pub fn with_settings(
        &self,
        generation: u64,
        settings: Settings,
    ) -> Result<Snapshot, SettingsError> {
        let network = Arc::new(Network::new(settings)?);
        let (policy, grants) = (Arc::clone(&self.policy), Arc::clone(&self.grants));
        let epoch = match network.translates_like(&self.network) {
            true => self.epoch,
            false => generation,
        };
        Ok(Snapshot::assemble(
            (generation, epoch),
            policy,
            network,
            grants,
        ))
    }

    /// The same, published once more.
    pub fn with_generation(&self, generation: u64) -> Snapshot {
        let (policy, grants) = (Arc::clone(&self.policy), Arc::clone(&self.grants));
        let network = Arc::clone(&self.network);
        Snapshot::assemble((generation, self.epoch), policy, network, grants)
    }

    /// The same, refusing new flows and keeping old ones, or taking new ones again.
    pub fn with_draining(&self, generation: u64, draining: bool) -> Snapshot {
        let mut settings = self.network.settings.clone();
        settings.draining = draining;
        self.with_settings(generation, settings)
            .expect("draining has no part in the checks")
    }

    /// The generation it was published under.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Tells flows that were judged by what is in force here from others: as long as it stays the same, so do the policy
    /// and all that [`still_translates`](Self::still_translates) and [`lacks_nat_address`](Self::lacks_nat_address) say.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Compiled> {
        &self.policy
    }

    /// What addresses are granted to under the policy. The control side stores a newer table here; what it replaces it
    /// keeps until every worker has turned, so that none of them frees it.
    pub fn grants(&self) -> &ArcSwap<grant::Table> {
        &self.grants
    }

    /// Judges a packet by the policy and by what is granted now.
    pub fn judge(&self, facts: &Facts) -> Decision {
        self.grants.load().judge(&self.policy, facts).0
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.network.settings
    }

    pub(crate) fn idle(&self) -> &IdleTicks {
        &self.network.idle
    }

    pub(crate) fn route(&self, to: Addr) -> Option<Hop> {
        self.network.routes.lookup(to)
    }

    /// Our own addresses, translations and services not included.
    pub(crate) fn own_addresses(&self) -> &[OwnAddress] {
        &self.network.own
    }

    /// The addresses that stations of a link send to us for: our own, and those that sources are translated to, as far as
    /// they are on a link.
    pub(crate) fn announced(&self) -> &[(PortId, Addr)] {
        &self.network.announced
    }

    /// The groups in which the stations of a link ask for our IPv6 addresses, that of the port's own aside, each once.
    pub(crate) fn groups(&self, port: PortId) -> &[Addr] {
        let groups = self.network.groups.get(usize::from(port.0));
        groups.map_or(&[], Vec::as_slice)
    }

    /// The addresses and ports that the host serves.
    pub(crate) fn services(&self) -> &[(Addr, Vec<u16>)] {
        &self.network.services
    }

    /// Whether we answer for this address on some link: our own, a NAT address or a service.
    pub(crate) fn is_ours(&self, a: Addr) -> bool {
        let n = &*self.network;
        n.own.iter().any(|o| o.address == a)
            || n.nat4.contains(&a)
            || n.nat6.contains(&a)
            || n.services.iter().any(|(s, _)| *s == a)
    }

    /// Whether the host serves this address.
    pub(crate) fn is_service(&self, a: Addr) -> bool {
        self.network.services.iter().any(|(s, _)| *s == a)
    }

    /// Whether this address is our own, translations and services not included.
    pub(crate) fn is_own(&self, a: Addr) -> bool {
        self.network.own.iter().any(|o| o.address == a)
    }

    /// Whether it is a service address; if so, whether this port of it is served.
    pub(crate) fn service(&self, a: Addr, port: u16) -> Option<bool> {
        let (_, ports) = self.network.services.iter().find(|(s, _)| *s == a)?;
        Some(ports.is_empty() || ports.contains(&port))
    }

    /// Whether a source with this address, seen on this port, is inside.
    pub(crate) fn source_side(&self, port: PortId, a: Addr) -> Side {
        match (self.two_arms(), port) {
            (true, PortId(0)) => Side::Inside,
            (true, _) => Side::Outside,
            (false, _) => self.one_arm_side(a),
        }
    }

    /// Whether a destination with this address, reached by this port, is inside.
    pub(crate) fn destination_side(&self, port: PortId, a: Addr) -> Side {
        self.source_side(port, a)
    }

    pub(crate) fn two_arms(&self) -> bool {
        self.network.two_arms
    }

    fn one_arm_side(&self, a: Addr) -> Side {
        let n = &*self.network;
        let inside = n.internal.iter().any(|p| p.contains(a))
            || n.own.iter().any(|o| o.prefix.contains(a))
            || self.policy.tells_source(a.ip());
        if inside { Side::Inside } else { Side::Outside }
    }

    /// Addresses to translate a source of this family to; empty when it stays as it is.
    pub(crate) fn nat_addresses(&self, v4: bool) -> &[Addr] {
        if v4 {
            &self.network.nat4
        } else {
            &self.network.nat6
        }
    }

    /// The addresses to which sources are, or were, translated together with their ports, of both families.
    pub fn translated(&self) -> Vec<IpAddr> {
        self.network.by_port.iter().map(|a| a.ip()).collect()
    }

    /// Whether clients of IPv4, and of IPv6, are translated together with their ports.
    pub fn translates(&self) -> [bool; 2] {
        [true, false].map(|v4| !self.nat_addresses(v4).is_empty() || self.lacks_nat_address(v4))
    }

    /// Whether the port of a packet to this address tells whose flow it belongs to.
    #[inline]
    pub(crate) fn is_told_by_port(&self, a: Addr) -> bool {
        self.network.by_port.contains(&a)
    }

    /// Whether a client is translated to this address by its prefix, and keeps its ports.
    pub(crate) fn is_by_prefix(&self, client: Addr, nat: Addr) -> bool {
        let pair = self.network.nptv6.filter(|pair| pair.is_inside(client));
        pair.and_then(|pair| pair.translate_outgoing(client)) == Some(nat)
    }

    /// Whether the source of a new flow to the outside is translated by prefix; if so, to what. None
    /// where it cannot be.
    pub(crate) fn translate_prefix(&self, client: Addr) -> Option<Option<Addr>> {
        let pair = self.network.nptv6.filter(|pair| pair.is_inside(client))?;
        Some(
            pair.translate_outgoing(client)
                .filter(|a| !self.is_ours(*a)),
        )
    }

    /// The inside address that a destination stands for by its prefix; any other as it is.
    pub(crate) fn inside_of(&self, a: Addr) -> Addr {
        self.network.nptv6.map_or(a, |pair| pair.inside_of(a))
    }

    /// Whether this address stands for clients outside: a packet from inside to it is meant for one of them.
    pub(crate) fn turns_back(&self, a: Addr) -> bool {
        let n = &*self.network;
        self.nat_addresses(a.is_v4()).contains(&a)
            || self.inside_of(a) != a && !n.own.iter().any(|o| o.prefix.contains(a))
    }

    /// Whether a client's port shows the same port to every server.
    pub(crate) fn is_independent(&self) -> bool {
        self.network.settings.nat_mapping == NatMapping::EndpointIndependent
    }

    /// Whether what a client sends to this address leaves with another address and port; also while there is none for it, or
    /// no way out, so that its flows stay with their worker until there is.
    pub(crate) fn is_translated(&self, client: Addr, to: Addr) -> bool {
        let v4 = to.is_v4();
        let outwards = |hop: Hop| self.destination_side(hop.port, to) == Side::Outside;
        let by_prefix = self
            .network
            .nptv6
            .is_some_and(|pair| pair.is_inside(client));
        (!self.nat_addresses(v4).is_empty() || self.lacks_nat_address(v4))
            && !by_prefix
            && self.route(to).is_none_or(outwards)
    }

    /// Whether a client that was translated to `nat` may be so still.
    pub(crate) fn still_translates(&self, client: Addr, nat: Addr) -> bool {
        self.is_ours(nat) || self.translate_prefix(client) == Some(Some(nat))
    }

    /// Whether the only port is without an address that it gets by itself, and so without the network that is inside.
    pub(crate) fn waits_for_network(&self, v4: bool) -> bool {
        let own = &self.network.own;
        !self.two_arms() && self.acquires(PortId(0)) && own.iter().all(|o| o.address.is_v4() != v4)
    }

    /// Whether a flow could not be opened as it is any more: its client is no longer inside, or its server is outside now
    /// and would see the client untranslated.
    pub(crate) fn leads_elsewhere(&self, flow: &Flow) -> bool {
        let (client, server) = (flow.sides.of(End::Client), flow.sides.of(End::Server));
        let is_translated_outside = || {
            let v4 = flow.client.is_v4();
            self.translate_prefix(flow.client).is_some()
                || !self.nat_addresses(v4).is_empty()
                || self.lacks_nat_address(v4)
        };
        self.source_side(client, flow.client) == Side::Outside
            || !flow.is_translated()
                && self.destination_side(server, flow.server) == Side::Outside
                && is_translated_outside()
    }

    /// Whether flows of a family have to wait for an address that they can be translated to.
    pub(crate) fn lacks_nat_address(&self, v4: bool) -> bool {
        self.network.nat_missing[usize::from(!v4)]
    }

    /// Whether a port gets its addresses by itself.
    pub(crate) fn acquires(&self, port: PortId) -> bool {
        let ports = &self.network.settings.ports;
        ports
            .get(usize::from(port.0))
            .is_some_and(|port| port.acquires)
    }

    /// Whether a gateway is said to be another station than the configured one.
    pub(crate) fn is_false_gateway(&self, port: PortId, a: Addr, mac: [u8; 6]) -> bool {
        let Some(port) = self.network.settings.ports.get(usize::from(port.0)) else {
            return false;
        };
        let is_gateway = || port.gateways.iter().any(|g| Addr::from(*g) == a);
        port.gateway_mac.is_some_and(|pin| pin != mac) && is_gateway()
    }

    /// Every address that sources are translated to.
    pub fn translation_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let n = &*self.network;
        n.nat4.iter().chain(&n.nat6).map(|a| a.ip())
    }

    /// Our address on a port to speak from to `peer`: on the same prefix if there is one.
    pub(crate) fn address_towards(&self, port: PortId, peer: Addr) -> Option<Addr> {
        let mine = || {
            self.network
                .own
                .iter()
                .filter(move |o| o.port == port && o.address.is_v4() == peer.is_v4())
        };
        mine()
            .find(|o| o.prefix.contains(peer))
            .or_else(|| mine().next())
            .map(|o| o.address)
    }
}

impl Network {
    /// Whether everything that a flow's translation is checked by is the same here.
    fn translates_like(&self, other: &Network) -> bool {
        let own = |n: &Network| {
            let own = n.own.iter().map(|o| (o.address, o.prefix));
            own.collect::<Vec<_>>()
        };
        let services = |n: &Network| n.services.iter().map(|(a, _)| *a).collect::<Vec<_>>();
        (&self.nat4, &self.nat6, self.nat_missing) == (&other.nat4, &other.nat6, other.nat_missing)
            && self.settings.nptv6 == other.settings.nptv6
            && own(self) == own(other)
            && services(self) == services(other)
    }

    fn new(settings: Settings) -> Result<Network, SettingsError> {
        if !(1..=2).contains(&settings.ports.len()) {
            return Err(SettingsError::PortCount(settings.ports.len()));
        }
        let mut two_arms = settings.ports.len() > 1;
        if let Some(overlay) = &settings.overlay {
            if two_arms {
                return Err(SettingsError::OverlayPorts);
            }
            if !overlay.encapsulation.is_sound() {
                return Err(SettingsError::OverlayTunnels);
            }
            two_arms = overlay.encapsulation.is_pair();
        }
        let mut routes = RouteTable::default();
        let mut own = Vec::new();
        for (i, port) in settings.ports.iter().enumerate() {
            let id = PortId(i as u8);
            for net in &port.addresses {
                let prefix = Prefix::from(*net);
                own.push(OwnAddress {
                    address: net.addr().into(),
                    port: id,
                    prefix,
                });
                routes.add(prefix, id, None);
            }
            for net in &port.on_link {
                routes.add(Prefix::from(*net), id, None);
            }
            let on_link = |via: IpAddr| {
                let nets = port.addresses.iter().chain(&port.on_link);
                nets.into_iter().any(|n| n.contains(&via))
                    || Addr::from(via).is_link_local6() && !port.addresses.is_empty()
            };
            for route in &port.routes {
                if route.destination.addr().is_ipv4() != route.via.is_ipv4() {
                    let (destination, via) = (route.destination, route.via);
                    return Err(SettingsError::RouteFamily { destination, via });
                }
                if !on_link(route.via) {
                    return Err(SettingsError::RouterNotOnLink {
                        port: id,
                        via: route.via,
                    });
                }
                routes.add(route.destination.into(), id, Some(route.via.into()));
            }
            for via in &port.gateways {
                if !on_link(*via) {
                    return Err(SettingsError::RouterNotOnLink {
                        port: id,
                        via: *via,
                    });
                }
            }
            if port.gateways.iter().filter(|g| g.is_ipv4()).count() > 1
                || port.gateways.iter().filter(|g| g.is_ipv6()).count() > 1
            {
                return Err(SettingsError::TwoGateways(id));
            }
        }
        // The outside port's default routes first: the first of equals wins.
        for (i, port) in settings.ports.iter().enumerate().rev() {
            for via in &port.gateways {
                let all = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                let all: IpNet = all.parse().expect("a constant prefix");
                routes.add(all.into(), PortId(i as u8), Some((*via).into()));
            }
        }

        let outside = settings.ports.last().expect("counted above");
        let first = |want: &dyn Fn(IpAddr) -> bool| {
            outside
                .addresses
                .iter()
                .map(IpNet::addr)
                .find(|a| want(*a))
                .map(Addr::from)
        };
        let v4 = |a: IpAddr| match a {
            IpAddr::V4(_) if !Addr::from(a).is_martian_source() => Ok(Addr::from(a)),
            _ => Err(SettingsError::SnatAddress(a)),
        };
        let has_v4 = settings
            .ports
            .iter()
            .flat_map(|p| &p.addresses)
            .any(|n| n.addr().is_ipv4());
        let nat4 = match &settings.snat {
            Snat::None => Vec::new(),
            // A node without any IPv4 address carries no IPv4 and has nothing to translate; to a
            // port without any address there is no route.
            Snat::Auto if !has_v4 || outside.addresses.is_empty() => Vec::new(),
            Snat::Auto => match first(&|a| a.is_ipv4()) {
                Some(address) => vec![address],
                None if outside.acquires => Vec::new(),
                None => return Err(SettingsError::NoAutoAddress),
            },
            Snat::Static(a) => vec![v4(*a)?],
            Snat::Pool(pool) if pool.is_empty() => return Err(SettingsError::EmptyPool),
            Snat::Pool(pool) => pool.iter().map(|a| v4(*a)).collect::<Result<_, _>>()?,
        };
        let global = |a: IpAddr| a.is_ipv6() && !Addr::from(a).is_link_local6();
        let v6 = |a: IpAddr| match global(a) && !Addr::from(a).is_martian_source() {
            true => Ok(Addr::from(a)),
            false => Err(SettingsError::Nat66Address(a)),
        };
        let nat6 = match &settings.nat66 {
            None | Some(Snat::None) => Vec::new(),
            Some(Snat::Auto) if outside.addresses.is_empty() => Vec::new(),
            Some(Snat::Auto) => match first(&global) {
                Some(address) => vec![address],
                None if outside.acquires => Vec::new(),
                None => return Err(SettingsError::NoNat66Address),
            },
            Some(Snat::Static(a)) => vec![v6(*a)?],
            Some(Snat::Pool(pool)) if pool.is_empty() => return Err(SettingsError::EmptyPool),
            Some(Snat::Pool(pool)) => pool.iter().map(|a| v6(*a)).collect::<Result<_, _>>()?,
        };

        let others = outside.addresses.iter().map(IpNet::addr);
        let others = others.filter(|a| match a.is_ipv4() {
            true => settings.snat == Snat::Auto,
            false => settings.nat66 == Some(Snat::Auto) && global(*a),
        });
        let mut by_port: Vec<Addr> = nat4.iter().chain(&nat6).copied().collect();
        for other in others.map(Addr::from) {
            if !by_port.contains(&other) {
                by_port.push(other);
            }
        }

        let nptv6 = match settings.nptv6 {
            None => None,
            Some(pair) => {
                let (inside, outside) = (pair.inside, pair.outside);
                let usable = |net: Ipv6Net| {
                    let a = Addr::from(IpAddr::from(net.addr()));
                    net.prefix_len() <= MAX_LEN && !a.is_link_local6() && !a.is_multicast()
                };
                let apart =
                    !inside.contains(&outside.network()) && !outside.contains(&inside.network());
                if !(usable(inside) && usable(outside) && apart) {
                    return Err(SettingsError::Nptv6Prefix(pair));
                }
                Some(PrefixPair::new(inside, outside))
            }
        };

        let nat_missing = [
            settings.snat == Snat::Auto && outside.acquires && nat4.is_empty(),
            settings.nat66 == Some(Snat::Auto) && outside.acquires && nat6.is_empty(),
        ];
        let t = &settings.timeouts;
        let of_flows = [
            t.tcp_syn_sent,
            t.tcp_syn_received,
            t.tcp_established,
            t.tcp_closing,
            t.tcp_time_wait,
            t.tcp_reset,
            t.udp,
            t.icmp,
            t.other,
        ];
        let idle = IdleTicks {
            least: of_flows.into_iter().map(ticks).min().unwrap_or(0),
            syn_sent: ticks(t.tcp_syn_sent),
            syn_received: ticks(t.tcp_syn_received),
            established: ticks(t.tcp_established),
            closing: ticks(t.tcp_closing),
            time_wait: ticks(t.tcp_time_wait),
            reset: ticks(t.tcp_reset),
            udp: ticks(t.udp),
            icmp: ticks(t.icmp),
            other: ticks(t.other),
            fragment: ticks(t.fragment),
        };
        let mut announced: Vec<_> = own.iter().map(|o| (o.port, o.address)).collect();
        let is_new = |a: &&Addr| !own.iter().any(|o| o.address == **a);
        // What a router leads to is routed to us.
        let on_link = |a: Addr| routes.lookup(a).filter(|hop| hop.neighbor == a);
        for a in nat4.iter().chain(&nat6).filter(is_new).take(MAX_ANNOUNCED) {
            if let Some(hop) = on_link(*a) {
                announced.push((hop.port, *a));
            }
        }
        let internal = settings
            .internal
            .iter()
            .copied()
            .map(Prefix::from)
            .collect();
        let services: Vec<(Addr, Vec<u16>)> = settings
            .services
            .iter()
            .map(|s| (s.address.into(), s.ports.clone()))
            .collect();
        let served = services.iter().filter_map(|(a, _)| {
            let hop = on_link(*a)?;
            Some((hop.port, *a))
        });
        let mut groups = vec![Vec::new(); settings.ports.len()];
        for (port, a) in announced.iter().copied().chain(served) {
            if !a.is_v4() {
                groups[usize::from(port.0)].push(solicited_node(a));
            }
        }
        for groups in &mut groups {
            groups.sort_unstable();
            groups.dedup();
        }
        Ok(Network {
            groups,
            settings,
            idle,
            routes,
            own,
            internal,
            nat4,
            nat6,
            by_port,
            nptv6,
            nat_missing,
            services,
            two_arms,
            announced,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn two_arms() -> Settings {
        let port = |a: &str| PortSettings {
            addresses: vec![net(a)],
            ..PortSettings::default()
        };
        Settings {
            ports: vec![port("10.0.0.1/24"), port("192.0.2.1/24")],
            ..Settings::default()
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        fn check(change: impl Fn(&mut Settings), expected: SettingsError) {
            let mut settings = two_arms();
            change(&mut settings);
            let refused = Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).map(|_| ());
            assert_eq!(refused, Err(expected));
        }
        check(|s| s.ports.clear(), SettingsError::PortCount(0));
        check(
            |s| s.ports.extend(two_arms().ports),
            SettingsError::PortCount(4),
        );
        check(
            |s| {
                s.ports[1].addresses.clear();
                s.ports[1].gateways = vec![ip("fe80::1")];
            },
            SettingsError::RouterNotOnLink {
                port: PortId(1),
                via: ip("fe80::1"),
            },
        );
        let far = SettingsError::RouterNotOnLink {
            port: PortId(0),
            via: ip("10.0.1.1"),
        };
        check(|s| s.ports[0].gateways = vec![ip("10.0.1.1")], far);
        check(
            |s| s.ports[0].gateways = vec![ip("10.0.0.8"), ip("10.0.0.9")],
            SettingsError::TwoGateways(PortId(0)),
        );
        let route = || Route {
            destination: net("2001:db8::/32"),
            via: ip("10.0.0.9"),
        };
        check(
            |s| s.ports[0].routes = vec![route()],
            SettingsError::RouteFamily {
                destination: route().destination,
                via: route().via,
            },
        );
        check(
            |s| s.snat = Snat::Pool(Vec::new()),
            SettingsError::EmptyPool,
        );
        check(
            |s| s.snat = Snat::Static(ip("::5")),
            SettingsError::SnatAddress(ip("::5")),
        );
        check(
            |s| s.snat = Snat::Static(ip("127.0.0.1")),
            SettingsError::SnatAddress(ip("127.0.0.1")),
        );
        check(
            |s| s.ports[1].addresses = vec![net("2001:db8::1/64")],
            SettingsError::NoAutoAddress,
        );
        check(
            |s| s.nat66 = Some(Snat::Auto),
            SettingsError::NoNat66Address,
        );
        for (inside, outside) in [
            ("fd00::/48", "2001:db8::/65"),
            ("fd00::/48", "fd00:0:0:1::/64"),
            ("fd00::/48", "fe80::/64"),
        ] {
            let pair = Nptv6 {
                inside: inside.parse().unwrap(),
                outside: outside.parse().unwrap(),
            };
            check(|s| s.nptv6 = Some(pair), SettingsError::Nptv6Prefix(pair));
        }
        check(
            |s| s.nat66 = Some(Snat::Static(ip("fe80::1"))),
            SettingsError::Nat66Address(ip("fe80::1")),
        );
    }

    #[test]
    fn nothing_leads_to_a_port_without_addresses() {
        let mut settings = two_arms();
        settings.ports[1].addresses.clear();
        settings.nat66 = Some(Snat::Auto);
        let snapshot = Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).unwrap();
        assert!(snapshot.route(ip("10.0.0.9").into()).is_some());
        for far in ["192.0.2.9", "2001:db8::9", "fe80::9"] {
            assert!(snapshot.route(ip(far).into()).is_none(), "{far}");
        }
    }

    #[test]
    fn a_new_policy_keeps_the_settings() {
        let old = Snapshot::new(1, Arc::new(Compiled::deny_all()), two_arms()).unwrap();
        let new = old.with_policy(2, Arc::new(Compiled::deny_all()), grant::Table::default());
        assert_eq!((new.generation(), new.settings()), (2, old.settings()));
        let draining = new.with_draining(3, true);
        assert!(draining.settings().draining && !new.settings().draining);
    }
}
