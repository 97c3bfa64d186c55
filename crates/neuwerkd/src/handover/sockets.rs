//! The listening sockets of this process by name, so that they can outlive it: no connection attempt is refused while
//! one program takes the place of another, since those that come meanwhile wait in the kernel's queue.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sockets that are open; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    by_name: BTreeMap<String, (u64, OwnedFd)>,
    next: u64,
    leaving: bool,
}

/// Keeps a socket among those that are handed over; to be dropped when nobody accepts on it any more.
#[derive(Debug)]
pub struct Listening {
    name: String,
    number: u64,
    sockets: Sockets,
}

impl Sockets {
    /// With those that the process was started with.
    pub(super) fn new(fds: BTreeMap<String, OwnedFd>) -> Self {
        let unclaimed = |(name, fd)| (name, (0, fd));
        let open = Open {
            by_name: fds.into_iter().map(unclaimed).collect(),
            next: 1,
            leaving: false,
        };
        Self {
            open: Arc::new(Mutex::new(open)),
        }
    }

    /// Listens on `address`: with the socket of this name if it is at that address, else with a new one.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub async fn listen(
        &self,
        name: &str,
        address: SocketAddr,
    ) -> std::io::Result<(tokio::net::TcpListener, Listening)> {
        let same = |socket: &TcpListener| matches!(socket.local_addr(), Ok(at) if at == address);
        let listener = match self.claim(name, same)? {
            Some(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(socket)?
            }
            None => tokio::net::TcpListener::bind(address).await?,
        };
        let listening = self.enter(name, listener.as_fd())?;
        Ok((listener, listening))
    }

    /// A socket of this name and kind: the one that is there if it is the `same`, else a new one that `bind` makes.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn open<S: From<OwnedFd> + AsFd>(
        &self,
        name: &str,
        same: impl FnOnce(&S) -> bool,
        bind: impl FnOnce() -> std::io::Result<S>,
    ) -> std::io::Result<(S, Listening)> {
        let socket = match self.claim(name, same)? {
            Some(socket) => socket,
            None => bind()?,
        };
        let listening = self.enter(name, socket.as_fd())?;
        Ok((socket, listening))
    }

    /// The socket of this name, if it is the `same`. Another one is closed: both may be the same port of an address and of
    /// all.
    fn claim<S: From<OwnedFd>>(
        &self,
        name: &str,
        same: impl FnOnce(&S) -> bool,
    ) -> std::io::Result<Option<S>> {
        let mut open = self.lock();
        let Some((_, socket)) = open.by_name.get(name) else {
            return Ok(None);
        };
        let socket = S::from(socket.try_clone()?);
        if same(&socket) {
            return Ok(Some(socket));
        }
        open.by_name.remove(name);
        Ok(None)
    }

    fn enter(&self, name: &str, socket: BorrowedFd<'_>) -> std::io::Result<Listening> {
        let kept = socket.try_clone_to_owned()?;
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.by_name.insert(name.to_owned(), (number, kept));
        Ok(Listening {
            name: name.to_owned(),
            number,
            sockets: self.clone(),
        })
    }

    /// Closes those of these names that nobody accepts on.
    pub fn close_unclaimed(&self, names: &[&str]) {
        self.lock()
            .by_name
            .retain(|name, (number, _)| *number != 0 || !names.contains(&name.as_str()));
    }

    /// From now on sockets stay open although nobody accepts on them.
    pub fn keep(&self) {
        self.lock().leaving = true;
    }

    /// Closes all as soon as nobody accepts on them.
    pub fn close(&self) {
        self.lock().by_name.clear();
    }

    /// Those that are to be handed over.
    pub(super) fn leave(&self) -> BTreeMap<String, OwnedFd> {
        let open = std::mem::take(&mut self.lock().by_name);
        let socket = |(name, (_, socket))| (name, socket);
        open.into_iter().map(socket).collect()
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().by_name.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut open = self.sockets.lock();
        let own =
            matches!(open.by_name.get(&self.name), Some((number, _)) if *number == self.number);
        if own && !open.leaving {
            open.by_name.remove(&self.name);
        }
    }
}
