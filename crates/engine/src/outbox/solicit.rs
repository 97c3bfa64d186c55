//! What is sent on the way to addresses of our own: DHCP, ARP probes, router and neighbour solicitations, and that we
//! listen where others ask for them.

use super::{Link, Outbox};
use crate::address::Addr;
use crate::port::PortId;
use crate::wire::arp::{Arp, Operation};
use crate::wire::dhcp::{self, CLIENT_PORT, Message, SERVER_PORT};
use crate::wire::ethernet::{BROADCAST, Mac};
use crate::wire::mld::{self, Record, Version};
use crate::wire::{checksum, icmp, ndp, proto, put, put16, ra, udp};

impl Outbox {
    pub(crate) fn dhcp(&mut self, link: Link, src: Addr, dst: Addr, message: &Message) {
        let len = udp::LEN + dhcp::LEN;
        if let Some(b) = self.packet(link, src, dst, proto::UDP, 64, len) {
            put16(b, 0, CLIENT_PORT);
            put16(b, 2, SERVER_PORT);
            put16(b, 4, len as u16);
            message.emit(&mut b[udp::LEN..]);
            let sum = checksum::transport(src, dst, proto::UDP, b);
            // A sum of zero would mean that there is none (RFC 768).
            put16(b, udp::CHECKSUM, if sum == 0 { 0xffff } else { sum });
        }
    }

    /// Asks whether anybody has an address that is not ours yet (RFC 5227 §2.1.1).
    pub(crate) fn arp_probe(&mut self, port: PortId, mac: Mac, target: Addr) {
        let probe = Arp {
            operation: Operation::Request,
            sender_mac: mac,
            sender: Addr::v4(0),
            target_mac: [0; 6],
            target,
        };
        self.arp(Link::new(port, mac, BROADCAST), probe);
    }

    /// The same for IPv6 (RFC 4862 §5.4.2): from no address, and so without an address option.
    pub(crate) fn duplicate_probe(&mut self, port: PortId, mac: Mac, target: Addr) {
        let group = ndp::solicited_node(target);
        let link = Link::new(port, mac, ndp::multicast_mac(group));
        if let Some(b) = self.packet(link, Addr(0), group, proto::ICMP6, 255, 24) {
            b[0] = ndp::SOLICITATION;
            put(b, icmp::LEN, target.octets16());
            let sum = checksum::transport(Addr(0), group, proto::ICMP6, b);
            put16(b, icmp::CHECKSUM, sum);
        }
    }

    /// Asks for routers (RFC 4861 §4.1).
    pub(crate) fn router_solicitation(&mut self, port: PortId, mac: Mac) {
        let (src, dst) = (ndp::link_local(mac), ndp::ALL_ROUTERS);
        let link = Link::new(port, mac, ndp::multicast_mac(dst));
        if let Some(b) = self.packet(link, src, dst, proto::ICMP6, 255, 16) {
            b[0] = ra::SOLICITATION;
            put(b, icmp::LEN, [1, 1]);
            put(b, icmp::LEN + 2, mac);
            let sum = checksum::transport(src, dst, proto::ICMP6, b);
            put16(b, icmp::CHECKSUM, sum);
        }
    }

    /// Tells routers and switches on which groups we listen, as many messages as it takes.
    pub(crate) fn listener_report(
        &mut self,
        port: PortId,
        mac: Mac,
        version: Version,
        record: Record,
        groups: impl Iterator<Item = Addr> + Clone,
    ) {
        if version == Version::V1 {
            for group in groups {
                self.listener_message(port, mac, group, mld::LEN_V1, |b| {
                    mld::emit_report_v1(b, group);
                });
            }
            return;
        }
        let count = groups.clone().count();
        for at in (0..count).step_by(mld::RECORDS_MAX) {
            let some = groups.clone().skip(at).take(mld::RECORDS_MAX);
            let len = mld::report_len(some.clone().count());
            self.listener_message(port, mac, mld::ROUTERS, len, |b| {
                mld::emit_report(b, record, some);
            });
        }
    }

    /// A message that goes no further than the next router, which looks at it (RFC 3810 §5).
    fn listener_message(
        &mut self,
        port: PortId,
        mac: Mac,
        to: Addr,
        len: usize,
        emit: impl FnOnce(&mut [u8]),
    ) {
        let src = ndp::link_local(mac);
        let link = Link::new(port, mac, ndp::multicast_mac(to));
        let len = mld::ROUTER_ALERT.len() + len;
        if let Some(b) = self.packet(link, src, to, proto::HOP_BY_HOP, 1, len) {
            put(b, 0, mld::ROUTER_ALERT);
            let message = &mut b[mld::ROUTER_ALERT.len()..];
            emit(message);
            let sum = checksum::transport(src, to, proto::ICMP6, message);
            put16(message, icmp::CHECKSUM, sum);
        }
    }
}
