//! The servers on the internet side: HTTP with bodies that the client can compute, an endless numbered stream, and a
//! UDP echo. Threads in their namespace; they end when the value is dropped.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::netns::Netns;

/// The port of HTTP and of the UDP echo.
pub const PORT: u16 = 80;
/// How soon a thread notices that it is to end.
const NOTICE: Duration = Duration::from_millis(100);
/// Between two lines of `/ticks`.
pub const TICK: Duration = Duration::from_millis(10);

/// A server at one address: HTTP on TCP 80, echo on UDP 80.
///
/// * `GET /bytes/SIZE/SEED`: [`pattern`].
/// * `PUT /bytes/SIZE/SEED`: takes the same bytes; 422 when others come.
/// * `GET /ticks`: the lines `0`, `1`, `2` … without end, one every [`TICK`].
/// * `GET /who`: the client's address as the server sees it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts the server at `address`, which the namespace must have.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(netns: &Netns, address: IpAddr) -> Result<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let at = SocketAddr::new(address, PORT);
        let (listener, socket) = netns
            .enter(|| -> io::Result<_> { Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?)) })?;
        set_socket_timeout(&listener, Timeout::Recv, Some(NOTICE))?;
        socket.set_read_timeout(Some(NOTICE))?;
        let (http_stop, echo_stop) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::Builder::new()
                .name("lab-http".to_owned())
                .spawn(move || accept(&listener, &http_stop))?,
            thread::Builder::new()
                .name("lab-echo".to_owned())
                .spawn(move || echo(&socket, &echo_stop))?,
        ];
        Ok(Server { stop, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The bytes that `GET /bytes/SIZE/SEED` answers with: xorshift, so that a lost, repeated or swapped piece shows.
#[must_use]
pub fn pattern(seed: u64, size_bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    while bytes.len() < size_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size_bytes);
    bytes
}

fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            let stop = Arc::clone(stop);
            thread::spawn(move || {
                // A client that goes away in the middle is no news.
                let _ = serve(&stream, &stop);
            });
        }
    }
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn serve(stream: &TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["bytes", size, seed] => match (size.parse(), seed.parse()) {
            (Ok(size), Ok(seed)) if method == "PUT" => {
                let mut body = vec![0; size];
                reader.read_exact(&mut body)?;
                let status = match body == pattern(seed, size) {
                    true => "200 OK",
                    false => "422 Unprocessable Content",
                };
                respond(stream, status, b"")
            }
            (Ok(size), Ok(seed)) => respond(stream, "200 OK", &pattern(seed, size)),
            _ => respond(stream, "400 Bad Request", b""),
        },
        ["ticks"] => ticks(stream, stop),
        ["who"] => respond(
            stream,
            "200 OK",
            stream.peer_addr()?.ip().to_string().as_bytes(),
        ),
        _ => respond(stream, "404 Not Found", b""),
    }
}

fn respond(mut stream: &TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn ticks(mut stream: &TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.write_all(format!("{number}\n").as_bytes())?;
        thread::sleep(TICK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_reproducible_and_depends_on_the_seed() {
        assert_eq!(pattern(7, 1000), pattern(7, 1000));
        assert_eq!(pattern(7, 10)[..], pattern(7, 1000)[..10]);
        assert_ne!(pattern(7, 1000), pattern(9, 1000));
        assert_eq!(pattern(7, 13).len(), 13);
    }
}
