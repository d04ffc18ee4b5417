//! `countersign session revoke`

use std::{
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Failure, Outcome,
    client::{Connection, Server},
    output::{self, line},
};
use crate::{
    domain::revoke::MOST_COUNTED,
    proto::{
        self,
        revoke_request::Target,
        session_service_client::SessionServiceClient,
        sessions_target::{Instant, Where},
    },
};

/// The pause between two looks at the progress.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("target").required(true).multiple(true).args([
        "session_id", "token", "subjects", "subjects_file", "all_of_tenant", "client",
        "created_before", "authenticated_before", "all_tenants",
    ]),
    group = ArgGroup::new("named").conflicts_with("wide").args([
        "session_id", "token", "subjects", "subjects_file", "all_of_tenant",
    ]),
    group = ArgGroup::new("wide").multiple(true).args([
        "client", "created_before", "authenticated_before", "all_tenants",
    ]),
    group = ArgGroup::new("one").conflicts_with_all(["dry_run", "watch"]).args([
        "session_id", "token",
    ]),
)]
pub struct Revoke {
    /// The session to end.
    session_id: Option<String>,
    /// End the session of this access or refresh token; - reads it from standard input.
    #[arg(long)]
    token: Option<String>,
    /// Revoke only this access token. Its session stays live.
    #[arg(long, requires = "token")]
    token_only: bool,
    /// End all sessions of this subject. May be repeated.
    #[arg(long = "subject", value_name = "SUBJECT")]
    subjects: Vec<String>,
    /// End all sessions of the subjects in this file, one on each line; - reads standard input.
    #[arg(long, value_name = "FILE")]
    subjects_file: Option<PathBuf>,
    /// The tenant of the subjects or of the sessions; without it, the default tenant.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        conflicts_with_all = ["session_id", "token", "all_of_tenant", "all_tenants"]
    )]
    tenant: String,
    /// Do not end this session of the subject, as in "sign out my other devices".
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "SESSION_ID",
        requires = "subjects"
    )]
    except: String,
    /// End every session of this tenant; "" is the default tenant.
    #[arg(long, value_name = "TENANT")]
    all_of_tenant: Option<String>,
    /// End the sessions with this OAuth client.
    #[arg(long, value_name = "CLIENT_ID")]
    client: Option<String>,
    /// End the sessions that were created before this instant, like 2026-01-05T08:00:00Z.
    #[arg(long, value_name = "INSTANT", conflicts_with = "authenticated_before")]
    created_before: Option<jiff::Timestamp>,
    /// End the sessions whose user authenticated before this instant, like 2026-01-05T08:00:00Z.
    #[arg(long, value_name = "INSTANT")]
    authenticated_before: Option<jiff::Timestamp>,
    /// End the sessions of all tenants. The command counts them first, and asks for the number.
    #[arg(long)]
    all_tenants: bool,
    /// With --all-tenants, do not ask, but go on if there are no more than this number of sessions.
    #[arg(long, value_name = "NUMBER", requires = "all_tenants")]
    sessions: Option<i64>,
    /// Count the sessions that would end, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until all sessions are marked as ended, and show the progress.
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Reason for the revocation.
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
    /// Note that is stored with the session and in the audit.
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reason {
    Unspecified,
    SignedOut,
    Administrative,
    Compromised,
    CredentialsChanged,
    AccountDisabled,
}

impl Reason {
    fn message(self) -> proto::EndReason {
        match self {
            Self::Unspecified => proto::EndReason::Unspecified,
            Self::SignedOut => proto::EndReason::SignedOut,
            Self::Administrative => proto::EndReason::Administrative,
            Self::Compromised => proto::EndReason::Compromised,
            Self::CredentialsChanged => proto::EndReason::CredentialsChanged,
            Self::AccountDisabled => proto::EndReason::AccountDisabled,
        }
    }
}

impl Revoke {
    pub async fn run(mut self) -> Outcome {
        let request = self.request()?;
        let mut sessions = self.server.sessions().await?;
        let request = proto::RevokeRequest { dry_run: true, ..request };
        let counted = match self.dry_run || self.watch || self.all_tenants {
            true => {
                let response = self.server.answer(sessions.revoke(request.clone()).await)?;
                if self.dry_run {
                    return self.print_count(&response);
                }
                response.dry_run.unwrap_or_default()
            }
            false => proto::DryRun::default(),
        };
        if self.all_tenants {
            self.confirm(&counted)?;
        }
        let confirmation = counted.confirmation.clone();
        let is_counted = !matches!(request.target, Some(Target::Subjects(_) | Target::Sessions(_)));
        let request = proto::RevokeRequest { dry_run: false, confirmation, ..request };
        let response = self.server.answer(sessions.revoke(request).await)?;
        self.print(&response, is_counted)?;
        if self.watch {
            self.watch(&mut sessions, &response.revocation_ids, &counted).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn request(&mut self) -> Result<proto::RevokeRequest, Failure> {
        let extent = if self.token_only {
            proto::RevokeExtent::TokenOnly
        } else {
            proto::RevokeExtent::Session
        };
        Ok(proto::RevokeRequest {
            target: Some(self.target()?),
            extent: extent.into(),
            reason: self.reason.message().into(),
            note: std::mem::take(&mut self.note),
            dry_run: false,
            confirmation: String::new(),
        })
    }

    fn target(&mut self) -> Result<Target, Failure> {
        let tenant = std::mem::take(&mut self.tenant);
        if let Some(id) = self.session_id.take() {
            return Ok(Target::SessionId(id));
        }
        if let Some(token) = self.token.take() {
            return Ok(Target::Token(super::token::read(token)?));
        }
        if let Some(tenant) = self.all_of_tenant.take() {
            return Ok(Target::Tenant(tenant));
        }
        let mut subjects = std::mem::take(&mut self.subjects);
        if let [subject] = subjects.as_mut_slice() {
            return Ok(Target::Subject(proto::SubjectTarget {
                tenant,
                subject: std::mem::take(subject),
                except_session_id: std::mem::take(&mut self.except),
            }));
        }
        if !self.except.is_empty() {
            return Err(Failure::at_start("--except goes with one --subject only"));
        }
        if let Some(file) = &self.subjects_file {
            subjects = read_lines(file)?;
        }
        if !subjects.is_empty() || self.subjects_file.is_some() {
            return Ok(Target::Subjects(proto::SubjectsTarget { tenant, subjects }));
        }
        let instant = match (self.created_before, self.authenticated_before) {
            (Some(before), _) => Some(Instant::CreatedBefore(message(before))),
            (None, Some(before)) => Some(Instant::AuthenticatedBefore(message(before))),
            (None, None) => None,
        };
        Ok(Target::Sessions(proto::SessionsTarget {
            r#where: Some(match self.all_tenants {
                true => Where::AllTenants(true),
                false => Where::Tenant(tenant),
            }),
            client_id: self.client.take().unwrap_or_default(),
            instant,
        }))
    }

    fn print_count(&self, response: &proto::RevokeResponse) -> Outcome {
        match &response.dry_run {
            Some(dry_run) if !self.server.json => {
                line!("would revoke {}", number_of_sessions(dry_run));
            }
            _ => output::json(response, "RevokeResponse")?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, response: &proto::RevokeResponse, is_counted: bool) -> Result<(), Failure> {
        if self.server.json {
            return output::json(response, "RevokeResponse");
        }
        let since = output::instant(response.effective_at.as_ref());
        if self.token_only {
            line!("revoked the token, effective since {since}");
        } else if is_counted {
            let plural = if response.revoked_sessions == 1 { "" } else { "s" };
            let sessions = response.revoked_sessions;
            let more = if sessions == MOST_COUNTED { " or more" } else { "" };
            line!("revoked {sessions} session{plural}{more}, effective since {since}");
        } else {
            line!("revoked the sessions, effective since {since}");
        }
        Ok(())
    }

    /// Asks whether to revoke the sessions of all tenants, unless a flag says so.
    fn confirm(&self, counted: &proto::DryRun) -> Result<(), Failure> {
        let number = number_of_sessions(counted);
        match self.sessions {
            Some(most) if counted.sessions <= most => return Ok(()),
            Some(most) => {
                return Err(Failure::failed(format!(
                    "this would revoke {number}, more than the {most} of --sessions: nothing was \
                     revoked"
                )));
            }
            None => {}
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::failed(format!(
                "this would revoke {number} of all tenants: repeat the command with --sessions {} \
                 to do so; nothing was revoked",
                counted.sessions
            )));
        }
        eprint!("This revokes {number} of all tenants. Enter the number to go on: ");
        let mut answer = String::new();
        io::stderr()
            .flush()
            .and_then(|()| io::stdin().read_line(&mut answer).map(drop))
            .map_err(|error| Failure::failed(format!("the answer cannot be read: {error}")))?;
        match answer.trim().parse::<i64>() {
            Ok(answer) if answer == counted.sessions => Ok(()),
            _ => Err(Failure::failed("that is not the number: nothing was revoked")),
        }
    }

    /// Shows how many sessions are marked as ended, until all are. A revocation that is not listed
    /// had no sessions left to be marked.
    async fn watch(
        &self,
        sessions: &mut SessionServiceClient<Connection>,
        ids: &[String],
        counted: &proto::DryRun,
    ) -> Result<(), Failure> {
        let progress = Progress::new(counted, self.server.json);
        let mut ended = 0;
        // A list has at most as many revocations as this.
        for ids in ids.chunks(1000) {
            let request = proto::ListRevocationsRequest { revocation_ids: ids.to_vec() };
            loop {
                let listed = sessions.list_revocations(request.clone()).await;
                let revocations = self.server.answer(listed)?.revocations;
                let so_far = revocations.iter().map(|revocation| revocation.ended_sessions);
                let so_far = ended + so_far.sum::<i64>();
                progress.show(so_far);
                if revocations.iter().all(|revocation| revocation.is_finished) {
                    ended = so_far;
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
        }
        progress.finish(ended);
        Ok(())
    }
}

/// The progress, as a bar on a terminal and as lines elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    total: String,
    is_quiet: bool,
}

impl Progress {
    fn new(counted: &proto::DryRun, is_quiet: bool) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let total = u64::try_from(counted.sessions).unwrap_or_default();
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = "{bar:40} {pos}/{len} sessions ended, {eta} left";
            bar.with_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        Self { bar, total: number_of_sessions(counted), is_quiet }
    }

    fn show(&self, ended: i64) {
        match &self.bar {
            Some(bar) => bar.set_position(u64::try_from(ended).unwrap_or_default()),
            None if self.is_quiet => {}
            None => line!("ended {ended} of {}", self.total),
        }
    }

    fn finish(&self, ended: i64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.is_quiet {
            line!("all sessions are ended; {ended} were marked as ended in the background");
        }
    }
}

/// Formats the number that a dry run has counted.
fn number_of_sessions(dry_run: &proto::DryRun) -> String {
    let at_least = if dry_run.is_lower_bound { "at least " } else { "" };
    let plural = if dry_run.sessions == 1 { "" } else { "s" };
    format!("{at_least}{} session{plural}", dry_run.sessions)
}

fn message(at: jiff::Timestamp) -> prost_types::Timestamp {
    let seconds = at.as_second();
    match at.subsec_nanosecond() {
        nanos if nanos < 0 => {
            prost_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
        }
        nanos => prost_types::Timestamp { seconds, nanos },
    }
}

/// Reads the lines of a file that are not empty.
fn read_lines(path: &Path) -> Result<Vec<String>, Failure> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| {
        Failure::at_start(format!("--subjects-file {}: {error}", path.display()))
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}
