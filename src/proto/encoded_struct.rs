//! `google.protobuf.Struct` as its encoded bytes, because decoded it may take 75 times as much
//! memory.

use std::fmt;

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, bytes, skip_field},
};

/// Number of the only field of `Struct`, the map `fields`.
const FIELDS: u32 = 1;

/// A `google.protobuf.Struct` that has not been decoded, so it may turn out not to be one.
///
/// The generated messages have it wherever the protocol says `google.protobuf.Struct`; the bytes on
/// the wire are the same.
#[derive(Clone, Default, PartialEq)]
pub struct EncodedStruct(Vec<u8>);

impl EncodedStruct {
    /// A message from its encoded bytes.
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

/// A `Struct` holds people's data: only its size is printed.
impl fmt::Debug for EncodedStruct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Message for EncodedStruct {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    /// Keeps an entry of the map as it is. Several messages merge by standing one after the other.
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
