//! Who has asked for how much: whoever has most loses first where there is no room.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// How often whoever has most is looked for anew: after so many have been asked for.
const AGAIN_AFTER: u32 = 256;

/// All who have asked; of IPv6 clients, their networks of 64 bits. None stands for those of whom it is not known.
#[derive(Debug, Default)]
pub(super) struct Askers {
    by_client: HashMap<Option<IpAddr>, Asker>,
    heaviest: Option<IpAddr>,
    left: u32,
}

#[derive(Debug, Default)]
struct Asker {
    /// Addresses of its holdings.
    spots: usize,
    holdings: Vec<u32>,
}

impl Askers {
    /// A holding begins; its place among those of who asked for it.
    pub(super) fn enter(&mut self, asker: Option<IpAddr>, at: u32) -> u32 {
        let holdings = &mut self.by_client.entry(network(asker)).or_default().holdings;
        holdings.push(at);
        holdings.len() as u32 - 1
    }

    /// The holding at a place ends; which holding has the place now, if one has.
    pub(super) fn leave(&mut self, asker: Option<IpAddr>, place: u32) -> Option<u32> {
        let asker = network(asker);
        let holdings = &mut self.by_client.get_mut(&asker)?.holdings;
        holdings.swap_remove(place as usize);
        let moved = holdings.get(place as usize).copied();
        if holdings.is_empty() {
            self.by_client.remove(&asker);
        }
        moved
    }

    /// Its holdings have an address more.
    pub(super) fn add(&mut self, asker: Option<IpAddr>) {
        self.by_client.entry(network(asker)).or_default().spots += 1;
    }

    /// Its holdings have an address less.
    pub(super) fn take_away(&mut self, asker: Option<IpAddr>) {
        if let Some(asker) = self.by_client.get_mut(&network(asker)) {
            asker.spots -= 1;
        }
    }

    /// The holdings of whoever has most addresses, or had when that was last looked for.
    pub(super) fn heaviest(&mut self) -> &[u32] {
        if self.left == 0 || !self.by_client.contains_key(&self.heaviest) {
            let most = self.by_client.iter().max_by_key(|(_, asker)| asker.spots);
            self.heaviest = most.and_then(|(client, _)| *client);
            self.left = AGAIN_AFTER;
        }
        self.left -= 1;
        self.by_client
            .get(&self.heaviest)
            .map_or(&[], |asker| &asker.holdings)
    }
}

fn network(client: Option<IpAddr>) -> Option<IpAddr> {
    client.map(|client| match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(client) => {
            let network = u128::from(client) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
    })
}
