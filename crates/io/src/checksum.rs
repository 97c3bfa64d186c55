//! What a partial transport checksum holds.

/// The folded sum of a pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1): source and destination as they stand in the IP header,
/// the protocol, and `len`, the bytes of the transport header and what is behind it, at most 65,535.
#[inline]
pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u16 {
    let mut sum = u32::from(protocol) + len as u32;
    for pair in addresses.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
