//! The yardstick: DPDK's own program for tests of drivers, over the same devices.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::frame::LEN;

/// Installs it if it is missing.
pub(crate) fn install() -> Result<()> {
    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/../../lab/install-tools");
    let status = Command::new(install).arg("dpdk-testpmd:dpdk-dev").status();
    ensure!(status?.success(), "lab/install-tools failed");
    Ok(())
}

/// Million packets that it forwards on so many cores in a second of their time.
pub(crate) fn measure(cores: usize, length: Duration) -> Result<f64> {
    // Its first thread waits for commands; the others forward, from core 0 on.
    let threads: Vec<String> = (0..cores)
        .map(|core| format!(",{}@{core}", core + 1))
        .collect();
    // What it says has to come at once, which it does not by itself in a pipe.
    let child = Command::new("stdbuf")
        .args(["-oL", "dpdk-testpmd"])
        .arg(format!("--lcores=0@0{}", threads.concat()))
        .args("--no-huge -m 256 --no-pci --no-telemetry --no-shconf".split(' '))
        .arg(format!("--file-prefix=bench-{}", std::process::id()))
        .arg(format!("--vdev=net_null0,size={LEN}"))
        .args(
            "--vdev=net_null1,no-rx=1 -- -i --forward-mode=mac --total-num-mbufs=16383".split(' '),
        )
        .arg(format!("--burst={}", engine::BURST))
        .args(["--nb-cores", "--rxq", "--txq"].map(|name| format!("{name}={cores}")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpdk-testpmd")?;
    let mut testpmd = Testpmd(child);
    let mut commands = testpmd.0.stdin.take().context("a pipe")?;
    let mut output = BufReader::new(testpmd.0.stdout.take().context("a pipe")?);
    commands.write_all(b"start\n")?;
    // It says so when it is about to forward.
    find(&mut output, "packet forwarding packets/burst")?;
    let before = testpmd.cpu_s()?;
    sleep(length);
    let each = (testpmd.cpu_s()? - before) / cores as f64;
    commands.write_all(b"stop\n")?;
    find(&mut output, "Accumulated forward statistics")?;
    let sent = find(&mut output, "TX-packets:")?;
    commands.write_all(b"quit\n")?;
    let sent = sent.split_whitespace().nth(1).context("a number")?;
    Ok(sent.parse::<f64>()? / each / 1e6)
}

/// Ends with what it is used for.
struct Testpmd(Child);

impl Testpmd {
    /// Processor time of the threads that forward, seconds.
    fn cpu_s(&self) -> Result<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let thread = thread?.path();
            if fs::read_to_string(thread.join("comm"))?.contains("worker") {
                let times = fs::read_to_string(thread.join("schedstat"))?;
                let running = times.split(' ').next().context("a number")?;
                nanoseconds += running.parse::<f64>()?;
            }
        }
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next line with these words.
fn find(output: &mut impl BufRead, words: &str) -> Result<String> {
    loop {
        let mut line = String::new();
        ensure!(
            output.read_line(&mut line)? > 0,
            "testpmd ended before it said {words}"
        );
        if line.contains(words) {
            return Ok(line);
        }
    }
}
