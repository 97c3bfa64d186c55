//! Watching packets as they pass: a bounded record of each one that is meant, or of each that is
//! dropped, for whoever asked.
//!
//! Records are made beforehand and go round between the worker and the reader. When the reader is
//! too slow there is none left: the packet goes on unseen, and is counted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use crate::look::{Filter, FlowState};
use crate::port::PortId;
use crate::{DropReason, Now, Verdict};

/// Watchers that one worker serves at once.
pub const MAX_TAPS: usize = 4;
/// Bytes of a frame that are kept, at most.
pub const MAX_SNAP: usize = 2048;

/// The two ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source address and port; for ICMP queries the identifier, 0 where there is no port.
    pub src: (IpAddr, u16),
    /// Destination address and port.
    pub dst: (IpAddr, u16),
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Its ends as it came.
    pub ends: Ends,
    /// IP protocol number.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, as in the header.
    pub tcp_flags: Option<u8>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
}

/// The flow that a packet was found to belong to when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Whether the packet is from the end that opened the flow.
    pub from_client: bool,
    /// How far the flow had come.
    pub state: FlowState,
    /// Whether an older snapshot had judged it, so that it was judged again.
    pub stale: bool,
}

/// What decided about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Index of the source group.
    pub group: Option<u32>,
    /// Index of the rule in it.
    pub rule: Option<u32>,
    /// Revision of the policy.
    pub revision: u64,
    /// Whether it passes.
    pub allowed: bool,
}

/// What happened to one frame, stage by stage.
#[derive(Clone, Debug)]
pub struct Record {
    /// When.
    pub at: Now,
    /// The worker.
    pub worker: u16,
    /// The port that it came from, where that is still known.
    pub port: Option<PortId>,
    /// It came from the host.
    pub from_host: bool,
    /// The network that it is in, if it came in a tunnel.
    pub network: Option<u32>,
    /// Its length as it came; of what is in the tunnel.
    pub len: u32,
    /// Fragments that it was put together from; zero: it came in one.
    pub pieces: u16,
    /// Its first bytes as it came, as many as were asked for. Of a frame that was dropped when it was about to leave, as it
    /// would have left.
    pub frame: Vec<u8>,
    /// Its headers, if they could be read and are those of an IP packet.
    pub headers: Option<Headers>,
    /// The flow that it belonged to, or that it is an ICMP error about; none: it opened one, or belonged to none.
    pub hit: Option<Hit>,
    /// What the policy said about its flow.
    pub ruling: Option<Ruling>,
    /// What became of it.
    pub verdict: Verdict,
    /// Its ends as it left.
    pub sent: Option<Ends>,
    /// The station that it was sent to.
    pub next_hop: Option<[u8; 6]>,
    /// Whether it waits for that station's address.
    pub waits: bool,
    /// The worker that takes it in again, if it turned back to a client of another one.
    pub handed_to: Option<u16>,
    /// Resets and ICMP errors that it was answered with.
    pub answers: u8,
}

impl Record {
    fn empty(snap: usize) -> Record {
        Record {
            at: Now(0),
            worker: 0,
            port: None,
            from_host: false,
            network: None,
            len: 0,
            pieces: 0,
            frame: Vec::with_capacity(snap),
            headers: None,
            hit: None,
            ruling: None,
            verdict: Verdict::Reply,
            sent: None,
            next_hop: None,
            waits: false,
            handed_to: None,
            answers: 0,
        }
    }
}

/// What a watcher wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Which packets, by their ends or by those of their flow.
    pub filter: Filter,
    /// Only those that are dropped.
    pub drops_only: bool,
    /// Only those that are dropped for this reason.
    pub reason: Option<DropReason>,
    /// How much of each frame to keep, in bytes, up to [`MAX_SNAP`].
    pub snap: usize,
    /// When to end by itself.
    pub until: Now,
}

/// The worker's side.
#[derive(Debug)]
pub struct Tap {
    pub(crate) wish: Wish,
    empty: Receiver<Box<Record>>,
    full: SyncSender<Box<Record>>,
    lost: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
    /// Where this goes in the end: it is freed where no packet waits for that.
    home: SyncSender<Box<Tap>>,
}

/// The reader's side. Dropping it ends the watch.
#[derive(Debug)]
pub struct Reader {
    empty: SyncSender<Box<Record>>,
    full: Receiver<Box<Record>>,
    lost: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
    home: Receiver<Box<Tap>>,
    is_over: bool,
}

/// Both sides, with so many records between them.
pub fn tap(mut wish: Wish, records: usize) -> (Box<Tap>, Reader) {
    wish.snap = wish.snap.min(MAX_SNAP);
    let (give, empty) = sync_channel(records);
    let (full, take) = sync_channel(records);
    let (home, back) = sync_channel(1);
    for _ in 0..records {
        give.try_send(Box::new(Record::empty(wish.snap)))
            .expect("there is room for all records");
    }
    let (lost, closed) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let reader = Reader {
        empty: give,
        full: take,
        lost: Arc::clone(&lost),
        closed: Arc::clone(&closed),
        home: back,
        is_over: false,
    };
    let tap = Tap {
        wish,
        empty,
        full,
        lost,
        closed,
        home,
    };
    (Box::new(tap), reader)
}

impl Tap {
    /// Whether nobody reads any more, or the time is over.
    pub(crate) fn is_over(&self, now: Now) -> bool {
        now >= self.wish.until || self.closed.load(Ordering::Relaxed)
    }

    /// Hands it to its reader, if that is still there.
    pub(crate) fn give_back(self: Box<Self>) {
        let home = self.home.clone();
        // Without a reader it is freed here.
        let _ = home.try_send(self);
    }

    /// Whether a frame with this fate is meant, as far as that goes.
    pub(crate) fn wants(&self, verdict: Verdict) -> bool {
        let Wish {
            drops_only, reason, ..
        } = self.wish;
        match verdict {
            Verdict::Drop(dropped) => reason.is_none_or(|wanted| wanted == dropped),
            _ => !drops_only && reason.is_none(),
        }
    }

    /// Passes on a record of which `fill` says what differs from an empty one, or counts that there was none left.
    pub(crate) fn record(&self, frame: &[u8], fill: impl FnOnce(&mut Record)) {
        let Ok(mut record) = self.empty.try_recv() else {
            // One writer: only the worker counts here.
            let lost = self.lost.load(Ordering::Relaxed);
            self.lost.store(lost + 1, Ordering::Relaxed);
            return;
        };
        let bytes = std::mem::take(&mut record.frame);
        *record = Record::empty(0);
        fill(&mut record);
        record.frame = bytes;
        record.frame.clear();
        let snap = frame.len().min(self.wish.snap);
        record.frame.extend_from_slice(&frame[..snap]);
        // As many places as records: it fails only if nobody reads any more.
        let _ = self.full.try_send(record);
    }
}

impl Reader {
    /// Hands the next record to `read`, if there is one, and gives it back.
    pub fn read<T>(&self, read: impl FnOnce(&Record) -> T) -> Option<T> {
        let record = self.full.try_recv().ok()?;
        let value = read(&record);
        // Fails only if the worker has ended the watch.
        let _ = self.empty.try_send(record);
        Some(value)
    }

    /// Frames that were meant and for which no record was left.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the watch; what has been recorded can still be read.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the worker watches no more, or has ended.
    pub fn is_over(&mut self) -> bool {
        // Either the tap comes back and is freed here, or it is gone with its worker.
        self.is_over |= !matches!(self.home.try_recv(), Err(TryRecvError::Empty));
        self.is_over
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.close();
    }
}
