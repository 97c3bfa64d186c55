//! A live connection: reads a server's endless numbered lines through a node and keeps account of them, so that a test
//! can say "it went on without losing a byte" or "it was ended".

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::client::connect_from;
use crate::netns::Netns;

/// How long a live connection may be silent before it counts as cut.
pub const SILENCE: Duration = Duration::from_secs(2);

/// The account of a live connection.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Lines received, all in sequence.
    pub lines: u64,
    /// The longest time between two lines so far.
    pub longest_gap: Duration,
    /// Why it ended, if it did: end of stream, reset, silence, or a line out of sequence.
    pub ended: Option<String>,
}

/// An open `GET /ticks`.
#[derive(Debug)]
pub struct Live {
    account: Arc<Mutex<Account>>,
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Opens the stream from `source` and waits for its first line.
    ///
    /// # Errors
    /// When it cannot be connected or sends nothing.
    pub fn open(netns: &Netns, source: IpAddr, server: SocketAddr) -> Result<Live> {
        let mut stream = netns
            .enter(|| connect_from(Some(source), server, SILENCE))
            .with_context(|| format!("live connection from {source} to {server}"))?;
        stream.write_all(format!("GET /ticks HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        while line != "0\n" {
            line.clear();
            anyhow::ensure!(
                reader.read_line(&mut line)? > 0,
                "{server} ended the stream before its first line"
            );
        }
        let account = Arc::new(Mutex::new(Account {
            lines: 1,
            ..Account::default()
        }));
        let shared = Arc::clone(&account);
        let thread = std::thread::Builder::new()
            .name("lab-live".to_owned())
            .spawn(move || follow(reader, &shared))?;
        Ok(Live {
            account,
            stream,
            thread: Some(thread),
        })
    }

    /// The account so far.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets the longest gap so far, so that the next account speaks of what follows.
    pub fn begin_gap(&self) {
        self.account
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .longest_gap = Duration::ZERO;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(mut reader: BufReader<TcpStream>, account: &Mutex<Account>) {
    let mut last = Instant::now();
    let mut line = String::new();
    loop {
        line.clear();
        let read = reader.read_line(&mut line);
        let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = last.elapsed();
        last = Instant::now();
        account.longest_gap = account.longest_gap.max(gap);
        account.ended = match read {
            Ok(0) => Some("the stream ended".to_owned()),
            Err(error) => Some(error.to_string()),
            Ok(_) if line.trim_end() != account.lines.to_string() => Some(format!(
                "line {:?} where {} was due",
                line.trim_end(),
                account.lines
            )),
            Ok(_) => {
                account.lines += 1;
                continue;
            }
        };
        return;
    }
}
