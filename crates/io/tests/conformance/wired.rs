//! Two memory ports on one wire: what one sends is what the other receives.

use std::cell::RefCell;
use std::rc::Rc;

use engine::port::{Capabilities, Link, Port, PortStats};
use io::memory::{MemoryPacket, MemoryPort};

/// One end of the wire.
pub(crate) struct Wired {
    own: Rc<RefCell<MemoryPort>>,
    peer: Rc<RefCell<MemoryPort>>,
    capabilities: Capabilities,
}

/// Both ends of a wire.
pub(crate) fn memory_pair(mtu: u16) -> (Wired, Wired) {
    let port = |last| Rc::new(RefCell::new(MemoryPort::new([2, 0, 0, 0, 0, last], mtu)));
    let (left, right) = (port(1), port(2));
    let wired = |own: &Rc<RefCell<MemoryPort>>, peer: &Rc<RefCell<MemoryPort>>| Wired {
        own: Rc::clone(own),
        peer: Rc::clone(peer),
        capabilities: own.borrow().capabilities().clone(),
    };
    (wired(&left, &right), wired(&right, &left))
}

/// The state of a wire's link, at one end.
pub(crate) struct Carrier(Rc<RefCell<MemoryPort>>);

impl Carrier {
    pub(crate) fn set(&self, link: Link) {
        self.0.borrow_mut().link = link;
    }
}

impl Wired {
    pub(crate) fn carrier(&self) -> Carrier {
        Carrier(Rc::clone(&self.own))
    }
}

impl Port for Wired {
    type Packet = MemoryPacket;

    fn rx_burst(&mut self, burst: &mut Vec<MemoryPacket>, max: usize) -> usize {
        let mut own = self.own.borrow_mut();
        own.rx.extend(self.peer.borrow_mut().tx.drain(..));
        own.rx_burst(burst, max)
    }

    fn tx_burst(&mut self, burst: &mut Vec<MemoryPacket>) -> usize {
        self.own.borrow_mut().tx_burst(burst)
    }

    fn alloc(&mut self, len: usize) -> Option<MemoryPacket> {
        self.own.borrow_mut().alloc(len)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn link(&self) -> Link {
        self.own.borrow().link()
    }

    fn stats(&self) -> PortStats {
        self.own.borrow().stats()
    }

    fn wait_fd(&self) -> Option<i32> {
        self.own.borrow().wait_fd()
    }
}
