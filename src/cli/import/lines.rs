//! Reads sessions from lines of JSON (NDJSON), and gathers them to batches.

use std::io::{self, BufRead, Read};

use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::{Failure, output};
use crate::{domain::stored_object::find_large_integer, proto};

/// The largest number of sessions in a batch, which the service allows.
const MOST_SESSIONS: usize = 500;
/// The size of the messages in a batch at which the batch ends, in bytes. It leaves room below the
/// default of `limits.max_batch_bytes` for the session that exceeds it.
const BATCH_BYTES: usize = 640 << 10;
/// The largest number of bad lines in a batch.
const MOST_BAD: usize = 500;
/// The longest line, in bytes. No valid session needs a longer one.
const MAX_LINE_BYTES: u64 = 256 << 10;

/// A line that was not imported. It never holds the content of the line.
#[derive(Debug, Serialize)]
pub struct BadLine {
    /// The number of the line, counted from 1.
    pub line: u64,
    /// The field with the problem; empty if the line as a whole has it.
    pub field: String,
    /// The problem.
    pub problem: String,
}

/// A place between two lines of the input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// The number of lines before it.
    pub line: u64,
    /// The number of bytes before it.
    pub offset: u64,
}

/// Sessions of successive lines.
#[derive(Debug, Default)]
pub struct Batch {
    /// The sessions.
    pub sessions: Vec<proto::ImportedSession>,
    /// The numbers of their lines.
    pub lines: Vec<u64>,
    /// The bad ones among the lines.
    pub bad: Vec<BadLine>,
    /// The place after the last line of the batch.
    pub end: Place,
}

/// The problem of a line: the field, and the rest of a sentence about it.
type Problem = (String, String);

/// Reads batches.
pub struct Batches<R> {
    reader: R,
    descriptor: MessageDescriptor,
    place: Place,
    line: Vec<u8>,
}

impl<R: BufRead> Batches<R> {
    /// Reads on from a place. The reader must be at that place.
    pub fn new(reader: R, place: Place) -> Result<Self, Failure> {
        let descriptor = output::descriptor("countersign.v1.ImportedSession")?;
        Ok(Self { reader, descriptor, place, line: vec![] })
    }

    /// Reads the next batch, or none at the end of the input.
    pub fn next(&mut self) -> io::Result<Option<Batch>> {
        let (mut batch, start, mut bytes) = (Batch::default(), self.place.line, 0);
        while batch.sessions.len() < MOST_SESSIONS
            && batch.bad.len() < MOST_BAD
            && bytes < BATCH_BYTES
            && self.read_line()?
        {
            let line = self.place.line;
            match self.parse() {
                Ok(Some(session)) => {
                    bytes += session.encoded_len();
                    batch.sessions.push(session);
                    batch.lines.push(line);
                }
                Ok(None) => {}
                Err((field, problem)) => batch.bad.push(BadLine { line, field, problem }),
            }
        }
        batch.end = self.place;
        Ok((self.place.line > start).then_some(batch))
    }

    /// Reads the next line into `self.line`, but not much more than the longest one allowed.
    /// Returns whether there was one.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE_BYTES + 1);
        let mut read = limited.read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(false);
        }
        if self.line.last() != Some(&b'\n') {
            read += self.skip_line()?;
        }
        self.place.line += 1;
        self.place.offset += u64::try_from(read).unwrap_or_default();
        Ok(true)
    }

    /// Skips the rest of a line without keeping it. Returns the number of its bytes.
    fn skip_line(&mut self) -> io::Result<usize> {
        let mut skipped = 0;
        loop {
            let buffer = self.reader.fill_buf()?;
            let (bytes, is_last) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(bytes);
            skipped += bytes;
            if is_last {
                return Ok(skipped);
            }
        }
    }

    /// Converts the line to a session. Returns none for an empty line.
    fn parse(&self) -> Result<Option<proto::ImportedSession>, Problem> {
        let whole = |problem: String| (String::new(), problem);
        let line = self.line.trim_ascii();
        if u64::try_from(self.line.len()).unwrap_or_default() > MAX_LINE_BYTES {
            return Err(whole(format!("has more than {MAX_LINE_BYTES} bytes")));
        }
        if line.is_empty() {
            return Ok(None);
        }
        // The message of the error would show parts of the line.
        let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
            whole(format!("is not a JSON object, as column {} shows", error.column()))
        })?;
        for (name, value) in &fields {
            self.check_field(name, value)?;
        }
        self.message(fields.clone()).map(Some).ok_or_else(|| {
            let is_wrong = |(name, value): (&String, &Value)| {
                let alone = Map::from_iter([(name.clone(), value.clone())]);
                self.message(alone).is_none().then(|| name.clone())
            };
            let field = fields.iter().find_map(is_wrong).unwrap_or_default();
            (field, "has a value of the wrong kind".to_owned())
        })
    }

    fn check_field(&self, name: &str, value: &Value) -> Result<(), Problem> {
        let is_known = self.descriptor.get_field_by_name(name).is_some()
            || self.descriptor.get_field_by_json_name(name).is_some();
        if !is_known {
            // The name may be anything, even a secret.
            return Err((String::new(), "has a field that sessions do not have".to_owned()));
        }
        match find_large_integer(name, value) {
            None => Ok(()),
            Some(_) => Err((
                name.to_owned(),
                "holds an integer beyond 2^53, which readers of JSON change to another one: write \
                 it as a string"
                    .to_owned(),
            )),
        }
    }

    fn message(&self, fields: Map<String, Value>) -> Option<proto::ImportedSession> {
        DynamicMessage::deserialize_with_options(
            self.descriptor.clone(),
            Value::Object(fields),
            &DeserializeOptions::new(),
        )
        .ok()?
        .transcode_to()
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &str) -> Batches<&[u8]> {
        Batches::new(text.as_bytes(), Place::default()).unwrap()
    }

    #[test]
    fn lines_become_sessions_and_bad_lines_are_named_by_number_without_their_content() {
        let text = concat!(
            r#"{"legacy_id": "a", "subject": "alice", "created_at": "2026-01-31T12:00:00Z"}"#,
            "\n\n",
            r#"{"legacy_id": "b", "canary": "canary"}"#,
            "\n",
            r#"{"legacy_id": "c", "created_at": "canary"}"#,
            "\n{canary\r\n[\"canary\"]\n",
            r#"{"legacy_id": "d", "claims": {"n": 9007199254740993}}"#,
            "\n",
            r#"{"legacyId": "e", "legacy_refresh_token_hash": "AAEC"}"#,
        );
        let mut batches = batches(text);
        let batch = batches.next().unwrap().unwrap();
        assert_eq!(batch.lines, [1, 8]);
        assert_eq!(batch.sessions[0].subject, "alice");
        assert_eq!(batch.sessions[1].legacy_refresh_token_hash, [0, 1, 2]);
        let bad: Vec<_> = batch.bad.iter().map(|bad| (bad.line, &*bad.field)).collect();
        assert_eq!(bad, [(3, ""), (4, "created_at"), (5, ""), (6, ""), (7, "claims")]);
        assert!(!serde_json::to_string(&batch.bad).unwrap().contains("canary"));
        let length = u64::try_from(text.len()).unwrap();
        assert_eq!((batch.end.line, batch.end.offset), (8, length));
        assert!(batches.next().unwrap().is_none());
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped() {
        let long = "x".repeat(1 << 20);
        let text = format!("{long}\n{{\"legacy_id\": \"a\"}}\n{long}");
        let batch = batches(&text).next().unwrap().unwrap();
        assert_eq!(batch.lines, [2]);
        assert_eq!(batch.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(batch.end.offset, u64::try_from(text.len()).unwrap());
    }

    #[test]
    fn a_batch_is_limited_and_the_next_one_goes_on_after_it() {
        let text = "{\"legacy_id\": \"a\"}\n".repeat(MOST_SESSIONS + 1);
        let mut batches = batches(&text);
        assert_eq!(batches.next().unwrap().unwrap().sessions.len(), MOST_SESSIONS);
        let rest = batches.next().unwrap().unwrap();
        assert_eq!(rest.lines, [u64::try_from(MOST_SESSIONS).unwrap() + 1]);
    }
}
