//! The stations around a node in tests: they answer ARP and neighbour discovery, all as one.

use crate::engine::PEER;
use crate::frame::Frame;

/// The answer of a neighbour if the frame asks for one; `Some(None)` if it needs none.
pub fn answer(frame: &[u8]) -> Option<Option<Vec<u8>>> {
    if frame[12..14] == [8, 6] {
        if frame[21] == 2 || frame[28..32] == frame[38..42] {
            return Some(None);
        }
        let answer = [
            &frame[6..12],
            &PEER,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &PEER,
            &frame[38..42],
            &frame[22..32],
        ];
        return Some(Some(answer.concat()));
    }
    // What the node listens to, behind a router alert.
    if frame[12..14] == [0x86, 0xdd] && frame[20] == 0 && matches!(frame.get(62), Some(131 | 143)) {
        return Some(None);
    }
    match frame.get(54) {
        Some(135) if frame[20] == 58 => {
            let part = |at: usize| -> [u8; 16] { frame[at..at + 16].try_into().expect("sixteen") };
            let payload = [&part(62)[..], &[2, 1], &PEER].concat();
            let answer = Frame::icmp(
                part(62).into(),
                part(22).into(),
                136,
                0,
                0x6000_0000,
                &payload,
            )
            .with_ttl(255);
            let asker = frame[6..12].try_into().expect("six");
            Some(Some(answer.between(PEER, asker).emit()))
        }
        Some(136) if frame[20] == 58 => Some(None),
        _ => None,
    }
}
