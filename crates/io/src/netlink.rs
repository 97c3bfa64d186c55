//! As much netlink as it takes to configure a device without other programs: messages,
//! acknowledgements, dumps, and the attributes in them.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};

/// Bytes of `struct nlmsghdr`, `struct nlattr`, `struct nlmsgerr` before the offending message.
const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// The kernel never sends more in one piece.
const RECEIVE_LEN: usize = 64 << 10;
const ACK: u16 = libc::NLM_F_ACK as u16;

/// A request under construction.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of a kind, with flags beside `NLM_F_REQUEST`, and the fixed part of its family.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        let mut message = Self { bytes };
        message.append(fixed);
        message
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// Adds an attribute that ends with a zero byte.
    pub(crate) fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute made of attributes.
    pub(crate) fn with_nested(self, kind: u16, attributes: &[(u16, &[u8])]) -> Self {
        let mut inner = Self { bytes: Vec::new() };
        for (kind, value) in attributes {
            inner.put(*kind, value);
        }
        self.with(kind | libc::NLA_F_NESTED as u16, &inner.bytes)
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = (ATTRIBUTE_HEADER_LEN + value.len()) as u16;
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.append(value);
    }

    /// Appends, and pads to four bytes.
    fn append(&mut self, value: &[u8]) {
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn finish(&mut self, sequence: u32) {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// The attributes of a message after its fixed part; stops at what is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & !(libc::NLA_F_NESTED as u16), value))
    })
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Links, addresses, routes and rules.
    pub(crate) fn route() -> io::Result<Self> {
        // Protocol 0 of this family.
        Self::open(None)
    }

    /// Netfilter.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// One that is told what changes in some groups, as a mask, and never waits.
    pub(crate) fn listening(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        Self::open_with(protocol, SocketFlags::NONBLOCK, groups)
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Self::open_with(protocol, SocketFlags::empty(), 0)
    }

    fn open_with(protocol: Option<Protocol>, flags: SocketFlags, groups: u32) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | flags,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Takes all that has been told; also that there was more than could be kept.
    pub(crate) fn drain(&self) {
        let mut buffer = [0; 512];
        // Longer messages are cut.
        loop {
            match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Sends a request and waits for the kernel's yes or no.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.transaction(vec![message])
    }

    /// Sends messages in one piece; those that carry `NLM_F_ACK` are waited for. The first
    /// refusal is returned.
    pub(crate) fn transaction(&mut self, mut messages: Vec<Message>) -> io::Result<()> {
        if let [only] = &mut messages[..] {
            let flags = only.flags() | ACK;
            only.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        let first = self.sequence + 1;
        let mut waited_for = Vec::new();
        let mut bytes = Vec::new();
        for message in &mut messages {
            self.sequence += 1;
            message.finish(self.sequence);
            if message.flags() & ACK != 0 {
                waited_for.push(self.sequence);
            }
            bytes.extend(&message.bytes);
        }
        self.send(&bytes)?;
        let mut outcome = Ok(());
        while !waited_for.is_empty() {
            for reply in self.receive()? {
                if reply.kind != libc::NLMSG_ERROR as u16 || reply.sequence < first {
                    continue;
                }
                waited_for.retain(|sequence| *sequence != reply.sequence);
                if let Err(error) = reply.outcome() {
                    // A refused batch is refused as a whole, and not all of it is answered.
                    waited_for.clear();
                    outcome = outcome.and(Err(error));
                }
            }
        }
        outcome
    }

    /// Asks for everything of a kind.
    pub(crate) fn dump(&mut self, kind: u16, fixed: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.ask(Message::new(kind, libc::NLM_F_DUMP as u16, fixed))
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: Message) -> io::Result<Option<Vec<u8>>> {
        Ok(self.ask(message)?.into_iter().next())
    }

    /// Answers to a request, each without the netlink header.
    fn ask(&mut self, mut message: Message) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        message.finish(self.sequence);
        let several = message.flags() & libc::NLM_F_DUMP as u16 != 0;
        self.send(&message.bytes)?;
        let mut answers = Vec::new();
        loop {
            for reply in self.receive()? {
                if reply.sequence != self.sequence {
                    continue;
                }
                match i32::from(reply.kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        reply.outcome()?;
                        return Ok(answers);
                    }
                    _ => answers.push(reply.payload),
                }
                if !several {
                    return Ok(answers);
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(
            &self.fd,
            bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<Reply>> {
        let mut buffer = vec![0; RECEIVE_LEN];
        let (len, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
        let mut bytes = &buffer[..len.min(RECEIVE_LEN)];
        let mut replies = Vec::new();
        while bytes.len() >= HEADER_LEN {
            let word = |at: usize| {
                u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let len = word(0) as usize;
            let Some(payload) = bytes.get(HEADER_LEN..len) else {
                break;
            };
            replies.push(Reply {
                kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
                sequence: word(8),
                payload: payload.to_vec(),
            });
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(replies)
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Reply {
    kind: u16,
    sequence: u32,
    payload: Vec<u8>,
}

impl Reply {
    /// What an error message says; zero is the acknowledgement.
    fn outcome(&self) -> io::Result<()> {
        match self.payload.first_chunk::<4>() {
            Some([0, 0, 0, 0]) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code))),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The kernel's number and the bytes of an address.
pub(crate) fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let message = Message::new(7, 0, &[1, 2, 3, 4, 5])
            .with(1, &[9])
            .with_name(2, "svc0")
            .with_nested(3, &[(4, &[1, 2, 3, 4]), (5, &[])]);
        let attributes_at = HEADER_LEN + 8;
        let read: Vec<_> = attributes(&message.bytes[attributes_at..]).collect();
        assert_eq!(read[0], (1, &[9][..]));
        assert_eq!(read[1], (2, &b"svc0\0"[..]));
        assert_eq!(read[2].0, 3);
        let inner: Vec<_> = attributes(read[2].1).collect();
        assert_eq!(inner, [(4, &[1, 2, 3, 4][..]), (5, &[][..])]);
        assert_eq!(message.bytes.len() % 4, 0);
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [
            &[][..],
            &[1],
            &[4, 0, 1],
            &[3, 0, 1, 0],
            &[9, 0, 1, 0, 5, 5, 5, 5],
            &[0; 8],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn the_kernel_lists_the_loopback_and_refuses_what_is_not_there() {
        let mut netlink = Netlink::route().expect("netlink needs no privilege");
        let links = netlink
            .dump(libc::RTM_GETLINK, &[0; 16])
            .expect("links can be listed");
        assert!(links.iter().any(|link| {
            attributes(&link[16..])
                .any(|(kind, value)| kind == libc::IFLA_IFNAME && value == b"lo\0")
        }));
        let missing = Message::new(libc::RTM_GETLINK, 0, &[0; 16])
            .with_name(libc::IFLA_IFNAME, "no-such-port0");
        let error = netlink.get(missing).expect_err("there is none");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
