//! The DHCP client of a data port (RFC 2131): a state machine over messages, ARP and time, all of which are arguments.
//!
//! It asks for the address that it had before, if it remembers one; else it takes the first sound offer. A new address
//! is probed before it is used (RFC 5227) and declined if somebody has it; the old one is used at once when the server
//! confirms it. It is renewed at T1 with its server, at T2 with any, and given up when it has expired.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::acquire::{DhcpConfig, Lease, Standing};
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::key::Random;
use crate::wire::dhcp::{Kind, Message, Reply};
use crate::wire::ethernet::Mac;

/// Longest pause between two repetitions (RFC 2131 §4.1), unless the first one is longer.
const MAX_WAIT: Duration = Duration::from_secs(64);
/// Pause before a new start after an address was declined (RFC 2131 §3.1).
const AFTER_DECLINE: Duration = Duration::from_secs(10);
/// Pause before a new start after a refusal.
const AFTER_NAK: Duration = Duration::from_secs(1);
/// Probes for a new address. Fewer and faster than RFC 5227 has them for home networks with hubs: every second of
/// probing is one without traffic.
const PROBES: u8 = 2;
const PROBE_INTERVAL: Duration = Duration::from_millis(300);
/// Silence after the last probe that makes an address ours.
const PROBE_WAIT: Duration = Duration::from_millis(500);
/// Shortest pause between two requests for renewal (RFC 2131 §4.4.5), where the lease is long enough for it.
const RENEWAL_MIN: Duration = Duration::from_secs(60);
/// Shortest prefix that is believed: who is in it counts as inside on a node with one arm.
const MIN_PREFIX_LEN: u8 = 8;
/// When a lease without an end expires.
const ENDLESS: Now = Now(u64::MAX);
/// Smallest MTU that is believed (RFC 791).
const MIN_MTU: u16 = 576;

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    /// To all stations, from no address.
    Broadcast(Message),
    /// To all stations, from our address.
    BroadcastFrom(Ipv4Addr, Message),
    /// To this server, from our address.
    Unicast {
        from: Ipv4Addr,
        to: Ipv4Addr,
        message: Message,
    },
    /// An ARP probe for an address.
    Probe(Ipv4Addr),
}

/// Why a server's message is not heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is from another server than the configured one.
    Untrusted,
    /// It is not what was asked for, or makes no sense.
    Unsound,
}

#[derive(Clone, Debug)]
enum State {
    /// Nothing until the deadline, then from the start.
    Pausing,
    /// DISCOVER is out.
    Selecting,
    /// REQUEST for an offer is out.
    Requesting(Lease),
    /// REQUEST for the address of before is out.
    Rebooting(Lease),
    /// The address is ours if nobody answers for it.
    Probing {
        lease: Lease,
        sent: u8,
    },
    Bound(Lease),
    Renewing(Lease),
    Rebinding(Lease),
}

/// The client of one port.
#[derive(Debug)]
pub(crate) struct Client {
    config: DhcpConfig,
    mac: Mac,
    state: State,
    xid: u32,
    /// When the asking began.
    since: Now,
    /// Messages sent in this state.
    sent: u32,
    /// The lease that holds is to be confirmed before its time: it may be of another network.
    confirming: bool,
    /// When [`handle_timeout`](Self::handle_timeout) is due.
    due: Now,
    standing: Standing,
}

impl Client {
    /// A client that begins at its first turn.
    pub(crate) fn new(config: DhcpConfig, mac: Mac) -> Client {
        let state = match &config.remembered {
            Some(lease) => State::Rebooting(lease.clone()),
            None => State::Selecting,
        };
        Client {
            config,
            mac,
            state,
            xid: 0,
            since: Now(0),
            sent: 0,
            confirming: false,
            due: Now(0),
            standing: Standing::Asking,
        }
    }

    /// A client that goes on with a lease that holds, as of where another left off.
    pub(crate) fn resume(config: DhcpConfig, mac: Mac, lease: Lease, standing: Standing) -> Client {
        Client {
            due: lease.renew_at,
            state: State::Bound(lease),
            standing,
            ..Client::new(config, mac)
        }
    }

    /// The lease that holds.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            _ => None,
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    pub(crate) fn deadline(&self) -> Now {
        self.due
    }

    /// Whether a message of this transaction is for us.
    pub(crate) fn expects(&self, (xid, mac): (u32, Mac)) -> bool {
        xid == self.xid && mac == self.mac && self.sent > 0
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Now,
        random: &mut Random,
        mut send: impl FnMut(Send),
    ) {
        if now < self.due {
            return;
        }
        match self.state.clone() {
            State::Pausing => self.discover(now, random, &mut send),
            State::Selecting => {
                if self.sent > self.config.retry_max {
                    self.standing = Standing::Unanswered;
                    self.sent = 0;
                }
                self.discover(now, random, &mut send);
            }
            State::Requesting(offer) if self.sent <= self.config.retry_max => {
                self.request(now, random, &offer, &mut send);
            }
            State::Requesting(_) => {
                self.standing = Standing::Unanswered;
                self.discover(now, random, &mut send);
            }
            State::Rebooting(lease) if now >= lease.expires => {
                self.state = State::Selecting;
                self.discover(now, random, &mut send);
            }
            // RFC 2131 §3.2: what was leased before may be used for the rest of its time. It is
            // probed first, and asked for further on.
            State::Rebooting(mut lease) if self.sent > 0 => {
                self.standing = Standing::Unanswered;
                (lease.renew_at, lease.rebind_at) = (now, now);
                self.probe(now, random, lease, 0, &mut send);
            }
            State::Rebooting(lease) => {
                self.begin(now, random);
                self.sent = 1;
                self.due = now + self.wait(random);
                send(Send::Broadcast(Message {
                    requested: Some(lease.address),
                    ..self.message(Kind::Request, now)
                }));
            }
            State::Probing { lease, sent } if sent < PROBES => {
                self.probe(now, random, lease, sent, &mut send);
            }
            State::Probing { lease, .. } => self.bind(now, lease),
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => {
                self.renew(now, random, lease, &mut send);
            }
        }
    }

    /// Takes in a server's message to a transaction of ours, from a station with address `from`.
    pub(crate) fn handle_reply(
        &mut self,
        now: Now,
        random: &mut Random,
        from: Mac,
        reply: &Reply,
        mut send: impl FnMut(Send),
    ) -> Result<(), Refusal> {
        let server = reply.server.ok_or(Refusal::Unsound)?;
        if self.config.server_ip.is_some_and(|pin| pin != server)
            || self.config.server_mac.is_some_and(|pin| pin != from)
        {
            return Err(Refusal::Untrusted);
        }
        // Whose word counts, about which address.
        let (by, about) = match &self.state {
            State::Selecting => (None, None),
            State::Requesting(offer) => (Some(offer.server), Some(offer.address)),
            State::Rebooting(lease) => (None, Some(lease.address)),
            State::Renewing(lease) => (Some(lease.server), None),
            State::Rebinding(_) => (None, None),
            State::Pausing | State::Probing { .. } | State::Bound(_) => {
                return Err(Refusal::Unsound);
            }
        };
        if by.is_some_and(|by| by != server) {
            return Err(Refusal::Unsound);
        }
        match (reply.kind, &self.state) {
            (Kind::Offer, State::Selecting) => {
                let offer = self
                    .sound(now, random, server, reply)
                    .ok_or(Refusal::Unsound)?;
                self.sent = 0;
                self.request(now, random, &offer, &mut send);
            }
            (Kind::Nak, state) if !matches!(state, State::Selecting) => {
                self.standing = Standing::Refused;
                self.pause(now, AFTER_NAK, random);
            }
            (Kind::Ack, state) if !matches!(state, State::Selecting) => {
                if about.is_some_and(|about| about != reply.address) {
                    return Err(Refusal::Unsound);
                }
                let lease = self
                    .sound(now, random, server, reply)
                    .ok_or(Refusal::Unsound)?;
                let known = match state {
                    State::Rebooting(old) | State::Renewing(old) | State::Rebinding(old) => {
                        old.address == lease.address
                    }
                    _ => false,
                };
                if known {
                    self.bind(now, lease);
                } else {
                    self.probe(now, random, lease, 0, &mut send);
                }
            }
            _ => return Err(Refusal::Unsound),
        }
        Ok(())
    }

    /// A station says by ARP that it has, or is about to take, the address `claimed`.
    pub(crate) fn handle_claim(
        &mut self,
        now: Now,
        random: &mut Random,
        claimed: Addr,
        mut send: impl FnMut(Send),
    ) {
        let State::Probing { lease, .. } = &self.state else {
            return;
        };
        let (address, server) = (lease.address, lease.server);
        if Addr::from(std::net::IpAddr::V4(address)) != claimed {
            return;
        }
        self.xid = random.next() as u32;
        send(Send::Broadcast(Message {
            requested: Some(address),
            server: Some(server),
            secs: 0,
            ..self.message(Kind::Decline, now)
        }));
        self.standing = Standing::Taken;
        self.pause(now, AFTER_DECLINE, random);
    }

    /// The link has come up: there may be another network behind it.
    pub(crate) fn handle_link_up(&mut self, now: Now) {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => {
                let mut lease = lease.clone();
                (lease.renew_at, lease.rebind_at) = (now, now);
                self.bind(now, lease);
            }
            State::Pausing | State::Selecting | State::Requesting(_) => {
                self.state = State::Selecting;
                self.sent = 0;
                self.due = now;
            }
            State::Rebooting(_) => {
                self.sent = 0;
                self.due = now;
            }
            State::Probing { .. } => {}
        }
    }

    /// We have another address on the link from now on: the server is asked whether the lease is ours still.
    pub(crate) fn handle_mac(&mut self, now: Now, mac: Mac) {
        self.mac = mac;
        self.handle_link_up(now);
    }

    fn begin(&mut self, now: Now, random: &mut Random) {
        self.xid = random.next() as u32;
        self.since = now;
        self.sent = 0;
    }

    fn pause(&mut self, now: Now, pause: Duration, random: &mut Random) {
        self.state = State::Pausing;
        self.sent = 0;
        self.due = now + pause + fraction(Duration::from_secs(1), random);
    }

    fn discover(&mut self, now: Now, random: &mut Random, send: &mut impl FnMut(Send)) {
        if !matches!(self.state, State::Selecting) || self.sent == 0 {
            self.state = State::Selecting;
            self.begin(now, random);
        }
        self.sent += 1;
        self.due = now + self.wait(random);
        send(Send::Broadcast(self.message(Kind::Discover, now)));
    }

    fn request(
        &mut self,
        now: Now,
        random: &mut Random,
        offer: &Lease,
        send: &mut impl FnMut(Send),
    ) {
        self.state = State::Requesting(offer.clone());
        self.sent += 1;
        self.due = now + self.wait(random);
        send(Send::Broadcast(Message {
            requested: Some(offer.address),
            server: Some(offer.server),
            ..self.message(Kind::Request, now)
        }));
    }

    fn probe(
        &mut self,
        now: Now,
        random: &mut Random,
        lease: Lease,
        sent: u8,
        send: &mut impl FnMut(Send),
    ) {
        send(Send::Probe(lease.address));
        let sent = sent + 1;
        self.due = now
            + if sent < PROBES {
                PROBE_INTERVAL + fraction(PROBE_INTERVAL / 3, random)
            } else {
                PROBE_WAIT
            };
        self.state = State::Probing { lease, sent };
    }

    fn bind(&mut self, now: Now, lease: Lease) {
        self.confirming = lease.renew_at <= now;
        if !self.confirming {
            self.standing = Standing::Holding;
        }
        self.sent = 0;
        self.due = lease.renew_at;
        self.state = State::Bound(lease);
    }

    /// Asks for more time, or gives the address up when there is none left.
    fn renew(&mut self, now: Now, random: &mut Random, lease: Lease, send: &mut impl FnMut(Send)) {
        if now >= lease.expires {
            self.standing = Standing::Expired;
            self.sent = 0;
            self.state = State::Selecting;
            return self.discover(now, random, send);
        }
        let rebinds = now >= lease.rebind_at;
        let first = match &self.state {
            State::Renewing(_) => rebinds,
            State::Rebinding(_) => false,
            _ => true,
        };
        if first {
            self.begin(now, random);
        }
        if rebinds && self.sent > 0 {
            self.standing = Standing::Unanswered;
        }
        self.sent += 1;
        self.due = self.next_renewal(now, random, &lease, rebinds);
        let (from, to) = (lease.address, lease.server);
        let message = Message {
            own: Some(from),
            ..self.message(Kind::Request, now)
        };
        if rebinds {
            self.state = State::Rebinding(lease);
            send(Send::BroadcastFrom(from, message));
        } else {
            self.state = State::Renewing(lease);
            send(Send::Unicast { from, to, message });
        }
    }

    /// When the message that was just sent for a lease is repeated. A confirmation is not put off like a renewal, which has
    /// half the lease for it: with a lease of another network nothing passes. It is repeated like any first message
    /// (RFC 2131 §4.1), and only then as rarely as a renewal (§4.4.5), or never so if the lease has no end.
    fn next_renewal(&self, now: Now, random: &mut Random, lease: &Lease, rebinds: bool) -> Now {
        let is_endless = lease.expires == ENDLESS;
        if is_endless || self.confirming && self.sent <= self.config.retry_max {
            return (now + self.wait(random)).min(lease.expires);
        }
        let end = if rebinds {
            lease.expires
        } else {
            lease.rebind_at
        };
        let least = RENEWAL_MIN
            .min(now.until(lease.expires) / 8)
            .max(Duration::from_secs(1));
        (now + (now.until(end) / 2).max(least)).min(end)
    }

    fn message(&self, kind: Kind, now: Now) -> Message {
        Message {
            kind,
            xid: self.xid,
            secs: u16::try_from(self.since.until(now).as_secs()).unwrap_or(u16::MAX),
            mac: self.mac,
            own: None,
            requested: None,
            server: None,
        }
    }

    /// The pause after the message that was just sent: doubled with each, and never quite the same (RFC 2131 §4.1).
    fn wait(&self, random: &mut Random) -> Duration {
        let first = self.config.timeout;
        let doubled = first * (1 << self.sent.saturating_sub(1).min(8));
        let wait = doubled.min(MAX_WAIT.max(first));
        let spread = (wait / 4).min(Duration::from_secs(1));
        wait - spread + fraction(spread * 2, random)
    }

    /// The lease that a message grants; none if it makes no sense.
    fn sound(
        &self,
        now: Now,
        random: &mut Random,
        server: Ipv4Addr,
        reply: &Reply,
    ) -> Option<Lease> {
        let address = reply.address;
        let prefix_len = reply.prefix_len.unwrap_or_else(|| by_class(address));
        let net = Ipv4Net::new(address, prefix_len).ok()?;
        let at_an_end = prefix_len < 31 && (address == net.network() || address == net.broadcast());
        if !is_host(address) || !is_host(server) || prefix_len < MIN_PREFIX_LEN || at_an_end {
            return None;
        }
        let sound_route = |(to, via): &(Ipv4Net, Ipv4Addr)| {
            let to_hosts = to.prefix_len() == 0 || is_host(to.addr());
            to_hosts && *via != address && (via.is_unspecified() || is_host(*via))
        };
        let (gateway, routes) = match &reply.routes {
            Some(routes) => {
                let is_default = |(to, via): &&(Ipv4Net, Ipv4Addr)| {
                    to.prefix_len() == 0 && !via.is_unspecified()
                };
                let sound = || routes.iter().filter(|route| sound_route(route));
                let others = sound().filter(|(to, _)| to.prefix_len() > 0);
                (
                    sound().find(is_default).map(|(_, via)| *via),
                    others.copied().collect(),
                )
            }
            None => {
                let sound = |router: &Ipv4Addr| is_host(*router) && *router != address;
                (reply.routers.iter().copied().find(sound), Vec::new())
            }
        };
        let lease_s = reply.lease_s?;
        let (mut renew_at, mut rebind_at, mut expires) = (ENDLESS, ENDLESS, ENDLESS);
        if lease_s != u32::MAX {
            let lease = Duration::from_secs(lease_s.max(1).into());
            let seconds = |s: u32| Duration::from_secs(s.into());
            let rebinding = reply.rebinding_s.map(seconds);
            let rebinding = rebinding.filter(|t2| !t2.is_zero() && *t2 < lease);
            let rebinding = rebinding.unwrap_or(lease * 7 / 8);
            let renewal = reply.renewal_s.map(seconds);
            let renewal = renewal.filter(|t1| !t1.is_zero() && *t1 < rebinding);
            let renewal = renewal.unwrap_or((lease / 2).min(rebinding));
            renew_at = now + (renewal - fraction(renewal / 32, random));
            rebind_at = now + rebinding;
            expires = now + lease.max(self.config.lease_min);
        }
        let dns = reply.dns.iter().copied().filter(|dns| is_host(*dns));
        Some(Lease {
            address,
            prefix_len,
            server,
            gateway,
            routes,
            dns: dns.collect(),
            mtu: reply.mtu.filter(|mtu| *mtu >= MIN_MTU),
            renew_at,
            rebind_at,
            expires,
        })
    }
}

/// A random part of a duration.
fn fraction(of: Duration, random: &mut Random) -> Duration {
    let most = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.next() % most.max(1))
}

fn is_host(a: Ipv4Addr) -> bool {
    !Addr::from(std::net::IpAddr::V4(a)).is_martian_source()
}

/// The prefix length of before there were masks (RFC 950), for a server that says none.
fn by_class(a: Ipv4Addr) -> u8 {
    match a.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests;
