//! Semantics by openraft's own suite; durability by a disk that loses, tears and damages what was not synced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt;
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderIdExt;
use proptest::prelude::*;
use redb::backends::InMemoryBackend;

use super::files::MemoryDirectory;
use super::*;
use crate::id::NodeId;
use crate::node::Tokio;
use crate::raft::machine::Machine;
use crate::raft::{LeaderId, Types};

struct Builder(Io);

impl StoreBuilder<Types<Tokio>, LogStore<Tokio>, Machine<Tokio>> for Builder {
    async fn build(
        &self,
    ) -> Result<((), LogStore<Tokio>, Machine<Tokio>), StorageError<Types<Tokio>>> {
        let store = Store::open_backend(InMemoryBackend::new(), self.0).expect("opens");
        let machine = Machine::open(
            Arc::new(MemoryDirectory::default()),
            self.0,
            crate::feature::FEATURE_LEVEL,
            Arc::default(),
        )
        .expect("opens");
        Ok(((), LogStore::new(store), machine))
    }
}

#[test]
fn openraft_finds_nothing_wrong_inline() {
    Types::<Tokio>::run(Suite::test_all(Builder(Io::Inline))).expect("passes");
}

#[test]
fn openraft_finds_nothing_wrong_with_a_thread() {
    Types::<Tokio>::run(Suite::test_all(Builder(Io::Threaded))).expect("passes");
}

/// Sectors are written whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    current: Vec<u8>,
}

/// A disk on which what was not synced may or may not survive, sector by sector.
#[derive(Debug, Clone, Default)]
struct Disk {
    platter: Arc<Mutex<Platter>>,
    full: Arc<AtomicBool>,
    syncs: Arc<AtomicUsize>,
}

impl Disk {
    fn of(content: Vec<u8>) -> Self {
        let disk = Disk::default();
        *disk.platter() = Platter {
            synced: content.clone(),
            current: content,
        };
        disk
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().expect("no panic")
    }

    /// What is left after a loss of power: of each unsynced sector, `survives` decides.
    fn after_power_loss(&self, mut survives: impl FnMut(usize) -> bool) -> Disk {
        let platter = self.platter();
        let mut left = platter.synced.clone();
        if platter.current.len() > left.len() {
            left.resize(platter.current.len(), 0);
        }
        for (n, (old, new)) in left
            .chunks_mut(SECTOR)
            .zip(platter.current.chunks(SECTOR))
            .enumerate()
        {
            if survives(n) {
                old[..new.len()].copy_from_slice(new);
            }
        }
        Disk::of(left)
    }

    fn content(&self) -> Vec<u8> {
        self.platter().current.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = offset as usize;
        out.copy_from_slice(&self.platter().current[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.platter().current.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut platter = self.platter();
        platter.synced = platter.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = offset as usize;
        self.platter().current[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(
        <LeaderId as RaftLeaderIdExt>::new_committed(term, NodeId(1)),
        index,
    )
}

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        log_id: id(term, index),
        payload: openraft::EntryPayload::Normal(crate::raft::Proposal::new(&crate::Stamped {
            command: crate::Command::RetireSigningKey {
                kid: "k".repeat(300),
            },
            time_ms: index,
            seed: [0; 32],
            author: Default::default(),
            idempotency_key: None,
            request: None,
        })),
    }
}

fn open(disk: &Disk) -> Result<LogStore<Tokio>, StoreError> {
    Store::open_backend(disk.clone(), Io::Inline).map(LogStore::new)
}

async fn append(
    log: &mut LogStore<Tokio>,
    entries: impl IntoIterator<Item = Entry>,
) -> io::Result<()> {
    let (sender, receiver) = Types::<Tokio>::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    log.append(entries, IOFlushed::signal(sender)).await?;
    receiver.await.expect("is always called")
}

async fn indices(log: &mut LogStore<Tokio>) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.expect("reads");
    entries.iter().map(RaftEntry::index).collect()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("opens");
    append(&mut log, (0..10).map(|n| entry(1, n)))
        .await
        .expect("appends");
    log.save_vote(&Vote::new_committed(1, NodeId(1)))
        .await
        .expect("saves");
    log.save_committed(Some(id(1, 7))).await.expect("saves");
    log.truncate_after(Some(id(1, 8))).await.expect("truncates");
    append(&mut log, [entry(2, 9)]).await.expect("appends");
    log.purge(id(1, 3)).await.expect("purges");

    let mut log = open(&disk.after_power_loss(|_| false)).expect("opens");
    assert_eq!(indices(&mut log).await, [4, 5, 6, 7, 8, 9]);
    let state = log.get_log_state().await.expect("reads");
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(1, 3)), Some(id(2, 9)))
    );
    assert_eq!(
        log.read_vote().await.expect("reads"),
        Some(Vote::new_committed(1, NodeId(1)))
    );
    assert_eq!(log.read_committed().await.expect("reads"), Some(id(1, 7)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whichever unsynced sectors survive: everything acknowledged is there, nothing is damaged, nothing has a hole.
    #[test]
    fn any_loss_of_power_keeps_what_was_acknowledged(
        acknowledged in 1_u64..30,
        lost in 0_u64..5,
        survivors in prop::collection::vec(any::<bool>(), 64),
    ) {
        Types::<Tokio>::run(async {
            let disk = Disk::default();
            let mut log = open(&disk).expect("opens");
            for n in 0..acknowledged {
                append(&mut log, [entry(1, n)]).await.expect("appends");
            }
            // Writes whose sync never returns: the disk fails at that moment.
            disk.full.store(true, Ordering::SeqCst);
            for n in acknowledged..acknowledged + lost {
                append(&mut log, [entry(1, n)]).await.expect_err("cannot be synced");
            }
            let left = disk.after_power_loss(|sector| survivors[sector % survivors.len()]);
            let mut log = open(&left).expect("opens");
            let found = indices(&mut log).await;
            let count = found.len() as u64;
            assert!((acknowledged..=acknowledged + lost).contains(&count), "{found:?}");
            assert_eq!(found, (0..count).collect::<Vec<_>>());
        });
    }

    /// A flipped bit anywhere is told, or does not matter; it is never a shorter or different log.
    #[test]
    fn damage_is_never_taken_for_a_shorter_log(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
        Types::<Tokio>::run(async {
            let disk = Disk::default();
            let mut log = open(&disk).expect("opens");
            append(&mut log, (0..20).map(|n| entry(1, n))).await.expect("appends");
            drop(log);
            let mut content = disk.content();
            let position = position.index(content.len());
            content[position] ^= 1 << bit;
            if let Ok(mut log) = open(&Disk::of(content)) {
                assert_eq!(indices(&mut log).await, (0..20).collect::<Vec<_>>());
            }
        });
    }
}

#[tokio::test]
async fn a_record_in_the_wrong_place_is_damage() {
    let record = disk::entry_record(&entry(1, 3));
    for (index, record, intact) in [
        (3, record.clone(), true),
        (4, record.clone(), false),
        (3, [&record[..], b"x"].concat(), false),
        (3, record[..10].to_vec(), false),
        (3, Vec::new(), false),
    ] {
        assert_eq!(disk::open_entry(index, &record).is_ok(), intact, "{index}");
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_tried_again() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("opens");
    append(&mut log, [entry(1, 0)]).await.expect("appends");
    disk.full.store(true, Ordering::SeqCst);
    let error = append(&mut log, [entry(1, 1)])
        .await
        .expect_err("the disk is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    disk.full.store(false, Ordering::SeqCst);
    let syncs = disk.syncs.load(Ordering::SeqCst);
    append(&mut log, [entry(1, 2)])
        .await
        .expect_err("it has failed");
    log.save_vote(&Vote::new(2, NodeId(1)))
        .await
        .expect_err("it has failed");
    log.try_get_log_entries(..)
        .await
        .expect_err("it has failed");
    assert_eq!(disk.syncs.load(Ordering::SeqCst), syncs);
}

#[tokio::test]
async fn what_queues_up_is_committed_together() {
    let disk = Disk::default();
    let store = Store::open_backend(disk.clone(), Io::Threaded).expect("opens");
    let mut log: LogStore<Tokio> = LogStore::new(store);
    append(&mut log, [entry(1, 0)]).await.expect("appends");
    let before = disk.syncs.load(Ordering::SeqCst);
    let mut receivers = Vec::new();
    {
        // While the disk is held, everything else has to queue up.
        let _held = disk.platter();
        for n in 1..=500 {
            let (sender, receiver) = Types::<Tokio>::oneshot();
            log.append([entry(1, n)], IOFlushed::signal(sender))
                .now_or_never()
                .expect("does not wait for the disk")
                .expect("queues");
            receivers.push(receiver);
        }
    }
    for receiver in receivers {
        receiver.await.expect("is called").expect("is written");
    }
    // Two syncs a commit, and some for the growing file: the batch that was under way, and the rest; not 500 commits.
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!((2..=20).contains(&syncs), "{syncs} syncs");
}

/// Both ways: while the thread still looks at what queued up after a commit, and when it sleeps until it is woken.
#[tokio::test]
async fn what_nobody_waits_for_is_on_the_disk_before_long() {
    let disk = Disk::default();
    let store = Store::open_backend(disk.clone(), Io::Threaded).expect("opens");
    let mut log: LogStore<Tokio> = LogStore::new(store);
    for (index, pause_ms) in [(0, 0), (1, 500)] {
        append(&mut log, [entry(1, index)]).await.expect("appends");
        tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
        log.save_committed(Some(id(1, index)))
            .await
            .expect("queues");
        let mut tries = 0;
        loop {
            let mut left = open(&disk.after_power_loss(|_| false)).expect("opens");
            if left.read_committed().await.expect("reads") == Some(id(1, index)) {
                break;
            }
            tries += 1;
            assert!(tries < 300, "it never got there");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn reads_for_replication_are_bounded_and_never_empty() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("opens");
    let count = (READ_BYTES / 300) as u64 + 100;
    append(&mut log, (0..count).map(|n| entry(1, n)))
        .await
        .expect("appends");
    // From memory, and from disk after a restart.
    for _ in 0..2 {
        let entries = log.limited_get_log_entries(0, count).await.expect("reads");
        assert!(!entries.is_empty() && (entries.len() as u64) < count);
        let one = log.limited_get_log_entries(5, 6).await.expect("reads");
        assert_eq!(one.iter().map(RaftEntry::index).collect::<Vec<_>>(), [5]);
        log.store.close();
        log = open(&disk.after_power_loss(|_| false)).expect("opens");
    }
}

#[tokio::test]
async fn reads_cross_from_disk_to_memory() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("opens");
    append(&mut log, (0..10).map(|n| entry(1, n)))
        .await
        .expect("appends");
    log.store.close();
    log = open(&disk.after_power_loss(|_| false)).expect("opens");
    append(&mut log, (10..20).map(|n| entry(1, n)))
        .await
        .expect("appends");
    for (from, to) in [
        (0, 5),
        (0, 10),
        (5, 15),
        (10, 20),
        (12, 13),
        (0, 20),
        (19, 30),
        (25, 30),
    ] {
        let entries = log.try_get_log_entries(from..to).await.expect("reads");
        let found: Vec<u64> = entries.iter().map(RaftEntry::index).collect();
        assert_eq!(
            found,
            (from..to.min(20)).collect::<Vec<_>>(),
            "{from}..{to}"
        );
    }
}

#[test]
fn a_file_is_private_and_opened_once() {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::tempdir().expect("a directory");
    let path = temporary.path().join("raft.redb");
    let store = Store::open(&path, Io::Threaded).expect("opens");
    let mode = std::fs::metadata(&path)
        .expect("is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(store.is_empty());
    assert!(matches!(
        Store::open(&path, Io::Threaded),
        Err(StoreError::Locked)
    ));
    store.close();
    Store::open(&path, Io::Threaded).expect("opens again");
}

/// An entry with a command of about `bytes`.
fn large(index: u64, bytes: usize) -> Entry {
    let mut entry = entry(1, index);
    entry.payload = openraft::EntryPayload::Normal(crate::raft::Proposal::new(&crate::Stamped {
        command: crate::Command::RetireSigningKey {
            kid: "k".repeat(bytes),
        },
        time_ms: index,
        seed: [0; 32],
        author: Default::default(),
        idempotency_key: None,
        request: None,
    }));
    entry
}

#[tokio::test]
async fn the_log_knows_how_large_it_is() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("opens");
    assert_eq!(log.store.excess(0), None);
    append(&mut log, (0..10).map(|n| large(n, 1000)))
        .await
        .expect("appends");
    // From what was written, and from what was read back.
    for _ in 0..2 {
        assert_eq!(log.store.excess(1_000_000), None);
        assert_eq!(log.store.excess(0), Some(9));
        let half = log.store.excess(6_000).expect("ten are more");
        assert!((4..=5).contains(&half), "{half}");
        log.store.close();
        log = open(&disk.after_power_loss(|_| false)).expect("opens");
    }
    log.truncate_after(Some(id(1, 6))).await.expect("truncates");
    assert_eq!(log.store.excess(0), Some(6));
    log.purge(id(1, 4)).await.expect("purges");
    assert_eq!(log.store.excess(1_500), Some(5));
    log.purge(id(1, 20)).await.expect("purges");
    assert_eq!(log.store.excess(0), None);
}

#[tokio::test]
async fn a_large_file_that_is_mostly_free_is_compacted_at_open() {
    let temporary = tempfile::tempdir().expect("a directory");
    let path = temporary.path().join("raft.redb");
    let size = || std::fs::metadata(&path).expect("is there").len();
    let open = || Store::open(&path, Io::Inline).map(LogStore::<Tokio>::new);
    let mut log = open().expect("opens");
    for n in 0..40 {
        let entries = (0..5).map(|m| large(n * 5 + m, 256 * 1024));
        append(&mut log, entries).await.expect("appends");
    }
    log.purge(id(1, 197)).await.expect("purges");
    log.store.close();
    let before = size();
    assert!(before > 40_000_000, "{before}");
    let mut log = open().expect("opens");
    assert!(size() < before / 4, "{} of {before}", size());
    assert_eq!(indices(&mut log).await, [198, 199]);
}
