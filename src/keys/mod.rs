//! Keys: sealed at rest under a master key, opened into a ring that signs and verifies.

pub mod master_key;
pub mod ring;
pub mod sealing;
