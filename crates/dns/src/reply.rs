//! Answers that come from nowhere but here: what was denied, what was wrong, what failed.

use crate::query::{Edns, Problem, Query, skip_name};
use crate::{HEADER_BYTES, Kind, MAX_UDP_BYTES, Rcode, flag, u16_at};

/// For how long clients and resolvers may keep a denial, in seconds: a policy that is changed should
/// be felt soon.
pub const DENIED_TTL_S: u32 = 5;
/// TTL of the answer to ANY, in seconds.
const ANY_TTL_S: u32 = 3_600;
/// Longest text of an extended error, in bytes.
const MAX_TEXT_BYTES: usize = 120;
const CLASS_IN: u16 = 1;

/// Says more of an error than its code (RFC 8914).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended<'t> {
    /// What it is.
    pub code: ExtendedCode,
    /// Says it in words, in UTF-8.
    pub text: &'t str,
}

/// Codes of extended errors (RFC 8914 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ExtendedCode {
    /// An answer that has expired, since no upstream gave a newer one.
    StaleAnswer = 3,
    /// The policy of this firewall denies the name.
    Blocked = 15,
    /// The same question failed a moment ago.
    CachedError = 13,
    /// What was asked for was left out.
    Filtered = 17,
    /// The client may not ask this.
    Prohibited = 18,
    /// An absence that has expired, since no upstream gave a newer answer.
    StaleNxDomain = 19,
    /// Only recursion is served.
    NotAuthoritative = 20,
    /// This is not served.
    NotSupported = 21,
    /// No upstream was reached.
    NoReachableAuthority = 22,
    /// Too much is going on.
    NotReady = 14,
}

/// How a denied name is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Denial {
    /// As if it did not exist, with a SOA record (RFC 2308 section 2.1) so that the client keeps it for
    /// [`DENIED_TTL_S`].
    #[default]
    NxDomain,
    /// Refused; some clients then ask another server.
    Refused,
}

/// Writes a denial.
pub fn denied(query: &Query<'_>, denial: Denial, reason: Extended<'_>, out: &mut Vec<u8>) {
    match denial {
        Denial::NxDomain => {
            begin(query, Rcode::NxDomain, [1, 0, 1], out);
            soa(out);
        }
        Denial::Refused => begin(query, Rcode::Refused, [1, 0, 0], out),
    }
    end(query.edns, Rcode::NoError, Some(reason), out);
}

/// Writes that there is nothing of this type, with a SOA record (RFC 2308 section 2.2).
pub fn no_data(query: &Query<'_>, reason: Option<Extended<'_>>, out: &mut Vec<u8>) {
    begin(query, Rcode::NoError, [1, 0, 1], out);
    soa(out);
    end(query.edns, Rcode::NoError, reason, out);
}

/// Writes an error.
pub fn error(query: &Query<'_>, rcode: Rcode, reason: Extended<'_>, out: &mut Vec<u8>) {
    begin(query, rcode, [1, 0, 0], out);
    end(query.edns, rcode, Some(reason), out);
}

/// Writes the answer to ANY: a record that says why there is no more (RFC 8482 section 4.2).
pub fn any(query: &Query<'_>, out: &mut Vec<u8>) {
    begin(query, Rcode::NoError, [1, 1, 0], out);
    record_of_question(out, Kind::HINFO, ANY_TTL_S, b"\x07RFC8482\x00");
    end(query.edns, Rcode::NoError, None, out);
}

/// Writes what is answered to a message that is not worked on. Its question is repeated if it can be
/// read; EDNS is answered where the problem lies in it.
pub fn unfit(message: &[u8], problem: Problem, out: &mut Vec<u8>) {
    out.clear();
    let id = u16_at(message, 0).unwrap_or_default();
    let asked = u16_at(message, 2).unwrap_or_default();
    let rcode = problem.rcode();
    let one_question = u16_at(message, 4) == Some(1);
    let question = (one_question && problem != Problem::Opcode)
        .then(|| {
            let end = skip_name(message, HEADER_BYTES)? + 4;
            let question = message.get(HEADER_BYTES..end)?;
            // A name that points elsewhere would do so in the answer too.
            crate::Name::parse(question).is_ok().then_some(question)
        })
        .flatten();
    let kept = asked & (flag::OPCODE | flag::RD | flag::CD);
    header(
        id,
        flag::QR | flag::RA | kept | rcode as u16 & 0xf,
        [question.is_some().into(), 0, 0],
        out,
    );
    out.extend_from_slice(question.unwrap_or_default());
    if problem == Problem::EdnsVersion {
        let edns = Edns {
            payload: MAX_UDP_BYTES,
            dnssec_ok: false,
        };
        end(Some(edns), rcode, None, out);
    }
}

fn begin(query: &Query<'_>, rcode: Rcode, counts: [u16; 3], out: &mut Vec<u8>) {
    out.clear();
    let checking = if query.checking_disabled { flag::CD } else { 0 };
    let flags = flag::QR | flag::RD | flag::RA | checking | rcode as u16 & 0xf;
    header(query.id, flags, counts, out);
    out.extend_from_slice(query.question);
}

/// The counts are those of questions, answers and authorities.
fn header(id: u16, flags: u16, counts: [u16; 3], out: &mut Vec<u8>) {
    for word in [id, flags, counts[0], counts[1], counts[2], 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// A record whose owner is the name in question.
fn record_of_question(out: &mut Vec<u8>, kind: Kind, ttl_s: u32, data: &[u8]) {
    out.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
    out.extend_from_slice(&kind.0.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl_s.to_be_bytes());
    let length = u16::try_from(data.len()).expect("our own, and short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
}

/// A start of authority at the name in question: `neuwerk.invalid. hostmaster.neuwerk.invalid. 1 …`.
fn soa(out: &mut Vec<u8>) {
    let mut data = Vec::with_capacity(64);
    data.extend_from_slice(b"\x07neuwerk\x07invalid\x00");
    data.extend_from_slice(b"\x0ahostmaster\x07neuwerk\x07invalid\x00");
    // Serial, refresh, retry, expire, minimum.
    for value in [1, 3_600, 600, 86_400, DENIED_TTL_S] {
        data.extend_from_slice(&value.to_be_bytes());
    }
    record_of_question(out, Kind::SOA, DENIED_TTL_S, &data);
}

/// Ends a message with EDNS, if the client has it (RFC 6891 section 6.1.1), and the extended error in it.
pub(crate) fn end(
    edns: Option<Edns>,
    rcode: Rcode,
    reason: Option<Extended<'_>>,
    out: &mut Vec<u8>,
) {
    let Some(edns) = edns else { return };
    let additionals = u16_at(out, 10).unwrap_or_default() + 1;
    out[10..HEADER_BYTES].copy_from_slice(&additionals.to_be_bytes());
    out.push(0);
    out.extend_from_slice(&Kind::OPT.0.to_be_bytes());
    out.extend_from_slice(&MAX_UDP_BYTES.to_be_bytes());
    // The upper part of the response code, the version, the flags.
    let high = u8::try_from(rcode as u16 >> 4).unwrap_or_default();
    out.extend_from_slice(&[high, 0, u8::from(edns.dnssec_ok) << 7, 0]);
    let text = reason.map_or("", |reason| shortened(reason.text));
    let option = match reason {
        Some(_) => 6 + text.len(),
        None => 0,
    };
    let length = |bytes: usize| u16::try_from(bytes).expect("texts are short").to_be_bytes();
    out.extend_from_slice(&length(option));
    if let Some(reason) = reason {
        out.extend_from_slice(&15_u16.to_be_bytes());
        out.extend_from_slice(&length(2 + text.len()));
        out.extend_from_slice(&(reason.code as u16).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Bytes that [`end`] adds, without an extended error.
pub(crate) const EDNS_BYTES: usize = 11;

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    use super::{
        DENIED_TTL_S, Denial, EDNS_BYTES, Extended, ExtendedCode, MAX_TEXT_BYTES, denied, error,
        no_data, shortened, u16_at, unfit,
    };
    use crate::Rcode;
    use crate::query::{Problem, Query, Unfit};
    use crate::test::{hex, query};

    const REASON: Extended<'_> = Extended {
        code: ExtendedCode::Blocked,
        text: "group web: no rule by name matches",
    };

    fn with_edns() -> Vec<u8> {
        let mut message = query("Www.Example.com", 1);
        message[11] = 1;
        message.extend(hex("00 0029 04d0 0000 8000 0000"));
        message
    }

    #[test]
    fn denials() {
        let asked = with_edns();
        let query = Query::parse(&asked).unwrap();
        let mut out = Vec::new();
        denied(&query, Denial::NxDomain, REASON, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.id, 0x1234);
        assert_eq!(message.response_code, ResponseCode::NXDomain);
        assert_eq!(message.queries[0].name.to_string(), "Www.Example.com.");
        assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(message.authorities[0].ttl, DENIED_TTL_S);
        let edns = message.edns.unwrap();
        assert!(edns.flags().dnssec_ok);
        assert!(format!("{:?}", edns.options()).contains("Unknown(15"));

        denied(&query, Denial::Refused, REASON, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.response_code, ResponseCode::Refused);
        assert!(message.authorities.is_empty());

        super::any(&query, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.answers[0].record_type(), RecordType::HINFO);

        no_data(&query, None, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.response_code, ResponseCode::NoError);
        assert_eq!((message.answers.len(), message.authorities.len()), (0, 1));

        error(&query, Rcode::ServFail, REASON, &mut out);
        assert_eq!(
            Message::from_vec(&out).unwrap().response_code,
            ResponseCode::ServFail
        );
    }

    #[test]
    fn without_edns_there_is_none_in_the_answer() {
        let asked = query("a", 1);
        let mut out = Vec::new();
        denied(
            &Query::parse(&asked).unwrap(),
            Denial::NxDomain,
            REASON,
            &mut out,
        );
        assert!(Message::from_vec(&out).unwrap().edns.is_none());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened(&"ü".repeat(100)).len(), MAX_TEXT_BYTES);
        assert_eq!(
            shortened(&format!("a{}", "ü".repeat(100))).len(),
            MAX_TEXT_BYTES - 1
        );
    }

    #[test]
    fn what_is_unfit() {
        let mut newer = with_edns();
        let version = newer.len() - 5;
        newer[version] = 1;
        let mut out = Vec::new();
        unfit(&newer, Problem::EdnsVersion, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(u16::from(message.response_code), 16);
        assert_eq!(message.queries.len(), 1);

        unfit(&query("a", 252), Problem::Transfer, &mut out);
        assert_eq!(
            Message::from_vec(&out).unwrap().response_code,
            ResponseCode::Refused
        );
        unfit(
            &hex("1234 2800 0001 0000 0000 0000"),
            Problem::Opcode,
            &mut out,
        );
        assert_eq!(out, hex("1234 a884 0000 0000 0000 0000"));
    }

    proptest! {
        #[test]
        fn any_bytes(asked in crate::test::messages()) {
            let mut out = Vec::new();
            match Query::parse(&asked) {
                Ok(query) => {
                    denied(&query, Denial::NxDomain, REASON, &mut out);
                    let message = Message::from_vec(&out).unwrap();
                    prop_assert_eq!(message.response_code, ResponseCode::NXDomain);
                    prop_assert!(out.len() <= 512);
                }
                Err(Unfit::Answer(problem)) => {
                    unfit(&asked, problem, &mut out);
                    let message = Message::from_vec(&out).unwrap();
                    prop_assert_eq!(message.id, u16_at(&asked, 0).unwrap());
                    prop_assert_eq!(u16::from(message.response_code), problem.rcode() as u16);
                    prop_assert!(out.len() <= asked.len() + EDNS_BYTES);
                }
                Err(Unfit::Silent) => {}
            }
        }
    }
}
