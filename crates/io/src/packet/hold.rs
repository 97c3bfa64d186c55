//! Keeping the kernel's own stack off a data port while the engine holds it.
//!
//! The kernel would answer for the addresses that it has, with resets for connections that it
//! does not know, and spend a fifth of the processor doing so. While a [`Hold`] lives the
//! interface has no addresses, no IPv6, and a netfilter chain that drops the kernel's copy of
//! every frame at ingress; packet sockets see the frame before that. Others may bring the kernel back, with
//! `nft flush ruleset` or with addresses: [`Hold::hold_again`] takes it away again, and [`Changes`] say when. The end of
//! the hold puts everything back. A killed process leaves the chain, so that the machine does not turn into an
//! open router, and a note of what was there, by which the next process puts things right, whether
//! it holds the interface again or not.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::netlink;

use crate::interface::Interface;
use crate::netlink::{Message, Netlink, attributes};

/// What is held, and what must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldConfig {
    /// The data port.
    pub interface: String,
    /// The interface by which the node is managed; it is never held.
    pub management_interface: Option<String>,
    /// A directory that does not outlive the machine's boot (`/run/neuwerk`), for the note of
    /// what a killed process held.
    pub state_dir: PathBuf,
}

/// The kernel's part of an interface could not be switched off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface {interface}")]
    NoSuchInterface {
        /// The name asked for.
        interface: String,
    },
    /// A data port may not be the interface that the node is managed by.
    #[error("{interface} is the management interface and cannot be a data port too")]
    Management {
        /// The name asked for.
        interface: String,
    },
    /// Another process holds it.
    #[error("another process holds {interface}")]
    Held {
        /// The name asked for.
        interface: String,
    },
    /// CAP_NET_ADMIN is missing.
    #[error("holding {interface} needs the capability CAP_NET_ADMIN")]
    NotPermitted {
        /// The name asked for.
        interface: String,
    },
    /// The kernel refused a step.
    #[error("cannot {step} {interface}")]
    Refused {
        /// What was tried, as a verb phrase.
        step: &'static str,
        /// The name asked for.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// An interface without the kernel; dropping it gives it back.
pub struct Hold {
    interface: Interface,
    table: String,
    route: Netlink,
    netfilter: Netlink,
    /// Open, since the path leads to whichever namespace the thread at the end is in.
    disable_ipv6: Option<File>,
    note: File,
    original: Original,
}

impl Hold {
    /// Takes an interface from the kernel and sets it up.
    pub fn open(config: &HoldConfig) -> Result<Self, HoldError> {
        let name = config.interface.as_str();
        let refused = |step| move |source| HoldError::new(step, name, source);
        let interface = Interface::by_name(name).map_err(refused("look up"))?;
        if let Some(management) = &config.management_interface
            && Interface::by_name(management).is_ok_and(|m| m.index() == interface.index())
        {
            return Err(HoldError::Management {
                interface: name.to_owned(),
            });
        }
        let mut note = lock_note(&config.state_dir, name)?;
        let mut route = Netlink::route().map_err(refused("open netlink for"))?;
        let mut netfilter = Netlink::netfilter().map_err(refused("open netlink for"))?;
        let disable_ipv6 = open_disable_ipv6(name);
        let table = table_of(name);

        let left_over =
            table_exists(&mut netfilter, &table).map_err(refused("look for a chain on"))?;
        let mut original = Original::read(&interface, &mut route, disable_ipv6.as_ref())
            .map_err(refused("read the configuration of"))?;
        let is_left = left_over || original.addresses.is_empty();
        if let Some(before) = read_note(&mut note)
            && before.is_of(&original)
            && let Some(before) = before.not_given_back(is_left, original.ipv6_disabled)
        {
            tracing::info!(
                interface = name,
                "the process before this one held this interface"
            );
            original = before.with_added(original);
        }
        write_note(&mut note, &original.to_text()).map_err(refused("note the configuration of"))?;

        // From here on the drop of `hold` undoes what was done.
        let mut hold = Self {
            interface,
            table,
            route,
            netfilter,
            disable_ipv6,
            note,
            original,
        };
        hold.add_chain(name, left_over)
            .map_err(refused("drop the kernel's copy of frames on"))?;
        let met = addresses(&mut hold.route, hold.interface.index())
            .map_err(refused("read the configuration of"))?;
        hold.silence(&met)
            .map_err(refused("flush the addresses of"))?;
        hold.interface.set_up(true).map_err(refused("set up"))?;
        Ok(hold)
    }

    /// Takes from the kernel what it has had again since: the chain was removed, the interface got addresses, or IPv6 was
    /// switched on. Says whether there was any of that. What was configured meanwhile is there again at the end.
    ///
    /// # Errors
    /// The kernel refuses it; some of it may have been done.
    pub fn hold_again(&mut self) -> Result<bool, HoldError> {
        let Ok(name) = self.interface.name() else {
            // Nothing can come by one that has gone.
            return Ok(false);
        };
        let refused = |step| {
            let name = name.clone();
            move |source| HoldError::new(step, &name, source)
        };
        let has_chain = table_exists(&mut self.netfilter, &self.table)
            .map_err(refused("look for a chain on"))?;
        let is_silent = self
            .is_silent()
            .map_err(refused("read the configuration of"))?;
        if has_chain && is_silent {
            return Ok(false);
        }
        if !has_chain {
            self.add_chain(&name, false)
                .map_err(refused("drop the kernel's copy of frames on"))?;
        }
        // What comes after these were read is for the next call. Those of the link are not remembered, but go as well: where
        // the setting of IPv6 cannot be written there are some.
        let met = addresses(&mut self.route, self.interface.index())
            .map_err(refused("read the configuration of"))?;
        let now = Original::read(&self.interface, &mut self.route, self.disable_ipv6.as_ref())
            .map_err(refused("read the configuration of"))?;
        self.original = std::mem::take(&mut self.original).with_added(now);
        let noted = write_note(&mut self.note, &self.original.to_text());
        self.silence(&met)
            .map_err(refused("flush the addresses of"))?;
        noted.map_err(refused("note the configuration of"))?;
        Ok(true)
    }

    /// Gives back what a process before this one held, nobody holds any more, and is none of the `own` interfaces: no
    /// hold of this process would ever end what it left.
    pub fn give_back_others(state_dir: &Path, own: &[String]) {
        let noted = match noted(state_dir) {
            Ok(noted) => noted,
            Err(error) => {
                return tracing::warn!(%error, "interfaces that were held before are not looked for");
            }
        };
        for name in noted.iter().filter(|name| !own.contains(name)) {
            match Self::left_over(state_dir, name, own) {
                Ok(None) | Err(HoldError::Held { .. }) => {}
                Ok(Some(hold)) => {
                    tracing::info!(
                        interface = name,
                        "this interface is no data port any more: the kernel gets it back"
                    );
                    drop(hold);
                }
                Err(error) => {
                    tracing::warn!(interface = name, %error, "this interface, held before, is not given back");
                }
            }
        }
    }

    /// The hold of a process that has ended; none if it gave the interface back, or if that has become one of our `own`
    /// under another name.
    fn left_over(state_dir: &Path, name: &str, own: &[String]) -> Result<Option<Self>, HoldError> {
        let refused = |step| move |source| HoldError::new(step, name, source);
        let mut note = lock_note(state_dir, name)?;
        let mut netfilter = Netlink::netfilter().map_err(refused("open netlink for"))?;
        let table = table_of(name);
        let Some(original) = read_note(&mut note) else {
            return Ok(None);
        };
        let interface = original.interface(name).map_err(refused("look up"))?;
        let mut route = Netlink::route().map_err(refused("open netlink for"))?;
        let now = interface.name().ok();
        if now.as_ref().is_some_and(|now| own.contains(now)) {
            return Ok(None);
        }
        let disable_ipv6 = now.and_then(|now| open_disable_ipv6(&now));
        let is_ipv6_off = disable_ipv6
            .as_ref()
            .map_or(Ok(false), is_set)
            .map_err(refused("read the configuration of"))?;
        let is_left = table_exists(&mut netfilter, &table)
            .map_err(refused("look for a chain on"))?
            || addresses(&mut route, interface.index())
                .map_err(refused("read the configuration of"))?
                .is_empty();
        let Some(original) = original.not_given_back(is_left, is_ipv6_off) else {
            return Ok(None);
        };
        Ok(Some(Self {
            disable_ipv6,
            interface,
            table,
            route,
            netfilter,
            note,
            original,
        }))
    }

    /// `table netdev T { chain ingress { type filter hook ingress device D priority MIN; policy drop; } }`, in place of
    /// one that is left over: at no time is there none.
    fn add_chain(&mut self, name: &str, left_over: bool) -> io::Result<()> {
        const CREATE_ACK: u16 = (libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16;
        // Before any chain of the administrator: what is dropped at once costs least.
        let priority = i32::MIN.to_be_bytes();
        let device = [name.as_bytes(), &[0]].concat();
        let remove = nft(libc::NFT_MSG_DELTABLE, libc::NLM_F_ACK as u16)
            .with_name(NFTA_TABLE_NAME, &self.table);
        let mut steps = vec![batch_edge(libc::NFNL_MSG_BATCH_BEGIN)];
        steps.extend(left_over.then_some(remove));
        steps.extend([
            nft(libc::NFT_MSG_NEWTABLE, CREATE_ACK).with_name(NFTA_TABLE_NAME, &self.table),
            nft(libc::NFT_MSG_NEWCHAIN, CREATE_ACK)
                .with_name(NFTA_CHAIN_TABLE, &self.table)
                .with_name(NFTA_CHAIN_NAME, "ingress")
                .with_nested(
                    NFTA_CHAIN_HOOK,
                    &[
                        (NFTA_HOOK_HOOKNUM, &0u32.to_be_bytes()),
                        (NFTA_HOOK_PRIORITY, &priority),
                        (NFTA_HOOK_DEV, &device),
                    ],
                )
                .with(NFTA_CHAIN_POLICY, &(libc::NF_DROP as u32).to_be_bytes())
                .with_name(NFTA_CHAIN_TYPE, "filter"),
            batch_edge(libc::NFNL_MSG_BATCH_END),
        ]);
        self.netfilter.transaction(steps)
    }

    fn remove_chain(&mut self) -> io::Result<()> {
        self.netfilter.transaction(vec![
            batch_edge(libc::NFNL_MSG_BATCH_BEGIN),
            nft(libc::NFT_MSG_DELTABLE, libc::NLM_F_ACK as u16)
                .with_name(NFTA_TABLE_NAME, &self.table),
            batch_edge(libc::NFNL_MSG_BATCH_END),
        ])
    }

    /// Whether the kernel has no address on it, and does not speak IPv6 there.
    fn is_silent(&mut self) -> io::Result<bool> {
        let ipv6_disabled = match &self.disable_ipv6 {
            Some(file) => is_set(file)?,
            None => true,
        };
        Ok(ipv6_disabled && addresses(&mut self.route, self.interface.index())?.is_empty())
    }

    /// Takes these addresses away, and with them their routes, and IPv6.
    fn silence(&mut self, met: &[Vec<u8>]) -> io::Result<()> {
        if let Some(file) = &self.disable_ipv6 {
            file.write_all_at(b"1", 0)?;
        }
        for address in met {
            match self
                .route
                .request(Message::new(libc::RTM_DELADDR, 0, address))
            {
                // A secondary address goes with its primary.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> io::Result<()> {
        // What can be put back is, whatever fails before it.
        let mut outcome = Ok(());
        let mut attempt = |result: io::Result<()>| match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => {
                if outcome.is_ok() {
                    outcome = other;
                }
            }
        };
        if self.interface.name().is_ok() {
            if let Some(file) = &self.disable_ipv6 {
                let value: &[u8] = if self.original.ipv6_disabled {
                    b"1"
                } else {
                    b"0"
                };
                attempt(file.write_all_at(value, 0));
            }
            let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
            for address in &self.original.addresses {
                attempt(
                    self.route
                        .request(Message::new(libc::RTM_NEWADDR, create, address)),
                );
            }
            for route in &self.original.routes {
                attempt(
                    self.route
                        .request(Message::new(libc::RTM_NEWROUTE, create, route)),
                );
            }
            if !self.original.up {
                attempt(self.interface.set_up(false));
            }
        }
        // Last, so that the kernel does not answer with half a configuration.
        match self.remove_chain() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => attempt(other),
        }
        attempt(write_note(&mut self.note, ""));
        outcome
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            tracing::warn!(table = %self.table, %error, "an interface was not fully given back");
        }
    }
}

/// Tells that something has changed by which the kernel may have a held interface again: rules of nftables, or addresses.
pub struct Changes([Netlink; 2]);

impl Changes {
    /// Those from now on, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel has no nftables, or there are too many descriptors.
    pub fn listen() -> io::Result<Changes> {
        let rules = 1 << (libc::NFNLGRP_NFTABLES - 1);
        let addresses = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
        Ok(Changes([
            Netlink::listening(Some(netlink::NETFILTER), rules)?,
            Netlink::listening(None, addresses)?,
        ]))
    }

    /// Waits for one, for some time at most, and says whether there was one since the last call.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut sockets = self
            .0
            .each_ref()
            .map(|socket| PollFd::new(socket, PollFlags::IN));
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut sockets, Some(&timeout)) {
            Err(Errno::INTR) => return Ok(false),
            ready => ready?,
        };
        let was_any = sockets.iter().any(|socket| !socket.revents().is_empty());
        self.0.iter().for_each(Netlink::drain);
        Ok(was_any)
    }
}

impl HoldError {
    fn new(step: &'static str, interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.raw_os_error() {
            Some(libc::ENODEV) => Self::NoSuchInterface { interface },
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { interface },
            _ => Self::Refused {
                step,
                interface,
                source,
            },
        }
    }
}

/// What an interface was like before it was held. Addresses and routes are kept as the kernel
/// told them: the payload of its message, which is also what puts them back.
#[derive(Debug, Default, PartialEq, Eq)]
struct Original {
    /// Stays as long as the interface does; none in a note of an earlier version.
    index: Option<u32>,
    mac: [u8; 6],
    up: bool,
    ipv6_disabled: bool,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
}

const NOTE_TITLE: &str = "neuwerk hold 1";

impl Original {
    fn read(
        interface: &Interface,
        route: &mut Netlink,
        disable_ipv6: Option<&File>,
    ) -> io::Result<Self> {
        let mut addresses = addresses(route, interface.index())?;
        addresses.retain(|address| !is_link_local(address));
        Ok(Self {
            index: Some(interface.index()),
            mac: interface.mac()?.0,
            up: interface.is_up()?,
            ipv6_disabled: disable_ipv6.map_or(Ok(false), is_set)?,
            addresses,
            routes: routes(route, interface.index())?,
        })
    }

    /// Whether an interface of the same name is the same one: its address may have changed meanwhile, and a driver that
    /// was loaded again gives another index.
    fn is_of(&self, now: &Self) -> bool {
        self.index == now.index || self.mac == now.mac
    }

    /// What of it a process that was killed has left undone: all, if the interface `is_left` as it was held. Where somebody
    /// has removed the chain and given it addresses, it has been given back; but IPv6, if that is off still.
    fn not_given_back(mut self, is_left: bool, ipv6_disabled: bool) -> Option<Self> {
        if is_left {
            return Some(self);
        }
        let is_ipv6 = |message: &Vec<u8>| message.first() == Some(&(libc::AF_INET6 as u8));
        self.addresses.retain(is_ipv6);
        self.routes.retain(is_ipv6);
        (ipv6_disabled && !self.ipv6_disabled).then_some(self)
    }

    /// The interface that was called `name`, which may have gone.
    fn interface(&self, name: &str) -> io::Result<Interface> {
        match (self.index, Interface::by_name(name)) {
            (Some(index), _) => Interface::by_index(index),
            (None, Ok(interface)) if interface.mac()?.0 == self.mac => Ok(interface),
            // No interface has this index.
            (None, _) => Interface::by_index(0),
        }
    }

    /// With what has been configured since.
    fn with_added(mut self, since: Self) -> Self {
        (self.index, self.mac) = (since.index, since.mac);
        for address in since.addresses {
            if !self.addresses.iter().any(|a| same_address(a, &address)) {
                self.addresses.push(address);
            }
        }
        for route in since.routes {
            if !self.routes.contains(&route) {
                self.routes.push(route);
            }
        }
        self
    }

    fn to_text(&self) -> String {
        let mut text = format!(
            "{NOTE_TITLE}\nmac {}\nup {}\nipv6_disabled {}\n",
            to_hex(&self.mac),
            self.up,
            self.ipv6_disabled
        );
        if let Some(index) = self.index {
            text.push_str(&format!("index {index}\n"));
        }
        for address in &self.addresses {
            text.push_str(&format!("address {}\n", to_hex(address)));
        }
        for route in &self.routes {
            text.push_str(&format!("route {}\n", to_hex(route)));
        }
        text
    }

    /// Reads a note; none if it is not one.
    fn parse(text: &str) -> Option<Self> {
        let mut original = Self::default();
        let mut lines = text.lines();
        if lines.next()? != NOTE_TITLE {
            return None;
        }
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "index" => original.index = Some(value.parse().ok()?),
                "mac" => original.mac = from_hex(value)?.try_into().ok()?,
                "up" => original.up = value.parse().ok()?,
                "ipv6_disabled" => original.ipv6_disabled = value.parse().ok()?,
                "address" => original.addresses.push(from_hex(value)?),
                "route" => original.routes.push(from_hex(value)?),
                _ => return None,
            }
        }
        Some(original)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

fn table_of(name: &str) -> String {
    format!("neuwerk_hold_{name}")
}

/// Whether a setting of the kernel is on.
fn is_set(setting: &File) -> io::Result<bool> {
    let mut value = [0];
    setting.read_at(&mut value, 0)?;
    Ok(value == *b"1")
}

fn open_disable_ipv6(name: &str) -> Option<File> {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))
        .ok()
}

/// What the name of a note begins with, before that of its interface: it holds the namespace, since two of them may have
/// interfaces of one name.
fn note_prefix() -> io::Result<String> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(format!("hold-{namespace}-"))
}

/// The interfaces of this namespace that there are notes of.
fn noted(state_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let prefix = note_prefix()?;
    let mut names = Vec::new();
    for entry in entries {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|name| name.strip_prefix(&prefix));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

/// Opens and locks the note of an interface.
fn lock_note(state_dir: &Path, name: &str) -> Result<File, HoldError> {
    let refused = |source| HoldError::new("keep a note of", name, source);
    fs::create_dir_all(state_dir).map_err(refused)?;
    let prefix = note_prefix().map_err(refused)?;
    let note = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(state_dir.join(prefix + name))
        .map_err(refused)?;
    flock(&note, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        if errno == Errno::WOULDBLOCK {
            HoldError::Held {
                interface: name.to_owned(),
            }
        } else {
            refused(errno.into())
        }
    })?;
    Ok(note)
}

/// What a note says; none if it is empty, or none at all.
fn read_note(note: &mut File) -> Option<Original> {
    let mut text = String::new();
    note.read_to_string(&mut text).ok()?;
    Original::parse(&text)
}

/// Writes a note over the one before, which is not lost if there is no room.
fn write_note(note: &mut File, text: &str) -> io::Result<()> {
    note.write_all_at(text.as_bytes(), 0)?;
    note.set_len(text.len() as u64)
}

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;

/// A message of nftables in the family `netdev`.
fn nft(kind: i32, flags: u16) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    Message::new(kind, flags, &[libc::NFPROTO_NETDEV as u8, 0, 0, 0])
}

/// The begin or the end of a transaction; it names the subsystem.
fn batch_edge(kind: i32) -> Message {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    Message::new(kind as u16, 0, &[libc::AF_UNSPEC as u8, 0, high, low])
}

fn table_exists(netfilter: &mut Netlink, table: &str) -> io::Result<bool> {
    let get = nft(libc::NFT_MSG_GETTABLE, 0).with_name(NFTA_TABLE_NAME, table);
    match netfilter.get(get) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS_FIXED_LEN: usize = 8;
const ROUTE_FIXED_LEN: usize = 12;

/// From router advertisements; on the link although no prefix covers it (linux/rtnetlink.h).
const RTPROT_RA: u8 = 9;
const RTNH_F_ONLINK: u32 = 4;

/// The addresses of an interface, in order, as payloads of `RTM_NEWADDR`.
fn addresses(route: &mut Netlink, index: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut all = route.dump(libc::RTM_GETADDR, &[0; ADDRESS_FIXED_LEN])?;
    all.retain(|address| address.get(4..8) == Some(&index.to_ne_bytes()));
    Ok(all)
}

/// An address that the kernel makes by itself (scope link, IPv6).
fn is_link_local(address: &[u8]) -> bool {
    address[0] == libc::AF_INET6 as u8 && address[3] == libc::RT_SCOPE_LINK
}

fn same_address(a: &[u8], b: &[u8]) -> bool {
    let key = |address: &[u8]| {
        let value = attributes(&address[ADDRESS_FIXED_LEN..])
            .find(|(kind, _)| *kind == libc::IFA_ADDRESS)
            .map(|(_, value)| value.to_vec());
        (address[..2].to_vec(), value)
    };
    key(a) == key(b)
}

/// The routes out of an interface that the kernel did not make by itself, as payloads of
/// `RTM_NEWROUTE`. A route over several interfaces is not among them.
fn routes(route: &mut Netlink, index: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; ROUTE_FIXED_LEN];
        fixed[0] = family as u8;
        for payload in route.dump(libc::RTM_GETROUTE, &fixed)? {
            let Some((fixed, rest)) = payload.split_at_checked(ROUTE_FIXED_LEN) else {
                continue;
            };
            let [_, _, _, _, table, protocol, ..] = *fixed else {
                continue;
            };
            let ours = attributes(rest)
                .any(|(kind, value)| kind == libc::RTA_OIF && value == index.to_ne_bytes());
            // Router advertisements will tell theirs again.
            let made_by_kernel = protocol == libc::RTPROT_KERNEL || protocol == RTPROT_RA;
            if !ours || made_by_kernel || table == libc::RT_TABLE_LOCAL {
                continue;
            }
            found.push(restorable_route(fixed, rest));
        }
    }
    Ok(found)
}

/// The route without what only the kernel tells: age, and the state of the link.
fn restorable_route(fixed: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut payload = fixed.to_vec();
    let flags = u32::from_ne_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    let kept = flags & RTNH_F_ONLINK;
    payload[8..12].copy_from_slice(&kept.to_ne_bytes());
    for (kind, value) in attributes(rest) {
        if kind != libc::RTA_CACHEINFO {
            let len = 4 + value.len();
            payload.extend((len as u16).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Original {
        Original {
            index: Some(3),
            mac: [2, 0, 0, 0, 0, 1],
            up: true,
            ipv6_disabled: false,
            addresses: vec![vec![1, 2, 255], vec![0]],
            routes: vec![vec![0xab; 40]],
        }
    }

    #[test]
    fn a_note_is_read_back() {
        let text = original().to_text();
        assert_eq!(Original::parse(&text), Some(original()));
    }

    #[test]
    fn a_note_without_an_index_is_known_by_the_address() {
        let text = original().to_text().replace("index 3\n", "");
        let before = Original::parse(&text).expect("it is a note");
        assert_eq!(before.index, None);
        assert!(before.is_of(&original()));
        let other = Original {
            mac: [2, 0, 0, 0, 0, 2],
            ..original()
        };
        assert!(!before.is_of(&other));
        assert!(original().is_of(&other), "the index is the same");
    }

    #[test]
    fn what_is_not_a_note_is_not_used() {
        for text in [
            "",
            "neuwerk hold 2\n",
            "neuwerk hold 1\nmac 0200\n",
            "neuwerk hold 1\nindex -1\n",
            "neuwerk hold 1\nup maybe\n",
            "neuwerk hold 1\naddress 0x1\n",
            "neuwerk hold 1\naddress é1\n",
            "neuwerk hold 1\nnonsense 1\n",
        ] {
            assert_eq!(Original::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_restored_route_keeps_its_gateway_and_loses_its_age() {
        let fixed = [2, 0, 0, 0, 254, 3, 0, 1, 0x15, 0, 0, 0];
        let rest = [8, 0, 5, 0, 10, 0, 0, 1, 8, 0, 12, 0, 1, 1, 1, 1];
        let payload = restorable_route(&fixed, &rest);
        assert_eq!(payload[8..12], 4u32.to_ne_bytes(), "on-link stays");
        assert_eq!(payload[12..], rest[..8]);
    }
}
