//! A port in memory: what is put in comes out of `rx_burst`, what is sent can be taken out.
//! For tests, the simulator, and as the reference in the conformance suite.

use std::collections::VecDeque;

use crate::wire::ethernet;

use super::{Capabilities, Link, Meta, Packet, Port, PortStats};

/// A frame in a growable buffer, up to [`MemoryPacket::CAPACITY`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPacket {
    bytes: Vec<u8>,
    meta: Meta,
}

impl MemoryPacket {
    /// The largest frame: an Ethernet header and 65,535 bytes.
    pub const CAPACITY: usize = 65_549;

    /// A frame with these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        MemoryPacket {
            bytes: bytes.into(),
            meta: Meta::default(),
        }
    }

    /// The same frame with this metadata.
    pub fn with_meta(mut self, meta: Meta) -> Self {
        self.meta = meta;
        self
    }
}

impl Packet for MemoryPacket {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
    fn set_len(&mut self, len: usize) -> bool {
        if len > Self::CAPACITY {
            return false;
        }
        self.bytes.resize(len, 0);
        true
    }
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

/// One end: a receive queue that the test fills and a transmit queue that it empties.
#[derive(Debug)]
pub struct MemoryPort {
    /// Frames that `rx_burst` will deliver.
    pub rx: VecDeque<MemoryPacket>,
    /// Frames that were sent, oldest first.
    pub tx: VecDeque<MemoryPacket>,
    /// How many sent frames fit; what does not fit is dropped and counted.
    pub tx_capacity: usize,
    /// Carrier.
    pub link: Link,
    capabilities: Capabilities,
    /// They are others than at the last look.
    changed: bool,
    stats: PortStats,
}

impl MemoryPort {
    /// A port that is up, can do everything, and holds 4096 sent frames.
    pub fn new(mac: [u8; 6], mtu: u16) -> Self {
        MemoryPort::with_capabilities(Capabilities {
            mtu,
            tx_checksum: true,
            tx_gso_tcp: true,
            tx_gso_udp: true,
            mac,
            layer3: false,
        })
    }

    /// The same with these capabilities.
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        MemoryPort {
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            tx_capacity: 4096,
            link: Link::Up,
            capabilities,
            changed: false,
            stats: PortStats::default(),
        }
    }

    /// From the next look on it has this address and MTU.
    pub fn reset(&mut self, mac: [u8; 6], mtu: u16) {
        (self.capabilities.mac, self.capabilities.mtu) = (mac, mtu);
        self.changed = true;
    }
}

impl Port for MemoryPort {
    type Packet = MemoryPacket;

    fn rx_burst(&mut self, burst: &mut Vec<MemoryPacket>, max: usize) -> usize {
        if self.link != Link::Up {
            return 0;
        }
        let n = max.min(self.rx.len());
        for packet in self.rx.drain(..n) {
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += packet.bytes.len() as u64;
            burst.push(packet);
        }
        n
    }

    fn tx_burst(&mut self, burst: &mut Vec<MemoryPacket>) -> usize {
        let mut taken = 0;
        for packet in burst.drain(..) {
            if packet.bytes.len() < ethernet::LEN {
                self.stats.tx_errors += 1;
                continue;
            }
            if self.link != Link::Up || self.tx.len() >= self.tx_capacity {
                self.stats.tx_dropped += 1;
                continue;
            }
            self.stats.tx_frames += 1;
            self.stats.tx_bytes += packet.bytes.len() as u64;
            self.tx.push_back(packet);
            taken += 1;
        }
        taken
    }

    fn alloc(&mut self, len: usize) -> Option<MemoryPacket> {
        (len <= MemoryPacket::CAPACITY).then(|| MemoryPacket::new(vec![0; len]))
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn refresh(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn link(&self) -> Link {
        self.link
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_a_full_ring_drops_and_counts() {
        let mut port = MemoryPort::new([2, 0, 0, 0, 0, 1], 1500);
        for i in 0..3u8 {
            port.rx.push_back(MemoryPacket::new([i; 60]));
        }
        let mut burst = Vec::new();
        assert_eq!(port.rx_burst(&mut burst, 2), 2);
        assert_eq!(port.rx_burst(&mut burst, 2), 1);
        port.tx_capacity = 2;
        assert_eq!(port.tx_burst(&mut burst), 2);
        assert!(burst.is_empty());
        assert_eq!(
            port.tx.iter().map(|p| p.bytes()[0]).collect::<Vec<_>>(),
            [0, 1]
        );
        let stats = port.stats();
        assert_eq!(
            (stats.rx_frames, stats.tx_frames, stats.tx_dropped),
            (3, 2, 1)
        );
    }
}
