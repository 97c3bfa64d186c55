//! Which node a verb talks to, and with what proof.

use std::future::Future;
use std::path::Path;

use api::{Client, Endpoint};

use crate::args::Target;
use crate::failure::Failure;

/// Runs a verb's requests on this thread.
pub(crate) fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    runtime.block_on(verb)
}

/// A client of the node that `target` names.
pub(crate) fn client(target: &Target) -> Result<Client, Failure> {
    let base = match (&target.url, &target.http_addr) {
        (Some(url), _) => url.clone(),
        (None, Some(address)) => format!("https://{address}"),
        (None, None) => return control(&target.control_socket),
    };
    let ca_pem = std::fs::read(&target.ca).map_err(|error| Failure::file(&target.ca, &error))?;
    let from_file = match &target.token_file {
        Some(path) => {
            Some(std::fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?)
        }
        None => None,
    };
    let token = target.token.as_deref().or(from_file.as_deref());
    Ok(Client::new(Endpoint::Https { base, ca_pem }, token)?)
}

/// A client of this node, over its control socket.
pub(crate) fn control(socket: &Path) -> Result<Client, Failure> {
    // Told apart here, for what the connection itself would say is not what to do.
    if let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "run as root, or ask a node with --url and --token-file"
            }
            _ => {
                "is the node running? Its runtime.run_dir may differ (--control-socket), or ask one with --url"
            }
        };
        return Err(Failure::Failed(format!(
            "{}: {error}; {remedy}",
            socket.display()
        )));
    }
    Ok(Client::new(Endpoint::Unix(socket.to_owned()), None)?)
}
