//! Fast tests without any server.
