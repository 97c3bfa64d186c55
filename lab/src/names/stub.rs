//! The client: a stub resolver that asks once, and connections, each through the node that the caller draws.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::message::{self, Said};
use super::service;
use crate::address::{self, Family};
use crate::client::connect_marked;
use crate::cluster::family_of;

/// The type of IPv4 addresses.
pub const A: u16 = 1;
/// The type of IPv6 addresses.
pub const AAAA: u16 = 28;

/// The type of a family's addresses.
#[must_use]
pub fn kind_of(family: Family) -> u16 {
    match family {
        Family::V4 => A,
        Family::V6 => AAAA,
    }
}

/// An answer and how long it took.
#[derive(Debug)]
pub struct Reply {
    /// The response code.
    pub code: u8,
    /// Whether it says that it is not whole.
    pub truncated: bool,
    /// The addresses in its answer section.
    pub addresses: Vec<IpAddr>,
    /// Code and text of the extended error.
    pub extended_error: Option<(u16, String)>,
    /// From the first packet to the last.
    pub time: Duration,
}

/// A question that is asked once, of the service address unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Ask {
    name: String,
    kind: u16,
    server: SocketAddr,
    source: IpAddr,
    node: Option<u8>,
}

impl Ask {
    /// Asks for a name.
    #[must_use]
    pub fn new(name: &str, kind: u16) -> Ask {
        Ask {
            name: name.to_owned(),
            kind,
            server: service(Family::V4),
            source: address::spread_client(Family::V4),
            node: None,
        }
    }

    /// Of another server.
    #[must_use]
    pub fn at(mut self, server: SocketAddr) -> Ask {
        self.server = server;
        self.source = address::spread_client(family_of(server.ip()));
        self
    }

    /// From this address.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Ask {
        self.source = source;
        self
    }

    /// Through this node.
    #[must_use]
    pub fn through(mut self, node: u8) -> Ask {
        self.node = Some(node);
        self
    }

    /// Sends it over UDP in the *current* namespace and waits for the answer.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn send(&self, limit: Duration) -> Result<Reply> {
        let begin = Instant::now();
        let asked = || -> io::Result<Reply> {
            let socket = UdpSocket::bind((self.source, 0))?;
            mark(&socket, self.node)?;
            socket.connect(self.server)?;
            let query = message::query(next_id(), &self.name, self.kind);
            socket.send(&query)?;
            let mut buffer = [0; 4096];
            loop {
                let left = limit.saturating_sub(begin.elapsed());
                socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                let length = socket.recv(&mut buffer)?;
                if let Some(said) = message::read(&query, &buffer[..length]) {
                    return Ok(reply(said, begin.elapsed()));
                }
            }
        };
        asked().with_context(|| format!("{} after {:?}", self.name, begin.elapsed()))
    }

    /// The same over TCP.
    ///
    /// # Errors
    /// As [`Ask::send`].
    pub fn send_over_tcp(&self, limit: Duration) -> Result<Reply> {
        let begin = Instant::now();
        let asked = || -> io::Result<Reply> {
            let mut stream = connect_marked(self.source, self.node, self.server, limit)?;
            let query = message::query(next_id(), &self.name, self.kind);
            let length = u16::try_from(query.len()).expect("a query is short");
            stream.write_all(&[&length.to_be_bytes()[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer)?;
            message::read(&query, &answer)
                .map(|said| reply(said, begin.elapsed()))
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer to the query"))
        };
        asked().with_context(|| format!("{} over TCP after {:?}", self.name, begin.elapsed()))
    }
}

/// Connects in the *current* namespace through a node. With a limit below a second, which is when a first packet is sent
/// again, the connection comes about only if the first packet is let through.
///
/// # Errors
/// As [`crate::client::connect_from`].
pub fn connect_through(node: u8, target: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let source = address::spread_client(family_of(target.ip()));
    connect_marked(source, Some(node), target, limit)
}

/// Has the packets of a socket go through a node.
fn mark(socket: &impl AsFd, node: Option<u8>) -> io::Result<()> {
    if let Some(node) = node {
        setsockopt(socket, sockopt::Mark, &node.into())?;
    }
    Ok(())
}

fn next_id() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn reply(said: Said, time: Duration) -> Reply {
    Reply {
        code: said.code,
        truncated: said.truncated,
        addresses: said.addresses,
        extended_error: said.extended_error,
        time,
    }
}
