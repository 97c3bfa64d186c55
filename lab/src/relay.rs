//! A relay in the middle of a node's cable, for delay and loss: kernels without `sch_netem` have none of its own.
//!
//! It takes frames off one port, keeps each for a while in a queue with an end, and puts it on the other, super-packets
//! and partial checksums included. Both directions are treated alike.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::port::Port;
use io::Frame;
use io::packet::{PacketConfig, PacketPort};

use crate::netns::Netns;
use crate::topology::{Segment, Topology};

/// Between two looks at the ports.
const PAUSE: Duration = Duration::from_micros(200);
/// Frames taken off a port at once.
const BURST: usize = 64;

/// How a cable is to behave, in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Impairment {
    /// What every frame is kept for.
    pub delay: Duration,
    /// How many of a hundred frames are lost, 0..=100; which ones, is the same in every run.
    pub loss_percent: u64,
    /// Frames that may be on their way; more are lost. 1..=4096.
    pub queue_frames: usize,
}

/// A relay in a namespace of its own. When it is dropped the cable is cut.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _netns: Netns,
}

impl Relay {
    /// Cuts the cable of `node` on `segment` and puts the relay in between.
    ///
    /// # Errors
    /// What `ip` says, and when a port cannot be opened.
    pub fn insert(
        topology: &Topology,
        node: u8,
        segment: Segment,
        impairment: Impairment,
    ) -> Result<Relay> {
        let run = topology.switch.run();
        let netns = Netns::add(run, &format!("relay{node}-{}", segment.interface()))?;
        netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        topology.splice(node, segment, &netns, ["near", "far"])?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (opened, is_open)) = (Arc::clone(&stop), mpsc::channel());
        let thread = netns.spawn("lab-relay", move || {
            let open = |interface: &str| {
                let buffers = u32::try_from(impairment.queue_frames + 4 * BURST)
                    .expect("at most 4096 and some");
                PacketPort::open(&PacketConfig {
                    buffers,
                    ..PacketConfig::new(interface)
                })
            };
            match open("near").and_then(|near| Ok((near, open("far")?))) {
                Ok((mut near, mut far)) => {
                    let _ = opened.send(Ok(()));
                    pump(&mut near, &mut far, impairment, &stopped);
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        is_open.recv().context("the relay ended at once")??;
        Ok(Relay {
            stop,
            thread: Some(thread),
            _netns: netns,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pump(near: &mut PacketPort, far: &mut PacketPort, impairment: Impairment, stop: &AtomicBool) {
    let mut outward = Queue::new(impairment, 1);
    let mut inward = Queue::new(impairment, 2);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        outward.take(near, now);
        inward.take(far, now);
        outward.give(far, now);
        inward.give(near, now);
        thread::sleep(PAUSE);
    }
}

/// One direction: frames with the time at which they are due.
struct Queue {
    impairment: Impairment,
    frames: VecDeque<(Instant, Frame)>,
    random: u64,
    burst: Vec<Frame>,
}

impl Queue {
    fn new(impairment: Impairment, seed: u64) -> Queue {
        let frames = VecDeque::with_capacity(impairment.queue_frames);
        Queue {
            impairment,
            frames,
            random: seed,
            burst: Vec::with_capacity(BURST),
        }
    }

    fn take(&mut self, port: &mut PacketPort, now: Instant) {
        while port.rx_burst(&mut self.burst, BURST) > 0 {
            for frame in self.burst.drain(..) {
                self.random = self
                    .random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let lost = (self.random >> 33) % 100 < self.impairment.loss_percent;
                if !lost && self.frames.len() < self.impairment.queue_frames {
                    self.frames.push_back((now + self.impairment.delay, frame));
                }
            }
        }
    }

    fn give(&mut self, port: &mut PacketPort, now: Instant) {
        while self.frames.front().is_some_and(|(due, _)| *due <= now) {
            while self.burst.len() < BURST
                && self.frames.front().is_some_and(|(due, _)| *due <= now)
            {
                self.burst
                    .extend(self.frames.pop_front().map(|(_, frame)| frame));
            }
            port.tx_burst(&mut self.burst);
        }
    }
}
