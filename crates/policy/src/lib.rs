//! The policy document: validate, compile, evaluate, explain. Pure.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
