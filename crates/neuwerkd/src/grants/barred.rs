//! Addresses that are never granted, whoever claims that a name has them: special ones, and those of the cluster's nodes.
//! A peer does not know all that this node is, and what was written down may be from before a change of the configuration.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::dns::special::Addresses;
use arc_swap::ArcSwap;
use cluster::State;
use ipnet::IpNet;
use tokio::sync::watch;

use super::Grants;
use crate::config::Config;
use crate::interfaces;

/// How often it is looked at what addresses this node has.
const LOOK: Duration = Duration::from_secs(1);

/// What is barred now.
pub(super) struct Barred {
    judge: Arc<ArcSwap<Addresses>>,
    allowed: Vec<IpNet>,
    /// Of this node, as configured, and of all members.
    ports: Vec<IpAddr>,
    members: watch::Sender<Vec<IpAddr>>,
}

impl Barred {
    pub(super) fn new(config: &Config) -> Self {
        let ports = &config.dataplane.ports;
        let ports = [&ports.inside, &ports.outside];
        let ports = ports.iter().flat_map(|port| &port.addresses);
        let ports = ports.map(IpNet::addr);
        let barred = Self {
            judge: Arc::default(),
            allowed: config.dns.allow_private_answers.clone(),
            ports: ports.chain(config.dns.served().iter().copied()).collect(),
            members: watch::Sender::default(),
        };
        barred.judge.store(Arc::new(barred.judge_by(&barred.ports)));
        barred
    }

    /// Bars nothing but what is special everywhere.
    #[cfg(test)]
    pub(super) fn nothing() -> Self {
        Self {
            judge: Arc::default(),
            allowed: Vec::new(),
            ports: Vec::new(),
            members: watch::Sender::default(),
        }
    }

    fn judge_by(&self, own: &[IpAddr]) -> Addresses {
        Addresses::new(own.to_vec(), self.allowed.clone())
    }

    /// Whether an address is barred, now and whenever it is asked.
    pub(super) fn judge(&self) -> impl Fn(IpAddr) -> bool + Send + use<> {
        let judge = Arc::clone(&self.judge);
        move |address| judge.load().special(address).is_some()
    }

    /// Takes in where members are reached.
    pub(super) fn meet(&self, state: &State) {
        let members = state.members();
        let addresses = members.flat_map(|member| {
            let addresses = &member.addresses;
            [&addresses.cluster, &addresses.join, &addresses.http].map(|text| ip(text))
        });
        let mut addresses: Vec<IpAddr> = addresses.flatten().collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.members
            .send_if_modified(|known| std::mem::replace(known, addresses.clone()) != addresses);
    }
}

/// The address in `host:port`; none if it is a name.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|address: SocketAddr| address.ip())
}

impl Grants {
    /// Bars the addresses that this node and the members have, as they change.
    pub(super) async fn keep_barred(&self) {
        let mut members = self.barred.members.subscribe();
        let mut before = self.barred.ports.clone();
        let mut host = Vec::new();
        loop {
            match interfaces::addresses() {
                Ok(addresses) => host = addresses,
                // The last known ones are better than none: nothing is granted for want of an answer.
                Err(error) => tracing::debug!(%error, "the host does not say its addresses"),
            }
            let own = self.own_addresses(&members.borrow_and_update(), &host);
            if own != before {
                self.bar(&own, &before);
                before = own;
            }
            // Without news it is looked again all the same.
            let _ = tokio::time::timeout(LOOK, members.changed()).await;
        }
    }

    /// Bars these addresses in place of those before.
    pub(super) fn bar(&self, own: &[IpAddr], before: &[IpAddr]) {
        let judge = self.barred.judge_by(own);
        self.barred.judge.store(Arc::new(judge));
        let new = own.iter().filter(|address| !before.contains(address));
        let gone = before.iter().filter(|address| !own.contains(address));
        let changed: Vec<IpAddr> = new.chain(gone).copied().collect();
        self.change(|store, now_ms| store.review(&changed, now_ms));
    }

    fn own_addresses(&self, members: &[IpAddr], host: &[IpAddr]) -> Vec<IpAddr> {
        let mut own = self.barred.ports.clone();
        own.extend(members.iter().chain(host));
        if let Some(published) = self.published.get() {
            let snapshot = published.load();
            let ports = &snapshot.settings().ports;
            let ports = ports.iter().flat_map(|port| &port.addresses);
            own.extend(ports.map(IpNet::addr));
        }
        own.sort_unstable();
        own.dedup();
        own
    }
}
