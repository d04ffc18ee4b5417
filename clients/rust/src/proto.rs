//! The generated messages and clients of the protocol. [`Client`](crate::Client) calls the services
//! with deadlines and retries, so the generated clients are rarely needed.
//!
//! The comments are those of the proto files. `Debug` of messages with tokens or claims prints
//! neither.
#![allow(missing_docs)] // The generator adds helper functions without comments.
#![allow(clippy::all)] // The generated code and its comments are not written for it.
#![allow(rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]

use std::fmt;

tonic::include_proto!("countersign.v1");

macro_rules! redacted {
    ($($message:ty),+) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($message), " { [redacted] }"))
            }
        })+
    };
}

// `build.rs` has the list of the messages.
include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
