//! An upstream resolver that does what the name says that it is asked for, right or wrong, over UDP and TCP.
//!
//! A name is `nNUMBER.BEHAVIOUR.ZONE.test`, with `ttlSECONDS` as a label of its own if it matters; it stands for
//! [`right`]\(NUMBER\). Behaviours:
//!
//! | label | what is answered |
//! |---|---|
//! | none | the address |
//! | `lateMS` | the same, after so many milliseconds |
//! | `never` | nothing |
//! | `wrong-id`, `wrong-question` | a forged answer for another id, another question |
//! | `other-name` | to the question, with the forged address of another name |
//! | `manyCOUNT` | over UDP cut short, over TCP so many addresses |
//! | `oversized` | [`OVERSIZED`] addresses, in one datagram that no query allowed |
//! | `truncated` | over UDP cut short, over TCP rightly |
//! | `truncated-wrong`, `truncated-never` | over UDP cut short, over TCP for another id, or nothing |
//! | `chain`, `long-chain` | by way of three CNAMEs, of [`LONG_CHAIN`] |
//! | `broken-chain` | a CNAME, and the forged address of what it does not point to |
//! | `loop` | two CNAMEs that point to each other |
//! | `garbage`, `noise` | a question that is followed by bytes that are no records; bytes |
//! | `spoofed`, `spoofed-question`, `spoofed-elsewhere` | a forgery by a wrong id, for a wrong question, from another port; then rightly |
//! | `error` | a failure of the server |
//! | one of [`SPECIAL`] | an address that no answer may have, then the right one |

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::message::{ASKED, Answer, CNAME, Question, wire_name};
use super::stub::{A, AAAA};
use super::{RESOLVER, Task, right, wrong};
use crate::address::Family;
use crate::netns::Netns;
use crate::server::pattern;

/// Addresses in a datagram that is larger than queries allow.
const OVERSIZED: u32 = 2_000;
/// Links of a long chain.
pub const LONG_CHAIN: usize = 40;
/// What an answer lives without a label that says otherwise, in seconds.
const TTL: u32 = 300;

/// An address that no answer may have.
#[derive(Debug)]
pub struct Special {
    /// The label that asks for it.
    pub label: &'static str,
    /// The address.
    pub address: IpAddr,
    /// Whether the internet's router would carry packets to a server there, were they let through.
    pub routed: bool,
}

/// Addresses that no answer may have.
pub const SPECIAL: &[Special] = &[
    special("private", v4(10, 99, 0, 1), true),
    special("private-shared", v4(100, 64, 9, 9), true),
    special("loopback", v4(127, 0, 0, 1), false),
    special("link-local", v4(169, 254, 9, 9), true),
    special("metadata", v4(169, 254, 169, 254), true),
    special("metadata-own", v4(100, 100, 100, 200), true),
    special("unspecified", v4(0, 0, 0, 0), false),
    special("multicast", v4(224, 0, 0, 9), false),
    special("node", v4(192, 0, 2, 1), false),
    special("private6", v6([0xfd77, 0, 0, 0, 0, 0, 0, 1]), true),
    special("loopback6", v6([0, 0, 0, 0, 0, 0, 0, 1]), false),
    special("link-local6", v6([0xfe80, 0, 0, 0, 0, 0, 0, 9]), false),
    special("metadata6", v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), true),
    special("mapped6", v6([0, 0, 0, 0, 0, 0xffff, 0x0a63, 1]), false),
];

const fn special(label: &'static str, address: IpAddr, routed: bool) -> Special {
    Special {
        label,
        address,
        routed,
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// The running resolver.
#[derive(Debug)]
pub struct Resolver {
    asked: Arc<Mutex<HashSet<String>>>,
    _task: Task,
}

impl Resolver {
    /// Starts it at [`RESOLVER`], which the namespace must have.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(super) fn start(netns: &Netns) -> Result<Resolver> {
        let asked = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&asked);
        let task = Task::run(netns, "lab-resolver", async || {
            let socket = Rc::new(UdpSocket::bind(RESOLVER).await?);
            let elsewhere = Rc::new(UdpSocket::bind(SocketAddr::new(RESOLVER.ip(), 0)).await?);
            let listener = TcpListener::bind(RESOLVER).await?;
            let datagrams = datagrams(socket, elsewhere, Arc::clone(&seen));
            let connections = connections(listener, seen);
            Ok(async {
                tokio::join!(datagrams, connections);
            })
        })?;
        Ok(Resolver { asked, _task: task })
    }

    /// Whether it was ever asked for this name, which is in lower case.
    #[must_use]
    pub fn was_asked(&self, name: &str) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.contains(name)
    }

    /// How many names it was asked for.
    #[must_use]
    pub fn names(&self) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.len()
    }
}

type Seen = Arc<Mutex<HashSet<String>>>;

async fn datagrams(socket: Rc<UdpSocket>, elsewhere: Rc<UdpSocket>, seen: Seen) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        for part in script(&buffer[..length], Over::Udp, &seen) {
            let socket = Rc::clone(if part.elsewhere { &elsewhere } else { &socket });
            let sending = async move {
                if !part.after.is_zero() {
                    sleep(part.after).await;
                }
                let _ = socket.send_to(&part.bytes, from).await;
            };
            if part.after.is_zero() {
                sending.await;
            } else {
                spawn_local(sending);
            }
        }
    }
}

async fn connections(listener: TcpListener, seen: Seen) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            spawn_local(async move { drop(converse(stream, seen).await) });
        }
    }
}

async fn converse(mut stream: TcpStream, seen: Seen) -> std::io::Result<()> {
    loop {
        let mut query = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut query).await?;
        for part in script(&query, Over::Tcp, &seen) {
            sleep(part.after).await;
            let mut bytes = (part.bytes.len() as u16).to_be_bytes().to_vec();
            bytes.extend(part.bytes);
            stream.write_all(&bytes).await?;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

/// One message that is sent in answer.
struct Part {
    after: Duration,
    /// From another port than the one that was asked.
    elsewhere: bool,
    bytes: Vec<u8>,
}

impl From<Answer> for Part {
    fn from(answer: Answer) -> Part {
        Part {
            after: Duration::ZERO,
            elsewhere: false,
            bytes: answer.into_bytes(),
        }
    }
}

/// What is sent in answer to a query.
fn script(query: &[u8], over: Over, seen: &Mutex<HashSet<String>>) -> Vec<Part> {
    let Some(question) = Question::parse(query) else {
        return Vec::new();
    };
    let labels = question.labels();
    seen.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(labels.join("."));
    let number = |prefix: &str| -> Option<u32> {
        labels
            .iter()
            .find_map(|label| label.strip_prefix(prefix)?.parse().ok())
    };
    let answer = Answer::to(&question);
    let family = match question.kind {
        A => Family::V4,
        AAAA => Family::V6,
        _ => return vec![answer.into()],
    };
    let Some(n) = number("n").filter(|n| *n < super::NUMBERS) else {
        return vec![answer.code(3).into()];
    };
    let ttl_s = number("ttl").unwrap_or(TTL);
    let (right_one, wrong_one) = (right(n, family), wrong(n, family));
    let rightly = || answer.clone().address(ASKED, ttl_s, right_one);
    let forged = || answer.clone().address(ASKED, ttl_s, wrong_one);
    let short = || answer.clone().truncated();
    let elsewhere = |answer: Answer| Part {
        elsewhere: true,
        ..answer.into()
    };
    let later = |answer: Answer, millis: u64| Part {
        after: Duration::from_millis(millis),
        ..answer.into()
    };
    let name = |link: usize| wire_name(&format!("link{link}.n{n}.elsewhere.test"));
    let chain = |links: usize| {
        let mut chained = answer.clone().record(ASKED, CNAME, ttl_s, &name(1));
        for link in 1..links {
            chained = chained.record(&name(link), CNAME, ttl_s, &name(link + 1));
        }
        chained.address(&name(links), ttl_s, right_one)
    };
    let many = |count: u32| {
        let mut all = rightly();
        for nth in 1..count {
            all = all.address(ASKED, ttl_s, right((n + nth) % super::NUMBERS, family));
        }
        all
    };
    if let Some(millis) = number("late") {
        return vec![later(rightly(), millis.into())];
    }
    if let Some(count) = number("many") {
        return match over {
            Over::Udp => vec![short().into()],
            Over::Tcp => vec![many(count).into()],
        };
    }
    let special = |label: &str| SPECIAL.iter().find(|special| special.label == label);
    let wrong_question = || {
        let other = Question {
            name: wire_name(&format!("n{n}.somebody.test")),
            ..question.clone()
        };
        Answer::to(&other).address(ASKED, ttl_s, wrong_one)
    };
    for label in &labels {
        return match (label.as_str(), over) {
            ("never", _) | ("truncated-never", Over::Tcp) => Vec::new(),
            ("error", _) => vec![answer.code(2).into()],
            ("wrong-id", _) | ("truncated-wrong", Over::Tcp) => vec![forged().other_id().into()],
            ("wrong-question", _) => vec![wrong_question().into()],
            ("other-name", _) => {
                let owner = wire_name(&format!("n{n}.somebody.test"));
                vec![answer.address(&owner, ttl_s, wrong_one).into()]
            }
            ("truncated" | "truncated-wrong" | "truncated-never", Over::Udp) => {
                vec![short().into()]
            }
            ("oversized", _) => vec![many(OVERSIZED).into()],
            ("chain", _) => vec![chain(3).into()],
            ("long-chain", _) => vec![chain(LONG_CHAIN).into()],
            ("broken-chain", _) => vec![
                answer
                    .record(ASKED, CNAME, ttl_s, &name(1))
                    .address(&name(2), ttl_s, wrong_one)
                    .into(),
            ],
            ("loop", _) => vec![
                answer
                    .record(ASKED, CNAME, ttl_s, &name(1))
                    .record(&name(1), CNAME, ttl_s, &name(2))
                    .record(&name(2), CNAME, ttl_s, &name(1))
                    .address(&name(3), ttl_s, wrong_one)
                    .into(),
            ],
            ("garbage", _) => {
                let mut part = Part::from(forged());
                let keep = part.bytes.len() - 20;
                part.bytes.truncate(keep);
                part.bytes.extend(pattern(n.into(), 100));
                vec![part]
            }
            ("noise", _) => vec![Part {
                bytes: pattern(n.into(), 300),
                ..answer.into()
            }],
            ("spoofed", _) => vec![forged().other_id().into(), rightly().into()],
            ("spoofed-question", _) => vec![wrong_question().into(), rightly().into()],
            ("spoofed-elsewhere", Over::Udp) => vec![elsewhere(forged()), later(rightly(), 5)],
            (label, _) => match special(label) {
                Some(special) => {
                    let both = answer.address(ASKED, ttl_s, special.address);
                    vec![both.address(ASKED, ttl_s, right_one).into()]
                }
                None => continue,
            },
        };
    }
    vec![rightly().into()]
}

#[cfg(test)]
mod tests {
    use super::super::message::{query, read};
    use super::*;

    #[test]
    fn the_name_says_what_is_answered() {
        let (good, bad) = (right(5, Family::V4), wrong(5, Family::V4));
        check("n5.fresh.test", Over::Udp, &[Some(&[good])]);
        check("n5.late300.hostile.test", Over::Udp, &[Some(&[good])]);
        check("n5.never.hostile.test", Over::Tcp, &[]);
        check("n5.wrong-id.hostile.test", Over::Udp, &[None]);
        check("n5.spoofed.hostile.test", Over::Udp, &[None, Some(&[good])]);
        check("n5.truncated.hostile.test", Over::Udp, &[Some(&[])]);
        check("n5.truncated.hostile.test", Over::Tcp, &[Some(&[good])]);
        check("n5.broken-chain.hostile.test", Over::Udp, &[Some(&[bad])]);
        check("n5.long-chain.hostile.test", Over::Udp, &[Some(&[good])]);
        check("n5.noise.hostile.test", Over::Udp, &[None]);
        let metadata = v4(169, 254, 169, 254);
        check(
            "n5.metadata.hostile.test",
            Over::Udp,
            &[Some(&[metadata, good])],
        );
    }

    /// Each message that is sent: none for what is no answer to the query, else its addresses.
    fn check(name: &str, over: Over, expected: &[Option<&[IpAddr]>]) {
        let query = query(0x1234, name, A);
        let sent: Vec<_> = script(&query, over, &Mutex::default())
            .into_iter()
            .map(|part| read(&query, &part.bytes).map(|said| said.addresses))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|addresses| addresses.map(<[IpAddr]>::to_vec))
            .collect();
        assert_eq!(sent, expected, "{name}");
    }
}
