//! `recvmmsg` and `sendmmsg` over pooled frames: the arrays that the kernel reads and fills, and
//! the little unsafe code that hands them over.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::rc::Rc;

use engine::port::Packet;

use crate::buffer::{FRAME_LEN_MAX, Frame, Pool};
use crate::vnet;

/// Room for one control message with a `tpacket_auxdata`.
const AUXDATA_LEN: usize = size_of::<libc::tpacket_auxdata>();
const CONTROL_HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const CONTROL_LEN: usize = CONTROL_HEADER_LEN + AUXDATA_LEN.next_multiple_of(align_of::<usize>());

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// What the kernel told of a received frame, beside its bytes.
pub(crate) struct Received {
    /// The virtio header.
    pub(crate) vnet: [u8; vnet::LEN],
    /// The frame was longer than the buffer.
    pub(crate) truncated: bool,
    /// The tag that was stripped: (TCI, protocol).
    pub(crate) vlan: Option<(u16, u16)>,
}

/// A batch of buffers for `recvmmsg`, which stay in their slots until they are filled: a turn in
/// which nothing has come costs no more than the system call.
pub(crate) struct RxBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
    /// The buffers that the vectors of the same index name.
    slots: Vec<Option<Frame>>,
    /// No slot from here on is empty, up to `ready_end`.
    taken_end: usize,
    /// Slots from here on were never filled, or the pool was empty.
    ready_end: usize,
    /// Where in a frame the wire's first byte goes.
    at: usize,
}

/// A batch of frames for `sendmmsg`.
pub(crate) struct TxBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
}

const EMPTY_VECTOR: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a structure of pointers and integers, for all of which zero is valid.
    unsafe { std::mem::zeroed() }
}

impl RxBatch {
    /// Room for `max` frames. The virtio header goes just in front of byte `at` of each frame,
    /// what the wire carried from there on.
    pub(crate) fn new(max: usize, at: usize) -> Self {
        Self {
            headers: vec![empty_header(); max],
            vectors: vec![EMPTY_VECTOR; max],
            controls: vec![Control([0; CONTROL_LEN]); max],
            slots: (0..max).map(|_| None).collect(),
            taken_end: 0,
            ready_end: 0,
            at,
        }
    }

    /// Receives at most `max` frames into buffers of the pool, without waiting. Returns how many
    /// can be [taken](Self::take); none also if the pool is empty.
    pub(crate) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        pool: &Rc<Pool>,
        max: usize,
    ) -> io::Result<usize> {
        let max = max.min(self.slots.len());
        let ready = self.fill(pool, max);
        if ready == 0 {
            return Ok(0);
        }
        // SAFETY: each of the first `ready` headers names one vector and one control buffer of
        // this batch, whose vectors are never resized, and the vector names the buffer that the
        // frame in the slot of the same index owns, which nothing else borrows.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                ready as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        self.taken_end = received as usize;
        Ok(received as usize)
    }

    /// Puts buffers into the slots that were taken, and into as many as `max` asks for; returns
    /// how many at the front are ready.
    fn fill(&mut self, pool: &Rc<Pool>, max: usize) -> usize {
        let Self {
            headers,
            vectors,
            controls,
            slots,
            ..
        } = self;
        let mut prepare = |i: usize| {
            if slots[i].is_none() {
                let Some(mut frame) = pool.take(FRAME_LEN_MAX) else {
                    return false;
                };
                let buffer = frame.bytes_from_mut(self.at as isize - vnet::LEN as isize);
                vectors[i].iov_base = buffer.as_mut_ptr().cast();
                vectors[i].iov_len = buffer.len();
                slots[i] = Some(frame);
            }
            let header = &mut headers[i].msg_hdr;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[i]).cast();
            header.msg_controllen = CONTROL_LEN as _;
            true
        };
        while self.taken_end > 0 {
            // From the back, so that what is missing when the pool is empty is at the front,
            // where it is seen.
            if !prepare(self.taken_end - 1) {
                return 0;
            }
            self.taken_end -= 1;
        }
        while self.ready_end < max && prepare(self.ready_end) {
            self.ready_end += 1;
        }
        self.ready_end.min(max)
    }

    /// The frame `i` of the last batch, and what came with it. Each is taken once.
    pub(crate) fn take(&mut self, i: usize) -> Option<(Frame, Received)> {
        let mut frame = self.slots[i].take()?;
        let len = self.headers[i].msg_len as usize;
        frame.set_len(self.at + len.saturating_sub(vnet::LEN));
        let mut vnet = [0; vnet::LEN];
        let front = frame.bytes_from_mut(self.at as isize - vnet::LEN as isize);
        vnet.copy_from_slice(&front[..vnet::LEN]);
        let header = &self.headers[i].msg_hdr;
        let received = Received {
            vnet,
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            vlan: stripped_vlan(&self.controls[i].0[..header.msg_controllen]),
        };
        Some((frame, received))
    }
}

/// The tag in a `PACKET_AUXDATA` control message.
fn stripped_vlan(control: &[u8]) -> Option<(u16, u16)> {
    let auxdata = control.get(CONTROL_HEADER_LEN..CONTROL_HEADER_LEN + AUXDATA_LEN)?;
    let half = |at: usize| u16::from_ne_bytes([auxdata[at], auxdata[at + 1]]);
    let status = u32::from_ne_bytes([auxdata[0], auxdata[1], auxdata[2], auxdata[3]]);
    // Only this socket option produces control messages, so level and type need no look.
    (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
        (
            half(std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci)),
            half(std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tpid)),
        )
    })
}

impl TxBatch {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            headers: vec![empty_header(); max],
            vectors: vec![EMPTY_VECTOR; max],
        }
    }

    /// Sends the frames, each from byte `first(frame)` on, where its virtio header begins,
    /// without waiting. Returns how many were taken; an error concerns the first.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        frames: &mut [Frame],
        first: impl Fn(&Frame) -> isize,
    ) -> io::Result<usize> {
        let count = frames.len().min(self.headers.len());
        let slots = self.headers.iter_mut().zip(&mut self.vectors);
        for (frame, (header, vector)) in frames.iter_mut().zip(slots) {
            let first = first(frame);
            let buffer = frame.bytes_from_mut(first);
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers each name one vector, which names initialised bytes
        // that a frame of `frames` owns; the kernel only reads them, during the call.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(sent as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(status: u32, tci: u16, tpid: u16) -> Vec<u8> {
        let mut control = vec![0; CONTROL_HEADER_LEN];
        control.extend(status.to_ne_bytes());
        control.extend([0; 12]);
        control.extend(tci.to_ne_bytes());
        control.extend(tpid.to_ne_bytes());
        control
    }

    #[test]
    fn a_tag_is_read_where_the_kernel_says_there_is_one() {
        let valid = libc::TP_STATUS_VLAN_VALID;
        assert_eq!(
            stripped_vlan(&control(valid, 0x2064, 0x8100)),
            Some((0x2064, 0x8100))
        );
        assert_eq!(stripped_vlan(&control(0, 0x2064, 0x8100)), None);
        assert_eq!(stripped_vlan(&[]), None);
    }
}
