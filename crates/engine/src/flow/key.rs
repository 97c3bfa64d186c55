//! What identifies a packet's flow in one direction, and its hash.

use crate::address::Addr;

/// The five-tuple of a packet as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) proto: u8,
    /// The network that the packet is in, by number; 0 outside of tunnels.
    pub(crate) tunnel: u16,
}

impl Key {
    /// The key of a packet that goes the other way.
    pub(crate) fn reversed(self) -> Key {
        Key {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            proto: self.proto,
            tunnel: self.tunnel,
        }
    }
}

/// A keyed hash over [`Key`]: three folded 64×64→128 multiplications, as in wyhash.
///
/// It is no cryptographic function. It keeps a stranger who does not know the seed from aiming
/// flows at one bucket, which is what a flow table needs, at about 3 ns.
#[derive(Clone, Debug)]
pub(crate) struct KeyHasher {
    k: [u64; 6],
}

impl KeyHasher {
    pub(crate) fn new(seed: u64) -> KeyHasher {
        let mut random = Random::new(seed);
        // Odd, so that no factor is ever zero for lack of key bits alone.
        KeyHasher {
            k: std::array::from_fn(|_| random.next() | 1),
        }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        let k = &self.k;
        let (sh, sl) = ((key.src.0 >> 64) as u64, key.src.0 as u64);
        let (dh, dl) = ((key.dst.0 >> 64) as u64, key.dst.0 as u64);
        let ports = u64::from(key.tunnel) << 48
            | u64::from(key.src_port) << 32
            | u64::from(key.dst_port) << 16
            | u64::from(key.proto);
        let a = mix(sl ^ k[0], sh ^ ports ^ k[1]);
        let b = mix(dl ^ k[2], dh ^ ports.rotate_left(24) ^ k[3]);
        mix(a ^ k[4], b ^ k[5])
    }

    #[inline]
    pub(crate) fn hash_address(&self, a: Addr) -> u64 {
        mix(a.0 as u64 ^ self.k[0], (a.0 >> 64) as u64 ^ self.k[1])
    }
}

#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
}

/// SplitMix64 (Steele, Lea, Flood 2014): seeds, and choices that an outsider should not guess.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts_and_the_seed_too() {
        let key = Key {
            src: Addr::v4(1),
            dst: Addr::v4(2),
            src_port: 3,
            dst_port: 4,
            proto: 6,
            tunnel: 0,
        };
        let hasher = KeyHasher::new(1);
        let base = hasher.hash(&key);
        for other in [
            Key {
                src: Addr::v4(9),
                ..key
            },
            Key {
                dst: Addr::v4(9),
                ..key
            },
            Key { src_port: 9, ..key },
            Key { dst_port: 9, ..key },
            Key { proto: 17, ..key },
            Key { tunnel: 9, ..key },
            key.reversed(),
            Key {
                src: Addr(1),
                ..key
            },
        ] {
            assert_ne!(hasher.hash(&other), base, "{other:?}");
        }
        assert_ne!(KeyHasher::new(2).hash(&key), base);
    }

    #[test]
    fn ports_spread_over_buckets() {
        let hasher = KeyHasher::new(7);
        let mut buckets = vec![0u32; 1024];
        for port in 0..=u16::MAX {
            let key = Key {
                src: Addr::v4(1),
                dst: Addr::v4(2),
                src_port: port,
                dst_port: 443,
                proto: 6,
                tunnel: 0,
            };
            buckets[(hasher.hash(&key) >> 54) as usize] += 1;
        }
        // 64 expected in each; a spread of ten standard deviations would be 80.
        let (min, max) = (buckets.iter().min().unwrap(), buckets.iter().max().unwrap());
        assert!(*min > 20 && *max < 124, "{min}..{max}");
    }
}
