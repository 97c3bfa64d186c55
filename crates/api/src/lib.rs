//! Request and response types, paths and a typed client of the management API.
