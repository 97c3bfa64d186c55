//! The leaves of the document: actions, protocols, ports, addresses, networks.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::ser::Serializer;

use super::{PortRange, protocol};
use crate::problem::nearest;
use crate::tree::Value;

/// Why a leaf was refused, and what was probably meant.
pub(super) struct Refused {
    pub(super) reason: String,
    pub(super) suggestion: Option<String>,
}

impl Refused {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            suggestion: None,
        }
    }

    fn suggest(reason: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            suggestion: Some(suggestion.into()),
        }
    }
}

/// At most this many characters of a refused value are shown.
const SHOWN_CHARS: usize = 80;

/// A refused value as it is shown: quoted, cut short, nothing unprintable.
pub(super) fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(SHOWN_CHARS).collect();
    if chars.next().is_some() {
        format!("{head:?}…")
    } else {
        format!("{head:?}")
    }
}

/// One of a few words, compared without regard to ASCII case.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Refused> {
    if let Some((_, value)) = words
        .iter()
        .find(|(w, _)| w.eq_ignore_ascii_case(text.trim()))
    {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
    Err(Refused {
        reason: format!("{} is none of {}", shown(text), known.join(", ")),
        suggestion: nearest(text.trim(), &known),
    })
}

const PROTOCOLS: [(&str, Option<u8>); 5] = [
    ("any", None),
    ("tcp", Some(protocol::TCP)),
    ("udp", Some(protocol::UDP)),
    ("icmp", Some(protocol::ICMP)),
    ("icmpv6", Some(protocol::ICMPV6)),
];

/// A protocol name or number; `None` is any.
pub(super) fn proto(value: &Value<'_>) -> Result<Option<u8>, Refused> {
    match value {
        Value::Int(number) => u8::try_from(*number)
            .map(Some)
            .map_err(|_| Refused::new(format!("{number} is not a protocol number (0 to 255)"))),
        Value::Str(text) => match digits::<u8>(text.trim()) {
            Some(number) => Ok(Some(number)),
            None => word(text, &PROTOCOLS).map_err(|mut refused| {
                refused.reason.push_str(" or a number from 0 to 255");
                refused
            }),
        },
        other => Err(Refused::new(format!(
            "expected a protocol name or number, found {}",
            other.kind()
        ))),
    }
}

#[allow(clippy::ref_option, reason = "the signature that serde calls")]
pub(super) fn serialize_proto<S: Serializer>(
    proto: &Option<u8>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match PROTOCOLS.iter().find(|(_, number)| number == proto) {
        Some((name, _)) => serializer.serialize_str(name),
        None => serializer.serialize_u8(proto.unwrap_or_default()),
    }
}

/// A number written in digits alone, without a sign.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A port, or a range of them as `a-b`.
pub(super) fn ports(value: &Value<'_>) -> Result<PortRange, Refused> {
    let single = |port: u16| PortRange {
        start: port,
        end: port,
    };
    match value {
        Value::Int(number) => u16::try_from(*number)
            .map(single)
            .map_err(|_| Refused::new(format!("{number} is not a port (0 to 65535)"))),
        Value::Str(text) => {
            let number = |text: &str| {
                digits::<u16>(text.trim()).ok_or_else(|| {
                    Refused::new(format!(
                        "{} is neither a port (0 to 65535) nor a range of them like \"8000-8099\"",
                        shown(text)
                    ))
                })
            };
            let Some((start, end)) = text.split_once('-') else {
                return number(text).map(single);
            };
            let (start, end) = (number(start)?, number(end)?);
            if start > end {
                return Err(Refused::suggest(
                    format!("the range {start}-{end} ends before it starts"),
                    format!("\"{end}-{start}\""),
                ));
            }
            Ok(PortRange { start, end })
        }
        other => Err(Refused::new(format!(
            "expected a port or a range of them, found {}",
            other.kind()
        ))),
    }
}

/// A single address.
pub(super) fn ip(text: &str) -> Result<IpAddr, Refused> {
    let text = text.trim();
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => not_mapped(v6, 128).map(|()| IpAddr::V6(v6)),
        Ok(v4) => Ok(v4),
        Err(_) if text.parse::<IpNet>().is_ok() => Err(Refused::new(format!(
            "{} is a network; write it under the key for networks",
            shown(text)
        ))),
        Err(_) => Err(Refused::new(format!(
            "{} is not an IPv4 or IPv6 address",
            shown(text)
        ))),
    }
}

/// A network, host bits masked; a bare address is the network of that one address.
pub(super) fn cidr(text: &str) -> Result<IpNet, Refused> {
    let text = text.trim();
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    // The standard library's reading of addresses: it takes no leading zeros (octal to some).
    let Ok(address) = address.parse::<IpAddr>() else {
        let reason = format!("{} is not an IPv4 or IPv6 network", shown(text));
        return Err(Refused::new(reason));
    };
    let net = match prefix {
        None => IpNet::from(address),
        Some(prefix) => digits::<u8>(prefix)
            .and_then(|prefix| IpNet::new(address, prefix).ok())
            .ok_or_else(|| Refused::new(format!("{} has no valid prefix length", shown(text))))?
            .trunc(),
    };
    if let IpNet::V6(v6) = net {
        not_mapped(v6.network(), v6.prefix_len())?;
    }
    Ok(net)
}

/// IPv4-mapped addresses (RFC 4291 section 2.5.5.2) never are on the wire; whoever writes one
/// means the IPv4 address, and silently matching nothing would not be it.
fn not_mapped(address: Ipv6Addr, prefix_len: u8) -> Result<(), Refused> {
    const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
    match address.to_ipv4_mapped() {
        Some(v4) if prefix_len >= MAPPED.prefix_len() => Err(Refused::suggest(
            format!("{address} is an IPv4-mapped address, which no packet carries"),
            match prefix_len - MAPPED.prefix_len() {
                32 => v4.to_string(),
                shorter => format!("{v4}/{shorter}"),
            },
        )),
        _ => Ok(()),
    }
}

/// A whole number from 0 to `T::MAX`.
pub(super) fn number<T: TryFrom<i128>>(value: &Value<'_>, range: &str) -> Result<T, Refused> {
    match value {
        Value::Int(number) => T::try_from(*number)
            .map_err(|_| Refused::new(format!("{number} is out of range ({range})"))),
        other => Err(Refused::new(format!(
            "expected a number ({range}), found {}",
            other.kind()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        #[track_caller]
        fn check(text: &str, want: Result<&str, &str>) {
            match (cidr(text), want) {
                (Ok(net), Ok(want)) => assert_eq!(net.to_string(), want),
                (Err(refused), Err(want)) => {
                    assert!(refused.reason.contains(want), "{}", refused.reason);
                }
                (Ok(net), Err(_)) => panic!("{text} became {net}"),
                (Err(refused), Ok(_)) => panic!("{text}: {}", refused.reason),
            }
        }
        check("10.1.2.3/8", Ok("10.0.0.0/8"));
        check(" 10.1.2.3 ", Ok("10.1.2.3/32"));
        check("0.0.0.0/0", Ok("0.0.0.0/0"));
        check("2001:db8::1/32", Ok("2001:db8::/32"));
        check("2001:db8::1", Ok("2001:db8::1/128"));
        check("::/0", Ok("::/0"));
        check("10.0.0.0/+8", Err("no valid prefix length"));
        check("10.0.0.0/33", Err("no valid prefix length"));
        check("10.0.0/8", Err("not an IPv4 or IPv6 network"));
        check("10.0.0.01/8", Err("not an IPv4"));
        check("::ffff:10.0.0.0/104", Err("IPv4-mapped"));
        check("::ffff:10.0.0.1", Err("IPv4-mapped"));
        check("", Err("not an IPv4"));
    }

    #[test]
    fn a_mapped_address_suggests_the_plain_one() {
        assert_eq!(
            ip("::ffff:10.0.0.1").err().and_then(|r| r.suggestion),
            Some("10.0.0.1".to_owned())
        );
        assert_eq!(
            cidr("::ffff:10.0.0.0/104").err().and_then(|r| r.suggestion),
            Some("10.0.0.0/8".to_owned())
        );
    }

    #[test]
    fn port_ranges() {
        #[track_caller]
        fn check(value: Value<'_>, want: Option<(u16, u16)>) {
            assert_eq!(
                ports(&value).ok().map(|r| (r.start, r.end)),
                want,
                "{value:?}"
            );
        }
        check(Value::Int(443), Some((443, 443)));
        check(Value::Int(0), Some((0, 0)));
        check(Value::Int(65536), None);
        check(Value::Int(-1), None);
        check(Value::Str("443".into()), Some((443, 443)));
        check(Value::Str("80 - 90".into()), Some((80, 90)));
        check(Value::Str("90-80".into()), None);
        check(Value::Str("80-".into()), None);
        check(Value::Str("+80".into()), None);
        check(Value::Str("80-90-100".into()), None);
        check(Value::Str("http".into()), None);
        check(Value::Bool(true), None);
    }

    #[test]
    fn protocols() {
        #[track_caller]
        fn check(value: Value<'_>, want: Option<Option<u8>>) {
            assert_eq!(proto(&value).ok(), want, "{value:?}");
        }
        check(Value::Str("TCP".into()), Some(Some(6)));
        check(Value::Str("any".into()), Some(None));
        check(Value::Str("icmpv6".into()), Some(Some(58)));
        check(Value::Str("47".into()), Some(Some(47)));
        check(Value::Int(255), Some(Some(255)));
        check(Value::Int(256), None);
        check(Value::Str("tpc".into()), None);
        check(Value::Null, None);
    }
}
