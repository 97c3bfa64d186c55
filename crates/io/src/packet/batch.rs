//! `recvmmsg` and `sendmmsg` over pooled frames: the arrays that the kernel reads and fills, and
//! the little unsafe code that hands them over.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use engine::port::Packet;

use crate::buffer::{FRAME_LEN_MAX, Frame};
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

/// A batch of buffers for `recvmmsg`.
pub(crate) struct RxBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
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
    pub(crate) fn new(max: usize) -> Self {
        Self {
            headers: vec![empty_header(); max],
            vectors: vec![EMPTY_VECTOR; max],
            controls: vec![Control([0; CONTROL_LEN]); max],
        }
    }

    /// Receives into the front of `frames`, at most as many as there are, without waiting: the
    /// virtio header just in front of byte `at` of each frame, what the wire carried from there
    /// on. Returns how many were filled; their lengths are set.
    pub(crate) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        frames: &mut [Frame],
        at: usize,
    ) -> io::Result<usize> {
        let count = frames.len().min(self.headers.len());
        let slots = self.headers.iter_mut().zip(&mut self.vectors);
        for ((frame, control), (header, vector)) in
            frames.iter_mut().zip(&mut self.controls).zip(slots)
        {
            frame.set_len(FRAME_LEN_MAX);
            let buffer = frame.bytes_from_mut(at as isize - vnet::LEN as isize);
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(control).cast();
            header.msg_controllen = CONTROL_LEN as _;
        }
        // SAFETY: the first `count` headers each name one vector, which names a buffer that a
        // distinct frame of `frames` owns exclusively, and one control buffer of the given
        // length. All of it outlives the call.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        let received = received as usize;
        for (frame, header) in frames.iter_mut().zip(&self.headers[..received]) {
            frame.set_len(at + (header.msg_len as usize).saturating_sub(vnet::LEN));
        }
        Ok(received)
    }

    /// What came with the frame `i` of the last batch, received at byte `at`.
    pub(crate) fn received(&self, i: usize, frame: &mut Frame, at: usize) -> Received {
        let mut vnet = [0; vnet::LEN];
        let front = frame.bytes_from_mut(at as isize - vnet::LEN as isize);
        vnet.copy_from_slice(&front[..vnet::LEN]);
        let header = &self.headers[i].msg_hdr;
        Received {
            vnet,
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            vlan: stripped_vlan(&self.controls[i].0[..header.msg_controllen]),
        }
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
