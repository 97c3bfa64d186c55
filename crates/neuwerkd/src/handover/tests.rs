//! The state as a descriptor: what is accepted, and what only costs the state.

use engine::acquire::{Advertised, Heard, Learned, Lease, Standing};
use engine::port::PortId;

use super::*;

fn left() -> Leaving {
    Leaving::begin(7).expect("there is memory")
}

fn received(fd: OwnedFd) -> anyhow::Result<State> {
    State::open(fd)
}

fn names(state: &State) -> Vec<String> {
    let mut names = Vec::new();
    let read = state.sections(|section| {
        if let Section::Sound { name, version, .. } = section {
            names.push(format!("{name} {version}"));
        }
    });
    read.expect("a memory file can be read");
    names
}

#[test]
fn a_sealed_state_is_read_again_and_again() {
    let mut leaving = left();
    let written = leaving.writer.section("later", 9, b"x");
    written.expect("there is memory");
    let before = leaving.now;
    let state = received(leaving.seal().expect("seals")).expect("it is sound");
    assert_eq!(state.written, before);
    for _ in 0..2 {
        assert_eq!(names(&state), ["origin 1", "seed 1", "later 9"]);
    }
    assert_eq!(state.seed(), Some(7));
    let text = std::io::Write::write(&mut &state.file, b"y");
    assert!(text.is_err(), "nobody can change it");
}

#[test]
fn addresses_are_read_as_they_were_written_and_damaged_ones_are_counted() {
    let received = |payload: &[u8]| {
        let mut leaving = left();
        let written = leaving
            .writer
            .section(ADDRESSES, ADDRESSES_VERSION, payload);
        written.expect("there is memory");
        let state = State::open(leaving.seal().expect("seals")).expect("it is sound");
        Received {
            state: Some(state),
            ..Received::nothing()
        }
    };
    let lease = Lease {
        address: [192, 0, 2, 9].into(),
        prefix_len: 24,
        server: [192, 0, 2, 1].into(),
        gateway: None,
        routes: Vec::new(),
        dns: Vec::new(),
        mtu: Some(1400),
        renew_at: Now(5),
        rebind_at: Now(6),
        expires: Now(u64::MAX),
    };
    let held = vec![Held {
        interface: "eth1".into(),
        mac: [2; 6],
        learned: Learned {
            port: PortId(1),
            lease: Some(lease),
            standing: Standing::Holding,
            advertised: Advertised::default(),
            duplicates: 1,
        },
        heard: Heard::default(),
    }];
    let sound = received(&serde_json::to_vec(&held).expect("plain data"));
    assert_eq!(sound.addresses(), held);
    assert_eq!(sound.report(), Report::default());
    let damaged = received(b"[{}]");
    assert_eq!(damaged.addresses(), []);
    assert_eq!(damaged.report().damaged, 1);
    assert_eq!(Received::nothing().addresses(), []);
}

#[test]
fn what_could_still_be_changed_or_comes_from_elsewhere_is_refused() {
    let check = |fd: OwnedFd, why: &str| {
        let error = received(fd).err().expect("it is refused");
        assert!(format!("{error:#}").contains(why), "{error:#}");
    };
    check(left().writer.into_inner().into(), "not sealed");
    let file = tempfile::tempfile().expect("there is a disk");
    check(file.into(), "sealed memory file");

    let without_origin = |payload: Option<&[u8]>| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("test", flags).expect("there is memory"));
        let mut writer = Writer::new(file).expect("there is memory");
        if let Some(payload) = payload {
            let written = writer.section(ORIGIN, ORIGIN_VERSION, payload);
            written.expect("there is memory");
        }
        let now = monotonic();
        Leaving { writer, now }.seal().expect("seals")
    };
    check(without_origin(None), "when it was written");
    check(without_origin(Some(b"short")), "when it was written");
    let other_boot = [&[0; 8][..], &[b'0'; 36], b"0.1.0"].concat();
    check(without_origin(Some(&other_boot)), "before this machine");
}

#[tokio::test]
async fn a_socket_is_kept_while_it_listens_and_handed_over_after() {
    let sockets = Sockets::default();
    let any = "127.0.0.1:0".parse().expect("a constant");
    let (first, listening) = sockets.listen("http", any).await.expect("binds");
    let address = first.local_addr().expect("is bound");
    // The next life takes it over although the last has not let go yet.
    let (second, next) = sockets.listen("http", address).await.expect("is there");
    drop((first, listening));
    assert_eq!(sockets.count(), 1);
    drop((second, next));
    assert_eq!(sockets.count(), 0, "nobody listens");

    let (third, listening) = sockets.listen("http", address).await.expect("binds");
    sockets.keep();
    drop((third, listening));
    let left = sockets.leave();
    std::net::TcpStream::connect(address).expect("it waits for whoever comes next");

    let sockets = Sockets::new(left);
    let (fourth, _listening) = sockets.listen("http", address).await.expect("is there");
    fourth.accept().await.expect("it has waited");
    sockets.close_unclaimed(&["http"]);
    assert_eq!(sockets.count(), 1, "somebody accepts on it");
}

#[test]
fn a_socket_that_is_not_the_same_is_closed_before_another_is_opened() {
    let sockets = Sockets::default();
    let bind = || std::net::UdpSocket::bind("127.0.0.1:0");
    let (first, _listening) = sockets.open("dns", |_| true, bind).expect("binds");
    let address = first.local_addr().expect("is bound");
    let (again, _listening) = sockets.open("dns", |_| true, bind).expect("is there");
    assert_eq!(again.local_addr().expect("is bound"), address);
    drop((first, again));
    let same_port = || std::net::UdpSocket::bind(address);
    let (new, _listening) = sockets.open("dns", |_| false, same_port).expect("binds");
    assert_eq!(new.local_addr().expect("is bound"), address);
}
