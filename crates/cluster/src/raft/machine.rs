//! The state machine as openraft wants it: applies entries to the [`State`] and publishes it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend};
use tokio::sync::watch;

use super::feed::{Chosen, Feed};
use super::image::{Coverage, Image, ImageError, Shelf};
use super::{Address, CommittedLeaderId, LogId, Membership, Types};
use crate::command::Response;
use crate::feature::{TooOld, Verdict};
use crate::id::NodeId;
use crate::keyring::Keyring;
use crate::node::divergence::Album;
use crate::state::State;
use crate::store::Io;
use crate::store::files::Directory;

pub(crate) type Meta = SnapshotMeta<CommittedLeaderId, NodeId, Address>;
pub(crate) type Taken = Snapshot<CommittedLeaderId, NodeId, Address, Image>;

/// Entries applied before readers and waiting clients are told.
const PUBLISH_EVERY: usize = 64;

/// The state, and what it takes to keep it.
pub(crate) struct Machine<R> {
    state: State,
    covered: Coverage,
    feed: Feed,
    /// What readers of the state open its secrets with.
    keyring: Arc<Keyring>,
    shelf: Shelf,
    io: Io,
    /// Bytes of commands applied since the last snapshot, to bound the log by size as well.
    unsnapped_bytes: Arc<AtomicU64>,
    /// Highest feature level that this node supports.
    supported: u32,
    verdict: Verdict,
    album: Album,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R> Machine<R> {
    /// Loads the newest snapshot. Entries after it are applied again by openraft, up to the committed index.
    ///
    /// One that a newer version has written is an error, which is left in `verdict` as well.
    pub(crate) fn open(
        directory: Arc<dyn Directory>,
        io: Io,
        supported: u32,
        verdict: Verdict,
    ) -> io::Result<Self> {
        let shelf = Shelf::new(directory);
        let newest = shelf.newest().map_err(|error| {
            let image = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<ImageError>());
            match image.and_then(ImageError::too_old) {
                Some(too_old) => stopped(&verdict, too_old.clone()),
                None => error,
            }
        })?;
        let (covered, state) = match newest {
            Some((covered, state, _)) => (covered, state),
            None => (Coverage::default(), State::default()),
        };
        TooOld::check(&state, supported).map_err(|error| stopped(&verdict, error))?;
        Ok(Machine {
            feed: Feed::new(state.clone()),
            state,
            covered,
            keyring: Arc::default(),
            shelf,
            io,
            unsnapped_bytes: Arc::default(),
            supported,
            verdict,
            album: Album::default(),
            runtime: std::marker::PhantomData,
        })
    }

    /// Has readers of the state open its secrets with `keyring`.
    pub(crate) fn read_with(self, keyring: Arc<Keyring>) -> Self {
        let machine = Machine { keyring, ..self };
        machine.publish();
        machine
    }

    /// Follows the applied state.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.feed.watch()
    }

    /// For those who follow only some changes of it.
    pub(crate) fn chosen(&self) -> Weak<Chosen> {
        self.feed.chosen()
    }

    /// States of a moment ago.
    pub(crate) fn album(&self) -> Album {
        self.album.clone()
    }

    pub(crate) fn unsnapped_bytes(&self) -> Arc<AtomicU64> {
        self.unsnapped_bytes.clone()
    }

    fn publish(&self) {
        let readable = self.state.clone().read_with(Arc::clone(&self.keyring));
        self.feed.publish(readable);
    }

    fn apply_payload(
        &mut self,
        id: LogId,
        payload: EntryPayload<super::Proposal, NodeId, Address>,
    ) -> io::Result<Response> {
        if let EntryPayload::Normal(proposal) = &payload {
            self.unsnapped_bytes
                .fetch_add(proposal.len() as u64, Ordering::Relaxed);
        }
        let response = apply(&mut self.state, &mut self.covered, id, payload)
            .and_then(|response| {
                TooOld::check(&self.state, self.supported)?;
                Ok(response)
            })
            .map_err(|error| stopped(&self.verdict, error))?;
        self.album.note(&self.state);
        Ok(response)
    }
}

impl<R: AsyncRuntime> RaftStateMachine<Types<R>> for Machine<R> {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder<R>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.covered.last, self.covered.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types<R>>, io::Error>> + Unpin + OptionalSend,
    {
        // A client is answered only after its change can be read.
        let mut waiting = Vec::new();
        let mut result = Ok(());
        let mut since = 0;
        while let Some(item) = entries.next().await {
            let applied = item.and_then(|(entry, responder)| {
                let response = self.apply_payload(entry.log_id(), entry.payload)?;
                Ok((responder, response))
            });
            match applied {
                Ok((Some(responder), response)) => waiting.push((responder, response)),
                Ok((None, _)) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            since += 1;
            if since == PUBLISH_EVERY {
                since = 0;
                self.publish();
                for (responder, response) in waiting.drain(..) {
                    responder.send(response);
                }
            }
        }
        self.publish();
        for (responder, response) in waiting {
            responder.send(response);
        }
        result
    }

    async fn get_snapshot_builder(&mut self) -> Builder<R> {
        self.unsnapped_bytes.store(0, Ordering::Relaxed);
        Builder {
            state: self.state.clone(),
            covered: self.covered.clone(),
            shelf: self.shelf.clone(),
            io: self.io,
            runtime: std::marker::PhantomData,
        }
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: Image) -> Result<(), io::Error> {
        let (shelf, image) = (self.shelf.clone(), snapshot);
        let verdict = self.verdict.clone();
        let (covered, state) = self
            .io
            .run(move || {
                let (covered, state) =
                    Image::decode(&image.joined()?).map_err(|error| match error.too_old() {
                        Some(too_old) => stopped(&verdict, too_old.clone()),
                        None => io::Error::new(io::ErrorKind::InvalidData, error),
                    })?;
                shelf.put(&covered, &image)?;
                io::Result::Ok((covered, state))
            })
            .await??;
        if covered.last != meta.last_log_id {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the snapshot covers something else than announced",
            ));
        }
        TooOld::check(&state, self.supported).map_err(|error| stopped(&self.verdict, error))?;
        self.covered = covered;
        self.state = state;
        self.unsnapped_bytes.store(0, Ordering::Relaxed);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Taken>, io::Error> {
        // Read only when it is sent: meanwhile entries are applied.
        Ok(self.shelf.kept().map(|(covered, snapshot)| Taken {
            meta: meta_of(&covered),
            snapshot,
        }))
    }
}

/// Applies an entry of the log to `state`, and notes in `covered` that it did.
pub(crate) fn apply(
    state: &mut State,
    covered: &mut Coverage,
    id: LogId,
    payload: EntryPayload<super::Proposal, NodeId, Address>,
) -> Result<Response, TooOld> {
    let response = match payload {
        EntryPayload::Blank => {
            state.advance(id.index);
            Response::Nothing
        }
        EntryPayload::Membership(membership) => {
            state.advance(id.index);
            covered.membership = Membership::new(Some(id), membership);
            Response::Nothing
        }
        EntryPayload::Normal(proposal) => {
            let stamped = proposal.decode().map_err(|error| TooOld::Command {
                index: id.index,
                what: error.to_string(),
            })?;
            state.apply(id.index, stamped)
        }
    };
    covered.last = Some(id);
    Ok(response)
}

/// The error with which the state machine stops for good, left in `verdict` as well.
fn stopped(verdict: &Verdict, error: TooOld) -> io::Error {
    verdict.get_or_init(|| error.clone());
    error.into()
}

/// Makes one snapshot of the state as it was.
pub(crate) struct Builder<R> {
    state: State,
    covered: Coverage,
    shelf: Shelf,
    io: Io,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime> RaftSnapshotBuilder<Types<R>> for Builder<R> {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<Taken, io::Error> {
        let image = Image::encode::<R>(&self.covered, &self.state).await;
        let (shelf, covered, written) = (self.shelf.clone(), self.covered.clone(), image.clone());
        self.io.run(move || shelf.put(&covered, &written)).await??;
        Ok(Taken {
            meta: meta_of(&self.covered),
            snapshot: image,
        })
    }
}

fn meta_of(covered: &Coverage) -> Meta {
    Meta {
        last_log_id: covered.last,
        last_membership: covered.membership.clone(),
    }
}
