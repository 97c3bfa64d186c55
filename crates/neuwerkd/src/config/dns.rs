//! `dns.*`: the DNS proxy.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ::dns::Kind;
use ipnet::IpNet;
use rustls_pki_types::ServerName;

use super::key::{Part, section};
use super::value::{choice, text_value};

section! {
    /// The DNS proxy, which answers clients and learns which addresses a name stands for.
    Dns, Part::Dns;

    /// Addresses that clients inside ask; packets to their port 53 are handed to the proxy. None: it answers at the management
    /// addresses alone.
    target_ips: Vec<IpAddr> = Vec::new(), flag("dns-target-ip"), flag_alias("dns-target-ips");
    /// Resolvers that the proxy asks, in this order: over UDP and TCP as `9.9.9.9:53`, over TLS (RFC 7858) as
    /// `tls://9.9.9.9:853#dns.quad9.net`. `#` and the name that its certificate has to have may be left out, if that has the
    /// address; so may port 853. None: there is no proxy.
    upstreams: Vec<Upstream> = Vec::new(), flag("dns-upstream"), flag_alias("dns-upstreams");
    /// How long one resolver may take before the next is asked.
    upstream_timeout_ms: u32 = 2000, unit("ms"), range(1..=600_000);
    /// The file with the certificates of those who may sign for resolvers over TLS, in PEM; the host's unless set.
    upstream_ca: PathBuf = PathBuf::from(HOST_CA);
    /// How long an answer with addresses waits for peers to grant these too, so that a client may resolve through one node and
    /// connect through another. A peer that has missed it three times in a row is not waited for until it has caught up.
    program_timeout_ms: u32 = 20, unit("ms"), range(0..=1_000);
    /// Private ranges whose addresses may be granted to clients when a name resolves to them.
    allow_private_answers: Vec<IpNet> = Vec::new();
    /// How queries for names that policy denies are answered: `nxdomain`, as if they did not exist, or `refused`, upon which
    /// some clients ask another server.
    denied_answer: DeniedAnswer = DeniedAnswer::NxDomain;
    /// Answers keep the keys of Encrypted Client Hello, by which clients hide the names that they connect to.
    allow_ech: bool = false;
    /// Types of records that clients may ask for beside A, AAAA, CNAME, HTTPS, SVCB, PTR, TXT, MX, SRV, NS and SOA.
    more_types: Vec<RecordType> = Vec::new();
    /// Most memory for answers that are kept; with 0 none are.
    cache_bytes: u64 = 64 << 20, unit("bytes"), range(0..=MAX_CACHE_BYTES);
    /// Queries that one client may send steadily; beyond it they are dropped. 0: no limit. All of an IPv6 /64 is one client.
    client_queries_per_second: u32 = 10_000, unit("queries/s"), range(0..=1_000_000);
    /// Queries that one client may send at once, after it has been quiet.
    client_burst: u32 = 20_000, unit("queries"), range(1..=1_000_000);
}

/// Debian's certificates.
const HOST_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// More is a slip.
const MAX_CACHE_BYTES: u64 = 4_000_000_000;
/// The port of DNS over TLS (RFC 7858 section 3.1).
const TLS_PORT: u16 = 853;

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

/// A resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    /// What its certificate has to be for, if it is asked over TLS.
    pub tls: Option<ServerName<'static>>,
}

impl Upstream {
    fn parse(text: &str) -> Option<Upstream> {
        let Some(rest) = text.strip_prefix("tls://") else {
            return Some(Upstream {
                address: text.parse().ok()?,
                tls: None,
            });
        };
        let (place, name) = match rest.split_once('#') {
            Some((place, name)) => (place, Some(name)),
            None => (rest, None),
        };
        let bare = place.strip_prefix('[').and_then(|p| p.strip_suffix(']'));
        let address = match bare.unwrap_or(place).parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, TLS_PORT),
            Err(_) => place.parse().ok()?,
        };
        let name = match name {
            Some(name) => ServerName::try_from(name.to_owned()).ok()?,
            None => ServerName::IpAddress(address.ip().into()),
        };
        Some(Upstream {
            address,
            tls: Some(name),
        })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            None => write!(f, "{}", self.address),
            Some(name) => write!(f, "tls://{}#{}", self.address, name.to_str()),
        }
    }
}

text_value!(
    Upstream,
    "an address with a port, or tls://ADDRESS#NAME",
    "9.9.9.9:53 or tls://9.9.9.9#dns.quad9.net",
    |text| Upstream::parse(&text)
);

/// A type of records beyond the usual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordType(pub Kind);

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_value!(
    RecordType,
    "a type of DNS records",
    "CAA, TLSA or TYPE257; those that stand for no records, as ANY and AXFR, are never served",
    |text| text
        .parse::<Kind>()
        .ok()
        .filter(|kind| !kind.is_meta())
        .map(RecordType)
);

choice! {
    /// How a denied name is answered.
    DeniedAnswer {
        /// As if it did not exist.
        NxDomain = "nxdomain",
        /// With a refusal.
        Refused = "refused",
    }
}
