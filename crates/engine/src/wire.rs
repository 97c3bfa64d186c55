//! Headers as bytes: parse and emit, in place and without copying. No input makes them panic.

pub(crate) mod arp;
pub(crate) mod checksum;
pub(crate) mod dhcp;
pub(crate) mod ethernet;
pub(crate) mod icmp;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod mld;
pub(crate) mod ndp;
pub(crate) mod ra;
pub(crate) mod tcp;
pub(crate) mod udp;

/// IP protocol numbers (IANA).
pub(crate) mod proto {
    /// Not a protocol: IPv6 options for every router come first.
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP4: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMP6: u8 = 58;
}

/// The big-endian 16-bit word at `at`. The caller has checked the length.
#[inline(always)]
pub(crate) fn get16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

/// The big-endian 32-bit word at `at`. The caller has checked the length.
#[inline(always)]
pub(crate) fn get32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// `N` bytes from `at`. The caller has checked the length.
#[inline(always)]
pub(crate) fn get<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b[at..at + N]
        .try_into()
        .expect("a slice of N bytes is an array of N")
}

#[inline(always)]
pub(crate) fn put<const N: usize>(b: &mut [u8], at: usize, value: [u8; N]) {
    b[at..at + N].copy_from_slice(&value);
}

#[inline(always)]
pub(crate) fn put16(b: &mut [u8], at: usize, value: u16) {
    put(b, at, value.to_be_bytes());
}
