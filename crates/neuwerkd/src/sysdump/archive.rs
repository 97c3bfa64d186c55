//! A compressed tar of limited size, written as it is made.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::Limits;

/// A file that is in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Whether there was more of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) cut: bool,
}

/// Something that is not in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LeftOut {
    pub(super) path: String,
    pub(super) reason: String,
}

/// An archive that is being made.
pub(super) struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    limits: Limits,
    started: Instant,
    bytes: u64,
    entries: Vec<Entry>,
    left_out: Vec<LeftOut>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, limits: Limits, started: Instant) -> Self {
        Self {
            tar: tar::Builder::new(GzEncoder::new(out, Compression::fast())),
            limits,
            started,
            bytes: 0,
            entries: Vec::new(),
            left_out: Vec::new(),
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// How much time is left.
    pub(super) fn time_left(&self) -> Duration {
        self.limits.time.saturating_sub(self.started.elapsed())
    }

    /// Notes that something is not in it.
    pub(super) fn leave_out(&mut self, path: &str, reason: impl ToString) {
        self.left_out.push(LeftOut {
            path: path.to_owned(),
            reason: reason.to_string(),
        });
    }

    /// Adds a text; its end is what is kept of one that is too long.
    pub(super) fn text(&mut self, path: &str, text: &str) -> io::Result<()> {
        let kept = usize::try_from(self.limits.file_bytes).unwrap_or(usize::MAX);
        let from = text.ceil_char_boundary(text.len().saturating_sub(kept));
        self.put(path, &text.as_bytes()[from..], from > 0)
    }

    /// Adds a value as JSON, whole or not at all.
    pub(super) fn json(&mut self, path: &str, value: &impl Serialize) -> io::Result<()> {
        let mut text = match serde_json::to_vec_pretty(value) {
            Ok(text) => text,
            Err(error) => {
                self.leave_out(path, error);
                return Ok(());
            }
        };
        text.push(b'\n');
        if text.len() as u64 > self.limits.file_bytes {
            self.leave_out(path, format!("too large: {} bytes", text.len()));
            return Ok(());
        }
        self.put(path, &text, false)
    }

    /// Adds a value as JSON whatever the limits say: the one that tells what they left out.
    pub(super) fn last_json(&mut self, path: &str, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        self.append(path, text.len() as u64, text.as_slice())
    }

    fn put(&mut self, path: &str, content: &[u8], cut: bool) -> io::Result<()> {
        let bytes = content.len() as u64;
        if self.time_left().is_zero() {
            self.leave_out(path, "the time was over");
            return Ok(());
        }
        if self.bytes + bytes > self.limits.bytes {
            self.leave_out(path, "the archive is as large as it may be");
            return Ok(());
        }
        self.append(path, bytes, content)?;
        self.bytes += bytes;
        self.entries.push(Entry {
            path: path.to_owned(),
            bytes,
            cut,
        });
        Ok(())
    }

    fn append(&mut self, path: &str, bytes: u64, content: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(crate::http::now_s());
        header.set_entry_type(tar::EntryType::Regular);
        self.tar.append_data(&mut header, path, content)
    }

    /// Adds every file of another archive below `prefix`. One that breaks off is added as far as it can be read.
    pub(super) fn unpack(&mut self, prefix: &str, other: File) -> io::Result<()> {
        match self.take_over(prefix, other) {
            Ok(written) => written,
            Err(error) => {
                self.leave_out(
                    prefix,
                    format!("its archive cannot be read to its end: {error}"),
                );
                Ok(())
            }
        }
    }

    /// The outer error is of what is read, the inner one of what is written.
    fn take_over(&mut self, prefix: &str, other: File) -> Result<io::Result<()>, io::Error> {
        let mut other = tar::Archive::new(flate2::read::GzDecoder::new(other));
        for entry in other.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let is_safe = !path.starts_with('/') && path.split('/').all(|part| part != "..");
            if !is_safe || entry.header().entry_type() != tar::EntryType::Regular {
                continue;
            }
            let (path, bytes) = (format!("{prefix}/{path}"), entry.size());
            if bytes > 2 * self.limits.file_bytes || self.bytes + bytes > self.limits.bytes {
                self.leave_out(&path, "the archive is as large as it may be");
                continue;
            }
            // Read as a whole before its header is written, which cannot be taken back.
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            if let Err(error) = self.append(&path, content.len() as u64, content.as_slice()) {
                return Ok(Err(error));
            }
            self.bytes += bytes;
        }
        Ok(Ok(()))
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.tar.into_inner()?.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;

    use super::*;

    fn archive(bytes: u64, file_bytes: u64) -> Archive<File> {
        let limits = Limits {
            bytes,
            file_bytes,
            ..Limits::default()
        };
        Archive::new(tempfile::tempfile().unwrap(), limits, Instant::now())
    }

    fn unpacked(archive: Archive<File>) -> Vec<(String, String)> {
        let mut file = archive.finish().unwrap();
        file.rewind().unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), text)
            })
            .collect()
    }

    #[test]
    fn of_a_long_text_the_end_is_kept_and_what_does_not_fit_is_listed() {
        let mut archive = archive(10, 4);
        archive.text("a", "123456").unwrap();
        archive.json("b", &"too long").unwrap();
        archive.text("c", "ééé").unwrap();
        archive.text("d", "xyz").unwrap();
        assert_eq!(archive.bytes(), 8);
        assert!(archive.entries()[0].cut);
        let left_out: Vec<_> = archive.left_out().iter().map(|l| l.path.as_str()).collect();
        assert_eq!(left_out, ["b", "d"]);
        assert_eq!(
            unpacked(archive),
            [("a".into(), "3456".into()), ("c".into(), "éé".into())]
        );
    }

    #[test]
    fn after_its_time_nothing_more_is_added() {
        let limits = Limits {
            time: Duration::ZERO,
            ..Limits::default()
        };
        let mut archive = Archive::new(tempfile::tempfile().unwrap(), limits, Instant::now());
        archive.text("a", "1").unwrap();
        assert_eq!(archive.left_out()[0].reason, "the time was over");
        archive.last_json("manifest", &1).unwrap();
        assert_eq!(unpacked(archive), [("manifest".into(), "1".into())]);
    }

    #[test]
    fn another_archive_is_added_below_its_prefix_even_if_it_breaks_off() {
        let whole = {
            let mut archive = archive(1 << 20, 1 << 20);
            archive.text("x", "1").unwrap();
            let noise: String = (0..200_000_u64)
                .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 7) as u8 % 26))
                .collect();
            archive.text("y", &noise).unwrap();
            archive.finish().unwrap()
        };
        let len = whole.metadata().unwrap().len();
        let reopened = |mut file: File| {
            file.rewind().unwrap();
            file
        };
        let whole = reopened(whole);
        let mut outer = archive(1 << 20, 1 << 20);
        outer.unpack("n1", whole.try_clone().unwrap()).unwrap();
        assert!(outer.left_out().is_empty(), "{:?}", outer.left_out());
        whole.set_len(len / 2).unwrap();
        let mut outer = archive(1 << 20, 1 << 20);
        outer.unpack("n1", reopened(whole)).unwrap();
        assert!(outer.left_out()[0].reason.contains("cannot be read"));
        let files = unpacked(outer);
        assert!(files.iter().all(|(path, _)| path == "n1/x"), "{files:?}");
    }
}
