//! The rules of a session's life, as a pure model.
//!
//! It is written from the README, `docs/sessions.md`, `docs/guarantees.md` and the comments of the
//! `.proto` files, and uses none of the rules in `src/domain`. Each call has one method, which
//! changes the model and returns the answer that the service must give. The model knows neither
//! messages nor token strings: a token is the content that the string stands for.

mod authentication;
mod create;
mod import;
mod policy;
mod refresh;
mod revoke;
mod search;
mod session;
mod validate;

use std::collections::{BTreeMap, BTreeSet};

use countersign_test_support::refusal::Refusal;
use tonic::Code;

pub use authentication::{ACRS, Authentication, Verified};
pub use create::Create;
use import::LegacyToken;
pub use import::{Import, Imported};
pub use policy::{Limits, Policy, Settings};
pub use refresh::{Named, Reauthenticate, Update};
use revoke::CutOff;
pub use revoke::{Boundary, MILLISECOND, Target, to_millisecond};
pub use search::Search;
pub use session::{AccessToken, RefreshToken, Session, Tokens, Whom};
pub use validate::{Demands, Factor};

/// An instant or a span, in microseconds.
pub type Micros = i64;

pub const SECOND: Micros = 1_000_000;

/// How far in the future an authentication may be: `tokens.leeway`.
pub const LEEWAY: Micros = 5 * SECOND;

/// The sweeper records an expiry once it is further back than this.
pub const RECORDING_DELAY: Micros = 60 * SECOND;

/// How long the row of a session is kept after its end: `sweeper.session_retention`.
pub const RETENTION: Micros = 900 * SECOND;

/// A set of scopes, one bit for each.
pub type Scopes = u8;

/// Returns whether a set has scopes that another set lacks.
fn exceeds(scopes: Scopes, granted: Scopes) -> bool {
    scopes & !granted != 0
}

fn to_second(instant: Micros) -> Micros {
    instant.div_euclid(SECOND) * SECOND
}

pub fn not_found() -> Refusal {
    Refusal::of(Code::NotFound, "SESSION_NOT_FOUND")
}

/// What the service keeps.
#[derive(Debug, Default)]
pub struct Model {
    pub now: Micros,
    pub settings: Settings,
    pub sessions: Vec<Session>,
    /// Every access token that was issued, in this order.
    pub access_tokens: Vec<AccessToken>,
    /// Every refresh token that was issued, in this order.
    pub refresh_tokens: Vec<RefreshToken>,
    /// The identifiers of the access tokens that were revoked alone.
    revoked_tokens: BTreeSet<usize>,
    /// The revocations of many sessions. The service forgets one once no later request can name an
    /// instant that it covers.
    cut_offs: Vec<CutOff>,
    /// The refresh tokens of the other system.
    legacy_tokens: BTreeMap<u8, LegacyToken>,
    /// The last identifier of an access token.
    last_token: usize,
}

impl Model {
    /// Returns the model of a service that has no session.
    pub fn at(now: Micros) -> Self {
        Self { now, ..Self::default() }
    }

    /// Returns a session that has a row.
    pub fn row(&self, session: usize) -> Option<&Session> {
        Some(&self.sessions[session]).filter(|session| !session.is_deleted)
    }

    /// The sweeper records expiries, and deletes the sessions that ended long ago.
    pub fn sweep(&mut self) {
        let now = self.now;
        self.sweep_legacy_tokens();
        for session in &mut self.sessions {
            let Some(end) = session.end(now) else { continue };
            if session.ended.is_none() && end.at < now - RECORDING_DELAY {
                session.expiry_is_recorded = true;
            }
            let is_recorded = session.ended.is_some() || session.expiry_is_recorded;
            session.is_deleted |= is_recorded && end.at < now - RETENTION;
        }
    }

    /// Returns the instants before which sessions were revoked: all that are compared with the
    /// authentication, or all that are compared with the creation.
    pub fn cut_offs(&self, by_authentication: bool) -> Vec<Micros> {
        self.cut_offs.iter().filter_map(|cut_off| cut_off.before(by_authentication)).collect()
    }

    /// Returns the future instants at which some rule changes its answer.
    pub fn edges(&self) -> Vec<Micros> {
        let of_session = |session: &Session| {
            let over = session.end(self.now).map_or(session.idle_expires_at, |end| end.at);
            let strict = self.tightened(session, Settings::Strict);
            [
                session.idle_expires_at,
                session.expires_at,
                session.last_replay(),
                strict.idle_expires_at,
                over + RECORDING_DELAY,
                session.expires_at + RECORDING_DELAY,
                over + RETENTION,
            ]
        };
        let rows = self.sessions.iter().filter(|session| !session.is_deleted);
        let of_tokens = self.access_tokens.iter().map(|token| token.expires_at);
        let edges: BTreeSet<_> = rows.flat_map(of_session).chain(of_tokens).collect();
        edges.into_iter().filter(|&edge| edge > self.now).collect()
    }
}
