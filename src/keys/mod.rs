//! The keys that make and verify tokens. They are stored sealed under a master key, and opened into
//! a ring, which follows the changes in the database.

pub mod generate;
pub mod keeper;
pub mod master_key;
pub mod pair;
pub mod private_file;
pub mod ring;
pub mod sealing;
