//! Heartbeats to one peer, in order over one stream: a message each way instead of a request with its headers, which is
//! most of what an idle cluster does. What names stand for goes the same way, over a stream of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{Client, failure, outcome};
use crate::transport::TransportError;
use crate::wire::cluster as wire;

/// Heartbeats that wait to be sent, and as many again that wait for their answer. More than that are not sent: the peer
/// takes none.
pub(super) const WAITING: usize = 32;

type Answered = oneshot::Sender<Result<Bytes, TransportError>>;

/// The stream to one peer, open until it breaks, is given up, or this is dropped.
#[derive(Clone)]
pub(super) struct Beats {
    asked: mpsc::Sender<(wire::CallRequest, Answered)>,
    unknown: Arc<AtomicBool>,
    given_up: CancellationToken,
}

impl Beats {
    /// Opens it. Needs a runtime.
    pub(super) fn open(client: Client) -> Self {
        let (asked, requests) = mpsc::channel(WAITING);
        let (unknown, given_up) = (Arc::<AtomicBool>::default(), CancellationToken::new());
        let running = run(client, requests, Arc::clone(&unknown));
        tokio::spawn(given_up.clone().run_until_cancelled_owned(running));
        Beats {
            asked,
            unknown,
            given_up,
        }
    }

    /// Whether it has not broken.
    pub(super) fn is_open(&self) -> bool {
        !self.asked.is_closed() && !self.given_up.is_cancelled()
    }

    /// Whether the peer is of a version without such streams.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Sends one and waits for its answer, `deadline` at most. Then the stream is given up: whatever holds this answer up
    /// would hold up all that come after it.
    pub(super) async fn ask(
        &self,
        request: wire::CallRequest,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let (answered, answer) = oneshot::channel();
        if self.asked.try_send((request, answered)).is_err() {
            return Err(TransportError::Lost("the member takes no more".into()));
        }
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(TransportError::Lost("the stream broke".into())),
            Err(_) => {
                self.given_up.cancel();
                Err(TransportError::Lost("no answer in time".into()))
            }
        }
    }
}

async fn run(
    mut client: Client,
    mut asked: mpsc::Receiver<(wire::CallRequest, Answered)>,
    unknown: Arc<AtomicBool>,
) {
    let (send, requests) = mpsc::channel(WAITING);
    let broken = match client.calls(ReceiverStream::new(requests)).await {
        Ok(answers) => carry(&mut asked, &send, answers.into_inner()).await,
        Err(status) => Some(status),
    };
    let Some(status) = broken else { return };
    unknown.store(status.code() == Code::Unimplemented, Ordering::Relaxed);
    // Whoever asks from now on opens another one; these were not sent.
    asked.close();
    while let Some((_, answered)) = asked.recv().await {
        let _ = answered.send(Err(failure(&status)));
    }
}

/// Carries requests and answers until nobody asks any more (none) or the stream breaks. Whoever still waits for an answer
/// learns that it is lost.
async fn carry(
    asked: &mut mpsc::Receiver<(wire::CallRequest, Answered)>,
    send: &mpsc::Sender<wire::CallRequest>,
    mut answers: Streaming<wire::Answer>,
) -> Option<Status> {
    let mut waiting: VecDeque<Answered> = VecDeque::new();
    loop {
        tokio::select! {
            request = asked.recv(), if waiting.len() < WAITING => {
                let (request, answered) = request?;
                waiting.push_back(answered);
                if send.send(request).await.is_err() {
                    return Some(Status::unavailable("the stream has ended"));
                }
            }
            answer = answers.next() => match answer {
                // Whoever asked may have given up.
                Some(Ok(answer)) => match waiting.pop_front() {
                    Some(answered) => drop(answered.send(outcome(answer))),
                    None => return Some(Status::internal("an answer to nothing")),
                },
                Some(Err(status)) => return Some(status),
                None => return Some(Status::unavailable("the stream has ended")),
            },
        }
    }
}
