//! `[limits]`: what connections and calls may take, so that nobody can take everything.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most connections at once for gRPC.
    pub max_connections: usize,
    /// Most connections at once for HTTP.
    pub max_http_connections: usize,
    /// Most connections of each port that the system holds until they are accepted.
    pub listen_backlog: u32,
    /// Most calls under way on a connection.
    pub max_streams_per_connection: u32,
    /// Bytes of a request.
    pub max_request_bytes: usize,
    /// Bytes of a request to BatchValidate, or to a gateway's Check.
    pub max_batch_bytes: usize,
    /// Bytes of an answer.
    pub max_answer_bytes: usize,
    /// Bytes of all answers that wait until their clients take them.
    pub max_unsent_bytes: usize,
    /// Bytes of a call's metadata.
    pub max_metadata_bytes: u32,
    /// Most calls under way.
    pub max_calls: usize,
    /// Most calls under way that read the database, for a moment; for longer, an eighth of that.
    pub max_reads: usize,
    /// Most creations under way, and most refreshes, for a moment; for longer, a quarter of that.
    pub max_writes: usize,
    /// Most batches of tokens that are being judged; 0 for four on each processor.
    pub max_batches: usize,
    /// Most calls under way of one caller.
    pub max_calls_per_caller: usize,
    /// Calls a second of one caller; 0 for no limit.
    pub calls_per_second_per_caller: u32,
    /// How long a call may take, whatever its caller allows.
    #[serde(with = "super::span")]
    pub call_timeout: Duration,
    /// How long a client may take to encrypt its connection, and to begin the protocol.
    #[serde(with = "super::span")]
    pub handshake_timeout: Duration,
    /// How long a connection may be without a call.
    #[serde(with = "super::span")]
    pub idle_timeout: Duration,
    /// After how much silence a client is asked whether it is alive.
    #[serde(with = "super::span")]
    pub keepalive_interval: Duration,
    /// How long its answer may take.
    #[serde(with = "super::span")]
    pub keepalive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_http_connections: 1024,
            listen_backlog: 1024,
            max_streams_per_connection: 512,
            max_request_bytes: 64 << 10,
            max_batch_bytes: 1 << 20,
            max_answer_bytes: 4 << 20,
            max_unsent_bytes: 64 << 20,
            max_metadata_bytes: 16 << 10,
            max_calls: 8192,
            max_reads: 96,
            max_writes: 1024,
            max_batches: 0,
            max_calls_per_caller: 4096,
            calls_per_second_per_caller: 0,
            call_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// A token, and the longest demands that go with it.
const SMALLEST_REQUEST: usize = 16 << 10;
/// The longest session, or answer to one token.
const SMALLEST_ANSWER: usize = 128 << 10;
/// Names of services and methods, an API key, and what proxies add.
const SMALLEST_METADATA: u32 = 1 << 10;
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Limits {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_connections", self.max_connections),
            ("max_http_connections", self.max_http_connections),
            ("listen_backlog", usize::try_from(self.listen_backlog).unwrap_or(usize::MAX)),
            (
                "max_streams_per_connection",
                usize::try_from(self.max_streams_per_connection).unwrap_or(usize::MAX),
            ),
            ("max_calls", self.max_calls),
            ("max_reads", self.max_reads),
            ("max_writes", self.max_writes),
            ("max_calls_per_caller", self.max_calls_per_caller),
        ];
        for (name, count) in counts {
            if !(1..=1_000_000).contains(&count) {
                return Err(invalid(format!("limits.{name}"), "must be from 1 to 1000000"));
            }
        }
        let sizes = [
            ("max_request_bytes", self.max_request_bytes, SMALLEST_REQUEST..=64 << 20),
            ("max_batch_bytes", self.max_batch_bytes, SMALLEST_REQUEST..=64 << 20),
            ("max_answer_bytes", self.max_answer_bytes, SMALLEST_ANSWER..=64 << 20),
            ("max_unsent_bytes", self.max_unsent_bytes, 8 * SMALLEST_ANSWER..=16 << 30),
        ];
        for (name, bytes, range) in sizes {
            if !range.contains(&bytes) {
                let (least, most) = (range.start(), range.end());
                return Err(invalid(
                    format!("limits.{name}"),
                    format!("must be from {least} to {most}"),
                ));
            }
        }
        if self.unsent_bytes_of_connection() < self.max_answer_bytes {
            let problem = "must be at least 8 times limits.max_answer_bytes: a connection may \
                           hold an eighth of it";
            return Err(invalid("limits.max_unsent_bytes", problem));
        }
        if !(SMALLEST_METADATA..=1 << 20).contains(&self.max_metadata_bytes) {
            return Err(invalid(
                "limits.max_metadata_bytes",
                format!("must be from {SMALLEST_METADATA} to 1048576"),
            ));
        }
        let spans = [
            ("call_timeout", self.call_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("idle_timeout", self.idle_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
        ];
        for (name, span) in spans {
            if span < Duration::from_millis(100) || span > LONGEST {
                return Err(invalid(format!("limits.{name}"), "must be from 100ms to 1d"));
            }
        }
        Ok(())
    }

    /// The part of `max_unsent_bytes` that one connection may hold.
    pub fn unsent_bytes_of_connection(&self) -> usize {
        self.max_unsent_bytes / 8
    }

    /// Most batches of tokens that are being judged.
    pub fn batches(&self) -> usize {
        match self.max_batches {
            0 => 4 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            batches => batches,
        }
    }

    /// The rate of a caller, if it has one.
    pub fn rate(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.calls_per_second_per_caller)
    }
}
