// Right checksums for what targets feed to a worker, which would look no further without them.

/// Makes the checksums of an IP packet right, as far as it has the headers for that: that of IPv4, and unless it is a
/// fragment that of TCP, UDP, ICMP or ICMPv6.
#[allow(dead_code, reason = "one target sums by itself")]
fn right_checksums(packet: &mut [u8]) {
    let field =
        |packet: &[u8], at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (proto, l4, end, addresses) = match packet.first().map_or(0, |first| first >> 4) {
        4 if packet.len() >= 20 => {
            let (l4, end) = (usize::from(packet[0] & 0xf) * 4, field(packet, 2));
            if l4 < 20 || packet.len() < l4 {
                return;
            }
            packet[10..12].fill(0);
            let sum = !ones(&[&packet[..l4]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            let is_fragment = field(packet, 6) & 0x3fff != 0;
            if is_fragment || end < l4 || packet.len() < end {
                return;
            }
            (packet[9], l4, end, 12..20)
        }
        6 if packet.len() >= 40 => {
            let (mut proto, mut l4, end) = (packet[6], 40, 40 + field(packet, 4));
            // Hop-by-hop and destination options, routing.
            while matches!(proto, 0 | 43 | 60) && l4 + 2 <= packet.len() {
                proto = packet[l4];
                l4 += 8 + usize::from(packet[l4 + 1]) * 8;
            }
            if end < l4 || packet.len() < end {
                return;
            }
            (proto, l4, end, 8..40)
        }
        _ => return,
    };
    let at = l4
        + match proto {
            6 => 16,
            17 => 6,
            1 | 58 => 2,
            _ => return,
        };
    if end < at + 2 {
        return;
    }
    packet[at..at + 2].fill(0);
    let len = (end - l4) as u16;
    let mut sum = match proto {
        1 => !ones(&[&packet[l4..end]]),
        _ => !ones(&[
            &packet[addresses],
            &[0, proto],
            &len.to_be_bytes(),
            &packet[l4..end],
        ]),
    };
    if (proto, sum) == (17, 0) {
        sum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The folded sum of the words of these parts, each of even length but the last.
fn ones(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
