//! What tests of names need beside the usual wiring: a resolver on the management segment, servers at every address of a
//! range behind the internet's router, a client that draws the node for each of its packets, and connections that exchange
//! bytes.
//!
//! ```text
//!   switch ── resolver    172.31.0.250 scripted, .251 unbound
//!   internet ── names     198.18.0.0/15, 2001:db8:f::/64: what names stand for; everything that they must not stand for
//! ```

mod connections;
mod cycles;
mod message;
mod resolver;
mod stream;
mod stub;
mod unbound;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::address::{self, FAMILIES, Family};
use crate::cluster::Cluster;
use crate::netns::Netns;
use crate::server::PORT;
use crate::topology::Segment;

pub use connections::Connections;
pub use cycles::{Cycles, percentile};
pub use resolver::{LONG_CHAIN, Resolver, SPECIAL};
pub use stream::Stream;
pub use stub::{A, AAAA, Ask, Reply, connect_through, kind_of};
pub use unbound::Unbound;

/// Where the scripted resolver answers.
pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 31, 0, 250)), 53);
/// Where unbound answers.
pub const UNBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 31, 0, 251)), 53);
/// A port that the servers listen on and that only names below `alt.test` are allowed on.
pub const ALT_PORT: u16 = 81;
/// How many numbers there are for names.
pub const NUMBERS: u32 = 1 << 17;

/// The address inside at which clients ask, whichever node takes the query.
#[must_use]
pub fn service(family: Family) -> SocketAddr {
    let address = match family {
        Family::V4 => IpAddr::from([10, 1, 0, 53]),
        Family::V6 => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 0x53]),
    };
    SocketAddr::new(address, 53)
}

/// What the names with this number stand for.
#[must_use]
pub fn right(number: u32, family: Family) -> IpAddr {
    assert!(
        number < NUMBERS,
        "198.18.0.0/15 has no address for {number}"
    );
    match family {
        Family::V4 => Ipv4Addr::from_bits(0xc612_0000 + number).into(),
        Family::V6 => in_v6(0xf, number),
    }
}

/// What a forged answer about the names with this number says.
#[must_use]
pub fn wrong(number: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([203, 0, 113, (number % 256) as u8]),
        Family::V6 => in_v6(0xe, number),
    }
}

fn in_v6(subnet: u16, number: u32) -> IpAddr {
    let [high, low] = [(number >> 16) as u16, number as u16];
    Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, high, low).into()
}

/// The policy of these tests: zones with a port each, the last one for whoever has asked alone, and queries from inside and
/// from the operator.
#[must_use]
pub fn policy() -> Value {
    let rule = |id: &str, names: &str, port: u16| {
        json!({"id": id, "action": "allow",
            "match": {"dns_names": [names], "proto": "tcp", "dst_ports": [port]}})
    };
    let mut asker_alone = rule("asked", "**.asked.test", PORT);
    asker_alone["grant_scope"] = json!("client");
    let mut sources = vec![format!("{}/32", address::OPERATOR)];
    sources.extend(address::INSIDE.map(str::to_owned));
    json!({
        "default_policy": "deny",
        "source_groups": [{
            "id": "clients",
            "mode": "enforce",
            "sources": {"cidrs": sources},
            "rules": [
                rule("fresh", "**.fresh.test", PORT),
                rule("hostile", "**.hostile.test", PORT),
                rule("alt", "**.alt.test", ALT_PORT),
                asker_alone,
            ],
        }],
    })
}

/// The resolver and the servers. Ended when it is dropped.
#[derive(Debug)]
pub struct Names {
    /// The scripted resolver.
    pub resolver: Resolver,
    _servers: Task,
    resolvers: Arc<Netns>,
    _names: Netns,
}

impl Names {
    /// Lays it out beside a cluster whose nodes have not been started, and tells the nodes whom to ask.
    ///
    /// # Errors
    /// What `ip` says, and when an address cannot be listened on.
    pub fn lay_out(cluster: &Cluster, upstreams: &[SocketAddr]) -> Result<Names> {
        let topology = &cluster.topology;
        let run = topology.switch.run();
        let names = Netns::add(run, "names")?;
        lay_range(&topology.internet, &names)?;
        let resolvers = Arc::new(Netns::add(run, "resolver")?);
        topology.plug(&resolvers, Segment::Management, "dns")?;
        for resolver in [RESOLVER, UNBOUND] {
            resolvers.ip(&format!("addr add {}/24 dev mgmt0", resolver.ip()))?;
        }
        for family in FAMILIES {
            lay_ways(&topology.client, topology.node_count(), family)?;
        }
        topology.client.set_resolver(service(Family::V4).ip())?;
        for node in &cluster.nodes {
            node.serve_names(&FAMILIES.map(|family| service(family).ip()), upstreams)?;
        }
        Ok(Names {
            resolver: Resolver::start(&resolvers)?,
            _servers: serve(&names)?,
            resolvers,
            _names: names,
        })
    }

    /// Starts unbound at [`UNBOUND`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn unbound(&self) -> Result<Unbound> {
        Unbound::start(&self.resolvers)
    }
}

/// `nodes` nodes that ask the scripted resolver, with [`policy`] in force.
///
/// # Errors
/// As [`Cluster::start`].
pub fn start(nodes: u8) -> Result<(Cluster, Names)> {
    start_with(nodes, &[])
}

/// The same with these keys of the section `dns`.
///
/// # Errors
/// As [`Cluster::start`].
pub fn start_with(nodes: u8, keys: &[&str]) -> Result<(Cluster, Names)> {
    let mut cluster = Cluster::lay_out(nodes)?;
    let names = Names::lay_out(&cluster, &[RESOLVER])?;
    for node in &mut cluster.nodes {
        for key in keys {
            node.configure("dns", key)?;
        }
        node.start()?;
    }
    cluster.wait_ready()?;
    cluster.wait_voters()?;
    cluster.api(1)?.put_policy(&policy())?;
    Ok((cluster, names))
}

/// Routes what names may stand for, rightly or not, from the internet's router to a namespace that has every such address.
fn lay_range(internet: &Netns, names: &Netns) -> Result<()> {
    internet.link("names0", names, "out0")?;
    internet.sysctl("ipv4/ip_forward", "1")?;
    internet.sysctl("ipv6/conf/all/forwarding", "1")?;
    internet.ip("addr add 10.255.0.1/30 dev names0\naddr add fd00:ff::1/64 dev names0 nodad")?;
    names.ip("addr add 10.255.0.2/30 dev out0\naddr add fd00:ff::2/64 dev out0 nodad")?;
    // What is forwarded has neighbours asked for by link-local addresses, and the kernel's own ones are not usable at once.
    internet.ip("addr add fe80::fe/64 dev names0 nodad\naddr add fe80::fe/64 dev out0 nodad")?;
    names.ip("addr add fe80::fd/64 dev out0 nodad")?;
    let mut ranges = vec![
        "198.18.0.0/15".to_owned(),
        "203.0.113.0/24".to_owned(),
        "2001:db8:e::/64".to_owned(),
        "2001:db8:f::/64".to_owned(),
    ];
    let routed = SPECIAL.iter().filter(|special| special.routed);
    ranges.extend(routed.map(|special| special.address.to_string()));
    for range in ranges {
        let (family, hop) = if range.contains(':') {
            (Family::V6, "fd00:ff::2")
        } else {
            (Family::V4, "10.255.0.2")
        };
        internet.ip_of(family, &format!("route add {range} via {hop} dev names0"))?;
        names.ip_of(family, &format!("route add local {range} dev lo"))?;
    }
    names.ip_of(Family::V4, "route add default via 10.255.0.1 dev out0")?;
    names.ip_of(Family::V6, "route add default via fd00:ff::1 dev out0")
}

/// The client's packets go through the node whose number is their mark; those to the service address go like all others.
fn lay_ways(client: &Netns, nodes: u8, family: Family) -> Result<()> {
    let mut hops = String::new();
    for node in 1..=nodes {
        let table = 100 + u32::from(node);
        client.ip_of(family, &format!("rule add fwmark {node} table {table}"))?;
        hops += &format!(" nexthop via {} dev in0", address::inside(node, family));
    }
    let (service, source) = (service(family).ip(), address::spread_client(family));
    client.ip_of(family, &format!("route add {service} src {source}{hops}"))
}

/// Something that runs in a namespace until it is dropped.
#[derive(Debug)]
struct Task {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Task {
    /// Runs what `begin` begins, on a thread of its own that has entered the namespace.
    fn run<F, W>(netns: &Netns, name: &str, begin: F) -> Result<Task>
    where
        F: AsyncFnOnce() -> std::io::Result<W> + Send + 'static,
        W: Future<Output = ()> + 'static,
    {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let thread = netns.spawn(name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime of one thread");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                match begin().await {
                    Ok(work) => {
                        let _ = begun.send(Ok(()));
                        tokio::select! {
                            () = work => {}
                            _ = stopped => {}
                        }
                    }
                    Err(error) => drop(begun.send(Err(error))),
                }
            });
        })?;
        has_begun.recv()??;
        Ok(Task {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// At every address of the namespace: HTTP that says the name asked for, and an echo to those who do not speak HTTP.
fn serve(netns: &Netns) -> Result<Task> {
    Task::run(netns, "lab-names", async || {
        let any = Ipv6Addr::UNSPECIFIED;
        let listeners = [
            TcpListener::bind((any, PORT)).await?,
            TcpListener::bind((any, ALT_PORT)).await?,
        ];
        let [first, second] = listeners.map(async |listener| {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    // A client that goes away in the middle is no news.
                    tokio::task::spawn_local(async { drop(talk(stream).await) });
                }
            }
        });
        Ok(async {
            tokio::join!(first, second);
        })
    })
}

async fn talk(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let Some(request) = buffer[..length].strip_prefix(b"GET ") else {
            stream.write_all(&buffer[..length]).await?;
            continue;
        };
        let request = String::from_utf8_lossy(request);
        let host = request
            .lines()
            .find_map(|line| line.strip_prefix("Host: "))
            .unwrap_or_default();
        let length = host.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n");
        return stream
            .write_all(format!("{head}\r\n{host}").as_bytes())
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_address_of_each_family() {
        let check = |address: IpAddr, expected: &str| assert_eq!(address.to_string(), expected);
        check(right(258, Family::V4), "198.18.1.2");
        check(right(NUMBERS - 1, Family::V4), "198.19.255.255");
        check(right(258, Family::V6), "2001:db8:f::102");
        check(wrong(258, Family::V4), "203.0.113.2");
        check(wrong(65_537, Family::V6), "2001:db8:e::1:1");
    }
}
