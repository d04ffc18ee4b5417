//! Keys: sealed at rest under a master key, opened into a ring that signs and verifies, and how a
//! process follows their changes.

pub mod generate;
pub mod keeper;
pub mod master_key;
pub mod pair;
pub mod private_file;
pub mod ring;
pub mod sealing;
