//! Connections to names that go on and on: each sends a number and waits for its echo, again and again.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cycles::fresh;
use super::stub::{Ask, connect_through, kind_of};
use super::{right, service};
use crate::address::{FAMILIES, Family};
use crate::netns::Netns;
use crate::server::PORT;
use crate::wait;

/// Between two numbers on a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// What resolving and connecting may take, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// One connection and its account.
#[derive(Debug)]
struct Connection {
    name: String,
    /// The node that it goes through.
    hop: u8,
    stream: TcpStream,
    /// Numbers that came back.
    echoed: u64,
    /// Octets of the next echo that have come.
    partial: Vec<u8>,
    sent: bool,
    ended: Option<String>,
}

/// Many of them, in a thread of their own.
#[derive(Debug)]
pub struct Connections {
    all: Arc<Mutex<Vec<Connection>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Connections {
    /// Opens `count` connections, each to a fresh name, in both families, resolved through one node and led through the next.
    ///
    /// # Errors
    /// When one does not come about.
    pub fn open(client: &Netns, nodes: &[u8], count: usize) -> Result<Connections> {
        let open = |nth: usize| -> Result<Connection> {
            let (number, name) = fresh();
            let family = FAMILIES[nth % 2];
            let (resolver, hop) = (nodes[nth % nodes.len()], nodes[(nth + 1) % nodes.len()]);
            let ask = Ask::new(&name, kind_of(family)).at(service(Family::V4));
            let reply = ask.through(resolver).send(PATIENCE)?;
            let target = SocketAddr::new(right(number, family), PORT);
            ensure!(reply.addresses == [target.ip()], "{name}: {reply:?}");
            let stream = connect_through(hop, target, PATIENCE)
                .with_context(|| format!("{name} through node {hop}"))?;
            stream.set_nonblocking(true)?;
            Ok(Connection {
                name,
                hop,
                stream,
                echoed: 0,
                partial: Vec::new(),
                sent: false,
                ended: None,
            })
        };
        let all = client.enter(|| (0..count).map(open).collect::<Result<Vec<_>>>())?;
        let (all, stop) = (Arc::new(Mutex::new(all)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&all), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("lab-connections".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    for connection in &mut *shared.lock().unwrap_or_else(PoisonError::into_inner) {
                        connection.turn();
                    }
                    thread::sleep(PAUSE);
                }
            })?;
        Ok(Connections {
            all,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until every connection has had three more numbers back.
    ///
    /// # Errors
    /// When one has ended, or is silent for so long.
    pub fn go_on(&self, limit: Duration) -> Result<Duration> {
        let echoed = |connection: &Connection| connection.echoed;
        let before: Vec<_> = self.of_each(echoed);
        wait::until_true("more on every connection", limit, || {
            let behind = self
                .of_each(|connection| {
                    let Connection { name, hop, .. } = connection;
                    (
                        connection.echoed,
                        format!("{name} through node {hop}: {:?}", connection.ended),
                    )
                })
                .into_iter()
                .zip(&before)
                .filter(|((now, _), before)| *now < *before + 3)
                .map(|((_, text), _)| text)
                .collect::<Vec<_>>();
            let some = &behind[..behind.len().min(10)];
            ensure!(
                behind.is_empty(),
                "{} of {}: {some:#?}",
                behind.len(),
                before.len()
            );
            Ok(true)
        })
    }

    fn of_each<T>(&self, what: impl Fn(&Connection) -> T) -> Vec<T> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(what).collect()
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Connection {
    /// Takes what has come, and sends the next number once the last one is back.
    fn turn(&mut self) {
        if self.ended.is_none()
            && let Err(end) = self.exchange()
        {
            self.ended = Some(end.to_string());
        }
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        let expected = self.echoed.to_be_bytes();
        if !self.sent {
            // A few octets always have room in an idle connection's buffer.
            self.stream.write_all(&expected)?;
            self.sent = true;
        }
        let mut buffer = [0; 64];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.partial.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.partial.len() >= expected.len() {
            if self.partial != expected {
                return Err(ErrorKind::InvalidData.into());
            }
            self.partial.clear();
            self.echoed += 1;
            self.sent = false;
        }
        Ok(())
    }
}
