//! What is held of one name for one group or client: its addresses, and who has claims on them.

use std::net::IpAddr;
use std::sync::Arc;

use policy::NameRule;
use sha2::{Digest as _, Sha256};

use crate::Origin;
use crate::store::make_room;

/// For whom a name was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) group: Arc<str>,
    pub(crate) name: Arc<str>,
    /// The only client that it counts for, for rules that say so; none: it counts for the others.
    pub(crate) client: Option<IpAddr>,
}

impl Key {
    /// What a claim on an address counts for in the sum of all claims: the same on every node.
    pub(crate) fn weight(&self, address: IpAddr) -> u64 {
        let mut hash = Sha256::new();
        for text in [&self.group, &self.name] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        for address in [self.client, Some(address)] {
            match address {
                None => hash.update([0]),
                Some(IpAddr::V4(address)) => {
                    hash.update([4]);
                    hash.update(address.octets());
                }
                Some(IpAddr::V6(address)) => {
                    hash.update([6]);
                    hash.update(address.octets());
                }
            }
        }
        let hash = hash.finalize();
        hash.iter()
            .take(8)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// A name's addresses for one group or client.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) key: Key,
    /// The rules that the policy in force derives from it, ascending.
    pub(crate) rules: Box<[NameRule]>,
    /// Those that the policy in preparation derives, once it has come to it.
    pub(crate) next_rules: Box<[NameRule]>,
    /// Ascending by address.
    pub(crate) spots: Vec<Spot>,
    /// The client whose question brought it first, as far as that is known.
    pub(crate) asker: Option<IpAddr>,
    /// Its place among the holdings of that one.
    pub(crate) place: u32,
}

impl Holding {
    fn find(&self, address: IpAddr) -> Result<usize, usize> {
        self.spots
            .binary_search_by_key(&address, |spot| spot.address)
    }

    /// An address that it has.
    pub(crate) fn spot(&mut self, address: IpAddr) -> Option<&mut Spot> {
        let at = self.find(address).ok()?;
        self.spots.get_mut(at)
    }

    /// Has an address more, unless it has it.
    pub(crate) fn hold(&mut self, address: IpAddr, seen_ms: u64) {
        if let Err(at) = self.find(address) {
            make_room(&mut self.spots);
            self.spots.insert(at, Spot::new(address, seen_ms));
        }
    }

    /// Has an address no longer.
    pub(crate) fn drop(&mut self, address: IpAddr) {
        if let Ok(at) = self.find(address) {
            self.spots.remove(at);
        }
    }
}

/// One address of a name.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) address: IpAddr,
    /// When it was found last.
    pub(crate) seen_ms: u64,
    /// Place in this node's stream of what was told of it last; 0: nothing.
    pub(crate) told: u64,
    claims: Vec<Claim>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) origin: Origin,
    pub(crate) until_ms: u64,
}

impl Spot {
    pub(crate) fn new(address: IpAddr, seen_ms: u64) -> Spot {
        Spot {
            address,
            seen_ms,
            told: 0,
            claims: Vec::new(),
        }
    }

    pub(crate) fn claims(&self) -> &[Claim] {
        &self.claims
    }

    pub(crate) fn claim_of(&self, origin: Origin) -> Option<u64> {
        self.claims
            .iter()
            .find(|claim| claim.origin == origin)
            .map(|claim| claim.until_ms)
    }

    /// Sets the end of a claim, and says whether it is new.
    pub(crate) fn claim(&mut self, origin: Origin, until_ms: u64) -> bool {
        match self.claims.iter_mut().find(|claim| claim.origin == origin) {
            Some(claim) => {
                claim.until_ms = until_ms;
                false
            }
            None => {
                make_room(&mut self.claims);
                self.claims.push(Claim { origin, until_ms });
                true
            }
        }
    }

    /// Takes a claim away, and says whether there was one.
    pub(crate) fn disclaim(&mut self, origin: Origin) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| claim.origin != origin);
        self.claims.len() < before
    }

    /// The end of the last claim.
    pub(crate) fn until_ms(&self) -> u64 {
        let ends = self.claims.iter().map(|claim| claim.until_ms);
        ends.max().unwrap_or_default()
    }
}
