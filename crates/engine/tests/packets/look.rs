//! Questions about flows, answered by a worker that goes on forwarding.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use super::bench::*;
use engine::counters::CloseReason;
use engine::look::{By, Filter, FlowState, FlowView, Question, Survey, Task};
use sim::frame::{Body, Frame, RST};

/// Puts a question to the worker and lets it turn until it has answered.
fn ask(bench: &mut Bench, filter: Filter, task: Task) -> Task {
    let answers = put(bench, filter, task);
    for _ in 0..100_000 {
        bench.worker.poll(bench.now);
        if let Ok(question) = answers.try_recv() {
            return question.task;
        }
    }
    panic!("no answer");
}

fn put(bench: &Bench, filter: Filter, task: Task) -> Receiver<Question> {
    let (sender, answers) = sync_channel(1);
    let policy = Arc::clone(bench.published.load().policy());
    let question = Question {
        filter,
        policy,
        task,
    };
    let reply = move |question| drop(sender.send(question));
    bench
        .asker
        .ask(question, Box::new(reply))
        .expect("the desk has room");
    answers
}

fn list(bench: &mut Bench, filter: Filter) -> Vec<FlowView> {
    match ask(bench, filter, Task::list(0, 1000)) {
        Task::List { next: None, page } => page,
        other => panic!("{other:?}"),
    }
}

fn udp(bench: &mut Bench, port: u16, server: &str, times: usize) {
    for _ in 0..times {
        let frame = Frame::udp((ip("10.0.0.2"), port).into(), at(server), b"hello");
        bench.one(INSIDE, frame);
    }
}

fn web() -> String {
    policy(
        "allow",
        "drop",
        r#"{"id":"web","action":"allow","match":{"proto":"tcp","dst_ports":[80]}}"#,
    )
}

#[test]
fn flows_are_found_by_what_they_are() {
    let mut bench = Bench::new(&web(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    udp(&mut bench, 6000, "198.51.100.1:53", 1);
    udp(&mut bench, 6001, "10.0.0.9:53", 1);
    let check = |bench: &mut Bench, filter: Filter, expected: &[u16]| {
        let mut ports: Vec<_> = list(bench, filter.clone())
            .iter()
            .map(|view| view.facts.src_port)
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, expected, "{filter:?}");
    };
    let any = Filter::default;
    let net = |text: &str| Some(text.parse().expect("a constant"));
    check(&mut bench, any(), &[5000, 6000, 6001]);
    check(
        &mut bench,
        Filter {
            proto: Some(17),
            ..any()
        },
        &[6000, 6001],
    );
    check(
        &mut bench,
        Filter {
            to: net("198.51.100.0/24"),
            ..any()
        },
        &[5000, 6000],
    );
    check(
        &mut bench,
        Filter {
            from: net("198.51.100.0/24"),
            ..any()
        },
        &[],
    );
    check(
        &mut bench,
        Filter {
            address: net("192.0.2.1/32"),
            ..any()
        },
        &[5000, 6000],
    );
    check(
        &mut bench,
        Filter {
            address: net("::/0"),
            ..any()
        },
        &[],
    );
    check(
        &mut bench,
        Filter {
            port: Some(53),
            ..any()
        },
        &[6000, 6001],
    );
    check(
        &mut bench,
        Filter {
            to_port: Some(80),
            ..any()
        },
        &[5000],
    );
    check(
        &mut bench,
        Filter {
            from_port: Some(6001),
            ..any()
        },
        &[6001],
    );
    check(
        &mut bench,
        Filter {
            translated: Some(false),
            ..any()
        },
        &[6001],
    );
    check(
        &mut bench,
        Filter {
            rule: Some(0),
            ..any()
        },
        &[5000],
    );
    check(
        &mut bench,
        Filter {
            group: Some(0),
            ..any()
        },
        &[5000, 6000, 6001],
    );
    check(
        &mut bench,
        Filter {
            group: Some(1),
            ..any()
        },
        &[],
    );
    let state = Some(FlowState::Established);
    check(&mut bench, Filter { state, ..any() }, &[5000]);
    let state = Some(FlowState::Unanswered);
    check(&mut bench, Filter { state, ..any() }, &[6000, 6001]);

    let [view] = list(
        &mut bench,
        Filter {
            proto: Some(6),
            ..any()
        },
    )[..] else {
        panic!("one flow")
    };
    assert_eq!(view.nat, Some((ip("192.0.2.1"), 5000)));
    assert_eq!(
        (view.facts.group, view.facts.rule, view.facts.revision),
        (Some(0), Some(0), 1)
    );
    assert!(view.allowed && view.packets == [2, 1], "{view:?}");
}

#[test]
fn what_an_older_revision_judged_is_shown_by_the_newer_one() {
    let mut bench = Bench::new(&web(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.publish(&policy("deny", "drop", ""));
    let [view] = list(&mut bench, Filter::default())[..] else {
        panic!("one flow")
    };
    assert_eq!(
        (view.facts.revision, view.facts.rule, view.allowed),
        (1, None, false)
    );
    let rule = Some(0);
    assert_eq!(
        list(
            &mut bench,
            Filter {
                rule,
                ..Filter::default()
            }
        ),
        []
    );
}

#[test]
fn pages_follow_each_other_and_no_turn_does_much() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 4096);
    for port in 1..=3000 {
        udp(&mut bench, port, "198.51.100.1:53", 1);
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut from = Some(0);
    let mut pages = 0;
    while let Some(place) = from {
        let Task::List { next, page } = ask(&mut bench, Filter::default(), Task::list(place, 700))
        else {
            panic!("a list")
        };
        assert!(page.len() == 700 || next.is_none());
        seen.extend(page.iter().map(|view| view.facts.src_port));
        (from, pages) = (next, pages + 1);
    }
    assert_eq!((seen.len(), pages), (3000, 5));

    // Packets are served between the steps.
    let answers = put(&bench, Filter::default(), Task::list(0, 3000));
    let mut turns = 0;
    while answers.try_recv().is_err() {
        bench.worker.poll(bench.now);
        turns += 1;
    }
    assert!(turns > 20, "{turns} turns");
}

#[test]
fn the_first_by_bytes_packets_and_rate() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    for port in 1..=50 {
        udp(
            &mut bench,
            1000 + port,
            "198.51.100.1:53",
            usize::from(port),
        );
    }
    let ports = |task: Task| {
        let Task::Top { page, .. } = task else {
            panic!("a top")
        };
        let mut ports: Vec<_> = page.iter().map(|view| view.facts.src_port).collect();
        ports.sort_unstable();
        ports
    };
    for by in [By::Bytes, By::Packets] {
        let top = ask(&mut bench, Filter::default(), Task::top(by, 3));
        assert_eq!(ports(top), [1048, 1049, 1050]);
    }
    let marks = Vec::with_capacity(1024);
    let Task::Mark { marks } = ask(&mut bench, Filter::default(), Task::Mark { marks }) else {
        panic!("marks")
    };
    udp(&mut bench, 1007, "198.51.100.1:53", 2);
    let top = ask(
        &mut bench,
        Filter::default(),
        Task::top(By::BytesSince(marks), 1),
    );
    assert_eq!(ports(top), [1007]);
}

#[test]
fn a_killed_flow_is_gone_and_its_ends_are_told() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    udp(&mut bench, 6000, "198.51.100.1:53", 1);
    let kill = Task::Kill {
        reset: true,
        killed: 0,
    };
    let filter = Filter {
        port: Some(5000),
        ..Filter::default()
    };
    let answers = put(&bench, filter, kill);
    let mut resets = BTreeMap::new();
    for (port, frame) in bench.exchange_frames() {
        let Body::Tcp { seq, flags, .. } = frame.body else {
            panic!("{frame:?}")
        };
        assert_eq!(flags & RST, RST);
        resets.insert(port, (frame.src, frame.dst, seq));
    }
    let Task::Kill { killed, .. } = answers.try_recv().expect("answered").task else {
        panic!("a kill")
    };
    assert_eq!(killed, 1);
    let client = (ip("198.51.100.1"), ip("10.0.0.2"), 501);
    let server = (ip("192.0.2.1"), ip("198.51.100.1"), 101);
    assert_eq!(
        resets,
        BTreeMap::from([(INSIDE, client), (OUTSIDE, server)])
    );
    assert_eq!(bench.counters.closed(CloseReason::Killed), 1);
    assert_eq!(bench.counters.nat_active.get(), 1);
    assert_eq!(list(&mut bench, Filter::default()).len(), 1);
}

#[test]
fn a_survey_counts_states_groups_and_ports() {
    let mut bench = Bench::new(&web(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    udp(&mut bench, 6000, "198.51.100.1:53", 1);
    udp(&mut bench, 6000, "198.51.100.2:53", 1);
    udp(&mut bench, 6001, "10.0.0.9:53", 1);
    let addresses: Vec<_> = bench.published.load().translation_addresses().collect();
    let survey = Survey::new(1, addresses);
    let Task::Survey(mut survey) = ask(&mut bench, Filter::default(), Task::Survey(survey.into()))
    else {
        panic!("a survey")
    };
    let other = Survey::new(1, [ip("192.0.2.1")]);
    survey.add(&other);
    assert_eq!(survey.states[FlowState::Established as usize], 1);
    assert_eq!(survey.states[FlowState::Unanswered as usize], 3);
    assert_eq!(
        (&survey.groups[..], survey.stale, survey.elsewhere),
        (&[4, 0][..], 0, 0)
    );
    let [ports] = &survey.ports[..] else {
        panic!("one address")
    };
    assert_eq!((ports.address, ports.bindings), (ip("192.0.2.1"), 3));
    assert_eq!(ports.used(), [1, 1, 0], "a port counts once");
}
