//! `[limits]`: the limits of connections and calls, so that no client can exhaust the service.

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
    /// The most open connections of the gRPC port.
    pub max_connections: usize,
    /// The most open connections of the HTTP port.
    pub max_http_connections: usize,
    /// The most connections of each port that the operating system queues until they are accepted.
    pub listen_backlog: u32,
    /// The most concurrent calls on a connection.
    pub max_streams_per_connection: u32,
    /// The largest size of a request, in bytes.
    pub max_request_bytes: usize,
    /// The largest size of a request to BatchValidate or ImportSessions, or to a gateway's Check, in
    /// bytes.
    pub max_batch_bytes: usize,
    /// The largest size of a response, in bytes.
    pub max_answer_bytes: usize,
    /// The largest total size of the responses that clients have not read yet, in bytes.
    pub max_unsent_bytes: usize,
    /// The largest size of a call's metadata, in bytes.
    pub max_metadata_bytes: u32,
    /// The most concurrent calls.
    pub max_calls: usize,
    /// The most calls that may read the database concurrently in a burst. In the long run, the
    /// limit is an eighth of this.
    pub max_reads: usize,
    /// The most creations that may run concurrently in a burst, and likewise the most refreshes. In
    /// the long run, the limit is a quarter of this.
    pub max_writes: usize,
    /// The most batches of tokens that are validated concurrently in the long run; 0 means four
    /// per processor.
    pub max_batches: usize,
    /// The most concurrent calls of one caller.
    pub max_calls_per_caller: usize,
    /// The most calls per second of one caller; 0 means no limit.
    pub calls_per_second_per_caller: u32,
    /// The most processes that verify tokens themselves (watchers) at this replica.
    pub max_watchers: usize,
    /// The longest time that a call may take, even if its own deadline is later.
    #[serde(with = "super::span")]
    pub call_timeout: Duration,
    /// The longest time that a client may take for the TLS handshake, and for the first bytes of
    /// the protocol.
    #[serde(with = "super::span")]
    pub handshake_timeout: Duration,
    /// The longest time that a connection may be open without a call.
    #[serde(with = "super::span")]
    pub idle_timeout: Duration,
    /// The server sends a keepalive ping to a client from which it has received no data for this
    /// time.
    #[serde(with = "super::span")]
    pub keepalive_interval: Duration,
    /// The longest time that the answer to a keepalive ping may take.
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
            max_watchers: 1000,
            call_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Room for a token and the longest demands that may come with it.
const SMALLEST_REQUEST: usize = 16 << 10;
/// Room for the longest session, or for the longest response for one token.
const SMALLEST_ANSWER: usize = 128 << 10;
/// Room for the names of a service and a method, an API key, and the headers that proxies add.
const SMALLEST_METADATA: u32 = 1 << 10;
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Limits {
    /// Returns this section with the settings of `read` that can change without a restart.
    pub fn reloaded(&self, read: &Self) -> Self {
        Self {
            max_calls_per_caller: read.max_calls_per_caller,
            calls_per_second_per_caller: read.calls_per_second_per_caller,
            // The other limits size what is made when the service starts.
            ..self.clone()
        }
    }

    /// Checks that the limits are in range.
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
            ("max_watchers", self.max_watchers),
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

    /// Returns the part of `max_unsent_bytes` that one connection may use.
    pub fn unsent_bytes_of_connection(&self) -> usize {
        self.max_unsent_bytes / 8
    }

    /// Returns `max_batches`, or four per processor if it is 0.
    pub fn batches(&self) -> usize {
        match self.max_batches {
            0 => 4 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            batches => batches,
        }
    }

    /// Returns the default rate limit of a caller, in calls per second, if there is one.
    pub fn rate(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.calls_per_second_per_caller)
    }
}
