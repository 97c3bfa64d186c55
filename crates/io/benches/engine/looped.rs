//! A port that delivers prepared frames round and round, and takes what is sent back into the common pool.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use engine::port::{Capabilities, Link, Meta, Packet, Port, PortStats};

struct Buffer {
    bytes: [u8; 128],
    len: usize,
    meta: Meta,
}

/// A buffer as a backend has them: the frames move, their bytes do not.
pub(crate) struct Pooled(Box<Buffer>);

impl Packet for Pooled {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes[..self.0.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0.bytes[..self.0.len]
    }
    fn set_len(&mut self, len: usize) -> bool {
        self.0.len = len.min(128);
        len <= 128
    }
    fn meta(&self) -> &Meta {
        &self.0.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.0.meta
    }
}

/// The port.
pub(crate) struct Looped {
    /// Frames of so many bytes, one behind the other.
    pub(crate) frames: Rc<[u8]>,
    len: usize,
    next: usize,
    pool: Rc<RefCell<Vec<Pooled>>>,
    /// UDP datagrams that were sent.
    pub(crate) sent: u64,
    /// Frames that were delivered.
    pub(crate) given: u64,
    /// If there is one, the source that all that is sent must have, and how many had another.
    pub(crate) expected: Option<(IpAddr, u64)>,
    capabilities: Capabilities,
}

impl Looped {
    pub(crate) fn new(mac: [u8; 6], pool: &Rc<RefCell<Vec<Pooled>>>) -> Self {
        Self {
            frames: Rc::new([]),
            len: 1,
            next: 0,
            pool: Rc::clone(pool),
            sent: 0,
            given: 0,
            expected: None,
            capabilities: Capabilities {
                mtu: 1500,
                tx_checksum: true,
                tx_gso_tcp: true,
                tx_gso_udp: true,
                mac,
                layer3: false,
            },
        }
    }

    /// Delivers these from now on, each of `len` bytes.
    pub(crate) fn deliver(&mut self, frames: Rc<[u8]>, len: usize) {
        (self.frames, self.len, self.next) = (frames, len, 0);
    }
}

impl Port for Looped {
    type Packet = Pooled;

    fn rx_burst(&mut self, burst: &mut Vec<Pooled>, max: usize) -> usize {
        if self.frames.is_empty() {
            return 0;
        }
        for _ in 0..max {
            let len = self.len;
            let mut buffer = self.alloc(len).expect("the pool grows");
            buffer.0.bytes[..len].copy_from_slice(&self.frames[self.next..][..len]);
            burst.push(buffer);
            self.next += len;
            if self.next == self.frames.len() {
                self.next = 0;
            }
        }
        self.given += max as u64;
        max
    }

    fn tx_burst(&mut self, burst: &mut Vec<Pooled>) -> usize {
        let is_udp = |packet: &&Pooled| match &packet.bytes()[12..24] {
            [8, 0, .., protocol] => *protocol == 17,
            [0x86, 0xdd, _, _, _, _, _, _, protocol, ..] => *protocol == 17,
            _ => false,
        };
        self.sent += burst.iter().filter(is_udp).count() as u64;
        if let Some((source, others)) = &mut self.expected {
            let wrong = |packet: &&Pooled| match source {
                IpAddr::V4(source) => packet.bytes()[26..30] != source.octets(),
                IpAddr::V6(source) => packet.bytes()[22..38] != source.octets(),
            };
            *others += burst.iter().filter(is_udp).filter(wrong).count() as u64;
        }
        let n = burst.len();
        self.pool.borrow_mut().append(burst);
        n
    }

    fn alloc(&mut self, len: usize) -> Option<Pooled> {
        let empty = || {
            Pooled(Box::new(Buffer {
                bytes: [0; 128],
                len: 0,
                meta: Meta::default(),
            }))
        };
        let mut buffer = self.pool.borrow_mut().pop().unwrap_or_else(empty);
        buffer.0.len = len;
        buffer.0.meta = Meta::default();
        Some(buffer)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn link(&self) -> Link {
        Link::Up
    }

    fn stats(&self) -> PortStats {
        PortStats::default()
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }
}
