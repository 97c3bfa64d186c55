//! Capture files as a port: what a file holds is received, what is sent is written to another.
//!
//! Read are pcap with micro- and nanoseconds and pcapng, in both byte orders; written is pcap with
//! nanoseconds. Frames come as fast as they are taken, or with the pauses between them that the
//! capture has. A file that still grows is followed. The time of what is written is that of the
//! frames that were read last, so that the same input makes the same output.

mod read;
mod write;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine::port::{Capabilities, Link, Meta, Packet, Port, PortStats};

use crate::buffer::{ETHERNET_LEN, Frame, Pool};
use crate::vnet;
pub use read::CaptureReader;
pub use write::CaptureWriter;

/// What frames of a capture begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet,
    /// An IP header.
    Raw,
}

/// When received frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as they are taken.
    Unpaced,
    /// Not before as much time has passed since the first as in the capture.
    Recorded,
}

/// What the port is, apart from its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapConfig {
    /// When received frames come.
    pub pace: Pace,
    /// What sent frames begin with; the same as those of the input.
    pub link_type: LinkType,
    /// Our station; frames for others are dropped by the engine.
    pub mac: [u8; 6],
    /// Largest payload of a frame, bytes.
    pub mtu: u16,
    /// Frames that the engine can hold at once, 64..=65,536.
    pub buffers: u32,
}

/// A capture file cannot be used, or no further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PcapError {
    /// The file cannot be opened, read or written.
    #[error("cannot use the capture {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no capture.
    #[error("{} is no capture: it begins with neither pcap's nor pcapng's mark", path.display())]
    NoCapture {
        /// Which file.
        path: PathBuf,
    },
    /// It is a capture that contradicts itself.
    #[error("the capture {} is damaged at byte {at}: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where the record or block begins.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Its frames begin with another header than the port's.
    #[error("the frames of the capture {} are of link type {found}; {expected} is needed", path.display())]
    LinkType {
        /// Which file.
        path: PathBuf,
        /// The number of its link type.
        found: u32,
        /// The number that is needed.
        expected: u32,
    },
}

impl LinkType {
    /// The number of the link type in captures (LINKTYPE_ETHERNET, LINKTYPE_RAW).
    pub fn number(self) -> u32 {
        match self {
            LinkType::Ethernet => 1,
            LinkType::Raw => 101,
        }
    }

    fn synthetic(self) -> usize {
        match self {
            LinkType::Ethernet => 0,
            LinkType::Raw => ETHERNET_LEN,
        }
    }
}

/// A port on capture files. Without an input nothing is received, without an output everything
/// that is sent is taken and forgotten.
pub struct PcapPort {
    input: Option<CaptureReader>,
    output: Option<CaptureWriter>,
    config: PcapConfig,
    capabilities: Capabilities,
    pool: Rc<Pool>,
    /// When the first frame was handed over, and its time in the capture.
    began: Option<(Instant, u64)>,
    /// The time in the capture of the frame received last, ns since 1970.
    now_ns: u64,
    fault: Option<PcapError>,
    stats: PortStats,
}

impl PcapPort {
    /// A port on opened captures.
    ///
    /// # Errors
    /// The input's frames begin with another header than `config` says.
    pub fn new(
        input: Option<CaptureReader>,
        output: Option<CaptureWriter>,
        config: PcapConfig,
    ) -> Result<Self, PcapError> {
        if let Some(input) = &input {
            input.check_link_type(config.link_type)?;
        }
        Ok(Self {
            input,
            output,
            capabilities: Capabilities {
                mtu: config.mtu,
                tx_checksum: false,
                tx_gso_tcp: false,
                tx_gso_udp: false,
                mac: config.mac,
                layer3: config.link_type == LinkType::Raw,
            },
            pool: Pool::new(config.buffers.max(64)),
            config,
            began: None,
            now_ns: 0,
            fault: None,
            stats: PortStats::default(),
        })
    }

    /// Whether all frames that the input holds now were received.
    pub fn is_at_end(&mut self) -> bool {
        match &mut self.input {
            Some(input) => !matches!(input.peek(), Ok(Some(_))),
            None => true,
        }
    }

    /// Why a file can be used no further. The link is [`Link::Gone`] from then on.
    pub fn fault(&self) -> Option<&PcapError> {
        self.fault.as_ref()
    }

    /// Receives one frame, if one is due and there is a buffer for it.
    fn receive(&mut self) -> Result<Option<Frame>, PcapError> {
        let synthetic = self.config.link_type.synthetic();
        let Some(input) = &mut self.input else {
            return Ok(None);
        };
        loop {
            let Some(record) = input.peek()? else {
                return Ok(None);
            };
            if self.config.pace == Pace::Recorded {
                let (began, first_ns) = *self.began.get_or_insert((Instant::now(), record.time_ns));
                let due = Duration::from_nanos(record.time_ns.saturating_sub(first_ns));
                if began.elapsed() < due {
                    return Ok(None);
                }
            }
            self.now_ns = record.time_ns;
            let is_usable = record.link_type == Some(self.config.link_type) && record.is_whole;
            let frame = if is_usable && fits(record.len, synthetic) {
                match self.pool.take(synthetic + record.len) {
                    Some(mut frame) => {
                        let bytes = frame.bytes_from_mut(synthetic as isize);
                        bytes.copy_from_slice(input.bytes(&record));
                        accept(&mut frame, synthetic).then_some(frame)
                    }
                    None => return Ok(None),
                }
            } else {
                None
            };
            input.release(&record);
            match frame {
                Some(frame) => {
                    self.stats.rx_frames += 1;
                    self.stats.rx_bytes += frame.bytes().len() as u64;
                    return Ok(Some(frame));
                }
                None => self.stats.rx_errors += 1,
            }
        }
    }

    /// Writes the frames as they would be on the wire.
    fn write(&mut self, burst: &mut [Frame]) -> Result<(), PcapError> {
        let synthetic = self.config.link_type.synthetic();
        for frame in burst {
            let len = frame.bytes().len();
            if len <= synthetic || len < ETHERNET_LEN || frame.meta().gso.is_some() {
                self.stats.tx_errors += 1;
                continue;
            }
            if let Some(output) = &mut self.output {
                // As for the kernel, with the tag in its place; the virtio header is left out.
                let first = frame.vnet_at(synthetic) + vnet::LEN as isize;
                frame.put_vnet(synthetic);
                output.put(self.now_ns, frame.bytes_from_mut(first))?;
            }
            self.stats.tx_frames += 1;
            self.stats.tx_bytes += len as u64;
        }
        match &mut self.output {
            Some(output) => output.flush(),
            None => Ok(()),
        }
    }
}

fn fits(len: usize, synthetic: usize) -> bool {
    len > 0 && synthetic + len <= crate::FRAME_LEN_MAX
}

/// Makes a frame of what was read; false if it is none.
fn accept(frame: &mut Frame, synthetic: usize) -> bool {
    let mut meta = Meta::default();
    if synthetic > 0 {
        if !frame.put_synthetic_ethernet() {
            return false;
        }
    } else if frame.bytes().len() < ETHERNET_LEN {
        return false;
    } else {
        frame.strip_tag(&mut meta);
    }
    frame.set_meta(meta);
    true
}

impl Port for PcapPort {
    type Packet = Frame;

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        for count in 0..max {
            let received = match self.fault {
                None => self.receive(),
                Some(_) => Ok(None),
            };
            match received {
                Ok(Some(frame)) => burst.push(frame),
                Ok(None) => return count,
                Err(error) => {
                    self.stats.rx_errors += 1;
                    self.fault = Some(error);
                    return count;
                }
            }
        }
        max
    }

    fn tx_burst(&mut self, burst: &mut Vec<Frame>) -> usize {
        if self.fault.is_some() {
            self.stats.tx_errors += burst.len() as u64;
            burst.clear();
            return 0;
        }
        let before = self.stats.tx_frames;
        if let Err(error) = self.write(burst) {
            self.fault = Some(error);
            // The disk is full, say: none of the burst is sure to be in the file.
            self.stats.tx_frames = before;
            self.stats.tx_errors += burst.len() as u64;
        }
        burst.clear();
        (self.stats.tx_frames - before) as usize
    }

    fn alloc(&mut self, len: usize) -> Option<Frame> {
        self.pool.take(len)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn link(&self) -> Link {
        match self.fault {
            None => Link::Up,
            Some(_) => Link::Gone,
        }
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const CONFIG: PcapConfig = PcapConfig {
        pace: Pace::Unpaced,
        link_type: LinkType::Ethernet,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        buffers: 64,
    };

    /// A capture in a directory of its own, with these frames a millisecond apart.
    fn capture(frames: &[Vec<u8>], link_type: LinkType) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("frames.pcap");
        let mut writer = CaptureWriter::create(&path, link_type).expect("it is made");
        for (i, frame) in frames.iter().enumerate() {
            let time_ns = 1_700_000_000_000_000_000 + i as u64 * 1_000_000;
            writer.put(time_ns, frame).expect("it is written");
        }
        writer.flush().expect("it is written");
        (directory, path)
    }

    fn port(path: &Path, config: PcapConfig) -> Result<PcapPort, PcapError> {
        PcapPort::new(Some(CaptureReader::open(path)?), None, config)
    }

    fn ipv4(byte: u8) -> Vec<u8> {
        let mut frame = vec![byte; 60];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame
    }

    #[test]
    fn what_is_read_is_received_and_what_is_sent_can_be_read() {
        let frames: Vec<_> = (0..200).map(ipv4).collect();
        let (directory, path) = capture(&frames, LinkType::Ethernet);
        let out = directory.path().join("sent.pcap");
        let writer = CaptureWriter::create(&out, LinkType::Ethernet).expect("it is made");
        let reader = CaptureReader::open(&path).expect("it is a capture");
        let mut port = PcapPort::new(Some(reader), Some(writer), CONFIG).expect("it fits");
        let mut burst = Vec::new();
        let mut at = 0;
        while !port.is_at_end() {
            let count = port.rx_burst(&mut burst, 48);
            for frame in &burst {
                assert_eq!(frame.bytes(), frames[at]);
                at += 1;
            }
            assert_eq!(port.tx_burst(&mut burst), count);
        }
        assert_eq!(at, 200);
        // The pauses are those of the bursts.
        let mut reader = CaptureReader::open(&out).expect("it is a capture");
        let first = reader.peek().expect("it is sound").expect("a frame");
        assert_eq!(first.time_ns, 1_700_000_000_047_000_000);
        assert_eq!(reader.bytes(&first), frames[0]);
        assert_eq!(
            std::fs::read(&out).expect("it is there").len(),
            24 + 200 * 76
        );
    }

    #[test]
    fn an_empty_pool_delays_frames_and_loses_none() {
        let frames: Vec<_> = (0..100).map(ipv4).collect();
        let (_directory, path) = capture(&frames, LinkType::Ethernet);
        let mut port = port(&path, CONFIG).expect("it opens");
        let mut burst = Vec::new();
        assert_eq!(
            port.rx_burst(&mut burst, 100),
            64,
            "as many as there are buffers"
        );
        burst.clear();
        assert_eq!(port.rx_burst(&mut burst, 100), 36);
        assert_eq!(burst[35].bytes(), frames[99]);
    }

    #[test]
    fn the_recorded_pace_is_kept() {
        let frames: Vec<_> = (0..21).map(ipv4).collect();
        let (_directory, path) = capture(&frames, LinkType::Ethernet);
        let pace = Pace::Recorded;
        let mut port = port(&path, PcapConfig { pace, ..CONFIG }).expect("it opens");
        let began = Instant::now();
        let mut burst = Vec::new();
        assert_eq!(port.rx_burst(&mut burst, 1), 1, "the first comes at once");
        while burst.len() < 21 {
            port.rx_burst(&mut burst, 64);
            let due = burst.len() as u32 - 1;
            assert!(began.elapsed() >= Duration::from_millis(1) * due);
        }
    }

    #[test]
    fn packets_without_ethernet_header_get_one() {
        let packet = ipv4(7)[14..].to_vec();
        let (directory, path) = capture(std::slice::from_ref(&packet), LinkType::Raw);
        let link_type = LinkType::Raw;
        let config = PcapConfig {
            link_type,
            ..CONFIG
        };
        let out = directory.path().join("sent.pcap");
        let writer = CaptureWriter::create(&out, LinkType::Raw).expect("it is made");
        let reader = CaptureReader::open(&path).expect("it is a capture");
        let mut port = PcapPort::new(Some(reader), Some(writer), config).expect("it fits");
        let mut burst = Vec::new();
        assert_eq!(port.rx_burst(&mut burst, 8), 1);
        assert_eq!(
            burst[0].bytes()[..14],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]
        );
        assert_eq!(port.tx_burst(&mut burst), 1);
        let written = std::fs::read(&out).expect("it is there");
        assert_eq!(written[40..], packet);
    }

    #[test]
    fn captures_of_other_links_are_refused() {
        let (_directory, path) = capture(&[ipv4(1)], LinkType::Raw);
        let error = port(&path, CONFIG)
            .err()
            .expect("it is refused")
            .to_string();
        assert!(
            error.ends_with("are of link type 101; 1 is needed"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_capture_ends_the_link_and_keeps_what_came_before() {
        let (_directory, path) = capture(&[ipv4(1), ipv4(2)], LinkType::Ethernet);
        let mut bytes = std::fs::read(&path).expect("it is there");
        bytes[24 + 76 + 8..][..4].fill(0xff);
        std::fs::write(&path, bytes).expect("it can be written");
        let mut port = port(&path, CONFIG).expect("it opens");
        let mut burst = Vec::new();
        assert_eq!(port.rx_burst(&mut burst, 8), 1);
        assert_eq!(port.link(), Link::Gone);
        let fault = port.fault().expect("there is one").to_string();
        assert!(fault.contains("damaged at byte 100"), "{fault}");
        assert_eq!(port.tx_burst(&mut burst), 0);
        let stats = port.stats();
        assert_eq!(
            (stats.rx_frames, stats.rx_errors, stats.tx_errors),
            (1, 1, 1)
        );
    }
}
