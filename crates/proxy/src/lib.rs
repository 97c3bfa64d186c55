//! The proxies' shell: sockets, tasks and time around decisions that are made elsewhere.
//!
//! [`dns`] answers clients' queries and asks upstreams. What a message means is decided in the crate of
//! that name, who may ask what in `policy`.
#![forbid(unsafe_code)]

pub mod dns;
