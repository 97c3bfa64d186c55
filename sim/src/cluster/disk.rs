//! One machine's disk: the log's file, whose unsynced writes can be lost or torn, and small files that are replaced as a
//! whole. Power can be cut in the middle of a commit, the disk can fill up, and a sync can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use cluster::store::files::Directory;
use redb::StorageBackend;

use super::random::{Random, mix};

/// What a disk writes at once or not at all, in bytes.
const SECTOR: u64 = 512;

/// A machine's disk. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    random: Random,
    log: Platter,
    files: BTreeMap<String, Vec<u8>>,
    /// Counts openings, kills and losses of power: a handle from before has no effect any more.
    age: u64,
    plan: Option<Plan>,
    /// The power went in the middle of a commit, and nobody has noticed yet.
    cut: bool,
    full: bool,
    /// A mutant: syncs say that they were done.
    lies: bool,
}

/// What will happen at a sync to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Syncs until then.
    after: u64,
    event: SyncEvent,
}

/// What can happen at a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncEvent {
    /// Power is lost before anything is certain to be on the platter.
    CutBefore,
    /// Power is lost when everything is, but nobody was told.
    CutAfter,
    /// The sync fails, and the kernel forgets that these pages were to be written.
    Error,
}

/// The log's file.
#[derive(Debug, Clone, Default)]
struct Platter {
    /// What the machine reads.
    current: Vec<u8>,
    /// What is there after a loss of power.
    durable: Vec<u8>,
    /// Written but not synced, in order: offset and content.
    pending: Vec<(u64, Vec<u8>)>,
}

impl Platter {
    fn sync(&mut self) {
        self.durable.resize(self.current.len(), 0);
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            // A file that was cut short meanwhile has no place for it.
            if let Some(place) = range(&mut self.durable, offset, bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
    }

    /// Loses what was not synced: all of it, none of it, or some sectors.
    fn lose(&mut self, random: &mut Random) {
        let (mode, salt) = (random.below(3), random.draw());
        let length = random.chance(50);
        if length || mode == 1 {
            self.durable.resize(self.current.len(), 0);
        }
        let sectors: BTreeSet<u64> = self
            .pending
            .iter()
            .flat_map(|(offset, bytes)| {
                offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR)
            })
            // Chosen by place, so that the choice does not depend on the order in which redb writes its pages.
            .filter(|sector| mode == 1 || mode == 2 && mix(salt ^ sector) & 1 == 1)
            .collect();
        for sector in sectors {
            let from = usize::try_from(sector * SECTOR).expect("a small file");
            let to = (from + 512).min(self.durable.len()).min(self.current.len());
            if from < to {
                self.durable[from..to].copy_from_slice(&self.current[from..to]);
            }
        }
        self.pending.clear();
        self.current = self.durable.clone();
    }
}

fn range(file: &mut [u8], offset: u64, len: usize) -> Option<&mut [u8]> {
    let from = usize::try_from(offset).ok()?;
    file.get_mut(from..from.checked_add(len)?)
}

/// Everything that is on a disk, as a hypervisor's snapshot keeps it.
#[derive(Debug, Clone)]
pub struct DiskImage {
    log: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

impl DiskImage {
    /// The same without the log and its snapshots.
    pub fn without_log(mut self) -> Self {
        self.log.clear();
        self.files.retain(|name, _| !name.starts_with("snapshots/"));
        self
    }
}

impl Disk {
    /// An empty disk. `lies`: its syncs do nothing.
    pub fn new(random: Random, lies: bool) -> Self {
        Disk {
            inner: Arc::new(Mutex::new(Inner {
                random,
                log: Platter::default(),
                files: BTreeMap::new(),
                age: 0,
                plan: None,
                cut: false,
                full: false,
                lies,
            })),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens the log's file; earlier handles end.
    pub fn open_log(&self) -> LogFile {
        let mut inner = self.inner();
        inner.age += 1;
        LogFile {
            age: inner.age,
            disk: self.clone(),
        }
    }

    /// Whether there is anything in the log's file.
    pub fn has_log(&self) -> bool {
        !self.inner().log.current.is_empty()
    }

    /// The small files whose names begin with `prefix`.
    pub fn directory(&self, prefix: &'static str) -> Files {
        Files {
            disk: self.clone(),
            prefix,
            age: None,
        }
    }

    /// Ends every handle, as the end of a process does: what it wrote stays in the page cache.
    pub fn release(&self) {
        self.inner().age += 1;
    }

    /// Takes the power away.
    pub fn lose_power(&self) {
        let mut inner = self.inner();
        inner.age += 1;
        (inner.cut, inner.plan) = (false, None);
        let Inner { log, random, .. } = &mut *inner;
        log.lose(random);
    }

    /// Has `event` happen at the `after`th sync from now.
    pub fn plan(&self, after: u64, event: SyncEvent) {
        self.inner().plan = Some(Plan { after, event });
    }

    /// Lets go of what was planned.
    pub fn repair(&self) {
        let mut inner = self.inner();
        (inner.plan, inner.full) = (None, false);
    }

    /// Fills the disk up, or makes room again.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Whether writes fail for want of room.
    pub fn is_full(&self) -> bool {
        self.inner().full
    }

    /// Whether the power went in the middle of a commit since this was last asked.
    pub fn take_cut(&self) -> bool {
        std::mem::take(&mut self.inner().cut)
    }

    /// What is on the platter now.
    pub fn image(&self) -> DiskImage {
        let inner = self.inner();
        DiskImage {
            log: inner.log.durable.clone(),
            files: inner.files.clone(),
        }
    }

    /// Puts an earlier image in the place of everything.
    pub fn restore(&self, image: DiskImage) {
        let mut inner = self.inner();
        inner.age += 1;
        inner.log = Platter {
            current: image.log.clone(),
            durable: image.log,
            pending: Vec::new(),
        };
        inner.files = image.files;
    }

    /// Removes everything.
    pub fn wipe(&self) {
        self.restore(DiskImage {
            log: Vec::new(),
            files: BTreeMap::new(),
        });
    }
}

impl Inner {
    fn check(&self, age: u64) -> io::Result<()> {
        if self.age == age {
            Ok(())
        } else {
            Err(io::Error::other("this process has ended"))
        }
    }

    fn room(&self) -> io::Result<()> {
        match self.full {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    /// Whether what is planned happens at this sync.
    fn due(&mut self) -> Option<SyncEvent> {
        let plan = self.plan.as_mut()?;
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        self.plan.take().map(|plan| plan.event)
    }

    fn cut(&mut self) -> io::Error {
        self.age += 1;
        self.cut = true;
        io::Error::other("the power is gone")
    }
}

/// The log's file, as one process has it open.
#[derive(Debug)]
pub struct LogFile {
    disk: Disk,
    age: u64,
}

impl StorageBackend for LogFile {
    fn len(&self) -> io::Result<u64> {
        let inner = self.disk.inner();
        inner.check(self.age)?;
        Ok(inner.log.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.check(self.age)?;
        let place =
            range(&mut inner.log.current, offset, out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(place);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.check(self.age)?;
        let len = usize::try_from(len).expect("a small file");
        if len > inner.log.current.len() {
            inner.room()?;
        }
        inner.log.current.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.check(self.age)?;
        match inner.due() {
            Some(SyncEvent::CutBefore) => return Err(inner.cut()),
            Some(SyncEvent::CutAfter) => {
                inner.log.sync();
                return Err(inner.cut());
            }
            Some(SyncEvent::Error) => {
                // The kernel counts those pages as written and serves them until it evicts them; the store has it
                // do so before it opens a file. So from here on this process sees them, and nobody after it.
                inner.log.pending.clear();
                inner.log.current = inner.log.durable.clone();
                return Err(io::Error::other("the sync failed"));
            }
            None => {}
        }
        if !inner.lies {
            inner.log.sync();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.check(self.age)?;
        inner.room()?;
        range(&mut inner.log.current, offset, data.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        inner.log.pending.push((offset, data.to_vec()));
        Ok(())
    }
}

/// Small files, each replaced as a whole and durably.
#[derive(Debug, Clone)]
pub struct Files {
    disk: Disk,
    prefix: &'static str,
    age: Option<u64>,
}

impl Files {
    /// Ends with the handles that are open now.
    pub fn of_this_process(self) -> Self {
        let age = self.disk.inner().age;
        Files {
            age: Some(age),
            ..self
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn check(&self, inner: &Inner) -> io::Result<()> {
        self.age.map_or(Ok(()), |age| inner.check(age))
    }
}

impl Directory for Files {
    fn write(&self, name: &str, parts: &[Bytes]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        self.check(&inner)?;
        inner.room()?;
        let event = inner.due();
        match event {
            Some(SyncEvent::CutBefore) => return Err(inner.cut()),
            Some(SyncEvent::Error) => return Err(io::Error::other("the sync failed")),
            Some(SyncEvent::CutAfter) | None => {}
        }
        inner.files.insert(self.name(name), parts.concat());
        match event {
            Some(_) => Err(inner.cut()),
            None => Ok(()),
        }
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let inner = self.disk.inner();
        self.check(&inner)?;
        Ok(inner.files.get(&self.name(name)).cloned())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.disk.inner();
        self.check(&inner)?;
        let prefix = self.name("");
        Ok(inner
            .files
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.disk.inner();
        self.check(&inner)?;
        inner.files.remove(&self.name(name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64, lies: bool) -> (Disk, LogFile) {
        let disk = Disk::new(Random::new(seed), lies);
        let file = disk.open_log();
        file.set_len(4096).expect("grows");
        file.sync_data().expect("syncs");
        (disk, file)
    }

    /// What the first bytes of each sector are after a loss of power.
    fn after(disk: &Disk) -> Vec<u8> {
        disk.lose_power();
        let mut content = vec![0; 4096];
        disk.open_log().read(0, &mut content).expect("reads");
        content.chunks(512).map(|sector| sector[0]).collect()
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_goes_in_whole_sectors() {
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            let (disk, file) = disk(seed, false);
            file.write(0, &[1; 4096]).expect("writes");
            file.sync_data().expect("syncs");
            file.write(0, &[2; 2048]).expect("writes");
            let content = after(&disk);
            assert_eq!(content[4..], [1; 4]);
            seen.insert(content[..4].to_vec());
        }
        assert!(seen.contains(&vec![1; 4]) && seen.contains(&vec![2; 4]) && seen.len() > 4);
    }

    #[test]
    fn a_lying_disk_forgets() {
        let forgets = |seed| {
            let (disk, file) = disk(seed, true);
            file.write(0, &[1; 512]).expect("writes");
            file.sync_data().expect("says so");
            disk.lose_power();
            disk.image().log.first() != Some(&1)
        };
        assert!((0..20).any(forgets));
    }

    #[test]
    fn power_goes_in_the_middle_of_a_commit() {
        for (event, kept) in [(SyncEvent::CutBefore, false), (SyncEvent::CutAfter, true)] {
            let (disk, file) = disk(1, false);
            disk.plan(1, event);
            file.write(0, &[1; 512]).expect("writes");
            file.sync_data().expect("syncs");
            file.write(512, &[2; 512]).expect("writes");
            assert!(file.sync_data().is_err());
            assert!(disk.take_cut() && !disk.take_cut());
            assert!(file.write(0, &[3; 512]).is_err(), "nothing more gets there");
            assert_eq!(disk.image().log[0], 1);
            assert_eq!(disk.image().log[512] == 2, kept);
        }
    }

    #[test]
    fn a_full_disk_takes_nothing_and_an_old_handle_neither() {
        let (disk, file) = disk(1, false);
        let files = disk.directory("a").of_this_process();
        disk.set_full(true);
        let full = |result: io::Result<()>| {
            result.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
        };
        assert!(full(file.write(0, &[1])) && full(file.set_len(1 << 20)));
        assert!(full(files.write("x", &[])));
        disk.repair();
        files
            .write("x", &[Bytes::from_static(b"y")])
            .expect("writes");
        assert_eq!(files.list().expect("lists"), ["x"]);
        disk.release();
        assert!(files.write("x", &[]).is_err() && file.write(0, &[1]).is_err());
    }
}
