//! The library behind the daemon: configuration, wiring, HTTP, authentication.
