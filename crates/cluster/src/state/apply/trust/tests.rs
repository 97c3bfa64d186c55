//! What each change of trust does, refuses and leaves alone.

use std::collections::BTreeMap;

use super::*;
use crate::command::{Addresses, Certificate, Credential, Init, Reservation, SigningKey};
use crate::keyring::{self, Keyring, SealingKey};
use crate::state::tests::init;

const SEED: NodeId = NodeId(1);

/// A state at level 2 under construction.
struct Story {
    state: State,
    index: u64,
}

impl Story {
    fn founded() -> Self {
        let mut story = Story {
            state: State::default(),
            index: 0,
        };
        story.apply(Command::Init(Box::new(Init {
            feature_level: LEVEL,
            ..init()
        })));
        story
    }

    fn apply(&mut self, command: Command) -> Response {
        self.index += 1;
        let stamped = Stamped {
            command,
            time_ms: 1_000 + self.index,
            seed: [self.index as u8; 32],
            author: Author::default(),
            idempotency_key: None,
            request: None,
        };
        let before = self.state.clone();
        let response = self.state.apply(self.index, stamped);
        if matches!(response, Response::Refused(_)) {
            let hash = |state: &State| {
                let mut state = state.clone();
                state.advance(self.index);
                (state.secrets_digest(), state.members().count())
            };
            assert_eq!(
                hash(&before),
                hash(&self.state),
                "a refusal changes nothing"
            );
        }
        // What was applied survives a snapshot.
        let records: Vec<_> = self.state.records().collect();
        assert_eq!(
            State::from_records(&records).expect("reads back"),
            self.state
        );
        response
    }

    fn change(&mut self, change: TrustChange) -> Response {
        self.apply(Command::Trust(change))
    }

    fn done(&mut self, change: TrustChange) {
        assert_eq!(self.change(change), Response::Done);
    }

    fn refused(&mut self, change: TrustChange) -> Refusal {
        match self.change(change) {
            Response::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn reserve(&mut self, n: u8, kid: &str) -> Response {
        self.apply(Command::ReserveMember(Reservation {
            name: String::new(),
            addresses: Addresses::default(),
            spki: Digest::of(&[n]),
            csr: Digest::of(&[n, n]),
            credential: Credential::Bootstrap { kid: kid.into() },
        }))
    }

    fn reserved(&mut self, n: u8) -> NodeId {
        match self.reserve(n, "") {
            Response::Reserved { node_id } => node_id,
            other => panic!("{other:?}"),
        }
    }

    fn confirm(&mut self, node_id: NodeId) -> Response {
        self.apply(Command::ConfirmMember {
            node_id,
            certificate: Certificate {
                der: vec![2],
                serial: Vec::new(),
                not_before_ms: 0,
                not_after_ms: 0,
            },
        })
    }

    fn member(&mut self, n: u8) -> NodeId {
        let node_id = self.reserved(n);
        assert_eq!(self.confirm(node_id), Response::Done);
        node_id
    }

    fn leave(&mut self, node_id: NodeId) {
        self.apply(Command::RemoveMember { node_id });
        assert_eq!(
            self.apply(Command::ReleaseMember { node_id }),
            Response::Done
        );
    }

    fn sealing_key(&mut self, node_id: NodeId) {
        let public = SealingKey::generate().expect("makes one").public();
        self.done(TrustChange::SetSealingKey {
            node_id,
            public: ByteBuf::from(public),
        });
    }

    /// A sealing that fits the state as it is.
    fn sealing(&self) -> Sealing {
        let epoch = self.state.data_key().map_or(1, |key| key.epoch + 1);
        let secret = |n: u8| Secret::Sealed {
            epoch,
            nonce: ByteBuf::from([0; 12]),
            sealed: ByteBuf::from([n]),
        };
        let wrapped = Wrapped {
            enc: ByteBuf::new(),
            sealed: ByteBuf::new(),
        };
        Sealing {
            key: DataKey {
                epoch,
                wraps: self
                    .state
                    .readers()
                    .map(|id| (id, wrapped.clone()))
                    .collect(),
            },
            of: self.state.secrets_digest(),
            cluster_ca: secret(1),
            https_ca: secret(2),
            other_ca: self.state.ca_rotation().map(|_| secret(3)),
            signing_keys: self
                .state
                .signing_keys()
                .map(|record| (record.key.kid.clone(), secret(4)))
                .collect(),
            bootstrap: self.state.bootstrap_secret().map(|_| secret(5)),
        }
    }

    fn seal(&mut self) {
        let sealing = self.sealing();
        self.done(TrustChange::Seal(Box::new(sealing)));
    }
}

fn voucher(by: NodeId) -> Voucher {
    Voucher {
        by,
        certificate: ByteBuf::from([by.0 as u8]),
        signer: ByteBuf::from([0]),
    }
}

fn authority(n: u8) -> Authority {
    Authority {
        certificate_der: vec![n],
        key_pkcs8: Secret::plain([n]),
    }
}

fn shown(state: &State, node_id: NodeId) -> Vec<u8> {
    let links = state.vouchers_of(node_id);
    links.iter().step_by(2).map(|der| der[0]).collect()
}

#[test]
fn chains_of_vouchers_outlive_those_who_gave_them() {
    let mut story = Story::founded();
    let b = story.member(2);
    let c = story.member(3);
    let d = story.member(4);
    for (node_id, by) in [(b, SEED), (c, b), (d, c)] {
        story.done(TrustChange::Vouch {
            node_id,
            voucher: voucher(by),
        });
    }
    let byte = |id: NodeId| id.0 as u8;
    assert_eq!(shown(&story.state, d), [byte(c), byte(b), byte(SEED)]);
    // The first word stands.
    story.done(TrustChange::Vouch {
        node_id: d,
        voucher: voucher(SEED),
    });
    story.leave(c);
    story.leave(b);
    assert_eq!(shown(&story.state, d), [byte(c), byte(b), byte(SEED)]);
    // Nobody vouches for, or as, somebody who has left.
    assert_eq!(
        story.refused(TrustChange::Vouch {
            node_id: c,
            voucher: voucher(SEED)
        }),
        Refusal::MemberRemoved
    );
    assert_eq!(
        story.refused(TrustChange::Vouch {
            node_id: SEED,
            voucher: voucher(b)
        }),
        Refusal::MemberRemoved
    );
    // What nobody's chain leads through is not kept.
    story.leave(d);
    assert!(
        [b, c, d]
            .iter()
            .all(|id| story.state.voucher(*id).is_none())
    );
}

#[test]
fn a_circle_of_vouchers_ends() {
    let mut story = Story::founded();
    let b = story.member(2);
    for (node_id, by) in [(b, SEED), (SEED, b)] {
        story.done(TrustChange::Vouch {
            node_id,
            voucher: voucher(by),
        });
    }
    assert_eq!(story.state.vouchers_of(b).len(), 4);
}

#[test]
fn a_joiner_waits_for_approval_when_the_settings_say_so() {
    let mut story = Story::founded();
    story.apply(Command::PutSettings {
        settings: Settings {
            join_approval: JoinApproval::Manual,
            ..Settings::default()
        },
        if_match: None,
    });
    let node_id = story.reserved(2);
    assert!(story.state.waits_for_approval(node_id));
    let waits = Response::Refused(Refusal::Trust(TrustRefusal::NotApproved));
    assert_eq!(story.confirm(node_id), waits);
    assert_eq!(
        story.reserved(2),
        node_id,
        "it asks again, and goes on waiting"
    );
    assert_eq!(story.confirm(node_id), waits);
    story.done(TrustChange::Approve { node_id });
    assert_eq!(story.confirm(node_id), Response::Done);
    // Turned away instead.
    let other = story.reserved(3);
    story.leave(other);
    assert!(!story.state.waits_for_approval(other));
    assert_eq!(
        story.refused(TrustChange::Approve { node_id: other }),
        Refusal::MemberRemoved
    );
}

#[test]
fn secrets_are_sealed_for_exactly_the_members_and_only_as_they_were_seen() {
    let mut story = Story::founded();
    let b = story.member(2);
    let stale = Refusal::Trust(TrustRefusal::Stale);
    let nobody = story.sealing();
    assert_eq!(story.refused(TrustChange::Seal(Box::new(nobody))), stale);
    story.sealing_key(SEED);
    story.sealing_key(b);

    let fits = story.sealing();
    for change in [
        |sealing: &mut Sealing| sealing.key.epoch = 2,
        |sealing: &mut Sealing| sealing.of = Digest([0; 32]),
        |sealing: &mut Sealing| drop(sealing.key.wraps.pop_last()),
        |sealing: &mut Sealing| sealing.signing_keys = BTreeMap::new(),
        |sealing: &mut Sealing| sealing.other_ca = Some(Secret::plain([1])),
        |sealing: &mut Sealing| sealing.bootstrap = Some(Secret::plain([1])),
    ] {
        let mut sealing = fits.clone();
        change(&mut sealing);
        assert_eq!(story.refused(TrustChange::Seal(Box::new(sealing))), stale);
    }
    story.done(TrustChange::Seal(Box::new(fits)));
    let sealed = |story: &Story, epoch| {
        story
            .state
            .secrets()
            .all(|secret| secret.epoch() == Some(epoch))
    };
    assert!(sealed(&story, 1));

    // From then on secrets come sealed under the key in force.
    let key = |secret| SigningKey {
        kid: "k2".into(),
        public: vec![1; 32],
        key_pkcs8: secret,
    };
    let plain = story.apply(Command::AddSigningKey(key(Secret::plain([9]))));
    assert_eq!(plain, Response::Refused(stale.clone()));
    let under = story.sealing().cluster_ca;
    let future = story.apply(Command::AddSigningKey(key(under)));
    assert_eq!(
        future,
        Response::Refused(stale.clone()),
        "a data key to come"
    );

    // A newcomer gets the key that is in force, and a leaver's is replaced.
    let c = story.member(3);
    let wrap = |epoch| TrustChange::Wrap {
        node_id: c,
        epoch,
        wrapped: Wrapped {
            enc: ByteBuf::new(),
            sealed: ByteBuf::new(),
        },
    };
    assert_eq!(story.refused(wrap(1)), stale, "it has no sealing key yet");
    story.sealing_key(c);
    assert_eq!(story.refused(wrap(2)), stale);
    story.done(wrap(1));
    story.leave(b);
    assert!(
        story
            .state
            .data_key()
            .is_some_and(|key| key.wraps.contains_key(&b))
    );
    story.seal();
    assert!(sealed(&story, 2));
    let holders: Vec<_> = story
        .state
        .data_key()
        .expect("is there")
        .wraps
        .keys()
        .copied()
        .collect();
    assert_eq!(holders, story.state.readers().collect::<Vec<_>>());
    // A member with another sealing key reads nothing until the key is wrapped for that.
    story.sealing_key(c);
    assert!(
        story
            .state
            .data_key()
            .is_some_and(|key| !key.wraps.contains_key(&c))
    );
}

#[test]
fn a_cluster_may_begin_with_sealed_secrets() {
    let sealing = SealingKey::generate().expect("makes one");
    let (first_key, open) = keyring::first_key(SEED, &sealing).expect("makes one");
    let mut story = Story {
        state: State::default(),
        index: 0,
    };
    let mut first = init();
    first.cluster_ca.key_pkcs8 = keyring::seal(b"ca key", 1, &open).expect("seals");
    first.first_key = Some(first_key);
    story.apply(Command::Init(Box::new(first)));
    let keyring = Keyring::new(SEED, &[], sealing);
    let state = story.state.clone().read_with(keyring);
    assert_eq!(state, story.state);
    let secret = &state.cluster_ca().expect("is there").key_pkcs8;
    assert_eq!(state.open(secret).expect("opens").as_slice(), b"ca key");
    assert!(story.state.open(secret).is_err(), "without the keys");
}

#[test]
fn a_rotation_of_the_ca_goes_step_by_step() {
    let mut story = Story::founded();
    let (old, new) = (3, 9);
    let trusted = |story: &Story| -> Vec<u8> {
        let authorities = story.state.cluster_cas();
        authorities.map(|ca| ca.certificate_der[0]).collect()
    };
    let none = Refusal::Trust(TrustRefusal::NoRotation);
    for change in [
        TrustChange::IssueFromNextCa,
        TrustChange::FinishCaRotation,
        TrustChange::AbortCaRotation,
    ] {
        assert_eq!(story.refused(change), none);
    }
    let start = || TrustChange::StartCaRotation {
        next: authority(new),
    };
    story.done(start());
    assert_eq!(trusted(&story), [old, new]);
    assert_eq!(
        story.refused(start()),
        Refusal::Trust(TrustRefusal::RotationUnderWay)
    );
    assert_eq!(story.refused(TrustChange::FinishCaRotation), none);
    story.done(TrustChange::IssueFromNextCa);
    assert_eq!(trusted(&story), [new, old]);
    assert_eq!(story.refused(TrustChange::IssueFromNextCa), none);
    story.done(TrustChange::FinishCaRotation);
    assert_eq!(trusted(&story), [new]);
}

#[test]
fn a_rotation_of_the_ca_is_aborted_at_any_point() {
    let mut story = Story::founded();
    let (old, new) = (3, 9);
    let start = || TrustChange::StartCaRotation {
        next: authority(new),
    };
    let trusted = |story: &Story| -> Vec<u8> {
        let authorities = story.state.cluster_cas();
        authorities.map(|ca| ca.certificate_der[0]).collect()
    };
    story.done(start());
    story.done(TrustChange::AbortCaRotation);
    assert_eq!(trusted(&story), [old]);
    // Members may have certificates of the new one: both stay trusted until all have one of the old one again.
    story.done(start());
    story.done(TrustChange::IssueFromNextCa);
    story.done(TrustChange::AbortCaRotation);
    assert_eq!(trusted(&story), [old, new]);
    assert!(
        story
            .state
            .ca_rotation()
            .is_some_and(|rotation| rotation.aborting)
    );
    story.done(TrustChange::AbortCaRotation);
    assert_eq!(trusted(&story), [old, new], "again changes nothing");
    story.done(TrustChange::FinishCaRotation);
    assert_eq!(trusted(&story), [old]);
}

#[test]
fn a_rotated_bootstrap_secret_is_the_only_one() {
    let mut story = Story::founded();
    story.reserved(2);
    story.done(TrustChange::PutBootstrapSecret {
        kid: "r1".into(),
        secret: Secret::plain([1]),
    });
    let revoked = Refusal::Credential(CredentialState::Revoked);
    assert_eq!(story.reserve(3, ""), Response::Refused(revoked));
    assert!(matches!(story.reserve(3, "r1"), Response::Reserved { .. }));
}

#[test]
fn nothing_happens_by_itself_before_the_level() {
    let mut story = Story {
        state: State::default(),
        index: 0,
    };
    story.apply(Command::Init(Box::new(init())));
    story.apply(Command::PutSettings {
        settings: Settings {
            join_approval: JoinApproval::Manual,
            ..Settings::default()
        },
        if_match: None,
    });
    let node_id = story.reserved(2);
    assert_eq!(story.confirm(node_id), Response::Done);
    assert!(
        story
            .state
            .root
            .as_ref()
            .is_some_and(|root| root.trust.is_empty())
    );
}
