//! A device whose frames are filled when they are received: those of `net_null` are empty.

use engine::port::{Capabilities, Link, Packet, Port, PortStats};
use io::dpdk::{DpdkPort, Mbuf};

use crate::frame::LEN;

/// Where the source address is in a frame.
const SOURCE: std::ops::Range<usize> = 26..30;

/// The device.
pub(crate) struct Filled {
    device: DpdkPort,
    frames: Vec<[u8; LEN]>,
    next: usize,
    /// What comes before them, in a buffer of its own.
    pub(crate) first: Option<[u8; LEN]>,
    /// If there is one, the source that all IPv4 packets that are sent must have, and how many had another.
    pub(crate) expected: Option<([u8; 4], u64)>,
}

impl Filled {
    pub(crate) fn new(device: DpdkPort) -> Self {
        Self {
            device,
            frames: Vec::new(),
            next: 0,
            first: None,
            expected: None,
        }
    }

    /// Delivers these, round and round, from now on; nothing if there are none.
    pub(crate) fn deliver(&mut self, frames: Vec<[u8; LEN]>) {
        (self.frames, self.next) = (frames, 0);
    }
}

impl Port for Filled {
    type Packet = Mbuf;

    fn rx_burst(&mut self, burst: &mut Vec<Mbuf>, max: usize) -> usize {
        if let Some(first) = self.first.take() {
            let mut frame = self.device.alloc(LEN).expect("there are buffers");
            frame.bytes_mut().copy_from_slice(&first);
            burst.push(frame);
            return 1;
        }
        let had = burst.len();
        let received = self.device.rx_burst(burst, max.min(self.frames.len()));
        for frame in &mut burst[had..] {
            frame.bytes_mut().copy_from_slice(&self.frames[self.next]);
            self.next += 1;
            if self.next == self.frames.len() {
                self.next = 0;
            }
        }
        received
    }

    fn tx_burst(&mut self, burst: &mut Vec<Mbuf>) -> usize {
        if let Some((source, others)) = &mut self.expected {
            let is_wrong = |bytes: &[u8]| bytes[12..14] == [8, 0] && bytes[SOURCE] != source[..];
            *others += burst.iter().filter(|frame| is_wrong(frame.bytes())).count() as u64;
        }
        self.device.tx_burst(burst)
    }

    fn alloc(&mut self, len: usize) -> Option<Mbuf> {
        self.device.alloc(len)
    }

    fn capabilities(&self) -> &Capabilities {
        self.device.capabilities()
    }

    fn link(&self) -> Link {
        self.device.link()
    }

    fn stats(&self) -> PortStats {
        self.device.stats()
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }
}
