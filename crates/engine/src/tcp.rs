//! A TCP connection as a router between its ends sees it: SYN to TIME_WAIT, through half-close,
//! simultaneous open and simultaneous close (RFC 9293 §3.3.2, RFC 5382).

use crate::DropReason;
use crate::wire::tcp::{ACK, FIN, RST, SYN, Segment};

/// Which end a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end that opened the flow.
    Client = 0,
    /// The other.
    Server = 1,
}

impl End {
    pub(crate) fn other(self) -> End {
        match self {
            End::Client => End::Server,
            End::Server => End::Client,
        }
    }
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Only the client's SYN has been seen.
    #[default]
    SynSent,
    /// The server has answered.
    SynReceived,
    Established,
    /// At least one end has said that it will send no more.
    Closing,
    /// Both have, and both know.
    TimeWait,
    /// One end has reset it. A segment of that end that proves otherwise brings it back, so that a forged reset that
    /// the ends ignore does no harm.
    Reset,
}

impl State {
    /// All, in the order in which a hand-over numbers them from 1; a new one goes to the end.
    pub(crate) const ALL: [State; 6] = [
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::Closing,
        State::TimeWait,
        State::Reset,
    ];
}

const FIN_SEEN: [u8; 2] = [1, 2];
const FIN_ACKED: [u8; 2] = [4, 8];
const SEEN: [u8; 2] = [16, 32];
/// The client has asked for a new connection on the ports of this one.
const ASKED_ANEW: u8 = 64;
/// The reset was the server's.
const SERVER_RESET: u8 = 128;

/// The shift of an end whose SYN went by unseen, which is assumed to be the largest (RFC 7323 §2.3).
const UNKNOWN_SHIFT: u8 = 0xf;
const MAX_SHIFT: u8 = 14;

/// Furthest that an acknowledgement may lie behind what has been sent (RFC 5961 §5.2 asks for the
/// largest window seen; this is at least one unscaled window).
const MIN_ACK_WINDOW: u32 = 66_000;

/// The state of one connection; 24 bytes of a flow, one of which is the flow's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Behind the furthest byte that each end has sent.
    end: [u32; 2],
    /// Behind the furthest byte that each end may send.
    limit: [u32; 2],
    /// Largest window that each end has offered, not scaled.
    window: [u16; 2],
    /// Window shift of both ends, four bits each.
    scale: u8,
    flags: u8,
    pub(crate) state: State,
    /// What the flow keeps here, since there is room.
    pub(crate) of_flow: u8,
}

impl Connection {
    /// What is known about a flow that is no connection, but began with an ICMP query of this type and code.
    pub(crate) fn of_query((icmp_type, code): (u8, u8)) -> Connection {
        Connection {
            window: [u16::from(icmp_type), u16::from(code)],
            ..Connection::default()
        }
    }

    /// The same connection without the flow's byte.
    pub(crate) fn without_byte(self) -> Connection {
        Connection { of_flow: 0, ..self }
    }

    /// Type and code of that query.
    pub(crate) fn query(&self) -> (u8, u8) {
        (self.window[0] as u8, self.window[1] as u8)
    }

    /// A connection of which this SYN of the client is the first segment.
    pub(crate) fn open(syn: &Segment) -> Connection {
        let mut c = Connection::default();
        c.set_scale(End::Client, syn.scale.unwrap_or(0));
        c.note(End::Client, syn);
        c
    }

    /// A connection met in the middle, by a segment of the client. Neither the window scales are known nor how much each
    /// end has sent: what the other acknowledges tells.
    pub(crate) fn pick_up(segment: &Segment) -> Connection {
        let mut c = Connection {
            state: State::Established,
            scale: UNKNOWN_SHIFT << 4 | UNKNOWN_SHIFT,
            ..Connection::default()
        };
        c.note(End::Client, segment);
        c.close(End::Client, segment);
        c
    }

    /// What another process needs to go on: state, flags, shifts; the windows; the ends; the limits, little-endian.
    pub(crate) fn to_bytes(self) -> [u8; 23] {
        let state = 1 + State::ALL
            .iter()
            .position(|s| *s == self.state)
            .unwrap_or(0) as u8;
        let mut bytes = [0; 23];
        bytes[..3].copy_from_slice(&[state, self.flags, self.scale]);
        for end in 0..2 {
            bytes[3 + 2 * end..][..2].copy_from_slice(&self.window[end].to_le_bytes());
            bytes[7 + 4 * end..][..4].copy_from_slice(&self.end[end].to_le_bytes());
            bytes[15 + 4 * end..][..4].copy_from_slice(&self.limit[end].to_le_bytes());
        }
        bytes
    }

    /// Reads the same; none in a state that is not known here.
    pub(crate) fn from_bytes(bytes: [u8; 23]) -> Option<Connection> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Some(Connection {
            state: *State::ALL.get(usize::from(bytes[0]).checked_sub(1)?)?,
            flags: bytes[1],
            scale: bytes[2],
            window: [u16_at(3), u16_at(5)],
            end: [u32_at(7), u32_at(11)],
            limit: [u32_at(15), u32_at(19)],
            of_flow: 0,
        })
    }

    /// The sequence number that one end would go on with, if it has been heard.
    pub(crate) fn next_of(&self, end: End) -> Option<u32> {
        (self.flags & SEEN[end as usize] != 0).then_some(self.end[end as usize])
    }

    /// Whether it is over, and a SYN of the client begins a new connection on the same ports.
    pub(crate) fn may_be_reused(&self) -> bool {
        let both = FIN_SEEN[0] | FIN_SEEN[1];
        matches!(self.state, State::TimeWait | State::Reset)
            || self.state == State::Closing && self.flags & both == both
    }

    /// Whether a connection that the client opens with this sequence number begins behind all that it sent in this one.
    pub(crate) fn is_followed_by(&self, seq: u32) -> bool {
        let end = self.next_of(End::Client);
        end.is_none_or(|end| !before(seq, end))
    }

    /// Takes in a segment from one end.
    ///
    /// A client that has forgotten the connection, since it was started anew, asks for another one on the same ports,
    /// with a sequence number from outside the window. Only the server can tell what is to become of that
    /// (RFC 9293 §3.10.7.4): the question passes, and so does the answer, whichever it is.
    ///
    /// # Errors
    /// With `check`, a segment outside the window; the connection is then unchanged.
    pub(crate) fn advance(
        &mut self,
        from: End,
        s: &Segment,
        check: bool,
    ) -> Result<(), DropReason> {
        if check && !self.in_window(from, s) {
            match from {
                End::Client if s.is_initial() => self.flags |= ASKED_ANEW,
                End::Client if self.chooses(s) => {
                    self.end[End::Server as usize] = s.ack;
                    self.limit[End::Server as usize] = s.ack.wrapping_add(0xffff);
                    // That one went by unseen, as far as window scales go.
                    self.scale = MAX_SHIFT << 4 | MAX_SHIFT;
                    return self.advance(from, s, false);
                }
                End::Server if self.answers_again(s) => {
                    if s.has(RST) {
                        self.reset(from);
                    }
                }
                End::Server if self.answers_anew(s) => {
                    let of_flow = self.of_flow;
                    *self = Connection {
                        of_flow,
                        ..Connection::answered_anew(s)
                    };
                }
                _ if self.is_of_another(from, s) => {}
                _ => return Err(DropReason::TcpWindow),
            }
            return Ok(());
        }
        if from == End::Client && !s.has(SYN) {
            self.flags &= !ASKED_ANEW;
        }
        let refuses = s.has(RST) && s.has(ACK);
        if self.state == State::SynSent && from == End::Server && !s.has(SYN) && !refuses {
            // A straggler of the connection that had these ports before, or a challenge because of it (RFC 9293
            // §3.10.7.3 and .4): the client is to see it, but it says nothing about this connection.
            return Ok(());
        }
        if s.has(RST) {
            if !check || self.is_certain_reset(from, s) {
                self.reset(from);
            }
            return Ok(());
        }
        let fresh = self.flags & SEEN[from as usize] == 0;
        if s.has(SYN) {
            self.handle_syn(from, s, fresh);
        }
        self.note(from, s);
        match self.state {
            State::SynReceived if from == End::Client && s.has(ACK) && !s.has(SYN) => {
                self.state = State::Established;
            }
            State::Reset if self.reset_by() == from && s.has(ACK) && !s.has(SYN) => {
                let fins = self.flags & (FIN_SEEN[0] | FIN_SEEN[1]);
                self.state = if fins == 0 {
                    State::Established
                } else {
                    State::Closing
                };
            }
            _ => {}
        }
        self.close(from, s);
        Ok(())
    }

    /// Whether a reset is certainly of that end (RFC 5961 §3.2): it has the very number that comes next, or acknowledges all
    /// that the other end has sent. Any other one in the window may be a guess. Who receives that asks back, and the answer
    /// has the right number.
    fn is_certain_reset(&self, from: End, s: &Segment) -> bool {
        let follows = self.next_of(from).is_none_or(|next| s.seq == next);
        follows || s.has(ACK) && self.next_of(from.other()) == Some(s.ack)
    }

    fn reset(&mut self, by: End) {
        self.state = State::Reset;
        match by {
            End::Client => self.flags &= !SERVER_RESET,
            End::Server => self.flags |= SERVER_RESET,
        }
    }

    fn reset_by(&self) -> End {
        match self.flags & SERVER_RESET {
            0 => End::Client,
            _ => End::Server,
        }
    }

    /// Whether it was met in the middle.
    fn is_picked_up(&self) -> bool {
        self.scale == UNKNOWN_SHIFT << 4 | UNKNOWN_SHIFT
    }

    /// Whether a segment, outside the window, is about a connection on the same ports that the server has kept while all
    /// others forgot it: the server acknowledges what it has of that, and the client says that it is over (RFC 9293
    /// §3.5.1, figure 9). Then the client asks again.
    fn is_of_another(&self, from: End, s: &Segment) -> bool {
        self.state == State::SynSent
            && match from {
                End::Client => s.has(RST),
                End::Server => s.has(ACK) && !s.has(SYN | FIN | RST),
            }
    }

    /// Whether a segment of the server, outside the window, accepts or refuses the connection that the client has asked
    /// for in place of this one. (That it still has this one it says within the window.)
    fn answers_anew(&self, s: &Segment) -> bool {
        self.flags & ASKED_ANEW != 0 && s.has(ACK) && s.has(SYN | RST)
    }

    /// Whether a segment of the server, outside the window, is another answer to the SYN that was answered before: the server
    /// has forgotten what it said, or another one stands in for it. It knows the client's number. The client says which answer
    /// it has heard ([`chooses`](Self::chooses)).
    fn answers_again(&self, s: &Segment) -> bool {
        self.state == State::SynReceived
            && s.has(ACK)
            && s.has(SYN | RST)
            && s.ack == self.end[End::Client as usize]
    }

    /// Whether a segment of the client, outside the window, ends the handshake by another answer than the one that was seen
    /// first.
    fn chooses(&self, s: &Segment) -> bool {
        self.state == State::SynReceived
            && s.has(ACK)
            && !s.has(SYN | RST)
            && s.seq == self.end[End::Client as usize]
    }

    /// The connection that this answer of the server belongs to. The client's window scale went by unseen and is assumed
    /// to be the largest.
    fn answered_anew(s: &Segment) -> Connection {
        let mut c = Connection {
            state: State::SynReceived,
            flags: SEEN[End::Client as usize],
            end: [s.ack, 0],
            limit: [s.ack, 0],
            scale: MAX_SHIFT,
            ..Connection::default()
        };
        if s.has(RST) {
            c.reset(End::Server);
            return c;
        }
        match s.scale {
            Some(shift) => c.set_scale(End::Server, shift),
            None => c.scale = 0,
        }
        c.note(End::Server, s);
        c
    }

    fn handle_syn(&mut self, from: End, s: &Segment, fresh: bool) {
        if fresh && from == End::Server {
            // Scaling holds only if both ends offer it (RFC 7323 §2.2).
            match s.scale {
                Some(shift) => self.set_scale(End::Server, shift),
                None => self.scale = 0,
            }
        }
        if self.state == State::SynSent && from == End::Server {
            self.state = State::SynReceived;
        }
    }

    /// Follows FINs and their acknowledgements.
    fn close(&mut self, from: End, s: &Segment) {
        let (me, peer) = (from as usize, from.other() as usize);
        if s.has(FIN)
            && matches!(
                self.state,
                State::SynReceived | State::Established | State::Closing
            )
        {
            self.flags |= FIN_SEEN[me];
            self.state = State::Closing;
        }
        if s.has(ACK) && self.flags & FIN_SEEN[peer] != 0 && !before(s.ack, self.end[peer]) {
            self.flags |= FIN_ACKED[peer];
        }
        let all = FIN_ACKED[0] | FIN_ACKED[1];
        if self.state == State::Closing && self.flags & all == all {
            self.state = State::TimeWait;
        }
    }

    /// Notes how far one end has sent, and how far it lets the other.
    fn note(&mut self, from: End, s: &Segment) {
        let (me, peer) = (from as usize, from.other() as usize);
        let end = s.end();
        if self.flags & SEEN[me] == 0 {
            self.flags |= SEEN[me];
            self.end[me] = end;
            // Until the peer has spoken, as much as any window allows.
            let window = if self.flags & SEEN[peer] != 0 {
                self.scaled_window(peer)
            } else {
                0xffff
            };
            self.limit[me] = end.wrapping_add(window.max(0xffff));
        } else if before(self.end[me], end) {
            self.end[me] = end;
        }
        let shift = if s.has(SYN) { 0 } else { self.shift(me) };
        if s.has(ACK) {
            if before(self.end[peer], s.ack) && self.is_picked_up() {
                self.end[peer] = s.ack;
            }
            let limit = s.ack.wrapping_add((u32::from(s.window) << shift).max(1));
            if self.flags & SEEN[peer] == 0 || before(self.limit[peer], limit) {
                self.limit[peer] = limit;
            }
        }
        self.window[me] = self.window[me].max(s.window);
    }

    /// Whether a segment fits the windows that the ends have shown each other.
    fn in_window(&self, from: End, s: &Segment) -> bool {
        let (me, peer) = (from as usize, from.other() as usize);
        let acknowledges_what_was_sent = !s.has(ACK)
            || self.flags & SEEN[peer] == 0
            || self.may_have_sent(peer, s.ack)
                && !before(
                    s.ack,
                    self.end[peer].wrapping_sub(self.scaled_window(me).max(MIN_ACK_WINDOW)),
                );
        if self.flags & SEEN[me] == 0 {
            // The first segment of this end: all that is known is what it may acknowledge. A connection that is met in the
            // middle of a loss has that far behind it.
            return acknowledges_what_was_sent
                || self.is_picked_up() && self.may_have_sent(peer, s.ack);
        }
        let not_beyond = !before(self.limit[me], s.seq);
        let not_long_past = !before(
            s.end(),
            self.end[me].wrapping_sub(self.scaled_window(peer).max(MIN_ACK_WINDOW)),
        );
        not_beyond && not_long_past && acknowledges_what_was_sent
    }

    /// Whether an end can have sent all that the other acknowledges. Of a connection met in the middle not all was seen.
    fn may_have_sent(&self, end: usize, ack: u32) -> bool {
        let sent = self.end[end];
        !before(sent, ack)
            || self.is_picked_up() && !before(sent.wrapping_add(0xffff << MAX_SHIFT), ack)
    }

    fn scaled_window(&self, end: usize) -> u32 {
        u32::from(self.window[end]) << self.shift(end)
    }

    fn shift(&self, end: usize) -> u32 {
        u32::from((self.scale >> (4 * end) & 0xf).min(MAX_SHIFT))
    }

    fn set_scale(&mut self, end: End, shift: u8) {
        let at = 4 * end as u8;
        self.scale = self.scale & !(0xf << at) | shift << at;
    }
}

/// Whether `a` lies before `b` in sequence space (RFC 9293 §3.4).
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
