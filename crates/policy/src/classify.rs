//! First match among up to 131,072 entries in seven dimensions, without scanning them.
//!
//! Entries are the rules of all groups in evaluation order, so that the answer to a packet is the
//! lowest entry that matches it. The scheme is the bit vector scheme of Lakshman and Stiliadis
//! ("High-speed policy-based packet forwarding using efficient multi-dimensional range
//! matching", SIGCOMM 1998) with the aggregation of Baboescu and Varghese ("Scalable packet
//! classification", SIGCOMM 2001), and two additions that keep its memory small:
//!
//! 1. In each dimension the values are cut into intervals within which the same entries match
//!    ([`intervals`]); one search per dimension finds the packet's interval.
//! 2. An interval stands for the set of entries that ask for it, a bitmap of three levels: 32 × 64
//!    × 64 entries, an upper bit saying that something below is set. Equal parts of different
//!    sets are stored once ([`sets`]).
//! 3. Entries that do not restrict a dimension are left out of all its sets and kept in one
//!    bitmap for the dimension, so that a set is as small as what is particular to its interval.
//! 4. The sets of all dimensions are intersected from the top, lowest entries first; what is
//!    empty at an upper level is never looked into. The first bit left is the answer.
//!
//! Sources are given per group and entries of a group are neighbours, so a group that does not
//! contain the packet's source costs nothing, whatever its rules.
//!
//! Bounds, with n entries: a search costs O(log n) comparisons at worst and about one where the
//! values are spread evenly; an intersection looks at those words of 64 entries on whose presence
//! all restricted dimensions agree, which are one or two for documents whose rules differ in what they ask
//! for, and never more than n / 64 (every dimension would have to match some rule in each block
//! of 64 while no rule matches in all). No scheme of linear memory does better on such documents:
//! they are set intersection. Building takes O(v log v + c · n / 64) for v values and c distinct
//! intervals; the memory of sets is bounded by [`sets::MAX_SET_WORDS`], beyond which the document is
//! refused instead of compiled.

use std::net::IpAddr;

use ipnet::IpNet;

pub(crate) mod intervals;
pub(crate) mod sets;

use intervals::{IntervalMap, Key};
pub(crate) use sets::TooComplex;
use sets::{Builder, Part, Sets};

/// Number of dimensions.
const DIMENSIONS: usize = 7;

/// A dimension of the match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dimension {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    IcmpType,
    IcmpCode,
}

const ALL: [Dimension; DIMENSIONS] = [
    Dimension::Source,
    Dimension::Destination,
    Dimension::Protocol,
    Dimension::SourcePort,
    Dimension::DestinationPort,
    Dimension::IcmpType,
    Dimension::IcmpCode,
];

/// Values of one dimension, from and to inclusive.
pub(crate) type Span<K> = (K, K);

/// What a run of neighbouring entries asks for. An absent list does not restrict its dimension;
/// an empty one matches nothing.
#[derive(Debug, Default)]
pub(crate) struct Restriction<K> {
    pub(crate) first_entry: u32,
    pub(crate) entries: u32,
    pub(crate) spans: Vec<Span<K>>,
}

/// Addresses as spans of both families.
#[derive(Debug, Default, Clone)]
pub(crate) struct AddressSpans {
    pub(crate) v4: Vec<Span<u32>>,
    pub(crate) v6: Vec<Span<u128>>,
}

impl AddressSpans {
    /// The union of networks and addresses, merged.
    pub(crate) fn new(cidrs: &[IpNet], ips: &[IpAddr]) -> Self {
        let mut spans = Self::default();
        for net in cidrs {
            match net {
                IpNet::V4(net) => spans
                    .v4
                    .push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => spans
                    .v6
                    .push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        for ip in ips {
            match ip {
                IpAddr::V4(ip) => spans.v4.push((ip.to_bits(), ip.to_bits())),
                IpAddr::V6(ip) => spans.v6.push((ip.to_bits(), ip.to_bits())),
            }
        }
        merge(&mut spans.v4);
        merge(&mut spans.v6);
        spans
    }

    /// Whether all of `other` is in here; both are merged.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        covers(&self.v4, &other.v4) && covers(&self.v6, &other.v6)
    }
}

/// Sorts spans and joins those that overlap or touch.
pub(crate) fn merge<K: Key>(spans: &mut Vec<Span<K>>) {
    spans.sort_unstable();
    spans.dedup_by(|next, kept| {
        let touches = match kept.1.next() {
            Some(after) => next.0 <= after,
            None => true,
        };
        if touches {
            kept.1 = kept.1.max(next.1);
        }
        touches
    });
}

/// Whether every span of `inner` lies in one of `outer`; both are merged.
pub(crate) fn covers<K: Key>(outer: &[Span<K>], inner: &[Span<K>]) -> bool {
    inner.iter().all(|(start, end)| {
        let after = outer.partition_point(|(s, _)| s <= start);
        after > 0 && outer[after - 1].1 >= *end
    })
}

/// Whether an address lies in one of the spans, which are merged.
pub(crate) fn covers_address(spans: &AddressSpans, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => covers(&spans.v4, &[(ip.to_bits(), ip.to_bits())]),
        IpAddr::V6(ip) => covers(&spans.v6, &[(ip.to_bits(), ip.to_bits())]),
    }
}

/// The restrictions of all entries, dimension by dimension.
#[derive(Debug, Default)]
pub(crate) struct Restrictions {
    pub(crate) source_v4: Vec<Restriction<u32>>,
    pub(crate) source_v6: Vec<Restriction<u128>>,
    pub(crate) destination_v4: Vec<Restriction<u32>>,
    pub(crate) destination_v6: Vec<Restriction<u128>>,
    pub(crate) protocol: Vec<Restriction<u16>>,
    pub(crate) source_port: Vec<Restriction<u16>>,
    pub(crate) destination_port: Vec<Restriction<u16>>,
    pub(crate) icmp_type: Vec<Restriction<u16>>,
    pub(crate) icmp_code: Vec<Restriction<u16>>,
}

/// The values of one packet. ICMP type and code are [`NO_ICMP`] when it has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) icmp_type: u16,
    pub(crate) icmp_code: u16,
}

/// Stands for the ICMP type and code of a packet that has none.
pub(crate) const NO_ICMP: u16 = 256;

/// The set that a packet's value selects in each dimension.
pub(crate) type Selected = [u32; DIMENSIONS];

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Classifier {
    sets: Sets,
    /// Entries that do not restrict a dimension: all dimensions of a word side by side, since
    /// they are read together.
    open_words: Vec<[u64; DIMENSIONS]>,
    open_blocks: Vec<[u64; DIMENSIONS]>,
    open_root: [u32; DIMENSIONS],
    /// The dimensions that some entry restricts; the others are not looked at.
    restricted: Vec<Dimension>,
    source_v4: IntervalMap<u32>,
    source_v6: IntervalMap<u128>,
    destination_v4: IntervalMap<u32>,
    destination_v6: IntervalMap<u128>,
    /// Of those that are not addresses, the restricted ones.
    narrow: Vec<(Dimension, IntervalMap<u16>)>,
}

impl Classifier {
    /// Builds the classifier of `entries` entries.
    pub(crate) fn build(entries: usize, wanted: Restrictions) -> Result<Self, TooComplex> {
        let words = entries.div_ceil(64);
        let mut full = vec![!0_u64; words];
        if let Some(last) = full.last_mut()
            && !entries.is_multiple_of(64)
        {
            *last = (1 << (entries % 64)) - 1;
        }
        let mut open: Vec<[u64; DIMENSIONS]> =
            full.iter().map(|bits| [*bits; DIMENSIONS]).collect();
        close(&mut open, Dimension::Source, &wanted.source_v4);
        close(&mut open, Dimension::Source, &wanted.source_v6);
        close(&mut open, Dimension::Destination, &wanted.destination_v4);
        close(&mut open, Dimension::Destination, &wanted.destination_v6);
        close(&mut open, Dimension::Protocol, &wanted.protocol);
        close(&mut open, Dimension::SourcePort, &wanted.source_port);
        close(
            &mut open,
            Dimension::DestinationPort,
            &wanted.destination_port,
        );
        close(&mut open, Dimension::IcmpType, &wanted.icmp_type);
        close(&mut open, Dimension::IcmpCode, &wanted.icmp_code);

        let mut open_blocks = vec![[0; DIMENSIONS]; words.div_ceil(64)];
        let mut open_root = [0; DIMENSIONS];
        for (word, bits) in open.iter().enumerate() {
            for dimension in 0..DIMENSIONS {
                if bits[dimension] != 0 {
                    open_blocks[word / 64][dimension] |= 1 << (word % 64);
                    open_root[dimension] |= 1 << (word / 64);
                }
            }
        }

        let is_restricted = |dimension: &Dimension| {
            let mut both = open.iter().zip(&full);
            both.any(|(open, full)| open[*dimension as usize] != *full)
        };
        let mut restricted = ALL.to_vec();
        restricted.retain(is_restricted);
        if restricted.is_empty() {
            // So that there is something to be intersected.
            restricted.push(Dimension::Source);
        }
        let mut builder = Builder::new(entries)?;
        let mut narrow = Vec::new();
        for (dimension, wanted) in [
            (Dimension::Protocol, wanted.protocol),
            (Dimension::SourcePort, wanted.source_port),
            (Dimension::DestinationPort, wanted.destination_port),
            (Dimension::IcmpType, wanted.icmp_type),
            (Dimension::IcmpCode, wanted.icmp_code),
        ] {
            if restricted.contains(&dimension) {
                narrow.push((dimension, sweep(wanted, &mut builder)?));
            }
        }
        Ok(Self {
            source_v4: sweep(wanted.source_v4, &mut builder)?,
            source_v6: sweep(wanted.source_v6, &mut builder)?,
            destination_v4: sweep(wanted.destination_v4, &mut builder)?,
            destination_v6: sweep(wanted.destination_v6, &mut builder)?,
            narrow,
            restricted,
            sets: builder.finish(),
            open_words: open,
            open_blocks,
            open_root,
        })
    }

    /// The set of entries that contain the source, as far as they restrict it.
    pub(crate) fn select_source(&self, source: IpAddr) -> u32 {
        match source {
            IpAddr::V4(ip) => self.source_v4.get(ip.to_bits()),
            IpAddr::V6(ip) => self.source_v6.get(ip.to_bits()),
        }
    }

    /// The lowest entry of a set.
    pub(crate) fn lowest(&self, set: u32) -> Option<u32> {
        let blocks = self.sets.blocks(set);
        (blocks != 0).then(|| {
            let block = blocks.trailing_zeros();
            let part = self.sets.part(set, block);
            let word = self.sets.words(part).trailing_zeros();
            (block * 64 + word) * 64 + self.sets.word(part, word).trailing_zeros()
        })
    }

    /// One search for each dimension that is restricted.
    #[inline]
    pub(crate) fn select(&self, point: &Point) -> Selected {
        let mut selected = Selected::default();
        selected[Dimension::Source as usize] = self.select_source(point.source);
        selected[Dimension::Destination as usize] = match point.destination {
            IpAddr::V4(ip) => self.destination_v4.get(ip.to_bits()),
            IpAddr::V6(ip) => self.destination_v6.get(ip.to_bits()),
        };
        for (dimension, sets) in &self.narrow {
            let value = match dimension {
                Dimension::Protocol => point.protocol.into(),
                Dimension::SourcePort => point.source_port,
                Dimension::DestinationPort => point.destination_port,
                Dimension::IcmpType => point.icmp_type,
                Dimension::IcmpCode => point.icmp_code,
                // These two are above.
                Dimension::Source | Dimension::Destination => continue,
            };
            selected[*dimension as usize] = sets.get(value);
        }
        selected
    }

    /// The lowest entry that is in all selected sets.
    #[inline]
    pub(crate) fn first(&self, selected: &Selected) -> Option<u32> {
        let mut blocks = u32::MAX;
        for dimension in &self.restricted {
            let at = *dimension as usize;
            blocks &= self.sets.blocks(selected[at]) | self.open_root[at];
        }
        while blocks != 0 {
            let block = blocks.trailing_zeros();
            blocks &= blocks - 1;
            let open = &self.open_blocks[block as usize];
            let mut parts = [Part::default(); DIMENSIONS];
            let mut words = u64::MAX;
            for dimension in &self.restricted {
                let at = *dimension as usize;
                parts[at] = self.sets.part(selected[at], block);
                words &= self.sets.words(parts[at]) | open[at];
            }
            while words != 0 {
                let word = words.trailing_zeros();
                words &= words - 1;
                let open = &self.open_words[(block * 64 + word) as usize];
                let mut bits = u64::MAX;
                for dimension in &self.restricted {
                    let at = *dimension as usize;
                    bits &= self.sets.word(parts[at], word) | open[at];
                }
                if bits != 0 {
                    return Some((block * 64 + word) * 64 + bits.trailing_zeros());
                }
            }
        }
        None
    }

    /// Whether an entry is in the selected set of one dimension.
    pub(crate) fn holds(&self, selected: &Selected, dimension: Dimension, entry: u32) -> bool {
        let (word, bit) = (entry / 64, entry % 64);
        let open = self.open_words[word as usize][dimension as usize];
        let part = self.sets.part(selected[dimension as usize], word / 64);
        let bits = self.sets.word(part, word % 64) | open;
        bits >> bit & 1 == 1
    }
}

/// Takes restricted entries out of those that do not restrict the dimension.
fn close<K>(open: &mut [[u64; DIMENSIONS]], dimension: Dimension, wanted: &[Restriction<K>]) {
    for restriction in wanted {
        sets::for_each_word(
            restriction.first_entry,
            restriction.entries,
            |word, mask| {
                open[word][dimension as usize] &= !mask;
            },
        );
    }
}

/// Walks the values of a dimension upwards and notes the set at each place where it changes.
fn sweep<K: Key>(
    wanted: Vec<Restriction<K>>,
    builder: &mut Builder,
) -> Result<IntervalMap<K>, TooComplex> {
    let mut changes: Vec<(K, u32, bool)> =
        Vec::with_capacity(wanted.iter().map(|r| 2 * r.spans.len()).sum());
    for (owner, restriction) in (0..).zip(&wanted) {
        for (start, end) in &restriction.spans {
            changes.push((*start, owner, true));
            if let Some(after) = end.next() {
                changes.push((after, owner, false));
            }
        }
    }
    changes.sort_unstable_by_key(|(at, _, _)| *at);
    let mut map = intervals::Builder::new();
    for group in changes.chunk_by(|a, b| a.0 == b.0) {
        for (_, owner, on) in group {
            let restriction = &wanted[*owner as usize];
            builder.change(restriction.first_entry, restriction.entries, *on);
        }
        map.push(group[0].0, builder.commit()?);
    }
    builder.clear();
    Ok(map.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn merging_joins_what_touches() {
        #[track_caller]
        fn check(spans: &[Span<u16>], want: &[Span<u16>]) {
            let mut spans = spans.to_vec();
            merge(&mut spans);
            assert_eq!(spans, want);
        }
        check(&[], &[]);
        check(&[(5, 9), (1, 4)], &[(1, 9)]);
        check(&[(1, 9), (2, 3)], &[(1, 9)]);
        check(&[(1, 3), (5, 9)], &[(1, 3), (5, 9)]);
        check(&[(0, u16::MAX), (7, 7)], &[(0, u16::MAX)]);
    }

    #[test]
    fn covering() {
        assert!(covers::<u16>(&[(1, 9)], &[(1, 1), (9, 9)]));
        assert!(!covers::<u16>(&[(1, 4), (6, 9)], &[(4, 6)]));
        assert!(!covers::<u16>(&[], &[(0, 0)]));
        assert!(covers::<u16>(&[], &[]));
    }

    proptest! {
        /// Thousands of entries in two dimensions, against asking each of them.
        #[test]
        fn the_first_match_is_the_first(
            entries in prop::collection::vec(
                (prop::option::of((0_u32..40, 0_u32..40)), prop::option::of((0_u16..9, 0_u16..9))),
                1..700,
            ),
            copies in 1_usize..20,
            destination in 0_u32..45,
            port in 0_u16..10,
        ) {
            // Copies that never match in front push the answer into later blocks.
            let dead = entries.len() * (copies - 1);
            let mut wanted = Restrictions::default();
            for i in 0..dead as u32 {
                wanted.destination_v4.push(Restriction {
                    first_entry: i,
                    entries: 1,
                    spans: vec![(100, 200)],
                });
            }
            for (i, (d, p)) in (dead as u32..).zip(&entries) {
                if let Some((a, b)) = d {
                    let spans = vec![(*a.min(b), *a.max(b))];
                    wanted.destination_v4.push(Restriction { first_entry: i, entries: 1, spans });
                }
                if let Some((a, b)) = p {
                    let spans = vec![(*a.min(b), *a.max(b))];
                    wanted.destination_port.push(Restriction { first_entry: i, entries: 1, spans });
                }
            }
            let classifier = Classifier::build(dead + entries.len(), wanted).unwrap();
            let selected = classifier.select(&Point {
                source: IpAddr::V4(0.into()),
                destination: IpAddr::V4(destination.into()),
                protocol: 6,
                source_port: 0,
                destination_port: port,
                icmp_type: NO_ICMP,
                icmp_code: NO_ICMP,
            });
            let inside = |span: &Option<(u32, u32)>, v: u32| {
                span.is_none_or(|(a, b)| (a.min(b)..=a.max(b)).contains(&v))
            };
            let want = entries.iter().position(|(d, p)| {
                inside(d, destination)
                    && inside(&p.map(|(a, b)| (a.into(), b.into())), port.into())
            });
            prop_assert_eq!(
                classifier.first(&selected),
                want.map(|i| (i + dead) as u32)
            );
        }
    }
}
