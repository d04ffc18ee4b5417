//! `countersign session import`

mod bad_lines;
mod checkpoint;
mod lines;

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{sync::Mutex, time::Instant};

use self::{
    bad_lines::BadLines,
    checkpoint::{Checkpoint, Totals, beside, failed},
    lines::{BadLine, Batch, Batches, Place},
};
use super::{
    FAILED, Failure, Outcome,
    client::{Connection, Server},
    output::line,
};
use crate::proto::{self, ImportStatus, session_service_client::SessionServiceClient};

/// The number of batches that are under way at the same time. The service writes two at a time, and
/// the others wait for their turn there.
const IN_FLIGHT: usize = 4;
/// The time for which a batch is sent again and again while the service does not take it.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// The reasons for which the service may take the batch later. A failure without a reason is one of
/// the connection.
const RETRYABLE: [&str; 6] = [
    "OVERLOADED",
    "CALLER_OVER_LIMIT",
    "STORE_UNAVAILABLE",
    "NOT_CURRENT",
    "NO_ACTIVE_KEY",
    "DEADLINE_EXCEEDED",
];

#[derive(Debug, Args)]
pub struct Import {
    /// File with a session on each line, as a JSON object with the fields of ImportedSession in the
    /// API; - reads standard input, which cannot be resumed.
    file: PathBuf,
    /// Check the sessions, and import none.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

/// The part of an import that is the same for a file and for standard input.
struct Run<'a> {
    command: &'a Import,
    client: Mutex<SessionServiceClient<Connection>>,
    bar: ProgressBar,
    began: Instant,
}

impl Import {
    pub async fn run(self) -> Outcome {
        let run = Run {
            command: &self,
            client: Mutex::new(self.server.sessions().await?),
            bar: ProgressBar::hidden(),
            began: Instant::now(),
        };
        if self.file.as_os_str() == "-" {
            let run = Run { bar: bar(None), ..run };
            let mut totals = Totals::default();
            let mut bad = BadLines::Stderr;
            let batches = Batches::new(io::stdin().lock(), Place::default())?;
            run.import(batches, Path::new("standard input"), |batch, results| {
                bad.write(&count(&mut totals, batch, results))?;
                Ok(totals)
            })
            .await?;
            return run.finish(totals, &bad, totals.sessions());
        }
        let path = beside(&self.file, ".progress");
        let mut checkpoint = match self.dry_run {
            false => Checkpoint::load(&self.file, &path)?,
            true => Checkpoint::at_start(&self.file).map_err(|error| failed(&self.file, &error))?,
        };
        let run = Run { bar: bar(Some(&checkpoint)), ..run };
        let before = checkpoint.totals.sessions();
        let ending = if self.dry_run { ".dry-run.bad.ndjson" } else { ".bad.ndjson" };
        let mut bad = BadLines::in_file(beside(&self.file, ending), checkpoint.bad_bytes)?;
        let batches = open(&self.file, checkpoint.place())?;
        let imported = run.import(batches, &self.file, |batch, results| {
            let end = batch.end;
            bad.write(&count(&mut checkpoint.totals, batch, results))?;
            checkpoint.advance(end);
            checkpoint.bad_bytes = bad.bytes();
            if !self.dry_run {
                checkpoint.save(&path)?;
            }
            run.bar.set_position(end.offset);
            Ok(checkpoint.totals)
        });
        imported.await.map_err(|failure| self.resumable(failure))?;
        if !self.dry_run {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&path, &error));
                }
                _ => {}
            }
        }
        let totals = checkpoint.totals;
        run.finish(totals, &bad, totals.sessions() - before)
    }

    /// Adds to a failure that the same command goes on with the import.
    fn resumable(&self, failure: Failure) -> Failure {
        if self.dry_run {
            return failure;
        }
        let line = format!("{}; the same command goes on where this one stopped", failure.line);
        Failure { line, ..failure }
    }
}

impl Run<'_> {
    /// Imports all batches. `done` is called with each batch and its results, in the order of the
    /// batches.
    async fn import<R: BufRead>(
        &self,
        mut batches: Batches<R>,
        source: &Path,
        mut done: impl FnMut(Batch, Vec<proto::ImportResult>) -> Result<Totals, Failure>,
    ) -> Result<(), Failure> {
        let read = std::iter::from_fn(|| batches.next().transpose());
        let sent = stream::iter(read).map(|batch| async {
            let batch = batch.map_err(|error| failed(source, &error))?;
            let results = self.send(&batch).await?;
            Ok::<_, Failure>((batch, results))
        });
        let mut sent = std::pin::pin!(sent.buffered(IN_FLIGHT));
        let mut at_start = None;
        while let Some(sent) = sent.next().await {
            let (batch, results) = sent?;
            let totals = done(batch, results)?;
            let before = *at_start.get_or_insert(totals.sessions());
            let rate = rate(totals.sessions() - before, self.began.elapsed());
            self.bar.set_message(format!("{} sessions, {rate}/s", totals.sessions()));
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    /// Sends a batch until the service has taken it, and returns a result for each session.
    async fn send(&self, batch: &Batch) -> Result<Vec<proto::ImportResult>, Failure> {
        if batch.sessions.is_empty() {
            return Ok(vec![]);
        }
        let waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_total_delay(Some(RETRY_FOR))
            .without_max_times();
        let results = (|| self.send_once(batch))
            .retry(waits)
            .when(|failure| {
                failure.reason.as_deref().is_none_or(|reason| RETRYABLE.contains(&reason))
            })
            .await?;
        match results.len() == batch.sessions.len() {
            true => Ok(results),
            false => {
                Err(Failure::failed("the server gave another number of results than sessions"))
            }
        }
    }

    async fn send_once(&self, batch: &Batch) -> Result<Vec<proto::ImportResult>, Failure> {
        let server = &self.command.server;
        let request = proto::ImportSessionsRequest {
            sessions: batch.sessions.clone(),
            validate_only: self.command.dry_run,
        };
        let mut client = self.client.lock().await.clone();
        let answered = server.answer(client.import_sessions(request).await);
        if answered.as_ref().is_err_and(|failure| failure.reason.is_none()) {
            // The connection may be closed. It does not open itself again.
            *self.client.lock().await = server.sessions().await?;
        }
        Ok(answered?.results)
    }

    /// Prints the results. `sessions` is the number of sessions that this run has dealt with.
    fn finish(&self, totals: Totals, bad: &BadLines, sessions: u64) -> Outcome {
        let elapsed = self.began.elapsed();
        let rate = rate(sessions, elapsed);
        if self.command.server.json {
            let seconds = (elapsed.as_secs_f64() * 1000.0).round() / 1000.0;
            line!(
                "{:#}",
                serde_json::json!({
                    "totals": totals, "seconds": seconds, "sessions_per_second": rate,
                })
            );
        } else {
            let Totals { imported, already_imported, expired, revoked, valid, bad } = totals;
            match self.command.dry_run {
                true => line!("valid: {valid}, expired: {expired}, bad lines: {bad}"),
                false => line!(
                    "imported: {imported}, already imported: {already_imported}, expired: \
                     {expired}, revoked: {revoked}, bad lines: {bad}"
                ),
            }
            line!("{sessions} sessions in {:.1} s, {rate} a second", elapsed.as_secs_f64());
        }
        if totals.bad == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        super::warn(&format!("{} bad lines were not imported: see {}", totals.bad, bad.shown()));
        Ok(ExitCode::from(FAILED))
    }
}

/// Counts the results of a batch. Returns its bad lines, in order.
fn count(totals: &mut Totals, batch: Batch, results: Vec<proto::ImportResult>) -> Vec<BadLine> {
    let mut bad = batch.bad;
    for (line, result) in batch.lines.into_iter().zip(results) {
        match result.status() {
            ImportStatus::Imported => totals.imported += 1,
            ImportStatus::AlreadyImported => totals.already_imported += 1,
            ImportStatus::Expired => totals.expired += 1,
            ImportStatus::Revoked => totals.revoked += 1,
            ImportStatus::Valid => totals.valid += 1,
            ImportStatus::Rejected | ImportStatus::Unspecified => {
                bad.push(BadLine { line, field: result.field, problem: result.problem });
            }
        }
    }
    totals.bad += u64::try_from(bad.len()).unwrap_or_default();
    bad.sort_by_key(|bad| bad.line);
    bad
}

/// Opens a file at a place.
fn open(path: &Path, place: Place) -> Result<Batches<BufReader<File>>, Failure> {
    let opened = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(place.offset))?;
        Ok(file)
    });
    let file = opened.map_err(|error| failed(path, &error))?;
    Batches::new(BufReader::with_capacity(64 << 10, file), place)
}

/// Returns a progress bar, which is shown only on a terminal. Without a file, its length is not
/// known.
fn bar(checkpoint: Option<&Checkpoint>) -> ProgressBar {
    let (bar, template) = match checkpoint {
        Some(checkpoint) => {
            let bar = ProgressBar::new(checkpoint.file_bytes());
            (bar.with_position(checkpoint.place().offset), "{bar:40} {percent}% {msg}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.reset_eta();
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn rate(sessions: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(sessions) * 1000 / millis).unwrap_or(u64::MAX)
}
