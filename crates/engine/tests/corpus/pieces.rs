// What must hold of datagrams in pieces, whatever the pieces. Shared by the fuzz target `fragments` and the replay of its
// corpus.

mod pieces {
    use std::time::Duration;

    use super::node::{Node, Tunnel};

    /// Most steps of an input.
    const STEPS: usize = 64;
    /// Most bytes of a datagram behind its IP header.
    const LONGEST: usize = 8192;
    /// Bytes of a piece that fit into a frame in any tunnel.
    const PIECE: usize = 1240;

    /// A datagram, right in every checksum, that comes in pieces.
    struct Datagram {
        is_v6: bool,
        proto: u8,
        /// The IP packet as it is in one piece.
        whole: Vec<u8>,
    }

    impl Datagram {
        fn new(is_v6: bool, kind: u8, len: usize) -> Datagram {
            let echo = if is_v6 { (58, 128) } else { (1, 8) };
            let proto = [17, 6, echo.0, 47][usize::from(kind)];
            let len = len.max(28);
            let mut body: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            match proto {
                17 => {
                    body[..4].copy_from_slice(&[0x13, 0x88, 0, 53]);
                    body[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                }
                6 => body[..20].copy_from_slice(&[
                    0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0,
                ]),
                47 => {}
                _ => body[..8].copy_from_slice(&[echo.1, 0, 0, 0, 0, 7, 0, 1]),
            }
            let mut whole = if is_v6 {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((len as u16).to_be_bytes());
                header.extend([proto, 64]);
                for first in [[0xfd, 0, 0, 0], [0x20, 1, 0xd, 0xb8]] {
                    header.extend(first);
                    header.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
                }
                header
            } else {
                let mut header = vec![0x45, 0];
                header.extend(((20 + len) as u16).to_be_bytes());
                header.extend([0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 2, 198, 51, 100, 1]);
                header
            };
            whole.extend(body);
            super::right_checksums(&mut whole);
            Datagram {
                is_v6,
                proto,
                whole,
            }
        }

        fn body(&self) -> &[u8] {
            &self.whole[if self.is_v6 { 40 } else { 20 }..]
        }

        /// A packet that says that `data` is its body from `offset` on.
        fn piece(&self, id: u8, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
            let word = match self.is_v6 {
                true => offset as u16 | u16::from(more),
                false => (offset / 8) as u16 | u16::from(more) << 13,
            };
            let mut packet;
            if self.is_v6 {
                packet = self.whole[..40].to_vec();
                packet[4..6].copy_from_slice(&((8 + data.len()) as u16).to_be_bytes());
                packet[6] = 44;
                packet.extend([self.proto, 0]);
                packet.extend(word.to_be_bytes());
                packet.extend([0, 0, 0, id]);
            } else {
                packet = self.whole[..20].to_vec();
                packet[2..4].copy_from_slice(&((20 + data.len()) as u16).to_be_bytes());
                packet[5] = id;
                packet[6..8].copy_from_slice(&word.to_be_bytes());
            }
            packet.extend(data);
            super::right_checksums(&mut packet);
            packet
        }

        /// The piece that has the bytes from `start` to `end`.
        fn cut(&self, id: u8, start: usize, end: usize) -> Vec<u8> {
            let body = self.body();
            self.piece(id, start, end < body.len(), &body[start..end])
        }
    }

    /// Sends a datagram in the pieces that the input says. Each gets exactly one verdict; what leaves is the datagram,
    /// right in every checksum, if all pieces were cut from it; and another one passes when all that was kept has expired.
    ///
    /// The input begins with what the datagram is (family, protocol, tunnel) and two bytes of its length. Then come steps of six bytes:
    /// which, identification, offset in units of eight bytes, length.
    pub(super) fn sound(input: &[u8]) {
        let Some((head, steps)) = input.split_first_chunk::<3>() else {
            return;
        };
        let tunnel = match head[0] >> 3 & 3 {
            1 => Tunnel::Vxlan,
            2 => Tunnel::Geneve,
            _ => Tunnel::None,
        };
        let len = usize::from(u16::from_be_bytes([head[1], head[2]])) % LONGEST;
        let datagram = Datagram::new(head[0] & 1 == 1, head[0] >> 1 & 3, len);
        let mut node = Node::new(tunnel);
        let mut all_cut = true;
        for step in steps.as_chunks::<6>().0.iter().take(STEPS) {
            let id = step[1] & 3;
            let [offset, len] =
                [2, 4].map(|i| usize::from(u16::from_be_bytes([step[i], step[i + 1]])));
            let total = datagram.body().len();
            let start = offset % total.div_ceil(8) * 8;
            let size = (len % PIECE).max(8).next_multiple_of(8);
            let end = total.min(start + size);
            let mut own = datagram.body()[start..end].to_vec();
            match step[0] & 7 {
                0..=2 => node.put_packet(&datagram.cut(id, start, end)),
                3 => {
                    let size = size.max(64);
                    for start in (start..total).step_by(size) {
                        let end = total.min(start + size);
                        node.put_packet(&datagram.cut(id, start, end));
                    }
                }
                4 => {
                    let at = len % own.len();
                    own[at] ^= 1;
                    node.put_packet(&datagram.piece(id, start, end < total, &own));
                    all_cut = false;
                }
                5 => {
                    own.truncate(len % PIECE);
                    node.put_packet(&datagram.piece(id, start, end == total, &own));
                    all_cut = false;
                }
                6 => {
                    let data = vec![step[1]; len % PIECE];
                    let offset = (offset & 0x1fff) * 8;
                    node.put_packet(&datagram.piece(id, offset, step[0] & 8 == 0, &data));
                    all_cut = false;
                }
                _ => node.pass(Duration::from_millis(u64::from(step[1]) * 100)),
            }
            let left = node.turn_among_neighbours();
            if all_cut && tunnel == Tunnel::None {
                check(&datagram, &left);
            }
        }
        node.end();

        let fresh = Datagram::new(datagram.is_v6, 0, 2000);
        for (start, end) in [(1000, 2000), (0, 1000)] {
            node.put_packet(&fresh.cut(9, start, end));
        }
        let left = node.turn_among_neighbours();
        if tunnel == Tunnel::None {
            check(&fresh, &left);
            let passed = left.iter().filter(|(_, frame)| frame[0] & 1 == 0);
            assert_eq!(passed.count(), 2, "the next datagram passes");
        }
        node.end();
    }

    /// What leaves to the outside is whole datagrams of the same body but for what is translated, in pieces.
    fn check(datagram: &Datagram, left: &[(usize, Vec<u8>)]) {
        // What the node tells the link about itself goes to groups.
        let packets = left.iter().filter(|(port, frame)| *port == 1 && frame[0] & 1 == 0);
        let (mut whole, mut covered) = (datagram.whole.clone(), 0);
        let header = whole.len() - datagram.body().len();
        for (_, frame) in packets {
            let packet = &frame[14..];
            let (start, data) = if datagram.is_v6 {
                whole[..40].copy_from_slice(&packet[..40]);
                match packet[6] {
                    44 => {
                        let word = u16::from_be_bytes([packet[42], packet[43]]);
                        (usize::from(word & !7), &packet[48..])
                    }
                    _ => (0, &packet[40..]),
                }
            } else {
                let mut sealed = packet.to_vec();
                super::right_checksums(&mut sealed[..20]);
                assert_eq!(sealed[..20], packet[..20], "the header's checksum");
                whole[..20].copy_from_slice(&packet[..20]);
                let word = u16::from_be_bytes([packet[6], packet[7]]);
                (usize::from(word & 0x1fff) * 8, &packet[20..])
            };
            whole[header + start..][..data.len()].copy_from_slice(data);
            covered += data.len();
        }
        assert!(
            covered.is_multiple_of(datagram.body().len()),
            "whole datagrams"
        );
        if covered == 0 {
            return;
        }
        let len = (whole.len() - if datagram.is_v6 { 40 } else { 0 }) as u16;
        if datagram.is_v6 {
            whole[4..6].copy_from_slice(&len.to_be_bytes());
            whole[6] = datagram.proto;
        } else {
            whole[2..4].copy_from_slice(&len.to_be_bytes());
            whole[6..8].fill(0);
        }
        let left = whole.clone();
        super::right_checksums(&mut whole);
        assert_eq!(
            left[header..],
            whole[header..],
            "the checksum over the whole"
        );
        // Ports, identifiers and checksums stand in the first 24 bytes; the rest is as it came.
        assert_eq!(whole[header + 24..], datagram.body()[24..]);
    }
}
