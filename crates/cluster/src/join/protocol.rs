//! The join protocol without sockets: bytes in, bytes out.
//!
//! [`Joiner`] and [`Acceptor`] are the two sides of one attempt on one connection. Each is handed its nonce and the
//! connection's exporter, so that a test can relay, replay, cut and forge at will.

use aws_lc_rs::{constant_time, hmac};
use prost::Message as _;

use super::secret::Secret;
use super::{EnrolGrant, EnrolRefusal, EnrolRequest, KnownMember};
use crate::ca::{self, Csr};
use crate::command::{Addresses, Credential};
use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::wire::join as wire;

/// Most that an acceptor reads of one request, lengths included.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Most that a joiner reads of one answer.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Longest name, address or version, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;

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
    /// The joiner holds a join token; this version admits by bootstrap secret only.
    #[error("join tokens are not supported by this version: use the bootstrap secret")]
    TokenUnsupported,
    /// None of the cluster's proofs was made with a secret of this joiner, on this connection.
    #[error(
        "the cluster does not hold this node's bootstrap secret, or somebody stands between: \
         compare the bootstrap token files of both"
    )]
    ClusterUnproved,
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

/// The joiner's side of one attempt.
pub struct Joiner {
    secrets: Vec<Secret>,
    application: Application,
    binding: Binding,
    input: Frames,
    output: Option<Vec<u8>>,
    proved: bool,
}

impl Joiner {
    /// Begins an attempt; the first message waits in [`Joiner::poll_transmit`].
    pub fn new(secrets: Vec<Secret>, application: Application, binding: Binding) -> Self {
        let hello = wire::Hello {
            nonce: binding.nonce.to_vec(),
            csr_sha256: Digest::of(&application.csr).0.to_vec(),
            credential: Some(wire::hello::Credential::Bootstrap(wire::BootstrapSecret {})),
        };
        Joiner {
            secrets,
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
                self.handle_challenge(&message)?;
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

    fn handle_challenge(&mut self, message: &[u8]) -> Result<(), ProtocolError> {
        let challenge = wire::Challenge::decode(message)
            .map_err(|_| ProtocolError::Malformed("not a challenge"))?;
        let transcript = Transcript {
            joiner_nonce: self.binding.nonce,
            cluster_nonce: exactly(&challenge.nonce)?,
            csr: Digest::of(&self.application.csr),
            exporter: self.binding.exporter,
        };
        let offered = challenge.proofs.iter().take(super::secret::MAX_SECRETS);
        let (proof_index, secret) = offered
            .enumerate()
            .find_map(|(index, proof)| {
                let holds = |secret: &&Secret| transcript.verify(secret, Side::Cluster, proof);
                Some((index, self.secrets.iter().find(holds)?))
            })
            .ok_or(ProtocolError::ClusterUnproved)?;
        let enrol = wire::Enrol {
            proof_index: u32::try_from(proof_index).expect("at most MAX_SECRETS"),
            proof: transcript.proof(secret, Side::Joiner).as_ref().to_vec(),
            csr: self.application.csr.clone(),
            name: self.application.name.clone(),
            cluster_address: self.application.addresses.cluster.clone(),
            join_address: self.application.addresses.join.clone(),
            http_address: self.application.addresses.http.clone(),
            version: self.application.version.clone(),
            feature_level: self.application.feature_level,
        };
        self.output = Some(frame(&enrol));
        Ok(())
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
                if !issued || grant.authorities.is_empty() {
                    return Err(ProtocolError::Issued);
                }
                Ok(Outcome::Granted(Box::new(grant)))
            }
        }
    }
}

/// The cluster's side of one attempt.
pub struct Acceptor {
    secrets: Vec<Secret>,
    binding: Binding,
    input: Frames,
    output: Option<Vec<u8>>,
    step: Step,
}

enum Step {
    Hello,
    Enrol(Transcript),
    Answer,
    Done,
}

impl Acceptor {
    /// Waits for a joiner that holds one of `secrets`, which must all be valid now.
    pub fn new(mut secrets: Vec<Secret>, binding: Binding) -> Self {
        secrets.truncate(super::secret::MAX_SECRETS);
        Acceptor {
            secrets,
            binding,
            input: Frames::new(MAX_REQUEST_BYTES),
            output: None,
            step: Step::Hello,
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
                    let transcript = self.handle_hello(&message)?;
                    self.step = Step::Enrol(transcript);
                }
                Step::Enrol(transcript) => {
                    let request = self.handle_enrol(&transcript, &message)?;
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

    fn handle_hello(&mut self, message: &[u8]) -> Result<Transcript, ProtocolError> {
        let hello =
            wire::Hello::decode(message).map_err(|_| ProtocolError::Malformed("not a hello"))?;
        match hello.credential {
            Some(wire::hello::Credential::Bootstrap(_)) => {}
            Some(wire::hello::Credential::Token(_)) => return Err(ProtocolError::TokenUnsupported),
            None => return Err(ProtocolError::Malformed("no credential")),
        }
        let transcript = Transcript {
            joiner_nonce: exactly(&hello.nonce)?,
            cluster_nonce: self.binding.nonce,
            csr: Digest(exactly(&hello.csr_sha256)?),
            exporter: self.binding.exporter,
        };
        let proofs = self
            .secrets
            .iter()
            .map(|secret| transcript.proof(secret, Side::Cluster).as_ref().to_vec())
            .collect();
        self.output = Some(frame(&wire::Challenge {
            nonce: self.binding.nonce.to_vec(),
            proofs,
        }));
        Ok(transcript)
    }

    fn handle_enrol(
        &self,
        transcript: &Transcript,
        message: &[u8],
    ) -> Result<EnrolRequest, ProtocolError> {
        let enrol =
            wire::Enrol::decode(message).map_err(|_| ProtocolError::Malformed("not an enrol"))?;
        let secret = usize::try_from(enrol.proof_index)
            .ok()
            .and_then(|index| self.secrets.get(index))
            .ok_or(ProtocolError::JoinerUnproved)?;
        if !transcript.verify(secret, Side::Joiner, &enrol.proof) {
            return Err(ProtocolError::JoinerUnproved);
        }
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
            credential: Credential::Bootstrap {
                kid: secret.kid.clone(),
            },
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
