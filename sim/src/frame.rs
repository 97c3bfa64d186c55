//! Frames as values, for tests: built and read field by field, every checksum summed in full, the
//! slow and plain way. Shares no code with the engine.

use std::net::{IpAddr, SocketAddr};

/// One Ethernet frame that carries an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination station.
    pub dst_mac: [u8; 6],
    /// Source station.
    pub src_mac: [u8; 6],
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Don't fragment; true for IPv6.
    pub df: bool,
    /// What the packet carries.
    pub body: Body,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// TCP without options.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Flag byte.
        flags: u8,
        /// Payload.
        payload: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Payload.
        payload: Vec<u8>,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        icmp_type: u8,
        /// Code.
        code: u8,
        /// The second word of the header.
        rest: u32,
        /// What follows the header.
        payload: Vec<u8>,
    },
    /// Any other protocol.
    Other {
        /// Protocol number.
        proto: u8,
        /// Payload.
        payload: Vec<u8>,
    },
}

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// Window in every TCP segment.
const WINDOW: u16 = 0xfff0;

impl Frame {
    fn new(src: IpAddr, dst: IpAddr, body: Body) -> Frame {
        Frame {
            dst_mac: [0; 6],
            src_mac: [0; 6],
            src,
            dst,
            ttl: 64,
            df: src.is_ipv6(),
            body,
        }
    }

    /// A UDP datagram.
    pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Frame {
        let payload = payload.to_vec();
        let (src_port, dst_port) = (src.port(), dst.port());
        Frame::new(
            src.ip(),
            dst.ip(),
            Body::Udp {
                src_port,
                dst_port,
                payload,
            },
        )
    }

    /// A TCP segment.
    pub fn tcp(
        src: SocketAddr,
        dst: SocketAddr,
        flags: u8,
        seq: u32,
        ack: u32,
        payload: &[u8],
    ) -> Frame {
        let payload = payload.to_vec();
        let (src_port, dst_port) = (src.port(), dst.port());
        Frame::new(
            src.ip(),
            dst.ip(),
            Body::Tcp {
                src_port,
                dst_port,
                seq,
                ack,
                flags,
                payload,
            },
        )
    }

    /// An ICMP message of the family of its addresses.
    pub fn icmp(
        src: IpAddr,
        dst: IpAddr,
        icmp_type: u8,
        code: u8,
        rest: u32,
        payload: &[u8],
    ) -> Frame {
        Frame::new(
            src,
            dst,
            Body::Icmp {
                icmp_type,
                code,
                rest,
                payload: payload.to_vec(),
            },
        )
    }

    /// An echo request, or its reply.
    pub fn echo(src: IpAddr, dst: IpAddr, reply: bool, id: u16, seq: u16) -> Frame {
        let icmp_type = match (src.is_ipv4(), reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        Frame::icmp(
            src,
            dst,
            icmp_type,
            0,
            u32::from(id) << 16 | u32::from(seq),
            b"abcdefgh",
        )
    }

    /// A packet of another protocol.
    pub fn other(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Frame {
        Frame::new(
            src,
            dst,
            Body::Other {
                proto,
                payload: payload.to_vec(),
            },
        )
    }

    /// The same between these stations.
    pub fn between(mut self, src: [u8; 6], dst: [u8; 6]) -> Frame {
        (self.src_mac, self.dst_mac) = (src, dst);
        self
    }

    /// The same with this TTL or hop limit.
    pub fn with_ttl(mut self, ttl: u8) -> Frame {
        self.ttl = ttl;
        self
    }

    /// The same with the don't-fragment flag.
    pub fn with_df(mut self) -> Frame {
        self.df = true;
        self
    }

    /// Its bytes.
    pub fn emit(&self) -> Vec<u8> {
        let (proto, l4) = self.emit_transport();
        let mut b = Vec::new();
        b.extend(self.dst_mac);
        b.extend(self.src_mac);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                b.extend(0x0800u16.to_be_bytes());
                let mut ip = vec![0x45, 0];
                ip.extend((20 + l4.len() as u16).to_be_bytes());
                ip.extend([
                    0,
                    0,
                    if self.df { 0x40 } else { 0 },
                    0,
                    self.ttl,
                    proto,
                    0,
                    0,
                ]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                let sum = checksum(&ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                b.extend(ip);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                b.extend(0x86ddu16.to_be_bytes());
                b.extend([0x60, 0, 0, 0]);
                b.extend((l4.len() as u16).to_be_bytes());
                b.extend([proto, self.ttl]);
                b.extend(src.octets());
                b.extend(dst.octets());
            }
            _ => panic!("a frame of two families"),
        }
        b.extend(l4);
        b
    }

    fn emit_transport(&self) -> (u8, Vec<u8>) {
        let mut b = Vec::new();
        let (proto, field) = match &self.body {
            Body::Tcp {
                src_port,
                dst_port,
                seq,
                ack,
                flags,
                payload,
            } => {
                b.extend(src_port.to_be_bytes());
                b.extend(dst_port.to_be_bytes());
                b.extend(seq.to_be_bytes());
                b.extend(ack.to_be_bytes());
                b.extend([0x50, *flags]);
                b.extend(WINDOW.to_be_bytes());
                b.extend([0; 4]);
                b.extend(payload);
                (6, 16)
            }
            Body::Udp {
                src_port,
                dst_port,
                payload,
            } => {
                b.extend(src_port.to_be_bytes());
                b.extend(dst_port.to_be_bytes());
                b.extend((8 + payload.len() as u16).to_be_bytes());
                b.extend([0; 2]);
                b.extend(payload);
                (17, 6)
            }
            Body::Icmp {
                icmp_type,
                code,
                rest,
                payload,
            } => {
                b.extend([*icmp_type, *code, 0, 0]);
                b.extend(rest.to_be_bytes());
                b.extend(payload);
                (if self.src.is_ipv4() { 1 } else { 58 }, 2)
            }
            Body::Other { proto, payload } => return (*proto, payload.clone()),
        };
        let mut sum = checksum(&self.summed(proto, &b));
        if sum == 0 && proto == 17 {
            sum = 0xffff;
        }
        b[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        (proto, b)
    }

    /// The bytes that a transport checksum covers.
    fn summed(&self, proto: u8, segment: &[u8]) -> Vec<u8> {
        let mut b = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(_), _) if proto == 1 => {}
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                b.extend(src.octets());
                b.extend(dst.octets());
                b.extend([0, proto]);
                b.extend((segment.len() as u16).to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                b.extend(src.octets());
                b.extend(dst.octets());
                b.extend((segment.len() as u32).to_be_bytes());
                b.extend([0, 0, 0, proto]);
            }
            _ => panic!("a frame of two families"),
        }
        b.extend(segment);
        b
    }

    /// Reads a frame; complains about anything that is not as [`emit`](Self::emit) writes it,
    /// wrong checksums above all.
    pub fn parse(b: &[u8]) -> Result<Frame, String> {
        let at = |i: usize| b.get(i).copied().ok_or(format!("ends before byte {i}"));
        let ethertype = u16::from_be_bytes([at(12)?, at(13)?]);
        let (src, dst, ttl, df, proto, l4): (IpAddr, IpAddr, u8, bool, u8, &[u8]) = match ethertype
        {
            0x0800 => {
                at(33)?;
                let ip = &b[14..34];
                if checksum(ip) != 0 {
                    return Err("IPv4 header checksum".into());
                }
                if b[14] != 0x45 || usize::from(u16::from_be_bytes([ip[2], ip[3]])) != b.len() - 14
                {
                    return Err("IPv4 lengths".into());
                }
                let src: [u8; 4] = ip[12..16].try_into().expect("four bytes");
                let dst: [u8; 4] = ip[16..20].try_into().expect("four bytes");
                (
                    src.into(),
                    dst.into(),
                    ip[8],
                    ip[6] == 0x40,
                    ip[9],
                    &b[34..],
                )
            }
            0x86dd => {
                at(53)?;
                let ip = &b[14..54];
                if usize::from(u16::from_be_bytes([ip[4], ip[5]])) != b.len() - 54 {
                    return Err("IPv6 length".into());
                }
                let src: [u8; 16] = ip[8..24].try_into().expect("sixteen bytes");
                let dst: [u8; 16] = ip[24..40].try_into().expect("sixteen bytes");
                (src.into(), dst.into(), ip[7], true, ip[6], &b[54..])
            }
            other => return Err(format!("EtherType {other:#06x}")),
        };
        let mac = |i: usize| -> [u8; 6] { b[i..i + 6].try_into().expect("six bytes") };
        let word = |i: usize| u16::from_be_bytes([l4[i], l4[i + 1]]);
        let long = |i: usize| u32::from_be_bytes([l4[i], l4[i + 1], l4[i + 2], l4[i + 3]]);
        let need = |n: usize| {
            if l4.len() < n {
                Err("transport header is cut")
            } else {
                Ok(())
            }
        };
        let (is_checked, body) = match proto {
            6 => {
                need(20)?;
                let header = usize::from(l4[12] >> 4) * 4;
                need(header)?;
                let (src_port, dst_port) = (word(0), word(2));
                let payload = l4[header..].to_vec();
                (
                    true,
                    Body::Tcp {
                        src_port,
                        dst_port,
                        seq: long(4),
                        ack: long(8),
                        flags: l4[13],
                        payload,
                    },
                )
            }
            17 => {
                need(8)?;
                let (src_port, dst_port) = (word(0), word(2));
                (
                    word(6) != 0,
                    Body::Udp {
                        src_port,
                        dst_port,
                        payload: l4[8..].to_vec(),
                    },
                )
            }
            1 | 58 => {
                need(8)?;
                let payload = l4[8..].to_vec();
                (
                    true,
                    Body::Icmp {
                        icmp_type: l4[0],
                        code: l4[1],
                        rest: long(4),
                        payload,
                    },
                )
            }
            _ => (
                false,
                Body::Other {
                    proto,
                    payload: l4.to_vec(),
                },
            ),
        };
        let frame = Frame {
            dst_mac: mac(0),
            src_mac: mac(6),
            src,
            dst,
            ttl,
            df,
            body,
        };
        if is_checked && checksum(&frame.summed(proto, l4)) != 0 {
            return Err(format!("transport checksum of {frame:?}"));
        }
        Ok(frame)
    }
}

/// The Internet checksum, word by word (RFC 1071 §4.1).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_is_the_inverse_of_emit() {
        let v4 = |s: &str| s.parse::<SocketAddr>().unwrap();
        for frame in [
            Frame::udp(v4("10.0.0.1:5"), v4("10.0.0.2:6"), b"odd"),
            Frame::tcp(v4("[2001:db8::1]:5"), v4("[2001:db8::2]:6"), SYN, 1, 2, b""),
            Frame::echo(v4("10.0.0.1:0").ip(), v4("10.0.0.2:0").ip(), false, 7, 1),
            Frame::echo(v4("[::5]:0").ip(), v4("[::6]:0").ip(), true, 7, 1),
            Frame::other(v4("10.0.0.1:0").ip(), v4("10.0.0.2:0").ip(), 47, b"gre"),
        ] {
            let mut bytes = frame.emit();
            assert_eq!(Frame::parse(&bytes), Ok(frame.clone()));
            if !matches!(frame.body, Body::Other { .. }) {
                *bytes.last_mut().unwrap() ^= 1;
                assert!(Frame::parse(&bytes).is_err());
            }
        }
    }
}
