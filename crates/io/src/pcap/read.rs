//! Reading a capture: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), of
//! either byte order, from a file that may be hostile and may still grow.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{LinkType, PcapError};

/// Longest record or block, bytes. The longest frame of any writer is 256 KiB.
const RECORD_LEN_MAX: usize = 1 << 20;
/// Interfaces of one section of a pcapng file.
const INTERFACES_MAX: usize = 1024;

const PCAP_US: u32 = 0xa1b2_c3d4;
const PCAP_NS: u32 = 0xa1b2_3c4d;
const PCAP_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;

const SECTION: u32 = 0x0a0d_0d0a;
const SECTION_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
/// The option of an interface that tells the unit of its times.
const OPTION_TSRESOL: u16 = 9;

/// A frame in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was captured, ns since 1970.
    pub time_ns: u64,
    /// What it begins with; none for what no port can use.
    pub link_type: Option<LinkType>,
    /// Whether all of it was captured.
    pub is_whole: bool,
    /// Bytes that were captured.
    pub len: usize,
    /// Where they begin, and where the record ends, from its first byte.
    first: usize,
    end: usize,
}

/// A capture that is read.
pub struct CaptureReader {
    file: File,
    path: PathBuf,
    /// What was read and not yet released begins at `at`.
    buffer: Vec<u8>,
    at: usize,
    /// Place in the file of the buffer's first byte.
    base: u64,
    is_big_endian: bool,
    format: Format,
}

enum Format {
    Pcap {
        link: u32,
        ns_per_unit: u64,
    },
    Pcapng {
        interfaces: Vec<Interface>,
        /// For simple packets, which tell none.
        last_time_ns: u64,
    },
}

#[derive(Clone, Copy)]
struct Interface {
    link: u32,
    snap_len: u32,
    /// Units of time in a second.
    units: u64,
}

impl CaptureReader {
    /// Opens a capture.
    ///
    /// # Errors
    /// The file cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<Self, PcapError> {
        let file = File::open(path).map_err(|source| PcapError::File {
            path: path.to_owned(),
            source,
        })?;
        let mut reader = Self {
            file,
            path: path.to_owned(),
            buffer: Vec::new(),
            at: 0,
            base: 0,
            is_big_endian: false,
            format: Format::Pcapng {
                interfaces: Vec::new(),
                last_time_ns: 0,
            },
        };
        if !reader.has(12)? {
            return Err(reader.no_capture());
        }
        let mark = reader.word(0);
        // The mark of pcapng reads the same in both orders.
        if mark == SECTION {
            return reader.next_section().map(|()| reader);
        }
        reader.is_big_endian = ![PCAP_US, PCAP_NS].contains(&mark);
        let ns_per_unit = match reader.word(0) {
            PCAP_US => 1000,
            PCAP_NS => 1,
            _ => return Err(reader.no_capture()),
        };
        if !reader.has(PCAP_HEADER_LEN)? {
            return Err(reader.damaged("it ends within its header"));
        }
        if reader.half(4) != 2 {
            return Err(reader.damaged("it is of another version than 2"));
        }
        // The upper bits tell of frame check sequences.
        let link = reader.word(20) & 0xffff;
        reader.format = Format::Pcap { link, ns_per_unit };
        reader.at = PCAP_HEADER_LEN;
        Ok(reader)
    }

    /// Whether frames begin as a port needs it, as far as that is known at the beginning.
    pub(super) fn check_link_type(&self, needed: LinkType) -> Result<(), PcapError> {
        match self.format {
            Format::Pcap { link, .. } if link_type(link) != Some(needed) => {
                Err(PcapError::LinkType {
                    path: self.path.clone(),
                    found: link,
                    expected: needed.number(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The next frame; none at the end of what is there. The same until it is released.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged here.
    pub fn peek(&mut self) -> Result<Option<Record>, PcapError> {
        match self.format {
            Format::Pcap { link, ns_per_unit } => self.peek_pcap(link, ns_per_unit),
            Format::Pcapng { .. } => self.peek_pcapng(),
        }
    }

    /// The bytes of the frame that was peeked at.
    pub fn bytes(&self, record: &Record) -> &[u8] {
        &self.buffer[self.at + record.first..][..record.len]
    }

    /// Goes on behind the frame that was peeked at.
    pub fn release(&mut self, record: &Record) {
        self.at += record.end;
    }

    fn peek_pcap(&mut self, link: u32, ns_per_unit: u64) -> Result<Option<Record>, PcapError> {
        if !self.has(RECORD_HEADER_LEN)? {
            return Ok(None);
        }
        let len = self.word(8) as usize;
        if len > RECORD_LEN_MAX {
            return Err(self.damaged("a frame of more than a megabyte"));
        }
        let end = RECORD_HEADER_LEN + len;
        if !self.has(end)? {
            return Ok(None);
        }
        let rest = u64::from(self.word(4)) * ns_per_unit;
        Ok(Some(Record {
            time_ns: u64::from(self.word(0)) * 1_000_000_000 + rest,
            link_type: link_type(link),
            is_whole: self.word(12) as usize <= len,
            len,
            first: RECORD_HEADER_LEN,
            end,
        }))
    }

    fn peek_pcapng(&mut self) -> Result<Option<Record>, PcapError> {
        loop {
            if !self.has(12)? {
                return Ok(None);
            }
            if self.word(0) == SECTION {
                self.next_section()?;
                continue;
            }
            let end = self.word(4) as usize;
            if end < 12 || !end.is_multiple_of(4) || end > RECORD_LEN_MAX {
                return Err(self.damaged("a block of an impossible length"));
            }
            if !self.has(end)? {
                return Ok(None);
            }
            if self.word(end - 4) as usize != end {
                return Err(self.damaged("a block whose two lengths differ"));
            }
            match self.word(0) {
                INTERFACE => self.add_interface(end)?,
                ENHANCED_PACKET => return self.enhanced_packet(end).map(Some),
                SIMPLE_PACKET => return self.simple_packet(end).map(Some),
                // Statistics, names, comments.
                _ => {}
            }
            self.at += end;
        }
    }

    /// Takes over what a section's header says; a file may have several.
    fn next_section(&mut self) -> Result<(), PcapError> {
        self.is_big_endian = false;
        if self.word(8) != SECTION_ORDER {
            self.is_big_endian = true;
            if self.word(8) != SECTION_ORDER {
                return Err(self.damaged("a section without its mark of byte order"));
            }
        }
        let end = self.word(4) as usize;
        if end < 28 || !end.is_multiple_of(4) || end > RECORD_LEN_MAX || !self.has(end)? {
            return Err(self.damaged("a section's header of an impossible length"));
        }
        if self.half(12) != 1 {
            return Err(self.damaged("a section of another version than 1"));
        }
        if let Format::Pcapng { interfaces, .. } = &mut self.format {
            interfaces.clear();
        }
        self.at += end;
        Ok(())
    }

    fn add_interface(&mut self, end: usize) -> Result<(), PcapError> {
        if end < 20 {
            return Err(self.damaged("an interface block that is too short"));
        }
        let interface = Interface {
            link: u32::from(self.half(8)),
            snap_len: self.word(12),
            units: self.units(16, end - 4)?,
        };
        let is_full = match &mut self.format {
            Format::Pcapng { interfaces, .. } if interfaces.len() < INTERFACES_MAX => {
                interfaces.push(interface);
                false
            }
            _ => true,
        };
        if is_full {
            return Err(self.damaged("more than a thousand interfaces"));
        }
        Ok(())
    }

    /// Units of time in a second, by the options of an interface in this range.
    fn units(&self, mut at: usize, end: usize) -> Result<u64, PcapError> {
        while at + 4 <= end {
            let (code, len) = (self.half(at), usize::from(self.half(at + 2)));
            if code == 0 {
                break;
            }
            if at + 4 + len > end {
                return Err(self.damaged("an option that is longer than its block"));
            }
            if code == OPTION_TSRESOL && len > 0 {
                let power = self.buffer[self.at + at + 4];
                let units = match power & 0x80 {
                    0 => 10u64.checked_pow(u32::from(power)),
                    _ => 1u64.checked_shl(u32::from(power & 0x7f)),
                };
                return units.ok_or_else(|| self.damaged("a unit of time beyond reason"));
            }
            at += 4 + len.next_multiple_of(4);
        }
        Ok(1_000_000)
    }

    fn interface(&self, number: u32) -> Result<Interface, PcapError> {
        let interface = match &self.format {
            Format::Pcapng { interfaces, .. } => interfaces.get(number as usize),
            Format::Pcap { .. } => None,
        };
        interface
            .copied()
            .ok_or_else(|| self.damaged("a frame of an interface that is not described"))
    }

    fn enhanced_packet(&mut self, end: usize) -> Result<Record, PcapError> {
        if end < 32 {
            return Err(self.damaged("a packet block that is too short"));
        }
        let interface = self.interface(self.word(8))?;
        let time = u64::from(self.word(12)) << 32 | u64::from(self.word(16));
        let time_ns = u128::from(time) * 1_000_000_000 / u128::from(interface.units);
        let time_ns = u64::try_from(time_ns).unwrap_or(u64::MAX);
        let len = self.word(20) as usize;
        if len > end - 32 {
            return Err(self.damaged("a frame that is longer than its block"));
        }
        if let Format::Pcapng { last_time_ns, .. } = &mut self.format {
            *last_time_ns = time_ns;
        }
        Ok(Record {
            time_ns,
            link_type: link_type(interface.link),
            is_whole: self.word(24) as usize <= len,
            len,
            first: 28,
            end,
        })
    }

    fn simple_packet(&self, end: usize) -> Result<Record, PcapError> {
        if end < 16 {
            return Err(self.damaged("a packet block that is too short"));
        }
        let interface = self.interface(0)?;
        let whole = self.word(8) as usize;
        let cut = match interface.snap_len {
            0 => whole,
            snap_len => whole.min(snap_len as usize),
        };
        let len = cut.min(end - 16);
        let time_ns = match self.format {
            Format::Pcapng { last_time_ns, .. } => last_time_ns,
            Format::Pcap { .. } => 0,
        };
        Ok(Record {
            time_ns,
            link_type: link_type(interface.link),
            is_whole: len == whole,
            len,
            first: 12,
            end,
        })
    }

    /// Whether so many bytes are there, from where we are; reads on if not.
    fn has(&mut self, len: usize) -> Result<bool, PcapError> {
        while self.buffer.len() - self.at < len {
            self.buffer.drain(..self.at);
            self.base += self.at as u64;
            self.at = 0;
            let had = self.buffer.len();
            self.buffer.resize(had + (64 << 10), 0);
            let read = self.file.read(&mut self.buffer[had..]);
            self.buffer.truncate(had + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let path = self.path.clone();
                    return Err(PcapError::File { path, source });
                }
            }
        }
        Ok(true)
    }

    /// The word at a place that is known to be there.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.buffer[self.at + at..][..4]
            .try_into()
            .expect("four bytes");
        match self.is_big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        }
    }

    fn half(&self, at: usize) -> u16 {
        let bytes = self.buffer[self.at + at..][..2]
            .try_into()
            .expect("two bytes");
        match self.is_big_endian {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        }
    }

    fn no_capture(&self) -> PcapError {
        PcapError::NoCapture {
            path: self.path.clone(),
        }
    }

    fn damaged(&self, reason: &'static str) -> PcapError {
        PcapError::Damaged {
            path: self.path.clone(),
            at: self.base + self.at as u64,
            reason,
        }
    }
}

fn link_type(number: u32) -> Option<LinkType> {
    match number {
        1 => Some(LinkType::Ethernet),
        // Raw IP, and of one version only.
        101 | 228 | 229 => Some(LinkType::Raw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Order = fn(u32) -> [u8; 4];
    const ORDERS: [Order; 2] = [u32::to_le_bytes, u32::to_be_bytes];

    fn open(bytes: &[u8]) -> Result<CaptureReader, PcapError> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("capture");
        std::fs::write(&path, bytes).expect("it can be written");
        CaptureReader::open(&path)
    }

    /// Times and bytes of all frames, and whether each is whole.
    fn frames(bytes: &[u8]) -> Result<Vec<(u64, Vec<u8>, bool)>, PcapError> {
        let mut reader = open(bytes)?;
        let mut frames = Vec::new();
        while let Some(record) = reader.peek()? {
            frames.push((
                record.time_ns,
                reader.bytes(&record).to_vec(),
                record.is_whole,
            ));
            reader.release(&record);
        }
        Ok(frames)
    }

    fn half(order: Order, value: u16) -> [u8; 2] {
        let word = order(u32::from(value) << 16 | u32::from(value));
        [word[0], word[1]]
    }

    fn pcap(order: Order, mark: u32, frames: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let mut b = order(mark).to_vec();
        b.extend([half(order, 2), half(order, 4)].concat());
        for word in [0, 0, 65_535, 1] {
            b.extend(order(word));
        }
        for (seconds, rest, whole, bytes) in frames {
            for word in [*seconds, *rest, bytes.len() as u32, *whole] {
                b.extend(order(word));
            }
            b.extend(*bytes);
        }
        b
    }

    fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let len = order(body.len() as u32 + 12);
        [&order(kind)[..], &len, &body, &len].concat()
    }

    fn section(order: Order) -> Vec<u8> {
        let version = [half(order, 1), half(order, 0)].concat();
        let body = [&order(SECTION_ORDER)[..], &version, &[0xff; 8]].concat();
        block(order, SECTION, &body)
    }

    /// An interface whose times are in tenths to the power of `resolution`.
    fn interface(order: Order, link: u16, resolution: Option<u8>) -> Vec<u8> {
        let mut body = [&half(order, link)[..], &[0, 0], &order(0)].concat();
        if let Some(power) = resolution {
            body.extend([half(order, 2), half(order, 3)].concat());
            body.extend(b"eth\0");
            body.extend([half(order, OPTION_TSRESOL), half(order, 1)].concat());
            body.extend([power, 0, 0, 0]);
            body.extend([0; 4]);
        }
        block(order, INTERFACE, &body)
    }

    fn packet(order: Order, interface: u32, time: u64, whole: u32, bytes: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for word in [
            interface,
            (time >> 32) as u32,
            time as u32,
            bytes.len() as u32,
            whole,
        ] {
            body.extend(order(word));
        }
        body.extend(bytes);
        block(order, ENHANCED_PACKET, &body)
    }

    #[test]
    fn pcap_of_both_units_and_orders() {
        for order in ORDERS {
            for (mark, ns) in [(PCAP_US, 5_000), (PCAP_NS, 5)] {
                let bytes = pcap(order, mark, &[(7, 5, 3, b"abc"), (8, 0, 9, b"cut")]);
                assert_eq!(
                    frames(&bytes).expect("a capture"),
                    [
                        (7_000_000_000 + ns, b"abc".to_vec(), true),
                        (8_000_000_000, b"cut".to_vec(), false)
                    ]
                );
            }
        }
    }

    #[test]
    fn pcapng_of_both_orders_with_several_sections_and_interfaces() {
        let mut bytes = Vec::new();
        for order in ORDERS {
            bytes.extend(section(order));
            bytes.extend(interface(order, 1, None));
            bytes.extend(interface(order, 1, Some(9)));
            bytes.extend(interface(order, 1, Some(0x80 | 10)));
            bytes.extend(block(order, 0x0bad, b"something of which nobody knows"));
            bytes.extend(packet(order, 0, 3_000_004, 3, b"one"));
            bytes.extend(packet(order, 1, 1_700_000_000_000_000_001, 3, b"two"));
            bytes.extend(packet(order, 2, 1536, 9, b"cut"));
            let simple = [&order(5)[..], b"short"].concat();
            bytes.extend(block(order, SIMPLE_PACKET, &simple));
        }
        let section = [
            (3_000_004_000, b"one".to_vec(), true),
            (1_700_000_000_000_000_001, b"two".to_vec(), true),
            (1_500_000_000, b"cut".to_vec(), false),
            (1_500_000_000, b"short".to_vec(), true),
        ];
        let expected = [&section[..], &section].concat();
        assert_eq!(frames(&bytes).expect("a capture"), expected);
    }

    #[test]
    fn what_is_no_capture_is_refused_with_the_place_and_the_reason() {
        let le = ORDERS[0];
        let check = |bytes: &[u8], words: &str| {
            let error = frames(bytes).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        check(b"", "is no capture");
        check(b"#!/bin/sh\nexit\n", "is no capture");
        check(&pcap(le, PCAP_US, &[])[..20], "ends within its header");
        let mut old = pcap(le, PCAP_US, &[]);
        old[4] = 1;
        check(&old, "another version than 2");
        let mut long = pcap(le, PCAP_US, &[(0, 0, 3, b"abc")]);
        long[24 + 8..24 + 12].fill(0xff);
        check(&long, "damaged at byte 24: a frame of more than a megabyte");
        check(
            &section(le)[..16],
            "section's header of an impossible length",
        );
        let with = |block: &[u8]| [&section(le)[..], &interface(le, 1, None), block].concat();
        check(
            &with(&packet(le, 1, 0, 1, b"x")),
            "damaged at byte 48: a frame of an interface",
        );
        let mut short = packet(le, 0, 0, 1, b"x");
        short[20] = 200;
        check(&with(&short), "longer than its block");
        let mut odd = packet(le, 0, 0, 1, b"x");
        odd[4] = 13;
        check(&with(&odd), "impossible length");
        let mut unequal = packet(le, 0, 0, 1, b"x");
        *unequal.last_mut().expect("bytes") = 1;
        check(&with(&unequal), "two lengths differ");
        check(
            &[section(le), interface(le, 1, Some(20))].concat(),
            "unit of time",
        );
    }

    #[test]
    fn a_file_that_grows_is_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("capture");
        let bytes = pcap(ORDERS[0], PCAP_NS, &[(1, 0, 3, b"abc"), (2, 0, 3, b"def")]);
        std::fs::write(&path, &bytes[..30]).expect("it can be written");
        let mut reader = CaptureReader::open(&path).expect("a capture");
        assert_eq!(reader.peek().expect("sound"), None);
        for len in [43, 50, bytes.len()] {
            std::fs::write(&path, &bytes[..len]).expect("it can be written");
            let record = reader.peek().expect("sound");
            assert_eq!(record.is_some(), len != 50, "with {len} bytes");
            if let Some(record) = record {
                reader.release(&record);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            start in 0usize..4,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
        ) {
            let order = ORDERS[start % 2];
            let mut all = match start {
                0 | 1 => pcap(order, PCAP_US, &[(1, 2, 3, b"abc"), (1, 2, 3, b"abc")]),
                _ => [section(order), interface(order, 1, Some(9)), packet(order, 0, 1, 3, b"abc")].concat(),
            };
            all.extend(bytes);
            for (at, value) in flips {
                if let Some(byte) = all.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(found) = frames(&all) {
                prop_assert!(found.iter().map(|(_, bytes, _)| bytes.len()).sum::<usize>() <= all.len());
            }
        }
    }
}
