//! The frames that the benches send.

use std::net::{Ipv6Addr, SocketAddrV4, SocketAddrV6};

/// Bytes of each: 64 on a wire, where the check sequence follows.
pub(crate) const LEN: usize = 60;

/// Bytes of each over IPv6: as many as a neighbour's advertisement has.
#[allow(dead_code, reason = "not every bench sends them")]
pub(crate) const LEN6: usize = 86;

/// A UDP datagram in IPv4 (RFC 768, RFC 791) from one station to another.
pub(crate) fn udp(stations: [[u8; 6]; 2], from: SocketAddrV4, to: SocketAddrV4) -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].copy_from_slice(&stations[1]);
    frame[6..12].copy_from_slice(&stations[0]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&from.ip().octets());
    frame[30..34].copy_from_slice(&to.ip().octets());
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&from.port().to_be_bytes());
    frame[36..38].copy_from_slice(&to.port().to_be_bytes());
    // No UDP checksum, which IPv4 allows.
    frame[38..42].copy_from_slice(&[0, 26, 0, 0]);
    frame
}

/// The same in IPv6 (RFC 8200).
#[allow(dead_code, reason = "not every bench sends them")]
pub(crate) fn udp6(stations: [[u8; 6]; 2], from: SocketAddrV6, to: SocketAddrV6) -> [u8; LEN6] {
    let mut frame = ipv6(stations, 17, 64, *from.ip(), *to.ip());
    frame[54..56].copy_from_slice(&from.port().to_be_bytes());
    frame[56..58].copy_from_slice(&to.port().to_be_bytes());
    frame[58..60].copy_from_slice(&32u16.to_be_bytes());
    seal(&mut frame, 60);
    frame
}

/// A neighbour's answer that it has an address, by its station (RFC 4861 §4.4).
#[allow(dead_code, reason = "not every bench sends them")]
pub(crate) fn advertisement(stations: [[u8; 6]; 2], of: Ipv6Addr, to: Ipv6Addr) -> [u8; LEN6] {
    let mut frame = ipv6(stations, 58, 255, of, to);
    // Solicited, and to override; then the option with its link-layer address.
    frame[54..62].copy_from_slice(&[136, 0, 0, 0, 0x60, 0, 0, 0]);
    frame[62..78].copy_from_slice(&of.octets());
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..86].copy_from_slice(&stations[0]);
    seal(&mut frame, 56);
    frame
}

fn ipv6(
    stations: [[u8; 6]; 2],
    protocol: u8,
    hops: u8,
    from: Ipv6Addr,
    to: Ipv6Addr,
) -> [u8; LEN6] {
    let mut frame = [0; LEN6];
    frame[..6].copy_from_slice(&stations[1]);
    frame[6..12].copy_from_slice(&stations[0]);
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, protocol, hops]);
    frame[22..38].copy_from_slice(&from.octets());
    frame[38..54].copy_from_slice(&to.octets());
    frame
}

/// Writes the checksum of what IPv6 carries, with its addresses, length and protocol (RFC 8200 §8.1).
fn seal(frame: &mut [u8; LEN6], at: usize) {
    let words = frame[22..].chunks(2);
    let sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = sum + 32 + u32::from(frame[20]);
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
