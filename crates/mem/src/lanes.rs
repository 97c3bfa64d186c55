//! Comparing many small numbers at once.

/// Which of the words are equal to `value`: bit `i` for word `i`.
#[inline(always)]
pub fn equal(words: &[u16; 16], value: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{
            __m128i, _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16,
            _mm_set1_epi16,
        };
        let (low, high) = words.split_at(8);
        // SAFETY: both halves are eight words, which is what an unaligned load of 128 bits reads; SSE2 is part of the
        // x86-64 baseline.
        unsafe {
            let value = _mm_set1_epi16(value.cast_signed());
            let low = _mm_cmpeq_epi16(_mm_loadu_si128(low.as_ptr().cast::<__m128i>()), value);
            let high = _mm_cmpeq_epi16(_mm_loadu_si128(high.as_ptr().cast::<__m128i>()), value);
            _mm_movemask_epi8(_mm_packs_epi16(low, high)).cast_unsigned()
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    one_by_one(words, value)
}

/// The same, as it is meant.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn one_by_one(words: &[u16; 16], value: u16) -> u32 {
    let bits = words
        .iter()
        .enumerate()
        .map(|(i, word)| u32::from(*word == value) << i);
    bits.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_its_bit() {
        for value in [0, 1, 0x7fff, 0x8000, u16::MAX] {
            for pattern in (0..=u16::MAX).step_by(257) {
                let words = std::array::from_fn(|i| match pattern >> i & 1 {
                    1 => value,
                    _ => value ^ 1 << i,
                });
                assert_eq!(equal(&words, value), u32::from(pattern), "{value:#x}");
                assert_eq!(one_by_one(&words, value), u32::from(pattern), "{value:#x}");
            }
        }
    }
}
