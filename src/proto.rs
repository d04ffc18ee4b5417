//! The generated protocol, its descriptors, and how messages that carry tokens or claims print:
//! without them.

#![allow(missing_docs)] // The comments stand in `proto/`; the generator writes helpers without any.
#![allow(clippy::too_many_lines)] // Of generated functions.

mod encoded_struct;

use std::fmt;

pub use encoded_struct::EncodedStruct;

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

// The call of the macro is written by `build.rs`, which has the list of the messages.
include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
