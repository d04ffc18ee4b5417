//! The keys that make and verify tokens. The database stores them sealed under a master key. Each
//! process opens them into a key ring, and reloads the ring when the keys in the database change.

pub mod generate;
pub mod keeper;
pub mod master_key;
pub mod pair;
pub mod private_file;
pub mod ring;
pub mod sealing;
