//! Clients over UDP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::service::{By, Handled, Service};

/// Longest query that is read; further bytes are cut off, which makes it malformed.
const QUERY_BYTES: usize = 4_096;
/// Queries that are worked on before other tasks have their turn.
const BURST: usize = 64;
/// What the kernel may keep for a socket whose task is busy, in bytes; it takes less if it is not allowed
/// more.
const BUFFER_BYTES: usize = 4 << 20;
/// Pause after an error of the socket that says nothing of a message.
const PAUSE: Duration = Duration::from_millis(10);

/// A socket on an address that may have several.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers queries for ever.
pub(super) async fn serve(service: Arc<Service>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUERY_BYTES];
    let (mut text, mut out) = (String::new(), Vec::with_capacity(QUERY_BYTES));
    loop {
        // It fails only when the runtime ends.
        if socket.readable().await.is_err() {
            return;
        }
        for _ in 0..BURST {
            let (read, client) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "a query cannot be read");
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            };
            let message = &buffer[..read];
            match service.handle(message, client.ip(), By::Datagram, &mut text, &mut out) {
                Handled::Silent => {}
                Handled::Answered => send(&socket, &out, client),
                Handled::Later(later) => {
                    let (service, socket) = (Arc::clone(&service), Arc::clone(&socket));
                    tokio::spawn(async move {
                        let mut out = Vec::new();
                        service.finish(later, &mut out).await;
                        send(&socket, &out, client);
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Sends an answer; one that cannot be sent at once is lost, as it may be on its way.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if !answer.is_empty()
        && let Err(error) = socket.try_send_to(answer, client)
    {
        tracing::debug!(%error, "an answer cannot be sent");
    }
}
