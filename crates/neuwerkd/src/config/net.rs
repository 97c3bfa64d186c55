//! Names and addresses as an operator writes them: interfaces, peers, routes, hardware addresses, translation.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value as Json;

use super::value::{Fault, Value, refuse, shown, text, text_value};

/// The name of a network interface. Never empty in a configuration that was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Interface(String);

impl Interface {
    /// The kernel's name of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names of 1 to 15 bytes without `/`, `:` and white space, as the kernel takes them.
    fn parse(text: &str) -> Option<Interface> {
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        let clean = !text
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace());
        (fits && clean).then(|| Interface(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(Interface, "an interface name", "eth0", |text| {
    Interface::parse(&text)
});

/// A data port: an interface, or a device that only DPDK can address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataInterface {
    /// A kernel interface.
    Name(Interface),
    /// A PCI address, as `0000:00:05.0`.
    Pci(String),
    /// A hardware address.
    Mac(Mac),
    /// A device of DPDK's own making: driver, number and arguments, as `net_memif0,id=1`.
    Vdev(String),
}

impl DataInterface {
    /// The kernel interface, unless the port is named as DPDK names it.
    pub fn name(&self) -> Option<&Interface> {
        match self {
            DataInterface::Name(name) => Some(name),
            DataInterface::Pci(_) | DataInterface::Mac(_) | DataInterface::Vdev(_) => None,
        }
    }

    fn parse(text: &str) -> Option<DataInterface> {
        if let Some(mac) = text.strip_prefix("mac:") {
            return Mac::parse(mac).map(DataInterface::Mac);
        }
        if let Some(pci) = text.strip_prefix("pci:") {
            return is_pci_address(pci).then(|| DataInterface::Pci(pci.to_ascii_lowercase()));
        }
        if let Some(vdev) = text.strip_prefix("vdev:") {
            return is_vdev(vdev).then(|| DataInterface::Vdev(vdev.to_owned()));
        }
        Interface::parse(text).map(DataInterface::Name)
    }
}

impl Default for DataInterface {
    fn default() -> DataInterface {
        DataInterface::Name(Interface::default())
    }
}

impl fmt::Display for DataInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataInterface::Name(name) => name.fmt(f),
            DataInterface::Pci(address) => write!(f, "pci:{address}"),
            DataInterface::Mac(mac) => write!(f, "mac:{mac}"),
            DataInterface::Vdev(vdev) => write!(f, "vdev:{vdev}"),
        }
    }
}

text_value!(
    DataInterface,
    "an interface name, pci:ADDRESS, mac:ADDRESS or vdev:DRIVER,ARGUMENTS",
    "eth1, pci:0000:00:05.0 or mac:02:00:00:00:00:01",
    |text| DataInterface::parse(&text)
);

/// A driver's name and what it is told: `net_memif0,id=1`.
fn is_vdev(text: &str) -> bool {
    let name = text.split(',').next().unwrap_or_default();
    name.starts_with("net_")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_graphic())
}

/// `dddd:bb:dd.f`, hexadecimal.
fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.chars().all(|c| c.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = text.split([':', '.']).collect();
    matches!(parts[..], [domain, bus, device, function]
        if hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1))
        && text.as_bytes().get(10) == Some(&b'.')
}

/// A hardware (EUI-48) address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

text_value!(Mac, "a hardware address", "02:00:00:00:00:01", |text| {
    Mac::parse(&text)
});

/// The port on which a member takes in new members, where a peer is given without one.
pub const JOIN_PORT: u16 = 9601;

/// A member's join listener: a host name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Host name, or address without brackets.
    pub host: String,
    /// 1 to 65535; [`JOIN_PORT`] where none was given.
    pub port: u16,
}

impl Peer {
    /// The address, where the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// `host`, `host:port`, `10.0.0.1:9601`, `[fd00::1]:9601` or a bare address of either family.
    pub fn parse(text: &str) -> Option<Peer> {
        let (host, port) = if let Ok(address) = text.parse::<IpAddr>() {
            (address.to_string(), JOIN_PORT)
        } else if let Some((host, port)) = text.rsplit_once(':') {
            (
                host.to_owned(),
                port.parse().ok().filter(|port| *port != 0)?,
            )
        } else {
            (text.to_owned(), JOIN_PORT)
        };
        let host = match host
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'))
        {
            Some(inner) => inner
                .parse::<IpAddr>()
                .ok()
                .filter(IpAddr::is_ipv6)?
                .to_string(),
            None => host,
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let is_name = host.len() <= 253 && host.trim_end_matches('.').split('.').all(is_label);
        (is_name || host.parse::<IpAddr>().is_ok()).then_some(Peer { host, port })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

text_value!(
    Peer,
    "a host with a port",
    "node1.example:9601, 10.0.0.1:9601 or [fd00::1]:9601",
    |text| { Peer::parse(&text) }
);

/// A static route of a data port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix, host bits cleared.
    pub to: IpNet,
    /// Next hop, of the same family.
    pub via: IpAddr,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.to, self.via)
    }
}

impl Value for Route {
    fn kind() -> String {
        "a route (PREFIX via ADDRESS)".into()
    }

    /// `10.0.0.0/8 via 10.1.0.1`, or in the file a mapping of `to` and `via`.
    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        let (to, via) = match raw {
            Json::Object(map) if map.len() == 2 => {
                (map.get("to").and_then(text), map.get("via").and_then(text))
            }
            other => match text(other)
                .as_deref()
                .and_then(|text| text.split_once(" via "))
            {
                Some((to, via)) => (Some(to.trim().to_owned()), Some(via.trim().to_owned())),
                None => (None, None),
            },
        };
        let parsed = to
            .zip(via)
            .and_then(|(to, via)| Some((to.parse::<IpNet>().ok()?, via.parse::<IpAddr>().ok()?)));
        match parsed {
            Some((to, via)) if to.addr().is_ipv4() == via.is_ipv4() => Ok(Route {
                to: to.trunc(),
                via,
            }),
            Some((to, via)) => refuse(format!(
                "{to} and {via} are of different families; route each family by itself"
            )),
            None => refuse(format!(
                "{} is not a route; write for example \"10.8.0.0/16 via 10.1.0.1\", or a mapping of to and via",
                shown(raw)
            )),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Translation of source addresses on the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceNat {
    /// Addresses stay as they are.
    None,
    /// The port's own address.
    Auto,
    /// This address.
    Static(IpAddr),
    /// The addresses of these prefixes, host bits cleared.
    Pool(Vec<IpNet>),
}

impl SourceNat {
    /// Every address that is given, each once, but not more than 65,536; of an IPv4 prefix of more than two addresses not
    /// the first and the last, which may be those of a network.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = match self {
            SourceNat::None | SourceNat::Auto => Vec::new(),
            SourceNat::Static(address) => vec![*address],
            SourceNat::Pool(nets) => nets.iter().flat_map(IpNet::hosts).take(65_536).collect(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Addresses and prefixes, as they are written.
    fn of(parts: impl IntoIterator<Item = String>) -> Option<SourceNat> {
        let net = |part: &String| {
            let part = part.trim();
            let address = part.parse::<IpAddr>().map(IpNet::from);
            let net = address.or_else(|_| part.parse::<IpNet>().map(|net| net.trunc()));
            net.ok()
        };
        let parts: Vec<String> = parts.into_iter().collect();
        match &parts[..] {
            [] => None,
            [one] if !one.contains('/') => one.trim().parse().ok().map(SourceNat::Static),
            all => Some(SourceNat::Pool(all.iter().map(net).collect::<Option<_>>()?)),
        }
    }
}

impl Value for SourceNat {
    fn kind() -> String {
        "none, auto, or IP addresses and prefixes".into()
    }

    /// A word, or addresses and prefixes with commas between them; in the file also a list of these, or
    /// `{mode: static, ip: ADDRESS}`, or `{mode: pool, addresses: LIST}`.
    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        let from_list = |raw: &Json| match raw {
            Json::Array(elements) => {
                let parts: Option<Vec<String>> = elements.iter().map(text).collect();
                SourceNat::of(parts?)
            }
            scalar => SourceNat::of(text(scalar)?.split(',').map(str::to_owned)),
        };
        let parsed = match raw {
            Json::Object(map) => match (
                map.get("mode").and_then(text).as_deref(),
                map.get("ip").and_then(text),
            ) {
                (Some("static"), Some(ip)) if map.len() == 2 => {
                    ip.parse().ok().map(SourceNat::Static)
                }
                (Some("pool"), None) if map.len() == 2 => map.get("addresses").and_then(from_list),
                (Some("none"), None) if map.len() == 1 => Some(SourceNat::None),
                (Some("auto"), None) if map.len() == 1 => Some(SourceNat::Auto),
                _ => None,
            },
            other => match text(other).as_deref() {
                Some("none") => Some(SourceNat::None),
                Some("auto") => Some(SourceNat::Auto),
                _ => from_list(other),
            },
        };
        match parsed {
            Some(nat) => Ok(nat),
            None => refuse(format!(
                "{raw} is not a translation; write none, auto, addresses or prefixes, or {{mode: static, ip: ADDRESS}}"
            )),
        }
    }

    fn show(&self) -> String {
        match self {
            SourceNat::None => "none".into(),
            SourceNat::Auto => "auto".into(),
            SourceNat::Static(address) => address.to_string(),
            SourceNat::Pool(nets) => nets.show(),
        }
    }
}

impl Value for Duration {
    fn kind() -> String {
        "a length of time (ms, s, m, h, d)".into()
    }

    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        match text(raw).and_then(|text| api::duration::parse(&text).ok()) {
            Some(duration) if !duration.is_zero() => Ok(duration),
            _ => refuse(format!(
                "{} is not a length of time; write for example 15m",
                shown(raw)
            )),
        }
    }

    fn show(&self) -> String {
        api::duration::format(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn interface_names_are_those_the_kernel_takes() {
        for good in ["eth0", "ens5np0", "a", "exactly15bytes!"] {
            assert!(Interface::parse(good).is_some(), "{good}");
        }
        for bad in ["", ".", "sixteen-bytes-xx", "a/b", "a b", "eth0:1"] {
            assert!(Interface::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn data_interfaces_come_back_as_written() {
        for text in ["eth1", "pci:0000:00:05.0", "mac:02:00:00:aa:00:01"] {
            assert_eq!(
                DataInterface::parse(text)
                    .map(|parsed| parsed.to_string())
                    .as_deref(),
                Some(text)
            );
        }
        for bad in [
            "pci:00:05.0",
            "pci:0000:00.05:0",
            "mac:02:00",
            "mac:02:00:00:aa:00:01:02",
            "usb:1",
            "vdev:",
            "vdev:eth0",
            "vdev:net_null0,size=60 bytes",
        ] {
            assert!(DataInterface::parse(bad).is_none(), "{bad}");
        }
    }

    #[track_caller]
    fn peer(text: &str, expected: Option<&str>) {
        assert_eq!(
            Peer::parse(text).map(|peer| peer.to_string()).as_deref(),
            expected,
            "{text}"
        );
    }

    #[test]
    fn peers_may_be_names_or_addresses_of_either_family() {
        peer("node1.example:9600", Some("node1.example:9600"));
        peer("node1", Some("node1:9601"));
        peer("10.0.0.1", Some("10.0.0.1:9601"));
        peer("[fd00::1]:7000", Some("[fd00::1]:7000"));
        peer("fd00::1", Some("[fd00::1]:9601"));
        for bad in [
            "",
            ":9601",
            "node1:",
            "node1:0",
            "node1:70000",
            "[node1]:1",
            "a..b:1",
            "no de:1",
            "http://a:1",
        ] {
            peer(bad, None);
        }
    }

    #[test]
    fn routes_are_text_or_mapping_and_of_one_family() {
        let expected = Route {
            to: "10.8.0.0/16".parse().unwrap(),
            via: "10.1.0.1".parse().unwrap(),
        };
        assert_eq!(
            Route::parse(&json!("10.8.3.0/16 via 10.1.0.1")),
            Ok(expected)
        );
        assert_eq!(
            Route::parse(&json!({"to": "10.8.0.0/16", "via": "10.1.0.1"})),
            Ok(expected)
        );
        for bad in [
            json!("10.8.0.0/16"),
            json!("fd00::/8 via 10.1.0.1"),
            json!({"to": "10.0.0.0/8"}),
            json!(5),
        ] {
            assert!(Route::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn translation_takes_the_published_mapping_too() {
        let address = SourceNat::Static("192.0.2.1".parse().unwrap());
        assert_eq!(SourceNat::parse(&json!("192.0.2.1")), Ok(address.clone()));
        assert_eq!(
            SourceNat::parse(&json!({"mode": "static", "ip": "192.0.2.1"})),
            Ok(address)
        );
        assert_eq!(
            SourceNat::parse(&json!({"mode": "none"})),
            Ok(SourceNat::None)
        );
        for bad in [
            json!("some"),
            json!({"mode": "static"}),
            json!({"mode": "auto", "ip": "192.0.2.1"}),
            json!([]),
            json!({"mode": "pool"}),
            json!({"mode": "pool", "addresses": []}),
            json!({"mode": "pool", "ip": "192.0.2.1"}),
            json!(["192.0.2.1", "auto"]),
            json!("192.0.2.1,"),
            json!("192.0.2.0/33"),
        ] {
            assert!(SourceNat::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pool_of_translation_addresses_is_a_list_or_prefixes() {
        #[track_caller]
        fn check(raw: Json, shown: &str, addresses: &[&str]) {
            let nat = SourceNat::parse(&raw).unwrap();
            assert_eq!(nat.show(), shown);
            let expected: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(nat.addresses(), expected);
            assert_eq!(SourceNat::parse(&json!(shown)), Ok(nat), "as it is shown");
        }
        let two = ["192.0.2.1", "192.0.2.9"];
        let shown = "192.0.2.9/32, 192.0.2.1/32";
        check(json!("192.0.2.9, 192.0.2.1"), shown, &two);
        check(json!(["192.0.2.9", "192.0.2.1"]), shown, &two);
        check(
            json!({"mode": "pool", "addresses": ["192.0.2.9", "192.0.2.1"]}),
            shown,
            &two,
        );
        check(json!(["192.0.2.1"]), "192.0.2.1", &["192.0.2.1"]);
        let of_prefix = ["192.0.2.5", "192.0.2.6"];
        check(json!("192.0.2.5/30"), "192.0.2.4/30", &of_prefix);
        check(
            json!(["192.0.2.4/30", "192.0.2.6"]),
            "192.0.2.4/30, 192.0.2.6/32",
            &of_prefix,
        );
        check(
            json!("2001:db8::/127"),
            "2001:db8::/127",
            &["2001:db8::", "2001:db8::1"],
        );
        for vast in ["10.0.0.0/8", "::/0"] {
            let nat = SourceNat::parse(&json!(vast)).unwrap();
            assert_eq!(nat.addresses().len(), 65_536);
        }
    }
}
