//! DNS messages, as far as the lab writes and reads them (RFC 1035 section 4): bytes of our own, so that what is observed
//! does not share code with what observes it.

use std::net::IpAddr;

use super::stub::{A, AAAA};

/// The type of a CNAME.
pub(super) const CNAME: u16 = 5;
/// The owner of a record: a pointer to the question.
pub(super) const ASKED: &[u8] = &[0xc0, 12];
/// The extended error among the options of EDNS (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
const OPT: u16 = 41;

/// A question as it was asked, to the letter.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) id: u16,
    /// Labels with their lengths and the root's.
    pub(super) name: Vec<u8>,
    pub(super) kind: u16,
}

impl Question {
    /// Reads the first question of a query.
    pub(super) fn parse(query: &[u8]) -> Option<Question> {
        let id = u16::from_be_bytes([*query.first()?, *query.get(1)?]);
        let end = after_name(query, 12)?;
        let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
        let name = query.get(12..end)?.to_vec();
        Some(Question { id, name, kind })
    }

    /// Its labels, in lower case.
    pub(super) fn labels(&self) -> Vec<String> {
        let mut labels = Vec::new();
        let mut rest = &self.name[..];
        while let [length @ 1..=63, after @ ..] = rest {
            let (label, after) = after.split_at(usize::from(*length).min(after.len()));
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            rest = after;
        }
        labels
    }
}

/// A query for a name with recursion desired, and room for an answer of 1232 bytes over UDP.
pub(super) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    bytes.extend(wire_name(name));
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend([0, 0, OPT as u8, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// `a.example` as labels with their lengths.
pub(super) fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a label has at most 63 octets"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// An answer under way.
#[derive(Debug, Clone)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// An answer without records to this question.
    pub(super) fn to(question: &Question) -> Answer {
        let mut bytes = question.id.to_be_bytes().to_vec();
        bytes.extend([0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend(&question.name);
        bytes.extend(question.kind.to_be_bytes());
        bytes.extend([0, 1]);
        Answer(bytes)
    }

    /// With one more record.
    pub(super) fn record(mut self, owner: &[u8], kind: u16, ttl_s: u32, data: &[u8]) -> Answer {
        let count = u16::from_be_bytes([self.0[6], self.0[7]]) + 1;
        self.0[6..8].copy_from_slice(&count.to_be_bytes());
        self.0.extend(owner);
        self.0.extend(kind.to_be_bytes());
        self.0.extend([0, 1]);
        self.0.extend(ttl_s.to_be_bytes());
        let length = u16::try_from(data.len()).expect("data of a record");
        self.0.extend(length.to_be_bytes());
        self.0.extend(data);
        self
    }

    /// With a record for an address.
    pub(super) fn address(self, owner: &[u8], ttl_s: u32, address: IpAddr) -> Answer {
        match address {
            IpAddr::V4(address) => self.record(owner, A, ttl_s, &address.octets()),
            IpAddr::V6(address) => self.record(owner, AAAA, ttl_s, &address.octets()),
        }
    }

    /// With the flag that it is not whole.
    pub(super) fn truncated(mut self) -> Answer {
        self.0[2] |= 2;
        self
    }

    /// With another response code.
    pub(super) fn code(mut self, code: u8) -> Answer {
        self.0[3] = 0x80 | code;
        self
    }

    /// With another id.
    pub(super) fn other_id(mut self) -> Answer {
        self.0[0] ^= 0x55;
        self.0[1] ^= 0xaa;
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// What an answer says.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) code: u8,
    pub(super) truncated: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) extended_error: Option<(u16, String)>,
}

/// Reads an answer to `query`; none if it is none.
pub(super) fn read(query: &[u8], answer: &[u8]) -> Option<Said> {
    if answer.get(..2)? != &query[..2] || answer.get(2)? & 0x80 == 0 {
        return None;
    }
    let number = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let mut at = 12;
    for _ in 0..number(4)? {
        at = after_name(answer, at)? + 4;
    }
    let mut said = Said {
        code: answer[3] & 0x0f,
        truncated: answer[2] & 2 != 0,
        ..Said::default()
    };
    let [answers, others] = [
        usize::from(number(6)?),
        usize::from(number(8)?) + usize::from(number(10)?),
    ];
    for nth in 0..answers + others {
        at = after_name(answer, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        match kind {
            A if nth < answers => said.addresses.push(<[u8; 4]>::try_from(data).ok()?.into()),
            AAAA if nth < answers => said.addresses.push(<[u8; 16]>::try_from(data).ok()?.into()),
            OPT => said.extended_error = extended_error(data),
            _ => {}
        }
    }
    Some(said)
}

fn extended_error(mut options: &[u8]) -> Option<(u16, String)> {
    while let [a, b, c, d, rest @ ..] = options {
        let [code, length] = [[*a, *b], [*c, *d]].map(u16::from_be_bytes);
        let (data, after) = rest.split_at_checked(length.into())?;
        if let (EXTENDED_ERROR, [a, b, text @ ..]) = (code, data) {
            let text = String::from_utf8_lossy(text).into_owned();
            return Some((u16::from_be_bytes([*a, *b]), text));
        }
        options = after;
    }
    None
}

/// Where the name that begins at `at` ends.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
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
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let query = query(7, "N1.ttl30.fresh.test", A);
        let question = Question::parse(&query).expect("a question");
        assert_eq!(question.labels(), ["n1", "ttl30", "fresh", "test"]);
        let address = IpAddr::from([198, 18, 0, 1]);
        let answer = Answer::to(&question).address(ASKED, 30, address);
        let said = read(&query, &answer.clone().truncated().into_bytes()).expect("an answer");
        assert_eq!((said.code, said.truncated), (0, true));
        assert_eq!(said.addresses, [address]);
        assert!(read(&query, &answer.other_id().into_bytes()).is_none());
        for end in 0..query.len() {
            let _ = read(&query, &query[..end]);
        }
    }

    #[test]
    fn an_extended_error_is_found_among_other_options() {
        let options = [0, 10, 0, 1, 9, 0, 15, 0, 4, 0, 18, b'n', b'o'];
        assert_eq!(extended_error(&options), Some((18, "no".to_owned())));
        assert_eq!(extended_error(&options[..12]), None);
    }
}
