//! Support for the tests and benchmarks: the service in this process or in a process of its own,
//! databases, clients, and whatever else several of them need. A helper that only one test binary
//! needs is a module of that binary.

pub mod altered;
pub mod certificates;
pub mod client_programs;
pub mod cluster;
pub mod database;
pub mod double;
pub mod forge;
pub mod http2;
pub mod http_client;
pub mod keys;
pub mod ledger;
pub mod log;
pub mod patroni;
pub mod ports;
pub mod postgres_server;
pub mod process;
pub mod proxy;
pub mod refusal;
pub mod replication;
pub mod server;
pub mod site;
pub mod vectors;
pub mod venv;
pub mod watcher;
pub mod workload;
