//! Captures in the pcapng format (draft-ietf-opsawg-pcapng): Ethernet frames, each with a comment.

use api::dataplane::TracedPacket;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
/// opt_comment.
const COMMENT: u16 = 1;

/// What stands before the packets.
pub(crate) fn header(snap: u16) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(0x1a2b_3c4d_u32.to_le_bytes());
    section.extend([1, 0, 0, 0]);
    // The section's length is not known.
    section.extend(u64::MAX.to_le_bytes());
    let mut interface = Vec::new();
    interface.extend(ETHERNET.to_le_bytes());
    interface.extend([0, 0]);
    interface.extend(u32::from(snap).to_le_bytes());
    let mut bytes = block(SECTION, &section);
    bytes.extend(block(INTERFACE, &interface));
    bytes
}

/// A packet, with what became of it as a comment. Times are in microseconds, which is the default.
pub(crate) fn packet(packet: &TracedPacket) -> Vec<u8> {
    let frame = bytes_of(packet.frame.as_deref().unwrap_or_default());
    let length = u32::try_from(packet.length).unwrap_or(u32::MAX);
    let at_us = microseconds(&packet.time);
    let mut body = Vec::new();
    // The only interface.
    body.extend(0_u32.to_le_bytes());
    body.extend(((at_us >> 32) as u32).to_le_bytes());
    body.extend((at_us as u32).to_le_bytes());
    body.extend((frame.len() as u32).to_le_bytes());
    body.extend(length.max(frame.len() as u32).to_le_bytes());
    body.extend(padded(&frame));
    body.extend(option(COMMENT, &comment(packet)));
    // opt_endofopt
    body.extend([0; 4]);
    block(PACKET, &body)
}

fn comment(packet: &TracedPacket) -> String {
    let mut text = match &packet.reason {
        Some(reason) => format!("{}: {reason}", packet.verdict),
        None => packet.verdict.clone(),
    };
    for (name, value) in [
        ("port", &packet.port),
        ("group", &packet.source_group),
        ("rule", &packet.rule),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {value}"));
        }
    }
    text
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &length, body, &length].concat()
}

fn option(code: u16, text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(0);
    let text = &text.as_bytes()[..usize::from(length)];
    [
        &code.to_le_bytes()[..],
        &length.to_le_bytes(),
        &padded(text),
    ]
    .concat()
}

/// Filled up to a multiple of four.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Hexadecimal digits as bytes, as far as they are some.
fn bytes_of(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks_exact(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map_while(byte).collect()
}

/// Microseconds since 1970 of an RFC 3339 time; 0 if it is none.
fn microseconds(time: &str) -> u64 {
    let parsed = time::OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339);
    let us = parsed.map_or(0, |time| time.unix_timestamp_nanos() / 1_000);
    u64::try_from(us).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_aligned() {
        let traced = TracedPacket {
            time: "1970-01-01T00:00:01.000002Z".into(),
            length: 60,
            verdict: "drop".into(),
            reason: Some("martian".into()),
            frame: Some("0102030405".into()),
            ..TracedPacket::default()
        };
        let mut bytes = header(256);
        bytes.extend(packet(&traced));
        let mut rest = &bytes[..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four"));
            let (kind, length) = (word(0), word(4) as usize);
            assert_eq!((length % 4, word(length - 4) as usize), (0, length));
            kinds.push(kind);
            if kind == PACKET {
                assert_eq!(
                    [word(12), word(16), word(20), word(24)],
                    [0, 1_000_002, 5, 60]
                );
                assert_eq!(&rest[28..36], [1, 2, 3, 4, 5, 0, 0, 0]);
                assert_eq!(&rest[40..53], b"drop: martian");
            }
            rest = &rest[length..];
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET]);
    }
}
