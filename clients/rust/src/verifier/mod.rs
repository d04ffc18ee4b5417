//! Verifies access tokens, in one of three modes.

mod builder;
mod keys;
mod local;
mod revocations;
mod unwatched;
mod watching;

use std::{fmt, sync::Arc, time::Duration};

use countersign_verification::{
    access::MAX_BYTES, counters::Counters, inactive::InactiveReason, validate,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{Answer, Client, Demands, Reason, Session, Unknown, proto};

pub use self::builder::{LocalBuilder, UnwatchedBuilder};
pub(crate) use self::keys::KeySet;
pub(crate) use self::local::{Local, LocalCopy, Rules};

/// The way in which a verifier gets its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// It calls Validate for each token.
    Remote,
    /// It verifies tokens by its own copy of the keys and the revocations.
    Local,
    /// It verifies tokens by the public keys only, so it accepts revoked tokens until they expire.
    LocalUnwatched,
    /// It verifies the tokens of a [`testing::Authority`](crate::testing::Authority).
    #[cfg(feature = "testing")]
    Testing,
}

impl Mode {
    /// Returns the name of the mode in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Local => "local",
            Self::LocalUnwatched => "local_unwatched",
            #[cfg(feature = "testing")]
            Self::Testing => "testing",
        }
    }
}

/// The behaviour of a local verifier that has no lease: it is starting, or is cut off from the
/// service, or was suspended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLapse {
    /// It calls Validate for each token, until it has a lease again.
    #[default]
    Validate,
    /// It answers [`Answer::Unknown`], without a call.
    Refuse,
}

/// Verifies access tokens. A clone shares everything with the original.
///
/// | mode | a check takes | it knows of revocations |
/// |---|---|---|
/// | [`Verifier::remote`] | a round trip | everything |
/// | [`Verifier::local`] | about a microsecond | everything |
/// | [`Verifier::local_unwatched`] | about a microsecond | nothing |
///
/// Its background task ends when the last clone is dropped.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    mode: Mode,
    local: Option<Arc<Local>>,
    /// The client that answers where there is no lease.
    fallback: Option<Client>,
    counts: Counters,
    _task: Option<AbortOnDropHandle<()>>,
}

/// The state of a verifier, for health checks and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The time for which the verifier can answer by its own copy; none if it cannot, or if it has
    /// none.
    pub lease: Option<Duration>,
    /// The number of revocations in the copy.
    pub revocations: usize,
    /// The number of streams or fetches of keys that were begun.
    pub connections: u64,
    /// The number of times that everything was received anew.
    pub resets: u64,
    /// The time that the last renewal of the lease took; zero before the first one.
    pub lag: Duration,
}

/// The numbers of the counters: active tokens, inactive ones by reason, and unknown ones.
const ACTIVE: usize = 0;
const UNKNOWN: usize = InactiveReason::ALL.len() + 1;

impl Verifier {
    /// Creates a verifier that calls Validate for each token. The caller needs the role
    /// `validator`.
    pub fn remote(client: Client) -> Self {
        Self::new(Mode::Remote, None, Some(client), None)
    }

    /// Begins the settings of a verifier that watches the service, and then checks tokens by
    /// itself. It never accepts a token that was revoked before it was asked. The caller needs the
    /// role `validator`.
    pub fn local(client: Client) -> LocalBuilder {
        LocalBuilder::new(client)
    }

    /// Begins the settings of a verifier that knows only the public keys. **It accepts a revoked
    /// token, and a token of a session that has ended, until the token expires.** Use it only where
    /// that is acceptable, with access tokens that live for a short time.
    ///
    /// `issuer` is the `iss` of all tokens (the setting `issuer` of the service).
    pub fn local_unwatched(client: Client, issuer: impl Into<String>) -> UnwatchedBuilder {
        UnwatchedBuilder::new(client, issuer.into())
    }

    pub(crate) fn new(
        mode: Mode,
        local: Option<Arc<Local>>,
        fallback: Option<Client>,
        task: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        let counts = Counters::new(UNKNOWN + 1);
        Self { inner: Arc::new(Inner { mode, local, fallback, counts, _task: task }) }
    }

    /// Checks a token, and whether it meets the demands.
    ///
    /// In the modes that verify locally this calls the service only if there is no lease.
    pub async fn verify(&self, token: &str, demands: &Demands) -> Answer {
        let answer = match self.answer_locally(token, demands) {
            Some(answer) => answer,
            None => self.fall_back(token, demands).await,
        };
        self.count(&answer);
        answer
    }

    /// Checks a token without ever calling the service. Without a lease the answer is
    /// [`Unknown::NoLease`], and so it always is in the mode [`Mode::Remote`].
    pub fn verify_locally(&self, token: &str, demands: &Demands) -> Answer {
        let answer = self.answer_locally(token, demands);
        let answer = answer.unwrap_or(Answer::Unknown(Unknown::NoLease));
        self.count(&answer);
        answer
    }

    fn answer_locally(&self, token: &str, demands: &Demands) -> Option<Answer> {
        let answer = self.inner.local.as_ref()?.answer(&demands.question(token))?;
        Some(match answer {
            validate::Answer { outcome: Ok(token), .. } => Answer::Active(Session::of_token(token)),
            validate::Answer { outcome: Err(reason), .. } => Answer::Inactive(reason),
        })
    }

    async fn fall_back(&self, token: &str, demands: &Demands) -> Answer {
        let Some(client) = &self.inner.fallback else { return Answer::Unknown(Unknown::NoLease) };
        // The service would refuse such a request as malformed, which says nothing of the token.
        if token.is_empty() || token.len() > MAX_BYTES {
            return Answer::Inactive(InactiveReason::Malformed);
        }
        match client.validate(demands.request(token)).await {
            Ok(answer) => read(answer),
            Err(error) => {
                match error.reason() {
                    Reason::InvalidField | Reason::CallerUnknown | Reason::CallerNotAllowed => {
                        tracing::error!(%error, "the service refuses to validate tokens");
                    }
                    _ => tracing::debug!(%error, "a token could not be validated"),
                }
                Answer::Unknown(Unknown::NotAnswered(error))
            }
        }
    }

    fn count(&self, answer: &Answer) {
        self.inner.counts.increment(match answer {
            Answer::Active(_) => ACTIVE,
            Answer::Inactive(reason) => *reason as usize + 1,
            Answer::Unknown(_) => UNKNOWN,
        });
    }

    /// Waits until the verifier can answer by its own copy. Returns at once in the mode
    /// [`Mode::Remote`]. Use it at the start of a service, with a time-out.
    pub async fn ready(&self) {
        if let Some(local) = &self.inner.local {
            local.ready().await;
        }
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.inner.mode
    }

    /// Returns the state.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Returns the number of checks so far with each result: `active`, the name of an
    /// [`InactiveReason`], or `unknown`.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.inner.counts()
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    pub(crate) fn status(&self) -> Status {
        let none =
            Status { lease: None, revocations: 0, connections: 0, resets: 0, lag: Duration::ZERO };
        self.local.as_ref().map_or(none, |local| local.status())
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let inactive = InactiveReason::ALL.map(InactiveReason::as_str);
        let names = ["active"].into_iter().chain(inactive).chain(["unknown"]);
        names.enumerate().map(|(counter, name)| (name, self.counts.get(counter)))
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("mode", &self.inner.mode)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Reads the answer of Validate.
fn read(answer: proto::ValidateResponse) -> Answer {
    use proto::InactiveReason as R;

    if answer.active {
        let session = Session::of_answer(answer);
        return session.map_or(Answer::Unknown(Unknown::NotUnderstood), Answer::Active);
    }
    Answer::Inactive(match answer.inactive_reason() {
        R::Malformed => InactiveReason::Malformed,
        R::BadSignature => InactiveReason::BadSignature,
        R::UnknownKey => InactiveReason::UnknownKey,
        R::WrongType => InactiveReason::WrongType,
        R::Expired => InactiveReason::Expired,
        R::NotYetValid => InactiveReason::NotYetValid,
        R::WrongIssuer => InactiveReason::WrongIssuer,
        R::WrongAudience => InactiveReason::WrongAudience,
        R::InsufficientScope => InactiveReason::InsufficientScope,
        R::StepUpRequired => InactiveReason::StepUpRequired,
        R::Revoked => InactiveReason::Revoked,
        R::ForeignTenant => InactiveReason::ForeignTenant,
        R::Unspecified => return Answer::Unknown(Unknown::NotUnderstood),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let verifier = Verifier::new(Mode::Remote, None, None, None);
        for reason in InactiveReason::ALL {
            verifier.count(&Answer::Inactive(reason));
        }
        verifier.count(&Answer::Unknown(Unknown::NoLease));
        let counts: Vec<_> = verifier.counts().collect();
        assert_eq!(counts[0], ("active", 0));
        assert_eq!(counts[1], ("malformed", 1));
        assert!(counts[1..].iter().all(|(_, count)| *count == 1), "{counts:?}");
        assert_eq!((counts.len(), counts[13]), (14, ("unknown", 1)));
    }

    #[test]
    fn an_answer_that_cannot_be_understood_is_never_active() {
        let active = proto::ValidateResponse { active: true, ..Default::default() };
        let other = proto::ValidateResponse { inactive_reason: 99, ..Default::default() };
        for answer in [active, other] {
            assert!(matches!(read(answer), Answer::Unknown(Unknown::NotUnderstood)));
        }
    }
}
