//! Development commands: ci, fix, generated documents.

fn main() {}
