//! Tests of the real binary as a process: crashes, start-up errors, signals, files, the command
//! line and logs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;

#[path = "process/audit.rs"]
mod audit;
#[path = "process/cli.rs"]
mod cli;
#[path = "process/client_messages.rs"]
mod client_messages;
#[path = "process/crash.rs"]
mod crash;
#[path = "process/descriptors.rs"]
mod descriptors;
#[path = "process/disk.rs"]
mod disk;
#[path = "process/files.rs"]
mod files;
#[path = "process/keys.rs"]
mod keys;
#[path = "process/logs.rs"]
mod logs;
#[path = "process/messages.rs"]
mod messages;
#[path = "process/pauses.rs"]
mod pauses;
#[path = "process/restore.rs"]
mod restore;
#[path = "process/settings.rs"]
mod settings;
#[path = "process/signals.rs"]
mod signals;
#[path = "process/start.rs"]
mod start;
#[path = "process/tls.rs"]
mod tls;
