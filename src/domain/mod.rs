//! Pure types and rules: what a session is, when it lives, how it refreshes and ends. No clock, no
//! I/O.

pub mod audit;
pub mod caller;
pub mod certificate_name;
pub mod claims;
pub mod creation;
pub mod device;
pub mod disk;
pub mod file_access;
pub mod ids;
pub mod json_object;
pub mod key;
pub mod lease;
pub mod permission;
pub mod policy;
pub mod quota;
pub mod refresh;
pub mod revocation;
pub mod revoke;
pub mod role;
pub mod rotation;
pub mod session;
pub mod text;
pub mod time;
