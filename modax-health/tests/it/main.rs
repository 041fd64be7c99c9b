//! Fast tests, no servers.
