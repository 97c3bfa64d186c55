//! Secrets planted wherever a node keeps some, and the whole archive searched for them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::*;
use crate::config::Flags;

const BOOTSTRAP: &str = "9d1f0c4be8a7b35d62f10e94c8b7a6d59d1f0c4be8a7b35d62f10e94c8b7a6d5";
const IN_A_COMMENT: &str = "c0mment-s3cret-of-the-operator";
const IN_AN_ADDRESS: &str = "passw0rd-in-an-address";
const IN_A_HEADER: &str = "h3ader-value-of-a-rule";
const IN_A_LOG: &str = "MC4CAQAwBQYDK2VwBCIEIHVsQmVyUzNjcmV0S2V5MTIzNDU2Nzg5MDEy";

/// A node's directories, each secret file of them filled with a secret of its own.
pub(crate) struct Planted {
    directory: tempfile::TempDir,
    /// Name and bytes.
    pub(crate) secrets: Vec<(String, Vec<u8>)>,
}

impl Planted {
    pub(crate) fn new() -> Self {
        let mut planted = Self {
            directory: tempfile::tempdir().unwrap(),
            secrets: Vec::new(),
        };
        planted.text("bootstrap secret", BOOTSTRAP);
        planted.text("comment of the configuration", IN_A_COMMENT);
        planted.text("address of the configuration", IN_AN_ADDRESS);
        planted.text("header value of the policy", IN_A_HEADER);
        planted.text("key in a log line", IN_A_LOG);
        std::fs::write(planted.path("bootstrap-token"), BOOTSTRAP).unwrap();
        std::fs::create_dir_all(planted.path("cluster/tls")).unwrap();
        std::fs::create_dir_all(planted.path("cluster/snapshots")).unwrap();
        std::fs::create_dir_all(planted.path("http-tls")).unwrap();
        let certificate = cluster::pem::certificate(b"certificate");
        for (n, file) in [
            "cluster/tls/ca.key",
            "cluster/tls/node.key",
            "http-tls/server.key",
            "http-tls/api-auth.json",
            "http-tls/intercept-ca.key",
            "cluster/raft.redb",
            "cluster/snapshots/1.snap",
            "cluster/minted.json",
            "cluster/lkg",
            "node_id",
        ]
        .into_iter()
        .enumerate()
        {
            let secret = format!("planted-{n}-Zm9yIHRoZSB0ZXN0IG9ubHk-{file}");
            std::fs::write(planted.path(file), &secret).unwrap();
            planted.text(file, &secret);
        }
        // A key in the same file as a certificate that is public.
        for file in ["cluster/tls/node.crt", "http-tls/server.crt"] {
            let key = format!("key in {file}, which is not public");
            let text = format!(
                "{certificate}{}",
                *cluster::pem::private_key(key.as_bytes())
            );
            std::fs::write(planted.path(file), text).unwrap();
            planted.bytes(file, key.as_bytes());
        }
        planted
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn text(&mut self, name: &str, secret: &str) {
        self.bytes(name, secret.as_bytes());
    }

    pub(crate) fn bytes(&mut self, name: &str, secret: &[u8]) {
        self.secrets.push((name.to_owned(), secret.to_vec()));
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        let root = self.directory.path().display();
        let file = format!(
            "version: 1
# {IN_A_COMMENT}
bootstrap:
  management_interface: lo
  data_interface: in0
  cloud_provider: none
  data_plane_mode: packet
dns:
  target_ips: [\"10.1.0.53\"]
  upstreams: [\"192.0.2.254:53\"]
http:
  tls_dir: {root}/http-tls
  external_url: https://operator:{IN_AN_ADDRESS}@portal.example.com/x?key={IN_AN_ADDRESS}
runtime:
  run_dir: {root}/run
cluster:
  data_dir: {root}/cluster
  node_id_path: {root}/node_id
  token_path: {root}/bootstrap-token
"
        );
        Arc::new(Config::parse(Some(&file), &Flags::default()).unwrap())
    }

    pub(crate) fn log() -> RecentLog {
        let mut log = RecentLog::default();
        let lines = format!("a key {IN_A_LOG} in a line\nand secret={BOOTSTRAP}\nharmless line\n");
        std::io::Write::write_all(&mut log, lines.as_bytes()).unwrap();
        log
    }

    /// A policy that names the value of a header.
    pub(crate) fn policy() -> String {
        serde_json::json!({"default_policy": "deny", "source_groups": [{
            "id": "clients", "mode": "enforce", "sources": {"cidrs": ["10.0.0.0/8"]},
            "rules": [{"id": "api", "action": "allow", "match": {"proto": "tcp", "tls": {"mode": "intercept", "http": {
                "request": {"headers": {"exact": {"authorization": [IN_A_HEADER]}}}}}}}]}]})
        .to_string()
    }

    /// Fails if the archive holds any secret in any common form.
    pub(crate) fn check(&self, files: &BTreeMap<String, Vec<u8>>) {
        for (path, content) in files {
            let lower = content.to_ascii_lowercase();
            let holds = |content: &[u8], form: &[u8]| {
                content.windows(form.len()).any(|window| window == form)
            };
            for (name, secret) in &self.secrets {
                let (hex, others) = forms(secret);
                let is_there =
                    holds(&lower, &hex) || others.iter().any(|form| holds(content, form));
                assert!(!is_there, "{path} holds the {name}");
            }
        }
    }
}

/// A secret as it is, in hexadecimal, and in the kinds of base64, at each of the three places it may have in a group.
fn forms(secret: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![secret.to_vec()];
    for from in 0..3.min(secret.len()) {
        // Without the last group, which depends on what follows.
        let whole = &secret[from..];
        let whole = &whole[..whole.len() - whole.len() % 3];
        if whole.len() >= 9 {
            // Whole groups have no padding to differ by.
            for engine in [&STANDARD, &URL_SAFE] {
                forms.push(engine.encode(whole).into_bytes());
            }
        }
    }
    (hex.into_bytes(), forms)
}

/// All files of an archive.
pub(crate) fn unpacked(archive: impl std::io::Read) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (
                entry.path().unwrap().to_string_lossy().into_owned(),
                content,
            )
        })
        .collect()
}

#[test]
fn a_stopped_nodes_archive_holds_what_helps_and_no_secret() {
    let planted = Planted::new();
    let source = Source {
        config: Some(planted.config()),
        app: None,
        log: Some(Planted::log()),
    };
    let files = unpacked(collect(&source, Limits::default()).unwrap());
    planted.check(&files);
    let text = |path: &str| {
        let content = files
            .get(path)
            .unwrap_or_else(|| panic!("no {path} in {:?}", files.keys()));
        String::from_utf8_lossy(content).into_owned()
    };
    assert!(text("summary/configuration.json").contains("https://portal.example.com/x"));
    assert!(text("log/recent.txt").contains("harmless line"));
    assert!(text("files/http-tls/server.crt").contains("BEGIN CERTIFICATE"));
    assert!(text("files/listing.json").contains("raft.redb"));
    for path in [
        "proc/meminfo",
        "proc/net/dev",
        "sys/class/net.json",
        "proc/cmdline",
    ] {
        assert!(!text(path).is_empty(), "{path}");
    }
    let manifest: serde_json::Value = serde_json::from_str(&text("summary/manifest.json")).unwrap();
    assert_eq!(manifest["daemon_runs"], false);
    let listed = manifest["files"].as_array().unwrap().len();
    assert_eq!(listed + 1, files.len());
    // What it cannot have is named.
    let left_out = manifest["left_out"].as_array().unwrap();
    assert!(
        left_out.iter().any(|l| l["path"] == "summary"),
        "{left_out:?}"
    );
}

#[test]
fn without_a_configuration_there_is_an_archive_all_the_same() {
    let files = unpacked(collect(&Source::default(), Limits::default()).unwrap());
    assert!(files.contains_key("proc/meminfo") && files.contains_key("summary/manifest.json"));
    assert!(!Path::new("/").join("summary").exists());
}

#[test]
fn the_limits_hold() {
    let limits = Limits {
        bytes: 20_000,
        file_bytes: 5_000,
        ..Limits::default()
    };
    let files = unpacked(collect(&Source::default(), limits).unwrap());
    let manifest = &files["summary/manifest.json"];
    let content: usize = files.values().map(Vec::len).sum::<usize>() - manifest.len();
    assert!(content <= 20_000, "{content}");
    assert!(
        files
            .iter()
            .all(|(path, content)| content.len() <= 5_000 || path.ends_with("manifest.json"))
    );
}
