//! Datagrams that come in pieces: kept until they are whole, so that they are judged, translated and
//! followed as one packet, and then sent on in pieces again.
//!
//! Only what is whole goes on. So no piece can slip past the policy ahead of the one that has the ports
//! (RFC 1858), none can rewrite what has been judged (RFC 3128), and pieces that overlap take the whole
//! datagram with them (RFC 5722, here for IPv4 too). What strangers can make us keep is bounded: by
//! [`BLOCKS`] and [`DATAGRAMS`] in all, and by [`PER_SOURCE`] for one source. The oldest gives way, of all or of the source:
//! whoever sends pieces that never become whole, under the address of another too, shortens the time for the rest to come,
//! and shuts nobody out.

use std::io;

use mem::Slab;

use crate::DropReason;
use crate::address::Addr;
use crate::clock::Tick;
use crate::flow::Key;
use crate::flow::key::KeyHasher;
use crate::overlay::{TunnelId, Wrapping};
use crate::parse::Parsed;
use crate::port::{Meta, Packet, PortId};
use crate::wire::{checksum, ethernet, get16, get32, ipv6, put16};

/// Bytes of a block; a piece takes as many as it needs.
const BLOCK: usize = 2048;
/// Blocks of one worker: 4 MiB, touched only as they fill.
const BLOCKS: usize = 2048;
/// Blocks that sources of one hash may hold: 256 KiB, four of the largest datagrams. A datagram counts as one at least, also
/// when it was refused and has none.
const PER_SOURCE: usize = 128;
/// Places to count the blocks of sources in.
const SOURCES: usize = 1024;
/// Datagrams that are waited for at once.
const DATAGRAMS: usize = 1024;
/// Pieces of one datagram: the largest in pieces of Ethernet's size has 45.
const PIECES: u16 = 64;
/// Bytes of the largest datagram, IPv4 header included; in IPv6 the header comes on top.
const MAX_DATAGRAM: usize = 65_535;

const NONE: u32 = u32::MAX;

/// One fragment as its header says.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Bytes of the datagram in front of it.
    offset: usize,
    /// Its own bytes.
    len: usize,
    last: bool,
    id: u32,
    /// Congestion was experienced, or may be said to have been (RFC 3168).
    ecn: u8,
}

impl Piece {
    fn read(frame: &[u8], p: &Parsed) -> Piece {
        let ip = ethernet::LEN;
        let l4 = usize::from(p.l4);
        let len = p.end as usize - l4;
        if p.is_v4() {
            let word = get16(frame, ip + 6);
            Piece {
                offset: usize::from(word & 0x1fff) * 8,
                len,
                last: word & 0x2000 == 0,
                id: u32::from(get16(frame, ip + 4)),
                ecn: frame[ip + 1] & 3,
            }
        } else {
            // The parser stops behind the fragment header.
            let word = get16(frame, l4 - 6);
            Piece {
                offset: usize::from(word & 0xfff8),
                len,
                last: word & 1 == 0,
                id: get32(frame, l4 - 4),
                ecn: frame[ip + 1] >> 4 & 3,
            }
        }
    }

    fn is_sound(&self, p: &Parsed) -> bool {
        let header = if p.is_v4() {
            usize::from(p.l4) - ethernet::LEN
        } else {
            0
        };
        self.len > 0
            && (self.last || self.len.is_multiple_of(8))
            && header + self.offset + self.len <= MAX_DATAGRAM
    }
}

/// A block of a piece's frame; of the first block the rest of the entry tells about the piece.
#[derive(Clone, Copy, Debug)]
struct Block {
    bytes: [u8; BLOCK],
    /// The piece's next block, or the next free one.
    next: u32,
    /// First block of the piece behind this one.
    behind: u32,
    offset: u16,
    len: u16,
    /// Bytes of the frame in front of the piece.
    head: u16,
}

/// A datagram in the making.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: Key,
    /// The network that it is in, if it came in a tunnel.
    network: Option<TunnelId>,
    port: PortId,
    since: Tick,
    /// First block of the piece with the lowest offset.
    first: u32,
    pieces: u16,
    /// Bytes of all pieces.
    have: u32,
    /// Bytes that it has when whole, once the last piece has said so.
    total: Option<u32>,
    /// It was refused; pieces that follow are refused as well.
    refused: bool,
    congested: bool,
    /// Frames' bytes, for the counters.
    bytes: u64,
    source: u16,
    blocks: u16,
    /// Next of those with the same hash.
    chained: u32,
    /// Its places in the list of all, and in that of its source.
    ages: [Links; 2],
}

impl Datagram {
    /// Blocks that its source holds for it.
    fn charge(&self) -> u16 {
        self.blocks.max(1)
    }
}

/// The list of all datagrams by age.
const ALL: usize = 0;
/// That of those of one source.
const OF_SOURCE: usize = 1;

/// The place of a datagram in a list by age.
#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

/// The ends of a list by age.
#[derive(Clone, Copy, Debug)]
struct Ages {
    oldest: u32,
    newest: u32,
}

impl Ages {
    const EMPTY: Ages = Ages {
        oldest: NONE,
        newest: NONE,
    };

    /// Adds a datagram to this list, which is one of those of kind `list`, as the newest.
    fn push(&mut self, datagrams: &mut Slab<Datagram>, list: usize, id: u32) {
        datagrams[id as usize].ages[list] = Links {
            older: self.newest,
            newer: NONE,
        };
        match self.newest {
            NONE => self.oldest = id,
            newest => datagrams[newest as usize].ages[list].newer = id,
        }
        self.newest = id;
    }

    fn remove(&mut self, datagrams: &mut Slab<Datagram>, list: usize, id: u32) {
        let Links { older, newer } = datagrams[id as usize].ages[list];
        match older {
            NONE => self.oldest = newer,
            older => datagrams[older as usize].ages[list].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => datagrams[newer as usize].ages[list].older = older,
        }
    }

    /// The oldest but this one; [`NONE`] if there is no other.
    fn oldest_but(&self, datagrams: &Slab<Datagram>, list: usize, id: u32) -> u32 {
        match self.oldest == id {
            true => datagrams[id as usize].ages[list].newer,
            false => self.oldest,
        }
    }
}

/// What sources of one hash hold.
#[derive(Clone, Copy, Debug)]
struct Source {
    blocks: u16,
    ages: Ages,
}

/// Where a piece belongs.
enum Place {
    /// Behind the piece with this first block, or in front of all ([`NONE`]).
    Behind(u32),
    /// It is there already.
    There,
    /// It overlaps others, lies behind the end, or there are too many.
    Contradicts,
}

/// A datagram that is whole: one frame without the marks of fragmentation, and how it came.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) bytes: Vec<u8>,
    pub(crate) meta: Meta,
    /// Bytes in front of the part that is cut.
    pub(crate) head: usize,
    /// Bytes of the pieces, in their order in the datagram.
    pub(crate) cuts: Vec<u16>,
    /// What is to be put around the pieces, of a datagram from a tunnel on its way to its owner.
    pub(crate) around: Option<Box<Wrapping>>,
    /// The port by which it would come back, if it was sent to one of our NAT addresses by the client that its source now
    /// stands for.
    pub(crate) turned: Option<PortId>,
}

impl Whole {
    /// Bytes of the largest of the pieces as an IP packet.
    pub(crate) fn largest(&self) -> usize {
        let largest = self.cuts.iter().copied().max().unwrap_or(0);
        self.head - ethernet::LEN + usize::from(largest)
    }
}

impl Packet for Whole {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.bytes.len();
        self.bytes.truncate(len);
        fits
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

/// Pieces that were dropped, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// The datagrams that one worker waits for.
#[derive(Debug)]
pub(crate) struct Fragments {
    blocks: Slab<Block>,
    free_blocks: u32,
    blocks_used: usize,
    datagrams: Slab<Datagram>,
    free_datagrams: u32,
    active: usize,
    /// First datagram by hash.
    table: Vec<u32>,
    sources: Vec<Source>,
    ages: Ages,
    hasher: KeyHasher,
}

impl Fragments {
    pub(crate) fn new(hasher: KeyHasher) -> io::Result<Fragments> {
        Ok(Fragments {
            blocks: Slab::new(BLOCKS)?,
            free_blocks: NONE,
            blocks_used: 0,
            datagrams: Slab::new(DATAGRAMS)?,
            free_datagrams: NONE,
            active: 0,
            table: vec![NONE; DATAGRAMS],
            sources: vec![
                Source {
                    blocks: 0,
                    ages: Ages::EMPTY,
                };
                SOURCES
            ],
            ages: Ages::EMPTY,
            hasher,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.active == 0
    }

    /// Takes a fragment in. True when that makes its datagram whole, which is then in `whole` and no longer here.
    ///
    /// # Errors
    /// The fragment is refused, and with it, as `lost` tells, maybe others that were kept.
    pub(crate) fn take(
        &mut self,
        now: Tick,
        (port, network): (PortId, Option<TunnelId>),
        frame: &[u8],
        p: &Parsed,
        whole: &mut Whole,
        lost: &mut Lost,
    ) -> Result<bool, DropReason> {
        let piece = Piece::read(frame, p);
        if !piece.is_sound(p) {
            return Err(DropReason::Fragment);
        }
        let key = Key {
            src: p.key.src,
            dst: p.key.dst,
            src_port: (piece.id >> 16) as u16,
            dst_port: piece.id as u16,
            // In IPv6 only the first fragment's word for what follows counts (RFC 8200 §4.5).
            proto: if p.is_v4() { p.key.proto } else { 0 },
            tunnel: 0,
        };
        let slot = self.hasher.hash(&key) as usize % self.table.len();
        let id = match self.find(slot, &key, network) {
            Some(id) => id,
            None => self.open(now, (port, network), slot, key, lost),
        };
        let d = &self.datagrams[id as usize];
        if d.port != port {
            return Err(DropReason::Martian);
        }
        if d.refused {
            return Err(DropReason::FragmentOverlap);
        }
        let place = match self.place(id, &piece) {
            Place::Behind(place) => place,
            // RFC 8200 §4.5 lets it be ignored.
            Place::There => return Err(DropReason::Fragment),
            Place::Contradicts => {
                self.refuse(id, lost);
                return Err(DropReason::FragmentOverlap);
            }
        };
        let d = &self.datagrams[id as usize];
        let end = (piece.offset + piece.len) as u32;
        let total = d.total.or(piece.last.then_some(end));
        let is_whole = total == Some(d.have + piece.len as u32);
        let needed = (p.end as usize).div_ceil(BLOCK);
        // What is whole leaves at once.
        if !is_whole && !self.make_room_of_source(id, needed, lost)
            || !self.make_room(id, needed, lost)
        {
            return Err(DropReason::FragmentLimit);
        }
        self.store(id, place, &frame[..p.end as usize], p, &piece);
        let d = &mut self.datagrams[id as usize];
        d.total = total;
        d.congested |= piece.ecn == 3;
        if !is_whole {
            return Ok(false);
        }
        let made = self.assemble(id, whole);
        if !made {
            self.lose(id, lost);
            // This one is refused by its own.
            lost.packets -= 1;
            lost.bytes -= u64::from(p.end);
        }
        self.close(id);
        if made {
            Ok(true)
        } else {
            Err(DropReason::Fragment)
        }
    }

    /// Drops datagrams that have not become whole within `timeout` ticks.
    pub(crate) fn expire(&mut self, now: Tick, timeout: u32) -> Lost {
        let mut lost = Lost::default();
        // A few at a time; more come up in the next turn.
        for _ in 0..16 {
            let id = self.ages.oldest;
            if id == NONE || now.since(self.datagrams[id as usize].since) < timeout {
                break;
            }
            self.lose(id, &mut lost);
            self.close(id);
        }
        lost
    }

    fn find(&self, slot: usize, key: &Key, network: Option<TunnelId>) -> Option<u32> {
        let mut id = self.table[slot];
        while id != NONE {
            let d = &self.datagrams[id as usize];
            if d.key == *key && d.network == network {
                return Some(id);
            }
            id = d.chained;
        }
        None
    }

    fn open(
        &mut self,
        now: Tick,
        (port, network): (PortId, Option<TunnelId>),
        slot: usize,
        key: Key,
        lost: &mut Lost,
    ) -> u32 {
        if self.active == DATAGRAMS {
            self.give_up(self.ages.oldest, lost);
        }
        let source = self.hasher.hash_address(source(key.src)) as usize % SOURCES;
        let made = Datagram {
            key,
            network,
            port,
            since: now,
            first: NONE,
            pieces: 0,
            have: 0,
            total: None,
            refused: false,
            congested: false,
            bytes: 0,
            source: source as u16,
            blocks: 0,
            chained: self.table[slot],
            ages: [Links {
                older: NONE,
                newer: NONE,
            }; 2],
        };
        let id = match self.free_datagrams {
            NONE => self
                .datagrams
                .push(made)
                .expect("as many as there are, less the active ones, are free")
                as u32,
            free => {
                self.free_datagrams = self.datagrams[free as usize].chained;
                self.datagrams[free as usize] = made;
                free
            }
        };
        self.table[slot] = id;
        self.ages.push(&mut self.datagrams, ALL, id);
        let source = &mut self.sources[source];
        source.ages.push(&mut self.datagrams, OF_SOURCE, id);
        source.blocks += made.charge();
        self.active += 1;
        id
    }

    /// Gives up the oldest of the source of a datagram but itself, until it may have as many blocks more. False if it may
    /// not even alone. Each that is given up makes room for a block at least, so that they are no more than those blocks.
    fn make_room_of_source(&mut self, id: u32, needed: usize, lost: &mut Lost) -> bool {
        let d = &self.datagrams[id as usize];
        let (place, charge) = (usize::from(d.source), usize::from(d.charge()));
        let own = usize::from(d.blocks) + needed;
        while usize::from(self.sources[place].blocks) - charge + own > PER_SOURCE {
            let ages = &self.sources[place].ages;
            let oldest = ages.oldest_but(&self.datagrams, OF_SOURCE, id);
            if oldest == NONE {
                return false;
            }
            self.give_up(oldest, lost);
        }
        true
    }

    /// The same of all, until there are as many free blocks.
    fn make_room(&mut self, id: u32, needed: usize, lost: &mut Lost) -> bool {
        while self.blocks_used + needed > BLOCKS {
            let oldest = self.ages.oldest_but(&self.datagrams, ALL, id);
            if oldest == NONE {
                return false;
            }
            self.give_up(oldest, lost);
        }
        true
    }

    fn place(&self, id: u32, piece: &Piece) -> Place {
        let d = &self.datagrams[id as usize];
        let end = piece.offset + piece.len;
        let mut before = NONE;
        let mut at = d.first;
        let mut furthest = 0;
        while at != NONE {
            let b = &self.blocks[at as usize];
            let (offset, len) = (usize::from(b.offset), usize::from(b.len));
            if offset == piece.offset
                && len == piece.len
                && (d.total.is_none_or(|t| (t as usize == end) == piece.last))
            {
                return Place::There;
            }
            if offset < end && piece.offset < offset + len {
                return Place::Contradicts;
            }
            if offset < piece.offset {
                before = at;
            }
            furthest = offset + len;
            at = b.behind;
        }
        let ends_elsewhere = match d.total {
            Some(total) => piece.last || end > total as usize,
            None => piece.last && end < furthest,
        };
        if ends_elsewhere || d.pieces == PIECES {
            return Place::Contradicts;
        }
        Place::Behind(before)
    }

    /// Keeps a piece, for which there is room.
    fn store(&mut self, id: u32, place: u32, frame: &[u8], p: &Parsed, piece: &Piece) {
        let mut next = NONE;
        let mut first = NONE;
        // From the last block to the first, so that each knows the next.
        for (i, chunk) in frame.chunks(BLOCK).enumerate().rev() {
            let block = self.take_block();
            let b = &mut self.blocks[block as usize];
            b.bytes[..chunk.len()].copy_from_slice(chunk);
            b.next = next;
            next = block;
            if i == 0 {
                first = block;
            }
        }
        let behind = match place {
            NONE => std::mem::replace(&mut self.datagrams[id as usize].first, first),
            place => std::mem::replace(&mut self.blocks[place as usize].behind, first),
        };
        let b = &mut self.blocks[first as usize];
        b.behind = behind;
        b.offset = piece.offset as u16;
        b.len = piece.len as u16;
        b.head = p.l4;
        let d = &mut self.datagrams[id as usize];
        let before = d.charge();
        d.blocks += frame.len().div_ceil(BLOCK) as u16;
        self.sources[usize::from(d.source)].blocks += d.charge() - before;
        d.pieces += 1;
        d.have += piece.len as u32;
        d.bytes += frame.len() as u64;
    }

    fn take_block(&mut self) -> u32 {
        self.blocks_used += 1;
        if self.free_blocks != NONE {
            let block = self.free_blocks;
            self.free_blocks = self.blocks[block as usize].next;
            return block;
        }
        let empty = Block {
            bytes: [0; BLOCK],
            next: NONE,
            behind: NONE,
            offset: 0,
            len: 0,
            head: 0,
        };
        self.blocks
            .push(empty)
            .expect("as many as there are, less the used ones, are free") as u32
    }

    /// Puts a datagram of which all pieces are there into one frame. False if that makes no datagram.
    fn assemble(&self, id: u32, whole: &mut Whole) -> bool {
        let d = &self.datagrams[id as usize];
        whole.bytes.clear();
        whole.cuts.clear();
        whole.meta = Meta::default();
        whole.around = None;
        whole.turned = None;
        let mut at = d.first;
        while at != NONE {
            let b = &self.blocks[at as usize];
            let (mut skip, mut left) = (
                usize::from(b.head),
                usize::from(b.head) + usize::from(b.len),
            );
            if whole.cuts.is_empty() {
                (whole.head, skip) = (skip, 0);
            }
            let mut block = at;
            while left > 0 {
                let here = &self.blocks[block as usize];
                let used = left.min(BLOCK);
                whole
                    .bytes
                    .extend_from_slice(&here.bytes[skip.min(used)..used]);
                skip = skip.saturating_sub(used);
                left -= used;
                block = here.next;
            }
            whole.cuts.push(b.len);
            at = b.behind;
        }
        whole.seal(d.congested)
    }

    fn give_up(&mut self, id: u32, lost: &mut Lost) {
        self.lose(id, lost);
        self.close(id);
    }

    /// Gives up what is there of a datagram, and remembers that the rest is to be refused.
    fn refuse(&mut self, id: u32, lost: &mut Lost) {
        self.lose(id, lost);
        self.release(id);
        self.datagrams[id as usize].refused = true;
    }

    fn lose(&mut self, id: u32, lost: &mut Lost) {
        let d = &mut self.datagrams[id as usize];
        lost.packets += u64::from(d.pieces);
        lost.bytes += d.bytes;
        (d.pieces, d.bytes) = (0, 0);
    }

    /// Gives the blocks of a datagram back.
    fn release(&mut self, id: u32) {
        let d = self.datagrams[id as usize];
        let mut piece = d.first;
        while piece != NONE {
            let behind = self.blocks[piece as usize].behind;
            let mut block = piece;
            while block != NONE {
                let next = self.blocks[block as usize].next;
                self.blocks[block as usize].next = self.free_blocks;
                self.free_blocks = block;
                block = next;
            }
            piece = behind;
        }
        self.blocks_used -= usize::from(d.blocks);
        let d = &mut self.datagrams[id as usize];
        let before = d.charge();
        (d.first, d.blocks) = (NONE, 0);
        self.sources[usize::from(d.source)].blocks -= before - d.charge();
    }

    fn close(&mut self, id: u32) {
        self.release(id);
        let d = self.datagrams[id as usize];
        let slot = self.hasher.hash(&d.key) as usize % self.table.len();
        if self.table[slot] == id {
            self.table[slot] = d.chained;
        } else {
            let mut before = self.table[slot];
            while self.datagrams[before as usize].chained != id {
                before = self.datagrams[before as usize].chained;
            }
            self.datagrams[before as usize].chained = d.chained;
        }
        self.ages.remove(&mut self.datagrams, ALL, id);
        let source = &mut self.sources[usize::from(d.source)];
        source.ages.remove(&mut self.datagrams, OF_SOURCE, id);
        source.blocks -= d.charge();
        self.datagrams[id as usize].chained = self.free_datagrams;
        self.free_datagrams = id;
        self.active -= 1;
    }
}

impl Whole {
    /// Makes the first piece's header one of the whole. False if that is too long, or the pieces disagree about ECN.
    fn seal(&mut self, congested: bool) -> bool {
        let ip = ethernet::LEN;
        let len = self.bytes.len() - ip;
        let v4 = get16(&self.bytes, 12) == ethernet::IPV4;
        let b = &mut self.bytes[ip..];
        // RFC 3168 §5.3: congestion told of one piece is congestion of the whole, if it can be at all.
        let shift = if v4 { 0 } else { 4 };
        if congested {
            if b[1] >> shift & 3 == 0 {
                return false;
            }
            b[1] |= 3 << shift;
        }
        let counted = if v4 { len } else { len - ipv6::LEN };
        if counted > MAX_DATAGRAM {
            return false;
        }
        if v4 {
            put16(b, 2, counted as u16);
            let keep = get16(b, 6) & 0x4000;
            put16(b, 6, keep);
            seal_header(b, self.head - ip);
        } else {
            put16(b, 4, counted as u16);
            put16(b, self.head - ip - 6, 0);
        }
        true
    }
}

/// Writes the checksum of an IPv4 header of `len` bytes.
pub(crate) fn seal_header(b: &mut [u8], len: usize) {
    put16(b, 10, 0);
    let sum = !checksum::fold(checksum::sum(&b[..len]));
    put16(b, 10, sum);
}

/// Whom an address belongs to: one host in IPv4, one link in IPv6, where a host has all of its addresses.
pub(crate) fn source(a: Addr) -> Addr {
    if a.is_v4() { a } else { Addr(a.0 >> 64 << 64) }
}

/// Identifications for datagrams that leave in pieces under an address of ours, so that those of two
/// clients never meet in the server's memory (RFC 4963, RFC 6864): a count for each destination, from
/// where nobody can guess.
#[derive(Debug)]
pub(crate) struct Identifications {
    next: Vec<u32>,
    hasher: KeyHasher,
    index: u32,
    count: u32,
}

impl Identifications {
    /// Those of worker `index` of `count`, which never meet another's.
    pub(crate) fn new(
        hasher: KeyHasher,
        mut random: impl FnMut() -> u64,
        index: u16,
        count: u16,
    ) -> Self {
        Identifications {
            next: (0..SOURCES).map(|_| random() as u32).collect(),
            hasher,
            index: u32::from(index),
            count: u32::from(count),
        }
    }

    /// One that was not used towards this destination for as long as possible.
    pub(crate) fn take(&mut self, to: Addr) -> u32 {
        let next = &mut self.next[self.hasher.hash_address(to) as usize % SOURCES];
        *next = next.wrapping_add(1);
        // IPv4 has 16 bits; a whole number of turns by the workers' count fits into them.
        let turns = (1 << 16) / self.count;
        let low = *next % turns * self.count + self.index;
        if to.is_v4() {
            low
        } else {
            (*next / turns) << 16 | low
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Station, parse};
    use crate::wire::put;
    use proptest::prelude::*;

    /// A fragment of an IPv4 packet from one of a few sources.
    fn fragment(src: u8, id: u8, word: u16, len: usize) -> Vec<u8> {
        let mut b = vec![0; 34 + len];
        put16(&mut b, 12, ethernet::IPV4);
        put(&mut b, 14, [0x45, 0]);
        put16(&mut b, 16, 20 + len as u16);
        put16(&mut b, 18, u16::from(id));
        put16(&mut b, 20, word);
        put(&mut b, 22, [64, 17]);
        put(&mut b, 26, [10, 0, 0, src]);
        put(&mut b, 30, [198, 51, 100, 1]);
        seal_header(&mut b[14..], 20);
        b
    }

    proptest! {
        #[test]
        fn everything_kept_is_given_back_and_every_piece_accounted_for(
            pieces in prop::collection::vec((1u8..4, 0u8..4, 0u16..6, any::<bool>(), 1usize..6), 1..200),
        ) {
            let mut fragments = Fragments::new(KeyHasher::new(1)).unwrap();
            let (mut whole, mut lost, mut refused, mut passed) = (Whole::default(), Lost::default(), 0, 0);
            let mut taken = 0;
            for (src, id, offset, more, eights) in pieces {
                let b = fragment(src, id, (offset * 64) | (u16::from(more) << 13), eights * 512);
                let p = parse(&b, Station::Any, None);
                let Ok(p) = p else { continue };
                if p.content != crate::parse::Content::Fragment {
                    continue;
                }
                taken += 1;
                match fragments.take(Tick(1), (PortId(0), None), &b, &p, &mut whole, &mut lost) {
                    Ok(true) => passed += whole.cuts.len() as u64,
                    Ok(false) => {}
                    Err(_) => refused += 1,
                }
            }
            while !fragments.is_empty() {
                let late = fragments.expire(Tick(1000), 10);
                lost.packets += late.packets;
            }
            prop_assert_eq!(fragments.blocks_used, 0);
            prop_assert!(fragments.sources.iter().all(|s| s.blocks == 0 && s.ages.oldest == NONE));
            prop_assert!(fragments.table.iter().all(|d| *d == NONE));
            prop_assert_eq!(passed + refused + lost.packets, taken);
        }
    }

    #[test]
    fn workers_never_give_the_same_identification() {
        let to = Addr::v4(1);
        let make = |index| {
            let mut random = crate::flow::key::Random::new(3);
            Identifications::new(KeyHasher::new(1), move || random.next(), index, 3)
        };
        let mut seen = std::collections::HashSet::new();
        for index in 0..3 {
            let mut ids = make(index);
            for _ in 0..20_000 {
                let id = ids.take(to);
                assert!(id <= 0xffff && seen.insert(id), "{id} twice");
            }
        }
    }
}
