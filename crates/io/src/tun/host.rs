//! The host's side of a TUN or TAP device: addresses, routes, and for the lane the rules that send
//! what comes from a target address back into it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::port::Link;

use super::{Kind, TunConfig};
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
/// What a link says of its kind (linux/if_link.h).
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
/// Bytes of `struct fib_rule_hdr`, `struct rtmsg`, `struct ifaddrmsg`, `struct ifinfomsg`.
const FIXED_RULE_LEN: usize = 12;
const FIXED_LINK_LEN: usize = 16;

/// Frames that the host may have sent and we not yet read, of a device that we made.
const QUEUE_LEN: u32 = 2048;

/// A device as the host sees it. Rules do not end with it as addresses and routes do: they go at
/// the drop.
pub(super) struct HostSide {
    interface: Interface,
    route: RefCell<Netlink>,
    has_rules: bool,
    /// The device is left to the next process, rules and all.
    leaving: Arc<AtomicBool>,
    /// The last count of lost packets; stays when the device has gone.
    dropped: Cell<u64>,
}

impl HostSide {
    pub(super) fn new(interface: Interface, leaving: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self {
            interface,
            route: RefCell::new(Netlink::route()?),
            has_rules: false,
            leaving,
            dropped: Cell::new(0),
        })
    }

    /// Gives a device that we have made what the host needs to use it, and sets it up.
    pub(super) fn set_up(&mut self, config: &TunConfig) -> io::Result<()> {
        self.quiet(config);
        self.set_link(config.mtu)?;
        self.has_rules = config.target_ips.is_some();
        self.lay(config)?;
        Ok(())
    }

    /// The device is as the process before has set it up, but for what others have taken from the lane since.
    pub(super) fn resume(&mut self, config: &TunConfig) -> io::Result<()> {
        self.has_rules = config.target_ips.is_some();
        if self.has_rules {
            self.quiet(config);
            self.lay(config)?;
        }
        Ok(())
    }

    /// Adds what is missing of addresses, rules and routes, and sets the device up. Returns whether something was.
    fn lay(&self, config: &TunConfig) -> io::Result<bool> {
        let mut missing = false;
        for network in &config.addresses {
            missing |= self.add_address(network.addr(), network.prefix_len())?;
        }
        for address in config.target_ips.iter().flatten() {
            missing |= self.add_address(*address, if address.is_ipv4() { 32 } else { 128 })?;
        }
        self.interface.set_up(true)?;
        if let Some(target_ips) = &config.target_ips {
            missing |= self.lead_back(target_ips)?;
        }
        Ok(missing)
    }

    /// Sends what comes from a target address back into the device.
    fn lead_back(&self, target_ips: &[IpAddr]) -> io::Result<bool> {
        // Those of a killed process.
        self.remove_rules(target_ips)?;
        let mut missing = false;
        for address in target_ips {
            missing |= self.add_rule(*address)?;
        }
        for ipv4 in [true, false] {
            if target_ips.iter().any(|a| a.is_ipv4() == ipv4) {
                missing |= self.add_default_route(ipv4)?;
            }
        }
        Ok(missing)
    }

    pub(super) fn interface(&self) -> &Interface {
        &self.interface
    }

    /// No router solicitations, no link-local address where nobody asks for it, and no check of
    /// the reverse path, by which a client would have to be routed through this device. A file
    /// that is missing belongs to a kernel without that family.
    fn quiet(&self, config: &TunConfig) {
        let name = &config.name;
        // 1 makes none; a TAP device keeps it, since neighbours may ask from it (0, EUI-64).
        let link_local = if config.kind == Kind::Tun { "1" } else { "0" };
        for (family, key, value) in [
            ("ipv4", "rp_filter", "0"),
            ("ipv6", "disable_ipv6", "0"),
            ("ipv6", "addr_gen_mode", link_local),
            ("ipv6", "accept_ra", "0"),
        ] {
            let path = format!("/proc/sys/net/{family}/conf/{name}/{key}");
            if let Err(error) = fs::write(&path, value) {
                tracing::debug!(path, %error, "a setting of a device was not made");
            }
        }
    }

    fn request(&self, message: Message) -> io::Result<()> {
        self.route.borrow_mut().request(message)
    }

    /// Adds something, unless it is there already. Returns whether it was missing.
    fn add(&self, message: Message) -> io::Result<bool> {
        match self.request(message) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn index(&self) -> [u8; 4] {
        self.interface.index().to_ne_bytes()
    }

    fn set_link(&self, mtu: u16) -> io::Result<()> {
        let mut fixed = [0; FIXED_LINK_LEN];
        fixed[4..8].copy_from_slice(&self.index());
        self.request(
            Message::new(libc::RTM_NEWLINK, 0, &fixed)
                .with(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes())
                .with(libc::IFLA_TXQLEN, &QUEUE_LEN.to_ne_bytes()),
        )
    }

    fn add_address(&self, address: IpAddr, prefix_len: u8) -> io::Result<bool> {
        let (family, bytes) = family_and_bytes(address);
        let mut fixed = [family, prefix_len, libc::IFA_F_NODAD as u8, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&self.index());
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.add(
            Message::new(libc::RTM_NEWADDR, flags, &fixed)
                .with(libc::IFA_LOCAL, &bytes)
                .with(libc::IFA_ADDRESS, &bytes),
        )
    }

    /// `ip rule add from ADDRESS lookup TABLE`
    fn add_rule(&self, address: IpAddr) -> io::Result<bool> {
        let (family, bytes) = family_and_bytes(address);
        let mut fixed = [0; FIXED_RULE_LEN];
        fixed[0] = family;
        fixed[2] = (bytes.len() * 8) as u8;
        fixed[7] = FR_ACT_TO_TBL;
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.add(
            Message::new(libc::RTM_NEWRULE, flags, &fixed)
                .with(FRA_SRC, &bytes)
                .with(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
                .with(FRA_TABLE, &TABLE.to_ne_bytes()),
        )
    }

    /// `ip route add default dev DEVICE table TABLE`
    fn add_default_route(&self, ipv4: bool) -> io::Result<bool> {
        let mut fixed = [0; FIXED_RULE_LEN];
        fixed[0] = if ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        fixed[5] = libc::RTPROT_STATIC;
        fixed[6] = if ipv4 {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        fixed[7] = libc::RTN_UNICAST;
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.add(
            Message::new(libc::RTM_NEWROUTE, flags, &fixed)
                .with(libc::RTA_OIF, &self.index())
                .with(libc::RTA_TABLE, &TABLE.to_ne_bytes()),
        )
    }

    /// Removes the rules that lead into our table, but for those of the `kept` addresses.
    fn remove_rules(&self, kept: &[IpAddr]) -> io::Result<()> {
        let mut route = self.route.borrow_mut();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut fixed = [0; FIXED_RULE_LEN];
            fixed[0] = family as u8;
            for rule in route.dump(libc::RTM_GETRULE, &fixed)? {
                let attributes = rule.get(FIXED_RULE_LEN..).unwrap_or_default();
                if has(attributes, FRA_TABLE, &TABLE.to_ne_bytes())
                    && !kept.iter().any(|address| is_rule_of(attributes, *address))
                {
                    route.request(Message::new(libc::RTM_DELRULE, 0, &rule))?;
                }
            }
        }
        Ok(())
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

/// Keeps the host's side of a device as it was laid, against those who think that it is theirs to clear. For whoever has
/// the time to look: it waits for the kernel's lock on all configuration.
pub struct Upkeep {
    side: HostSide,
    config: TunConfig,
}

impl Upkeep {
    pub(super) fn new(index: u32, config: TunConfig) -> io::Result<Self> {
        // The rules are those of the device's own side, and go with it.
        let side = HostSide::new(Interface::by_index(index)?, Arc::default())?;
        Ok(Self { side, config })
    }

    /// Whether the device was removed.
    pub fn has_gone(&self) -> bool {
        self.side.interface.link() == Link::Gone
    }

    /// Adds what the host has lost of addresses, rules and routes, unless the device is down or gone. Returns whether
    /// something was missing.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn lay_again(&self) -> io::Result<bool> {
        match self.side.interface.is_up() {
            Ok(true) => self.side.lay(&self.config),
            _ => Ok(false),
        }
    }
}

/// Whether a device of this name stays without a user and was made for a single queue.
pub(super) fn has_single_queue(name: &str) -> io::Result<bool> {
    let named =
        Message::new(libc::RTM_GETLINK, 0, &[0; FIXED_LINK_LEN]).with_name(libc::IFLA_IFNAME, name);
    let link = Netlink::route()?.get(named)?.unwrap_or_default();
    let link = link.get(FIXED_LINK_LEN..).unwrap_or_default();
    let info = value(link, libc::IFLA_LINKINFO);
    let device = value(info, IFLA_INFO_DATA);
    Ok(has(info, IFLA_INFO_KIND, b"tun\0")
        && has(device, IFLA_TUN_PERSIST, &[1])
        && has(device, IFLA_TUN_MULTI_QUEUE, &[0]))
}

/// Whether a rule is the one that we add for an address.
fn is_rule_of(rule: &[u8], address: IpAddr) -> bool {
    let (_, bytes) = family_and_bytes(address);
    has(rule, FRA_SRC, &bytes) && has(rule, FRA_PRIORITY, &PRIORITY.to_ne_bytes())
}

/// The value of an attribute; empty without it.
fn value(bytes: &[u8], kind: u16) -> &[u8] {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map_or(&[], |(_, value)| value)
}

fn has(bytes: &[u8], kind: u16, expected: &[u8]) -> bool {
    value(bytes, kind) == expected
}

/// `tx_dropped` in the attribute `IFLA_STATS64`: what the host transmits is what we receive.
fn tx_dropped(link: &[u8]) -> Option<u64> {
    let (_, stats) = attributes(link).find(|(kind, _)| *kind == libc::IFLA_STATS64)?;
    stats
        .get(56..64)?
        .first_chunk()
        .map(|bytes| u64::from_ne_bytes(*bytes))
}

impl Drop for HostSide {
    fn drop(&mut self) {
        if self.has_rules
            && !self.leaving.load(Ordering::Relaxed)
            && let Err(error) = self.remove_rules(&[])
        {
            tracing::warn!(%error, "the rules of the host lane were not removed");
        }
    }
}
