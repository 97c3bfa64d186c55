//! The declarations of `shim.c`. Errors are errno values, 0 for none.

use std::ffi::{c_char, c_int};

/// A packet buffer of DPDK.
#[repr(C)]
pub(super) struct RteMbuf {
    _opaque: [u8; 0],
}

/// A pool of such buffers.
#[repr(C)]
pub(super) struct RteMempool {
    _opaque: [u8; 0],
}

/// Most frames in one call.
pub(super) const BURST: usize = 64;

/// What is known of a received frame, or asked of a transmitted one.
pub(super) mod frame {
    pub(in super::super) const L4_GOOD: u16 = 1 << 0;
    pub(in super::super) const L4_PARTIAL: u16 = 1 << 1;
    pub(in super::super) const HASH: u16 = 1 << 2;
    pub(in super::super) const VLAN: u16 = 1 << 3;
    pub(in super::super) const LRO: u16 = 1 << 4;
    pub(in super::super) const IPV6: u16 = 1 << 5;
    pub(in super::super) const TCP: u16 = 1 << 6;
    pub(in super::super) const UDP: u16 = 1 << 7;
    pub(in super::super) const TSO: u16 = 1 << 8;
}

/// What a port is wished to do, and then does.
pub(super) mod port {
    pub(in super::super) const TX_CHECKSUM: u16 = 1 << 0;
    pub(in super::super) const TX_TSO: u16 = 1 << 1;
    pub(in super::super) const TX_VLAN: u16 = 1 << 2;
    pub(in super::super) const RX_CHECKSUM: u16 = 1 << 3;
    pub(in super::super) const RX_VLAN: u16 = 1 << 4;
    pub(in super::super) const RX_LRO: u16 = 1 << 5;
    pub(in super::super) const RX_SCATTER: u16 = 1 << 6;
    pub(in super::super) const RSS: u16 = 1 << 7;
    pub(in super::super) const INTERRUPTS: u16 = 1 << 8;
}

/// One frame as it crosses the boundary.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) mbuf: *mut RteMbuf,
    pub(super) data: *mut u8,
    pub(super) len: u32,
    pub(super) room: u32,
    pub(super) hash: u32,
    pub(super) vlan: u16,
    pub(super) flags: u16,
    pub(super) gso_size: u16,
    pub(super) l3_len: u8,
    pub(super) l4_len: u8,
}
const _: () = assert!(size_of::<Frame>() == 40, "as in shim.c");

impl Frame {
    pub(super) const EMPTY: Self = Self {
        mbuf: std::ptr::null_mut(),
        data: std::ptr::null_mut(),
        len: 0,
        room: 0,
        hash: 0,
        vlan: 0,
        flags: 0,
        gso_size: 0,
        l3_len: 0,
        l4_len: 0,
    };
}

/// What became of a transmitted burst.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) frames: u32,
    pub(super) full: u32,
    pub(super) errors: u32,
    pub(super) bytes: u64,
}

/// A port: wishes, then what was granted.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) flags: u16,
    pub(super) queues: u16,
    pub(super) rx_ring: u16,
    pub(super) tx_ring: u16,
    pub(super) mtu: u16,
    pub(super) mac: [u8; 6],
    pub(super) data_room: u16,
    /// A string constant, or null.
    pub(super) step: *const c_char,
    pub(super) driver: [c_char; 32],
    pub(super) socket: i32,
}
const _: () = assert!(size_of::<Port>() == 72, "as in shim.c");

/// One figure of a driver's own.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Xstat {
    /// Ends with a zero byte.
    pub(super) name: [c_char; 64],
    pub(super) value: u64,
}
const _: () = assert!(size_of::<Xstat>() == 72, "as in shim.c");

impl Xstat {
    pub(super) const EMPTY: Self = Self {
        name: [0; 64],
        value: 0,
    };
}

unsafe extern "C" {
    pub(super) fn nw_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    pub(super) fn nw_thread_register() -> c_int;
    pub(super) fn nw_thread_unregister();
    pub(super) fn nw_probe(devargs: *const c_char) -> c_int;
    pub(super) fn nw_port_by_name(name: *const c_char, port: *mut u16) -> c_int;
    pub(super) fn nw_port_next(from: u16) -> u16;
    pub(super) fn nw_port_mac(port: u16, mac: *mut [u8; 6]) -> c_int;
    pub(super) fn nw_port_mtu(port: u16, mtu: *mut u16) -> c_int;
    pub(super) fn nw_port_queues(port: u16) -> u16;
    pub(super) fn nw_port_socket(port: u16) -> c_int;
    pub(super) fn nw_port_start(port: *mut Port, pool: *mut RteMempool) -> c_int;
    pub(super) fn nw_port_close(port: u16);
    pub(super) fn nw_port_link(port: u16) -> c_int;
    pub(super) fn nw_port_lost(port: u16, dropped: *mut u64, errors: *mut u64);
    pub(super) fn nw_port_lost_by_queue(port: u16, lost: *mut u64, queues: u16) -> c_int;
    pub(super) fn nw_port_xstats(port: u16, figures: *mut Xstat, max: u32) -> u32;
    pub(super) fn nw_pool_in_use(pool: *const RteMempool) -> u32;
    pub(super) fn nw_pool(
        name: *const c_char,
        count: u32,
        data_room: u16,
        socket: c_int,
        dense: bool,
    ) -> *mut RteMempool;
    pub(super) fn nw_interrupt_watch(port: u16, queue: u16, epoll: c_int) -> c_int;
    pub(super) fn nw_interrupt_arm(port: u16, queue: u16) -> c_int;
    pub(super) fn nw_interrupt_disarm(port: u16, queue: u16, epoll: c_int);
    pub(super) fn nw_rx_burst(
        port: u16,
        queue: u16,
        frames: *mut Frame,
        max: u16,
        large: *mut RteMempool,
        lost: *mut u64,
    ) -> u16;
    pub(super) fn nw_tx_burst(
        port: u16,
        queue: u16,
        frames: *mut Frame,
        count: u16,
        granted: u16,
        sent: *mut Sent,
    );
    pub(super) fn nw_alloc(pool: *mut RteMempool, frame: *mut Frame) -> bool;
    pub(super) fn nw_free(mbuf: *mut RteMbuf);
}
