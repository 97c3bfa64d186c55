//! A second memory of what this node has acknowledged, which does not go back when its disk does.
//!
//! The log store cannot know that it was exchanged for an older copy of itself. A witness can, within its own life: it is
//! told of the newest vote and the end of the log after every commit and before anybody hears of it. The product's
//! witness is a small file in the run directory, which counts only within one boot of the kernel: it survives the
//! process, and neither a restored backup nor a rolled-back virtual machine carries it along unnoticed. After a reboot
//! there is none, and the other members must be asked instead.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::disk::Change;
use crate::durable::PRIVATE;
use crate::id::Digest;
use crate::node::locked;
use crate::raft::{LogId, Vote};

/// The newest vote and the end of the log at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
}

impl Seen {
    fn term(&self) -> Option<u64> {
        self.vote.map(|vote| vote.leader_id.term)
    }

    /// Both, each in its newest version.
    fn newest(&self, other: &Seen) -> Seen {
        Seen {
            vote: if other.term() > self.term() {
                other.vote
            } else {
                self.vote
            },
            last: self.last.max(other.last),
        }
    }

    /// Whether nothing of `other` is missing.
    fn covers(&self, other: &Seen) -> bool {
        self.last >= other.last && self.term() >= other.term()
    }
}

/// Remembers what a store has acknowledged.
pub trait Witness: Send + Sync + 'static {
    /// What it has seen; none if it has seen nothing, or not all.
    ///
    /// # Errors
    /// It cannot be asked.
    fn recall(&self) -> io::Result<Option<Seen>>;

    /// Takes note. Nothing is acknowledged before it has.
    ///
    /// # Errors
    /// It could not, and what it remembers is out of date now.
    fn note(&self, seen: &Seen) -> io::Result<()>;

    /// Remembers nothing any more, until it takes note again.
    ///
    /// # Errors
    /// What it remembered is still there.
    fn forget(&self) -> io::Result<()>;
}

/// What a store has acknowledged, kept current for its witness.
pub(super) struct Ledger {
    seen: Mutex<Seen>,
    witness: OnceLock<Remembering>,
}

struct Remembering {
    witness: Arc<dyn Witness>,
    /// What it had seen before.
    earlier: Option<Seen>,
    /// The same, until the store has all of it.
    missing: Mutex<Option<Seen>>,
    /// It was said that it cannot take note.
    told: AtomicBool,
}

impl Ledger {
    pub(super) fn new(seen: Seen) -> Self {
        Ledger {
            seen: Mutex::new(seen),
            witness: OnceLock::new(),
        }
    }

    pub(super) fn set_witness(&self, witness: Arc<dyn Witness>) -> io::Result<()> {
        let earlier = match witness.recall() {
            Ok(earlier) => earlier,
            Err(_) => {
                witness.forget()?;
                None
            }
        };
        let seen = locked(&self.seen);
        let remembering = Remembering {
            witness,
            missing: Mutex::new(earlier.clone()),
            earlier,
            told: AtomicBool::new(false),
        };
        remembering.note(&seen)?;
        self.witness
            .set(remembering)
            .map_err(|_| io::Error::other("the store has a witness already"))
    }

    pub(super) fn witnessed(&self) -> Option<Seen> {
        self.witness.get()?.earlier.clone()
    }

    /// The changes are on disk.
    pub(super) fn enter<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> io::Result<()> {
        let mut seen = locked(&self.seen);
        for change in changes {
            match change {
                Change::Entries(_, last) | Change::Truncate(_, last) => seen.last = *last,
                Change::Vote(vote) => seen.vote = Some(*vote),
                Change::Purge(id) => seen.last = seen.last.max(Some(*id)),
                Change::Committed(_) | Change::Scrub | Change::Scrubbed | Change::Refilling(_) => {}
            }
        }
        match self.witness.get() {
            Some(remembering) => remembering.note(&seen),
            None => Ok(()),
        }
    }
}

impl Remembering {
    /// A store that has lost something does not make its witness forget it, before it has it back. A witness that cannot
    /// take note must not be believed; without it the other members are asked, and all else goes on.
    fn note(&self, seen: &Seen) -> io::Result<()> {
        let mut missing = locked(&self.missing);
        // From then on the end of the log may go back: where a leader has others in its place.
        missing.take_if(|missing| seen.covers(missing));
        let noted = match &*missing {
            Some(missing) => self.witness.note(&seen.newest(missing)),
            None => self.witness.note(seen),
        };
        let Err(error) = noted else { return Ok(()) };
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "what is acknowledged is not remembered beside the log: after a restart the other members are asked");
        }
        self.witness.forget()
    }
}

/// Bytes of the file: less than a page, so that one write is all or nothing for whoever reads after a kill.
const FILE_BYTES: usize = 1024;

const SUM_BYTES: usize = 32;

#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    owner: String,
    boot: String,
    seen: Seen,
}

/// A witness in a file that is never synced: it counts within one boot of the kernel only.
#[derive(Debug)]
pub struct FileWitness {
    path: PathBuf,
    owner: String,
    boot: String,
    file: Mutex<Option<File>>,
}

impl FileWitness {
    /// The witness at `path` of the data of `owner`, in the kernel's boot `boot`.
    pub fn new(path: PathBuf, owner: String, boot: String) -> Self {
        FileWitness {
            path,
            owner,
            boot,
            file: Mutex::new(None),
        }
    }

    /// The identity of this boot of the kernel.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn kernel_boot() -> io::Result<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(boot.trim().to_owned())
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A file of its own for this process: what is left of an earlier one cannot shine through.
    fn create(&self) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt as _;
        self.remove()?;
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&self.path)
    }
}

impl Witness for FileWitness {
    fn recall(&self) -> io::Result<Option<Seen>> {
        let content = match std::fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record = content
            .split_at_checked(SUM_BYTES)
            .filter(|(sum, rest)| Digest::of(rest).0 == *sum)
            .and_then(|(_, rest)| rmp_serde::from_slice::<Record>(rest).ok());
        Ok(record
            .filter(|record| record.owner == self.owner && record.boot == self.boot)
            .map(|record| record.seen))
    }

    fn note(&self, seen: &Seen) -> io::Result<()> {
        let mut content = rmp_serde::to_vec_named(&Record {
            owner: self.owner.clone(),
            boot: self.boot.clone(),
            seen: seen.clone(),
        })
        .map_err(io::Error::other)?;
        // The rest of the file is padding, which the checksum covers and the decoder ignores.
        content.resize(FILE_BYTES - SUM_BYTES, 0);
        let whole = [&Digest::of(&content).0[..], &content].concat();
        let mut file = locked(&self.file);
        let file = match &mut *file {
            Some(file) => file,
            empty => empty.insert(self.create()?),
        };
        file.write_all_at(&whole, 0)
    }

    fn forget(&self) -> io::Result<()> {
        *locked(&self.file) = None;
        self.remove()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderIdExt;

    use super::*;
    use crate::id::NodeId;
    use crate::raft::LeaderId;

    fn seen(term: u64, index: u64) -> Seen {
        Seen {
            vote: Some(Vote::new(term, NodeId(1))),
            last: Some(LogId::new(
                <LeaderId as RaftLeaderIdExt>::new_committed(term, NodeId(1)),
                index,
            )),
        }
    }

    fn file(directory: &std::path::Path, owner: &str, boot: &str) -> FileWitness {
        FileWitness::new(directory.join("witness"), owner.into(), boot.into())
    }

    #[test]
    fn a_witness_counts_for_its_owner_within_one_boot() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path();
        assert_eq!(file(dir, "a", "1").recall().expect("reads"), None);
        let witness = file(dir, "a", "1");
        witness.note(&seen(1, 5)).expect("writes");
        witness.note(&seen(2, 4)).expect("writes");
        for (owner, boot, expected) in [
            ("a", "1", Some(seen(2, 4))),
            ("b", "1", None),
            ("a", "2", None),
        ] {
            assert_eq!(file(dir, owner, boot).recall().expect("reads"), expected);
        }
        let path = dir.join("witness");
        let mut damaged = std::fs::read(&path).expect("reads");
        damaged[40] ^= 1;
        std::fs::write(&path, damaged).expect("writes");
        assert_eq!(file(dir, "a", "1").recall().expect("reads"), None);
    }

    #[test]
    fn a_witness_that_cannot_take_note_is_not_believed_and_stops_nothing() {
        let temporary = tempfile::tempdir().expect("a directory");
        let run_dir = temporary.path().join("run");
        std::fs::create_dir(&run_dir).expect("is made");
        let open = || Arc::new(file(&run_dir, "a", "1"));
        let enter = |ledger: &Ledger, index| {
            let last = seen(3, index).last;
            ledger.enter(&[Change::Entries(Vec::new(), last)])
        };
        Ledger::new(seen(3, 10))
            .set_witness(open())
            .expect("is set");
        std::fs::rename(&run_dir, temporary.path().join("elsewhere")).expect("is moved");
        let ledger = Ledger::new(seen(3, 10));
        ledger.set_witness(open()).expect("goes on without");
        enter(&ledger, 11).expect("goes on");
        assert_eq!(ledger.witnessed(), None);
        // As soon as there is room again, it has seen everything.
        std::fs::create_dir(&run_dir).expect("is made");
        enter(&ledger, 12).expect("goes on");
        let ledger = Ledger::new(seen(3, 12));
        ledger.set_witness(open()).expect("is set");
        assert_eq!(ledger.witnessed(), Some(seen(3, 12)));
    }

    #[test]
    fn a_log_that_a_leader_cut_back_is_not_held_against_its_store() {
        let temporary = tempfile::tempdir().expect("a directory");
        let open = || Arc::new(file(temporary.path(), "a", "1"));
        Ledger::new(seen(3, 20))
            .set_witness(open())
            .expect("is set");
        let ledger = Ledger::new(seen(3, 20));
        ledger.set_witness(open()).expect("is set");
        let cut = [
            Change::Vote(seen(4, 0).vote.expect("a vote")),
            Change::Truncate(0, seen(3, 18).last),
        ];
        ledger.enter(&cut).expect("notes");
        let ledger = Ledger::new(Seen {
            last: seen(3, 18).last,
            ..seen(4, 0)
        });
        ledger.set_witness(open()).expect("is set");
        assert_eq!(
            ledger.witnessed().and_then(|seen| seen.last),
            seen(3, 18).last
        );
    }

    #[test]
    fn a_vote_that_went_back_alone_is_remembered_as_well() {
        let temporary = tempfile::tempdir().expect("a directory");
        let open = || Arc::new(file(temporary.path(), "a", "1"));
        let newer = Seen {
            last: seen(3, 20).last,
            ..seen(5, 0)
        };
        Ledger::new(newer.clone())
            .set_witness(open())
            .expect("is set");
        for _ in 0..2 {
            let ledger = Ledger::new(seen(3, 20));
            ledger.set_witness(open()).expect("is set");
            assert_eq!(ledger.witnessed().as_ref(), Some(&newer));
        }
    }

    #[test]
    fn a_store_that_went_back_does_not_make_its_witness_forget() {
        let temporary = tempfile::tempdir().expect("a directory");
        let open = || Arc::new(file(temporary.path(), "a", "1"));
        let enter = |ledger: &Ledger, index| {
            let last = seen(3, index).last;
            ledger
                .enter(&[Change::Entries(Vec::new(), last)])
                .expect("notes");
        };
        let ledger = Ledger::new(seen(3, 10));
        ledger.set_witness(open()).expect("is set");
        assert_eq!(ledger.witnessed(), None);
        enter(&ledger, 20);
        // The same data, as it was before.
        for _ in 0..2 {
            let ledger = Ledger::new(seen(3, 10));
            ledger.set_witness(open()).expect("is set");
            assert_eq!(ledger.witnessed(), Some(seen(3, 20)));
            enter(&ledger, 15);
        }
        let ledger = Ledger::new(seen(3, 15));
        ledger.set_witness(open()).expect("is set");
        enter(&ledger, 20);
        enter(&ledger, 21);
        let ledger = Ledger::new(seen(3, 21));
        ledger.set_witness(open()).expect("is set");
        assert_eq!(ledger.witnessed(), Some(seen(3, 21)));
    }
}
