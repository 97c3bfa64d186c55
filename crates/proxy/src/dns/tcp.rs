//! Clients over TCP (RFC 7766).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::dns::limit::Shares;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::pool;
use super::service::{By, Handled, Held, Service};
use super::udp::QUERY_BYTES;

/// Connections at a time.
const CONNECTIONS: usize = 1_024;
/// One client's may be this part of those that yet may be.
const CONNECTIONS_PART: usize = 64;
/// Queries of one connection that may wait at a time; no more are read meanwhile.
const WAITING: usize = 32;
/// A connection on which no whole query comes for this long is closed, and one that takes no answers.
const IDLE: Duration = Duration::from_secs(10);
/// Queries are read for so long after the stop: a client that has just connected has one on its way.
const LINGER: Duration = Duration::from_millis(20);
/// Pause after a connection could not be taken, which is for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener on an address that may have several.
pub(super) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    Ok(socket.into())
}

/// Takes connections until `stop`; queries that are on their way by then are answered still.
pub(super) async fn serve(service: Arc<Service>, listener: TcpListener, stop: CancellationToken) {
    let open = Arc::new(Mutex::new(Shares::new(CONNECTIONS, CONNECTIONS_PART)));
    loop {
        let (stream, client) = match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection cannot be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(held) = Held::take(&open, client.ip()) else {
            service.metrics.refused_connections.inc();
            continue;
        };
        let (service, stop) = (Arc::clone(&service), stop.clone());
        service.tasks.clone().spawn(async move {
            if let Err(error) = connection(service, stream, client.ip(), stop).await {
                tracing::trace!(%error, "a client's connection ends");
            }
            drop(held);
        });
    }
}

async fn connection(
    service: Arc<Service>,
    stream: TcpStream,
    client: IpAddr,
    stop: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let mut answering = pin!(answer_all(
        service,
        reader,
        Arc::new(Writer::new(writer)),
        client
    ));
    if let Some(ended) = stop.run_until_cancelled(&mut answering).await {
        return ended;
    }
    tokio::time::timeout(LINGER, answering)
        .await
        .unwrap_or(Ok(()))
}

/// Answers until the client ends the connection, or takes no answers, or is silent.
async fn answer_all(
    service: Arc<Service>,
    mut reader: OwnedReadHalf,
    writer: Arc<Writer>,
    client: IpAddr,
) -> io::Result<()> {
    let waiting = Arc::new(Semaphore::new(WAITING));
    let (mut text, mut out) = (String::new(), Vec::new());
    loop {
        let reading = tokio::time::timeout(IDLE, pool::read(&mut reader, QUERY_BYTES));
        let Some(message) = writer.end.run_until_cancelled(reading).await else {
            return Ok(());
        };
        let message = message??;
        match service.handle(&message, client, By::Stream, &mut text, &mut out) {
            // Nothing can be answered, so nothing sensible will follow.
            Handled::Silent => return Ok(()),
            Handled::Answered => writer.answer(&out, IDLE).await?,
            Handled::Later(later) => {
                let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else {
                    return Ok(());
                };
                let (service, writer) = (Arc::clone(&service), Arc::clone(&writer));
                service.tasks.clone().spawn(async move {
                    let mut out = Vec::new();
                    service.finish(later, &mut out).await;
                    // If it fails, no more queries are read.
                    let _ = writer.answer(&out, IDLE).await;
                    drop(permit);
                });
            }
        }
    }
}

/// The way back to a client. It is shut after an answer that was not written whole, since the client could not tell
/// where the next one begins.
struct Writer {
    half: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    /// Ends when it is shut.
    end: CancellationToken,
}

impl Writer {
    fn new(half: OwnedWriteHalf) -> Self {
        Self {
            half: tokio::sync::Mutex::new(Some(half)),
            end: CancellationToken::new(),
        }
    }

    async fn answer(&self, answer: &[u8], limit: Duration) -> io::Result<()> {
        let mut half = self.half.lock().await;
        let writer = half.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let written = match tokio::time::timeout(limit, pool::write(writer, answer)).await {
            Ok(written) => written,
            Err(elapsed) => Err(elapsed.into()),
        };
        if written.is_err() {
            *half = None;
            self.end.cancel();
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A client that reads nothing until an answer has been cut off.
    #[tokio::test]
    async fn nothing_follows_an_answer_that_was_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (_reader, half) = listener.accept().await.unwrap().0.into_split();
        let writer = Writer::new(half);
        let answer = vec![7; 50_000];
        let mut whole = 0;
        while writer
            .answer(&answer, Duration::from_millis(200))
            .await
            .is_ok()
        {
            assert!(!writer.end.is_cancelled());
            whole += 1;
        }
        assert!(writer.end.is_cancelled());
        let mut first = vec![0; 40_000];
        client.read_exact(&mut first).await.unwrap();
        // Though there is room again.
        assert!(writer.answer(&answer, IDLE).await.is_err());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        let came = first.len() + rest.len();
        let each = 2 + answer.len();
        assert!((whole * each..(whole + 1) * each).contains(&came), "{came}");
    }
}
