//! The XDP program: five instructions that hand every frame to the AF_XDP socket of its queue, and drop it where there
//! is none. It is attached by a link that ends with its descriptor, so with the process whatever becomes of it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Attach;

// linux/bpf.h, of which libc has nothing.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_FUNC_REDIRECT_MAP: u32 = 51;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const XDP_DROP: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Where `struct xdp_md` has `rx_queue_index`.
const RX_QUEUE_INDEX: i16 = 16;

/// One instruction: operation, destination and source register, offset, constant.
fn instruction(operation: u8, to: u8, from: u8, offset: i16, constant: u32) -> u64 {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = constant.to_ne_bytes();
    u64::from_ne_bytes([operation, from << 4 | to, low, high, a, b, c, d])
}

/// `return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_DROP);`
fn redirect(sockets: &OwnedFd) -> [u64; 6] {
    let fd = sockets.as_raw_fd() as u32;
    [
        // r2 = *(u32 *)(r1 + rx_queue_index)
        instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0),
        // r1 = map, in two halves
        instruction(0x18, 1, BPF_PSEUDO_MAP_FD, 0, fd),
        instruction(0, 0, 0, 0, 0),
        // r3 = what to do where the map has no socket
        instruction(0xb7, 3, 0, 0, XDP_DROP),
        // r0 = bpf_redirect_map(r1, r2, r3)
        instruction(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        // return r0
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The start of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    _unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface_index: u32,
    attach_type: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program_fd: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

/// `bpf(2)`.
///
/// # Safety
/// `A` is the beginning of `union bpf_attr` as the command reads it; all addresses in it are valid until the return.
unsafe fn bpf<A>(command: i32, attribute: &A) -> io::Result<i32> {
    // SAFETY: the pointer and the length describe `attribute`, which the kernel only reads; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<A>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// The same, for a command that returns a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_open<A>(command: i32, attribute: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attribute) }?;
    // SAFETY: a new descriptor that nothing else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The sockets by queue (`BPF_MAP_TYPE_XSKMAP`).
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    pub(super) fn new(queues: u32) -> io::Result<Self> {
        let attribute = MapCreate {
            map_type: BPF_MAP_TYPE_XSKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: queues,
        };
        // SAFETY: integers alone.
        unsafe { bpf_open(BPF_MAP_CREATE, &attribute) }.map(Self)
    }

    /// Hands what comes to a queue to a socket that is bound to that queue, until it is closed.
    pub(super) fn set(&self, queue: u32, socket: &OwnedFd) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let attribute = MapUpdate {
            map_fd: self.0.as_raw_fd() as u32,
            _unused: 0,
            key: (&raw const queue) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: both addresses are those of locals of the map's key and value size.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attribute) }.map(drop)
    }
}

/// The loaded program.
pub(super) struct Program(OwnedFd);

impl Program {
    pub(super) fn load(sockets: &SocketMap) -> io::Result<Self> {
        let instructions = redirect(&sockets.0);
        let mut name = [0; 16];
        name[..7].copy_from_slice(b"neuwerk");
        let attribute = ProgramLoad {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name,
            interface_index: 0,
            attach_type: BPF_XDP,
        };
        // SAFETY: the addresses are those of a local array of as many instructions, and of a constant string.
        unsafe { bpf_open(BPF_PROG_LOAD, &attribute) }.map(Self)
    }

    /// Attaches it to an interface, in the driver (`Native`) or behind it (`Generic`), as long as the descriptor is
    /// open.
    fn attach(&self, interface_index: u32, native: bool) -> io::Result<OwnedFd> {
        let attribute = LinkCreate {
            program_fd: self.0.as_raw_fd() as u32,
            interface_index,
            attach_type: BPF_XDP,
            flags: if native {
                XDP_FLAGS_DRV_MODE
            } else {
                XDP_FLAGS_SKB_MODE
            },
        };
        // SAFETY: integers alone.
        unsafe { bpf_open(BPF_LINK_CREATE, &attribute) }
    }

    /// Attaches it where the configuration wants it. True comes with a program in the driver.
    pub(super) fn attach_as(
        &self,
        interface_index: u32,
        wanted: Attach,
    ) -> io::Result<(OwnedFd, bool)> {
        let native = || Ok((self.attach(interface_index, true)?, true));
        let generic = || Ok((self.attach(interface_index, false)?, false));
        match wanted {
            Attach::Native => native(),
            Attach::Generic => generic(),
            Attach::Auto => match native() {
                // Another program is there already, or we may not: neither differs behind the driver. With too large an
                // MTU it would work there, but not with the super-packets that a veth peer then sends.
                Err(error)
                    if !matches!(
                        error.raw_os_error(),
                        Some(
                            libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV | libc::ERANGE
                        )
                    ) =>
                {
                    generic()
                }
                other => other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        assert_eq!(
            instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0).to_ne_bytes(),
            [0x61, 0x12, 16, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            instruction(0xb7, 3, 0, 0, 0x0102_0304).to_ne_bytes(),
            [0xb7, 0x03, 0, 0, 4, 3, 2, 1]
        );
    }
}
