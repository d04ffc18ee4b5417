//! The generated types of the protocol, its descriptors, and the `Debug` implementations of the
//! messages that carry tokens or claims, which print neither.

#![allow(missing_docs)] // The generator adds helper functions without comments.
#![allow(clippy::too_many_lines)] // Some generated functions are long.

pub mod codec;
mod encoded_struct;
mod watch_revocations;

use std::fmt;

pub use encoded_struct::EncodedStruct;
pub use watch_revocations::WatchRevocations;

tonic::include_proto!("countersign.v1");

/// The encoded `FileDescriptorSet` of the protocol, for reflection and for JSON.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/countersign.descriptors.bin"));

macro_rules! redacted {
    ($($message:ty),+) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($message), " { [redacted] }"))
            }
        })+
    };
}

// `build.rs` holds the list of the messages and writes the call of the macro.
include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
