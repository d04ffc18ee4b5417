//! The blacklist in memory: an index that answers without the database, and the feed that alone changes it.

pub mod feed;
pub mod index;
pub mod membership;
