//! `google.protobuf.Struct` kept as encoded bytes, because a decoded one may take 75 times as much
//! memory.

use std::fmt;

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, bytes, skip_field},
};

/// The number of the only field of `Struct`, the map `fields`.
const FIELDS: u32 = 1;

/// A `google.protobuf.Struct` that has not been decoded, so its bytes may be invalid.
///
/// The generated messages use it in place of `google.protobuf.Struct`; the bytes on the wire are
/// the same.
#[derive(Clone, Default, PartialEq)]
pub struct EncodedStruct(Vec<u8>);

impl EncodedStruct {
    /// Wraps encoded bytes, which are not checked.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Decodes the message. Fails if the bytes are not those of a `Struct`.
    pub fn decode(&self) -> Result<prost_types::Struct, DecodeError> {
        prost_types::Struct::decode(&*self.0)
    }
}

impl From<prost_types::Struct> for EncodedStruct {
    fn from(message: prost_types::Struct) -> Self {
        Self(message.encode_to_vec())
    }
}

/// Prints only the size, because a `Struct` may hold personal data.
impl fmt::Debug for EncodedStruct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Message for EncodedStruct {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    /// Appends an entry of the map without decoding it: protobuf messages merge by concatenation.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if (tag, wire_type) != (FIELDS, WireType::LengthDelimited) {
            return skip_field(wire_type, tag, buffer, context);
        }
        let mut entry = vec![];
        bytes::merge(wire_type, &mut entry, buffer, context)?;
        bytes::encode(tag, &entry, &mut self.0);
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
