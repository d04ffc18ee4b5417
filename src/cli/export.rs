//! `countersign session export`

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prost_reflect::MessageDescriptor;
use serde::Deserialize;

use super::{
    Failure, Outcome,
    client::Server,
    output::{self, line},
};
use crate::{domain::ids::SessionId, proto};

/// The number of sessions on a page.
const PAGE: i32 = 500;
/// The longest line of an export, in bytes. The last line is looked for in as much of the file.
const MAX_LINE_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct Export {
    /// File to write, with a session on each line. If it holds an export already, the sessions
    /// after its last complete line are added.
    file: PathBuf,
    /// Tenant whose live sessions are written; without it, the default tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    server: Server,
}

/// The last session of an interrupted export.
#[derive(Deserialize)]
struct LastLine {
    legacy_id: String,
    #[serde(default)]
    tenant: String,
}

impl Export {
    pub async fn run(self) -> Outcome {
        let (mut file, last) = self.open()?;
        let descriptor = output::descriptor("countersign.v1.ImportedSession")?;
        let bar = bar();
        let mut client = self.server.sessions().await?;
        let mut request = proto::ListSessionsRequest {
            tenant: self.tenant.clone(),
            state: proto::SessionState::Live.into(),
            order_by: "created_at".to_owned(),
            page_size: PAGE,
            filter: last.map(created_from),
            ..proto::ListSessionsRequest::default()
        };
        let mut exported: u64 = 0;
        loop {
            let page = self.server.answer(client.list_sessions(request.clone()).await);
            let page = page.map_err(resumable)?;
            let mut text = vec![];
            for session in page.sessions {
                // The search compares times of creation by the millisecond, so it finds the last
                // session, and others of its millisecond, again.
                let id: SessionId = session.session_id.parse().map_err(Failure::failed)?;
                if last.is_none_or(|last| id > last) {
                    append(&mut text, session, &descriptor)?;
                    exported += 1;
                }
            }
            file.write_all(&text).map_err(|error| failed(&self.file, &error))?;
            bar.set_message(format!("{exported} sessions"));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        file.sync_all().map_err(|error| failed(&self.file, &error))?;
        bar.finish_and_clear();
        if self.server.json {
            line!("{:#}", serde_json::json!({ "exported": exported, "file": self.file }));
        } else {
            line!("exported {exported} sessions to {}", self.file.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Opens the file, which only its owner may read, at its end. Removes an incomplete last line.
    /// Also returns the last session that the file holds.
    fn open(&self) -> Result<(File, Option<SessionId>), Failure> {
        let path = &self.file;
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = opened.open(path).map_err(|error| failed(path, &error))?;
        let last = last_line(&mut file).map_err(|error| failed(path, &error))?;
        let Some(last) = last else { return Ok((file, None)) };
        let last = serde_json::from_slice::<LastLine>(&last).ok();
        let id = last.as_ref().and_then(|last| last.legacy_id.parse().ok());
        match (last, id) {
            (Some(last), Some(id)) if last.tenant == self.tenant => Ok((file, Some(id))),
            _ => Err(Failure::at_start(format!(
                "{} does not end with a session of an export of this tenant: name another file",
                path.display()
            ))),
        }
    }
}

/// Cuts a file after its last complete line, and moves to its end. Returns that line, if there is
/// one.
fn last_line(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(2 * MAX_LINE_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut end = vec![];
    file.read_to_end(&mut end)?;
    let complete = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    if complete == 0 && length > MAX_LINE_BYTES {
        return Err(io::Error::other("has no lines of an export"));
    }
    let kept = start + u64::try_from(complete).unwrap_or_default();
    file.set_len(kept)?;
    file.seek(SeekFrom::Start(kept))?;
    end.truncate(complete);
    let last = end.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(Some(last.to_vec()).filter(|last| !last.is_empty()))
}

/// Returns the condition that finds the session, and those that were created after it.
fn created_from(id: SessionId) -> proto::SessionFilter {
    let millis = id.created_millis();
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    let at = prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos };
    proto::SessionFilter { created_from: Some(at), ..proto::SessionFilter::default() }
}

/// Appends the line of a session.
fn append(
    text: &mut Vec<u8>,
    session: proto::Session,
    descriptor: &MessageDescriptor,
) -> Result<(), Failure> {
    let exported = proto::ImportedSession {
        legacy_id: session.session_id,
        tenant: session.tenant,
        subject: session.subject,
        client_id: session.client_id,
        audience: session.audience,
        scopes: session.scopes,
        claims: session.claims,
        metadata: session.metadata,
        acr: session.acr,
        amr: session.amr,
        amr_verified_at: session.amr_verified_at,
        authenticated_at: session.authenticated_at,
        device: session.device,
        policy: session.policy.unwrap_or_default().name,
        created_at: session.created_at,
        refreshed_at: session.refreshed_at,
        expires_at: session.expires_at,
        legacy_refresh_token_hash: vec![],
    };
    output::json_line(text, &exported, descriptor.clone())
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    match ProgressStyle::with_template("{spinner} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

/// Adds to a failure that the same command goes on with the export.
fn resumable(failure: Failure) -> Failure {
    let line = format!("{}; the same command goes on where this one stopped", failure.line);
    Failure { line, ..failure }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn an_incomplete_last_line_is_cut_off() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("export");
        for (content, kept, last) in [
            ("", "", None),
            ("{\"a", "", None),
            ("one\n", "one\n", Some("one")),
            ("one\ntwo\nthr", "one\ntwo\n", Some("two")),
        ] {
            fs::write(&path, content).unwrap();
            let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let found = last_line(&mut file).unwrap();
            assert_eq!(found.as_deref(), last.map(str::as_bytes), "{content:?}");
            file.write_all(b"next\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{kept}next\n"));
        }
    }
}
