//! `neuwerk auth`: tokens for the management API.

use std::path::Path;
use std::time::Duration;

use api::auth::{MintRequest, Minted};
use neuwerkd::member::{self, MemberError};

use crate::args::Mint;
use crate::connect::control;
use crate::failure::Failure;
use crate::print;

/// How long another member may take.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn mint(mint: Mint) -> Result<(), Failure> {
    let request = MintRequest {
        sub: mint.sub,
        roles: mint.roles,
        ttl: Some(api::duration::format(mint.ttl)),
        kid: mint.kid,
    };
    let minted = match &mint.cluster_addr {
        Some(address) => {
            match member::mint(&mint.cluster_tls_dir, address, &request, LIMIT).await {
                Err(MemberError::Own(_)) => at_home(&mint.control_socket, &request).await?,
                asked => asked.map_err(|error| Failure::Failed(error.to_string()))?,
            }
        }
        None => at_home(&mint.control_socket, &request).await?,
    };
    if mint.json {
        return print::json(&minted);
    }
    print::to_stdout(&format!("{}\n", minted.token))
}

/// Asks this node.
async fn at_home(control_socket: &Path, request: &MintRequest) -> Result<Minted, Failure> {
    Ok(control(control_socket)?.mint_token(request).await?)
}
