//! A stream of queries, one every few milliseconds, each sent once: whoever loses one shows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::message;
use super::stub::A;
use super::{NUMBERS, cycles};

/// Between two queries.
const PAUSE: Duration = Duration::from_millis(4);
/// What the last answers may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of a stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Queries sent.
    pub sent: usize,
    /// Names that were never answered, or not with an address, and when they were sent.
    pub lost: Vec<(String, Instant)>,
    /// The times of the others.
    pub times: Vec<Duration>,
}

impl Stream {
    /// Sends queries in the *current* namespace until `over` is set, every other for a name that was asked for before.
    ///
    /// # Errors
    /// When the socket cannot be made, or the kernel says that nobody listens.
    pub fn run(source: IpAddr, server: SocketAddr, over: &AtomicBool) -> Result<Stream> {
        let socket = UdpSocket::bind((source, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PAUSE))?;
        let mut stream = Stream::default();
        let mut pending = HashMap::new();
        let mut buffer = [0; 4096];
        let mut last = None;
        let mut sent = Instant::now();
        loop {
            let ends = over.load(Ordering::Relaxed);
            if !ends && sent.elapsed() >= PAUSE {
                let (_, name) = last.take().unwrap_or_else(|| {
                    let fresh = cycles::fresh();
                    last = Some(fresh.clone());
                    fresh
                });
                let id = stream.sent as u16;
                let query = message::query(id, &name, A);
                sent = Instant::now();
                socket.send(&query)?;
                pending.insert(id, (name, sent, query));
                stream.sent += 1;
            }
            if ends && (pending.is_empty() || sent.elapsed() > PATIENCE) {
                break;
            }
            let Ok(length) = socket.recv(&mut buffer) else {
                continue;
            };
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            if let Some((name, at, query)) = pending.remove(&id) {
                match message::read(&query, &buffer[..length]) {
                    Some(said) if said.addresses.len() == 1 => stream.times.push(at.elapsed()),
                    _ => stream.lost.push((name, at)),
                }
            }
        }
        let unanswered = pending.into_values();
        stream
            .lost
            .extend(unanswered.map(|(name, at, _)| (name, at)));
        Ok(stream)
    }

    /// Sends `count` queries in the *current* namespace that no upstream ever answers, from the `first` of such names on, and
    /// returns their socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn unanswerable(
        source: IpAddr,
        server: SocketAddr,
        first: u16,
        count: u16,
    ) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((source, 0))?;
        socket.connect(server)?;
        for id in first..first + count {
            let name = format!("n{}.never.hostile.test", NUMBERS - 1 - u32::from(id));
            socket.send(&message::query(id, &name, A))?;
            if id % 20 == 19 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(socket)
    }
}
