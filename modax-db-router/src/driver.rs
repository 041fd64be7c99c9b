//! The only owner of clock, sockets and tasks.

pub(crate) mod events;
pub(crate) mod pool;
