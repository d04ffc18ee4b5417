//! `WatchRevocations`, of which parts may be encoded already: the same revocations go to every
//! watcher, so they are encoded once for all of them.

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut, Bytes},
    encoding::{DecodeContext, WireType, message, skip_field},
};

use super::{RevokedId, RevokedSessions};

/// The numbers of the fields.
const IDS: u32 = 1;
const SESSIONS: u32 = 2;

/// Revocations for a watcher. The bytes on the wire are those of the message in the protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchRevocations {
    /// Sessions and tokens.
    pub ids: Vec<RevokedId>,
    /// Many sessions at once.
    pub sessions: Vec<RevokedSessions>,
    /// Further messages of this type, encoded. Protobuf messages merge by concatenation. A message
    /// that was decoded has none.
    pub encoded: Vec<Bytes>,
}

impl Message for WatchRevocations {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(IDS, &self.ids, buffer);
        message::encode_repeated(SESSIONS, &self.sessions, buffer);
        for encoded in &self.encoded {
            buffer.put_slice(encoded);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            IDS => message::merge_repeated(wire_type, &mut self.ids, buffer, context),
            SESSIONS => message::merge_repeated(wire_type, &mut self.sessions, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(IDS, &self.ids)
            + message::encoded_len_repeated(SESSIONS, &self.sessions)
            + self.encoded.iter().map(Bytes::len).sum::<usize>()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_parts_are_read_like_the_others() {
        let id = |byte| RevokedId { id: vec![byte; 16], expires_at: None };
        let sessions = RevokedSessions { subject: "alice".to_owned(), ..Default::default() };
        let part = |ids| WatchRevocations { ids, ..Default::default() };
        let mut message = part(vec![id(1)]);
        message.sessions = vec![sessions.clone()];
        message.encoded = vec![
            part(vec![id(2)]).encode_to_vec().into(),
            part(vec![id(3), id(4)]).encode_to_vec().into(),
        ];
        let read = WatchRevocations::decode(&*message.encode_to_vec()).unwrap();
        let ids = [1, 2, 3, 4].map(id).to_vec();
        assert_eq!(read, WatchRevocations { ids, sessions: vec![sessions], encoded: vec![] });
    }
}
