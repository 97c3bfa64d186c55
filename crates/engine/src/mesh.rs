//! The ways between the workers of a node: what one receives and another owns is handed over.
//!
//! One ring with a single producer and a single consumer for each ordered pair of workers, and beside it one on which
//! empty buffers come back, so that nothing is allocated once the buffers have grown to what they carry, super-packets aside. No lock, and
//! no system call unless the other worker sleeps.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::overlay::{Envelope, Wrapping};
use crate::parse::Parsed;
use crate::port::{Meta, Packet, PortId};

/// Frames that may wait for one worker from one other.
const DEPTH: usize = 512;
/// Bytes that an empty buffer keeps room for.
const KEPT: usize = 4096;

/// A frame on its way to another worker.
#[derive(Debug)]
pub(crate) struct Handed {
    /// The port that it came in by.
    pub(crate) port: PortId,
    pub(crate) parsed: Parsed,
    pub(crate) meta: Meta,
    pub(crate) as_what: As,
    pub(crate) bytes: Vec<u8>,
}

/// What a frame is handed over as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// A frame to process.
    Frame,
    /// The same, with the packet to process in a tunnel.
    Inner(Envelope),
    /// A frame that was sent to one of our NAT addresses, by the client that its source now stands for.
    Turned,
    /// A frame that was dealt with: there is only something to learn from it.
    Copy,
    /// A datagram that came in pieces, with the bytes in front of the part that is cut, those of the pieces, and what is
    /// to be put around them if they came in a tunnel.
    Whole {
        head: usize,
        cuts: Vec<u16>,
        around: Option<Box<Wrapping>>,
        turned: Option<PortId>,
    },
}

/// Ends the sleep of one worker; called from other workers' threads.
pub type Wake = Box<dyn Fn() + Send + Sync>;

struct Sleeper {
    asleep: AtomicBool,
    wake: Wake,
}

/// One worker's ends of the rings to and from all others.
pub struct Peers {
    index: usize,
    /// By worker; none for this one.
    to: Vec<Option<Outgoing>>,
    from: Vec<Option<Incoming>>,
    sleepers: Arc<[Sleeper]>,
}

struct Outgoing {
    full: Producer<Handed>,
    empty: Consumer<Vec<u8>>,
    /// Something was handed over since the other worker was last looked at.
    handed: bool,
}

struct Incoming {
    full: Consumer<Handed>,
    empty: Producer<Vec<u8>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({} of {})", self.index, self.to.len())
    }
}

/// The ends for as many workers as there are ways to wake one, in their order.
pub fn mesh(wakes: Vec<Wake>) -> Vec<Peers> {
    let count = wakes.len();
    let sleepers: Arc<[Sleeper]> = wakes
        .into_iter()
        .map(|wake| Sleeper {
            asleep: AtomicBool::new(false),
            wake,
        })
        .collect();
    let mut peers: Vec<Peers> = (0..count)
        .map(|index| Peers {
            index,
            to: (0..count).map(|_| None).collect(),
            from: (0..count).map(|_| None).collect(),
            sleepers: Arc::clone(&sleepers),
        })
        .collect();
    for a in 0..count {
        for b in (0..count).filter(|b| *b != a) {
            let (full, due) = RingBuffer::new(DEPTH);
            let (mut returned, empty) = RingBuffer::new(DEPTH);
            for _ in 0..DEPTH {
                returned.push(Vec::new()).expect("there is room for all");
            }
            let handed = false;
            peers[a].to[b] = Some(Outgoing {
                full,
                empty,
                handed,
            });
            peers[b].from[a] = Some(Incoming {
                full: due,
                empty: returned,
            });
        }
    }
    peers
}

impl Peers {
    /// Hands a frame over to another worker. False, and nothing is done, if its ring is full.
    pub(crate) fn hand_over(
        &mut self,
        to: u16,
        port: PortId,
        frame: &impl Packet,
        parsed: &Parsed,
        as_what: As,
    ) -> bool {
        let Some(Some(way)) = self.to.get_mut(usize::from(to)) else {
            return false;
        };
        // As many buffers as places: with a buffer there is a place.
        let Ok(mut bytes) = way.empty.pop() else {
            return false;
        };
        bytes.extend_from_slice(frame.bytes());
        let handed = Handed {
            port,
            parsed: *parsed,
            meta: *frame.meta(),
            as_what,
            bytes,
        };
        way.handed = true;
        way.full.push(handed).is_ok()
    }

    /// Hands a copy to every other worker; what is full misses it.
    pub(crate) fn tell_all(&mut self, port: PortId, frame: &impl Packet, parsed: &Parsed) {
        for to in 0..self.to.len() as u16 {
            self.hand_over(to, port, frame, parsed, As::Copy);
        }
    }

    /// Wakes the workers that were handed something in their sleep; once a turn.
    pub(crate) fn wake(&mut self) {
        let mut fenced = false;
        for (way, sleeper) in self.to.iter_mut().zip(&*self.sleepers) {
            let Some(way) = way.as_mut().filter(|way| way.handed) else {
                continue;
            };
            way.handed = false;
            if !fenced {
                // Either the sleeper sees what was pushed, or this sees it asleep.
                fence(Ordering::SeqCst);
                fenced = true;
            }
            if sleeper.asleep.swap(false, Ordering::Relaxed) {
                (sleeper.wake)();
            }
        }
    }

    /// Takes at most `max` frames from each of the others, in the order in which each handed them over.
    pub(crate) fn take(&mut self, max: usize, into: &mut Vec<(usize, Handed)>) {
        for (from, way) in self.from.iter_mut().enumerate() {
            let Some(way) = way else { continue };
            into.extend((0..max).map_while(|_| way.full.pop().ok().map(|handed| (from, handed))));
        }
    }

    /// Gives a buffer back to the worker that filled it.
    pub(crate) fn give_back(&mut self, from: usize, mut bytes: Vec<u8>) {
        bytes.clear();
        // A super-packet's would keep 64 KiB for good, in every place of every ring.
        bytes.shrink_to(KEPT);
        if let Some(Some(way)) = self.from.get_mut(from) {
            // It came out of as many, so it fits.
            let _ = way.empty.push(bytes);
        }
    }

    /// Says that this worker is about to sleep. False if something is there for it already.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.sleepers[self.index]
            .asleep
            .store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let due = self.from.iter().flatten().any(|way| !way.full.is_empty());
        if due {
            self.wake_up();
        }
        !due
    }

    /// Says that it is awake.
    pub(crate) fn wake_up(&self) {
        self.sleepers[self.index]
            .asleep
            .store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Station, parse};
    use crate::port::memory::MemoryPacket;
    use std::thread;

    fn frame(number: u32) -> (MemoryPacket, Parsed) {
        let mut bytes = vec![0; 60];
        bytes[12..14].copy_from_slice(&[8, 6]);
        bytes[56..].copy_from_slice(&number.to_be_bytes());
        let parsed = parse(&bytes, Station::Any, None).unwrap();
        (MemoryPacket::new(bytes), parsed)
    }

    /// Sleeps without a limit: a wake that is lost would hang it.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the point is that there are two threads"
    )]
    fn whatever_is_handed_over_wakes_the_other_and_arrives_in_order() {
        const FRAMES: u32 = 50_000;
        let consumer = thread::current();
        let wake = move || consumer.unpark();
        let mut peers = mesh(vec![Box::new(|| ()), Box::new(wake)]);
        let (mut second, mut first) = (peers.pop().unwrap(), peers.pop().unwrap());
        let producer = thread::spawn(move || {
            for number in 0..FRAMES {
                let (packet, parsed) = frame(number);
                while !first.hand_over(1, PortId(0), &packet, &parsed, As::Frame) {
                    first.wake();
                    thread::yield_now();
                }
                // At times alone, at times with others.
                if number % 7 != 0 {
                    first.wake();
                }
            }
            first.wake();
        });
        let mut taken = Vec::new();
        let mut next = 0u32;
        while next < FRAMES {
            second.take(16, &mut taken);
            for (from, handed) in taken.drain(..) {
                assert_eq!(handed.bytes[56..], next.to_be_bytes());
                next += 1;
                second.give_back(from, handed.bytes);
            }
            if next < FRAMES && second.fall_asleep() {
                thread::park();
                second.wake_up();
            }
        }
        producer.join().unwrap();
    }

    #[test]
    fn a_buffer_is_kept_for_frames_and_not_for_super_packets() {
        let mut peers = mesh(vec![Box::new(|| ()), Box::new(|| ())]);
        let (mut second, mut first) = (peers.pop().unwrap(), peers.pop().unwrap());
        for len in [60, 1514, 60_000] {
            let (_, parsed) = frame(0);
            let packet = MemoryPacket::new(vec![0; len]);
            assert!(first.hand_over(1, PortId(0), &packet, &parsed, As::Frame));
            let mut taken = Vec::new();
            second.take(1, &mut taken);
            for (from, handed) in taken {
                second.give_back(from, handed.bytes);
            }
        }
        let way = first.to[1].as_mut().unwrap();
        let capacities: Vec<usize> = std::iter::from_fn(|| way.empty.pop().ok())
            .map(|bytes| bytes.capacity())
            .collect();
        assert!(capacities.iter().all(|c| *c <= KEPT), "{capacities:?}");
        assert!(capacities.iter().any(|c| *c >= 1514), "{capacities:?}");
    }

    #[test]
    fn a_lone_worker_has_nobody_to_hand_over_to() {
        let mut peers = mesh(vec![Box::new(|| ())]);
        let (packet, parsed) = frame(0);
        assert!(!peers[0].hand_over(0, PortId(0), &packet, &parsed, As::Frame));
        assert!(!peers[0].hand_over(1, PortId(0), &packet, &parsed, As::Frame));
        peers[0].tell_all(PortId(0), &packet, &parsed);
        assert!(peers[0].fall_asleep());
    }
}
