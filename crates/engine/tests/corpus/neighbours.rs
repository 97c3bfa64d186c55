// What must hold of a neighbourhood, whatever it says. Shared by the fuzz target `neighbours` and the replay of its corpus.

mod neighbours {
    use std::time::Duration;

    use super::node::{Node, PEER, Tunnel};

    /// Most steps of an input.
    const STEPS: usize = 64;

    /// Sends what the input says: messages of ARP and of neighbour discovery with right lengths and checksums, packets that
    /// need a neighbour, and time in between. Each frame gets exactly one verdict, and afterwards a client
    /// still reaches a server.
    ///
    /// A step begins with three bytes: which, between whom, and how many bytes of the message follow.
    pub(super) fn sound(mut input: &[u8]) {
        let mut node = Node::new(Tunnel::None);
        for _ in 0..STEPS {
            let Some(([which, ends, len], rest)) = input.split_first_chunk::<3>() else {
                break;
            };
            let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
            input = rest;
            let port = usize::from(ends >> 4 & 1);
            match which & 7 {
                // Router solicitation 133 up to redirect 137, and what is next to them.
                0..=2 => node.put_frame(port, discovery(132 + (which >> 3 & 7), *ends, bytes)),
                3 => node.put_frame(port, arp(*ends, bytes)),
                4 => node.put_packet(&datagram(ends & 1 == 1, *ends >> 1)),
                5 => node.answer(),
                6 => node.pass(Duration::from_millis(u64::from(*ends) * 50)),
                _ => node.pass(Duration::from_secs(u64::from(*ends))),
            }
            node.turn();
        }
        node.end();
        for is_v6 in [false, true] {
            node.put_packet(&datagram(is_v6, 150));
            let left = node.turn_among_neighbours();
            assert!(
                left.iter().any(|(port, _)| *port == 1),
                "a client reaches a server"
            );
        }
        node.end();
    }

    /// A datagram from inside to a server on the outside link.
    fn datagram(is_v6: bool, server: u8) -> Vec<u8> {
        let body = [0x13, 0x88, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
        let mut packet = if is_v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
            header.extend(address([0xfd, 0, 0, 0], 2));
            header.extend(address([0x20, 1, 0xd, 0xb8], server | 2));
            header
        } else {
            let header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
            [&header[..], &[10, 0, 0, 2, 192, 0, 2, server % 200 + 2]].concat()
        };
        packet.extend(body);
        super::right_checksums(&mut packet);
        packet
    }

    fn address(first: [u8; 4], last: u8) -> [u8; 16] {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&first);
        address[15] = last;
        address
    }

    /// A message of ICMPv6 of this type whose header's last word and body are `bytes`.
    fn discovery(icmp_type: u8, ends: u8, bytes: &[u8]) -> Vec<u8> {
        let link = match ends >> 4 & 1 {
            0 => [0xfd, 0, 0, 0],
            _ => [0x20, 1, 0xd, 0xb8],
        };
        let src = match ends & 3 {
            0 => address(link, 9),
            1 => address([0xfe, 0x80, 0, 0], 9),
            2 => [0; 16],
            _ => address(link, 1),
        };
        let dst = match ends >> 2 & 3 {
            0 => address(link, 1),
            1 => {
                let mut group = address([0xff, 2, 0, 0], 1);
                group[11..13].copy_from_slice(&[1, 0xff]);
                group
            }
            2 => address([0xff, 2, 0, 0], 1),
            _ => {
                let mut own = address([0xfe, 0x80, 0, 0], 1 + (ends >> 4 & 1));
                own[11..13].copy_from_slice(&[0xff, 0xfe]);
                own
            }
        };
        let station = match (dst[0], ends >> 4 & 1) {
            (0xff, _) => [0x33, 0x33, dst[12], dst[13], dst[14], dst[15]],
            (_, port) => [2, 0, 0, 0, 0, 1 + port],
        };
        let mut frame = [&station[..], &PEER, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
        frame.extend(((4 + bytes.len()) as u16).to_be_bytes());
        frame.extend([58, if ends & 0x20 == 0 { 255 } else { 64 }]);
        frame.extend(src);
        frame.extend(dst);
        frame.extend([icmp_type, 0, 0, 0]);
        frame.extend(bytes);
        super::right_checksums(&mut frame[14..]);
        frame
    }

    /// A message of ARP that begins with `bytes` instead of what would be right.
    fn arp(ends: u8, bytes: &[u8]) -> Vec<u8> {
        let port = ends >> 4 & 1;
        let [src, dst] = match port {
            0 => [[10, 0, 0, 9], [10, 0, 0, 1]],
            _ => [[192, 0, 2, 9], [192, 0, 2, 1]],
        };
        let mut message = [&[0, 1, 8, 0, 6, 4, 0, 1 + (ends & 1)][..], &PEER].concat();
        message.extend(src);
        message.extend([2, 0, 0, 0, 0, 1 + port]);
        message.extend(dst);
        let len = bytes.len().min(message.len());
        message[..len].copy_from_slice(&bytes[..len]);
        let station = match ends & 2 {
            0 => [0xff; 6],
            _ => [2, 0, 0, 0, 0, 1 + port],
        };
        [&station[..], &PEER, &[8, 6], &message].concat()
    }
}
