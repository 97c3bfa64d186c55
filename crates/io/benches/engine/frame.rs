//! The frames that the benches send.

use std::net::SocketAddrV4;

/// Bytes of each: 64 on a wire, where the check sequence follows.
pub(crate) const LEN: usize = 60;

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
