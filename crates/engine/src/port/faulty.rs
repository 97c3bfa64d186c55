//! A port with faults: wraps any other and does to its frames what bad cables, hostile senders and
//! starved hosts do, by a seed, so that what fails can be run again.
//!
//! What arrives is lost, doubled, overtaken, cut, damaged or late; what is sent is refused; buffers
//! run out; the link goes down and comes back, or the device is removed. Once [`Faulty::heal`] is
//! called the port behaves as the one inside does, and what was late arrives.

use std::collections::VecDeque;

use super::{Capabilities, Checksum, Link, Packet, Port, PortStats};
use crate::flow::key::Random;

/// Frames that can be late at a time; further ones arrive at once.
const MAX_LATE: usize = 256;
/// Turns for which a frame is late, or a link down, at most.
const MAX_TURNS: u64 = 32;

/// How often each fault strikes, in a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of the frames that arrive: lost.
    pub lose: u16,
    /// Of the frames that arrive: there twice, if there is a buffer for the second.
    pub duplicate: u16,
    /// Of the frames that arrive: overtaken by the next.
    pub reorder: u16,
    /// Of the frames that arrive: cut to any length.
    pub truncate: u16,
    /// Of the frames that arrive: up to four bits of it turned over.
    pub corrupt: u16,
    /// Of the frames that arrive: late by up to 32 turns.
    pub delay: u16,
    /// Of the bursts that are sent: only a first part of them, or nothing, is taken.
    pub refuse: u16,
    /// Of the buffers that are asked for: none there.
    pub starve: u16,
    /// Of the turns: the link goes down for up to 32 of them.
    pub flap: u16,
}

/// The port inside, and what is done to it.
#[derive(Debug)]
pub struct Faulty<P: Port> {
    inner: P,
    faults: Faults,
    random: Random,
    /// Counted by [`Port::rx_burst`].
    turn: u64,
    /// Late frames, and the turns from which they arrive.
    late: VecDeque<(u64, P::Packet)>,
    /// The turn in which the link is back.
    down_until: u64,
    is_removed: bool,
    /// What was lost on the way in, and refused on the way out.
    lost: u64,
    refused: u64,
    /// Frames of the port inside, before faults; empty between calls, kept for its memory.
    arrived: Vec<P::Packet>,
}

impl<P: Port> Faulty<P> {
    /// A port with these faults. The same seed and the same calls make the same faults.
    pub fn new(inner: P, seed: u64, faults: Faults) -> Self {
        Self {
            inner,
            faults,
            random: Random::new(seed),
            turn: 0,
            late: VecDeque::new(),
            down_until: 0,
            is_removed: false,
            lost: 0,
            refused: 0,
            arrived: Vec::new(),
        }
    }

    /// Ends all faults but the removal of the device.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.down_until = 0;
    }

    /// Removes the device, for good.
    pub fn remove(&mut self) {
        self.is_removed = true;
        self.late.clear();
    }

    /// The port inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// The same, to feed and empty it.
    pub fn inner_mut(&mut self) -> &mut P {
        &mut self.inner
    }

    fn strikes(&mut self, per_thousand: u16) -> bool {
        per_thousand > 0 && self.random.next() % 1000 < u64::from(per_thousand)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound.max(1)
    }

    /// Takes a frame through all faults, into `burst` or elsewhere.
    fn arrive(&mut self, mut frame: P::Packet, burst: &mut Vec<P::Packet>, first: usize) {
        if self.strikes(self.faults.lose) {
            self.lost += 1;
            return;
        }
        if self.strikes(self.faults.duplicate)
            && let Some(mut twin) = self.inner.alloc(frame.bytes().len())
        {
            twin.bytes_mut().copy_from_slice(frame.bytes());
            *twin.meta_mut() = *frame.meta();
            burst.push(twin);
        }
        if self.strikes(self.faults.truncate) {
            let len = self.below(frame.bytes().len() as u64 + 1) as usize;
            cut(&mut frame, len);
        }
        if self.strikes(self.faults.corrupt) && !frame.bytes().is_empty() {
            for _ in 0..=self.below(4) {
                let at = self.below(frame.bytes().len() as u64) as usize;
                frame.bytes_mut()[at] ^= 1 << self.below(8);
            }
        }
        if self.late.len() < MAX_LATE && self.strikes(self.faults.delay) {
            let due = self.turn + 1 + self.below(MAX_TURNS);
            self.late.push_back((due, frame));
            return;
        }
        burst.push(frame);
        let last = burst.len() - 1;
        if last > first && self.strikes(self.faults.reorder) {
            burst.swap(last - 1, last);
        }
    }
}

/// Cuts a frame as a backend would: metadata that no longer fits it does not survive.
fn cut<K: Packet>(frame: &mut K, len: usize) {
    if !frame.set_len(len) {
        return;
    }
    let meta = frame.meta_mut();
    if let Checksum::Partial { start, offset } = meta.checksum
        && usize::from(start) + usize::from(offset) + 2 > len
    {
        meta.checksum = Checksum::Unknown;
    }
    if meta.checksum == Checksum::Unknown
        || meta
            .gso
            .is_some_and(|gso| usize::from(gso.header_len) > len)
    {
        meta.gso = None;
    }
}

impl<P: Port> Port for Faulty<P> {
    type Packet = P::Packet;

    fn rx_burst(&mut self, burst: &mut Vec<P::Packet>, max: usize) -> usize {
        self.turn += 1;
        if self.strikes(self.faults.flap) {
            self.down_until = self.turn + 1 + self.below(MAX_TURNS);
        }
        if self.link() != Link::Up {
            return 0;
        }
        let first = burst.len();
        for _ in 0..self.late.len().min(max) {
            match self.late.pop_front() {
                Some((due, frame)) if due <= self.turn || self.faults == Faults::default() => {
                    burst.push(frame);
                }
                Some(later) => self.late.push_back(later),
                None => break,
            }
        }
        // Each frame may come twice.
        let room = (max - (burst.len() - first)) / if self.faults.duplicate > 0 { 2 } else { 1 };
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inner.rx_burst(&mut arrived, room);
        for frame in arrived.drain(..) {
            self.arrive(frame, burst, first);
        }
        self.arrived = arrived;
        burst.len() - first
    }

    fn tx_burst(&mut self, burst: &mut Vec<P::Packet>) -> usize {
        let taken = if self.link() != Link::Up {
            0
        } else if self.strikes(self.faults.refuse) {
            self.below(burst.len() as u64) as usize
        } else {
            burst.len()
        };
        self.refused += (burst.len() - taken) as u64;
        burst.truncate(taken);
        self.inner.tx_burst(burst)
    }

    fn alloc(&mut self, len: usize) -> Option<P::Packet> {
        if self.strikes(self.faults.starve) {
            return None;
        }
        self.inner.alloc(len)
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn refresh(&mut self) -> bool {
        self.inner.refresh()
    }

    fn link(&self) -> Link {
        if self.is_removed {
            Link::Gone
        } else if self.turn < self.down_until {
            Link::Down
        } else {
            self.inner.link()
        }
    }

    fn stats(&self) -> PortStats {
        let inner = self.inner.stats();
        PortStats {
            rx_dropped: inner.rx_dropped + self.lost,
            tx_dropped: inner.tx_dropped + self.refused,
            ..inner
        }
    }

    fn wait_fd(&self) -> Option<i32> {
        // What is late makes no descriptor readable.
        None
    }

    fn arm(&mut self) {
        self.inner.arm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::{MemoryPacket, MemoryPort};

    const EVERYTHING: Faults = Faults {
        lose: 100,
        duplicate: 100,
        reorder: 100,
        truncate: 100,
        corrupt: 100,
        delay: 100,
        refuse: 100,
        starve: 100,
        flap: 10,
    };

    fn port(seed: u64, faults: Faults, frames: u8) -> Faulty<MemoryPort> {
        let mut inner = MemoryPort::new([2, 0, 0, 0, 0, 1], 1500);
        inner
            .rx
            .extend((0..frames).map(|i| MemoryPacket::new([i; 60])));
        Faulty::new(inner, seed, faults)
    }

    /// What arrives within so many turns.
    fn take(port: &mut Faulty<MemoryPort>, turns: usize) -> Vec<Vec<u8>> {
        let mut burst = Vec::new();
        for _ in 0..turns {
            let had = burst.len();
            let count = port.rx_burst(&mut burst, 8);
            assert_eq!(count, burst.len() - had);
            assert!(count <= 8);
        }
        burst.iter().map(|frame| frame.bytes().to_vec()).collect()
    }

    fn frames(range: impl Iterator<Item = u8>) -> Vec<Vec<u8>> {
        range.map(|i| vec![i; 60]).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_faults() {
        let run = |seed| take(&mut port(seed, EVERYTHING, 200), 300);
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_ne!(run(1), frames(0..200));
    }

    #[test]
    fn without_faults_it_is_the_port_inside() {
        let mut port = port(1, Faults::default(), 100);
        assert_eq!(take(&mut port, 13), frames(0..100));
        assert_eq!(port.stats(), port.inner().stats());
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let none = Faults::default();
        let check = |faults, expected: &dyn Fn(&[Vec<u8>], PortStats)| {
            let mut port = port(3, faults, 100);
            let arrived = take(&mut port, 100);
            expected(&arrived, port.stats());
        };
        check(Faults { lose: 300, ..none }, &|arrived, stats| {
            assert!((50..95).contains(&arrived.len()));
            assert_eq!(arrived.len() as u64 + stats.rx_dropped, 100);
        });
        check(
            Faults {
                duplicate: 300,
                ..none
            },
            &|arrived, _| {
                assert!((105..150).contains(&arrived.len()));
                assert!(arrived.is_sorted());
            },
        );
        for faults in [
            Faults {
                reorder: 300,
                ..none
            },
            Faults { delay: 300, ..none },
        ] {
            check(faults, &|arrived, _| {
                assert!(!arrived.is_sorted(), "{faults:?}");
                let mut sorted = arrived.to_vec();
                sorted.sort();
                assert_eq!(sorted, frames(0..100), "{faults:?}");
            });
        }
        check(
            Faults {
                truncate: 300,
                ..none
            },
            &|arrived, _| {
                assert!(arrived.iter().any(|frame| frame.len() < 60));
            },
        );
        check(
            Faults {
                corrupt: 300,
                ..none
            },
            &|arrived, _| {
                assert!(
                    arrived
                        .iter()
                        .any(|frame| frame.iter().any(|b| *b != frame[0]))
                );
            },
        );
        check(Faults { flap: 500, ..none }, &|arrived, _| {
            assert!(
                arrived.len() < 100,
                "the link was down for some of the time"
            );
        });
    }

    #[test]
    fn what_is_refused_is_counted_and_a_first_part_is_sent() {
        let mut port = port(
            5,
            Faults {
                refuse: 1000,
                ..Faults::default()
            },
            0,
        );
        let mut taken = 0;
        for round in 0..50u8 {
            let mut burst: Vec<_> = (0..4)
                .map(|i| MemoryPacket::new([round * 4 + i; 60]))
                .collect();
            taken += port.tx_burst(&mut burst);
            assert!(burst.is_empty());
        }
        let stats = port.stats();
        assert_eq!(taken as u64, stats.tx_frames);
        assert_eq!(stats.tx_frames + stats.tx_dropped, 200);
        assert!(stats.tx_dropped > 50 && stats.tx_frames > 20, "{stats:?}");
    }

    #[test]
    fn buffers_run_out_and_a_removed_device_stays_away() {
        let mut port = port(
            7,
            Faults {
                starve: 500,
                ..Faults::default()
            },
            10,
        );
        let got = (0..100).filter(|_| port.alloc(60).is_some()).count();
        assert!((20..80).contains(&got), "{got}");
        port.remove();
        port.heal();
        assert_eq!(port.link(), Link::Gone);
        assert_eq!(take(&mut port, 10), frames(0..0));
        assert_eq!(port.tx_burst(&mut vec![MemoryPacket::new([0; 60])]), 0);
        assert_eq!(port.stats().tx_dropped, 1);
    }

    #[test]
    fn once_healed_what_was_late_arrives_and_nothing_is_missing() {
        let faults = Faults {
            delay: 900,
            flap: 300,
            ..Faults::default()
        };
        let mut port = port(9, faults, 100);
        let mut arrived = take(&mut port, 5);
        port.heal();
        arrived.extend(take(&mut port, 100));
        arrived.sort();
        assert_eq!(arrived, frames(0..100));
    }
}
