//! What every backend must do, as a function over two ports that are joined by a wire.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::port::{Checksum, Gso, GsoKind, Idle, Link, Meta, Packet, Port};
use io::idle::PollIdle;

use super::frames::{Family, Shape, checksum_is_right, finish_checksum, make};

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest frame: an Ethernet header and the longest packet that IP can tell.
const LONGEST: usize = 14 + 65_535;
/// The same where a buffer's length, with what is kept free in front, has 16 bits.
const LONGEST_IN_ONE_BUFFER: usize = 65_400;

/// After this long without a frame nothing is under way any more.
const QUIET: Duration = Duration::from_millis(200);

/// What the environment can do to the wire.
#[derive(Default)]
pub(crate) struct Wire<'a> {
    /// Takes the link down and up again.
    pub(crate) set_link: Option<Box<dyn Fn(bool) + 'a>>,
    /// Removes the device.
    pub(crate) remove: Option<Box<dyn Fn() + 'a>>,
    /// It holds whatever is sent, as a file does.
    pub(crate) is_boundless: bool,
    /// Frames may be lost where nobody counts them, if they are not read in time.
    pub(crate) silent_loss: bool,
    /// The device at the first end cuts super-packets of IPv4 only, whatever it promises.
    pub(crate) cuts_ipv4_only: bool,
}

/// Runs the whole suite; `a` and `b` are the ends of a wire.
pub(crate) fn run<A: Port, B: Port>(a: &mut A, b: &mut B, wire: &Wire<'_>) {
    order_and_sizes(a, b);
    order_and_sizes(b, a);
    order_within_flows(a, b);
    order_within_flows(b, a);
    unsound_frames(a, b);
    unsound_frames(b, a);
    partial_checksums(a, b);
    partial_checksums(b, a);
    super_packets(a, b, wire.cuts_ipv4_only);
    super_packets(b, a, false);
    vlan(a, b);
    if !wire.is_boundless {
        back_pressure(a, b, wire.silent_loss);
        back_pressure(b, a, wire.silent_loss);
    }
    if let Some(set_link) = &wire.set_link {
        link_down_and_up(a, b, set_link);
    }
    if let Some(remove) = &wire.remove {
        removal(a, remove);
    }
}

/// A frame as it was received.
struct Arrived {
    bytes: Vec<u8>,
    meta: Meta,
}

fn put<P: Port>(port: &mut P, burst: &mut Vec<P::Packet>, bytes: &[u8], meta: Meta) {
    let mut packet = port.alloc(bytes.len()).expect("the pool has a buffer");
    packet.bytes_mut().copy_from_slice(bytes);
    *packet.meta_mut() = meta;
    burst.push(packet);
}

fn send<P: Port>(port: &mut P, bytes: &[u8], meta: Meta) -> usize {
    let mut burst = Vec::new();
    put(port, &mut burst, bytes, meta);
    let taken = port.tx_burst(&mut burst);
    assert!(burst.is_empty(), "the burst is emptied, taken or not");
    taken
}

/// Takes what is there now; frames that the suite did not make (the kernel's own) are left out.
fn take<P: Port>(port: &mut P, into: &mut VecDeque<Arrived>) -> usize {
    let mut burst = Vec::new();
    let count = port.rx_burst(&mut burst, 48);
    assert_eq!(count, burst.len(), "the count is what was appended");
    assert!(count <= 48, "no more than was asked for");
    for packet in &burst {
        if super::frames::is_ours(packet.bytes()) {
            into.push_back(Arrived {
                bytes: packet.bytes().to_vec(),
                meta: *packet.meta(),
            });
        }
    }
    count
}

/// Waits until `done` holds of what has arrived.
fn receive_until<P: Port>(
    port: &mut P,
    what: &str,
    done: impl Fn(&P, &VecDeque<Arrived>) -> bool,
) -> VecDeque<Arrived> {
    let mut idle = PollIdle::new().expect("eventfd");
    let deadline = Instant::now() + PATIENCE;
    let mut arrived = VecDeque::new();
    loop {
        if take(port, &mut arrived) == 0 {
            if done(port, &arrived) {
                return arrived;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {} frames arrived, {:?}",
                arrived.len(),
                port.stats()
            );
            let fds: Vec<i32> = port.wait_fd().into_iter().collect();
            idle.wait(&fds, Duration::from_millis(20));
        }
    }
}

fn receive<P: Port>(port: &mut P, count: usize, what: &str) -> VecDeque<Arrived> {
    let arrived = receive_until(port, what, |_, arrived| arrived.len() >= count);
    assert_eq!(arrived.len(), count, "{what}: no frame twice");
    arrived
}

fn order_and_sizes<A: Port, B: Port>(a: &mut A, b: &mut B) {
    let longest = usize::from(a.capabilities().mtu.min(b.capabilities().mtu)) + 14;
    let (a_before, b_before) = (a.stats(), b.stats());
    let mut sent = Vec::new();
    for family in [Family::V4, Family::V6] {
        // All that fit an ordinary Ethernet frame, and beyond it one of each residue and more.
        let mut sizes: Vec<usize> = (60..longest.min(1514))
            .chain((1514..longest).step_by(97))
            .chain([longest - 1, longest])
            .collect();
        // Small after large: a buffer's old content must not show.
        sizes.extend([longest, 60, 61, 62, longest]);
        sizes.retain(|size| *size >= Shape::udp(family).smallest());
        for (i, size) in sizes.into_iter().enumerate() {
            let frame = make(Shape::udp(family), size, i as u32, a.capabilities().layer3);
            sent.push(frame);
        }
    }
    for chunk in sent.chunks(40) {
        let mut burst = Vec::new();
        for frame in chunk {
            put(a, &mut burst, frame, Meta::default());
        }
        assert_eq!(a.tx_burst(&mut burst), chunk.len(), "{:?}", a.stats());
        let arrived = receive(b, chunk.len(), "order and sizes");
        for (frame, arrived) in chunk.iter().zip(arrived) {
            assert_eq!(frame[12..], arrived.bytes[12..], "{} bytes", frame.len());
            assert_eq!(arrived.meta.gso, None);
            assert_eq!(arrived.meta.vlan, None);
        }
    }
    let bytes: usize = sent.iter().map(Vec::len).sum();
    let (sent_stats, received_stats) = (a.stats(), b.stats());
    assert_eq!(sent_stats.tx_frames - a_before.tx_frames, sent.len() as u64);
    assert_eq!(sent_stats.tx_bytes - a_before.tx_bytes, bytes as u64);
    assert_eq!(sent_stats.tx_dropped, a_before.tx_dropped);
    assert!(received_stats.rx_frames - b_before.rx_frames >= sent.len() as u64);
    assert!(received_stats.rx_bytes - b_before.rx_bytes >= bytes as u64);
    assert_eq!(received_stats.rx_errors, b_before.rx_errors);
}

/// Flows of both families and protocols, mixed in bursts: each arrives whole and in its order.
fn order_within_flows<A: Port, B: Port>(a: &mut A, b: &mut B) {
    const ROUNDS: u32 = 40;
    let shapes: Vec<Shape> = Shape::all().collect();
    let mut next = vec![0; shapes.len()];
    let mut sequence = 0;
    while sequence < ROUNDS {
        let mut burst = Vec::new();
        for _ in 0..10 {
            for (i, shape) in shapes.iter().enumerate() {
                let len = 80 + (sequence as usize * 131 + i * 401) % 1300;
                let frame = make(*shape, len, sequence, a.capabilities().layer3);
                put(a, &mut burst, &frame, Meta::default());
            }
            sequence += 1;
        }
        let sent = burst.len();
        assert_eq!(a.tx_burst(&mut burst), sent);
        for arrived in receive(b, sent, "flows") {
            let is_its = |shape: &Shape| shape.is_of(&arrived.bytes);
            let flow = shapes.iter().position(is_its).expect("one of ours");
            let at = shapes[flow].header_len();
            let told = u32::from_be_bytes(arrived.bytes[at..at + 4].try_into().expect("four"));
            assert_eq!(told, next[flow], "{:?} is in order", shapes[flow]);
            next[flow] += 1;
        }
    }
    assert!(next.iter().all(|count| *count == ROUNDS));
}

/// What no wire can carry is refused and counted, and the frames around it pass.
fn unsound_frames<A: Port, B: Port>(a: &mut A, b: &mut B) {
    let layer3 = a.capabilities().layer3;
    let good = make(Shape::udp(Family::V4), 100, 7, layer3);
    let before = a.stats();
    let mut burst = Vec::new();
    put(a, &mut burst, &good, Meta::default());
    put(a, &mut burst, &[0; 13], Meta::default());
    put(a, &mut burst, &good, Meta::default());
    let taken = a.tx_burst(&mut burst);
    assert_eq!(taken, 2, "a frame without an Ethernet header is not taken");
    let after = a.stats();
    assert_eq!(after.tx_frames - before.tx_frames, 2);
    assert_eq!(after.tx_errors - before.tx_errors, 1);
    assert_eq!(receive(b, 2, "around a bad frame").len(), 2);
    assert!(
        a.alloc(1 << 20).is_none(),
        "no buffer is as long as a megabyte"
    );
}

fn partial_checksums<A: Port, B: Port>(a: &mut A, b: &mut B) {
    if !a.capabilities().tx_checksum {
        return;
    }
    for shape in Shape::all() {
        for size in [shape.smallest().max(60), 61, 333, 1000] {
            let size = size.max(shape.smallest());
            let mut frame = make(shape, size, 0, a.capabilities().layer3);
            assert!(checksum_is_right(&frame, shape), "the maker is right");
            let whole = frame.clone();
            let checksum = shape.make_partial(&mut frame);
            assert_eq!(send(a, &frame, meta(checksum, None)), 1);
            let mut arrived = receive(b, 1, "partial checksum")
                .pop_front()
                .expect("one arrived");
            // It may arrive as it was sent, or finished on the way.
            finish_checksum(&mut arrived.bytes, arrived.meta.checksum);
            assert_eq!(arrived.bytes[12..], whole[12..], "{shape:?}, {size} bytes");
        }
    }
}

fn super_packets<A: Port, B: Port>(a: &mut A, b: &mut B, ipv4_only: bool) {
    for shape in Shape::all() {
        let supported = if shape.tcp {
            a.capabilities().tx_gso_tcp
        } else {
            a.capabilities().tx_gso_udp
        };
        if !supported || (ipv4_only && shape.family == Family::V6) {
            continue;
        }
        let header_len = shape.header_len();
        let size = 1400;
        // The longest that IP can tell, one cut of two, and a last segment of a single byte. A
        // UDP super-packet is limited to 128 segments in all kernels.
        let longest = if a.alloc(LONGEST).is_some() {
            LONGEST
        } else {
            LONGEST_IN_ONE_BUFFER
        } - header_len;
        let lengths = [
            longest.min(size * if shape.tcp { 64 } else { 40 }),
            longest.min(size * 46 + 777),
            size * 2,
            size * 5 + 1,
        ];
        for length in lengths {
            let mut frame = make(shape, header_len + length, 0, a.capabilities().layer3);
            let checksum = shape.make_partial(&mut frame);
            let gso = Gso {
                kind: match (shape.tcp, shape.family) {
                    (true, Family::V4) => GsoKind::Tcp4,
                    (true, Family::V6) => GsoKind::Tcp6,
                    (false, _) => GsoKind::Udp,
                },
                size: size as u16,
                header_len: header_len as u16,
                ecn: false,
            };
            let taken = send(a, &frame, meta(checksum, Some(gso)));
            let error = std::io::Error::last_os_error();
            assert_eq!(taken, 1, "{shape:?} {length}: {error}");
            let payload = |arrived: &VecDeque<Arrived>| -> usize {
                arrived.iter().map(|f| f.bytes.len() - header_len).sum()
            };
            let what = format!("super-packet {shape:?} of {length}");
            let arrived = receive_until(b, &what, |_, arrived| payload(arrived) >= length);
            let mut at = header_len;
            for mut part in arrived {
                // Whole, or cut into the segments that were asked for.
                match part.meta.gso {
                    Some(told) => assert_eq!(told, gso, "{what}"),
                    None => {
                        assert!(part.bytes.len() - header_len <= size, "{what}");
                        finish_checksum(&mut part.bytes, part.meta.checksum);
                        assert!(checksum_is_right(&part.bytes, shape), "{what}");
                    }
                }
                let body = &part.bytes[header_len..];
                assert!(
                    body == &frame[at..at + body.len()],
                    "{what}: the payload differs"
                );
                at += body.len();
            }
            assert_eq!(at, frame.len(), "{what}");
        }
    }
}

fn vlan<A: Port, B: Port>(a: &mut A, b: &mut B) {
    if a.capabilities().layer3 || b.capabilities().layer3 {
        return;
    }
    for shape in Shape::all() {
        // Priority 1, identifier 100.
        for tci in [0x2064, 0x0001] {
            let mut frame = make(shape, 200, 0, false);
            let whole = frame.clone();
            let checksum = if a.capabilities().tx_checksum {
                shape.make_partial(&mut frame)
            } else {
                Checksum::Unknown
            };
            let tagged = Meta {
                vlan: Some(tci),
                ..meta(checksum, None)
            };
            assert_eq!(send(a, &frame, tagged), 1);
            let mut arrived = receive(b, 1, "VLAN").pop_front().expect("one arrived");
            assert_eq!(arrived.meta.vlan, Some(tci));
            finish_checksum(&mut arrived.bytes, arrived.meta.checksum);
            assert!(
                arrived.bytes == whole,
                "{shape:?}: the tag is not in the frame"
            );
        }
    }
}

/// What is offered is taken or counted, and never waited for; what was taken arrives, or is
/// counted at the other end.
fn back_pressure<A: Port, B: Port>(a: &mut A, b: &mut B, silent_loss: bool) {
    const OFFERED: u64 = 60_000;
    let (a_before, b_before) = (a.stats(), b.stats());
    let frame = make(Shape::udp(Family::V4), 1000, 0, a.capabilities().layer3);
    let mut burst = Vec::new();
    let mut taken = 0;
    for _ in 0..OFFERED / 50 {
        for _ in 0..50 {
            put(a, &mut burst, &frame, Meta::default());
        }
        taken += a.tx_burst(&mut burst) as u64;
    }
    let sent = a.stats();
    let refused = (sent.tx_dropped - a_before.tx_dropped) + (sent.tx_errors - a_before.tx_errors);
    assert_eq!(taken, sent.tx_frames - a_before.tx_frames);
    assert_eq!(taken + refused, OFFERED, "each frame is taken or counted");

    let mut arrived = 0;
    let mut idle = PollIdle::new().expect("eventfd");
    let deadline = Instant::now() + PATIENCE;
    let mut quiet_since = Instant::now();
    loop {
        let mut frames = VecDeque::new();
        let count = take(b, &mut frames);
        arrived += frames.len() as u64;
        let lost = b.stats().rx_dropped - b_before.rx_dropped;
        if count > 0 {
            quiet_since = Instant::now();
        }
        let quiet = silent_loss && quiet_since.elapsed() > QUIET;
        if count == 0 && (arrived + lost >= taken || quiet) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "taken {taken}, arrived {arrived}, lost {lost}"
        );
        if count == 0 {
            idle.wait(&[], Duration::from_millis(1));
        }
    }
    let lost = b.stats().rx_dropped - b_before.rx_dropped;
    assert!(
        refused + lost > 0 || silent_loss,
        "{OFFERED} frames that nobody reads fill any ring"
    );
    assert!(arrived > 0, "what fits still arrives");
    // And it works again.
    order_and_sizes(a, b);
}

fn link_down_and_up<A: Port, B: Port>(a: &mut A, b: &mut B, set_link: &dyn Fn(bool)) {
    assert_eq!(a.link(), Link::Up);
    set_link(false);
    assert_eq!(a.link(), Link::Down);
    let frame = make(Shape::udp(Family::V4), 100, 0, a.capabilities().layer3);
    let before = a.stats();
    assert_eq!(send(a, &frame, Meta::default()), 0);
    let after = a.stats();
    let counted = (after.tx_dropped - before.tx_dropped) + (after.tx_errors - before.tx_errors);
    assert_eq!(counted, 1, "a frame for a dead wire is counted");
    // What the kernel had queued by itself while the link was up may still come, a bounded number of frames.
    let mut burst = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while a.rx_burst(&mut burst, 8) > 0 {
        assert!(Instant::now() < deadline, "a dead wire has no end");
        burst.clear();
    }
    for _ in 0..3 {
        assert_eq!(a.rx_burst(&mut burst, 8), 0);
    }
    set_link(true);
    wait_for(a, |a| a.link() == Link::Up);
    wait_for(b, |b| b.link() == Link::Up);
    order_and_sizes(a, b);
    order_and_sizes(b, a);
}

fn wait_for<P: Port>(port: &P, done: impl Fn(&P) -> bool) {
    let mut idle = PollIdle::new().expect("eventfd");
    let deadline = Instant::now() + PATIENCE;
    while !done(port) {
        assert!(Instant::now() < deadline, "the link is {:?}", port.link());
        idle.wait(&[], Duration::from_millis(1));
    }
}

fn removal<A: Port>(a: &mut A, remove: &dyn Fn()) {
    remove();
    assert_eq!(a.link(), Link::Gone);
    let before = a.stats();
    let frame = make(Shape::udp(Family::V4), 100, 0, a.capabilities().layer3);
    for _ in 0..3 {
        assert_eq!(a.rx_burst(&mut Vec::new(), 8), 0);
        assert_eq!(send(a, &frame, Meta::default()), 0);
    }
    let after = a.stats();
    let counted = (after.tx_dropped - before.tx_dropped) + (after.tx_errors - before.tx_errors);
    assert_eq!(counted, 3, "frames for a device that is gone are counted");
}

fn meta(checksum: Checksum, gso: Option<Gso>) -> Meta {
    Meta {
        checksum,
        gso,
        ..Meta::default()
    }
}
