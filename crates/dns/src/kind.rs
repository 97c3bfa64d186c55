//! Types of records, and which of them may be asked for.

use std::fmt;
use std::str::FromStr;

/// A type of records (RFC 1035 section 3.2.2 and later ones), by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Another name for this one.
    pub const CNAME: Self = Self(5);
    /// Start of a zone of authority.
    pub const SOA: Self = Self(6);
    /// A name for an address.
    pub const PTR: Self = Self(12);
    /// Host information; what is answered to ANY (RFC 8482).
    pub const HINFO: Self = Self(13);
    /// Mail exchange.
    pub const MX: Self = Self(15);
    /// Text.
    pub const TXT: Self = Self(16);
    /// IPv6 address (RFC 3596).
    pub const AAAA: Self = Self(28);
    /// Service (RFC 2782).
    pub const SRV: Self = Self(33);
    /// EDNS (RFC 6891); no type of a question.
    pub const OPT: Self = Self(41);
    /// Signature (RFC 4034).
    pub const RRSIG: Self = Self(46);
    /// Proof of absence (RFC 4034).
    pub const NSEC: Self = Self(47);
    /// Proof of absence (RFC 5155).
    pub const NSEC3: Self = Self(50);
    /// Service binding (RFC 9460).
    pub const SVCB: Self = Self(64);
    /// Service binding for HTTP (RFC 9460).
    pub const HTTPS: Self = Self(65);
    /// Incremental transfer of a zone (RFC 1995).
    pub const IXFR: Self = Self(251);
    /// Transfer of a zone (RFC 5936).
    pub const AXFR: Self = Self(252);
    /// All types (RFC 8482).
    pub const ANY: Self = Self(255);

    /// Those that are asked for whatever is configured.
    pub const USUAL: [Self; 11] = [
        Self::A,
        Self::AAAA,
        Self::CNAME,
        Self::HTTPS,
        Self::SVCB,
        Self::PTR,
        Self::TXT,
        Self::MX,
        Self::SRV,
        Self::NS,
        Self::SOA,
    ];

    /// Whether it stands for something else than records of one type (RFC 6895 section 3.1): those
    /// are never passed on.
    #[must_use]
    pub fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 128..=255)
    }
}

/// What types are called (IANA's registry of RR types); others are called by number.
const NAMES: [(&str, u16); 38] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("RP", 17),
    ("AFSDB", 18),
    ("AAAA", 28),
    ("LOC", 29),
    ("SRV", 33),
    ("NAPTR", 35),
    ("KX", 36),
    ("CERT", 37),
    ("DNAME", 39),
    ("APL", 42),
    ("DS", 43),
    ("SSHFP", 44),
    ("IPSECKEY", 45),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("DHCID", 49),
    ("NSEC3", 50),
    ("NSEC3PARAM", 51),
    ("TLSA", 52),
    ("SMIMEA", 53),
    ("HIP", 55),
    ("CDS", 59),
    ("CDNSKEY", 60),
    ("OPENPGPKEY", 61),
    ("CSYNC", 62),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("URI", 256),
    ("CAA", 257),
];

/// It is not what a type is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a type of records")]
pub struct NoKind;

impl FromStr for Kind {
    type Err = NoKind;

    /// Reads a type by name, or as `TYPE257` (RFC 3597 section 5).
    fn from_str(text: &str) -> Result<Self, NoKind> {
        let text = text.to_ascii_uppercase();
        let named = NAMES.iter().find(|(name, _)| *name == text);
        match named {
            Some((_, number)) => Ok(Self(*number)),
            None => {
                let digits = text.strip_prefix("TYPE").ok_or(NoKind)?;
                digits.parse().map(Self).map_err(|_| NoKind)
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// The types that clients may ask for: the usual ones and those configured.
#[derive(Debug, Clone)]
pub struct Kinds {
    /// A bit for each type below 256.
    low: [u64; 4],
    high: Vec<Kind>,
}

impl Kinds {
    /// The usual types and `more`; types that [are meta](Kind::is_meta) are left out.
    #[must_use]
    pub fn new(more: &[Kind]) -> Self {
        let mut kinds = Self {
            low: [0; 4],
            high: Vec::new(),
        };
        for kind in Kind::USUAL.iter().chain(more).filter(|k| !k.is_meta()) {
            match u8::try_from(kind.0) {
                Ok(low) => kinds.low[usize::from(low / 64)] |= 1 << (low % 64),
                Err(_) => kinds.high.push(*kind),
            }
        }
        kinds.high.sort_unstable();
        kinds
    }

    /// Whether a type may be asked for.
    #[must_use]
    pub fn contains(&self, kind: Kind) -> bool {
        match u8::try_from(kind.0) {
            Ok(low) => self.low[usize::from(low / 64)] >> (low % 64) & 1 == 1,
            Err(_) => self.high.binary_search(&kind).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn called_by_name_or_by_number() {
        for (text, want) in [
            ("a", Ok(Kind::A)),
            ("CAA", Ok(Kind(257))),
            ("TYPE257", Ok(Kind(257))),
            ("type65280", Ok(Kind(65_280))),
            ("TYPE65536", Err(NoKind)),
            ("TYPE", Err(NoKind)),
            ("257", Err(NoKind)),
            ("ANY", Err(NoKind)),
            ("", Err(NoKind)),
        ] {
            assert_eq!(text.parse(), want, "{text}");
        }
        for number in 0..=u16::MAX {
            assert_eq!(Kind(number).to_string().parse(), Ok(Kind(number)));
        }
    }

    #[test]
    fn usual_and_configured() {
        let kinds = Kinds::new(&[Kind(257), Kind(35), Kind::ANY, Kind(300)]);
        for kind in Kind::USUAL.iter().chain(&[Kind(257), Kind(35), Kind(300)]) {
            assert!(kinds.contains(*kind), "{kind:?}");
        }
        for kind in [
            Kind::ANY,
            Kind::AXFR,
            Kind::IXFR,
            Kind::OPT,
            Kind(0),
            Kind(10),
            Kind(299),
        ] {
            assert!(!kinds.contains(kind), "{kind:?}");
        }
    }
}
