//! The host's side of a TUN device: addresses, routes, and the rules that send what comes from a
//! target address back into it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::net::IpAddr;

use engine::port::Link;

use super::TunConfig;
use crate::interface::Interface;
use crate::netlink::{Message, Netlink, attributes, family_and_bytes};

/// The routing table that leads into the device, and the priority of the rules that choose it:
/// after that of the host's own addresses (0), before the main one (32,766).
const TABLE: u32 = 28_279;
const PRIORITY: u32 = 1_000;

/// Attributes of a rule (linux/fib_rules.h), and its action "look up the table".
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;
/// Bytes of `struct fib_rule_hdr`, `struct rtmsg`, `struct ifaddrmsg`, `struct ifinfomsg`.
const FIXED_RULE_LEN: usize = 12;
const FIXED_LINK_LEN: usize = 16;

/// A configured device. Rules do not end with it as addresses and routes do: they go at the drop.
pub(super) struct Lane {
    interface: Interface,
    route: RefCell<Netlink>,
    /// The last count of lost packets; stays when the device has gone.
    dropped: Cell<u64>,
}

impl Lane {
    pub(super) fn set_up(interface: Interface, config: &TunConfig) -> io::Result<Self> {
        let lane = Self {
            interface,
            route: RefCell::new(Netlink::route()?),
            dropped: Cell::new(0),
        };
        lane.quiet(&config.name);
        // Those of a killed process.
        lane.remove_rules()?;
        lane.set_mtu(config.mtu)?;
        for network in &config.addresses {
            lane.add_address(network.addr(), network.prefix_len())?;
        }
        for address in &config.target_ips {
            lane.add_address(*address, if address.is_ipv4() { 32 } else { 128 })?;
        }
        lane.interface.set_up(true)?;
        for address in &config.target_ips {
            lane.add_rule(*address)?;
        }
        for ipv4 in [true, false] {
            if config.target_ips.iter().any(|a| a.is_ipv4() == ipv4) {
                lane.add_default_route(ipv4)?;
            }
        }
        Ok(lane)
    }

    /// No link-local address, no router solicitations, and no check of the reverse path, by
    /// which a client would have to be routed through this device. A file that is missing
    /// belongs to a kernel without that family.
    fn quiet(&self, name: &str) {
        for (family, key, value) in [
            ("ipv4", "rp_filter", "0"),
            ("ipv6", "disable_ipv6", "0"),
            ("ipv6", "addr_gen_mode", "1"),
            ("ipv6", "accept_ra", "0"),
        ] {
            let path = format!("/proc/sys/net/{family}/conf/{name}/{key}");
            if let Err(error) = fs::write(&path, value) {
                tracing::debug!(path, %error, "a setting of the host lane was not made");
            }
        }
    }

    fn request(&self, message: Message) -> io::Result<()> {
        self.route.borrow_mut().request(message)
    }

    fn index(&self) -> [u8; 4] {
        self.interface.index().to_ne_bytes()
    }

    fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut fixed = [0; FIXED_LINK_LEN];
        fixed[4..8].copy_from_slice(&self.index());
        self.request(
            Message::new(libc::RTM_NEWLINK, 0, &fixed)
                .with(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()),
        )
    }

    fn add_address(&self, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        let mut fixed = [family, prefix_len, libc::IFA_F_NODAD as u8, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&self.index());
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(
            Message::new(libc::RTM_NEWADDR, flags, &fixed)
                .with(libc::IFA_LOCAL, &bytes)
                .with(libc::IFA_ADDRESS, &bytes),
        )
    }

    /// `ip rule add from ADDRESS lookup TABLE`
    fn add_rule(&self, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        let mut fixed = [0; FIXED_RULE_LEN];
        fixed[0] = family;
        fixed[2] = (bytes.len() * 8) as u8;
        fixed[7] = FR_ACT_TO_TBL;
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(
            Message::new(libc::RTM_NEWRULE, flags, &fixed)
                .with(FRA_SRC, &bytes)
                .with(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
                .with(FRA_TABLE, &TABLE.to_ne_bytes()),
        )
    }

    /// `ip route add default dev DEVICE table TABLE`
    fn add_default_route(&self, ipv4: bool) -> io::Result<()> {
        let mut fixed = [0; FIXED_RULE_LEN];
        fixed[0] = if ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        fixed[5] = libc::RTPROT_STATIC;
        fixed[6] = if ipv4 {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        fixed[7] = libc::RTN_UNICAST;
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        self.request(
            Message::new(libc::RTM_NEWROUTE, flags, &fixed)
                .with(libc::RTA_OIF, &self.index())
                .with(libc::RTA_TABLE, &TABLE.to_ne_bytes()),
        )
    }

    /// Removes all rules that lead into our table.
    fn remove_rules(&self) -> io::Result<()> {
        let mut route = self.route.borrow_mut();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut fixed = [0; FIXED_RULE_LEN];
            fixed[0] = family as u8;
            for rule in route.dump(libc::RTM_GETRULE, &fixed)? {
                let ours = rule.get(FIXED_RULE_LEN..).is_some_and(|rest| {
                    attributes(rest)
                        .any(|(kind, value)| kind == FRA_TABLE && value == TABLE.to_ne_bytes())
                });
                if ours {
                    route.request(Message::new(libc::RTM_DELRULE, 0, &rule))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn link(&self) -> Link {
        self.interface.link()
    }

    /// Packets that the host sent and that found the device's queue full.
    pub(super) fn dropped(&self) -> u64 {
        let mut fixed = [0; FIXED_LINK_LEN];
        fixed[4..8].copy_from_slice(&self.index());
        let answer = self
            .route
            .borrow_mut()
            .get(Message::new(libc::RTM_GETLINK, 0, &fixed));
        if let Ok(Some(link)) = answer
            && let Some(dropped) = link.get(FIXED_LINK_LEN..).and_then(tx_dropped)
        {
            self.dropped.set(dropped);
        }
        self.dropped.get()
    }
}

/// `tx_dropped` in the attribute `IFLA_STATS64`: what the host transmits is what we receive.
fn tx_dropped(link: &[u8]) -> Option<u64> {
    let (_, stats) = attributes(link).find(|(kind, _)| *kind == libc::IFLA_STATS64)?;
    stats
        .get(56..64)?
        .first_chunk()
        .map(|bytes| u64::from_ne_bytes(*bytes))
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Err(error) = self.remove_rules() {
            tracing::warn!(%error, "the rules of the host lane were not removed");
        }
    }
}
