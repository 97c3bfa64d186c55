//! Datagrams by the batch: one system call takes, or sends, up to [`BATCH`] of them (recvmmsg(2), sendmmsg(2)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams of one call.
pub(super) const BATCH: usize = 32;

/// What came last.
pub(super) struct Inbox<const BYTES: usize> {
    buffers: Vec<[u8; BYTES]>,
    received: Vec<(usize, Option<SocketAddr>)>,
}

impl<const BYTES: usize> Inbox<BYTES> {
    /// An empty one. Of a longer datagram the first `BYTES` are kept.
    pub(super) fn new() -> Self {
        Self {
            buffers: vec![[0; BYTES]; BATCH],
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what the socket has, instead of what was in here.
    ///
    /// # Errors
    /// Those of recvmmsg(2); `WouldBlock` where the socket has nothing.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let Self { buffers, received } = self;
        received.clear();
        socket.try_io(Interest::READABLE, || {
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
            let into = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let mut into: Vec<_> = into.collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            let fd = socket.as_raw_fd();
            let messages = recvmmsg(fd, &mut headers, into.iter_mut(), flags, None)?;
            received.extend(messages.map(|message| {
                let from = message.address.as_ref();
                (message.bytes, from.and_then(address_of))
            }));
            Ok(())
        })
    }

    /// It, with whom it is from.
    pub(super) fn messages(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let all = self.received.iter().zip(&self.buffers);
        all.filter_map(|((bytes, from), buffer)| Some((buffer.get(..*bytes)?, (*from)?)))
    }
}

fn address_of(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

/// What is to be sent together.
#[derive(Default)]
pub(super) struct Outbox {
    /// Those that are to be sent, then spare ones.
    buffers: Vec<Vec<u8>>,
    to: Vec<SocketAddr>,
}

impl Outbox {
    /// Where the next message is written; what is in there is of no use.
    pub(super) fn blank(&mut self) -> &mut Vec<u8> {
        let at = self.to.len();
        if at == self.buffers.len() {
            self.buffers.push(Vec::new());
        }
        &mut self.buffers[at]
    }

    /// What was written is to be sent to this address.
    pub(super) fn keep(&mut self, to: SocketAddr) {
        self.to.push(to);
    }

    /// Messages that are to be sent.
    pub(super) fn len(&self) -> usize {
        self.to.len()
    }

    /// The message at a place, less than [`Self::len`], and whom it is for.
    pub(super) fn get_mut(&mut self, at: usize) -> (&mut Vec<u8>, SocketAddr) {
        (&mut self.buffers[at], self.to[at])
    }

    /// Sends the messages from this place on, and returns how many it sent before one could not be.
    ///
    /// # Errors
    /// Those of sendmmsg(2) for the first of them.
    pub(super) fn send(&self, socket: &UdpSocket, from: usize) -> io::Result<usize> {
        let messages = self.buffers[..self.to.len()].iter().skip(from).take(BATCH);
        let slices: Vec<_> = messages.map(|message| [IoSlice::new(message)]).collect();
        let to = self.to.iter().skip(from).take(BATCH);
        let to: Vec<_> = to.map(|to| Some(SockaddrStorage::from(*to))).collect();
        let mut headers = MultiHeaders::preallocate(slices.len(), None);
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        socket.try_io(Interest::WRITABLE, || {
            let sent = sendmmsg(fd, &mut headers, &slices, &to, [], flags)?;
            Ok(sent.count())
        })
    }

    /// Forgets all messages, and keeps their memory.
    pub(super) fn clear(&mut self) {
        self.to.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn socket(address: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    async fn all_arrive(loopback: &str) {
        let (a, from) = socket(loopback).await;
        let (b, to) = socket(loopback).await;
        let mut outbox = Outbox::default();
        let count = 2 * BATCH + 1;
        for n in 0..count {
            let out = outbox.blank();
            out.clear();
            out.resize(n, n as u8);
            outbox.keep(to);
        }
        a.writable().await.unwrap();
        let mut sent = 0;
        while sent < outbox.len() {
            sent += outbox.send(&a, sent).unwrap();
        }
        let mut inbox = Inbox::<40>::new();
        let mut came = 0;
        while came < count {
            b.readable().await.unwrap();
            match inbox.receive(&b) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            }
            for (message, by) in inbox.messages() {
                assert_eq!(by, from);
                // In order, and cut where the buffer ends.
                assert_eq!(message, vec![came as u8; came.min(40)]);
                came += 1;
            }
        }
        outbox.clear();
        assert_eq!(outbox.len(), 0);
    }

    #[tokio::test]
    async fn many_go_by_few_calls_and_keep_their_order() {
        all_arrive("127.0.0.1:0").await;
        all_arrive("[::1]:0").await;
    }

    #[tokio::test]
    async fn one_that_cannot_be_sent_is_the_first_that_is_left() {
        let (a, _) = socket("127.0.0.1:0").await;
        let (_b, to) = socket("127.0.0.1:0").await;
        let mut outbox = Outbox::default();
        for length in [1, 2, 70_000, 3] {
            outbox.blank().resize(length, 7);
            outbox.keep(to);
        }
        a.writable().await.unwrap();
        assert_eq!(outbox.send(&a, 0).unwrap(), 2);
        let error = outbox.send(&a, 2).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(nix::errno::Errno::EMSGSIZE as i32)
        );
        assert_eq!(outbox.send(&a, 3).unwrap(), 1);
    }
}
