//! Connections to an upstream (RFC 7766, RFC 7858).
//!
//! Questions share a connection, each as soon as it comes, and are answered in any order (RFC 7766 section
//! 6.2.1.1). A connection stays open for a while after its last answer. One that ends takes its questions
//! with it; each is then asked once more, over a new one.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::Upstream;
use super::clock::random;
use super::service::lock;

/// Connections to one upstream.
const CONNECTIONS: usize = 8;
/// Questions that may be under way on one of them; then the next is opened.
const UNDER_WAY: usize = 256;
/// A connection on which nothing comes for this long is closed; many servers do so after ten seconds.
const IDLE_FOR: Duration = Duration::from_secs(8);
/// How long opening one may take.
const DIAL: Duration = Duration::from_secs(5);
/// A question that was given up after this long, during which nothing came, says that the connection is dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);
/// Longest message (RFC 1035 section 4.2.2).
const MAX_BYTES: usize = 65_535;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connections to one upstream.
#[derive(Default)]
pub(super) struct Pool {
    open: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// Held while one is opened, so that those who need one at the same time share it.
    dialling: Arc<tokio::sync::Mutex<()>>,
}

impl Pool {
    /// Sends a query and waits for the answer.
    pub(super) async fn exchange(&self, to: &Upstream, query: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(connection) = usable(&self.open)
            && let Ok(answer) = connection.ask(query).await
        {
            return Ok(answer);
        }
        // There was none, or it ended, which the server may do at any time.
        self.connect(to).await?.ask(query).await
    }

    async fn connect(&self, to: &Upstream) -> io::Result<Arc<Connection>> {
        let one_at_a_time = Arc::clone(&self.dialling).lock_owned().await;
        if let Some(connection) = usable(&self.open) {
            return Ok(connection);
        }
        if lock(&self.open).len() >= CONNECTIONS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (open, to) = (Arc::clone(&self.open), to.clone());
        // Of its own, so that it comes about for others even if this question is answered elsewhere meanwhile.
        let dialled = tokio::spawn(async move {
            let stream = tokio::time::timeout(DIAL, dial(&to)).await??;
            let connection = Connection::start(stream);
            lock(&open).push(Arc::clone(&connection));
            drop(one_at_a_time);
            Ok(connection)
        });
        dialled.await?
    }
}

/// The open connection with the fewest questions under way, if it takes one more.
fn usable(open: &Mutex<Vec<Arc<Connection>>>) -> Option<Arc<Connection>> {
    let mut open = lock(open);
    open.retain(|connection| lock(&connection.waiting).is_some());
    let load = |connection: &Arc<Connection>| {
        let waiting = lock(&connection.waiting);
        waiting.as_ref().map_or(usize::MAX, HashMap::len)
    };
    let (load, least) = open
        .iter()
        .map(|connection| (load(connection), connection))
        .min_by_key(|(load, _)| *load)?;
    (load < UNDER_WAY).then(|| Arc::clone(least))
}

/// Where the answers to questions under way go, by id; none once the connection has ended.
type Waiting = Option<HashMap<u16, oneshot::Sender<Vec<u8>>>>;

struct Connection {
    queries: mpsc::Sender<Vec<u8>>,
    waiting: Mutex<Waiting>,
    /// Messages that came.
    came: AtomicU64,
}

impl Connection {
    fn start(stream: Box<dyn Stream>) -> Arc<Self> {
        let (queries, asked) = mpsc::channel(UNDER_WAY);
        let connection = Arc::new(Self {
            queries,
            waiting: Mutex::new(Some(HashMap::new())),
            came: AtomicU64::new(0),
        });
        let this = Arc::clone(&connection);
        tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(stream);
            tokio::select! {
                () = this.listen(reader) => {}
                () = speak(writer, asked) => {}
            }
            this.end();
        });
        connection
    }

    async fn ask(self: Arc<Self>, query: &[u8]) -> io::Result<Vec<u8>> {
        let ended = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let (tell, answer) = oneshot::channel();
        let mut asking = Asking::begin(&self, tell).ok_or_else(ended)?;
        let mut framed = frame(query)?;
        framed[2..4].copy_from_slice(&asking.id.to_be_bytes());
        self.queries.send(framed).await.map_err(|_| ended())?;
        let mut answer = answer.await.map_err(|_| ended())?;
        asking.answered = true;
        // Ids are the connection's; the question has one of its own.
        answer[..2].copy_from_slice(&query[..2]);
        Ok(answer)
    }

    async fn listen(&self, mut reader: impl AsyncRead + Unpin) {
        while let Ok(Ok(message)) =
            tokio::time::timeout(IDLE_FOR, read(&mut reader, MAX_BYTES)).await
        {
            self.came.fetch_add(1, Ordering::Relaxed);
            let Some(id) = message.first_chunk() else {
                return;
            };
            let id = u16::from_be_bytes(*id);
            let tell = lock(&self.waiting).as_mut().and_then(|w| w.remove(&id));
            // Nobody may wait for it any longer.
            let _ = tell.map(|tell| tell.send(message));
        }
    }

    fn end(&self) {
        lock(&self.waiting).take();
    }
}

/// Sends queries as they come.
async fn speak(mut writer: impl AsyncWrite + Unpin, mut asked: mpsc::Receiver<Vec<u8>>) {
    while let Some(query) = asked.recv().await {
        let sending = async {
            writer.write_all(&query).await?;
            writer.flush().await
        };
        if !matches!(tokio::time::timeout(IDLE_FOR, sending).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// A question that is under way on a connection.
struct Asking<'c> {
    connection: &'c Connection,
    id: u16,
    since: Instant,
    came: u64,
    answered: bool,
}

impl<'c> Asking<'c> {
    /// None if the connection has ended.
    fn begin(connection: &'c Connection, tell: oneshot::Sender<Vec<u8>>) -> Option<Self> {
        let mut waiting = lock(&connection.waiting);
        let waiting = waiting.as_mut()?;
        let id = loop {
            let id = u16::from_be_bytes(random());
            if !waiting.contains_key(&id) {
                break id;
            }
        };
        waiting.insert(id, tell);
        Some(Self {
            connection,
            id,
            since: Instant::now(),
            came: connection.came.load(Ordering::Relaxed),
            answered: false,
        })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(waiting) = lock(&self.connection.waiting).as_mut() {
            waiting.remove(&self.id);
        }
        let quiet = self.connection.came.load(Ordering::Relaxed) == self.came;
        if quiet && self.since.elapsed() >= DEAD_AFTER {
            self.connection.end();
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

/// A message behind its length (RFC 1035 section 4.2.2).
fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

/// Writes a message behind its length, in one piece.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    stream.write_all(&frame(message)?).await?;
    stream.flush().await
}

/// Reads a message of at most `limit` bytes behind its length.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    if usize::from(length) > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
