//! `neuwerk restart`: have the running node replace its program, with flows and listening sockets kept.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use neuwerkd::handover;

use crate::args::Restart;
use crate::failure::Failure;
use crate::print;

/// How often the node is looked after.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn restart(restart: Restart) -> Result<(), Failure> {
    let socket = restart.control_socket.as_path();
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::Failed(format!("{}: {what}: {error}", socket.display()))
    };
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|error| failed("no node answers", &error))?;
    let peer = stream
        .peer_cred()
        .map_err(|error| failed("who answers is not known", &error))?;
    let pid = peer
        .pid()
        .ok_or_else(|| failed("who answers is not known", &"no process id"))?;
    drop(stream);
    // Told here, where it is read; the node looks again before it goes.
    check(pid)?;

    let before = identity(socket);
    let begun = Instant::now();
    handover::ask(pid).map_err(|error| failed("the node cannot be signalled", &error))?;
    loop {
        tokio::time::sleep(LOOK).await;
        if identity(socket).is_some_and(|now| Some(now) != before)
            && tokio::net::UnixStream::connect(socket).await.is_ok()
        {
            break;
        }
        if begun.elapsed() > restart.timeout {
            return Err(Failure::Failed(format!(
                "the node has not come back after {} s: its log tells why",
                restart.timeout.as_secs()
            )));
        }
    }
    let took = begun.elapsed().as_secs_f64();
    print::to_stdout(&format!("the node runs again, after {took:.1} s\n"))
}

/// Runs the program that the node would start, as the node would, to look at its configuration.
fn check(pid: i32) -> Result<(), Failure> {
    let process = Path::new("/proc").join(pid.to_string());
    let failed = |error: std::io::Error| Failure::file(&process, &error);
    let line = std::fs::read(process.join("cmdline")).map_err(failed)?;
    let mut words = line
        .split(|byte| *byte == 0)
        .map(std::os::unix::ffi::OsStrExt::from_bytes);
    let program: &std::ffi::OsStr = words.next().unwrap_or_default();
    let arguments: Vec<&std::ffi::OsStr> = words.filter(|word| !word.is_empty()).collect();
    let output = Command::new(program)
        .arg0(program)
        .args(arguments)
        .arg("--check")
        .current_dir(process.join("cwd"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::file(Path::new(program), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Failed(format!(
        "the node is left as it is, since its program refuses the configuration: {}",
        why.trim()
    )))
}

/// What tells one control socket at this path from the next.
fn identity(socket: &Path) -> Option<(u64, i64, i64)> {
    let there = std::fs::metadata(socket).ok()?;
    Some((there.ino(), there.ctime(), there.ctime_nsec()))
}
