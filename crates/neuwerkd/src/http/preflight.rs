//! What a member can tell about a node that is to join: whether it reaches the node's listeners, and what time it is.

use std::net::SocketAddr;
use std::time::Duration;

use api::cluster::{PreflightRequest, PreflightResponse, Reached};
use axum::Json;
use bytes::Bytes;
use tokio::net::TcpStream;

use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::wall_clock_ms;

/// Addresses in one request, at most.
const MAX_ADDRESSES: usize = 8;

/// How long connecting may take; all addresses are tried at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

pub(super) static CONNECT: Doc =
    Doc::new("Have this node connect to the listeners of one that is to join")
        .takes(openapi::json("PreflightRequest"))
        .answers(&[(
            200,
            "What became of each, and this node's clock",
            Some(openapi::json("PreflightResponse")),
        )]);

pub(super) async fn connect(body: Bytes) -> Answer<Json<PreflightResponse>> {
    let request: PreflightRequest = openapi::parse(&body)?;
    if request.addresses.len() > MAX_ADDRESSES {
        return Err(Refused::bad_request(format!(
            "at most {MAX_ADDRESSES} addresses"
        )));
    }
    let mut addresses = Vec::new();
    for text in request.addresses {
        let address: SocketAddr = text
            .parse()
            .map_err(|_| Refused::bad_request(format!("{text} is not ip:port")))?;
        addresses.push(address);
    }
    let reached = futures::future::join_all(addresses.into_iter().map(reach)).await;
    Ok(Json(PreflightResponse {
        addresses: reached,
        time_ms: wall_clock_ms(),
    }))
}

async fn reach(address: SocketAddr) -> Reached {
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let failure = match connected {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
    };
    Reached {
        address: address.to_string(),
        failure,
    }
}
