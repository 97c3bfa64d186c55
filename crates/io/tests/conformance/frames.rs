//! Frames for the suite, with right checksums, and a second opinion on those that arrive.

use engine::port::Checksum;

/// IP version of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Headers of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) family: Family,
    pub(crate) tcp: bool,
}

/// First bytes of the payload's place in all frames of the suite: the port pair.
const PORTS: [u8; 4] = [0x9c, 0x41, 0x9c, 0x42];

impl Shape {
    pub(crate) fn udp(family: Family) -> Self {
        Self { family, tcp: false }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| [false, true].map(|tcp| Self { family, tcp }))
    }

    /// Whether a frame has these headers.
    pub(crate) fn is_of(self, frame: &[u8]) -> bool {
        let protocol = match self.family {
            Family::V4 if frame[12..14] == [0x08, 0x00] => frame[23],
            Family::V6 if frame[12..14] == [0x86, 0xdd] => frame[20],
            _ => return false,
        };
        protocol == if self.tcp { 6 } else { 17 }
    }

    fn transport(self) -> usize {
        match self.family {
            Family::V4 => 34,
            Family::V6 => 54,
        }
    }

    fn checksum_offset(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// Bytes of all headers.
    pub(crate) fn header_len(self) -> usize {
        self.transport() + if self.tcp { 20 } else { 8 }
    }

    /// Bytes of the shortest frame.
    pub(crate) fn smallest(self) -> usize {
        self.header_len() + 4
    }

    fn pseudo_sum(self, frame: &[u8]) -> u32 {
        let addresses = match self.family {
            Family::V4 => &frame[26..34],
            Family::V6 => &frame[22..54],
        };
        let protocol = if self.tcp { 6 } else { 17 };
        sum(addresses) + protocol + (frame.len() - self.transport()) as u32
    }

    /// Replaces the checksum by that of the pseudo-header, as a sender with offload does.
    pub(crate) fn make_partial(self, frame: &mut [u8]) -> Checksum {
        let at = self.transport() + self.checksum_offset();
        let partial = fold(self.pseudo_sum(frame));
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        Checksum::Partial {
            start: self.transport() as u16,
            offset: self.checksum_offset() as u16,
        }
    }
}

/// A frame of `len` bytes whose payload begins with `sequence`; between documentation addresses,
/// so that a kernel that sees it has nothing to answer. Addresses of the Ethernet header are
/// zero where the wire has none.
pub(crate) fn make(shape: Shape, len: usize, sequence: u32, layer3: bool) -> Vec<u8> {
    assert!(len >= shape.smallest(), "{len} bytes hold the headers");
    let mut frame = vec![0; len];
    if !layer3 {
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    }
    let transport = shape.transport();
    let protocol = if shape.tcp { 6 } else { 17 };
    match shape.family {
        Family::V4 => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
            frame[22] = 64;
            frame[23] = protocol;
            frame[26..34].copy_from_slice(&[192, 0, 2, 1, 198, 51, 100, 1]);
            let checksum = !fold(sum(&frame[14..34]));
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        Family::V6 => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14] = 0x60;
            frame[18..20].copy_from_slice(&((len - 54) as u16).to_be_bytes());
            frame[20] = protocol;
            frame[21] = 64;
            frame[22..26].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            frame[37] = 1;
            frame[38..42].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            frame[53] = 2;
        }
    }
    frame[transport..transport + 4].copy_from_slice(&PORTS);
    if shape.tcp {
        frame[transport + 12] = 5 << 4;
        frame[transport + 13] = 0x10; // ACK
    } else {
        frame[transport + 4..transport + 6]
            .copy_from_slice(&((len - transport) as u16).to_be_bytes());
    }
    let payload = shape.header_len();
    for (i, byte) in frame[payload..].iter_mut().enumerate() {
        *byte = (i * 7 + i / 251) as u8;
    }
    frame[payload..payload + 4].copy_from_slice(&sequence.to_be_bytes());
    let checksum = !fold(shape.pseudo_sum(&frame) + sum(&frame[transport..]));
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    let at = transport + shape.checksum_offset();
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// Whether the suite made this frame.
pub(crate) fn is_ours(frame: &[u8]) -> bool {
    let transport = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => return false,
    };
    frame.get(transport..transport + 4) == Some(&PORTS)
}

/// Does what hardware does for a partial checksum.
pub(crate) fn finish_checksum(frame: &mut [u8], checksum: Checksum) {
    if let Checksum::Partial { start, offset } = checksum {
        let start = usize::from(start);
        let at = start + usize::from(offset);
        let finished = !fold(sum(&frame[start..]));
        let finished = if finished == 0 { 0xffff } else { finished };
        frame[at..at + 2].copy_from_slice(&finished.to_be_bytes());
    }
}

/// Whether the transport checksum is complete and right.
pub(crate) fn checksum_is_right(frame: &[u8], shape: Shape) -> bool {
    fold(shape.pseudo_sum(frame) + sum(&frame[shape.transport()..])) == 0xffff
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
