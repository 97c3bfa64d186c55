//! Descriptors of ports that outlive the process, by the device that they are open on: frames that come while one program
//! takes the place of another wait in them.
//!
//! A descriptor is used again only for a device of the same configuration. Otherwise it is closed, before the device is
//! opened anew.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What their names begin with; then come the device's name, a digest of its configuration, the queue and its position.
/// No name of an interface has a slash.
const PREFIX: &str = "port/";

/// Those of this process; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    ports: Arc<Mutex<Ports>>,
    leaving: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Ports {
    /// Of the process before this one, not claimed yet.
    before: Vec<Queue>,
    /// Of this one.
    open: Vec<Queue>,
}

/// An open queue of a device.
#[derive(Debug)]
struct Queue {
    device: String,
    digest: u64,
    number: usize,
    position: Position,
    fd: OwnedFd,
}

/// How far a queue's ring has been read. Zero where there is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position(Arc<AtomicUsize>);

impl Position {
    pub(crate) fn new(at: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(at)))
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, at: usize) {
        self.0.store(at, Ordering::Relaxed);
    }
}

impl Kept {
    /// Takes those that belong here out of the descriptors that the process was started with.
    pub fn take(descriptors: &mut BTreeMap<String, OwnedFd>) -> Self {
        let names: Vec<String> = descriptors
            .keys()
            .filter(|name| name.starts_with(PREFIX))
            .cloned()
            .collect();
        let queues = names.into_iter().filter_map(|name| {
            let fd = descriptors.remove(&name)?;
            Queue::parse(&name, fd)
        });
        let before = queues.collect();
        let ports = Ports {
            before,
            open: Vec::new(),
        };
        Self {
            ports: Arc::new(Mutex::new(ports)),
            leaving: Arc::default(),
        }
    }

    /// The queues that a device had, with what was read of each, if there are so many and its configuration was the same.
    pub(crate) fn claim(
        &self,
        device: &str,
        config: &impl Debug,
        count: usize,
    ) -> Option<Vec<(OwnedFd, usize)>> {
        let digest = digest(config);
        let mut ports = self.lock();
        let of_device = |queue: &mut Queue| queue.device == device;
        let mut queues: Vec<Queue> = ports.before.extract_if(.., of_device).collect();
        queues.sort_unstable_by_key(|queue| queue.number);
        let numbers = queues.iter().map(|queue| queue.number);
        let is_same = numbers.eq(0..count) && queues.iter().all(|queue| queue.digest == digest);
        is_same.then(|| {
            let queues = queues.into_iter();
            queues
                .map(|queue| (queue.fd, queue.position.get()))
                .collect()
        })
    }

    /// Keeps an open queue of a device.
    pub(crate) fn enter(
        &self,
        device: &str,
        config: &impl Debug,
        number: usize,
        fd: BorrowedFd<'_>,
        position: Position,
    ) -> std::io::Result<()> {
        let queue = Queue {
            device: device.to_owned(),
            digest: digest(config),
            number,
            position,
            fd: fd.try_clone_to_owned()?,
        };
        self.lock().open.push(queue);
        Ok(())
    }

    /// Whether devices are left to the next process, and so must stay as they are.
    pub(crate) fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leaving)
    }

    /// From now on devices are left as they are.
    pub fn keep(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Those to be handed over, by name.
    pub fn leave(&self) -> Vec<(String, OwnedFd)> {
        let open = std::mem::take(&mut self.lock().open);
        open.into_iter()
            .map(|queue| (queue.name(), queue.fd))
            .collect()
    }

    /// Closes those of the process before that nobody has claimed: their devices are no ports any more.
    pub fn close_unclaimed(&self) {
        self.lock().before.clear();
    }

    /// Closes all: the devices go with those who use them.
    pub fn close(&self) {
        *self.lock() = Ports::default();
    }

    fn lock(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn name(&self) -> String {
        format!(
            "{PREFIX}{}/{:016x}/{}/{}",
            self.device,
            self.digest,
            self.number,
            self.position.get()
        )
    }

    fn parse(name: &str, fd: OwnedFd) -> Option<Self> {
        let mut words = name.strip_prefix(PREFIX)?.split('/');
        let queue = Self {
            device: words.next()?.to_owned(),
            digest: u64::from_str_radix(words.next()?, 16).ok()?,
            number: words.next()?.parse().ok()?,
            position: Position::new(words.next()?.parse().ok()?),
            fd,
        };
        words.next().is_none().then_some(queue)
    }
}

/// Another version may come to another one, and then opens the device anew.
fn digest(config: &impl Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{config:?}").hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn kept(entries: &[(&str, &str, usize, usize)]) -> Kept {
        let kept = Kept::default();
        for (device, config, number, position) in entries {
            let null = File::open("/dev/null").expect("it is there");
            kept.enter(
                device,
                config,
                *number,
                null.as_fd(),
                Position::new(*position),
            )
            .expect("a descriptor is free");
        }
        let mut left: BTreeMap<_, _> = kept.leave().into_iter().collect();
        assert!(kept.leave().is_empty());
        left.insert(
            "dns-tcp".into(),
            File::open("/dev/null").expect("it is there").into(),
        );
        let next = Kept::take(&mut left);
        assert_eq!(left.len(), 1, "what is not a port's stays");
        next
    }

    fn positions(claimed: Option<Vec<(OwnedFd, usize)>>) -> Option<Vec<usize>> {
        claimed.map(|queues| queues.into_iter().map(|(_, position)| position).collect())
    }

    #[test]
    fn a_device_has_its_queues_again_once_and_only_as_it_was() {
        let all = [
            ("eth1", "a", 1, 17),
            ("eth1", "a", 0, 4),
            ("svc0", "b", 0, 0),
        ];
        let next = kept(&all);
        assert_eq!(positions(next.claim("eth1", &"a", 2)), Some(vec![4, 17]));
        assert_eq!(positions(next.claim("eth1", &"a", 2)), None);
        assert_eq!(positions(next.claim("svc0", &"c", 1)), None);
        assert_eq!(
            positions(next.claim("svc0", &"b", 1)),
            None,
            "it was closed"
        );
        let next = kept(&all);
        next.close_unclaimed();
        assert_eq!(positions(next.claim("eth1", &"a", 2)), None);
        let next = kept(&all);
        assert_eq!(positions(next.claim("eth1", &"a", 1)), None);
        assert_eq!(positions(next.claim("eth2", &"a", 1)), None);
        assert_eq!(positions(next.claim("svc0", &"b", 1)), Some(vec![0]));
    }

    #[test]
    fn names_that_make_no_sense_are_closed() {
        for name in [
            "port/",
            "port/eth1/1/2",
            "port/eth1/x/0/0",
            "port/eth1/1/-1/0",
            "port/eth1/1/0/0/0",
        ] {
            let null = File::open("/dev/null").expect("it is there").into();
            let mut left = BTreeMap::from([(name.to_owned(), null)]);
            let kept = Kept::take(&mut left);
            assert!(left.is_empty());
            assert!(kept.lock().before.is_empty(), "{name}");
        }
    }
}
