//! A cluster in its topology, with servers on the internet side: what most scenarios begin with.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::address::{self, FAMILIES, Family};
use crate::client::{self, Outcome, PATIENCE};
use crate::live::Live;
use crate::management::Management;
use crate::node::Node;
use crate::run::Run;
use crate::server::{PORT, Server};
use crate::topology::Topology;
use crate::wait;

/// How long a node may take to become ready. Debug builds on a busy machine need a part of it.
pub const READY: Duration = Duration::from_secs(60);
/// How long a node of a LAN may be silent before others take it for gone, in milliseconds.
pub const LAN_MS: u64 = 800;

/// N nodes, node 1 the seed and the others joiners, all told the same secret.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes, servers, namespaces.
    /// The nodes; node *n* is at index *n* − 1, see [`Cluster::node`].
    pub nodes: Vec<Node>,
    _servers: Vec<Server>,
    /// The wiring.
    pub topology: Topology,
    token: Option<String>,
}

impl Cluster {
    /// Lays out `nodes` nodes and starts the servers. No node is started.
    ///
    /// # Errors
    /// Without root, and what the tools say.
    pub fn lay_out(nodes: u8) -> Result<Cluster> {
        Cluster::lay_out_joining(nodes, |number| if number == 1 { vec![] } else { vec![1] })
    }

    /// The same, with `join` saying which nodes' join listeners each node is told of.
    ///
    /// # Errors
    /// As [`Cluster::lay_out`].
    pub fn lay_out_joining(nodes: u8, join: impl Fn(u8) -> Vec<u8>) -> Result<Cluster> {
        let run = Run::begin()?;
        let topology = Topology::build(&run, nodes)?;
        let secret = random_secret()?;
        let nodes = (1..=nodes)
            .map(|number| Node::prepare(&topology, number, &join(number), &secret))
            .collect::<Result<_>>()?;
        let mut servers = Vec::new();
        for family in FAMILIES {
            for server in [
                address::allowed_server(family),
                address::denied_server(family),
            ] {
                servers.push(Server::start(&topology.internet, server)?);
            }
        }
        Ok(Cluster {
            nodes,
            _servers: servers,
            topology,
            token: None,
        })
    }

    /// Lays out, starts every node and waits until all are ready and vote.
    ///
    /// # Errors
    /// As [`Cluster::lay_out`], and when a node does not become ready.
    pub fn start(nodes: u8) -> Result<Cluster> {
        let mut cluster = Cluster::lay_out(nodes)?;
        for node in &mut cluster.nodes {
            node.start()?;
        }
        cluster.wait_ready()?;
        cluster.wait_voters()?;
        Ok(cluster)
    }

    /// Node `number`, counted from 1.
    pub fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    /// The numbers of all nodes.
    #[must_use]
    pub fn numbers(&self) -> Vec<u8> {
        self.nodes.iter().map(Node::number).collect()
    }

    /// Waits until every node says that it is ready.
    ///
    /// # Errors
    /// When one does not: with its reasons.
    pub fn wait_ready(&mut self) -> Result<()> {
        for number in self.numbers() {
            self.wait_node_ready(number)?;
        }
        Ok(())
    }

    /// Waits until every node votes, so that the loss of one is no loss of quorum: a new member is only promoted once it
    /// has kept up for a while.
    ///
    /// # Errors
    /// When one does not.
    pub fn wait_voters(&mut self) -> Result<Duration> {
        let api = self.api(1)?;
        let count = self.nodes.len();
        wait::until_true("a vote for every node", READY, || {
            let members = api.get_json("/api/v1/cluster/members")?;
            let members = members["members"]
                .as_array()
                .context("no members in the answer")?;
            Ok(members
                .iter()
                .filter(|member| member["is_voter"] == true)
                .count()
                == count)
        })
    }

    /// Waits until the timers of consensus on every node are those of a LAN times `factor`.
    ///
    /// # Errors
    /// When one has others for long.
    pub fn wait_timers(&mut self, factor: u64) -> Result<Duration> {
        let numbers = self.numbers();
        wait::until_true("other timers on every node", READY, || {
            Ok(numbers.iter().all(|number| {
                self.api(*number)
                    .and_then(|api| api.get_json("/api/v1/stats"))
                    .is_ok_and(|stats| stats["cluster"]["detection_time_ms"] == LAN_MS * factor)
            }))
        })
    }

    /// Waits until one node says that it is ready, and returns how long that took.
    ///
    /// # Errors
    /// When it ends or does not become ready: with its reasons.
    pub fn wait_node_ready(&mut self, number: u8) -> Result<Duration> {
        let node = self.node(number);
        wait::until_true(&format!("readiness of node {number}"), READY, || {
            node.ensure_running()?;
            let response = node.management()?.get("/ready")?;
            ensure!(
                response.status == 200,
                "{} {}",
                response.status,
                response.text()
            );
            Ok(true)
        })
    }

    /// A client of node `number`'s API with an administrator's token, minted once and good at every node.
    ///
    /// # Errors
    /// When no running node mints one, or the node has no CA yet.
    pub fn api(&mut self, number: u8) -> Result<Management> {
        let token = match self.token.take() {
            Some(token) => token,
            None => {
                let running =
                    |node: &mut Node| node.is_running().then(|| node.mint_token("lab", "admin"));
                self.nodes
                    .iter_mut()
                    .find_map(running)
                    .context("no node runs")??
            }
        };
        let management = self
            .node(number)
            .management()
            .map(|management| management.with_token(&token));
        self.token = Some(token);
        management
    }

    /// The administrator's token, once there is one.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The number of the leader, as node `asked` sees it.
    ///
    /// # Errors
    /// While there is none.
    pub fn leader(&mut self, asked: u8) -> Result<u8> {
        let members = self.api(asked)?.get_json("/api/v1/cluster/members")?;
        let members = members["members"]
            .as_array()
            .context("no members in the answer")?;
        let leader = members
            .iter()
            .find(|member| member["role"] == "leader")
            .context("no leader among the members")?;
        self.number_at(leader)
    }

    /// The id of node `number` in the API, as node `asked` sees it.
    ///
    /// # Errors
    /// When it is not a member.
    pub fn node_id(&mut self, asked: u8, number: u8) -> Result<String> {
        let members = self.api(asked)?.get_json("/api/v1/cluster/members")?;
        let members = members["members"]
            .as_array()
            .context("no members in the answer")?;
        let own = address::cluster(number).to_string();
        let member = members
            .iter()
            .find(|member| member["addr"] == own)
            .with_context(|| format!("no member {own}"))?;
        Ok(member["node_id"]
            .as_str()
            .context("node_id is a string")?
            .to_owned())
    }

    /// Connects once through node `number` to a server.
    #[must_use]
    pub fn probe(&self, number: u8, server: IpAddr) -> Outcome {
        let source = address::client(number, family_of(server));
        client::probe(
            &self.topology.client,
            source,
            SocketAddr::new(server, PORT),
            PATIENCE,
        )
    }

    /// Fetches a body through node `number` and compares it byte by byte.
    ///
    /// # Errors
    /// When it does not arrive or differs.
    pub fn fetch(&self, number: u8, server: IpAddr, size_bytes: usize) -> Result<Duration> {
        let source = address::client(number, family_of(server));
        client::fetch(
            &self.topology.client,
            source,
            SocketAddr::new(server, PORT),
            size_bytes,
        )
    }

    /// Opens a live connection through node `number`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn live(&self, number: u8, server: IpAddr) -> Result<Live> {
        let source = address::client(number, family_of(server));
        Live::open(&self.topology.client, source, SocketAddr::new(server, PORT))
    }

    fn number_at(&self, member: &Value) -> Result<u8> {
        let address = member["addr"].as_str().context("addr is a string")?;
        let numbers = self.nodes.iter().map(Node::number);
        numbers
            .into_iter()
            .find(|&number| address::cluster(number).to_string() == address)
            .with_context(|| format!("{address} is no node of the lab"))
    }
}

/// A policy that lets the inside reach TCP and UDP port 80 and answers to pings at `allowed`, and nothing else.
#[must_use]
pub fn policy_allowing(allowed: &[IpAddr]) -> Value {
    let rule = |id: &str, selectors: Value| {
        let mut matcher = selectors;
        matcher["dst_ips"] = json!(allowed);
        json!({"id": id, "action": "allow", "match": matcher})
    };
    json!({
        "default_policy": "deny",
        "source_groups": [{
            "id": "clients",
            "mode": "enforce",
            "sources": {"cidrs": address::INSIDE},
            "rules": [
                rule("web", json!({"proto": "tcp", "dst_ports": [PORT, "5201"]})),
                rule("echo", json!({"proto": "udp", "dst_ports": [PORT, "5201", "33434-33534"]})),
                rule("ping", json!({"proto": "icmp", "icmp_types": [8]})),
                rule("ping6", json!({"proto": 58, "icmp_types": [128]})),
            ],
        }],
    })
}

/// The allowed servers of both families.
#[must_use]
pub fn allowed_servers() -> Vec<IpAddr> {
    FAMILIES
        .iter()
        .map(|&family| address::allowed_server(family))
        .collect()
}

/// The IP version of an address.
#[must_use]
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

/// 256 bits as 64 hexadecimal digits: the bootstrap secret that every node is given before there is a cluster.
fn random_secret() -> Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
