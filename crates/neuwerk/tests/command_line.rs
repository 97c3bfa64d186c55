//! The binary as a script meets it: what it prints, and what it exits with.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary; the words of the line are its arguments.
fn neuwerk(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neuwerk"))
        .args(line.split_whitespace())
        .env_clear()
        .output()
        .expect("the binary was built")
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let all = format!("stdout:\n{printed}\nstderr:\n{complained}");
    assert_eq!(output.status.code(), Some(code), "{all}");
    assert!(printed.contains(stdout), "no {stdout:?} in {all}");
    assert!(complained.contains(stderr), "no {stderr:?} in {all}");
}

/// A control socket in `dir` that gives `answer` (status line and headers without length, then body) to one request,
/// and hands back what was asked.
fn answering(
    dir: &Path,
    head: &'static str,
    body: &'static str,
) -> (String, std::thread::JoinHandle<String>) {
    let path = dir.join("admin.sock");
    let listener = UnixListener::bind(&path).expect("a fresh directory takes a socket");
    let node = std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().expect("the client connects");
            let mut asked = Vec::new();
            let mut chunk = [0; 4096];
            // The first connection only tries the socket. Requests here are small: head and body in full.
            while !complete(&asked) {
                match stream.read(&mut chunk).expect("the client is there") {
                    0 => break,
                    count => asked.extend_from_slice(&chunk[..count]),
                }
            }
            if asked.is_empty() {
                continue;
            }
            let length = body.len();
            write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}")
                .expect("the client is there");
            return String::from_utf8_lossy(&asked).into_owned();
        }
    });
    (path.display().to_string(), node)
}

/// Whether a request has arrived with as much body as it announced.
fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let announced = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    body.len() >= announced.unwrap_or(0)
}

#[test]
fn a_configuration_is_checked_without_running() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("config.yaml");
    std::fs::write(
        &file,
        "version: 1\nbootstrap: {management_interface: m0, data_interface: d0}\n",
    )
    .expect("there is room");
    let file = file.display();
    check(
        &neuwerk(&format!("run --check --config {file}")),
        0,
        "data        d0, one arm",
        "",
    );
    check(
        &neuwerk(&format!("--check --config {file} --outside-interface o0")),
        0,
        "d0 inside, o0 outside",
        "",
    );
    check(
        &neuwerk(&format!("--check --config {file} --dpdk-workers 4")),
        0,
        "without effect in this release: --dpdk-workers",
        "",
    );
}

#[test]
fn what_is_wrong_is_all_named_and_exits_with_2() {
    let refused = neuwerk(
        "run --check --management-interface a/b --http-worker-threads 0 --runtime-http-worker-threads 0",
    );
    check(&refused, 2, "", "--http-worker-threads");
    let refused = neuwerk("run --check --management-interface a/b --runtime-http-worker-threads 0");
    check(&refused, 2, "", "3 problems");
    for problem in [
        "--management-interface: \"a/b\"",
        "bootstrap.data_interface: is required",
        "--runtime-http-worker-threads: 0",
    ] {
        check(&refused, 2, "", problem);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_its_path() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("config.yaml");
    for (content, reason) in [
        (vec![0xff; 100], "valid UTF-8"),
        (vec![0; 100], "not one valid YAML document"),
        (vec![b'#'; 2 << 20], "larger than 1 MiB"),
        (b"version: 1\nbootstrap: [a\n".to_vec(), "unclosed bracket"),
        (b"x: &a [*a, *a]\n".to_vec(), "Recursive reference"),
        (Vec::new(), "write version: 1"),
    ] {
        std::fs::write(&file, content).expect("there is room");
        let output = neuwerk(&format!("run --check --config {}", file.display()));
        check(&output, 2, "", reason);
    }
    let output = neuwerk(&format!("--config {}", dir.path().display()));
    check(&output, 2, "", "Is a directory");
}

#[test]
fn a_log_level_that_there_is_not_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_neuwerk"))
        .args(["--management-interface=m0", "--data-plane-interface=d0"])
        .env_clear()
        .env("NEUWERK_LOG_LEVEL", "loud")
        .output()
        .expect("the binary was built");
    check(&output, 2, "", "NEUWERK_LOG_LEVEL");
}

#[test]
fn general_flags() {
    check(&neuwerk("--version"), 0, env!("CARGO_PKG_VERSION"), "");
    check(&neuwerk("--help"), 0, "Exit codes:", "");
    check(&neuwerk("run --help"), 0, "--data-plane-interface", "");
    check(&neuwerk("polici get"), 2, "", "similar");
}

#[test]
fn completions_know_verbs_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let output = neuwerk(&format!("completions {shell}"));
        check(&output, 0, "policy", "");
        check(&output, 0, "outside-interface", "");
    }
}

#[test]
fn a_node_that_does_not_run_is_said_to() {
    check(
        &neuwerk("status --control-socket /nonexistent/admin.sock"),
        1,
        "",
        "is the node running?",
    );
}

#[test]
fn a_policy_that_is_enforced_everywhere_exits_with_0() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "default_policy: deny\n").expect("there is room");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/yaml\r\netag: \"aa-7\"\r\nneuwerk-revision: 7";
    let (socket, node) = answering(dir.path(), head, "default_policy: deny\n");
    let applied = neuwerk(&format!(
        "policy apply {} --control-socket {socket} --if-match \"aa-6\"",
        file.display()
    ));
    check(
        &applied,
        0,
        "revision 7 is enforced by all members (tag \"aa-7\")",
        "",
    );
    let asked = node.join().expect("it answered");
    assert!(
        asked.starts_with("PUT /api/v1/policy?wait=all&timeout=5s HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(
        asked.contains("content-type: application/yaml\r\n"),
        "{asked}"
    );
    assert!(asked.contains("if-match: \"aa-6\"\r\n"), "{asked}");
    assert!(asked.ends_with("default_policy: deny\n"), "{asked}");
}

#[test]
fn a_policy_that_is_pending_somewhere_exits_with_3() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("policy.json");
    std::fs::write(&file, "{}").expect("there is room");
    let body =
        r#"{"revision":8,"pending":[{"node_id":"00000000000000a1","reason":"it is unreachable"}]}"#;
    let (socket, node) = answering(
        dir.path(),
        "HTTP/1.1 202 Accepted\r\ncontent-type: application/json",
        body,
    );
    let applied = neuwerk(&format!(
        "policy apply {} --control-socket {socket} --wait self --timeout 250ms",
        file.display()
    ));
    check(
        &applied,
        3,
        "revision 8 is committed; not enforced yet by:\n  00000000000000a1: it is unreachable",
        "",
    );
    let asked = node.join().expect("it answered");
    assert!(
        asked.starts_with("PUT /api/v1/policy?wait=self&timeout=250ms "),
        "{asked}"
    );
}

#[test]
fn a_policy_that_is_refused_exits_with_1_and_names_every_problem() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("policy.json");
    std::fs::write(&file, "{}").expect("there is room");
    let body = r#"{"error":"the policy is not valid","errors":[
        {"path":"source_groups[0].id","reason":"is empty"},
        {"path":"source_groups[0].ruels","reason":"is not a known key","suggestion":"rules"}]}"#;
    let (socket, node) = answering(
        dir.path(),
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json",
        body,
    );
    let refused = neuwerk(&format!(
        "policy apply {} --control-socket {socket}",
        file.display()
    ));
    check(
        &refused,
        1,
        "",
        "the policy is not valid\n  source_groups[0].id: is empty\n",
    );
    check(
        &refused,
        1,
        "",
        "source_groups[0].ruels: is not a known key; did you mean rules?",
    );
    node.join().expect("it answered");
}

#[test]
fn a_token_is_printed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("there is room");
    let body = r#"{"token":"a.b.c","kid":"k1","jti":"j","exp":4000000000}"#;
    let (socket, node) = answering(
        dir.path(),
        "HTTP/1.1 200 OK\r\ncontent-type: application/json",
        body,
    );
    let minted = neuwerk(&format!(
        "auth token mint --sub ops --roles admin --http-tls-dir /x --control-socket {socket}"
    ));
    check(&minted, 0, "", "");
    assert_eq!(minted.stdout, b"a.b.c\n");
    let asked = node.join().expect("it answered");
    assert!(
        asked.contains(r#"{"sub":"ops","roles":["admin"],"ttl":"90d"}"#),
        "{asked}"
    );
}
