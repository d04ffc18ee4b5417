//! Prints responses as tables for people, and as JSON for scripts.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    time::Duration,
};

use comfy_table::{Table, presets};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use prost_types::Timestamp;

use super::{FAILED, Failure};
use crate::proto::{self, DESCRIPTORS};

/// Prints a line like `println!`, but does not panic if the reader has closed the pipe.
macro_rules! line {
    ($($text:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($text)*))) };
}
pub(super) use line;

/// Writes to standard output. If the reader has closed the pipe, as `head` does, the subcommand
/// goes on without output, so that its exit code does not depend on the reader.
pub fn write(text: fmt::Arguments<'_>) {
    match io::stdout().write_fmt(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("countersign: standard output: {error}");
            std::process::exit(i32::from(FAILED));
        }
        Ok(()) | Err(_) => {}
    }
}

/// Returns the descriptor of a message, given its full name.
pub fn descriptor(type_name: &str) -> Result<MessageDescriptor, Failure> {
    let pool = DescriptorPool::decode(DESCRIPTORS).map_err(Failure::failed)?;
    pool.get_message_by_name(type_name)
        .ok_or_else(|| Failure::failed(format!("no message {type_name}")))
}

/// Prints a message as JSON. The names are the field names in the `.proto` file, and fields with
/// default values are printed too.
pub fn json(message: &impl Message, type_name: &str) -> Result<(), Failure> {
    let descriptor = descriptor(&format!("countersign.v1.{type_name}"))?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(Failure::failed)?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let mut serializer = serde_json::Serializer::pretty(vec![]);
    message.serialize_with_options(&mut serializer, &options).map_err(Failure::failed)?;
    let text = String::from_utf8(serializer.into_inner()).map_err(Failure::failed)?;
    line!("{text}");
    Ok(())
}

/// Appends a message as JSON on one line. The names are the field names in the `.proto` file, and
/// fields with default values are left out.
pub fn json_line(
    text: &mut Vec<u8>,
    message: &impl Message,
    descriptor: MessageDescriptor,
) -> Result<(), Failure> {
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(Failure::failed)?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut *text), &options)
        .map_err(Failure::failed)?;
    text.push(b'\n');
    Ok(())
}

/// Formats a time span to the millisecond, like a protobuf duration in JSON: `600s`, `2.254s`.
pub fn span(span: Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    if millis == 0 { format!("{seconds}s") } else { format!("{seconds}.{millis:03}s") }
}

/// Converts a JSON object to a protobuf `Struct`.
pub fn to_struct(object: serde_json::Value) -> Result<proto::EncodedStruct, Failure> {
    let descriptor = descriptor("google.protobuf.Struct")?;
    DynamicMessage::deserialize_with_options(descriptor, object, &DeserializeOptions::new())
        .map_err(Failure::failed)?
        .transcode_to::<prost_types::Struct>()
        .map(Into::into)
        .map_err(Failure::failed)
}

/// Prints each name with its value on a line of its own. Empty values are left out.
pub fn pairs(pairs: &[(&str, String)]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, value]);
    }
    print(table);
}

/// Prints rows under a header.
pub fn rows<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    print(table);
}

fn print(mut table: Table) {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    line!("{}", table.trim_fmt());
}

/// Formats an instant as in RFC 3339, to the second. The text is empty if the instant is not set.
pub fn instant(at: Option<&Timestamp>) -> String {
    at.map(|at| Timestamp { nanos: 0, ..*at }.to_string()).unwrap_or_default()
}

/// Formats an enum value in lower case, without the prefix of its type. The text is empty if the
/// value is unspecified.
pub fn plain(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name).to_lowercase();
    if name == "unspecified" { String::new() } else { name }
}

/// Formats the reason for which a session ended. The text is empty if the session has not ended.
pub fn end_reason(session: &proto::Session) -> String {
    plain(session.end_reason().as_str_name(), "END_REASON_")
}

/// Formats the state of a session.
pub fn state(session: &proto::Session) -> String {
    plain(session.state().as_str_name(), "SESSION_STATE_")
}

/// Joins texts, and leaves out empty ones.
fn words<const N: usize>(texts: [String; N]) -> String {
    texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Formats authentication methods, each with the time at which it was verified, if that is known.
pub fn methods(amr: &[String], verified_at: &BTreeMap<String, Timestamp>) -> String {
    let text = |method: &String| match instant(verified_at.get(method)) {
        at if at.is_empty() => method.clone(),
        at => format!("{method}@{at}"),
    };
    amr.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Formats an object as JSON on one line. The text is empty if the object is not set.
pub fn object(object: Option<&proto::EncodedStruct>) -> Result<String, Failure> {
    let Some(object) = object else { return Ok(String::new()) };
    let message =
        DynamicMessage::decode(descriptor("google.protobuf.Struct")?, &*object.encode_to_vec())
            .map_err(Failure::failed)?;
    let value = serde_json::to_value(message).map_err(Failure::failed)?;
    Ok(value.to_string())
}

/// Prints a session, with a line for each field.
pub fn session(session: &proto::Session) {
    let device = session.device.clone().unwrap_or_default();
    let agent = match device.user_agent_name.is_empty() {
        true => device.user_agent,
        false => device.user_agent_name,
    };
    let policy = session.policy.clone().unwrap_or_default();
    pairs(&[
        ("session", session.session_id.clone()),
        ("subject", session.subject.clone()),
        ("tenant", session.tenant.clone()),
        ("client", session.client_id.clone()),
        ("audience", session.audience.join(" ")),
        ("scopes", session.scopes.join(" ")),
        ("acr", session.acr.clone()),
        ("amr", methods(&session.amr, &session.amr_verified_at)),
        ("device", words([device.label, agent, device.ip_address])),
        ("device id", device.device_id),
        ("policy", policy.name),
        ("created by", session.created_by.clone()),
        ("state", state(session)),
        ("end reason", end_reason(session)),
        ("end note", session.end_note.clone()),
        ("created", instant(session.created_at.as_ref())),
        ("refreshed", instant(session.refreshed_at.as_ref())),
        ("idle end", instant(session.idle_expires_at.as_ref())),
        ("end", instant(session.expires_at.as_ref())),
        ("ended", instant(session.ended_at.as_ref())),
    ]);
}

/// Prints a pair of tokens.
pub fn tokens(tokens: &proto::Tokens) {
    pairs(&[
        ("access token", tokens.access_token.clone()),
        ("  expires", instant(tokens.access_token_expires_at.as_ref())),
        ("refresh token", tokens.refresh_token.clone()),
        ("  expires", instant(tokens.refresh_token_expires_at.as_ref())),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_formatted_like_protobuf_durations() {
        for (millis, text) in [(0, "0s"), (600_000, "600s"), (2_254, "2.254s"), (50, "0.050s")] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }
}
