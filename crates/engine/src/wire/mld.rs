//! Multicast listener discovery (RFC 3810; version 1: RFC 2710): which groups we listen to. Switches that snoop lead
//! a group to nobody but those who say so, and whoever asks for one of our addresses asks a group.

use std::time::Duration;

use super::{get, get16, icmp, put, put16};
use crate::address::Addr;

pub(crate) const QUERY: u8 = 130;
const REPORT_V1: u8 = 131;
const REPORT: u8 = 143;

/// Where reports go (RFC 3810 §5.2.14).
pub(crate) const ROUTERS: Addr = Addr(0xff02 << 112 | 0x16);

/// Bytes of a query or a report of version 1, and of a query of version 2 at least.
pub(crate) const LEN_V1: usize = 24;
const LEN_V2: usize = 28;
const RECORD_LEN: usize = 20;
/// Groups of one report: as many as the smallest link of IPv6 carries.
pub(crate) const RECORDS_MAX: usize = 61;

/// Hop-by-hop options in front of a message: a router alert (RFC 2711) and padding.
pub(crate) const ROUTER_ALERT: [u8; 8] = [super::proto::ICMP6, 0, 5, 2, 0, 0, 1, 0];

/// Who asks which groups somebody listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// The only group that is asked about; none: all.
    pub(crate) group: Option<Addr>,
    /// Answers are to come within this time, at random.
    pub(crate) within: Duration,
    pub(crate) version: Version,
}

/// The version that the routers of a link speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    #[default]
    V2,
}

/// What a report says of its groups (RFC 3810 §5.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// We listen, to whatever source.
    Listening = 2,
    /// We do from now on.
    Begun = 4,
}

impl Query {
    /// Parses a query whose checksum has been verified; none for one that is to be ignored (RFC 3810 §8.1).
    pub(crate) fn parse(b: &[u8]) -> Option<Query> {
        let version = match b.len() {
            LEN_V1 => Version::V1,
            LEN_V2.. => Version::V2,
            _ => return None,
        };
        let code = get16(b, 4);
        let within_ms = match (version, code) {
            // A number of four bits of exponent and twelve of mantissa (RFC 3810 §5.1.3).
            (Version::V2, 0x8000..) => u64::from(code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3),
            _ => u64::from(code),
        };
        let group = Addr::v6_bytes(get(b, 8));
        if group.0 != 0 && !group.is_multicast() {
            return None;
        }
        Some(Query {
            group: (group.0 != 0).then_some(group),
            within: Duration::from_millis(within_ms),
            version,
        })
    }
}

/// Bytes of a report about so many groups.
pub(crate) fn report_len(groups: usize) -> usize {
    icmp::LEN + groups * RECORD_LEN
}

/// Writes a report without its checksum; `b` is zero, and [`report_len`] bytes long.
pub(crate) fn emit_report(b: &mut [u8], record: Record, groups: impl Iterator<Item = Addr>) {
    let (header, records) = b.split_at_mut(icmp::LEN);
    header[0] = REPORT;
    put16(header, 6, (records.len() / RECORD_LEN) as u16);
    for (b, group) in records.chunks_exact_mut(RECORD_LEN).zip(groups) {
        b[0] = record as u8;
        put(b, 4, group.octets16());
    }
}

/// Writes a report of version 1 without its checksum; `b` is zero, and [`LEN_V1`] bytes long.
pub(crate) fn emit_report_v1(b: &mut [u8], group: Addr) {
    b[0] = REPORT_V1;
    put(b, icmp::LEN, group.octets16());
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Addr = Addr(0xff02 << 112 | 0x0001_ff12_3456);

    fn query(len: usize, code: u16, group: Addr) -> Option<Query> {
        let mut b = vec![0; len];
        b[0] = QUERY;
        put16(&mut b, 4, code);
        put(&mut b, 8, group.octets16());
        Query::parse(&b)
    }

    #[test]
    fn queries_of_both_versions() {
        let within = |len, code| query(len, code, GROUP).map(|q| (q.version, q.within.as_millis()));
        assert_eq!(within(24, 1000), Some((Version::V1, 1000)));
        assert_eq!(within(24, 0xffff), Some((Version::V1, 65_535)));
        assert_eq!(within(28, 1000), Some((Version::V2, 1000)));
        // RFC 3810 §5.1.3.
        assert_eq!(within(28, 0x7fff), Some((Version::V2, 32_767)));
        assert_eq!(within(28, 0x8000), Some((Version::V2, 0x1000 << 3)));
        assert_eq!(within(44, 0xffff), Some((Version::V2, 0x1fff << 10)));
        assert_eq!(query(28, 0, GROUP).and_then(|q| q.group), Some(GROUP));
        assert_eq!(query(28, 0, Addr(0)).map(|q| q.group), Some(None));
    }

    #[test]
    fn what_is_no_query_is_ignored() {
        for len in [0, 4, 23, 25, 27] {
            assert_eq!(Query::parse(&vec![0; len]), None, "{len}");
        }
        assert_eq!(query(28, 0, Addr(0x2001_0db8 << 96 | 1)), None);
    }

    #[test]
    fn a_report_lists_its_groups() {
        let mut b = vec![0; report_len(2)];
        emit_report(&mut b, Record::Begun, [GROUP, ROUTERS].into_iter());
        assert_eq!(b[..8], [143, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(b[8..12], [4, 0, 0, 0]);
        assert_eq!(b[12..28], GROUP.octets16());
        assert_eq!(b[28..32], [4, 0, 0, 0]);
        assert_eq!(b[32..], ROUTERS.octets16());
    }
}
