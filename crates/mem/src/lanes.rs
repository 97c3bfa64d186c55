//! Comparing many small numbers at once.

/// Which of the sixteen bytes, little-endian in four words, are equal to `value`: bit `i` for byte `i`.
#[inline(always)]
pub fn equal(words: &[u32; 4], value: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{
            __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8,
        };
        // SAFETY: the words are the sixteen bytes that an unaligned load of 128 bits reads; SSE2 is part of the x86-64
        // baseline.
        unsafe {
            let bytes = _mm_loadu_si128(words.as_ptr().cast::<__m128i>());
            let same = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(value.cast_signed()));
            _mm_movemask_epi8(same).cast_unsigned()
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    one_by_one(words, value)
}

/// The same, as it is meant.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn one_by_one(words: &[u32; 4], value: u8) -> u32 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    let bits = bytes
        .enumerate()
        .map(|(i, byte)| u32::from(byte == value) << i);
    bits.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_its_bit() {
        for value in [0, 1, 0x7f, 0x80, u8::MAX] {
            for pattern in (0..=u16::MAX).step_by(257) {
                let byte = |i: usize| match pattern >> i & 1 {
                    1 => value,
                    _ => value ^ 1 << (i % 8),
                };
                let word = |j| u32::from_le_bytes(std::array::from_fn(|i| byte(4 * j + i)));
                let words = std::array::from_fn(word);
                assert_eq!(equal(&words, value), u32::from(pattern), "{value:#x}");
                assert_eq!(one_by_one(&words, value), u32::from(pattern), "{value:#x}");
            }
        }
    }
}
