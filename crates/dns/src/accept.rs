//! Asking an upstream, and judging what it answers.
//!
//! An answer counts if it repeats the id and the question to the letter (RFC 5452; the letters' case is
//! random, which makes spoofing harder). Of its records those count that follow from the question: a
//! chain of CNAMEs, each owned by the target of the one before, and at its end what was asked for. All
//! others are dropped, and what is left is written anew.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query as WireQuery, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{HTTPS, SVCB};
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::special::{Addresses, Special};
use crate::{HEADER_BYTES, Kind, MAX_UDP_BYTES, Name, Stored, flag, u16_at};

/// Most CNAMEs from a question to its answer.
pub const MAX_CHAIN: usize = 16;
/// Most addresses that an answer may have: each becomes a grant on every node.
pub const MAX_ADDRESSES: usize = 512;
/// Longest TTL that is believed, in seconds.
pub const MAX_TTL_S: u32 = 86_400;
/// Longest time for which an absence is believed, in seconds (RFC 2308 section 5).
pub const MAX_NEGATIVE_TTL_S: u32 = 10_800;
const CLASS_IN: u16 = 1;

/// A question to upstreams. Made once for each that is asked, since the id and the letters' case are
/// each one's own.
#[derive(Debug, Clone)]
pub struct Ask {
    id: u16,
    name: Name,
    kind: Kind,
    dnssec_ok: bool,
    checking_disabled: bool,
    /// The question as it is written.
    question: Vec<u8>,
}

/// What is to be asked, whoever is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The name.
    pub name: Name,
    /// The type of records.
    pub kind: Kind,
    /// With signatures (RFC 3225).
    pub dnssec_ok: bool,
    /// Without the upstream's checking them (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
}

impl Wanted {
    /// What a client's query asks for.
    #[must_use]
    pub fn of(query: &crate::Query<'_>) -> Self {
        Self {
            name: query.name,
            kind: query.kind,
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.checking_disabled,
        }
    }
}

/// How an upstream is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Over {
    /// UDP.
    Datagram,
    /// TCP, or TLS (RFC 7858).
    Stream,
}

/// What is done to answers beyond checking them.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    /// Which addresses they may have.
    pub addresses: Addresses,
    /// Encrypted Client Hello keys stay in HTTPS and SVCB records, so that clients hide the names that
    /// they connect to.
    pub allow_ech: bool,
}

/// An answer that counts.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What clients get.
    pub stored: Stored,
    /// For how long, in seconds; 0 if it is for those alone who asked meanwhile.
    pub ttl_s: u32,
    /// Addresses that were left out.
    pub filtered: Vec<(IpAddr, Special)>,
    /// Whether ECH keys were left out.
    pub ech_stripped: bool,
}

/// Why an answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejected {
    /// It is not an answer to this question; a spoofed or a late one. Over UDP the right one may still
    /// come.
    #[error("the answer is not to the question")]
    Mismatch,
    /// The question came back with its letters in another case. This upstream has to be asked over TCP.
    #[error("the answer does not repeat the question's letters")]
    Case,
    /// It did not fit into UDP; to be asked over TCP.
    #[error("the answer is truncated")]
    Truncated,
    /// It cannot be read.
    #[error("the answer is malformed")]
    Malformed,
    /// Its CNAMEs go in a circle, fork, or are more than [`MAX_CHAIN`].
    #[error("the answer's chain of names leads nowhere")]
    Chain,
    /// The upstream did not do it.
    #[error("the upstream failed with response code {0}")]
    Failed(u16),
}

impl Ask {
    /// `random` makes the id and the letters' case; it must be hard to foretell.
    #[must_use]
    pub fn new(wanted: &Wanted, random: &[u8; 34]) -> Self {
        let (id, bits) = random.split_first_chunk().unwrap_or((&[0; 2], &[]));
        let bits: &[u8; 32] = bits.first_chunk().unwrap_or(&[0; 32]);
        let mut question = Vec::with_capacity(wanted.name.wire().len() + 4);
        wanted.name.write_mixed(bits, &mut question);
        question.extend_from_slice(&wanted.kind.0.to_be_bytes());
        question.extend_from_slice(&CLASS_IN.to_be_bytes());
        Self {
            id: u16::from_be_bytes(*id),
            name: wanted.name,
            kind: wanted.kind,
            dnssec_ok: wanted.dnssec_ok,
            checking_disabled: wanted.checking_disabled,
            question,
        }
    }

    /// Writes the query, with EDNS.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.clear();
        let mut flags = flag::RD;
        if self.checking_disabled {
            flags |= flag::CD;
        }
        for word in [self.id, flags, 1, 0, 0, 1] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.question);
        out.push(0);
        out.extend_from_slice(&Kind::OPT.0.to_be_bytes());
        out.extend_from_slice(&MAX_UDP_BYTES.to_be_bytes());
        out.extend_from_slice(&[0, 0, u8::from(self.dnssec_ok) << 7, 0, 0, 0]);
    }

    /// Judges what came back.
    ///
    /// # Errors
    /// [`Rejected`] if it does not count.
    pub fn accept(&self, bytes: &[u8], over: Over, scrub: &Scrub) -> Result<Accepted, Rejected> {
        let flags = self.matching(bytes)?;
        if flags & flag::TC != 0 {
            return Err(match over {
                Over::Datagram => Rejected::Truncated,
                Over::Stream => Rejected::Malformed,
            });
        }
        // Names of records may point into the question, whose letters' case means nothing any more.
        let mut plain = bytes.to_vec();
        plain[HEADER_BYTES..HEADER_BYTES + self.name.wire().len()]
            .copy_from_slice(self.name.wire());
        let message = Message::from_vec(&plain).map_err(|_| Rejected::Malformed)?;
        match message.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => self.scrubbed(message, scrub),
            code => Err(Rejected::Failed(code.into())),
        }
    }

    /// Checks id and question, and hands out the flags.
    fn matching(&self, bytes: &[u8]) -> Result<u16, Rejected> {
        let flags = u16_at(bytes, 2).ok_or(Rejected::Mismatch)?;
        if u16_at(bytes, 0) != Some(self.id) || flags & (flag::QR | flag::OPCODE) != flag::QR {
            return Err(Rejected::Mismatch);
        }
        // Servers that cannot read a query may leave its question out.
        let rcode = flags & 0xf;
        if u16_at(bytes, 4) == Some(0) && rcode != 0 && bytes.len() >= HEADER_BYTES {
            return Err(Rejected::Failed(rcode));
        }
        let question = bytes.get(HEADER_BYTES..HEADER_BYTES + self.question.len());
        match question {
            Some(question) if u16_at(bytes, 4) == Some(1) => {
                if question == self.question {
                    Ok(flags)
                } else if question.eq_ignore_ascii_case(&self.question) {
                    Err(Rejected::Case)
                } else {
                    Err(Rejected::Mismatch)
                }
            }
            _ => Err(Rejected::Mismatch),
        }
    }

    fn scrubbed(&self, message: Message, scrub: &Scrub) -> Result<Accepted, Rejected> {
        let asked = WireName::read(&mut BinDecoder::new(self.name.wire()))
            .map_err(|_| Rejected::Malformed)?;
        let mut kept = Kept::new(self, scrub);
        let rcode = message.response_code;
        let mut answers = message.answers;
        answers.retain(|record| record.dns_class == DNSClass::IN);
        let last = kept.chain(&asked, &answers)?;
        kept.finals(&last, answers);
        let negative = !kept.found;
        kept.authorities(&last, message.authorities, negative);

        let ttl_s = match (negative, kept.filtered.is_empty()) {
            // What was left out may be allowed soon.
            (true, false) => 0,
            (true, true) => kept.negative_ttl_s(),
            (false, _) => kept.records().map(|r| r.ttl).min().unwrap_or(0),
        };
        let mut out = Message::response(0, OpCode::Query);
        out.metadata.message_type = MessageType::Response;
        out.metadata.recursion_available = true;
        // Without a chain there is nothing to deny but the name itself.
        out.metadata.response_code = match negative {
            true => rcode,
            false => ResponseCode::NoError,
        };
        out.add_query(WireQuery::query(asked, RecordType::from(self.kind.0)));
        out.answers = kept.answers;
        out.authorities = kept.authorities;
        let bytes = out.to_vec().map_err(|_| Rejected::Malformed)?;
        let stored = Stored::new(bytes).ok_or(Rejected::Malformed)?;
        debug_assert_eq!(stored.question().len(), self.question.len());
        Ok(Accepted {
            stored,
            ttl_s,
            filtered: kept.filtered,
            ech_stripped: kept.ech_stripped,
        })
    }
}

/// What stays of an answer.
struct Kept<'a> {
    ask: &'a Ask,
    scrub: &'a Scrub,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    /// There is a record of the type asked for.
    found: bool,
    filtered: Vec<(IpAddr, Special)>,
    ech_stripped: bool,
    /// A record was changed, so that its signature no longer holds.
    changed: bool,
}

impl<'a> Kept<'a> {
    fn new(ask: &'a Ask, scrub: &'a Scrub) -> Self {
        Self {
            ask,
            scrub,
            answers: Vec::new(),
            authorities: Vec::new(),
            found: false,
            filtered: Vec::new(),
            ech_stripped: false,
            changed: false,
        }
    }

    /// Follows the CNAMEs from the name asked for, and hands out the name that they end at.
    fn chain(&mut self, asked: &WireName, answers: &[Record]) -> Result<WireName, Rejected> {
        let mut at = asked.clone();
        if self.ask.kind == Kind::CNAME {
            return Ok(at);
        }
        let mut passed = vec![at.clone()];
        loop {
            let mut here = answers.iter().filter_map(|record| match &record.data {
                RData::CNAME(target) if record.name == at => Some((record, &target.0)),
                _ => None,
            });
            let Some((record, target)) = here.next() else {
                return Ok(at);
            };
            // The same record twice does no harm; two targets do.
            if here.any(|(_, other)| other != target)
                || passed.contains(target)
                || passed.len() > MAX_CHAIN
            {
                return Err(Rejected::Chain);
            }
            self.keep_answer(record.clone());
            self.keep_signatures(&at, RecordType::CNAME, answers);
            at = target.clone();
            passed.push(at.clone());
        }
    }

    /// Takes what was asked for at the end of the chain.
    fn finals(&mut self, owner: &WireName, answers: Vec<Record>) {
        let kind = RecordType::from(self.ask.kind.0);
        let signatures: Vec<Record> = answers
            .iter()
            .filter(|r| signature_of(r) == Some(self.ask.kind.0) && r.name == *owner)
            .cloned()
            .collect();
        for mut record in answers {
            if record.record_type() != kind || record.name != *owner {
                continue;
            }
            if let Some(address) = record.data.ip_addr()
                && self.filters(address)
            {
                continue;
            }
            match &mut record.data {
                RData::HTTPS(HTTPS(binding)) | RData::SVCB(binding) => self.scrub_binding(binding),
                _ => {}
            }
            self.found = true;
            self.keep_answer(record);
        }
        if self.found && self.ask.dnssec_ok && !self.changed && self.filtered.is_empty() {
            for signature in signatures {
                self.keep_answer(signature);
            }
        }
    }

    /// Notes an address that may not be in an answer.
    fn filters(&mut self, address: IpAddr) -> bool {
        let special = self.scrub.addresses.special(address);
        // Of CNAMEs there are few.
        let excess = (self.answers.len() >= MAX_ADDRESSES).then_some(Special::Excess);
        let special = special.or(excess);
        if let Some(special) = special {
            self.filtered.push((address, special));
        }
        special.is_some()
    }

    /// Takes out what a binding says beyond names and protocols: keys for hiding names, unless they are
    /// allowed, and hints, which are addresses that nobody has checked (RFC 9460 section 7.3: clients
    /// ask for the addresses as well).
    fn scrub_binding(&mut self, binding: &mut SVCB) {
        let allow_ech = self.scrub.allow_ech;
        let drops = |key: &SvcParamKey| match key {
            SvcParamKey::EchConfigList => !allow_ech,
            SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint => true,
            _ => false,
        };
        for (key, value) in &mut binding.svc_params {
            if drops(key) {
                self.changed = true;
                self.ech_stripped |= *key == SvcParamKey::EchConfigList;
            }
            if let SvcParamValue::Mandatory(keys) = value {
                keys.0.retain(|key| !drops(key));
            }
        }
        binding.svc_params.retain(|(key, value)| {
            let empty = matches!(value,
                SvcParamValue::Mandatory(keys) if keys.0.is_empty());
            !drops(key) && !empty
        });
    }

    /// Takes the SOA record of a negative answer, and the proofs of absence for who wants them.
    fn authorities(&mut self, last: &WireName, authorities: Vec<Record>, negative: bool) {
        let mut soa = false;
        for record in authorities {
            if record.dns_class != DNSClass::IN {
                continue;
            }
            let kind = u16::from(record.record_type());
            let proof = [Kind::NSEC.0, Kind::NSEC3.0];
            let keep = match kind {
                // One, of a zone that the name is in (RFC 2308 section 2).
                _ if kind == Kind::SOA.0 => {
                    let keep = negative && !soa && record.name.zone_of(last);
                    soa |= keep;
                    keep
                }
                _ if proof.contains(&kind) => self.ask.dnssec_ok,
                _ => {
                    self.ask.dnssec_ok
                        && signature_of(&record)
                            .is_some_and(|of| of == Kind::SOA.0 && negative || proof.contains(&of))
                }
            };
            if keep {
                self.authorities.push(tidied(record));
            }
        }
    }

    fn keep_answer(&mut self, record: Record) {
        self.answers.push(tidied(record));
    }

    fn keep_signatures(&mut self, owner: &WireName, of: RecordType, answers: &[Record]) {
        if self.ask.dnssec_ok {
            for record in answers {
                if signature_of(record) == Some(of.into()) && record.name == *owner {
                    self.keep_answer(record.clone());
                }
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.authorities)
    }

    /// For how long an absence may be kept: what the zone says (RFC 2308 section 5), and no longer than
    /// the chain to it; not at all without a SOA record.
    fn negative_ttl_s(&self) -> u32 {
        let soa = self
            .authorities
            .iter()
            .find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
        let others = self.records().map(|record| record.ttl).min();
        soa.into_iter()
            .chain(others)
            .min()
            .filter(|_| soa.is_some())
            .unwrap_or(0)
            .min(MAX_NEGATIVE_TTL_S)
    }
}

/// The record as it is passed on. Names in lower case take the question's letters from each client.
fn tidied(mut record: Record) -> Record {
    record.name = record.name.to_lowercase();
    // The upper bit set means zero (RFC 2181 section 8).
    record.ttl = match record.ttl {
        ttl if ttl > i32::MAX as u32 => 0,
        ttl => ttl.min(MAX_TTL_S),
    };
    record
}

/// The type of the records that a signature is for (RFC 4034 section 3.1.1).
fn signature_of(record: &Record) -> Option<u16> {
    if u16::from(record.record_type()) != Kind::RRSIG.0 {
        return None;
    }
    match &record.data {
        RData::Unknown { rdata, .. } => u16_at(&rdata.anything, 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
