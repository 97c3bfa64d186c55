//! The join protocol without sockets: bytes in, bytes out.
//!
//! [`Joiner`] and [`Acceptor`] are the two sides of one attempt on one connection. Each is handed its nonce and the
//! connection's exporter, so that a test can relay, replay, cut and forge at will.

use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use prost::Message as _;
use uuid::Uuid;

use super::secret::Secret;
use super::token::{self, Token};
use super::{EnrolGrant, EnrolRefusal, EnrolRequest, KnownMember};
use crate::ca::{self, Ca, Csr};
use crate::command::{Addresses, Credential};
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::wire::join as wire;

/// Most that an acceptor reads of one request, lengths included.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Most that a joiner reads of one answer.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Longest name, address or version, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;

/// Most authorities that a joiner looks at: two are trusted at most.
const MAX_AUTHORITIES: usize = 4;

/// Bytes of a nonce, of an exporter and of a proof.
pub const BINDING_BYTES: usize = 32;

/// What makes one attempt on one connection unlike any other.
#[derive(Clone, Copy)]
pub struct Binding {
    /// This side's nonce: random.
    pub nonce: [u8; BINDING_BYTES],
    /// The connection's TLS exporter under [`EXPORTER_LABEL`](super::EXPORTER_LABEL).
    pub exporter: [u8; BINDING_BYTES],
}

/// Why an attempt came to nothing. For this side's operator; the other side is told nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More bytes than a message may have.
    #[error("a message of more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not the message that was due.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The cluster knows no such join token.
    #[error("{0}")]
    UnknownToken(String),
    /// None of the cluster's proofs was made with a secret of this joiner, on this connection.
    #[error(
        "the cluster does not hold this node's bootstrap secret, or somebody stands between: \
         compare the bootstrap token files of both"
    )]
    ClusterUnproved,
    /// The other side does not hold the key of the CA that the join token names, on this connection.
    #[error(
        "this is not the cluster that the join token is for, its CA was rotated since, or somebody stands between: \
         make another token with: neuwerk cluster token create"
    )]
    AuthorityUnproved,
    /// The joiner's proof is wrong.
    #[error("the joiner's proof is wrong: it holds another secret, or relays or replays a proof")]
    JoinerUnproved,
    /// The certificate request is not the one that was announced, or not one that can be certified.
    #[error("the certificate request is not one that can be certified")]
    Request,
    /// What the cluster issued does not belong to this node.
    #[error("what the cluster issued does not belong to this node's key")]
    Issued,
    /// More came after the end.
    #[error("more came after the last message")]
    Trailing,
}

/// Collects length-prefixed messages.
#[derive(Debug)]
struct Frames {
    buffer: Vec<u8>,
    limit: usize,
}

impl Frames {
    fn new(limit: usize) -> Self {
        Frames {
            buffer: Vec::new(),
            limit,
        }
    }

    /// Takes bytes in. What is too large is refused as soon as its length is known.
    fn push(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.buffer.len() + bytes.len() > self.limit {
            return Err(ProtocolError::TooLarge { limit: self.limit });
        }
        self.buffer.extend_from_slice(bytes);
        match self.length() {
            Some(length) if length > self.limit - 4 => {
                Err(ProtocolError::TooLarge { limit: self.limit })
            }
            _ => Ok(()),
        }
    }

    fn length(&self) -> Option<usize> {
        let prefix = self.buffer.first_chunk::<4>()?;
        // On every platform with at least 32 bits this is exact.
        usize::try_from(u32::from_be_bytes(*prefix)).ok()
    }

    /// The next whole message.
    fn pop(&mut self) -> Option<Vec<u8>> {
        let end = 4 + self.length()?;
        if self.buffer.len() < end {
            return None;
        }
        let message = self.buffer[4..end].to_vec();
        self.buffer.drain(..end);
        Some(message)
    }
}

fn frame(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(4 + length);
    let prefix = u32::try_from(length).expect("messages are far below 4 GiB");
    bytes.extend_from_slice(&prefix.to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// Who proves.
#[derive(Clone, Copy)]
enum Side {
    Cluster,
    Joiner,
}

/// What both sides have seen of this attempt.
struct Transcript {
    joiner_nonce: [u8; BINDING_BYTES],
    cluster_nonce: [u8; BINDING_BYTES],
    csr: Digest,
    exporter: [u8; BINDING_BYTES],
}

impl Transcript {
    /// What is signed where the joiner holds a join token.
    fn message(&self, token: Uuid, side: Side) -> Vec<u8> {
        let role: &[u8] = match side {
            Side::Cluster => b"neuwerk-join/1 token cluster\0",
            Side::Joiner => b"neuwerk-join/1 token joiner\0",
        };
        // As with the HMAC: every part but the role, which ends with a zero, has a fixed length.
        [
            role,
            token.as_bytes(),
            &self.joiner_nonce,
            &self.cluster_nonce,
            &self.csr.0,
            &self.exporter,
        ]
        .concat()
    }

    fn proof(&self, secret: &Secret, side: Side) -> hmac::Tag {
        let role: &[u8] = match side {
            Side::Cluster => b"neuwerk-join/1 cluster\0",
            Side::Joiner => b"neuwerk-join/1 joiner\0",
        };
        let mut context = hmac::Context::with_key(&secret.key());
        // Every part but the role, which ends with a zero, has a fixed length: no two transcripts read the same.
        context.update(role);
        context.update(&self.joiner_nonce);
        context.update(&self.cluster_nonce);
        context.update(&self.csr.0);
        context.update(&self.exporter);
        context.sign()
    }

    fn verify(&self, secret: &Secret, side: Side, proof: &[u8]) -> bool {
        let expected = self.proof(secret, side);
        constant_time::verify_slices_are_equal(expected.as_ref(), proof).is_ok()
    }
}

/// What a joiner says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// PKCS #10, DER: the same at every attempt.
    pub csr: Vec<u8>,
    /// Host name, for people.
    pub name: String,
    /// Where it will be reached.
    pub addresses: Addresses,
    /// Version of the program.
    pub version: String,
    /// Highest feature level that it supports.
    pub feature_level: u32,
}

/// How a joiner's attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is a member.
    Granted(Box<EnrolGrant>),
    /// It is not.
    Refused(EnrolRefusal),
}

/// What a joiner shows in one attempt.
#[derive(Debug, Clone)]
pub enum Presented {
    /// Its bootstrap secrets: one will do.
    Secrets(Vec<Secret>),
    /// A join token.
    Token(Token),
}

impl From<Vec<Secret>> for Presented {
    fn from(secrets: Vec<Secret>) -> Self {
        Presented::Secrets(secrets)
    }
}

/// The joiner's side of one attempt.
pub struct Joiner {
    presented: Presented,
    application: Application,
    binding: Binding,
    input: Frames,
    output: Option<Vec<u8>>,
    proved: bool,
}

impl Joiner {
    /// Begins an attempt; the first message waits in [`Joiner::poll_transmit`].
    pub fn new(
        presented: impl Into<Presented>,
        application: Application,
        binding: Binding,
    ) -> Self {
        let presented = presented.into();
        let credential = match &presented {
            Presented::Secrets(_) => wire::hello::Credential::Bootstrap(wire::BootstrapSecret {}),
            Presented::Token(token) => wire::hello::Credential::Token(wire::JoinToken {
                id: token.id.as_bytes().to_vec(),
            }),
        };
        let hello = wire::Hello {
            nonce: binding.nonce.to_vec(),
            csr_sha256: Digest::of(&application.csr).0.to_vec(),
            credential: Some(credential),
        };
        Joiner {
            presented,
            application,
            binding,
            input: Frames::new(MAX_ANSWER_BYTES),
            output: Some(frame(&hello)),
            proved: false,
        }
    }

    /// Bytes to send, if any.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.output.take()
    }

    /// Takes what the cluster sent. Some when the attempt has ended.
    ///
    /// # Errors
    /// [`ProtocolError`]: close the connection.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<Option<Outcome>, ProtocolError> {
        self.input.push(bytes)?;
        while let Some(message) = self.input.pop() {
            if !self.proved {
                if let Some(refusal) = self.handle_challenge(&message)? {
                    return Ok(Some(Outcome::Refused(refusal)));
                }
                self.proved = true;
                continue;
            }
            let outcome = self.handle_answer(&message)?;
            if !self.input.buffer.is_empty() {
                return Err(ProtocolError::Trailing);
            }
            return Ok(Some(outcome));
        }
        Ok(None)
    }

    /// Some when the cluster does not know the token: then nobody has proved anything.
    fn handle_challenge(&mut self, message: &[u8]) -> Result<Option<EnrolRefusal>, ProtocolError> {
        let challenge = wire::Challenge::decode(message)
            .map_err(|_| ProtocolError::Malformed("not a challenge"))?;
        if let Some(refused) = challenge.refused {
            return Ok(Some(EnrolRefusal {
                retry: refused.retry,
                reason: refused.reason,
            }));
        }
        let transcript = Transcript {
            joiner_nonce: self.binding.nonce,
            cluster_nonce: exactly(&challenge.nonce)?,
            csr: Digest::of(&self.application.csr),
            exporter: self.binding.exporter,
        };
        let (proof_index, proof) = match &self.presented {
            Presented::Secrets(secrets) => {
                let offered = challenge.proofs.iter().take(super::secret::MAX_SECRETS);
                let (index, secret) = offered
                    .enumerate()
                    .find_map(|(index, proof)| {
                        let holds =
                            |secret: &&Secret| transcript.verify(secret, Side::Cluster, proof);
                        Some((index, secrets.iter().find(holds)?))
                    })
                    .ok_or(ProtocolError::ClusterUnproved)?;
                let proof = transcript.proof(secret, Side::Joiner).as_ref().to_vec();
                (index, proof)
            }
            Presented::Token(token) => {
                let message = transcript.message(token.id, Side::Cluster);
                let proves = |authority: &wire::Authority| {
                    ca::spki_of(&authority.certificate) == Some(token.authority)
                        && ca::has_signed(&authority.certificate, &message, &authority.signature)
                };
                let mut offered = challenge.authorities.iter().take(MAX_AUTHORITIES);
                if !offered.any(proves) {
                    return Err(ProtocolError::AuthorityUnproved);
                }
                (0, token.sign(&transcript.message(token.id, Side::Joiner)))
            }
        };
        let enrol = wire::Enrol {
            proof_index: u32::try_from(proof_index).expect("at most MAX_SECRETS"),
            proof,
            csr: self.application.csr.clone(),
            name: self.application.name.clone(),
            cluster_address: self.application.addresses.cluster.clone(),
            join_address: self.application.addresses.join.clone(),
            http_address: self.application.addresses.http.clone(),
            version: self.application.version.clone(),
            feature_level: self.application.feature_level,
        };
        self.output = Some(frame(&enrol));
        Ok(None)
    }

    fn handle_answer(&self, message: &[u8]) -> Result<Outcome, ProtocolError> {
        let answer =
            wire::Answer::decode(message).map_err(|_| ProtocolError::Malformed("not an answer"))?;
        match answer
            .outcome
            .ok_or(ProtocolError::Malformed("an empty answer"))?
        {
            wire::answer::Outcome::Refused(refused) => Ok(Outcome::Refused(EnrolRefusal {
                retry: refused.retry,
                reason: refused.reason,
            })),
            wire::answer::Outcome::Granted(granted) => {
                let grant = grant_from_wire(granted)?;
                let csr = Csr::parse(&self.application.csr).map_err(|_| ProtocolError::Request)?;
                let issued = ca::spki_of(&grant.certificate) == Some(csr.spki())
                    && ca::member_of(&grant.certificate) == Some((grant.cluster_id, grant.node_id));
                let elsewhere = matches!(&self.presented, Presented::Token(token)
                    if token.cluster_id != grant.cluster_id);
                if !issued || elsewhere || grant.authorities.is_empty() {
                    return Err(ProtocolError::Issued);
                }
                Ok(Outcome::Granted(Box::new(grant)))
            }
        }
    }
}

/// What the cluster knows of a join token, and proves itself with to its holder. Whether the token still admits anybody
/// is decided by the state, once its holder is known to hold it.
pub struct TokenOffer {
    /// The token's public half.
    pub public: [u8; 32],
    /// The CAs that the cluster trusts; the token names the key of one.
    pub authorities: Vec<Arc<Ca>>,
}

/// Finds a join token, or tells its holder why there is none.
pub type Tokens = Arc<dyn Fn(Uuid) -> Result<TokenOffer, String> + Send + Sync>;

/// The cluster's side of one attempt.
pub struct Acceptor {
    secrets: Vec<Secret>,
    tokens: Option<Tokens>,
    binding: Binding,
    input: Frames,
    output: Option<Vec<u8>>,
    step: Step,
}

enum Step {
    Hello,
    Enrol(Transcript, Claim),
    Answer,
    Done,
}

/// What the joiner says that it holds.
enum Claim {
    Secret,
    Token { id: Uuid, public: [u8; 32] },
}

impl Acceptor {
    /// Waits for a joiner that holds one of `secrets`, which must all be valid now.
    pub fn new(mut secrets: Vec<Secret>, binding: Binding) -> Self {
        secrets.truncate(super::secret::MAX_SECRETS);
        Acceptor {
            secrets,
            tokens: None,
            binding,
            input: Frames::new(MAX_REQUEST_BYTES),
            output: None,
            step: Step::Hello,
        }
    }

    /// Takes those as well that hold one of `tokens`.
    #[must_use]
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Acceptor {
            tokens: Some(tokens),
            ..self
        }
    }

    /// Bytes to send, if any.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.output.take()
    }

    /// Whether the cluster has given its proof: a joiner that leaves after that holds another secret.
    pub fn has_proved(&self) -> bool {
        !matches!(self.step, Step::Hello)
    }

    /// Takes what the joiner sent. Some when it has proved its secret; then comes [`Acceptor::answer`].
    ///
    /// # Errors
    /// [`ProtocolError`]: close the connection without a word.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<Option<EnrolRequest>, ProtocolError> {
        self.input.push(bytes)?;
        while let Some(message) = self.input.pop() {
            match std::mem::replace(&mut self.step, Step::Done) {
                Step::Hello => {
                    let (transcript, claim) = self.handle_hello(&message)?;
                    self.step = Step::Enrol(transcript, claim);
                }
                Step::Enrol(transcript, claim) => {
                    let request = self.handle_enrol(&transcript, &claim, &message)?;
                    if !self.input.buffer.is_empty() {
                        return Err(ProtocolError::Trailing);
                    }
                    self.step = Step::Answer;
                    return Ok(Some(request));
                }
                Step::Answer | Step::Done => return Err(ProtocolError::Trailing),
            }
        }
        Ok(None)
    }

    /// Ends the attempt with an answer, which then waits in [`Acceptor::poll_transmit`].
    pub fn answer(&mut self, outcome: Result<EnrolGrant, EnrolRefusal>) {
        if !matches!(self.step, Step::Answer) {
            return;
        }
        self.step = Step::Done;
        let outcome = match outcome {
            Ok(grant) => wire::answer::Outcome::Granted(grant_to_wire(grant)),
            Err(refusal) => wire::answer::Outcome::Refused(wire::Refused {
                retry: refusal.retry,
                reason: refusal.reason,
            }),
        };
        self.output = Some(frame(&wire::Answer {
            outcome: Some(outcome),
        }));
    }

    fn handle_hello(&mut self, message: &[u8]) -> Result<(Transcript, Claim), ProtocolError> {
        let hello =
            wire::Hello::decode(message).map_err(|_| ProtocolError::Malformed("not a hello"))?;
        let transcript = Transcript {
            joiner_nonce: exactly(&hello.nonce)?,
            cluster_nonce: self.binding.nonce,
            csr: Digest(exactly(&hello.csr_sha256)?),
            exporter: self.binding.exporter,
        };
        let mut challenge = wire::Challenge {
            nonce: self.binding.nonce.to_vec(),
            ..wire::Challenge::default()
        };
        let claim = match hello.credential {
            Some(wire::hello::Credential::Bootstrap(_)) => {
                let secrets = self.secrets.iter();
                challenge.proofs = secrets
                    .map(|secret| transcript.proof(secret, Side::Cluster).as_ref().to_vec())
                    .collect();
                Claim::Secret
            }
            Some(wire::hello::Credential::Token(token)) => {
                let id = Uuid::from_bytes(exactly(&token.id)?);
                let offer = self.find_token(id)?;
                let message = transcript.message(id, Side::Cluster);
                for authority in &offer.authorities {
                    challenge.authorities.push(wire::Authority {
                        certificate: authority.certificate().to_vec(),
                        signature: authority
                            .sign(&message)
                            .map_err(|error| ProtocolError::UnknownToken(error.to_string()))?,
                    });
                }
                Claim::Token {
                    id,
                    public: offer.public,
                }
            }
            None => return Err(ProtocolError::Malformed("no credential")),
        };
        self.output = Some(frame(&challenge));
        Ok((transcript, claim))
    }

    /// The token; whoever names one that is not there is told so, which is no secret.
    fn find_token(&mut self, id: Uuid) -> Result<TokenOffer, ProtocolError> {
        let found = match &self.tokens {
            Some(tokens) => tokens(id),
            None => Err("this member takes no join tokens".into()),
        };
        found.map_err(|reason| {
            self.output = Some(frame(&wire::Challenge {
                refused: Some(wire::Refused {
                    retry: true,
                    reason: reason.clone(),
                }),
                ..wire::Challenge::default()
            }));
            ProtocolError::UnknownToken(reason)
        })
    }

    fn handle_enrol(
        &self,
        transcript: &Transcript,
        claim: &Claim,
        message: &[u8],
    ) -> Result<EnrolRequest, ProtocolError> {
        let enrol =
            wire::Enrol::decode(message).map_err(|_| ProtocolError::Malformed("not an enrol"))?;
        let credential = match claim {
            Claim::Secret => usize::try_from(enrol.proof_index)
                .ok()
                .and_then(|index| self.secrets.get(index))
                .filter(|secret| transcript.verify(secret, Side::Joiner, &enrol.proof))
                .map(|secret| Credential::Bootstrap {
                    kid: secret.kid.clone(),
                }),
            Claim::Token { id, public } => {
                let message = transcript.message(*id, Side::Joiner);
                token::verify(public, &message, &enrol.proof)
                    .then_some(Credential::Token { id: *id })
            }
        };
        let credential = credential.ok_or(ProtocolError::JoinerUnproved)?;
        // From here on this is somebody who holds the secret: mistakes, not attacks.
        if Digest::of(&enrol.csr) != transcript.csr || Csr::parse(&enrol.csr).is_err() {
            return Err(ProtocolError::Request);
        }
        let texts = [
            &enrol.name,
            &enrol.cluster_address,
            &enrol.join_address,
            &enrol.http_address,
            &enrol.version,
        ];
        if texts.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(ProtocolError::Malformed("a text is too long"));
        }
        Ok(EnrolRequest {
            csr: enrol.csr,
            name: enrol.name,
            addresses: Addresses {
                cluster: enrol.cluster_address,
                join: enrol.join_address,
                http: enrol.http_address,
            },
            version: enrol.version,
            feature_level: enrol.feature_level,
            credential,
        })
    }
}

fn grant_to_wire(grant: EnrolGrant) -> wire::Granted {
    wire::Granted {
        cluster_id: grant.cluster_id.0.to_vec(),
        lineage: grant.lineage.0,
        node_id: grant.node_id.0,
        certificate: grant.certificate,
        authorities: grant
            .authorities
            .into_iter()
            .map(serde_bytes::ByteBuf::into_vec)
            .collect(),
        members: grant
            .members
            .into_iter()
            .map(|member| wire::Member {
                node_id: member.node_id.0,
                cluster_address: member.cluster_address,
                join_address: member.join_address,
                spki_sha256: member.spki.0.to_vec(),
            })
            .collect(),
    }
}

fn grant_from_wire(granted: wire::Granted) -> Result<EnrolGrant, ProtocolError> {
    let members = granted.members.into_iter().map(|member| {
        Ok(KnownMember {
            node_id: NodeId(member.node_id),
            cluster_address: member.cluster_address,
            join_address: member.join_address,
            spki: Digest(exactly(&member.spki_sha256)?),
        })
    });
    Ok(EnrolGrant {
        cluster_id: ClusterId(exactly(&granted.cluster_id)?),
        lineage: Lineage(granted.lineage),
        node_id: NodeId(granted.node_id),
        certificate: granted.certificate,
        authorities: granted
            .authorities
            .into_iter()
            .map(serde_bytes::ByteBuf::from)
            .collect(),
        members: members.collect::<Result<_, ProtocolError>>()?,
    })
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ProtocolError> {
    bytes
        .try_into()
        .map_err(|_| ProtocolError::Malformed("a field of the wrong length"))
}

#[cfg(test)]
pub(crate) mod tests;
