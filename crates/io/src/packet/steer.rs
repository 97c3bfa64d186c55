//! Steering in the kernel: a classic BPF program (bpf(2), filter(7)) that gives each queue of an interface the frames of
//! its worker, by the rule of `engine::steer`, so that workers need not hand them over to each other.
//!
//! It need not know everything: what it sends to the wrong queue is only slower. Protocols other than TCP and UDP,
//! fragments and IPv6 packets with extension headers go to the first queue.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use engine::steer::Steering;

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
    /// Steers by the rule of these workers, of which there are as many as queues; `translated` are the addresses whose ports
    /// tell the worker.
    ///
    /// # Errors
    /// Those of the kernel. Frames then go on as before.
    pub fn steer(&self, steering: &Steering, translated: &[IpAddr]) -> io::Result<()> {
        let program = program(steering.hash_keys(), translated);
        sys::set_program(
            &self.socket,
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            &program,
        )
    }
}

/// Jumps reach 255 instructions: more addresses than this are left to the workers.
const MAX_TRANSLATED: usize = 16;

fn program(keys: [u32; 5], translated: &[IpAddr]) -> Vec<libc::sock_filter> {
    let v4 = ipv4(keys, translated);
    let v6 = ipv6(keys, translated);
    let mut program = vec![
        load(libc::BPF_W, PROTOCOL),
        unless_equal(0x0800, v4.len() as u8),
    ];
    program.extend(v4);
    program.push(unless_equal(0x86dd, v6.len() as u8));
    program.extend(v6);
    program.push(ret(0));
    program
}

/// Ends in an answer whatever comes in.
fn ipv4(keys: [u32; 5], translated: &[IpAddr]) -> Vec<libc::sock_filter> {
    let addresses = translated.iter().filter_map(|address| match address {
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
    for address in addresses.take(MAX_TRANSLATED) {
        p.extend([unless_equal(address, 2), load_after(NET + 2), ret_a()]);
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
    p
}

/// Ends in an answer whatever comes in.
fn ipv6(keys: [u32; 5], translated: &[IpAddr]) -> Vec<libc::sock_filter> {
    let addresses = translated.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(u128::from(*address)),
        IpAddr::V4(_) => None,
    });
    let mut p = vec![load(libc::BPF_B, NET + 6)];
    p.extend(only_with_ports());
    for address in addresses.take(MAX_TRANSLATED) {
        for word in 0..4 {
            // Over what is left of this address: two instructions a word, and the two of the answer.
            let rest = 2 * (3 - word as u8) + 2;
            p.extend([
                load(libc::BPF_W, NET + 24 + 4 * word),
                unless_equal((address >> (96 - 32 * word)) as u32, rest),
            ]);
        }
        p.extend([load(libc::BPF_H, NET + 42), ret_a()]);
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
    p
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

fn ret(value: u32) -> libc::sock_filter {
    op(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn ret_a() -> libc::sock_filter {
    op(libc::BPF_RET | libc::BPF_A, 0, 0, 0)
}
