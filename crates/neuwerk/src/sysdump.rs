//! `neuwerk sysdump`: a support archive, from a running node, from all of them, or from what a stopped one has left.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::client::Collected;
use neuwerkd::config::{Config, Flags};
use neuwerkd::sysdump::{self, Limits, Source};

use crate::args::{Sysdump, Target};
use crate::connect::client;
use crate::failure::Failure;
use crate::print;

/// How long a node may take, the other members included.
const LIMIT: Duration = Duration::from_secs(240);

pub(crate) async fn sysdump(verb: Sysdump) -> Result<(), Failure> {
    let to_stdout = verb.output.as_deref() == Some(Path::new("-"));
    let path = verb.output.clone().unwrap_or_else(default_name);
    let mut out = if to_stdout {
        Output::Stdout(io::stdout())
    } else {
        Output::create(&path)?
    };
    match make(&verb, &mut out).await {
        Ok(missing) => {
            out.sync().map_err(|error| Failure::file(&path, &error))?;
            if !to_stdout {
                print::to_stderr(&format!("wrote {}", path.display()));
            }
            for member in missing {
                print::to_stderr(&format!(
                    "warning: {member} is not in it; manifest.json says why"
                ));
            }
            Ok(())
        }
        Err(failure) => {
            // Half an archive helps nobody.
            if !to_stdout {
                drop(std::fs::remove_file(&path));
            }
            Err(failure)
        }
    }
}

/// Writes the archive, and returns the members that it has nothing of.
async fn make(verb: &Sysdump, out: &mut Output) -> Result<Vec<String>, Failure> {
    if !verb.cluster && is_here(&verb.target) && !is_running(&verb.target.control_socket) {
        print::to_stderr("the node does not run: collecting what can be had without it");
        offline(verb.config.as_deref(), out)?;
        return Ok(Vec::new());
    }
    let node = client(&verb.target)?.with_limit(LIMIT);
    let collected = node
        .sysdump(verb.cluster, |bytes| out.write_all(bytes))
        .await?;
    let Collected { missing, .. } = collected;
    Ok(missing)
}

fn is_here(target: &Target) -> bool {
    target.url.is_none() && target.http_addr.is_none()
}

fn is_running(control_socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(control_socket).is_ok()
}

/// Collects without a daemon. A configuration that cannot be read is no obstacle: it may be what is wrong.
fn offline(config: Option<&Path>, out: &mut Output) -> Result<(), Failure> {
    let config = match Config::load(config, &Flags::default()) {
        Ok(config) => Some(Arc::new(config)),
        Err(invalid) => {
            print::to_stderr(&Failure::from(invalid).to_string());
            None
        }
    };
    let source = Source {
        config,
        ..Source::default()
    };
    let failed = |error: io::Error| Failure::Failed(format!("the archive: {error}"));
    let mut archive = sysdump::collect(&source, Limits::default()).map_err(failed)?;
    io::copy(&mut archive, out).map_err(failed)?;
    Ok(())
}

/// Where the archive goes.
enum Output {
    File(File),
    Stdout(io::Stdout),
}

impl Output {
    /// A new file for its owner only; one that is there already is left alone.
    fn create(path: &Path) -> Result<Output, Failure> {
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        created
            .map(Output::File)
            .map_err(|error| Failure::file(path, &error))
    }

    fn sync(&mut self) -> io::Result<()> {
        match self {
            Output::File(file) => file.sync_all(),
            Output::Stdout(stdout) => stdout.flush(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::File(file) => file.write(bytes),
            Output::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::File(file) => file.flush(),
            Output::Stdout(stdout) => stdout.flush(),
        }
    }
}

fn default_name() -> PathBuf {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    format!("neuwerk-sysdump-{seconds}.tar.gz").into()
}
