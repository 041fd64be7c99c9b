//! Pure decisions.

pub mod backoff;
pub mod failback;
pub mod scouting;
pub mod selection;
pub mod standby;
