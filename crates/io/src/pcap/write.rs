//! Writing a capture: pcap with nanoseconds, in the order of little-endian machines.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{LinkType, PcapError};

/// What the file begins with: the mark, version 2.4, no offset of time, the longest frame.
const MAGIC_NS: u32 = 0xa1b2_3c4d;
const SNAP_LEN: u32 = 256 << 10;

/// A capture that is written.
pub struct CaptureWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl CaptureWriter {
    /// Makes a capture without frames; one that is there is overwritten.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, link_type: LinkType) -> Result<Self, PcapError> {
        let file = File::create(path).map_err(|source| PcapError::File {
            path: path.to_owned(),
            source,
        })?;
        let mut writer = Self {
            file: BufWriter::with_capacity(256 << 10, file),
            path: path.to_owned(),
        };
        let version = 2 | 4 << 16;
        writer.put_words(&[MAGIC_NS, version, 0, 0, SNAP_LEN, link_type.number()])?;
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a frame, as it was on the wire at this time, ns since 1970.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&mut self, time_ns: u64, frame: &[u8]) -> Result<(), PcapError> {
        let seconds = u32::try_from(time_ns / 1_000_000_000).unwrap_or(u32::MAX);
        let rest = (time_ns % 1_000_000_000) as u32;
        let len = frame.len() as u32;
        self.put_words(&[seconds, rest, len, len])?;
        let written = self.file.write_all(frame);
        written.map_err(|source| self.refused(source))
    }

    /// Hands what was added over to the system, for others to read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<(), PcapError> {
        let flushed = self.file.flush();
        flushed.map_err(|source| self.refused(source))
    }

    fn put_words(&mut self, words: &[u32]) -> Result<(), PcapError> {
        for word in words {
            let written = self.file.write_all(&word.to_le_bytes());
            written.map_err(|source| self.refused(source))?;
        }
        Ok(())
    }

    fn refused(&self, source: std::io::Error) -> PcapError {
        let path = self.path.clone();
        PcapError::File { path, source }
    }
}
