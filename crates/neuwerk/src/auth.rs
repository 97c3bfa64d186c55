//! `neuwerk auth`: tokens for the management API.

use api::auth::MintRequest;

use crate::args::Mint;
use crate::connect::control;
use crate::failure::Failure;
use crate::print;

pub(crate) async fn mint(mint: Mint) -> Result<(), Failure> {
    if let Some(address) = &mint.cluster_addr {
        let reason = format!("{address}: this build asks this node only; leave --cluster-addr out");
        return Err(Failure::Failed(reason));
    }
    let request = MintRequest {
        sub: mint.sub,
        roles: mint.roles,
        ttl: Some(api::duration::format(mint.ttl)),
        kid: mint.kid,
    };
    let minted = control(&mint.control_socket)?.mint_token(&request).await?;
    if mint.json {
        return print::json(&minted);
    }
    print::to_stdout(&format!("{}\n", minted.token))
}
