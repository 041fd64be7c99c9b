//! Brings, starts, breaks and stops real servers.
