//! System calls that rustix does not wrap, each behind a safe function.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// Types that the kernel may fill with any bytes, and read all bytes of.
///
/// # Safety
/// Every bit pattern is a valid value, and there is no padding.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: two 32-bit integers.
unsafe impl Plain for libc::tpacket_stats {}
// SAFETY: integers and a byte array that follow each other without a gap (4 + 2 + 2 + 8 bytes).
unsafe impl Plain for libc::packet_mreq {}
// SAFETY: 2 + 2 + 4 + 2 + 1 + 1 + 8 bytes, all integers, without a gap.
unsafe impl Plain for libc::sockaddr_ll {}

/// `setsockopt` of a plain value.
pub(crate) fn set_option<T: Plain>(
    fd: impl AsFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result)
}

/// `getsockopt` of a plain value.
pub(crate) fn option<T: Plain>(fd: impl AsFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, and the kernel writes at most `len`
    // bytes.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result)?;
    // SAFETY: it was zeroed, the kernel wrote over some of it, and any bytes make a `T`.
    Ok(unsafe { value.assume_init() })
}

/// Attaches (`Some`) a classic BPF filter that drops every frame, or detaches (`None`) it.
pub(crate) fn set_closed(fd: impl AsFd, closed: bool) -> io::Result<()> {
    if !closed {
        return set_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0);
    }
    let reject = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[reject])
}

/// `setsockopt` of a classic BPF program.
pub(crate) fn set_program(
    fd: impl AsFd,
    level: i32,
    name: i32,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points at as many instructions as it says; they live until the call, which
    // copies them and writes nothing, returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(result)
}

/// `bind` to an address of a family that rustix does not know.
pub(crate) fn bind<T: Plain>(fd: impl AsFd, address: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `address`, which the kernel only reads.
    let result = unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result)
}

/// The address that a socket of such a family is bound to.
pub(crate) fn bound<T: Plain>(fd: impl AsFd) -> io::Result<T> {
    let mut address = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `address`, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockname(
            fd.as_fd().as_raw_fd(),
            address.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result)?;
    // SAFETY: it was zeroed, the kernel wrote over some of it, and any bytes make a `T`.
    Ok(unsafe { address.assume_init() })
}

/// `struct ifreq` with the sixteen bytes of its union as bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// An `ioctl` that takes an interface's name and exchanges up to sixteen bytes, or the address of more.
pub(crate) fn interface_ioctl(
    fd: impl AsFd,
    request: libc::Ioctl,
    name: &str,
    value: &[u8],
) -> io::Result<[u8; 16]> {
    let mut exchanged = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        value: [0; 24],
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    exchanged.name[..name.len()].copy_from_slice(name.as_bytes());
    exchanged.value[..value.len()].copy_from_slice(value);
    // SAFETY: all requests passed here take a `struct ifreq`, whose size and layout
    // `InterfaceRequest` has; its bytes may take any value.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut exchanged) };
    check(result)?;
    let mut answer = [0; 16];
    answer.copy_from_slice(&exchanged.value[..16]);
    Ok(answer)
}

/// An `ioctl` of ethtool: a structure of 32-bit words, of which the first is the command, is sent and overwritten by
/// the answer.
pub(crate) fn ethtool<const N: usize>(
    fd: impl AsFd,
    name: &str,
    mut words: [u32; N],
) -> io::Result<[u32; N]> {
    let address = (&raw mut words) as usize;
    interface_ioctl(
        fd,
        libc::SIOCETHTOOL as libc::Ioctl,
        name,
        &address.to_ne_bytes(),
    )?;
    Ok(words)
}

/// An `ioctl` whose argument is a number.
pub(crate) fn number_ioctl(fd: impl AsFd, request: libc::Ioctl, value: u32) -> io::Result<()> {
    // SAFETY: the requests passed here take an integer by value, so the kernel touches no memory.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, libc::c_ulong::from(value)) })
}

/// An `ioctl` whose argument points to an integer that the kernel reads.
pub(crate) fn pointed_ioctl(fd: impl AsFd, request: libc::Ioctl, value: i32) -> io::Result<()> {
    // SAFETY: the requests passed here read one `int`, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw const value) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
