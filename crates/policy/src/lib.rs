//! The policy document: validate, compile, evaluate, explain. Pure.
//!
//! A [`Document`] is read from JSON or YAML and is valid or refused with every problem at once.
//! [`Compiled`] is its form for packets and DNS queries: [`Compiled::evaluate`] says whether a packet
//! passes and why, [`Compiled::evaluate_name`] the same of a query. A second, naive reading of the same document lives outside this crate, and the two must
//! agree.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod classify;
mod compile;
pub mod document;
mod evaluate;
mod lint;
pub mod name;
mod problem;
mod tree;

pub use compile::{CompileError, Compiled};
pub use document::{Action, Document, GrantScope, Mode, OnDeny};
pub use evaluate::{
    Cause, Decision, Facts, MAX_RULES_PER_NAME, NameDecision, NameRule, Selector, Step,
};
pub use lint::Lint;
pub use problem::{Invalid, MAX_PROBLEMS, Problem};
pub use tree::{MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_VALUES};
