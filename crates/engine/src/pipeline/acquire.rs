//! Our part of DHCP and router advertisements: what arrives goes to the port's state machines, what they want to say
//! goes to the outbox, and what they know is told to the control side whenever it has changed.

use std::fmt;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Pipeline, Step};
use crate::DropReason;
use crate::acquire::{Config, Held, Learned, Standing, Tell};
use crate::address::Addr;
use crate::autoconf::{self, Autoconf};
use crate::clock::Now;
use crate::dhcp::{self, Client, Refusal};
use crate::outbox::{Link, Outbox};
use crate::parse::Parsed;
use crate::port::{Checksum, Packet, PortId};
use crate::wire::dhcp::{Reply, peek};
use crate::wire::ethernet::{self, BROADCAST, Mac};
use crate::wire::mld::{Record, Version};
use crate::wire::ra::Advertisement;
use crate::wire::{checksum, get16, ndp, proto, udp};

pub(super) const ALL_STATIONS: Addr = Addr::v4(u32::MAX);
const NO_ADDRESS: Addr = Addr::v4(0);

/// The state machines of all ports that have any, and who hears of them.
pub(super) struct Acquire {
    ports: Vec<Asking>,
    tell: Tell,
    told: Vec<Learned>,
    due: Now,
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Asking {
    port: PortId,
    mac: Mac,
    router_mac: Option<Mac>,
    client: Client,
    autoconf: Autoconf,
    /// Addresses that others turned out to have.
    taken: u64,
    up: bool,
}

impl Acquire {
    fn of(&mut self, port: PortId) -> Option<&mut Asking> {
        self.ports.iter_mut().find(|asking| asking.port == port)
    }

    /// When something is due next.
    pub(super) fn deadline(&self) -> Now {
        self.due
    }

    /// Notes when something is due next, and tells what has changed.
    fn settle(&mut self) {
        let dues = self.ports.iter();
        let dues = dues.map(|asking| asking.client.deadline().min(asking.autoconf.deadline()));
        self.due = dues.min().unwrap_or(Now(u64::MAX));
        let learned: Vec<_> = self.ports.iter().map(Asking::learned).collect();
        if learned != self.told {
            (self.tell)(&learned);
            self.told = learned;
        }
    }
}

impl Asking {
    fn learned(&self) -> Learned {
        Learned {
            port: self.port,
            lease: self.client.lease().cloned(),
            standing: self.client.standing(),
            advertised: self.autoconf.advertised(),
            duplicates: self.autoconf.duplicates() + self.taken,
        }
    }
}

impl Pipeline {
    /// What the ports have, for a process that takes over.
    pub(crate) fn held_addresses(&self) -> Vec<Held> {
        let ports = self.acquire.iter().flat_map(|acquire| &acquire.ports);
        let held = ports.map(|asking| Held {
            interface: asking.autoconf.interface().to_owned(),
            mac: asking.mac,
            learned: asking.learned(),
            heard: asking.autoconf.heard().clone(),
        });
        held.collect()
    }

    /// Has addresses for these ports asked for from now on, and `tell` told whenever what is known changes.
    pub(crate) fn acquire(&mut self, configs: Vec<(PortId, Config)>, tell: Tell) {
        let mut ports = Vec::new();
        for (port, config) in configs {
            let caps = self.capabilities(port);
            // Both protocols speak Ethernet.
            if caps.layer3 {
                continue;
            }
            let held = config.held.filter(|held| held.mac == caps.mac);
            let (lease, standing, heard) = match held {
                Some(held) => (held.learned.lease, held.learned.standing, Some(held.heard)),
                None => (None, Standing::Asking, None),
            };
            ports.push(Asking {
                port,
                mac: caps.mac,
                router_mac: config.router_mac,
                client: match lease {
                    Some(lease) => Client::resume(config.dhcp, caps.mac, lease, standing),
                    None => Client::new(config.dhcp, caps.mac),
                },
                autoconf: match heard {
                    Some(heard) => Autoconf::resume(config.stable, caps.mtu, heard),
                    None => Autoconf::new(config.stable, caps.mtu),
                },
                taken: 0,
                up: true,
            });
        }
        if !ports.is_empty() {
            self.acquire = Some(Box::new(Acquire {
                ports,
                tell,
                told: Vec::new(),
                due: Now(0),
            }));
        }
    }

    /// Does what is due on ports that ask for addresses.
    pub(super) fn ask_for_addresses(&mut self, now: Now) {
        if self
            .acquire
            .as_ref()
            .is_none_or(|acquire| now < acquire.due)
        {
            return;
        }
        self.with_acquire(|pipeline, acquire| {
            for asking in &mut acquire.ports {
                let mut unicast = None;
                let (outbox, port, mac) = (&mut pipeline.outbox, asking.port, asking.mac);
                asking
                    .client
                    .handle_timeout(now, &mut pipeline.random, |send| {
                        unicast = unicast.or(send_dhcp(outbox, port, mac, send));
                    });
                asking
                    .autoconf
                    .handle_timeout(now, &mut pipeline.random, |send| {
                        send_nd(outbox, port, mac, send);
                    });
                if let Some((from, to, message)) = unicast
                    && let Some(link) = pipeline.link_towards(port, to, now)
                {
                    pipeline.outbox.dhcp(link, from, to, &message);
                }
            }
        });
    }

    /// Notes whether a port can pass frames.
    pub(crate) fn note_link(&mut self, now: Now, port: PortId, up: bool) {
        self.announce_on_link_up(now, port, up);
        if self.acquire.is_none() {
            return;
        }
        self.with_acquire(|_, acquire| {
            if let Some(asking) = acquire.of(port) {
                if up && !asking.up {
                    asking.client.handle_link_up(now);
                    asking.autoconf.handle_link_up(now);
                }
                asking.up = up;
            }
        });
    }

    /// Takes in the address of a port and what its link carries, if addresses are asked for there.
    pub(super) fn note_device_of_acquire(&mut self, now: Now, port: PortId, mac: Mac, mtu: u16) {
        if self.acquire.is_none() {
            return;
        }
        self.with_acquire(|_, acquire| {
            if let Some(asking) = acquire.of(port) {
                asking.autoconf.set_link_mtu(mtu);
                if std::mem::replace(&mut asking.mac, mac) != mac {
                    asking.client.handle_mac(now, mac);
                    asking.autoconf.handle_link_up(now);
                }
            }
        });
    }

    /// A datagram from a DHCP server's port to a client's.
    pub(super) fn handle_dhcp<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &K,
        p: &Parsed,
    ) -> Result<Option<Step>, DropReason> {
        let bytes = frame.bytes();
        let datagram = &bytes[usize::from(p.l4)..p.end as usize];
        let payload = &datagram[udp::LEN..usize::from(get16(datagram, 4))];
        let link = ethernet::Header::parse(bytes).ok_or(DropReason::Truncated)?;
        let expected = peek(payload).is_some_and(|transaction| {
            let mut acquire = self.acquire.as_mut();
            let asking = acquire.as_mut().and_then(|acquire| acquire.of(port));
            asking.is_some_and(|asking| asking.client.expects(transaction))
        });
        if !expected {
            // Of others: broadcast, it goes no further than the link.
            return match ethernet::is_group(link.dst) || p.key.dst == ALL_STATIONS {
                true => Err(DropReason::Multicast),
                false => Ok(None),
            };
        }
        if frame.meta().checksum == Checksum::Unknown
            && get16(datagram, udp::CHECKSUM) != 0
            && checksum::transport(p.key.src, p.key.dst, proto::UDP, datagram) != 0
        {
            return Err(DropReason::BadChecksum);
        }
        let reply = Reply::parse(payload)?;
        let mut heeded = Ok(());
        self.with_acquire(|pipeline, acquire| {
            let Some(asking) = acquire.of(port) else {
                return;
            };
            let (outbox, mac) = (&mut pipeline.outbox, asking.mac);
            heeded =
                asking
                    .client
                    .handle_reply(now, &mut pipeline.random, link.src, &reply, |send| {
                        send_dhcp(outbox, port, mac, send);
                    });
        });
        match heeded {
            Ok(()) => Ok(Some(Step::Consumed)),
            Err(Refusal::Untrusted) => {
                self.counters.dhcp_untrusted.inc();
                Err(DropReason::Dhcp)
            }
            Err(Refusal::Unsound) => Err(DropReason::Dhcp),
        }
    }

    /// A router advertisement whose checksum and hop limit are right.
    pub(super) fn handle_advertisement(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
    ) -> Result<Step, DropReason> {
        let refused = Err(DropReason::NeighborDiscovery);
        let asking = self.acquire.as_mut().and_then(|acquire| acquire.of(port));
        let (Some(asking), IpAddr::V6(router)) = (asking, p.key.src.ip()) else {
            // The worker that asks has been told.
            let acquires = self.partition.index() > 0 && self.snapshot.acquires(port);
            return if acquires {
                Ok(Step::Consumed)
            } else {
                refused
            };
        };
        if !p.key.src.is_link_local6() {
            return refused;
        }
        let ra = Advertisement::parse(&frame[usize::from(p.l4)..p.end as usize])?;
        let from = ethernet::Header::parse(frame)
            .map(|h| h.src)
            .unwrap_or_default();
        if let Some(pin) = asking.router_mac
            && (from != pin || ra.mac.is_some_and(|mac| mac != pin))
        {
            self.counters.gateway_untrusted.inc();
            return refused;
        }
        if let Some(mac) = ra.mac {
            self.learn(port, p.key.src, mac, now, true, false);
        }
        self.with_acquire(|pipeline, acquire| {
            let Some(asking) = acquire.of(port) else {
                return;
            };
            let (outbox, mac) = (&mut pipeline.outbox, asking.mac);
            asking
                .autoconf
                .handle_advertisement(now, router, &ra, |send| send_nd(outbox, port, mac, send));
        });
        Ok(Step::Consumed)
    }

    /// Another station says by ARP that it has an address, or is about to take it.
    pub(super) fn note_claim4(&mut self, now: Now, port: PortId, claimed: Addr) {
        if self.acquire.is_none() {
            return;
        }
        self.with_acquire(|pipeline, acquire| {
            let Some(asking) = acquire.of(port) else {
                return;
            };
            let (outbox, mac) = (&mut pipeline.outbox, asking.mac);
            let mut declined = false;
            asking
                .client
                .handle_claim(now, &mut pipeline.random, claimed, |send| {
                    declined = true;
                    send_dhcp(outbox, port, mac, send);
                });
            asking.taken += u64::from(declined);
        });
    }

    /// The same by neighbour discovery. True if it is an address that we try.
    pub(super) fn note_claim6(&mut self, now: Now, port: PortId, from: Mac, claimed: Addr) -> bool {
        let IpAddr::V6(address) = claimed.ip() else {
            return false;
        };
        let asking = self.acquire.as_mut().and_then(|acquire| acquire.of(port));
        if !asking.is_some_and(|asking| asking.autoconf.is_trying(address)) {
            return false;
        }
        self.with_acquire(|pipeline, acquire| {
            let Some(asking) = acquire.of(port) else {
                return;
            };
            let (outbox, mac) = (&mut pipeline.outbox, asking.mac);
            // A switch may give back what we sent ourselves.
            if from != mac {
                asking
                    .autoconf
                    .handle_claim(now, address, |send| send_nd(outbox, port, mac, send));
            }
        });
        true
    }

    fn with_acquire(&mut self, work: impl FnOnce(&mut Pipeline, &mut Acquire)) {
        let Some(mut acquire) = self.acquire.take() else {
            return;
        };
        work(self, &mut acquire);
        acquire.settle();
        self.acquire = Some(acquire);
    }

    /// The link to whatever leads from a port to an address.
    fn link_towards(&mut self, port: PortId, to: Addr, now: Now) -> Option<Link> {
        let hop = self.next_hop(to, now).ok().filter(|hop| hop.port == port)?;
        let id = hop.neighbor?;
        let mac = self.neighbors.use_mac(id);
        let mut link = Link::new(port, self.capabilities(port).mac, mac.unwrap_or_default());
        link.waits_for = mac.is_none().then_some(id);
        Some(link)
    }
}

/// Puts what a client wants to say into the outbox; what is for one server, and needs a next hop, is given back.
fn send_dhcp(
    outbox: &mut Outbox,
    port: PortId,
    mac: Mac,
    send: dhcp::Send,
) -> Option<(Addr, Addr, crate::wire::dhcp::Message)> {
    let v4 = |a: Ipv4Addr| Addr::from(IpAddr::V4(a));
    let everybody = Link::new(port, mac, BROADCAST);
    match send {
        dhcp::Send::Broadcast(message) => {
            outbox.dhcp(everybody, NO_ADDRESS, ALL_STATIONS, &message);
        }
        dhcp::Send::BroadcastFrom(from, message) => {
            outbox.dhcp(everybody, v4(from), ALL_STATIONS, &message);
        }
        dhcp::Send::Unicast { from, to, message } => return Some((v4(from), v4(to), message)),
        dhcp::Send::Probe(address) => outbox.arp_probe(port, mac, v4(address)),
    }
    None
}

fn send_nd(outbox: &mut Outbox, port: PortId, mac: Mac, send: autoconf::Send) {
    let v6 = |a: Ipv6Addr| Addr::from(IpAddr::V6(a));
    // What comes in answer is led to us only where it is known that we listen (RFC 4862 §5.4.2).
    let mut listen = |a| {
        let group = iter::once(ndp::solicited_node(a));
        outbox.listener_report(port, mac, Version::default(), Record::Begun, group);
    };
    match send {
        autoconf::Send::Solicit => {
            listen(ndp::link_local(mac));
            outbox.router_solicitation(port, mac);
        }
        autoconf::Send::Try(address) => {
            listen(v6(address));
            outbox.duplicate_probe(port, mac, v6(address));
        }
    }
}
