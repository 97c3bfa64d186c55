//! Snapshots as bytes, and the directory that keeps each of them twice.
//!
//! An image is a magic number, then length-prefixed frames (what the snapshot covers, then the state's records), then
//! an end mark and the SHA-256 of everything before it. It is made and carried in pieces, so that neither side ever
//! stops for a large one.

use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::async_runtime::AsyncRuntime;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{LogId, Membership, Types};
use crate::command::CHUNK_BYTES;
use crate::feature::TooOld;
use crate::node::locked;
use crate::state::{SnapshotError, State};
use crate::store::files::Directory;
use openraft::type_config::TypeConfigExt;

const MAGIC: &[u8; 8] = b"NWSNAP\0\x01";
const END: u32 = u32::MAX;
const SUM_BYTES: usize = 32;

/// Records encoded before other tasks get their turn.
const RECORDS_PER_TURN: usize = 256;

/// Bytes encoded before other tasks get their turn: a millisecond or two.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// What a snapshot covers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Coverage {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
}

/// A snapshot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the snapshot is cut off or damaged")]
    Damaged,
    #[error("the snapshot's description cannot be read")]
    Coverage(#[source] rmp_serde::decode::Error),
    #[error(transparent)]
    State(#[from] SnapshotError),
}

impl ImageError {
    /// What is wrong with the state in it, if that is what is wrong.
    pub(crate) fn into_state(self) -> Option<SnapshotError> {
        match self {
            ImageError::State(error) => Some(error),
            ImageError::Damaged | ImageError::Coverage(_) => None,
        }
    }

    /// Whether a newer version has made it.
    pub(crate) fn too_old(&self) -> Option<&TooOld> {
        match self {
            ImageError::State(SnapshotError::TooOld(too_old)) => Some(too_old),
            _ => None,
        }
    }
}

/// A snapshot's bytes, in pieces of at most [`CHUNK_BYTES`] and one frame.
#[derive(Clone)]
pub(crate) enum Image {
    /// In memory: just made, or just received.
    Pieces(Arc<[Bytes]>),
    /// On disk, read only when it is sent, so that nothing else waits for that.
    Kept {
        /// Where.
        shelf: Shelf,
        /// What it covers, which names it.
        last: Option<LogId>,
    },
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Image::Pieces(pieces) => write!(f, "Image of {} pieces", pieces.len()),
            Image::Kept { last, .. } => write!(f, "Image up to {last:?}"),
        }
    }
}

impl Image {
    /// Encodes `state`, yielding to other tasks now and then.
    pub(crate) async fn encode<R: AsyncRuntime>(coverage: &Coverage, state: &State) -> Self {
        let mut pieces = Pieces::new();
        pieces.frame(
            &rmp_serde::to_vec_named(coverage)
                .expect("a log id has no value that MessagePack lacks"),
        );
        let (mut count, mut bytes) = (0, 0);
        for record in state.records() {
            pieces.frame(&record);
            count += 1;
            bytes += record.len();
            if count >= RECORDS_PER_TURN || bytes >= BYTES_PER_TURN {
                (count, bytes) = (0, 0);
                Types::<R>::yield_now().await;
            }
        }
        pieces.finish()
    }

    /// Encodes `state` in one go, where nothing else waits.
    pub(crate) fn encode_at_once(coverage: &Coverage, state: &State) -> Self {
        let mut pieces = Pieces::new();
        pieces.frame(
            &rmp_serde::to_vec_named(coverage)
                .expect("a log id has no value that MessagePack lacks"),
        );
        for record in state.records() {
            pieces.frame(&record);
        }
        pieces.finish()
    }

    /// `frames` as an image, whatever they say.
    pub(crate) fn checked(frames: &[u8]) -> Vec<u8> {
        let content = [MAGIC, frames].concat();
        let sum = Sha256::digest(&content);
        [&content[..], &sum].concat()
    }

    /// Checks an image and rebuilds what it holds.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Coverage, State), ImageError> {
        let (content, sum) = bytes
            .split_at_checked(bytes.len().wrapping_sub(SUM_BYTES))
            .ok_or(ImageError::Damaged)?;
        if Sha256::digest(content).as_slice() != sum {
            return Err(ImageError::Damaged);
        }
        let mut rest = content.strip_prefix(MAGIC).ok_or(ImageError::Damaged)?;
        let mut frames = Vec::new();
        loop {
            let (len, after) = rest.split_at_checked(4).ok_or(ImageError::Damaged)?;
            let len = u32::from_be_bytes(len.try_into().expect("4 bytes"));
            if len == END {
                if !after.is_empty() {
                    return Err(ImageError::Damaged);
                }
                break;
            }
            let (frame, after) = after
                .split_at_checked(len as usize)
                .ok_or(ImageError::Damaged)?;
            frames.push(frame);
            rest = after;
        }
        let (coverage, records) = frames.split_first().ok_or(ImageError::Damaged)?;
        let coverage = rmp_serde::from_slice(coverage).map_err(ImageError::Coverage)?;
        Ok((coverage, State::from_records(records)?))
    }

    /// Its pieces, read from disk if that is where they are. May block.
    ///
    /// # Errors
    /// It is gone from the disk, for a newer one was taken; or neither copy is intact.
    pub(crate) fn pieces(&self) -> std::io::Result<Arc<[Bytes]>> {
        match self {
            Image::Pieces(pieces) => Ok(pieces.clone()),
            Image::Kept { shelf, last } => match shelf.intact(&stem(*last))? {
                Some((_, _, bytes)) => Ok(in_pieces(bytes.into())),
                None => Err(std::io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// The image in one piece. May block.
    ///
    /// # Errors
    /// As [`Image::pieces`].
    pub(crate) fn joined(&self) -> std::io::Result<Vec<u8>> {
        Ok(self.pieces()?.concat())
    }
}

struct Pieces {
    done: Vec<Bytes>,
    open: BytesMut,
    hasher: Sha256,
}

impl Pieces {
    fn new() -> Self {
        let mut open = BytesMut::with_capacity(CHUNK_BYTES);
        open.put_slice(MAGIC);
        Pieces {
            done: Vec::new(),
            open,
            hasher: Sha256::new(),
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        self.open
            .put_u32(u32::try_from(frame.len()).expect("a record is far smaller than 4 GiB"));
        self.open.put_slice(frame);
        if self.open.len() >= CHUNK_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.hasher.update(&self.open);
        self.done.push(self.open.split().freeze());
    }

    fn finish(mut self) -> Image {
        self.open.put_u32(END);
        self.cut();
        self.done
            .push(Bytes::copy_from_slice(&self.hasher.finalize()));
        Image::Pieces(self.done.into())
    }
}

fn in_pieces(mut bytes: Bytes) -> Arc<[Bytes]> {
    let mut pieces = Vec::new();
    while bytes.len() > CHUNK_BYTES {
        pieces.push(bytes.split_to(CHUNK_BYTES));
    }
    pieces.push(bytes);
    pieces.into()
}

/// The snapshots on disk: the newest one, twice.
#[derive(Clone)]
pub(crate) struct Shelf {
    directory: Arc<dyn Directory>,
    /// What the newest one covers.
    newest: Arc<Mutex<Option<Coverage>>>,
}

const COPIES: [&str; 2] = ["a", "b"];

impl Shelf {
    pub(crate) fn new(directory: Arc<dyn Directory>) -> Self {
        Shelf {
            directory,
            newest: Arc::default(),
        }
    }

    /// The newest snapshot that was written or read here, to be read when it is sent.
    pub(crate) fn kept(&self) -> Option<(Coverage, Image)> {
        let covered = locked(&self.newest).clone()?;
        let image = Image::Kept {
            shelf: self.clone(),
            last: covered.last,
        };
        Some((covered, image))
    }

    /// Writes both copies, then removes older snapshots.
    pub(crate) fn put(&self, coverage: &Coverage, image: &Image) -> std::io::Result<()> {
        let stem = stem(coverage.last);
        let pieces = image.pieces()?;
        for copy in COPIES {
            self.directory
                .write(&format!("{stem}-{copy}.snap"), &pieces)?;
        }
        *locked(&self.newest) = Some(coverage.clone());
        for name in self.directory.list()? {
            if !name.starts_with(&stem) && name.ends_with(".snap") {
                self.directory.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The newest snapshot, from whichever copy is intact. A damaged or missing copy is replaced.
    pub(crate) fn newest(&self) -> std::io::Result<Option<(Coverage, State, Vec<u8>)>> {
        let names = self.directory.list()?;
        let Some(stem) = names
            .iter()
            .filter_map(|name| {
                name.strip_suffix("-a.snap")
                    .or_else(|| name.strip_suffix("-b.snap"))
            })
            .max()
        else {
            return Ok(None);
        };
        let found = self.intact(stem)?;
        if let Some((covered, _, _)) = &found {
            *locked(&self.newest) = Some(covered.clone());
        }
        Ok(found)
    }

    /// The snapshot with this name; none if there is none.
    fn intact(&self, stem: &str) -> std::io::Result<Option<(Coverage, State, Vec<u8>)>> {
        let mut damage = None;
        for copy in COPIES {
            let Some(bytes) = self.directory.read(&format!("{stem}-{copy}.snap"))? else {
                continue;
            };
            match Image::decode(&bytes) {
                Ok((coverage, state)) => {
                    for other in COPIES.into_iter().filter(|other| *other != copy) {
                        let name = format!("{stem}-{other}.snap");
                        if self.directory.read(&name)?.as_deref() != Some(&bytes[..]) {
                            tracing::warn!(
                                snapshot = stem,
                                "a copy of the snapshot was damaged or missing; replaced"
                            );
                            self.directory.write(&name, &[Bytes::from(bytes.clone())])?;
                        }
                    }
                    return Ok(Some((coverage, state, bytes)));
                }
                Err(error) => damage = Some(error),
            }
        }
        match damage {
            None => Ok(None),
            Some(error) => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
        }
    }
}

/// Names sort by age: the index, then the term.
fn stem(last: Option<LogId>) -> String {
    let (index, term) = last.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:020}-{term:010}")
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderIdExt;

    use super::*;
    use crate::id::NodeId;
    use crate::node::Tokio;
    use crate::raft::LeaderId;
    use crate::store::files::MemoryDirectory;

    fn coverage(index: u64) -> Coverage {
        Coverage {
            last: Some(LogId::new(
                <LeaderId as RaftLeaderIdExt>::new_committed(1, NodeId(1)),
                index,
            )),
            membership: Membership::default(),
        }
    }

    fn state(index: u64) -> State {
        let mut state = State::default();
        state.advance(index);
        state
    }

    fn image(index: u64) -> Image {
        Types::<Tokio>::run(Image::encode::<Tokio>(&coverage(index), &state(index)))
    }

    #[test]
    fn an_image_reads_back_and_any_damage_is_told() {
        let bytes = image(7).joined().expect("in memory");
        let (covered, read) = Image::decode(&bytes).expect("reads back");
        assert_eq!((covered, read), (coverage(7), state(7)));
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert!(Image::decode(&damaged).is_err(), "flipped {position}");
            assert!(
                Image::decode(&bytes[..position]).is_err(),
                "cut at {position}"
            );
        }
    }

    /// The newest snapshot's index, with the names that are there afterwards.
    fn newest(directory: &MemoryDirectory) -> std::io::Result<Option<u64>> {
        let shelf = Shelf::new(Arc::new(directory.clone()));
        Ok(shelf
            .newest()?
            .map(|(covered, _, _)| covered.last.map_or(0, |id| id.index)))
    }

    fn damage(directory: &MemoryDirectory, name: &str) {
        let mut content = directory.read(name).expect("reads").expect("is there");
        content[20] ^= 1;
        directory
            .write(name, &[Bytes::from(content)])
            .expect("writes");
    }

    #[test]
    fn one_intact_copy_is_enough_and_mends_the_other() {
        let directory = MemoryDirectory::default();
        assert_eq!(newest(&directory).expect("reads"), None);
        let shelf = Shelf::new(Arc::new(directory.clone()));
        for index in [5, 12] {
            shelf.put(&coverage(index), &image(index)).expect("writes");
        }
        let names = directory.list().expect("lists");
        assert_eq!(names.len(), 2, "older ones are gone: {names:?}");
        damage(&directory, &names[0]);
        assert_eq!(newest(&directory).expect("reads"), Some(12));
        damage(&directory, &names[1]);
        assert_eq!(newest(&directory).expect("was mended"), Some(12));
        directory.remove(&names[1]).expect("removes");
        assert_eq!(newest(&directory).expect("reads"), Some(12));
        assert_eq!(directory.list().expect("lists").len(), 2);
    }

    #[test]
    fn two_damaged_copies_are_an_error_and_not_an_empty_state() {
        let directory = MemoryDirectory::default();
        let shelf = Shelf::new(Arc::new(directory.clone()));
        shelf.put(&coverage(5), &image(5)).expect("writes");
        for name in directory.list().expect("lists") {
            damage(&directory, &name);
        }
        let error = newest(&directory).expect_err("is damaged");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}
