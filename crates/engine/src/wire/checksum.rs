//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use crate::address::Addr;

/// Folds a sum of 16-bit words to 16 bits, end-around.
#[inline(always)]
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    // At most one carry is left.
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    // The upper half is now the sum of both, and the carry out of the lower half comes into it.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// Whether the sum of an IPv4 header without options, checksum included, is that of a right one. Words are taken in the
/// machine's order, which only swaps the bytes of the sum (RFC 1071 §2B), and 0xffff is the same either way.
#[inline(always)]
pub(crate) fn is_right(header: &[u8; 20]) -> bool {
    let word = |at| u64::from(u32::from_ne_bytes(super::get(header, at)));
    fold(word(0) + word(4) + word(8) + word(12) + word(16)) == 0xffff
}

/// The sum of the bytes as big-endian words; an odd last byte is padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut chunks = bytes.chunks_exact(4);
    for c in &mut chunks {
        // Sums of 32-bit words fold to the same 16 bits; 2^32 of them would fit.
        total += u64::from(u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// The sum of an address's words.
#[inline]
fn sum_addr(a: Addr) -> u64 {
    if a.is_v4() {
        u64::from(a.low32())
    } else {
        let (hi, lo) = ((a.0 >> 64) as u64, a.0 as u64);
        (hi >> 32) + (hi & 0xffff_ffff) + (lo >> 32) + (lo & 0xffff_ffff)
    }
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1). `len` counts the transport
/// header and payload.
pub(crate) fn pseudo_header(src: Addr, dst: Addr, proto: u8, len: usize) -> u64 {
    sum_addr(src) + sum_addr(dst) + u64::from(proto) + len as u64
}

/// The checksum of a transport segment whose checksum field is zero (or, to verify one, is in
/// place: the result is then 0).
pub(crate) fn transport(src: Addr, dst: Addr, proto: u8, segment: &[u8]) -> u16 {
    !fold(pseudo_header(src, dst, proto, segment.len()) + sum(segment))
}

/// The difference that a rewrite makes to a checksum: the sum of what came minus what went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delta(u64);

impl Delta {
    #[inline(always)]
    pub(crate) fn replace16(&mut self, old: u16, new: u16) {
        self.0 += u64::from(!old) + u64::from(new);
    }

    /// A word has become less by `difference`, which it was not less than.
    #[inline(always)]
    pub(crate) fn subtract(&mut self, difference: u16) {
        self.0 += u64::from(!difference);
    }

    /// Both of one family.
    #[inline(always)]
    pub(crate) fn replace_addr(&mut self, old: Addr, new: Addr) {
        self.replace_addr_of(old.is_v4(), old, new);
    }

    /// The same of a family that is known.
    #[inline(always)]
    pub(crate) fn replace_addr_of(&mut self, v4: bool, old: Addr, new: Addr) {
        // The sum of complements is the negative of the sum in end-around arithmetic.
        self.0 += u64::from(!old.low32()) + u64::from(new.low32());
        if !v4 {
            let words = |a: u128| {
                (a >> 96) as u32 as u64 + (a >> 64) as u32 as u64 + (a >> 32) as u32 as u64
            };
            self.0 += words(!old.0) + words(new.0);
        }
    }

    /// The checksum after the rewrite (RFC 1624 equation 3).
    #[inline(always)]
    pub(crate) fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + self.0)
    }

    /// The same for a field that holds a plain, uncomplemented sum, as a partial checksum does.
    #[inline(always)]
    pub(crate) fn apply_partial(self, field: u16) -> u16 {
        fold(u64::from(field) + self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 §4.1 says it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        let mut delta = Delta::default();
        delta.replace16(0x5555, 0x3285);
        assert_eq!(delta.apply(0xdd2f), 0x0000);
    }

    proptest! {
        #[test]
        fn fast_equals_naive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(fold(sum(&bytes)), naive(&bytes));
        }

        #[test]
        fn incremental_equals_full(
            mut segment in proptest::collection::vec(any::<u8>(), 20..80),
            v4: bool, a: u128, b: u128, c: u128, port: u16,
        ) {
            let addr = |x: u128| if v4 { Addr::v4(x as u32) } else { Addr(x | 1 << 127) };
            let (src, dst, new_src) = (addr(a), addr(b), addr(c));
            segment[16..18].fill(0);
            let before = transport(src, dst, 6, &segment);
            let mut delta = Delta::default();
            delta.replace_addr(src, new_src);
            delta.replace16(u16::from_be_bytes([segment[0], segment[1]]), port);
            segment[..2].copy_from_slice(&port.to_be_bytes());
            // Two forms of zero are equal to a receiver, so the property is that it verifies.
            segment[16..18].copy_from_slice(&delta.apply(before).to_be_bytes());
            prop_assert_eq!(transport(new_src, dst, 6, &segment), 0);
        }

        #[test]
        fn partial_follows_the_address(a: u32, b: u32, c: u32, len in 0usize..2000) {
            let (src, dst, new) = (Addr::v4(a | 1), Addr::v4(b | 1), Addr::v4(c | 1));
            let mut delta = Delta::default();
            delta.replace_addr(src, new);
            let field = delta.apply_partial(fold(pseudo_header(src, dst, 6, len)));
            prop_assert_eq!(field, fold(pseudo_header(new, dst, 6, len)));
        }
    }
}
