//! Clients over UDP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::batch::{BATCH, Inbox, Outbox};
use super::service::{By, Handled, Service};

/// Longest query that is read; further bytes are cut off, which makes it malformed.
pub(super) const QUERY_BYTES: usize = 4_096;
/// Batches of queries that are worked on before other tasks have their turn.
const BATCHES: usize = 64 / BATCH;
/// What the kernel may keep for a socket whose task is busy, in bytes. Without CAP_NET_ADMIN it takes no more
/// than the host's limits (`net.core.rmem_max`, `wmem_max`).
const BUFFER_BYTES: usize = 4 << 20;
/// How long an answer waits for room in the socket's buffer.
const SEND_WAIT: Duration = Duration::from_millis(20);
/// Answers that were at hand and may wait so at a time, for each socket.
const WAITING: usize = 256;
/// Pause after an error of the socket that says nothing of a message.
const PAUSE: Duration = Duration::from_millis(10);

/// A socket on an address that may have several.
pub(super) fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(BUFFER_BYTES)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Answers queries until `stop`; what has been read by then is answered still.
pub(super) async fn serve(service: Arc<Service>, socket: UdpSocket, stop: CancellationToken) {
    let outlet = Outlet::new(service, socket);
    let (service, socket) = (&outlet.service, &outlet.socket);
    let (mut inbox, mut outbox) = (Inbox::<QUERY_BYTES>::new(), Outbox::default());
    let mut text = String::new();
    loop {
        match stop.run_until_cancelled(socket.readable()).await {
            Some(Ok(())) => {}
            // It fails only when the runtime ends.
            None | Some(Err(_)) => return,
        }
        for worked_on in 1.. {
            match inbox.receive(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "a query cannot be read");
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            }
            for (message, client) in inbox.messages() {
                let out = outbox.blank();
                match service.handle(message, client.ip(), By::Datagram, &mut text, out) {
                    Handled::Silent => {}
                    Handled::Answered => outbox.keep(client),
                    Handled::Later(later) => {
                        let (service, socket) = (Arc::clone(service), Arc::clone(socket));
                        service.tasks.clone().spawn(async move {
                            let mut out = Vec::new();
                            Arc::clone(&service).finish(later, &mut out).await;
                            send(&service, &socket, &out, client).await;
                        });
                    }
                }
            }
            outlet.send_all(&mut outbox);
            // A socket that has nothing more yields by waiting.
            if worked_on == BATCHES {
                tokio::task::yield_now().await;
                break;
            }
        }
    }
}

/// The way out of a socket.
struct Outlet {
    service: Arc<Service>,
    socket: Arc<UdpSocket>,
    waiting: Arc<Semaphore>,
}

impl Outlet {
    fn new(service: Arc<Service>, socket: UdpSocket) -> Self {
        Self {
            service,
            socket: Arc::new(socket),
            waiting: Arc::new(Semaphore::new(WAITING)),
        }
    }

    /// Sends these answers and leaves the outbox empty. What cannot be sent with others is sent alone, or waits.
    fn send_all(&self, outbox: &mut Outbox) {
        let mut at = 0;
        while at < outbox.len() {
            match outbox.send(&self.socket, at) {
                Ok(sent) if sent > 0 => at += sent,
                _ => {
                    let (answer, client) = outbox.get_mut(at);
                    self.send(answer, client);
                    at += 1;
                }
            }
        }
        outbox.clear();
    }

    /// Sends an answer, or has it wait for room in the socket's buffer while its task goes on reading.
    fn send(&self, answer: &mut Vec<u8>, client: SocketAddr) {
        match self.socket.try_send_to(answer, client) {
            Ok(_) => return,
            Err(error) if again(&error) => {}
            Err(error) => return self.service.unsent(&error),
        }
        match Arc::clone(&self.waiting).try_acquire_owned() {
            Ok(place) => {
                let (service, socket) = (Arc::clone(&self.service), Arc::clone(&self.socket));
                let answer = std::mem::take(answer);
                self.service.tasks.spawn(async move {
                    send(&service, &socket, &answer, client).await;
                    drop(place);
                });
            }
            Err(_) => self.service.unsent(&io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Service {
    fn unsent(&self, error: &io::Error) {
        self.metrics.unsent(error.kind());
        tracing::debug!(%error, "an answer cannot be sent");
    }
}

/// Sends an answer. One that cannot be sent is counted and forgotten, as it may be lost on its way.
async fn send(service: &Service, socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if answer.is_empty() {
        return;
    }
    let attempt = || socket.try_send_to(answer, client);
    if let Err(error) = sent(attempt, || socket.writable()).await {
        service.unsent(&error);
    }
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Sends by `attempt`, if need be once the socket is `writable`, for which it waits [`SEND_WAIT`] at most.
async fn sent<W: Future<Output = io::Result<()>>>(
    attempt: impl Fn() -> io::Result<usize>,
    writable: impl Fn() -> W,
) -> io::Result<()> {
    match attempt() {
        Err(error) if again(&error) => {}
        done => return done.map(drop),
    }
    let patiently = async {
        loop {
            writable().await?;
            match attempt() {
                Err(error) if again(&error) => {}
                done => return done.map(drop),
            }
        }
    };
    tokio::time::timeout(SEND_WAIT, patiently)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::ErrorKind;

    use super::super::tests::{Scene, Server};
    use super::*;

    /// A socket that the runtime has not looked at yet takes nothing, as one whose buffer is full.
    #[tokio::test]
    async fn answers_wait_for_room_apart_and_no_more_than_so_many() {
        let upstream = Server::silent().await;
        let scene = Scene::start(&[&upstream], |_| ());
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = client.local_addr().unwrap();
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let outlet = Outlet::new(scene.service(), UdpSocket::from_std(socket).unwrap());
        for _ in 0..WAITING + 3 {
            outlet.send(&mut vec![7; 9], to);
        }
        scene.counted(r#"neuwerk_dns_unsent_answers_total{reason="blocked"} 3"#);
        let mut buffer = [0; 16];
        for _ in 0..WAITING {
            let read =
                tokio::time::timeout(Duration::from_secs(10), client.recv(&mut buffer)).await;
            assert_eq!(read.unwrap().unwrap(), 9);
        }
    }

    #[test]
    fn buffers_are_as_large_as_they_may_be() {
        let size = |socket: &Socket| socket.recv_buffer_size().unwrap();
        let forced = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let may = sockopt::set_socket_recv_buffer_size_force(&forced, BUFFER_BYTES).is_ok();
        let bound = Socket::from(bind("127.0.0.1:0".parse().unwrap()).unwrap());
        match may {
            true => assert!(
                size(&bound) >= BUFFER_BYTES && bound.send_buffer_size().unwrap() >= BUFFER_BYTES
            ),
            false => assert!(size(&bound) > 0),
        }
    }

    async fn after(blocked: usize, then: Result<usize, ErrorKind>) -> (Option<ErrorKind>, usize) {
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            match attempts.get() > blocked {
                true => then.map_err(io::Error::from),
                false => Err(ErrorKind::WouldBlock.into()),
            }
        };
        let writable = || async {
            tokio::task::yield_now().await;
            Ok(())
        };
        let result = sent(attempt, writable).await;
        (result.err().map(|error| error.kind()), attempts.get())
    }

    #[tokio::test]
    async fn an_answer_waits_for_room() {
        assert_eq!(after(0, Ok(9)).await, (None, 1));
        assert_eq!(after(3, Ok(9)).await, (None, 4));
        let refused = ErrorKind::ConnectionRefused;
        assert_eq!(after(0, Err(refused)).await, (Some(refused), 1));
        assert_eq!(after(2, Err(refused)).await, (Some(refused), 3));
    }

    #[tokio::test]
    async fn but_not_for_ever() {
        let (error, _) = after(usize::MAX, Ok(9)).await;
        assert_eq!(error, Some(ErrorKind::WouldBlock));
        let never = sent(
            || Err(ErrorKind::WouldBlock.into()),
            std::future::pending::<io::Result<()>>,
        );
        assert_eq!(never.await.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
