//! Addresses that the engine gets by itself, on data ports for which none are configured: a DHCP lease, and what
//! routers advertise.
//!
//! One worker asks, and tells the whole of what it knows whenever it changes ([`Learned`]). It decides nothing by it:
//! the control side makes it into settings and publishes a snapshot, under which all workers go on.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use crate::autoconf::Heard;
use crate::clock::Now;
use crate::port::PortId;

/// How one port gets its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its DHCP client.
    pub dhcp: DhcpConfig,
    /// What its IPv6 addresses are made with.
    pub stable: Stable,
    /// The station that routers must have; none: any.
    pub router_mac: Option<[u8; 6]>,
    /// What the process before had, if this one takes over from it. It counts only under the same hardware address.
    pub held: Option<Held>,
}

/// How a DHCP client asks, and whom it believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpConfig {
    /// How long the first message of a kind may go unanswered; doubled with each repetition.
    pub timeout: Duration,
    /// Repetitions before it begins anew.
    pub retry_max: u32,
    /// A lease is given up no sooner than this after the server's last word.
    pub lease_min: Duration,
    /// The only server that is believed.
    pub server_ip: Option<Ipv4Addr>,
    /// The only station whose messages are believed.
    pub server_mac: Option<[u8; 6]>,
    /// The lease of before a restart.
    pub remembered: Option<Lease>,
}

/// What makes an interface identifier stable on one network and unknown to others (RFC 7217).
#[derive(Clone, PartialEq, Eq)]
pub struct Stable {
    /// The interface, by a name that restarts do not change.
    pub interface: String,
    /// Known to this node alone.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for Stable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stable")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

/// An IPv4 address for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of its on-link prefix.
    pub prefix_len: u8,
    /// The server that leased it.
    pub server: Ipv4Addr,
    /// Default router.
    pub gateway: Option<Ipv4Addr>,
    /// Classless routes; a router of 0.0.0.0 means that the destination is on the link (RFC 3442).
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// MTU of the link, bytes.
    pub mtu: Option<u16>,
    /// T1: when the server is asked for more time.
    pub renew_at: Now,
    /// T2: when any server is.
    pub rebind_at: Now,
    /// When the address is no longer ours; `Now(u64::MAX)`: never.
    pub expires: Now,
}

/// Where a DHCP client stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// No server has had time to answer yet.
    #[default]
    Asking,
    /// It has a lease.
    Holding,
    /// No server answers.
    Unanswered,
    /// A server refused what was asked for.
    Refused,
    /// Another station has the address that was leased.
    Taken,
    /// The lease has expired.
    Expired,
}

/// An IPv6 address that a router's prefix led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Whether it goes on being used but not by anything new (RFC 4862 §5.5.4).
    pub deprecated: bool,
}

/// What routers advertise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertised {
    /// Our addresses, those to prefer first.
    pub addresses: Vec<Address6>,
    /// Prefixes on the link.
    pub on_link: Vec<Ipv6Net>,
    /// The default router to use.
    pub router: Option<Ipv6Addr>,
    /// More specific routes, each with its router (RFC 4191).
    pub routes: Vec<(Ipv6Net, Ipv6Addr)>,
    /// MTU of the link, bytes.
    pub mtu: Option<u16>,
}

/// All that one port has learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Which port.
    pub port: PortId,
    /// Its lease.
    pub lease: Option<Lease>,
    /// Where its DHCP client stands.
    pub standing: Standing,
    /// What its routers say.
    pub advertised: Advertised,
    /// Addresses that were found in use by others.
    pub duplicates: u64,
}

/// What a port has, for a process that takes over from this one without asking anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The port, as in [`Stable::interface`].
    pub interface: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What it has learned.
    pub learned: Learned,
    /// What its routers have said, with how long that holds.
    pub heard: Heard,
}

/// Who hears all that is known whenever it changes.
pub(crate) type Tell = Box<dyn FnMut(&[Learned]) + Send>;
