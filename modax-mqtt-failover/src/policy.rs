//! Pure decisions.

pub mod backoff;
pub mod selection;
