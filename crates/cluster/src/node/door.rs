//! What the join listener asks of a member, and what a member notices at the door.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::type_config::TypeConfigExt as _;

use super::boots::Verdict;
use super::{Inner, Node, locked};
use crate::command::EventKind;
use crate::id::NodeId;
use crate::join::client::Credentials;
use crate::join::listener::Secrets;
use crate::join::protocol::{TokenOffer, Tokens};
use crate::join::secret::{Secret, SecretError};
use crate::raft::Types;

/// An identity that is seen in two places is told of this often.
const TELL_AGAIN: Duration = Duration::from_secs(60 * 60);

impl<R: AsyncRuntime> Node<R> {
    /// Finds join tokens in the state, and the CAs to prove this cluster with to their holders.
    pub fn token_offers(&self) -> Tokens {
        let states = self.watch();
        Arc::new(move |id| {
            let state = states.borrow().clone();
            let token = state.join_token(id).ok_or(
                "this cluster knows no such join token: it is of another cluster, or ended long ago",
            )?;
            let authorities = state
                .cluster_cas()
                .map(|ca| state.open_ca(ca).map(Arc::new));
            Ok(TokenOffer {
                public: token.public,
                authorities: authorities
                    .collect::<Result<_, _>>()
                    .map_err(|error| error.to_string())?,
            })
        })
    }

    /// The bootstrap secrets that admit members: the cluster's, once it was rotated, otherwise those of the file.
    pub fn bootstrap_secrets(&self, file: Credentials) -> Secrets {
        let states = self.watch();
        Arc::new(move || {
            let state = states.borrow().clone();
            let Some(replicated) = state.bootstrap_secret() else {
                return Ok(file()?.secrets);
            };
            let text = state.open(&replicated.secret)?;
            let text = std::str::from_utf8(&text).map_err(|_| SecretError::Random)?;
            Ok(Secret::new(replicated.kid.clone(), text)
                .into_iter()
                .collect())
        })
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// Where the first machine is, if the report comes from the second one under the same identity.
    pub(super) fn second_of_two(
        &self,
        from: NodeId,
        incarnation: u64,
        address: &str,
    ) -> Option<String> {
        let now = Types::<R>::now();
        let verdict = locked(&self.boots).see(from, incarnation, address, now);
        let Verdict::Second { first } = verdict else {
            return None;
        };
        let mut told = locked(&self.told);
        if told.get(&from).is_none_or(|at| now >= *at + TELL_AGAIN) {
            told.insert(from, now);
            tracing::error!(
                node = %from, first, second = address,
                "two machines run under one identity: a cloned machine, or a copied disk; the second one is turned away"
            );
            self.note(
                EventKind::DuplicateIdentity,
                from.to_string(),
                format!("at {first} and at {address}"),
            );
        }
        Some(first)
    }
}
