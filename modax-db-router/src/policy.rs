//! Pure decisions: which server, and what may run again.

pub mod retry;
pub mod selection;
