//! Looking for members at addresses of which it is not known who is there: one connection each, for one question.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::dial::{Connection, DialError, handshake};
use super::{Client, outcome, tune, wire};
use crate::id::NodeId;
use crate::tls::Trust;
use crate::transport::{Kind, Search};

/// Addresses that are tried at once, at most: a name may have many.
const MAX_TARGETS: usize = 32;

/// See [`Transport::find`](crate::transport::Transport::find).
pub(super) async fn find(
    trust: &Arc<Trust>,
    stop: &CancellationToken,
    search: Search,
) -> Vec<(NodeId, Bytes)> {
    let mut found = Vec::new();
    let looking = async {
        let targets = targets(&search).await;
        let mut asked: FuturesUnordered<_> = targets
            .into_iter()
            .map(|target| ask(trust, stop, target, search.body.clone()))
            .collect();
        while let Some(answer) = asked.next().await {
            found.extend(answer);
        }
    };
    // What has come until then counts.
    let _ = tokio::time::timeout(search.deadline, looking).await;
    found
}

/// Every address that is meant, once, without this node's own.
async fn targets(search: &Search) -> Vec<SocketAddr> {
    let own: Option<SocketAddr> = search.own.parse().ok();
    let mut targets: Vec<SocketAddr> = Vec::new();
    for address in &search.addresses {
        // A name that cannot be resolved now may be later.
        let Ok(resolved) = tokio::net::lookup_host(address.as_str()).await else {
            continue;
        };
        for target in resolved {
            if Some(target) != own && !targets.contains(&target) && targets.len() < MAX_TARGETS {
                targets.push(target);
            }
        }
    }
    targets
}

async fn ask(
    trust: &Arc<Trust>,
    stop: &CancellationToken,
    target: SocketAddr,
    body: Bytes,
) -> Option<(NodeId, Bytes)> {
    let connection = connect(trust, stop, target).await.ok()?;
    let node_id = connection.node_id();
    let connection = Arc::new(Mutex::new(Some(TokioIo::new(connection))));
    let once = service_fn(move |_: Uri| {
        let taken = connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        std::future::ready(taken.ok_or(DialError::BackingOff)).boxed()
    });
    let channel = Endpoint::from_static("http://member")
        .connect_with_connector(once)
        .await
        .ok()?;
    let request = wire::CallRequest {
        kind: Kind::Find as u32,
        body,
    };
    let answer = Client::new(channel).call(request).await.ok()?;
    Some((node_id, outcome(answer.into_inner()).ok()?))
}

async fn connect(
    trust: &Arc<Trust>,
    stop: &CancellationToken,
    target: SocketAddr,
) -> Result<Connection, DialError> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(DialError::Connect)?;
    tune(&stream).map_err(DialError::Connect)?;
    handshake(
        trust,
        &trust.client_config(),
        trust.any_name(),
        stream,
        stop,
    )
    .await
}
