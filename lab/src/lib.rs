//! Namespaces, links, clients and servers for end-to-end tests and the demo. Development only.
