//! DHCP messages (RFC 2131) and the options that a node with data ports has a use for (RFC 2132, RFC 3396, RFC 3442).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ethernet::Mac;
use super::{get, get32, put, put16};
use crate::DropReason;

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// Bytes of a message of ours: what BOOTP relays expect at least (RFC 1542 §2.1).
pub(crate) const LEN: usize = 300;
/// Where the options begin.
const OPTIONS: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Servers, routers and name servers that are taken in of each kind.
const MAX_ADDRESSES: usize = 4;
/// Classless routes that are taken in.
const MAX_ROUTES: usize = 32;

/// What a message is for (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
}

/// A message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) xid: u32,
    /// Seconds since we began to ask.
    pub(crate) secs: u16,
    pub(crate) mac: Mac,
    /// Our address, once we may answer for it.
    pub(crate) own: Option<Ipv4Addr>,
    /// The address that we ask for (option 50).
    pub(crate) requested: Option<Ipv4Addr>,
    /// The server that is meant (option 54).
    pub(crate) server: Option<Ipv4Addr>,
}

impl Message {
    /// Writes it into [`LEN`] zero bytes.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        put(b, 0, [1, 1, 6, 0]);
        put(b, 4, self.xid.to_be_bytes());
        put16(b, 8, self.secs);
        put(b, 12, self.own.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        put(b, 28, self.mac);
        put(b, 236, COOKIE);
        let mut at = OPTIONS;
        let mut option = |code: u8, value: &[u8]| {
            b[at..at + 2].copy_from_slice(&[code, value.len() as u8]);
            b[at + 2..at + 2 + value.len()].copy_from_slice(value);
            at += 2 + value.len();
        };
        option(53, &[self.kind as u8]);
        // By the hardware address: the same after every restart (RFC 2132 §9.14).
        let [a, b1, c, d, e, f] = self.mac;
        option(61, &[1, a, b1, c, d, e, f]);
        if let Some(requested) = self.requested {
            option(50, &requested.octets());
        }
        if let Some(server) = self.server {
            option(54, &server.octets());
        }
        if self.kind != Kind::Decline {
            option(57, &1500u16.to_be_bytes());
            // Classless routes before the router (RFC 3442).
            option(55, &[1, 121, 3, 6, 26, 51, 54, 58, 59]);
        }
        option(255, &[]);
        // The end option has no length.
        b[at - 1] = 0;
    }
}

/// A server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    pub(crate) xid: u32,
    /// Whom it is for.
    pub(crate) mac: Mac,
    /// The address that is offered or leased.
    pub(crate) address: Ipv4Addr,
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) prefix_len: Option<u8>,
    pub(crate) routers: Vec<Ipv4Addr>,
    /// Classless static routes; where there are any, `routers` means nothing.
    pub(crate) routes: Option<Vec<(Ipv4Net, Ipv4Addr)>>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) mtu: Option<u16>,
    pub(crate) lease_s: Option<u32>,
    pub(crate) renewal_s: Option<u32>,
    pub(crate) rebinding_s: Option<u32>,
}

/// Transaction and addressee of a server's message, before anything else of it is looked at.
pub(crate) fn peek(b: &[u8]) -> Option<(u32, Mac)> {
    let is_reply = b.len() >= OPTIONS && b[..3] == [2, 1, 6] && b[236..OPTIONS] == COOKIE;
    is_reply.then(|| (get32(b, 4), get(b, 28)))
}

impl Reply {
    /// Parses the payload of a datagram from a server.
    pub(crate) fn parse(b: &[u8]) -> Result<Reply, DropReason> {
        let (xid, mac) = peek(b).ok_or(DropReason::Dhcp)?;
        let options = options(b)?;
        let value = |code: u8| options.get(&code).map(Vec::as_slice);
        let kind = match value(53) {
            Some([2]) => Kind::Offer,
            Some([5]) => Kind::Ack,
            Some([6]) => Kind::Nak,
            _ => return Err(DropReason::Dhcp),
        };
        Ok(Reply {
            kind,
            xid,
            mac,
            address: get(b, 16).into(),
            server: value(54).map(one_address).transpose()?,
            prefix_len: value(1).map(mask).transpose()?,
            routers: value(3).map_or(Ok(Vec::new()), addresses)?,
            routes: value(121).map(routes).transpose()?,
            dns: value(6).map_or(Ok(Vec::new()), addresses)?,
            mtu: value(26)
                .map(|v| number(v).map(u16::from_be_bytes))
                .transpose()?,
            lease_s: value(51)
                .map(|v| number(v).map(u32::from_be_bytes))
                .transpose()?,
            renewal_s: value(58)
                .map(|v| number(v).map(u32::from_be_bytes))
                .transpose()?,
            rebinding_s: value(59)
                .map(|v| number(v).map(u32::from_be_bytes))
                .transpose()?,
        })
    }
}

/// All options, those that are repeated joined (RFC 3396), from the fields that are overloaded too.
fn options(b: &[u8]) -> Result<BTreeMap<u8, Vec<u8>>, DropReason> {
    let mut all = BTreeMap::new();
    collect(&b[OPTIONS..], &mut all)?;
    let overloaded = all.get(&52).and_then(|v| v.first()).copied().unwrap_or(0);
    if overloaded & 1 != 0 {
        collect(&b[108..236], &mut all)?;
    }
    if overloaded & 2 != 0 {
        collect(&b[44..108], &mut all)?;
    }
    Ok(all)
}

fn collect(mut b: &[u8], all: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), DropReason> {
    loop {
        match *b {
            [] | [255, ..] => return Ok(()),
            [0, ..] => b = &b[1..],
            [code, len, ref rest @ ..] => {
                let (value, rest) = rest
                    .split_at_checked(usize::from(len))
                    .ok_or(DropReason::Dhcp)?;
                all.entry(code).or_default().extend(value);
                b = rest;
            }
            [_] => return Err(DropReason::Dhcp),
        }
    }
}

fn number<const N: usize>(value: &[u8]) -> Result<[u8; N], DropReason> {
    value.try_into().map_err(|_| DropReason::Dhcp)
}

fn one_address(value: &[u8]) -> Result<Ipv4Addr, DropReason> {
    number::<4>(value).map(Ipv4Addr::from)
}

fn addresses(value: &[u8]) -> Result<Vec<Ipv4Addr>, DropReason> {
    if value.is_empty() || !value.len().is_multiple_of(4) {
        return Err(DropReason::Dhcp);
    }
    let all = value
        .chunks_exact(4)
        .map(|c| Ipv4Addr::from(get::<4>(c, 0)));
    Ok(all.take(MAX_ADDRESSES).collect())
}

fn mask(value: &[u8]) -> Result<u8, DropReason> {
    let mask = u32::from_be_bytes(number(value)?);
    if mask.leading_ones() + mask.trailing_zeros() < 32 {
        return Err(DropReason::Dhcp);
    }
    Ok(mask.leading_ones() as u8)
}

/// Destination descriptors and routers (RFC 3442).
fn routes(mut value: &[u8]) -> Result<Vec<(Ipv4Net, Ipv4Addr)>, DropReason> {
    let mut all = Vec::new();
    while let Some((&len, rest)) = value.split_first() {
        let significant = usize::from(len).div_ceil(8);
        if len > 32 || rest.len() < significant + 4 {
            return Err(DropReason::Dhcp);
        }
        let mut destination = [0; 4];
        destination[..significant].copy_from_slice(&rest[..significant]);
        let net = Ipv4Net::new(destination.into(), len).map_err(|_| DropReason::Dhcp)?;
        if all.len() < MAX_ROUTES {
            all.push((net.trunc(), get::<4>(rest, significant).into()));
        }
        value = &rest[significant + 4..];
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn reply(options: &[u8]) -> Vec<u8> {
        let mut b = vec![0; OPTIONS];
        put(&mut b, 0, [2, 1, 6, 0]);
        put(&mut b, 4, [0, 0, 0, 7]);
        put(&mut b, 16, [10, 0, 0, 9]);
        put(&mut b, 28, MAC);
        put(&mut b, 236, COOKIE);
        b.extend(options);
        b
    }

    #[test]
    fn what_is_sent_reads_as_the_rfc_says() {
        let mut b = [0; LEN];
        let message = Message {
            kind: Kind::Request,
            xid: 7,
            secs: 3,
            mac: MAC,
            own: None,
            requested: Some([10, 0, 0, 9].into()),
            server: Some([10, 0, 0, 1].into()),
        };
        message.emit(&mut b);
        assert_eq!(b[..12], [1, 1, 6, 0, 0, 0, 0, 7, 0, 3, 0, 0]);
        let options = options(&b).unwrap();
        assert_eq!(options[&53], [3]);
        assert_eq!(options[&61], [1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(options[&50], [10, 0, 0, 9]);
        assert_eq!(options[&54], [10, 0, 0, 1]);
        assert_eq!(options[&55][..2], [1, 121]);
    }

    #[test]
    fn every_option_is_read() {
        let b = reply(&[
            53, 1, 5, 0, 0, 54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0, 3, 8, 10, 0, 0, 1, 10, 0,
            0, 2, 6, 4, 10, 0, 0, 3, 26, 2, 5, 0, 51, 4, 0, 0, 14, 16, 58, 4, 0, 0, 0, 9, 59, 4, 0,
            0, 0, 10, 121, 10, 0, 10, 0, 0, 1, 16, 172, 16, 10, 0, 121, 2, 0, 2, 255, 1, 1,
        ]);
        let reply = Reply::parse(&b).unwrap();
        assert_eq!((reply.kind, reply.xid, reply.mac), (Kind::Ack, 7, MAC));
        assert_eq!(reply.address, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(reply.server, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(reply.prefix_len, Some(24));
        assert_eq!(reply.routers.len(), 2);
        assert_eq!(reply.dns, [Ipv4Addr::new(10, 0, 0, 3)]);
        assert_eq!(reply.mtu, Some(1280));
        assert_eq!(
            (reply.lease_s, reply.renewal_s, reply.rebinding_s),
            (Some(3600), Some(9), Some(10))
        );
        let routes = [
            ("0.0.0.0/0".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 1)),
            ("172.16.0.0/16".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 2)),
        ];
        assert_eq!(reply.routes.as_deref(), Some(&routes[..]), "in two pieces");
    }

    #[test]
    fn overloaded_fields_are_read_after_the_options() {
        let mut b = reply(&[52, 1, 3, 255]);
        put(&mut b, 108, [53, 1, 2, 255]);
        put(&mut b, 44, [51, 4, 0, 0, 0, 60, 255]);
        let reply = Reply::parse(&b).unwrap();
        assert_eq!((reply.kind, reply.lease_s), (Kind::Offer, Some(60)));
    }

    #[test]
    fn malformed_messages_are_refused() {
        fn check(options: &[u8]) {
            assert_eq!(
                Reply::parse(&reply(options)),
                Err(DropReason::Dhcp),
                "{options:?}"
            );
        }
        check(&[]);
        check(&[53]);
        check(&[53, 2, 5]);
        check(&[53, 1, 1]);
        check(&[53, 1, 5, 1, 4, 255, 0, 255, 0]);
        check(&[53, 1, 5, 1, 3, 255, 0, 255]);
        check(&[53, 1, 5, 3, 3, 1, 2, 3]);
        check(&[53, 1, 5, 51, 2, 0, 1]);
        check(&[53, 1, 5, 121, 5, 33, 1, 2, 3, 4]);
        check(&[53, 1, 5, 121, 4, 8, 1, 2, 3]);
        assert_eq!(Reply::parse(&[0; 239]), Err(DropReason::Dhcp));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), shaped in any::<bool>()) {
            if shaped {
                bytes = reply(&[&[53, 1, 5][..], &bytes].concat());
            }
            let _ = Reply::parse(&bytes);
        }
    }
}
