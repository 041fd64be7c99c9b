//! Chance that nobody has to pass in.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Different in each client: the standard library keys its hashers from the operating system's randomness.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
