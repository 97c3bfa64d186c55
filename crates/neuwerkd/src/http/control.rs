//! The control socket: the same API for root on this node, without a token.
//!
//! Two locks: the socket's mode, and the kernel's word on who is on the other side. It needs no
//! quorum and no leader, so it is the way in when everything else is down.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::App;
use super::listen::{Limits, serve_unix};

/// Serves the control socket at `path` until `drain` is cancelled, then drains. A socket that
/// cannot be bound costs the node its back door and nothing else.
pub async fn serve(path: PathBuf, app: Arc<App>, drain: CancellationToken) {
    match ControlSocket::bind(&path).await {
        Ok(socket) => socket.serve(app.router(), drain).await,
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "there is no control socket: tokens cannot be minted on this node");
        }
    }
}

/// A bound control socket; its file goes with it.
#[derive(Debug)]
struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ControlSocket {
    /// Binds it, making its directory if need be. What a dead process left there is replaced;
    /// where a live one answers, it is `AddrInUse`.
    async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        if UnixStream::connect(path).await.is_ok() {
            let text = format!("{}: another process answers there", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        // Bound under another name, closed to others, and only then put in its place.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, path)?;
        Ok(Self {
            listener,
            file: SocketFile(path.to_owned()),
        })
    }

    async fn serve(self, router: Router, drain: CancellationToken) {
        serve_unix(self.listener, router, Limits::default(), drain, is_root).await;
        drop(self.file);
    }
}

/// Root, or whoever this process runs as.
fn is_root(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}
