//! Steering in the kernel: a classic BPF program (bpf(2), filter(7)) that gives each queue of an interface the frames of
//! its worker, by the rule of `engine::steer`, so that workers need not hand them over to each other.
//!
//! It need not know everything: what it sends to the wrong queue is only slower. Protocols other than TCP and UDP,
//! fragments and IPv6 packets with extension headers go to the first queue.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use engine::steer::{FIRST_CLIENT_PORT, PortRule, Steering};

use crate::sys;

/// Offsets from here on count from the network header, wherever the program finds the frame.
const NET: u32 = libc::SKF_NET_OFF as u32;
const PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;

/// The queues of one interface that share its frames.
pub struct Fanout {
    /// Any socket of the group.
    pub(super) socket: OwnedFd,
}

impl Fanout {
    /// Steers by the rule of these workers, of which there are as many as queues.
    ///
    /// # Errors
    /// Those of the kernel. Frames then go on as before.
    pub fn steer(&self, steering: &Steering, ports: &Translated<'_>) -> io::Result<()> {
        let program = program(steering, ports);
        sys::set_program(
            &self.socket,
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            &program,
        )
    }
}

/// Whose ports tell the worker.
#[derive(Clone, Copy, Debug)]
pub struct Translated<'a> {
    /// Destinations: the addresses that sources are translated to.
    pub to: &'a [IpAddr],
    /// Sources of what comes in here: whether those of IPv4, and of IPv6, are translated if they go out.
    pub from: [bool; 2],
}

/// Jumps reach 255 instructions: more addresses than this are left to the workers.
const MAX_TRANSLATED: usize = 16;

fn program(steering: &Steering, ports: &Translated<'_>) -> Vec<libc::sock_filter> {
    let v4 = ipv4(steering, ports);
    let v6 = ipv6(steering, ports);
    let mut program = vec![
        load(libc::BPF_W, PROTOCOL),
        unless_equal(0x0800, reach(v4.len())),
    ];
    program.extend(v4);
    program.push(unless_equal(0x86dd, reach(v6.len())));
    program.extend(v6);
    program.push(ret(0));
    program
}

fn reach(instructions: usize) -> u8 {
    u8::try_from(instructions).expect("the longest has fewer than 255 instructions a family")
}

/// Ends in an answer whatever comes in.
fn ipv4(steering: &Steering, ports: &Translated<'_>) -> Vec<libc::sock_filter> {
    let keys = steering.hash_keys();
    let addresses = ports.to.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(u32::from(*address)),
        IpAddr::V6(_) => None,
    });
    let mut p = vec![
        // A fragment has no ports, or only the first has.
        load(libc::BPF_H, NET + 6),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0x3fff, 0, 1),
        ret(0),
        load(libc::BPF_B, NET + 9),
    ];
    p.extend(only_with_ports());
    // The length of the header, for loads relative to the register X, into memory word 0.
    p.extend([
        load(libc::BPF_B, NET),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xf, 0, 0),
        op(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 2, 0, 0),
        op(libc::BPF_ST, 0, 0, 0),
        op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        load(libc::BPF_W, NET + 16),
    ]);
    let mut by_port = Vec::new();
    for address in addresses.take(MAX_TRANSLATED) {
        p.extend([unless_equal(address, 2), load_after(NET + 2)]);
        by_port.push(p.len());
        p.push(jump());
    }
    if ports.from[0] {
        p.extend([load_after(NET), unless_a_clients(1)]);
        by_port.push(p.len());
        p.push(jump());
    }
    p.extend(sum_times(NET + 12, NET + 16, keys[3]));
    p.extend([
        op(libc::BPF_ST, 1, 0, 0),
        op(libc::BPF_LDX | libc::BPF_MEM, 0, 0, 0),
        load_after(NET),
        op(libc::BPF_ST, 2, 0, 0),
        load_after(NET + 2),
        op(libc::BPF_LDX | libc::BPF_MEM, 2, 0, 0),
    ]);
    p.extend(ports_and_answer(keys[4]));
    answer_by_port(&mut p, by_port, steering.port_rule());
    p
}

/// Ends in an answer whatever comes in.
fn ipv6(steering: &Steering, ports: &Translated<'_>) -> Vec<libc::sock_filter> {
    let keys = steering.hash_keys();
    let addresses = ports.to.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(u128::from(*address)),
        IpAddr::V4(_) => None,
    });
    let mut p = vec![load(libc::BPF_B, NET + 6)];
    p.extend(only_with_ports());
    let mut by_port = Vec::new();
    for address in addresses.take(MAX_TRANSLATED) {
        for word in 0..4 {
            // Over what is left of this address: two instructions a word, and the two of the answer.
            let rest = 2 * (3 - word as u8) + 2;
            p.extend([
                load(libc::BPF_W, NET + 24 + 4 * word),
                unless_equal((address >> (96 - 32 * word)) as u32, rest),
            ]);
        }
        p.push(load(libc::BPF_H, NET + 42));
        by_port.push(p.len());
        p.push(jump());
    }
    if ports.from[1] {
        p.extend([load(libc::BPF_H, NET + 40), unless_a_clients(1)]);
        by_port.push(p.len());
        p.push(jump());
    }
    for word in 0..4 {
        p.extend(sum_times(
            NET + 8 + 4 * word,
            NET + 24 + 4 * word,
            keys[word as usize],
        ));
        if word > 0 {
            p.extend([op(libc::BPF_LDX | libc::BPF_MEM, 1, 0, 0), add_x()]);
        }
        p.push(op(libc::BPF_ST, 1, 0, 0));
    }
    p.extend([
        load(libc::BPF_H, NET + 40),
        op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        load(libc::BPF_H, NET + 42),
    ]);
    p.extend(ports_and_answer(keys[4]));
    answer_by_port(&mut p, by_port, steering.port_rule());
    p
}

/// The answer by the port in A, and jumps to it from these places.
fn answer_by_port(p: &mut Vec<libc::sock_filter>, from: Vec<usize>, rule: PortRule) {
    let here = p.len();
    for at in from {
        p[at].k = (here - at - 1) as u32;
    }
    p.extend([
        op(
            libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K,
            rule.addend.into(),
            0,
            0,
        ),
        op(
            libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K,
            rule.factor.into(),
            0,
            0,
        ),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xffff, 0, 0),
        op(
            libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K,
            rule.count.into(),
            0,
            0,
        ),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16, 0, 0),
        ret_a(),
    ]);
}

/// With the protocol in A: anything but TCP and UDP is answered.
fn only_with_ports() -> [libc::sock_filter; 3] {
    [
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 6, 2, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 17, 1, 0),
        ret(0),
    ]
}

/// A := (word at `a` + word at `b`) · `key`.
fn sum_times(a: u32, b: u32, key: u32) -> [libc::sock_filter; 5] {
    [
        load(libc::BPF_W, a),
        op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        load(libc::BPF_W, b),
        add_x(),
        op(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, key, 0, 0),
    ]
}

/// With one port in A, the other in X and the sum over the addresses in memory word 1: the answer.
fn ports_and_answer(key: u32) -> [libc::sock_filter; 6] {
    [
        add_x(),
        op(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, key, 0, 0),
        op(libc::BPF_LDX | libc::BPF_MEM, 1, 0, 0),
        add_x(),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16, 0, 0),
        // The kernel divides by the number of queues.
        ret_a(),
    ]
}

fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    let code = code as u16;
    libc::sock_filter { code, jt, jf, k }
}

fn load(width: u32, at: u32) -> libc::sock_filter {
    op(libc::BPF_LD | width | libc::BPF_ABS, at, 0, 0)
}

/// The 16 bits at `at` plus X.
fn load_after(at: u32) -> libc::sock_filter {
    op(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, at, 0, 0)
}

fn add_x() -> libc::sock_filter {
    op(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0, 0, 0)
}

/// Skips so many instructions unless A is `value`.
fn unless_equal(value: u32, skip: u8) -> libc::sock_filter {
    op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip)
}

/// Skips so many instructions unless the port in A is one that systems choose for clients.
fn unless_a_clients(skip: u8) -> libc::sock_filter {
    op(
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        FIRST_CLIENT_PORT.into(),
        0,
        skip,
    )
}

/// To a place that is set once it is known.
fn jump() -> libc::sock_filter {
    op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0)
}

fn ret(value: u32) -> libc::sock_filter {
    op(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn ret_a() -> libc::sock_filter {
    op(libc::BPF_RET | libc::BPF_A, 0, 0, 0)
}
