//! Prefetch and huge-page slabs for the packet path: a small audited leaf.
