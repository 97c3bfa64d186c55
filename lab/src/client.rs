//! Clients: connections from a chosen source address, so that the test says which node they go through.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with};

use crate::http;
use crate::netns::Netns;
use crate::server::pattern;

/// How long a client waits for a connection or an answer before it calls it denied.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// What became of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake completed.
    Connected,
    /// A reset, or an ICMP error, came back.
    Refused,
    /// Nothing came back.
    Silent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Connected => "connected",
            Outcome::Refused => "refused",
            Outcome::Silent => "no answer",
        })
    }
}

/// A TCP connection in the *current* namespace, from `source` if there is one; every operation on it is bounded by
/// `limit`.
///
/// # Errors
/// As `connect(2)`; `EINPROGRESS` when the connection does not come about in time.
pub fn connect_from(
    source: Option<IpAddr>,
    target: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    connect_socket(source, target, limit, |_| Ok(()))
}

fn connect_socket(
    source: Option<IpAddr>,
    target: SocketAddr,
    limit: Duration,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )?;
    set_socket_reuseaddr(&socket, true)?;
    prepare(&socket)?;
    if let Some(source) = source {
        bind(&socket, &SocketAddr::new(source, 0))?;
    }
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    connect(&socket, &target)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TCP connection in the *current* namespace whose packets carry a mark, by which they may be routed.
///
/// # Errors
/// As [`connect_from`].
pub fn connect_marked(
    source: IpAddr,
    mark: Option<u8>,
    target: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    connect_socket(Some(source), target, limit, |socket| {
        if let Some(mark) = mark {
            setsockopt(socket, sockopt::Mark, &mark.into())?;
        }
        Ok(())
    })
}

/// Tries to connect from `source` to `target` and says what happened.
#[must_use]
pub fn probe(netns: &Netns, source: IpAddr, target: SocketAddr, limit: Duration) -> Outcome {
    netns.enter(|| match connect_from(Some(source), target, limit) {
        Ok(_) => Outcome::Connected,
        // A connect that outlives the socket's send time limit is still in progress.
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Outcome::Silent,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Outcome::Silent
        }
        Err(_) => Outcome::Refused,
    })
}

/// Fetches `size_bytes` patterned bytes over HTTP, compares every byte, and returns the time that it took.
///
/// # Errors
/// When the connection fails or a byte differs.
pub fn fetch(
    netns: &Netns,
    source: IpAddr,
    target: SocketAddr,
    size_bytes: usize,
) -> Result<Duration> {
    let begin = Instant::now();
    let (path, expected) = patterned(target, size_bytes);
    let response = exchange(netns, source, target, "GET", &path, b"")?;
    ensure!(
        response.body == expected,
        "GET {path}: the body differs at byte {:?} (got {} of {size_bytes} bytes)",
        response
            .body
            .iter()
            .zip(&expected)
            .position(|(got, want)| got != want),
        response.body.len()
    );
    Ok(begin.elapsed())
}

/// Sends `size_bytes` patterned bytes over HTTP, which the server compares, and returns the time that it took.
///
/// # Errors
/// When the connection fails or a byte differs.
pub fn put(
    netns: &Netns,
    source: IpAddr,
    target: SocketAddr,
    size_bytes: usize,
) -> Result<Duration> {
    let begin = Instant::now();
    let (path, body) = patterned(target, size_bytes);
    exchange(netns, source, target, "PUT", &path, &body)?;
    Ok(begin.elapsed())
}

/// The path and the bytes of a body of this size.
fn patterned(target: SocketAddr, size_bytes: usize) -> (String, Vec<u8>) {
    let seed = u64::from(std::process::id()) ^ (size_bytes as u64) << 20 ^ u64::from(target.port());
    (
        format!("/bytes/{size_bytes}/{seed}"),
        pattern(seed, size_bytes),
    )
}

/// One request, which the server has to say yes to.
fn exchange(
    netns: &Netns,
    source: IpAddr,
    target: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<http::Response> {
    let response = netns.enter(|| -> Result<http::Response> {
        let mut stream = connect_from(Some(source), target, PATIENCE.max(Duration::from_secs(5)))?;
        Ok(http::exchange(
            &mut stream,
            method,
            &target.to_string(),
            path,
            &[],
            body,
        )?)
    });
    let response =
        response.with_context(|| format!("{method} {path} from {source} at {target}"))?;
    ensure!(
        response.status == 200,
        "{method} {path}: status {}",
        response.status
    );
    Ok(response)
}

/// Sends `payload` to a UDP echo server and returns whether the same bytes came back in time.
///
/// # Errors
/// When the socket cannot be made.
pub fn udp_echo(
    netns: &Netns,
    source: IpAddr,
    target: SocketAddr,
    payload: &[u8],
    limit: Duration,
) -> Result<bool> {
    netns.enter(|| {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect(target)?;
        socket.send(payload)?;
        let mut buffer = vec![0; 65_536];
        match socket.recv(&mut buffer) {
            Ok(length) => Ok(&buffer[..length] == payload),
            Err(_) => Ok(false),
        }
    })
}

/// Sends `bytes` on a connection and reads whatever comes back until the other side ends it or time is up. Says nothing
/// about what that was: the sender of garbage only wants the receiver to live.
pub fn throw(netns: &Netns, target: SocketAddr, bytes: &[u8], limit: Duration) {
    netns.enter(|| {
        if let Ok(mut stream) = connect_from(None, target, limit) {
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
}
