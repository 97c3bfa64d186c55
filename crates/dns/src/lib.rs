//! The DNS proxy's decisions: what a query asks, what an upstream's answer is worth, what is kept of
//! it and for how long, whom to ask next. Pure: bytes, time and randomness are arguments.
//!
//! The way of a query:
//!
//! 1. [`Query::parse`] reads it, or says what is wrong with it and what the RFCs answer to that.
//! 2. The caller asks the policy about its [`Name`]; a deny is written by [`reply`].
//! 3. [`Cache::lookup`] finds a message for the same question, and [`Stored::render`] makes it this
//!    client's: id, flags, the question as the client wrote it, ages, EDNS, size.
//! 4. Else, unless [`Failures`] has it, an upstream is asked with [`Ask::emit`], as [`Upstreams`] says, and [`Ask::accept`] judges
//!    what comes back. Nothing that an upstream sent goes on as it came: the records that follow from
//!    the question are written anew, and those alone name the addresses that may be granted.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod accept;
pub mod cache;
pub mod failures;
pub mod kind;
pub mod limit;
pub mod name;
pub mod query;
pub mod reply;
pub mod special;
pub mod stored;
pub mod upstream;

pub use accept::{Accepted, Ask, Rejected};
pub use cache::Cache;
pub use failures::Failures;
pub use kind::Kind;
pub use name::Name;
pub use query::{Query, Unfit};
pub use stored::Stored;
pub use upstream::Upstreams;

/// Bytes of a message's header (RFC 1035 section 4.1.1).
pub const HEADER_BYTES: usize = 12;
/// Longest message over UDP without EDNS (RFC 1035 section 2.3.4).
pub const PLAIN_UDP_BYTES: u16 = 512;
/// Longest message that is sent or asked for over UDP: what passes nearly everywhere without being
/// fragmented (DNS Flag Day 2020).
pub const MAX_UDP_BYTES: u16 = 1232;

/// Bits of the second word of the header.
pub(crate) mod flag {
    pub(crate) const QR: u16 = 1 << 15;
    pub(crate) const OPCODE: u16 = 0xf << 11;
    pub(crate) const TC: u16 = 1 << 9;
    pub(crate) const RD: u16 = 1 << 8;
    pub(crate) const RA: u16 = 1 << 7;
    pub(crate) const CD: u16 = 1 << 4;
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Rcode {
    /// There is an answer, or none of this type.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// No upstream gave a usable answer.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// The operation is not served.
    NotImp = 4,
    /// It is not allowed.
    Refused = 5,
    /// A version of EDNS that is not spoken.
    BadVers = 16,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*four))
}

#[cfg(test)]
pub(crate) mod test;
