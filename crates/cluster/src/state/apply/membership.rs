//! The rules of membership: in by a credential, confirmed by a certificate, out for good.

use std::collections::BTreeMap;

use super::*;

impl State {
    pub(super) fn reserve_member(
        &mut self,
        reservation: Reservation,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let Reservation {
            name,
            addresses,
            spki,
            csr,
            credential,
        } = reservation;
        // The same request again, because its answer was lost: same node, and no further use is consumed.
        if let Some(member) = self.members.values().find(|member| member.csr == Some(csr)) {
            return Ok(Response::Reserved {
                node_id: member.node_id,
            });
        }
        if self.removed.values().any(|removed| removed.spki == spki) {
            return Err(Refusal::MemberRemoved);
        }
        if self.members.values().any(|member| member.spki == spki) {
            return Err(Refusal::Exists {
                record: Record::Member,
            });
        }
        check_room(Record::Member, self.members.len(), MAX_MEMBERS)?;
        check_len(Record::Member, &name, 256)?;
        self.use_credential(&credential, context)?;
        let node_id = (0..)
            .map(|n| {
                let bytes = context.draw(n);
                NodeId(u64::from_be_bytes(
                    bytes[..8].try_into().expect("8 of 16 bytes"),
                ))
            })
            .find(|id| {
                *id != NodeId(0) && !self.members.contains_key(id) && !self.removed.contains_key(id)
            })
            .expect("fewer than 2^32 ids were ever given out");
        self.members.insert(
            node_id,
            Arc::new(Member {
                node_id,
                name,
                addresses,
                spki,
                csr: Some(csr),
                certificate: None,
                joined_ms: context.time_ms,
                incarnation: 0,
                feature_level: 0,
                standing: Standing::Joining,
                suffrage: Suffrage::Auto,
                draining: false,
            }),
        );
        self.hold_for_approval(node_id);
        let detail = match &credential {
            // Older versions write none.
            _ if self.feature_level() < 2 => String::new(),
            Credential::Bootstrap { kid } if kid.is_empty() => "by the bootstrap secret".to_owned(),
            Credential::Bootstrap { kid } => format!("by the bootstrap secret {kid}"),
            Credential::Token { id } => format!("by join token {id}"),
        };
        let action = Action::Created(Record::Member);
        self.record_with(action, node_id.to_string(), detail, context);
        Ok(Response::Reserved { node_id })
    }

    fn use_credential(
        &mut self,
        credential: &Credential,
        context: &Context,
    ) -> Result<(), Refusal> {
        match credential {
            Credential::Bootstrap { kid } => {
                if !self
                    .settings()
                    .is_some_and(|(settings, _)| settings.bootstrap_join)
                {
                    return Err(Refusal::Credential(CredentialState::Off));
                }
                // After a rotation what the members' files hold is void, even where a member still goes by its file.
                match self.bootstrap_secret() {
                    Some(current) if current.kid != *kid => {
                        Err(Refusal::Credential(CredentialState::Revoked))
                    }
                    _ => Ok(()),
                }
            }
            Credential::Token { id } => {
                let token = self
                    .join_tokens
                    .get_mut(id)
                    .ok_or(Refusal::Credential(CredentialState::Unknown))?;
                if token.revoked_ms.is_some() {
                    return Err(Refusal::Credential(CredentialState::Revoked));
                }
                if token.expires_ms <= context.time_ms {
                    return Err(Refusal::Credential(CredentialState::Expired));
                }
                if token.uses_left == 0 {
                    return Err(Refusal::Credential(CredentialState::UsedUp));
                }
                Arc::make_mut(token).uses_left -= 1;
                Ok(())
            }
        }
    }

    pub(super) fn change_member(
        &mut self,
        node_id: NodeId,
        change: impl FnOnce(&mut Member),
    ) -> Result<Response, Refusal> {
        if self.removed.contains_key(&node_id) {
            return Err(Refusal::MemberRemoved);
        }
        let member = self.members.get_mut(&node_id).ok_or(Refusal::NotFound {
            record: Record::Member,
        })?;
        change(Arc::make_mut(member));
        Ok(Response::Done)
    }

    pub(super) fn confirm_member(
        &mut self,
        node_id: NodeId,
        certificate: Certificate,
        context: &Context,
    ) -> Result<Response, Refusal> {
        self.check_approved(node_id)?;
        let response = self.change_member(node_id, |member| {
            member.certificate = Some(certificate);
            if member.standing == Standing::Joining {
                member.standing = Standing::Member;
            }
        })?;
        self.record(Action::Changed(Record::Member), node_id, context);
        Ok(response)
    }

    pub(super) fn remove_member(
        &mut self,
        node_id: NodeId,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let others: Vec<&Arc<Member>> = self
            .members
            .values()
            .filter(|member| member.node_id != node_id && member.standing == Standing::Member)
            .collect();
        let is_member = self
            .members
            .get(&node_id)
            .is_some_and(|member| member.standing == Standing::Member);
        if is_member && others.is_empty() {
            return Err(Refusal::LastMember);
        }
        if is_member
            && others
                .iter()
                .all(|member| member.suffrage == Suffrage::Learner)
        {
            return Err(Refusal::NoVoter);
        }
        let response = self.change_member(node_id, |member| member.standing = Standing::Leaving)?;
        self.record(Action::Changed(Record::Member), node_id, context);
        Ok(response)
    }

    pub(super) fn release_member(
        &mut self,
        node_id: NodeId,
        context: &Context,
    ) -> Result<Response, Refusal> {
        if self.removed.contains_key(&node_id) {
            return Ok(Response::Done);
        }
        let member = self.members.get(&node_id).ok_or(Refusal::NotFound {
            record: Record::Member,
        })?;
        if member.standing != Standing::Leaving {
            return Err(Refusal::NotLeaving);
        }
        self.removed.insert(
            node_id,
            Removed {
                node_id,
                spki: member.spki,
                removed_ms: context.time_ms,
            },
        );
        self.members.remove(&node_id);
        self.forget_trust_in(node_id);
        self.record(Action::Ended(Record::Member), node_id, context);
        Ok(Response::Done)
    }

    pub(super) fn set_suffrage(
        &mut self,
        wanted: &BTreeMap<NodeId, Suffrage>,
        context: &Context,
    ) -> Result<Response, Refusal> {
        for id in wanted.keys() {
            if self.removed.contains_key(id) {
                return Err(Refusal::MemberRemoved);
            }
            if self
                .members
                .get(id)
                .is_none_or(|member| member.standing != Standing::Member)
            {
                return Err(Refusal::NotFound {
                    record: Record::Member,
                });
            }
        }
        let may_vote = |member: &Arc<Member>| {
            let suffrage = wanted.get(&member.node_id).unwrap_or(&member.suffrage);
            member.standing == Standing::Member && *suffrage != Suffrage::Learner
        };
        if !self.members.values().any(may_vote) {
            return Err(Refusal::NoVoter);
        }
        for (id, suffrage) in wanted {
            if self
                .members
                .get(id)
                .is_some_and(|member| member.suffrage != *suffrage)
            {
                self.change_member(*id, |member| member.suffrage = *suffrage)?;
                self.record(Action::Changed(Record::Member), id, context);
            }
        }
        Ok(Response::Done)
    }

    pub(super) fn drain_member(
        &mut self,
        node_id: NodeId,
        draining: bool,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let before = self
            .members
            .get(&node_id)
            .is_some_and(|member| member.draining);
        let response = self.change_member(node_id, |member| member.draining = draining)?;
        if before != draining {
            self.record(Action::Changed(Record::Member), node_id, context);
        }
        Ok(response)
    }

    pub(super) fn raise_feature_level(
        &mut self,
        level: u32,
        version: String,
        context: &Context,
    ) -> Result<Response, Refusal> {
        let supported = self
            .members
            .values()
            .map(|member| member.feature_level)
            .min()
            .unwrap_or(0);
        if level > supported {
            return Err(Refusal::FeatureLevel { supported });
        }
        if level > self.feature_level() {
            let root = self.root_mut();
            root.feature_level = level;
            root.feature_version = clipped(version, 64);
            self.record(Action::Changed(Record::Cluster), level, context);
        }
        Ok(Response::Done)
    }
}
