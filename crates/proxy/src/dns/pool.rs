//! Connections to an upstream, kept for the next question (RFC 7766 section 6.2.1, RFC 7858 section 3.4).

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Upstream;
use super::service::lock;

/// Connections that are kept while nobody asks.
const IDLE: usize = 8;
/// For how long; many servers close them after ten seconds.
const IDLE_FOR: Duration = Duration::from_secs(8);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Idle {
    stream: Box<dyn Stream>,
    since: Instant,
}

/// Connections to one upstream that nobody uses at the moment, the latest at the end.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

impl Pool {
    /// Sends a query and waits for the answer, over a connection that is open already or a new one.
    pub(super) async fn exchange(&self, to: &Upstream, query: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(mut stream) = self.take() {
            // The server may have closed it meanwhile, which is no failure of its.
            if let Ok(answer) = exchange(&mut stream, query).await {
                self.give(stream);
                return Ok(answer);
            }
        }
        let mut stream = dial(to).await?;
        let answer = exchange(&mut stream, query).await?;
        self.give(stream);
        Ok(answer)
    }

    fn take(&self) -> Option<Box<dyn Stream>> {
        let mut idle = lock(&self.0);
        idle.retain(|idle| idle.since.elapsed() < IDLE_FOR);
        idle.pop().map(|idle| idle.stream)
    }

    fn give(&self, stream: Box<dyn Stream>) {
        let mut idle = lock(&self.0);
        if idle.len() < IDLE {
            idle.push(Idle {
                stream,
                since: Instant::now(),
            });
        }
    }
}

async fn dial(to: &Upstream) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(to.address).await?;
    stream.set_nodelay(true)?;
    Ok(match &to.tls {
        None => Box::new(stream),
        Some(tls) => {
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            Box::new(connector.connect(tls.name.clone(), stream).await?)
        }
    })
}

async fn exchange(stream: &mut Box<dyn Stream>, query: &[u8]) -> io::Result<Vec<u8>> {
    write(stream, query).await?;
    read(stream).await
}

/// Writes a message behind its length (RFC 1035 section 4.2.2), in one piece.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// Reads a message behind its length.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
