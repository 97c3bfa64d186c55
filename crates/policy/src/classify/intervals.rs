//! A map from the values of one dimension to sets, by the intervals between which they change.
//!
//! The starts of the intervals are sorted. A table of evenly spaced landmarks says between which
//! of them to search, so that where starts are spread evenly a lookup is a step or two, and where
//! they are bunched together a binary search of the bunch.

/// A value of a dimension.
pub(crate) trait Key: Copy + Ord {
    const MIN: Self;
    /// The next value, or none after the last.
    fn next(self) -> Option<Self>;
    /// `(self - base) >> shift`, which fits in 64 bits as the caller has chosen the shift;
    /// `base <= self`.
    fn steps_from(self, base: Self, shift: u32) -> u64;
    /// Bits needed to write `self - base`; `base <= self`.
    fn width_from(self, base: Self) -> u32;
}

macro_rules! key {
    ($($t:ty),*) => {$(
        impl Key for $t {
            const MIN: Self = <$t>::MIN;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            #[inline]
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_lossless,
                trivial_numeric_casts,
                reason = "one body for three widths; what the shift leaves is small"
            )]
            fn steps_from(self, base: Self, shift: u32) -> u64 {
                ((self - base).checked_shr(shift).unwrap_or(0)).min(u64::MAX as $t) as u64
            }

            fn width_from(self, base: Self) -> u32 {
                <$t>::BITS - (self - base).leading_zeros()
            }
        }
    )*};
}
key!(u16, u32, u128);

/// Most landmarks of a map.
const MAX_LANDMARKS: usize = 1 << 16;

/// See the module's description.
#[derive(Debug, Clone)]
pub(crate) struct IntervalMap<K> {
    /// `starts[0]` is the lowest value of all.
    starts: Vec<K>,
    sets: Vec<u32>,
    /// `landmarks[i]` is the first start that is `i` steps or more above the base.
    landmarks: Vec<u32>,
    base: K,
    shift: u32,
}

impl<K: Key> IntervalMap<K> {
    /// The set of the interval that contains `value`.
    #[inline]
    pub(crate) fn get(&self, value: K) -> u32 {
        if value < self.base || self.starts.len() == 1 {
            return self.sets[0];
        }
        let step = value.steps_from(self.base, self.shift);
        let last = self.landmarks.len() - 2;
        if step > last as u64 {
            return self.sets[self.sets.len() - 1];
        }
        let from = self.landmarks[step as usize] as usize;
        let to = self.landmarks[step as usize + 1] as usize;
        let after = from + self.starts[from..to].partition_point(|start| *start <= value);
        self.sets[after - 1]
    }
}

/// Takes intervals in ascending order.
pub(crate) struct Builder<K> {
    starts: Vec<K>,
    sets: Vec<u32>,
}

impl<K: Key> Builder<K> {
    /// Everything maps to the empty set, 0, until told otherwise.
    pub(crate) fn new() -> Self {
        Self {
            starts: vec![K::MIN],
            sets: vec![0],
        }
    }

    /// From `start`, which is above all before it, the set is `set`.
    pub(crate) fn push(&mut self, start: K, set: u32) {
        let last = self.sets.len() - 1;
        if start == K::MIN {
            self.sets[last] = set;
        } else if self.sets[last] != set {
            debug_assert!(self.starts[last] < start);
            self.starts.push(start);
            self.sets.push(set);
        }
    }

    pub(crate) fn finish(mut self) -> IntervalMap<K> {
        self.starts.shrink_to_fit();
        self.sets.shrink_to_fit();
        let (first, last) = match self.starts.get(1) {
            Some(first) => (*first, self.starts[self.starts.len() - 1]),
            None => (K::MIN, K::MIN),
        };
        let wanted = self.starts.len().next_power_of_two().min(MAX_LANDMARKS);
        let shift = last.width_from(first).saturating_sub(wanted.ilog2());
        let steps = last.steps_from(first, shift) as usize + 1;
        let mut landmarks = Vec::with_capacity(steps + 1);
        let mut at = 1.min(self.starts.len() - 1);
        for step in 0..steps {
            while at < self.starts.len() && self.starts[at].steps_from(first, shift) < step as u64 {
                at += 1;
            }
            landmarks.push(at as u32);
        }
        landmarks.push(self.starts.len() as u32);
        IntervalMap {
            starts: self.starts,
            sets: self.sets,
            landmarks,
            base: first,
            shift,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check<K: Key + std::fmt::Debug>(points: &BTreeMap<K, u32>, asked: &[K]) {
        let mut builder = Builder::new();
        for (start, set) in points {
            builder.push(*start, *set);
        }
        let map = builder.finish();
        for value in asked.iter().chain(points.keys()) {
            let want = points
                .range(..=*value)
                .next_back()
                .map_or(0, |(_, set)| *set);
            assert_eq!(map.get(*value), want, "{value:?} in {map:?}");
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        check(&BTreeMap::from([]), &[0_u32, 1, u32::MAX]);
        check(&BTreeMap::from([(0, 7)]), &[0_u32, 1, u32::MAX]);
        check(
            &BTreeMap::from([(u128::MAX, 7)]),
            &[0, 1, u128::MAX - 1, u128::MAX],
        );
        check(
            &BTreeMap::from([(0, 1), (1, 2), (u128::MAX, 3)]),
            &[0, 1, 2, u128::MAX],
        );
        check(
            &BTreeMap::from([(0_u16, 1), (65535, 3)]),
            &[0, 1, 65534, 65535],
        );
    }

    proptest! {
        #[test]
        fn wide_values(
            points in prop::collection::btree_map(any::<u128>(), 0_u32..4, 0..200),
            asked in prop::collection::vec(any::<u128>(), 20),
        ) {
            check(&points, &asked);
        }

        #[test]
        fn bunched_values(
            points in prop::collection::btree_map(
                (0_u32..3, 0_u32..300).prop_map(|(far, near)| far * 0x4000_0000 + near), 0_u32..4, 0..200,
            ),
            asked in prop::collection::vec(
                (0_u32..4, 0_u32..400).prop_map(|(far, near)| far.wrapping_mul(0x4000_0000) + near), 20,
            ),
        ) {
            check(&points, &asked);
        }

        #[test]
        fn ports(
            points in prop::collection::btree_map(any::<u16>(), 0_u32..4, 0..300),
            asked in prop::collection::vec(any::<u16>(), 20),
        ) {
            check(&points, &asked);
        }
    }
}
