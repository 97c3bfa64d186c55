//! The neuwerk binary: daemon entry and command-line verbs.

fn main() {}
