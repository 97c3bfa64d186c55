//! How much one client may ask.
//!
//! Each client has a bucket that fills steadily. Buckets stand in a table of fixed size, four to a set
//! chosen by a keyed hash of the address; a new client takes the one of its set that is fullest, whose
//! client has been quiet for longest. So memory is fixed whoever sends, and forgetting a client only
//! ever gives it more.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::RandomState;

const WAYS: usize = 4;

/// Buckets of clients. Times are milliseconds on any clock that does not go backwards.
#[derive(Debug)]
pub struct Limiter {
    hasher: RandomState,
    sets: Vec<[Bucket; WAYS]>,
    per_second: u32,
    burst: u32,
}

/// Times and amounts are in thousandths of a query.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Tells clients of one set apart; 0 if there is none.
    tag: u64,
    /// The bucket was full, or will be, at this time.
    full_at_us: u64,
}

impl Limiter {
    /// For `clients` clients at a time, each of which may ask `burst` at once and `per_second` steadily.
    /// With 0 a second there is no limit.
    #[must_use]
    pub fn new(clients: usize, per_second: u32, burst: u32) -> Self {
        let sets = match per_second {
            0 => 0,
            _ => clients.div_ceil(WAYS).next_power_of_two(),
        };
        Self {
            hasher: RandomState::default(),
            sets: vec![[Bucket::default(); WAYS]; sets],
            per_second,
            burst: burst.max(1),
        }
    }

    /// Takes one query out of the client's bucket, if there is one in it.
    pub fn take(&mut self, client: IpAddr, now_ms: u64) -> bool {
        if self.sets.is_empty() {
            return true;
        }
        let hash = self.hasher.hash_one(prefix(client));
        let set = (hash >> 32) as usize & (self.sets.len() - 1);
        let tag = hash | 1;
        let now_us = now_ms * 1_000;
        let each_us = 1_000_000 / u64::from(self.per_second).min(1_000_000);
        let buckets = &mut self.sets[set];
        let at = match buckets.iter().position(|bucket| bucket.tag == tag) {
            Some(at) => at,
            None => {
                let at = (0..WAYS)
                    .min_by_key(|at| buckets[*at].full_at_us)
                    .unwrap_or_default();
                buckets[at] = Bucket { tag, full_at_us: 0 };
                at
            }
        };
        let bucket = &mut buckets[at];
        let full_at = bucket.full_at_us.max(now_us) + each_us;
        let fits = full_at <= now_us + each_us * u64::from(self.burst);
        if fits {
            bucket.full_at_us = full_at;
        }
        fits
    }
}

/// Who holds how much of something that there is only so much of. A client may hold as much as a part of
/// what is free, so that the more is held, the less each one may: whoever comes last still finds some,
/// and nobody has to be told apart from an attacker (dynamic thresholds, Choudhury and Hahne 1998).
#[derive(Debug)]
pub struct Shares {
    held: HashMap<u64, usize, RandomState>,
    free: usize,
    part: usize,
}

impl Shares {
    /// There are `total`; one client may hold a `part`th of what is free, and one in any case.
    #[must_use]
    pub fn new(total: usize, part: usize) -> Self {
        Self {
            held: HashMap::default(),
            free: total,
            part: part.max(1),
        }
    }

    /// Takes one, to be [given](Self::give) back, unless the client holds enough or there is none.
    pub fn take(&mut self, client: IpAddr) -> bool {
        let client = prefix(client);
        let held = self.held.get(&client).copied().unwrap_or(0);
        let may = self.free > 0 && held < (self.free / self.part).max(1);
        if may {
            self.held.insert(client, held + 1);
            self.free -= 1;
        }
        may
    }

    /// Gives one back.
    pub fn give(&mut self, client: IpAddr) {
        let client = prefix(client);
        let Some(held) = self.held.get_mut(&client) else {
            return;
        };
        *held -= 1;
        self.free += 1;
        if *held == 0 {
            self.held.remove(&client);
        }
    }
}

/// One client may have all of a /64 (RFC 6177).
fn prefix(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(i: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + i).into()
    }

    #[test]
    fn a_burst_and_then_a_rate() {
        let mut limiter = Limiter::new(16, 10, 5);
        let granted =
            |limiter: &mut Limiter, now| (0..100).filter(|_| limiter.take(client(1), now)).count();
        assert_eq!(granted(&mut limiter, 1_000), 5);
        assert_eq!(granted(&mut limiter, 1_000), 0);
        assert_eq!(granted(&mut limiter, 1_099), 0);
        assert_eq!(granted(&mut limiter, 1_100), 1);
        assert_eq!(granted(&mut limiter, 1_400), 3);
        assert_eq!(granted(&mut limiter, 60_000), 5);
        assert!(limiter.take(client(2), 60_000));
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let mut limiter = Limiter::new(16, 1, 2);
        assert!(limiter.take("2001:db8::1".parse().unwrap(), 0));
        assert!(limiter.take("2001:db8::2".parse().unwrap(), 0));
        assert!(!limiter.take("2001:db8::3".parse().unwrap(), 0));
        assert!(limiter.take("2001:db8:0:1::3".parse().unwrap(), 0));
    }

    #[test]
    fn the_more_is_held_the_less_one_may_hold() {
        let mut shares = Shares::new(8_192, 8);
        let all = |shares: &mut Shares, i| (0..10_000).filter(|_| shares.take(client(i))).count();
        assert_eq!(all(&mut shares, 1), 910);
        assert_eq!(all(&mut shares, 2), 809);
        for i in 3..40 {
            assert!(all(&mut shares, i) > 0);
        }
        for _ in 0..910 {
            shares.give(client(1));
        }
        assert!(all(&mut shares, 1) > 50);
    }

    /// As long as what is held comes back in time, all that ask for as much as they can get have the same in
    /// the end, and leave something.
    #[test]
    fn those_who_take_all_they_can_get_become_equal() {
        let mut shares = Shares::new(8_192, 8);
        let mut held = [0_u32; 100];
        for round in 0..200 {
            for (i, held) in held.iter_mut().enumerate() {
                for _ in 0..*held / 4 {
                    shares.give(client(i as u32));
                    *held -= 1;
                }
                while round > i && shares.take(client(i as u32)) {
                    *held += 1;
                }
            }
        }
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        assert!(*least * 2 > *most, "{least} to {most}");
        assert!(shares.free > 200, "{}", shares.free);
    }

    #[test]
    fn all_that_is_taken_comes_back() {
        let mut shares = Shares::new(10, 1_000);
        let taken: Vec<u32> = (0..20).filter(|i| shares.take(client(*i))).collect();
        assert_eq!(taken, (0..10).collect::<Vec<_>>());
        assert!(!shares.take(client(3)));
        for i in taken {
            shares.give(client(i));
            shares.give(client(99));
        }
        assert!(shares.held.is_empty());
        assert_eq!(shares.free, 10);
    }

    #[test]
    fn no_limit() {
        let mut limiter = Limiter::new(16, 0, 0);
        assert!((0..10_000).all(|_| limiter.take(client(1), 0)));
    }

    /// Many others do not make a client's bucket forget what it has used, as long as they are quieter.
    #[test]
    fn many_clients() {
        let mut limiter = Limiter::new(4_096, 100, 50);
        assert_eq!((0..100).filter(|_| limiter.take(client(0), 0)).count(), 50);
        for i in 1..100_000 {
            assert!(limiter.take(client(i), 1) || i > 0);
        }
        assert!((0..10).filter(|_| limiter.take(client(0), 2)).count() <= 1);
    }
}
