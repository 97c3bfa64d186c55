//! IPv6 addresses and routers of a data port from what routers advertise (RFC 4861 §6.3, RFC 4862, RFC 4191): a state
//! machine over advertisements and time, both of which are arguments.
//!
//! Addresses are opaque and stable (RFC 7217), and used only after nobody has claimed them (RFC 4862 §5.4). Everything
//! that an advertisement says ends with its lifetime, and everything is bounded in number: whoever floods the link with
//! routers and prefixes finds the table full.

use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::acquire::{Address6, Advertised, Stable};
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::key::Random;
use crate::wire::ra::{Advertisement, Preference};

const MAX_ROUTERS: usize = 8;
const MAX_PREFIXES: usize = 8;
const MAX_ROUTES: usize = 16;
/// Longest pause before the first solicitation (RFC 4861 MAX_RTR_SOLICITATION_DELAY).
const SOLICIT_DELAY: Duration = Duration::from_secs(1);
/// First pause between two of them, and the longest (RFC 7559 IRT and MRT).
const SOLICIT_FIRST: Duration = Duration::from_secs(4);
const SOLICIT_MAX: Duration = Duration::from_secs(3600);
/// How long another may claim an address that we try (RFC 4862 with RFC 4861 RETRANS_TIMER).
const TRY: Duration = Duration::from_secs(1);
/// Identifiers that are tried for a prefix (RFC 7217 IDGEN_RETRIES).
const TRIES: u8 = 3;
/// What a stranger may not shorten an address's life below (RFC 4862 §5.5.3 e).
const TWO_HOURS: Duration = Duration::from_secs(7200);
/// Smallest MTU of an IPv6 link (RFC 8200 §5).
const MIN_MTU: u32 = 1280;

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    /// A router solicitation.
    Solicit,
    /// A neighbour solicitation for an address that is not ours yet.
    Try(Ipv6Addr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Router {
    address: Ipv6Addr,
    preference: Preference,
    until: Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RouteEntry {
    prefix: Ipv6Net,
    router: Ipv6Addr,
    preference: Preference,
    until: Now,
}

/// Whether an address is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Claim {
    /// Others have until then to object.
    Trying(Now),
    Ours,
    /// Every identifier that was tried is taken.
    Given,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Own {
    address: Ipv6Addr,
    claim: Claim,
    /// Identifiers that were taken.
    taken: u8,
    preferred_until: Now,
    /// It is past that time.
    deprecated: bool,
    valid_until: Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Prefix {
    prefix: Ipv6Net,
    on_link_until: Option<Now>,
    own: Option<Own>,
}

/// What the routers of a link have said, each with the time until which it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    routers: Vec<Router>,
    routes: Vec<RouteEntry>,
    prefixes: Vec<Prefix>,
    mtu: Option<u16>,
}

/// Autoconfiguration of one port.
#[derive(Debug)]
pub(crate) struct Autoconf {
    stable: Stable,
    link_mtu: u16,
    heard: Heard,
    /// When a router is asked for next, and the pause after that; none: one has answered.
    solicit: Option<(Now, Duration)>,
    started: bool,
    duplicates: u64,
}

impl Autoconf {
    /// Begins to ask at its first turn.
    pub(crate) fn new(stable: Stable, link_mtu: u16) -> Autoconf {
        Autoconf {
            stable,
            link_mtu,
            heard: Heard::default(),
            solicit: Some((Now(0), SOLICIT_FIRST)),
            started: false,
            duplicates: 0,
        }
    }

    /// Goes on from where another left off.
    pub(crate) fn resume(stable: Stable, link_mtu: u16, mut heard: Heard) -> Autoconf {
        heard.routers.truncate(MAX_ROUTERS);
        heard.routes.truncate(MAX_ROUTES);
        heard.prefixes.truncate(MAX_PREFIXES);
        let asks = heard.routers.is_empty() && heard.prefixes.is_empty();
        let new = Autoconf::new(stable, link_mtu);
        Autoconf {
            heard,
            solicit: new.solicit.filter(|_| asks),
            ..new
        }
    }

    /// What the link carries now, bytes; what routers say of it holds up to that.
    pub(crate) fn set_link_mtu(&mut self, mtu: u16) {
        self.link_mtu = mtu;
    }

    /// The name of the port.
    pub(crate) fn interface(&self) -> &str {
        &self.stable.interface
    }

    /// What another can go on from.
    pub(crate) fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Addresses that others turned out to have.
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn deadline(&self) -> Now {
        let lives = self.heard.routers.iter().map(|r| r.until);
        let lives = lives.chain(self.heard.routes.iter().map(|r| r.until));
        let lives = lives.chain(self.heard.prefixes.iter().flat_map(|p| p.on_link_until));
        let own = self
            .heard
            .prefixes
            .iter()
            .flat_map(|p| p.own)
            .flat_map(|own| {
                let trying = match own.claim {
                    Claim::Trying(until) => Some(until),
                    Claim::Ours | Claim::Given => None,
                };
                // A time that has passed and was heeded is not due again.
                [
                    trying,
                    Some(own.preferred_until).filter(|_| !own.deprecated),
                    Some(own.valid_until),
                ]
            });
        let solicit = self.solicit.map(|(at, _)| at);
        lives
            .chain(own.flatten())
            .chain(solicit)
            .min()
            .unwrap_or(Now(u64::MAX))
    }

    /// Does what is due. True if what holds may have changed.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Now,
        random: &mut Random,
        mut send: impl FnMut(Send),
    ) -> bool {
        if now < self.deadline() {
            return false;
        }
        if let Some((at, pause)) = self.solicit
            && now >= at
        {
            if self.started {
                send(Send::Solicit);
                let spread = pause / 10;
                let next = pause - spread + fraction(spread * 2, random);
                self.solicit = Some((now + next, (pause * 2).min(SOLICIT_MAX)));
            } else {
                self.started = true;
                self.solicit = Some((now + fraction(SOLICIT_DELAY, random), pause));
            }
        }
        self.heard.routers.retain(|r| now < r.until);
        self.heard.routes.retain(|r| now < r.until);
        for p in &mut self.heard.prefixes {
            p.on_link_until = p.on_link_until.filter(|until| now < *until);
            p.own = p.own.filter(|own| now < own.valid_until);
            if let Some(own) = &mut p.own {
                own.deprecated = now >= own.preferred_until;
                if matches!(own.claim, Claim::Trying(until) if now >= until) {
                    own.claim = Claim::Ours;
                }
            }
        }
        self.heard
            .prefixes
            .retain(|p| p.on_link_until.is_some() || p.own.is_some());
        true
    }

    /// Takes in an advertisement of the router at this link-local address.
    pub(crate) fn handle_advertisement(
        &mut self,
        now: Now,
        router: Ipv6Addr,
        ra: &Advertisement,
        mut send: impl FnMut(Send),
    ) {
        if ra.lifetime_s > 0 || !ra.prefixes.is_empty() {
            self.solicit = None;
        }
        self.take_router(now, router, ra);
        if let Some(mtu) = ra.mtu
            && (MIN_MTU..=u32::from(self.link_mtu)).contains(&mtu)
        {
            self.heard.mtu = Some(mtu as u16);
        }
        for info in &ra.routes {
            self.take_route(now, router, info.prefix, info.preference, info.lifetime_s);
        }
        for info in &ra.prefixes {
            let octets = Addr::from(std::net::IpAddr::V6(info.prefix.addr()));
            if octets.is_link_local6() || octets.is_multicast() || octets.is_v4() || octets.0 <= 1 {
                continue;
            }
            let place = match self
                .heard
                .prefixes
                .iter()
                .position(|p| p.prefix == info.prefix)
            {
                Some(place) => place,
                None if self.heard.prefixes.len() < MAX_PREFIXES && info.valid_s > 0 => {
                    self.heard.prefixes.push(Prefix {
                        prefix: info.prefix,
                        on_link_until: None,
                        own: None,
                    });
                    self.heard.prefixes.len() - 1
                }
                None => continue,
            };
            let known = &mut self.heard.prefixes[place];
            if info.on_link {
                known.on_link_until = Some(after(now, info.valid_s)).filter(|until| now < *until);
            }
            // An identifier has 64 bits, so has the prefix before it (RFC 4862 §5.5.3 d).
            if info.autonomous && info.prefix.prefix_len() == 64 && info.preferred_s <= info.valid_s
            {
                let (preferred_until, valid) =
                    (after(now, info.preferred_s), after(now, info.valid_s));
                match &mut known.own {
                    Some(own) => {
                        own.preferred_until = preferred_until;
                        own.deprecated = now >= preferred_until;
                        let remaining = now.until(own.valid_until);
                        let offered = now.until(valid);
                        if offered > TWO_HOURS || offered > remaining {
                            own.valid_until = valid;
                        } else if remaining > TWO_HOURS {
                            own.valid_until = now + TWO_HOURS;
                        }
                    }
                    None if info.valid_s > 0 => {
                        let (address, taken) = identify(&self.stable, info.prefix, 0);
                        known.own = Some(Own {
                            address,
                            claim: Claim::Trying(now + TRY),
                            taken,
                            preferred_until,
                            deprecated: now >= preferred_until,
                            valid_until: valid,
                        });
                        send(Send::Try(address));
                    }
                    None => {}
                }
            }
            if known.on_link_until.is_none() && known.own.is_none() {
                self.heard.prefixes.remove(place);
            }
        }
    }

    fn take_router(&mut self, now: Now, router: Ipv6Addr, ra: &Advertisement) {
        let place = self.heard.routers.iter().position(|r| r.address == router);
        let taken = Router {
            address: router,
            preference: ra.preference,
            until: now + Duration::from_secs(ra.lifetime_s.into()),
        };
        match place {
            Some(place) if ra.lifetime_s == 0 => drop(self.heard.routers.remove(place)),
            Some(place) => self.heard.routers[place] = taken,
            None if ra.lifetime_s > 0 && self.heard.routers.len() < MAX_ROUTERS => {
                self.heard.routers.push(taken);
            }
            None => {}
        }
    }

    fn take_route(
        &mut self,
        now: Now,
        router: Ipv6Addr,
        prefix: Ipv6Net,
        preference: Preference,
        lifetime_s: u32,
    ) {
        let same = |r: &RouteEntry| r.prefix == prefix && r.router == router;
        let place = self.heard.routes.iter().position(same);
        let taken = RouteEntry {
            prefix,
            router,
            preference,
            until: after(now, lifetime_s),
        };
        match place {
            Some(place) if lifetime_s == 0 => drop(self.heard.routes.remove(place)),
            Some(place) => self.heard.routes[place] = taken,
            None if lifetime_s > 0 && self.heard.routes.len() < MAX_ROUTES => {
                self.heard.routes.push(taken)
            }
            None => {}
        }
    }

    /// Whether an address is being tried, or is ours without the snapshot knowing yet.
    pub(crate) fn is_trying(&self, address: Ipv6Addr) -> bool {
        let trying = |own: &Own| own.address == address && matches!(own.claim, Claim::Trying(_));
        self.heard.prefixes.iter().flat_map(|p| &p.own).any(trying)
    }

    /// Another station has, or tries, an address that we try: takes another identifier, while there are any left.
    pub(crate) fn handle_claim(&mut self, now: Now, address: Ipv6Addr, mut send: impl FnMut(Send)) {
        for p in &mut self.heard.prefixes {
            let Some(own) = &mut p.own else { continue };
            if own.address != address || !matches!(own.claim, Claim::Trying(_)) {
                continue;
            }
            self.duplicates += 1;
            if own.taken + 1 >= TRIES {
                own.claim = Claim::Given;
                continue;
            }
            (own.address, own.taken) = identify(&self.stable, p.prefix, own.taken + 1);
            own.claim = Claim::Trying(now + TRY);
            send(Send::Try(own.address));
        }
    }

    /// The link has come up: there may be another network behind it.
    pub(crate) fn handle_link_up(&mut self, now: Now) {
        self.solicit = Some((now, SOLICIT_FIRST));
    }

    /// What holds now.
    pub(crate) fn advertised(&self) -> Advertised {
        let ours = |own: &&Own| own.claim == Claim::Ours;
        let own = self.heard.prefixes.iter().flat_map(|p| &p.own).filter(ours);
        let mut addresses: Vec<_> = own
            .map(|own| Address6 {
                address: own.address,
                deprecated: own.deprecated,
            })
            .collect();
        addresses.sort_by_key(|a| a.deprecated);
        let on_link = self
            .heard
            .prefixes
            .iter()
            .filter(|p| p.on_link_until.is_some());
        // A route to everything makes its router a default router (RFC 4191 §3.1).
        let whole = self
            .heard
            .routes
            .iter()
            .filter(|r| r.prefix.prefix_len() == 0);
        let defaults = self
            .heard
            .routers
            .iter()
            .map(|r| {
                let of_route = whole.clone().find(|route| route.router == r.address);
                (
                    of_route.map_or(r.preference, |route| route.preference),
                    r.address,
                )
            })
            .chain(whole.clone().map(|r| (r.preference, r.router)));
        // The first of the best, so that nothing changes without need.
        let best = defaults.reduce(|best, other| if other.0 > best.0 { other } else { best });
        let mut routes: Vec<(Ipv6Net, Ipv6Addr, Preference)> = Vec::new();
        for r in self
            .heard
            .routes
            .iter()
            .filter(|r| r.prefix.prefix_len() > 0)
        {
            match routes.iter_mut().find(|(prefix, ..)| *prefix == r.prefix) {
                Some(known) if known.2 < r.preference => {
                    *known = (r.prefix, r.router, r.preference)
                }
                Some(_) => {}
                None => routes.push((r.prefix, r.router, r.preference)),
            }
        }
        Advertised {
            addresses,
            on_link: on_link.map(|p| p.prefix).collect(),
            router: best.map(|(_, address)| address),
            routes: routes
                .into_iter()
                .map(|(prefix, router, _)| (prefix, router))
                .collect(),
            mtu: self.heard.mtu,
        }
    }
}

/// A lifetime in seconds; all ones are for ever.
fn after(now: Now, seconds: u32) -> Now {
    if seconds == u32::MAX {
        return Now(u64::MAX);
    }
    now + Duration::from_secs(seconds.into())
}

fn fraction(of: Duration, random: &mut Random) -> Duration {
    let most = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.next() % most.max(1))
}

/// The address on a prefix of the `counter`th identifier, or of the next one that is not reserved (RFC 7217 §5).
fn identify(stable: &Stable, prefix: Ipv6Net, mut counter: u8) -> (Ipv6Addr, u8) {
    loop {
        let digest = Sha256::new()
            .chain_update(prefix.addr().octets())
            .chain_update(stable.interface.as_bytes())
            .chain_update([0, counter])
            .chain_update(stable.secret)
            .finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        let id = u64::from_be_bytes(id);
        // Subnet-router anycast, and the reserved anycast identifiers (RFC 5453).
        let reserved = id == 0 || (0xfdff_ffff_ffff_ff80..=0xfdff_ffff_ffff_ffff).contains(&id);
        if !reserved || counter == u8::MAX {
            let whole = u128::from(prefix.addr()) | u128::from(id);
            return (Ipv6Addr::from(whole), counter);
        }
        counter += 1;
    }
}

#[cfg(test)]
mod tests;
