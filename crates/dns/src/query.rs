//! Reading a client's query.
//!
//! A query is small and always of the same shape, and most are answered from the cache, so it is read
//! where it lies, without taking it apart into records.

use crate::name::Name;
use crate::{HEADER_BYTES, Kind, MAX_UDP_BYTES, PLAIN_UDP_BYTES, Rcode, flag, u16_at};

/// The class Internet (RFC 1035 section 3.2.4).
const CLASS_IN: u16 = 1;
/// Where the question begins.
const QUESTION: usize = HEADER_BYTES;

/// What a client asks.
#[derive(Debug, Clone, Copy)]
pub struct Query<'b> {
    /// What the answer has to repeat.
    pub id: u16,
    /// The client wants no signatures checked (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
    /// The question as it was written: name, type and class.
    pub question: &'b [u8],
    /// The name in lower case.
    pub name: Name,
    /// The type of records.
    pub kind: Kind,
    /// The client's EDNS, if it has any.
    pub edns: Option<Edns>,
}

/// What a client says by EDNS (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The longest message that it takes over UDP, in bytes, as it says.
    pub payload: u16,
    /// It wants signatures (RFC 3225).
    pub dnssec_ok: bool,
}

/// Why a message is not a query that is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Nothing is answered: it is no query, or too short to have an id. An answer to an answer could go
    /// back and forth for ever.
    Silent,
    /// What [`crate::reply::unfit`] writes is answered.
    Answer(Problem),
}

/// What is wrong with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Problem {
    /// Another operation than a query (RFC 1035 section 4.1.1).
    Opcode,
    /// It cannot be read, or does not have exactly one question (RFC 9619).
    Malformed,
    /// A version of EDNS other than 0 (RFC 6891 section 6.1.3).
    EdnsVersion,
    /// Another class than Internet.
    Class,
    /// It does not ask for recursion, and nothing is served here but by recursion.
    NoRecursion,
    /// A transfer of a zone (RFC 5936, RFC 1995).
    Transfer,
    /// A type that is none of records.
    Meta,
}

impl Problem {
    /// What is answered.
    #[must_use]
    pub fn rcode(self) -> Rcode {
        match self {
            Self::Opcode | Self::Meta => Rcode::NotImp,
            Self::Malformed => Rcode::FormErr,
            Self::EdnsVersion => Rcode::BadVers,
            Self::Class | Self::NoRecursion | Self::Transfer => Rcode::Refused,
        }
    }
}

impl<'b> Query<'b> {
    /// Reads a message. Type ANY is left to the caller, who answers by [`crate::reply::any`].
    ///
    /// # Errors
    /// [`Unfit`] if it is not to be worked on.
    pub fn parse(message: &'b [u8]) -> Result<Self, Unfit> {
        let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
            return Err(Unfit::Silent);
        };
        if message.len() < HEADER_BYTES || flags & flag::QR != 0 {
            return Err(Unfit::Silent);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Unfit::Answer(Problem::Opcode));
        }
        let count = |at| u16_at(message, at).unwrap_or_default();
        let (questions, answers, authorities, additionals) =
            (count(4), count(6), count(8), count(10));
        const MALFORMED: Unfit = Unfit::Answer(Problem::Malformed);
        if questions != 1 {
            return Err(MALFORMED);
        }
        let name = Name::parse(&message[QUESTION..]).map_err(|_| MALFORMED)?;
        let after_name = QUESTION + name.wire().len();
        let kind = Kind(u16_at(message, after_name).ok_or(MALFORMED)?);
        let class = u16_at(message, after_name + 2).ok_or(MALFORMED)?;
        let mut at = after_name + 4;
        let question = &message[QUESTION..at];
        if matches!(kind, Kind::AXFR | Kind::IXFR) {
            return Err(Unfit::Answer(Problem::Transfer));
        }
        if answers != 0 || authorities != 0 {
            return Err(MALFORMED);
        }
        let mut edns = None;
        for _ in 0..additionals {
            let record = Additional::parse(message, at).ok_or(MALFORMED)?;
            at = record.end;
            if record.kind != Kind::OPT {
                continue;
            }
            // One at most, of the root (RFC 6891 section 6.1.1).
            if edns.is_some() || !record.of_root {
                return Err(MALFORMED);
            }
            if (record.ttl >> 16) & 0xff != 0 {
                return Err(Unfit::Answer(Problem::EdnsVersion));
            }
            edns = Some(Edns {
                payload: record.class,
                dnssec_ok: record.ttl & 0x8000 != 0,
            });
        }
        if at != message.len() {
            return Err(MALFORMED);
        }
        if class != CLASS_IN {
            return Err(Unfit::Answer(Problem::Class));
        }
        if kind.is_meta() && kind != Kind::ANY {
            return Err(Unfit::Answer(Problem::Meta));
        }
        if flags & flag::RD == 0 {
            return Err(Unfit::Answer(Problem::NoRecursion));
        }
        Ok(Self {
            id,
            checking_disabled: flags & flag::CD != 0,
            question,
            name,
            kind,
            edns,
        })
    }

    /// The longest answer that may be sent over UDP, in bytes.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        let payload = self.edns.map_or(PLAIN_UDP_BYTES, |edns| {
            edns.payload.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES)
        });
        payload.into()
    }

    /// Whether the client wants signatures.
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// A record of the additional section, as far as a query's is looked at.
struct Additional {
    of_root: bool,
    kind: Kind,
    class: u16,
    ttl: u32,
    end: usize,
}

impl Additional {
    fn parse(message: &[u8], at: usize) -> Option<Self> {
        let fixed = skip_name(message, at)?;
        let length = u16_at(message, fixed + 8)?;
        let end = fixed + 10 + usize::from(length);
        (end <= message.len()).then_some(())?;
        Some(Self {
            of_root: fixed == at + 1,
            kind: Kind(u16_at(message, fixed)?),
            class: u16_at(message, fixed + 2)?,
            ttl: crate::u32_at(message, fixed + 4)?,
            end,
        })
    }
}

/// Where the name at `at` ends. Pointers (RFC 1035 section 4.1.4) are not followed.
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test::{hex, query};

    #[track_caller]
    fn check(message: &[u8], want: Result<&str, Unfit>) {
        let got = Query::parse(message).map(|q| {
            let edns = q.edns.map_or(String::new(), |e| {
                format!(" edns {} {}", e.payload, e.dnssec_ok)
            });
            format!("{} {} {}{edns}", q.id, q.name, q.kind.0)
        });
        assert_eq!(got, want.map(str::to_owned));
    }

    fn answer(problem: Problem) -> Result<&'static str, Unfit> {
        Err(Unfit::Answer(problem))
    }

    /// A query with some bytes overwritten.
    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut message = query("Www.example.com", 1);
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    }

    #[test]
    fn queries() {
        check(&query("Www.example.com", 1), Ok("4660 www.example.com 1"));
        check(&query("", 2), Ok("4660 . 2"));
        check(&query("a", 255), Ok("4660 a 255"));
        // As dig sends it, with a cookie.
        let dig = hex(
            "1234 0120 0001 0000 0000 0001 076578616d706c6503636f6d00 0001 0001
                       00 0029 04d0 0000 8000 000c 000a0008 0123456789abcdef",
        );
        check(&dig, Ok("4660 example.com 1 edns 1232 true"));
    }

    #[test]
    fn what_is_not_worked_on() {
        check(&[], Err(Unfit::Silent));
        check(&query("a", 1)[..11], Err(Unfit::Silent));
        check(&patched(2, &[0x81]), Err(Unfit::Silent));
        check(&patched(2, &[0x29]), answer(Problem::Opcode));
        check(&patched(2, &[0x00]), answer(Problem::NoRecursion));
        check(&patched(5, &[0]), answer(Problem::Malformed));
        check(&patched(5, &[2]), answer(Problem::Malformed));
        check(&patched(7, &[1]), answer(Problem::Malformed));
        check(&patched(9, &[1]), answer(Problem::Malformed));
        check(&patched(11, &[1]), answer(Problem::Malformed));
        check(&patched(12, &[0xc0, 12]), answer(Problem::Malformed));
        let end = query("Www.example.com", 1).len();
        check(&patched(end - 1, &[3]), answer(Problem::Class));
        check(&query("a", 252), answer(Problem::Transfer));
        check(&query("a", 251), answer(Problem::Transfer));
        check(&query("a", 249), answer(Problem::Meta));
        check(&query("a", 41), answer(Problem::Meta));
        check(
            &[&query("a", 1)[..], b"x"].concat(),
            answer(Problem::Malformed),
        );
        let opt = hex("00 0029 0200 0000 0000 0000");
        let with = |opts: &[&[u8]]| {
            let mut message = [&query("a", 1)[..], &opts.concat()].concat();
            message[11] = opts.len() as u8;
            message
        };
        check(&with(&[&opt]), Ok("4660 a 1 edns 512 false"));
        check(&with(&[&opt, &opt]), answer(Problem::Malformed));
        check(&with(&[&opt[..9]]), answer(Problem::Malformed));
        let newer = hex("00 0029 0200 0001 0000 0000");
        check(&with(&[&newer]), answer(Problem::EdnsVersion));
        let named = hex("016100 0029 0200 0000 0000 0000");
        check(&with(&[&named]), answer(Problem::Malformed));
    }

    #[test]
    fn sizes_over_udp() {
        #[track_caller]
        fn check(payload: Option<u16>, want: usize) {
            let message = query("a", 1);
            let mut query = Query::parse(&message).unwrap();
            query.edns = payload.map(|payload| Edns {
                payload,
                dnssec_ok: false,
            });
            assert_eq!(query.udp_limit(), want);
        }
        check(None, 512);
        check(Some(0), 512);
        check(Some(1000), 1000);
        check(Some(4096), 1232);
    }

    proptest! {
        #[test]
        fn any_bytes(message in crate::test::messages()) {
            if let Ok(query) = Query::parse(&message) {
                prop_assert!(query.question.len() == query.name.wire().len() + 4);
            }
        }
    }
}
