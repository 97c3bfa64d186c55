//! Network namespaces without names: each test has one of its own in a thread of its own, and it
//! ends with the thread and its sockets.

use std::io::Write;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a new network namespace. Without root it is skipped with one line, in CI it
/// fails.
pub(crate) fn with_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return false;
        }
        // No router solicitations and the like between the frames of a test.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            std::fs::write(path, "1").expect("a namespace of ours can be configured");
        }
        test();
        true
    });
    match thread.join() {
        Ok(true) => {}
        Ok(false) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "{name} cannot run without root, and in CI it must"
            );
            // Not captured, as that of a passing test would be.
            let _ = writeln!(std::io::stderr(), "{name}: left out, it needs root");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a command line that must succeed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", line])
        .output()
        .expect("there is a shell");
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
