//! `dns.*`: the DNS proxy.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::key::{Part, section};

section! {
    /// The DNS proxy, which answers clients and learns which addresses a name stands for.
    Dns, Part::Dns;

    /// Addresses that clients inside ask; packets to their port 53 are handed to the proxy. None: it answers at the management
    /// address alone.
    target_ips: Vec<IpAddr> = Vec::new(), flag("dns-target-ip"), flag_alias("dns-target-ips");
    /// Resolvers that the proxy asks, in this order. None: there is no proxy.
    upstreams: Vec<SocketAddr> = Vec::new(), flag("dns-upstream"), flag_alias("dns-upstreams");
    /// How long one resolver may take before the next is asked.
    upstream_timeout_ms: u32 = 2000, unit("ms"), range(1..=600_000);
    /// How long an answer with addresses waits for peers to grant these too, so that a client may resolve through one node and
    /// connect through another. A peer that has missed it three times in a row is not waited for until it has caught up.
    program_timeout_ms: u32 = 20, unit("ms"), range(0..=1_000);
    /// Private ranges whose addresses may be granted to clients when a name resolves to them.
    allow_private_answers: Vec<IpNet> = Vec::new();
}

impl Dns {
    /// The addresses whose port 53 is the proxy's: none if there is no proxy, so that packets to them are judged and
    /// forwarded like all others.
    pub fn served(&self) -> &[IpAddr] {
        if self.upstreams.is_empty() {
            &[]
        } else {
            &self.target_ips
        }
    }
}
