//! Types and rules for sessions: their lifetimes, how they are refreshed, and how they end. Nothing
//! here reads a clock; callers pass the current time. `disk` and `file_access` interpret I/O errors
//! and file metadata that other parts of the service have read.

pub mod audit;
pub mod call_id;
pub mod caller;
pub mod certificate_name;
pub mod change;
pub mod claims;
pub mod creation;
pub mod cut_off;
pub mod cut_off_entry;
pub mod device;
pub mod disk;
pub mod factors;
pub mod file_access;
pub mod ids;
pub mod import;
pub mod key;
pub mod lease;
pub mod legacy_token;
pub mod live_policy;
pub mod metadata;
pub mod permission;
pub mod policies;
pub mod policy;
pub mod preset;
pub mod quota;
pub mod refresh;
pub mod revocation;
pub mod revoke;
pub mod role;
pub mod rotation;
pub mod search;
pub mod session;
pub mod stored_object;
pub mod text;
pub mod time;
pub mod user_agent;
pub mod who;

pub use countersign_verification::{bearer, credential, inactive, json_object};
