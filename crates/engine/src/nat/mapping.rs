//! Endpoint-independent mappings (RFC 4787 REQ-1): a client's address and port show the same
//! address and port to every server, and to no other client, as long as one of its flows lives.
//!
//! What may come back is still decided by the flow alone, so filtering stays address- and
//! port-dependent.

use std::io;

use mem::Slab;

use crate::address::Addr;
use crate::flow::{Flow, FlowTable, Index, Key};

/// The end of the list of free places.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Mapping {
    client: Addr,
    nat: Addr,
    client_port: u16,
    nat_port: u16,
    proto: u8,
    tunnel: u16,
    /// Flows that show it; a place without any is free.
    flows: u32,
    next_free: u32,
}

impl Mapping {
    fn of(flow: &Flow) -> Mapping {
        Mapping {
            client: flow.client,
            nat: flow.nat,
            client_port: flow.client_port,
            nat_port: flow.nat_port,
            proto: flow.proto,
            tunnel: flow.tunnel,
            flows: 1,
            next_free: NONE,
        }
    }

    fn inner(&self) -> Key {
        inner_key(self.client, self.client_port, self.proto, self.tunnel)
    }

    fn outer(&self) -> Key {
        outer_key(self.nat, self.nat_port, self.proto, self.tunnel)
    }
}

/// Keys of either end. Nobody has the address zero, so the two are never the same.
fn inner_key(client: Addr, port: u16, proto: u8, tunnel: u16) -> Key {
    Key {
        src: client,
        src_port: port,
        proto,
        tunnel,
        ..Key::default()
    }
}

fn outer_key(nat: Addr, port: u16, proto: u8, tunnel: u16) -> Key {
    Key {
        dst: nat,
        dst_port: port,
        proto,
        tunnel,
        ..Key::default()
    }
}

/// The mappings of one worker; their memory is touched only as there are some.
#[derive(Debug)]
pub(crate) struct Mappings {
    places: Slab<Mapping>,
    index: Index,
    free: u32,
}

impl Mappings {
    /// Room for as many mappings as there can be flows.
    pub(crate) fn new(capacity: u32) -> io::Result<Mappings> {
        let n = capacity as usize;
        Ok(Mappings {
            places: Slab::new(n)?,
            index: Index::new(2 * n)?,
            free: NONE,
        })
    }

    fn find(&self, flows: &FlowTable, key: &Key) -> Option<u32> {
        self.index.find(flows.hash(key), |i| {
            let mapping = &self.places[i as usize];
            mapping.inner() == *key || mapping.outer() == *key
        })
    }

    /// What a client's address and port show.
    pub(crate) fn shown(&self, flows: &FlowTable, client: &Key) -> Option<(Addr, u16)> {
        let key = inner_key(client.src, client.src_port, client.proto, client.tunnel);
        let mapping = &self.places[self.find(flows, &key)? as usize];
        Some((mapping.nat, mapping.nat_port))
    }

    /// How many flows of another client show this address and port to the servers that `client` can reach.
    pub(crate) fn shown_by(&self, flows: &FlowTable, nat: Addr, port: u16, client: &Key) -> u32 {
        let key = outer_key(nat, port, client.proto, client.tunnel);
        let place = self.find(flows, &key);
        place.map_or(0, |place| self.places[place as usize].flows)
    }

    /// Takes in that a translated flow has been opened. Without room for its mapping, the next
    /// flow of the client may show another port.
    pub(crate) fn opened(&mut self, flows: &FlowTable, flow: &Flow) {
        let new = Mapping::of(flow);
        if let Some(place) = self.find(flows, &new.inner()) {
            let mapping = &mut self.places[place as usize];
            mapping.flows += u32::from(mapping.outer() == new.outer());
            return;
        }
        let place = match self.free {
            NONE => match self.places.push(new) {
                Some(place) => place as u32,
                None => return,
            },
            place => {
                self.free = self.places[place as usize].next_free;
                self.places[place as usize] = new;
                place
            }
        };
        let (inner, outer) = (flows.hash(&new.inner()), flows.hash(&new.outer()));
        if !self.index.insert(inner, place) {
            self.release(place);
        } else if !self.index.insert(outer, place) {
            self.index.remove(inner, place);
            self.release(place);
        }
    }

    /// Takes in that a translated flow has been closed.
    pub(crate) fn closed(&mut self, flows: &FlowTable, flow: &Flow) {
        if self.places.is_empty() {
            return;
        }
        let old = Mapping::of(flow);
        let Some(place) = self.find(flows, &old.inner()) else {
            return;
        };
        let mapping = &mut self.places[place as usize];
        if mapping.outer() != old.outer() {
            return;
        }
        mapping.flows -= 1;
        if mapping.flows == 0 {
            self.index.remove(flows.hash(&old.inner()), place);
            self.index.remove(flows.hash(&old.outer()), place);
            self.release(place);
        }
    }

    fn release(&mut self, place: u32) {
        self.places[place as usize].next_free = self.free;
        self.free = place;
    }
}
