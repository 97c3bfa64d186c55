//! What one process leaves to the next, as bytes: a title, then sections.
//!
//! A section is a header of 36 bytes and its payload: the name in 16 bytes (ASCII, padded with zeros), the version of the
//! payload (`u16`), two bytes of zero, the length of the payload (`u64`), its CRC-32, and the CRC-32 of the header so far;
//! numbers are little-endian. A name may come several times. Whoever reads takes the sections that it knows, and passes
//! over the others, so that each side may be the older one; a damaged section costs itself alone, a damaged header what
//! follows it too.

use std::io::{self, Read, Write};

/// The first bytes. Another number stands for headers that are laid out otherwise.
const TITLE: &[u8; 16] = b"neuwerk handover";
const LAYOUT: u16 = 1;

const HEADER: usize = 36;
const NAME: usize = 16;

/// Largest payload that is read: well above the chunks in which flows are written.
const MAX_PAYLOAD: u64 = 64 << 20;

/// Writes sections.
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins with the title.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(TITLE)?;
        out.write_all(&LAYOUT.to_le_bytes())?;
        Ok(Self { out })
    }

    /// Appends a section. The name has at most 16 bytes.
    pub fn section(&mut self, name: &str, version: u16, payload: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[16..18].copy_from_slice(&version.to_le_bytes());
        header[20..28].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        header[28..32].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        let sum = crc32fast::hash(&header[..32]);
        header[32..].copy_from_slice(&sum.to_le_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(payload)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// One section, or what is left of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Section<'a> {
    /// A payload that is as it was written.
    Sound {
        /// What it is.
        name: &'a str,
        /// How it is encoded.
        version: u16,
        /// The bytes.
        payload: &'a [u8],
    },
    /// A payload that is not as it was written.
    Damaged {
        /// What it was.
        name: &'a str,
    },
    /// From here on nothing can be read: a header is damaged, or the end is missing.
    Lost,
}

/// Hands each section to `take`, in order, at most one payload in memory at a time.
///
/// # Errors
/// It cannot be read, or it is no hand-over that this version knows the layout of.
pub fn read(mut from: impl Read, mut take: impl FnMut(Section<'_>)) -> io::Result<()> {
    let mut title = [0; TITLE.len() + 2];
    from.read_exact(&mut title)?;
    if title[..TITLE.len()] != TITLE[..] || title[TITLE.len()..] != LAYOUT.to_le_bytes() {
        let text = "this is no hand-over, or one that only a later version can read";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut payload = Vec::new();
    loop {
        let mut header = Vec::with_capacity(HEADER);
        from.by_ref().take(HEADER as u64).read_to_end(&mut header)?;
        let header: &[u8; HEADER] = match header.as_slice().try_into() {
            Ok(header) => header,
            Err(_) if header.is_empty() => return Ok(()),
            Err(_) => {
                take(Section::Lost);
                return Ok(());
            }
        };
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let len = u64::from_le_bytes(std::array::from_fn(|i| header[20 + i]));
        let name = std::str::from_utf8(&header[..NAME]).unwrap_or_default();
        let name = name.trim_end_matches('\0');
        if u32_at(32) != crc32fast::hash(&header[..32]) || name.is_empty() || len > MAX_PAYLOAD {
            take(Section::Lost);
            return Ok(());
        }
        payload.clear();
        from.by_ref().take(len).read_to_end(&mut payload)?;
        if payload.len() as u64 != len {
            take(Section::Lost);
            return Ok(());
        }
        take(if u32_at(28) == crc32fast::hash(&payload) {
            Section::Sound {
                name,
                version: u16::from_le_bytes([header[16], header[17]]),
                payload: &payload,
            }
        } else {
            Section::Damaged { name }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(bytes: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        let read = read(bytes, |section| {
            seen.push(match section {
                Section::Sound {
                    name,
                    version,
                    payload,
                } => format!("{name} {version} {}", String::from_utf8_lossy(payload)),
                Section::Damaged { name } => format!("{name} damaged"),
                Section::Lost => "lost".to_owned(),
            });
        });
        match read {
            Ok(()) => seen,
            Err(_) => vec!["none".to_owned()],
        }
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).expect("a vector takes all");
        for (name, version, payload) in [
            ("flows", 1, &b"one"[..]),
            ("of-a-later-one-", 7, b""),
            ("flows", 2, b"two"),
        ] {
            let written = writer.section(name, version, payload);
            written.expect("a vector takes all");
        }
        writer.into_inner()
    }

    const WHOLE: [&str; 3] = ["flows 1 one", "of-a-later-one- 7 ", "flows 2 two"];

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(sections(&written()), WHOLE);
    }

    #[test]
    fn damage_costs_what_it_hits() {
        let check = |at: usize, expected: &[&str]| {
            let mut bytes = written();
            bytes[at] ^= 1;
            assert_eq!(sections(&bytes), expected, "{at}");
        };
        check(3, &["none"]);
        check(16, &["none"]);
        check(18, &["lost"]);
        check(18 + 20, &["lost"]);
        check(18 + 36, &["flows damaged", WHOLE[1], WHOLE[2]]);
        check(18 + 39 + 5, &[WHOLE[0], "lost"]);
        let end = written().len() - 1;
        check(end, &[WHOLE[0], WHOLE[1], "flows damaged"]);
    }

    #[test]
    fn a_missing_end_is_seen_unless_nothing_is_missing_but_sections() {
        let bytes = written();
        for len in 0..bytes.len() {
            let seen = sections(&bytes[..len]);
            let cut = [18, 18 + 39, 18 + 39 + 36];
            let expected = match len {
                0..18 => "none",
                _ if cut.contains(&len) => continue,
                _ => "lost",
            };
            assert_eq!(seen.last().map(String::as_str), Some(expected), "{len}");
        }
    }

    /// What one version writes every other must be able to read: these bytes stay.
    #[test]
    fn the_layout_is_as_it_was() {
        let mut writer = Writer::new(Vec::new()).expect("a vector takes all");
        let written = writer.section("flows", 0x0102, b"abc");
        written.expect("a vector takes all");
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let golden = [
            "6e65757765726b2068616e646f7665720100",
            "666c6f777300000000000000000000000201000003000000000000",
            "00c2412435",
        ]
        .concat();
        let bytes = writer.into_inner();
        assert!(hex(&bytes).starts_with(&golden), "{}", hex(&bytes));
        assert_eq!(bytes.len(), 18 + 36 + 3);
    }
}
