//! How nodes are let in, and the CA that they are recognised by.

use super::{Client, Error, HeaderMap, Method};
use crate::joining::{
    BootstrapSecretResponse, ClusterCaView, JoinSettings, JoinSettingsRequest,
    JoinTokenCreateRequest, JoinTokenMeta, JoinTokenResponse,
};
use crate::paths;

impl Client {
    /// Creates a join token.
    pub async fn join_token_create(
        &self,
        request: &JoinTokenCreateRequest,
    ) -> Result<JoinTokenResponse, Error> {
        self.change(Method::POST, paths::JOIN_TOKENS, request, None)
            .await
    }

    /// The join tokens.
    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenMeta>, Error> {
        self.get(paths::JOIN_TOKENS).await
    }

    /// Ends a join token.
    pub async fn join_token_revoke(&self, id: &str) -> Result<(), Error> {
        self.order(Method::DELETE, &paths::JOIN_TOKEN.replace("{id}", id))
            .await
    }

    /// How new members are let in.
    pub async fn join_settings(&self) -> Result<JoinSettings, Error> {
        self.get(paths::JOIN_SETTINGS).await
    }

    /// Changes how new members are let in.
    pub async fn join_settings_put(
        &self,
        request: &JoinSettingsRequest,
    ) -> Result<JoinSettings, Error> {
        self.change(Method::PUT, paths::JOIN_SETTINGS, request, None)
            .await
    }

    /// Replaces the bootstrap secret.
    pub async fn bootstrap_rotate(&self) -> Result<BootstrapSecretResponse, Error> {
        self.change(
            Method::POST,
            paths::BOOTSTRAP_ROTATION,
            &serde_json::Map::new(),
            None,
        )
        .await
    }

    /// Lets a node in that waits for approval.
    pub async fn member_approve(&self, node_id: &str) -> Result<(), Error> {
        let path = paths::MEMBER_APPROVAL.replace("{node_id}", node_id);
        self.order(Method::POST, &path).await
    }

    /// The cluster's CA, and how far its rotation is.
    pub async fn cluster_ca(&self) -> Result<ClusterCaView, Error> {
        self.get(paths::CLUSTER_CA).await
    }

    /// Begins to replace the cluster's CA.
    pub async fn ca_rotate(&self) -> Result<ClusterCaView, Error> {
        self.change(
            Method::POST,
            paths::CA_ROTATION,
            &serde_json::Map::new(),
            None,
        )
        .await
    }

    /// Goes back to the CA that the rotation began with.
    pub async fn ca_rotation_abort(&self) -> Result<ClusterCaView, Error> {
        self.change(
            Method::DELETE,
            paths::CA_ROTATION,
            &serde_json::Map::new(),
            None,
        )
        .await
    }

    /// Asks for something whose answer has no body.
    async fn order(&self, method: Method, path: &str) -> Result<(), Error> {
        let nothing = bytes::Bytes::new();
        let answer = self
            .send(method, path, HeaderMap::new(), nothing, self.limit)
            .await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.refusal(answer)),
        }
    }
}
