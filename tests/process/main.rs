//! Tests of the real binary as a process: crashes, start-up errors, signals, files, the command
//! line and logs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod cli;
mod client_messages;
mod crash;
mod descriptors;
mod disk;
mod doctor;
mod files;
mod import;
mod keys;
mod logs;
mod messages;
mod monitoring;
mod pauses;
mod restore;
mod settings;
mod signals;
mod start;
mod tls;
mod top;
mod watch;
