//! One question to one upstream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ::dns::accept::{Accepted, Ask, Over, Wanted};
use ::dns::{MAX_UDP_BYTES, Rejected};
use rustix::io::Errno;
use tokio::net::UdpSocket;

use super::clock::random;
use super::service::Service;

/// Messages that are no answer to the question, after which whoever sends them is not waited for over
/// UDP any longer.
const MISMATCHES: u32 = 16;

/// What became of it.
pub(super) enum Exchanged {
    Answer(Accepted, Duration),
    Failed(Failure),
}

/// Why there is no answer.
pub(super) enum Failure {
    /// It was reached, and what it said does not count.
    Rejected(Rejected, Duration),
    /// It was not reached.
    Io(io::Error),
    /// It was not even asked, for want of something here: no failure of its.
    Here(io::Error),
}

impl Failure {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "unreachable",
            Self::Here(_) => "local",
            Self::Rejected(rejected, _) => match rejected {
                Rejected::Mismatch => "question",
                Rejected::Case => "case",
                Rejected::Truncated | Rejected::Malformed => "malformed",
                Rejected::Chain => "chain",
                Rejected::Failed(_) => "rcode",
            },
        }
    }
}

/// Asks an upstream: over TLS if it is reached so, else over UDP and, where that does not do, TCP.
pub(super) async fn exchange(service: &Service, upstream: usize, wanted: &Wanted) -> Exchanged {
    let started = Instant::now();
    let address = service.settings.upstreams[upstream].address;
    let encrypted = service.settings.upstreams[upstream].tls.is_some();
    let datagram = match encrypted {
        true => Err(Failure::Rejected(Rejected::Truncated, Duration::ZERO)),
        false => over_udp(service, address, wanted, started).await,
    };
    let answer = match datagram {
        Err(Failure::Rejected(Rejected::Truncated | Rejected::Case | Rejected::Mismatch, _)) => {
            over_stream(service, upstream, wanted, started).await
        }
        other => other,
    };
    match answer {
        Ok(accepted) => Exchanged::Answer(accepted, started.elapsed()),
        Err(failure) => Exchanged::Failed(failure),
    }
}

async fn over_udp(
    service: &Service,
    address: SocketAddr,
    wanted: &Wanted,
    started: Instant,
) -> Result<Accepted, Failure> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // A socket of its own for each question: its port is one more thing to guess, and the kernel drops
    // what comes from elsewhere.
    let socket = UdpSocket::bind(any).await.map_err(Failure::Here)?;
    socket.connect(address).await.map_err(Failure::Io)?;
    let ask = Ask::new(wanted, &random());
    let mut buffer = Vec::with_capacity(512);
    ask.emit(&mut buffer);
    socket.send(&buffer).await.map_err(Failure::Io)?;
    // One byte more than was asked for shows that there was more.
    buffer.resize(usize::from(MAX_UDP_BYTES) + 1, 0);
    let mut mismatches = 0;
    loop {
        let read = socket.recv(&mut buffer).await.map_err(Failure::Io)?;
        let rejected = match ask.accept(&buffer[..read], Over::Datagram, &service.scrub()) {
            Ok(accepted) => return Ok(accepted),
            // It is cut off here, as if the upstream had done so.
            Err(Rejected::Malformed) if read == buffer.len() => Rejected::Truncated,
            Err(rejected) => rejected,
        };
        mismatches += 1;
        if rejected != Rejected::Mismatch || mismatches >= MISMATCHES {
            return Err(Failure::Rejected(rejected, started.elapsed()));
        }
    }
}

/// Whether an error says that this host, or this process, has too little of something.
fn scarce(error: &io::Error) -> bool {
    const SCARCE: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::QuotaExceeded
        || SCARCE
            .iter()
            .any(|errno| code == Some(errno.raw_os_error()))
}

async fn over_stream(
    service: &Service,
    upstream: usize,
    wanted: &Wanted,
    started: Instant,
) -> Result<Accepted, Failure> {
    // Nobody can put an answer into a connection, so letters need not be mixed: some servers do not
    // repeat them.
    let mut seed = [0; 34];
    seed[..2].copy_from_slice(&random::<2>());
    let ask = Ask::new(wanted, &seed);
    let mut query = Vec::with_capacity(512);
    ask.emit(&mut query);
    let to = &service.settings.upstreams[upstream];
    let answer =
        service.pools[upstream]
            .exchange(to, &query)
            .await
            .map_err(|error| match scarce(&error) {
                true => Failure::Here(error),
                false => Failure::Io(error),
            })?;
    ask.accept(&answer, Over::Stream, &service.scrub())
        .map_err(|rejected| Failure::Rejected(rejected, started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_scarce_here_is_no_failure_of_the_upstream() {
        for here in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(scarce(&here.into()), "{here}");
        }
        assert!(scarce(&io::ErrorKind::QuotaExceeded.into()));
        for there in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::CONNRESET] {
            assert!(!scarce(&there.into()), "{there}");
        }
        assert!(!scarce(&io::ErrorKind::UnexpectedEof.into()));
    }
}
