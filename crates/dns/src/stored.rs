//! An answer as it is kept, and made into a client's.

use std::net::IpAddr;

use crate::query::{Query, skip_name};
use crate::reply::{self, EDNS_BYTES, Extended};
use crate::{HEADER_BYTES, Kind, Rcode, flag, u16_at, u32_at};

/// TTL of records that are served although they have expired, in seconds (RFC 8767 section 4).
pub const STALE_TTL_S: u32 = 30;

/// A message with the id 0, its question in lower case and no EDNS, and where its TTLs are. One
/// allocation; for a usual answer a hundred bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The message, and behind it two bytes for each position of a TTL.
    bytes: Box<[u8]>,
    message_bytes: u16,
}

impl Stored {
    /// Takes a message with exactly one question. None if it is not a whole message.
    pub(crate) fn new(mut message: Vec<u8>) -> Option<Self> {
        let message_bytes = u16::try_from(message.len()).ok()?;
        let mut positions = Vec::new();
        for record in Records::of(&message)? {
            let ttl = u16::try_from(record?.fixed + 4).ok()?;
            positions.extend_from_slice(&ttl.to_be_bytes());
        }
        message.extend_from_slice(&positions);
        Some(Self {
            bytes: message.into_boxed_slice(),
            message_bytes,
        })
    }

    pub(crate) fn message(&self) -> &[u8] {
        &self.bytes[..usize::from(self.message_bytes)]
    }

    /// The name, type and class that it answers.
    pub(crate) fn question(&self) -> &[u8] {
        let message = self.message();
        let end = skip_name(message, HEADER_BYTES).map_or(HEADER_BYTES, |end| end + 4);
        message.get(HEADER_BYTES..end).unwrap_or_default()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Its response code.
    #[must_use]
    pub fn rcode(&self) -> u16 {
        u16_at(&self.bytes, 2).unwrap_or_default() & 0xf
    }

    /// The addresses in its answer. Each one was reached from the question by a chain of names.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let message = self.message();
        let answers = u16_at(message, 6).unwrap_or_default();
        Records::of(message)
            .into_iter()
            .flatten()
            .flatten()
            .take(answers.into())
            .filter_map(|record| {
                let data = message.get(record.data..record.end)?;
                match record.kind {
                    Kind::A => Some(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
                    Kind::AAAA => Some(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
                    _ => None,
                }
            })
    }

    /// Writes it as the answer to a client's query for the same name and type.
    ///
    /// `age_s` is for how long it has been kept, in seconds, or [`Age::Stale`]. `limit` is the longest
    /// message that the client takes, in bytes; beyond it goes a truncated one without records (RFC 2181
    /// section 9).
    pub fn render(&self, query: &Query<'_>, age: Age, limit: usize, out: &mut Vec<u8>) {
        out.clear();
        let message = self.message();
        let edns = if query.edns.is_some() { EDNS_BYTES } else { 0 };
        let reason = match age {
            Age::Stale if self.rcode() == Rcode::NxDomain as u16 => Some(STALE_NXDOMAIN),
            Age::Stale => Some(STALE_ANSWER),
            Age::Seconds(_) => None,
        };
        let truncated = message.len() + edns > limit;
        if truncated {
            out.extend_from_slice(&message[..HEADER_BYTES + query.question.len()]);
            out[6..HEADER_BYTES].fill(0);
        } else {
            out.extend_from_slice(message);
            let positions = &self.bytes[usize::from(self.message_bytes)..];
            for position in positions.chunks_exact(2) {
                let at = usize::from(u16::from_be_bytes([position[0], position[1]]));
                let ttl = &mut out[at..at + 4];
                let left = match age {
                    Age::Seconds(age) => u32_at(ttl, 0).unwrap_or_default().saturating_sub(age),
                    Age::Stale => STALE_TTL_S,
                };
                ttl.copy_from_slice(&left.to_be_bytes());
            }
        }
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        let mut flags = u16_at(out, 2).unwrap_or_default() | flag::RD;
        if query.checking_disabled {
            flags |= flag::CD;
        }
        if truncated {
            flags |= flag::TC;
        }
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out[HEADER_BYTES..HEADER_BYTES + query.question.len()].copy_from_slice(query.question);
        // What is said of a stale answer is left out where there is no room for it.
        let room = limit.saturating_sub(out.len() + edns) >= 6;
        let reason = reason.filter(|_| room && !truncated);
        reply::end(query.edns, Rcode::NoError, reason, out);
    }
}

/// What is said of answers that have expired; room for it is checked with its six bytes alone.
const STALE_ANSWER: Extended<'_> = Extended {
    code: reply::ExtendedCode::StaleAnswer,
    text: "",
};
const STALE_NXDOMAIN: Extended<'_> = Extended {
    code: reply::ExtendedCode::StaleNxDomain,
    text: "",
};

/// For how long an answer has been kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// It is fresh, and this many seconds old.
    Seconds(u32),
    /// It has expired, and is served since there is no other (RFC 8767).
    Stale,
}

/// A record of a message, by where its parts are.
#[derive(Debug, Clone, Copy)]
struct Record {
    kind: Kind,
    /// Where what follows the name begins: type, class, TTL, length.
    fixed: usize,
    data: usize,
    end: usize,
}

/// The records of a message; none in place of the first that is cut off.
struct Records<'m> {
    message: &'m [u8],
    at: usize,
    left: usize,
}

impl<'m> Records<'m> {
    fn of(message: &'m [u8]) -> Option<Self> {
        let count = |at| u16_at(message, at).map(usize::from);
        if count(4)? != 1 {
            return None;
        }
        Some(Self {
            message,
            at: skip_name(message, HEADER_BYTES)? + 4,
            left: count(6)? + count(8)? + count(10)?,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Option<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let record = skip_name(self.message, self.at).and_then(|fixed| {
            let kind = Kind(u16_at(self.message, fixed)?);
            let data = fixed + 10;
            let end = data + usize::from(u16_at(self.message, fixed + 8)?);
            (end <= self.message.len()).then_some(Record {
                kind,
                fixed,
                data,
                end,
            })
        });
        match record {
            Some(record) => self.at = record.end,
            None => self.left = 0,
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::*;
    use crate::test::{hex, query};

    /// An answer with a chain of one and two addresses.
    fn stored() -> Stored {
        let mut message = query("www.example.com", 1);
        message[..2].fill(0);
        message[2..4].copy_from_slice(&[0x80, 0x80]);
        message[7] = 3;
        message.extend(hex("c00c 0005 0001 0000012c 0004 0163c010"));
        message.extend(hex("0163c010 0001 0001 0000003c 0004 c0000201"));
        message.extend(hex("0163c010 0001 0001 0000003c 0004 c0000202"));
        Stored::new(message).unwrap()
    }

    #[test]
    fn an_answer_becomes_a_client_s() {
        let stored = stored();
        let addresses: Vec<String> = stored.addresses().map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
        let asked = query("WWW.example.COM", 1);
        let query = Query::parse(&asked).unwrap();
        let mut out = Vec::new();
        stored.render(&query, Age::Seconds(50), 512, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.id, 0x1234);
        assert!(message.recursion_desired && message.recursion_available && !message.truncation);
        assert_eq!(message.queries[0].name.to_string(), "WWW.example.COM.");
        assert_eq!(message.answers[0].name.to_string(), "WWW.example.COM.");
        let ttls: Vec<u32> = message.answers.iter().map(|r| r.ttl).collect();
        assert_eq!(ttls, [250, 10, 10]);
        assert!(message.edns.is_none());
        stored.render(&query, Age::Seconds(500), 512, &mut out);
        assert!(
            Message::from_vec(&out)
                .unwrap()
                .answers
                .iter()
                .all(|r| r.ttl == 0)
        );
    }

    #[test]
    fn stale_and_truncated() {
        let stored = stored();
        let mut asked = query("www.example.com", 1);
        asked[11] = 1;
        asked.extend(hex("00 0029 04d0 0000 0000 0000"));
        let query = Query::parse(&asked).unwrap();
        let mut out = Vec::new();
        stored.render(&query, Age::Stale, 512, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert!(message.answers.iter().all(|r| r.ttl == STALE_TTL_S));
        let edns = format!("{:?}", message.edns.unwrap().options());
        assert!(edns.contains("Unknown(15"), "{edns}");

        let whole = stored.message().len() + EDNS_BYTES;
        stored.render(&query, Age::Stale, whole, &mut out);
        assert_eq!(out.len(), whole);
        stored.render(&query, Age::Stale, whole - 1, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert!(message.truncation && message.answers.is_empty() && message.edns.is_some());
    }

    #[test]
    fn what_is_cut_off_is_not_kept() {
        let stored = stored();
        for end in 0..stored.message().len() {
            assert_eq!(Stored::new(stored.message()[..end].to_vec()), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(message in crate::test::messages()) {
            if let Some(stored) = Stored::new(message.clone()) {
                let _ = stored.addresses().count();
                prop_assert_eq!(stored.message(), &message[..]);
            }
        }
    }
}
