//! What a node tells its peers of its own claims, in order.
//!
//! Each change has a sequence number, from 1 on; the numbers count within one run of the node (its incarnation). A peer that
//! knows another incarnation, misses a number, or comes to another sum of the claims than the sender, asks for all of them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Origin;

/// Version of what is sent.
pub const VERSION: u8 = 1;
/// Longest group id and name together that are granted, in bytes. A name of 255 octets has at most four characters
/// for each.
pub const MAX_TEXT_BYTES: usize = 8_192;
/// Most addresses in one change.
pub const MAX_ADDRESSES: usize = 512;

/// One message to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// [`VERSION`].
    pub version: u8,
    /// Which run of the sender this is.
    pub incarnation: u64,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Changes with consecutive numbers; none: the sender lives.
    Changes {
        /// The number of the first, or of the next one.
        first: u64,
        /// The changes.
        changes: Vec<Change>,
        /// Sum over the sender's claims after the last of them.
        sum: u64,
    },
    /// A part of everything that the sender holds.
    All {
        /// Which part, from 0 on.
        part: u32,
        /// Claims.
        claims: Vec<Change>,
        /// With the last part: where the stream goes on.
        end: Option<End>,
    },
}

/// Where the stream goes on behind everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The number of the next change.
    pub next: u64,
}

/// Claims on addresses of one name begin, are extended, or end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The source group's id.
    pub group: Arc<str>,
    /// The name, in lower case.
    pub name: Arc<str>,
    /// The only client that this counts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// For how long they have claims, in milliseconds; 0: no longer.
    pub life_ms: u64,
    /// How long ago they were found last, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
    /// The client whose question brought the name first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<IpAddr>,
    /// Whose claims these are, where that is not the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What a peer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Everything is wanted: the changes do not follow what the peer has.
    pub wants_all: bool,
}

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not what is sent here.
    #[error("unreadable grants: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Of another version.
    #[error("grants of version {0}, which this version cannot read")]
    Version(u8),
    /// A text or a list beyond its bounds.
    #[error("grants beyond their bounds")]
    TooLarge,
}

impl Push {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("nothing in it is without an encoding")
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<Push, Unreadable> {
        let push: Push = rmp_serde::from_slice(bytes)?;
        if push.version != VERSION {
            return Err(Unreadable::Version(push.version));
        }
        let (Body::Changes { changes, .. }
        | Body::All {
            claims: changes, ..
        }) = &push.body;
        check(changes)?;
        Ok(push)
    }
}

/// Changes as bytes, for keeping.
#[must_use]
pub fn encode_changes(changes: &[Change]) -> Vec<u8> {
    rmp_serde::to_vec_named(changes).expect("nothing in them is without an encoding")
}

/// Changes from bytes that were kept.
///
/// # Errors
/// [`Unreadable`].
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<Change>, Unreadable> {
    let changes: Vec<Change> = rmp_serde::from_slice(bytes)?;
    check(&changes)?;
    Ok(changes)
}

fn check(changes: &[Change]) -> Result<(), Unreadable> {
    let fits = changes.iter().all(|change| {
        change.group.len() + change.name.len() <= MAX_TEXT_BYTES
            && change.addresses.len() <= MAX_ADDRESSES
    });
    fits.then_some(()).ok_or(Unreadable::TooLarge)
}

impl Answer {
    /// As bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        rmp_serde::to_vec_named(&self).expect("nothing in it is without an encoding")
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<Answer, Unreadable> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}
