//! Names as they are on the wire, in lower case.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Longest name on the wire, the root's octet included (RFC 1035 section 2.3.4).
pub const MAX_NAME_BYTES: usize = 255;
/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: u8 = 63;

/// A name: labels behind their lengths, ASCII letters in lower case (RFC 4343).
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; MAX_NAME_BYTES],
}

/// The bytes are not a name: a label or all of it is too long, it is cut off, or it points elsewhere,
/// which the first name of a message cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a name")]
pub struct BadName;

impl Name {
    /// Reads the name that `bytes` begin with; its length is that of [`Self::wire`].
    ///
    /// # Errors
    /// [`BadName`] if they begin with none.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadName> {
        let mut at = 0;
        loop {
            let length = *bytes.get(at).ok_or(BadName)?;
            if length > MAX_LABEL_BYTES {
                return Err(BadName);
            }
            at += 1 + usize::from(length);
            if at > MAX_NAME_BYTES {
                return Err(BadName);
            }
            if length == 0 {
                break;
            }
        }
        let mut name = Self {
            len: u8::try_from(at).map_err(|_| BadName)?,
            bytes: [0; MAX_NAME_BYTES],
        };
        // A length is no letter: 63 is below `A`.
        let copy = &mut name.bytes[..at];
        copy.copy_from_slice(bytes.get(..at).ok_or(BadName)?);
        copy.make_ascii_lowercase();
        Ok(name)
    }

    /// The name on the wire, the root's octet included.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The labels, first one first, without the root's.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.wire();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            (*length > 0).then_some(label)
        })
    }

    /// Writes it as the policy takes names: labels between dots, without a final one. Octets other than
    /// letters, digits, `-` and `_` are written as `\DDD` (RFC 1035 section 5.1), so that a dot within
    /// a label is not taken for one between labels.
    pub fn write_text(&self, out: &mut String) {
        out.clear();
        for (i, label) in self.labels().enumerate() {
            if i > 0 {
                out.push('.');
            }
            for byte in label {
                match byte {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(*byte)),
                    _ => {
                        out.push('\\');
                        for digit in [byte / 100, byte / 10 % 10, byte % 10] {
                            out.push(char::from(b'0' + digit));
                        }
                    }
                }
            }
        }
    }

    /// Writes it with its letters in upper case where `bits` has a one, taken in turn: what an upstream
    /// has to send back as it was (draft-vixie-dnsext-dns0x20).
    pub fn write_mixed(&self, bits: &[u8; 32], out: &mut Vec<u8>) {
        for (at, byte) in self.wire().iter().enumerate() {
            let upper = bits[at / 8] >> (at % 8) & 1 == 1;
            out.push(match byte {
                b'a'..=b'z' if upper => byte.to_ascii_uppercase(),
                _ => *byte,
            });
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.wire().hash(state);
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write_text(&mut text);
        f.write_str(if text.is_empty() { "." } else { &text })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts() {
        #[track_caller]
        fn check(wire: &[u8], want: Result<&str, BadName>) {
            let name = Name::parse(wire);
            assert_eq!(name.map(|n| n.to_string()), want.map(str::to_owned));
        }
        check(b"\x03WwW\x07example\x00rest", Ok("www.example"));
        check(b"\x00", Ok("."));
        check(b"\x03a.b\x00", Ok(r"a\046b"));
        check(b"\x02\xff \x00", Ok(r"\255\032"));
        check(b"", Err(BadName));
        check(b"\x03ab", Err(BadName));
        check(b"\x01a", Err(BadName));
        check(b"\x01a\xc0\x0c", Err(BadName));
        check(&[0x40; 80], Err(BadName));
        let longest = [&[1, b'a'].repeat(127)[..], &[0]].concat();
        assert_eq!(longest.len(), MAX_NAME_BYTES);
        assert!(Name::parse(&longest).is_ok());
        check(
            &[&[2, b'a', b'a'][..], &longest[2..]].concat(),
            Err(BadName),
        );
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), bits in any::<[u8; 32]>()) {
            if let Ok(name) = Name::parse(&bytes) {
                prop_assert!(bytes[..name.wire().len()].eq_ignore_ascii_case(name.wire()));
                let mut mixed = Vec::new();
                name.write_mixed(&bits, &mut mixed);
                prop_assert_eq!(Name::parse(&mixed), Ok(name));
                let text = name.to_string();
                prop_assert!(text.is_ascii() && (text == "." || text.split('.').count() == name.labels().count()));
            }
        }
    }
}
