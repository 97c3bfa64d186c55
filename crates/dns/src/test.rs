//! Messages for tests.

use proptest::prelude::*;

use crate::accept::Wanted;
use crate::{Kind, Name};

/// Bytes from hexadecimal digits, whitespace ignored.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|d| d as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// A name on the wire.
pub(crate) fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// A question as the cache knows it.
pub(crate) fn wanted(name: &str, kind: u16) -> Wanted {
    Wanted {
        name: Name::parse(&wire(name)).unwrap(),
        kind: Kind(kind),
        dnssec_ok: false,
        checking_disabled: false,
    }
}

/// A query with the id 0x1234 that asks for recursion.
pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out = hex("1234 0100 0001 0000 0000 0000");
    out.extend(wire(name));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// Bytes, queries, and queries with some bytes changed, cut off or added.
pub(crate) fn messages() -> BoxedStrategy<Vec<u8>> {
    let kind = prop_oneof![3 => 0_u16..70, 1 => 245_u16..260];
    let sound = ("[a-zA-Z.]{0,20}", kind).prop_map(|(name, kind)| query(&name, kind));
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..80),
        4 => (
            sound,
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            prop::collection::vec(any::<u8>(), 0..20),
            any::<prop::sample::Index>(),
            any::<bool>(),
        )
            .prop_map(|(mut message, changes, more, cut, cuts)| {
                for (at, byte) in changes {
                    let at = at.index(message.len());
                    message[at] = byte;
                }
                message.extend(more);
                if cuts {
                    message.truncate(cut.index(message.len()));
                }
                message
            }),
    ]
    .boxed()
}
