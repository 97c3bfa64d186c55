//! Which sources groups tell apart from the rest of the world.

use std::net::IpAddr;

use crate::classify::intervals::{self, IntervalMap, Key};
use crate::classify::{Restriction, Restrictions, Span, merge};

/// The sources of all groups, but for those groups that have both ends of a family's addresses, alone or together with what
/// they are connected to: whoever writes that means everyone, or everyone but some, or what nobody has.
#[derive(Debug)]
pub(crate) struct Told {
    v4: IntervalMap<u32>,
    v6: IntervalMap<u128>,
}

impl Told {
    pub(crate) fn by(groups: &Restrictions) -> Self {
        Self {
            v4: told(&groups.source_v4),
            v6: told(&groups.source_v6),
        }
    }

    #[inline]
    pub(crate) fn has(&self, source: IpAddr) -> bool {
        let told = match source {
            IpAddr::V4(ip) => self.v4.get(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.get(ip.to_bits()),
        };
        told != 0
    }
}

fn told<K: Key>(groups: &[Restriction<K>]) -> IntervalMap<K> {
    let mut groups: Vec<&[Span<K>]> = groups
        .iter()
        .map(|group| &group.spans[..])
        .filter(|spans| !has_both_ends(spans))
        .collect();
    let mut spans = united(&groups);
    // Together they may mean everyone as well: those of them that the ends are made of.
    if has_both_ends(&spans)
        && let (Some(&low), Some(&high)) = (spans.first(), spans.last())
    {
        let is_of_end = |span: &Span<K>| span.0 <= low.1 || span.1 >= high.0;
        groups.retain(|spans| !spans.iter().any(is_of_end));
        spans = united(&groups);
    }
    let mut map = intervals::Builder::new();
    for (start, end) in spans {
        map.push(start, 1);
        if let Some(after) = end.next() {
            map.push(after, 0);
        }
    }
    map.finish()
}

fn united<K: Key>(groups: &[&[Span<K>]]) -> Vec<Span<K>> {
    let mut spans = groups.concat();
    merge(&mut spans);
    spans
}

/// Whether the first and the last of all values are in these spans, which are merged.
fn has_both_ends<K: Key>(spans: &[Span<K>]) -> bool {
    matches!(spans, [first, ..] if first.0 == K::MIN)
        && matches!(spans, [.., last] if last.1.next().is_none())
}
