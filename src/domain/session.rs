//! A session: who is signed in where, within which limits, and whether it lives.

use std::fmt;

use super::{
    claims::CustomClaims,
    ids::{SessionId, TokenId},
    key::RefreshKeyId,
    policy::SessionPolicy,
    text::{
        Acr, Amr, Audience, ClientId, DeviceLabel, IpAddress, Note, RequestId, Scope, Subject,
        Tenant, UserAgent,
    },
    time::Timestamp,
};

/// One sign-in of one subject on one device, as its row has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// The `sid`.
    pub id: SessionId,
    /// The subject's tenant.
    pub tenant: Tenant,
    /// Who is signed in.
    pub subject: Subject,
    /// The OAuth client.
    pub client_id: ClientId,
    /// Whom the access tokens are for.
    pub audience: Vec<Audience>,
    /// The scopes granted.
    pub scopes: Vec<Scope>,
    /// The session's own claims.
    pub claims: CustomClaims,
    /// How and when the user authenticated.
    pub authentication: Authentication,
    /// The device, as last seen.
    pub device: Device,
    /// Limits from creation on.
    pub policy: SessionPolicy,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its refresh token was last rotated; at first, when it was created.
    pub refreshed_at: Timestamp,
    /// When it ends unless refreshed before.
    pub idle_expires_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
    /// What makes its refresh token.
    pub lineage: Lineage,
    /// The `jti` of the access token issued at creation or at the last rotation.
    pub access_token_id: TokenId,
    /// The idempotency key of its creation.
    pub request_id: Option<RequestId>,
    /// Tells the request of its creation from others with the same key. None without a key, and in
    /// rows that versions before fingerprints wrote.
    pub request_fingerprint: Option<RequestFingerprint>,
    /// Set when it was ended before its time.
    pub ended: Option<Ended>,
    /// Set once its expiry has been recorded. It stays over then, also by a clock that goes back.
    pub expiry_recorded: bool,
    /// Counts the changes of the row.
    pub revision: u32,
}

/// How and when the user authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Authentication context class reference.
    pub acr: Acr,
    /// Authentication methods.
    pub amr: Vec<Amr>,
    /// When.
    pub at: Timestamp,
}

/// What is known of a device, unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// User-Agent header.
    pub user_agent: UserAgent,
    /// IP address.
    pub ip_address: IpAddress,
    /// The user's name for it.
    pub label: DeviceLabel,
}

/// Everything that the current refresh token is computed from, besides the session's id and the
/// key's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Counts the rotations, from 1.
    pub generation: u32,
    /// Ties every refresh token of the session to its row, so that a leaked ring key alone forges
    /// none.
    pub secret: LineageSecret,
    /// The ring key of the current generation. Kept, so that a replay after a key rotation yields
    /// the same token.
    pub key: RefreshKeyId,
}

/// Sixteen random bytes that every refresh token of a session carries.
///
/// Compared without care for timing: a caller gets here only with a token whose MAC is right, so
/// there is nothing to guess.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LineageSecret(pub [u8; 16]);

impl fmt::Debug for LineageSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A digest of everything that a request for a session says, and of who makes it. Two requests have
/// the same fingerprint only if they are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFingerprint(pub [u8; 32]);

/// How a session was ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: EndReason,
    /// Said by whoever ended it; may be empty.
    pub note: Note,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Not given.
    Unspecified,
    /// The user signed out.
    SignedOut,
    /// An administrator or support agent ended it.
    Administrative,
    /// Believed to be in wrong hands.
    Compromised,
    /// A credential was changed.
    CredentialsChanged,
    /// The account was disabled.
    AccountDisabled,
    /// A refresh token was used again after its grace.
    RefreshTokenReused,
    /// The oldest of too many.
    QuotaEvicted,
    /// Not refreshed in time.
    ExpiredIdle,
    /// At the end of its lifetime.
    ExpiredAbsolute,
}

impl EndReason {
    const ALL: [Self; 10] = [
        Self::Unspecified,
        Self::SignedOut,
        Self::Administrative,
        Self::Compromised,
        Self::CredentialsChanged,
        Self::AccountDisabled,
        Self::RefreshTokenReused,
        Self::QuotaEvicted,
        Self::ExpiredIdle,
        Self::ExpiredAbsolute,
    ];

    /// The name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::SignedOut => "signed_out",
            Self::Administrative => "administrative",
            Self::Compromised => "compromised",
            Self::CredentialsChanged => "credentials_changed",
            Self::AccountDisabled => "account_disabled",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::QuotaEvicted => "quota_evicted",
            Self::ExpiredIdle => "expired_idle",
            Self::ExpiredAbsolute => "expired_absolute",
        }
    }

    /// The reason of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Returns whether a caller of Revoke may give this reason; the others are the service's own
    /// findings.
    pub fn may_be_given(self) -> bool {
        !matches!(
            self,
            Self::RefreshTokenReused
                | Self::QuotaEvicted
                | Self::ExpiredIdle
                | Self::ExpiredAbsolute
        )
    }
}

/// Whether a session lives at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Live,
    /// It does not, from this instant on, for this reason.
    Ended {
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: EndReason,
    },
}

impl Session {
    /// Whether the session lives at `now`. At the instant of an expiry it does not.
    pub fn state(&self, now: Timestamp) -> State {
        if let Some(ended) = &self.ended {
            return State::Ended { at: ended.at, reason: ended.reason };
        }
        let has_expired = |at: Timestamp| now >= at || self.expiry_recorded;
        // The idle end never passes the absolute one, so when both are reached they were one and
        // the same instant.
        if has_expired(self.expires_at) && self.idle_expires_at == self.expires_at {
            return State::Ended { at: self.expires_at, reason: EndReason::ExpiredAbsolute };
        }
        if has_expired(self.idle_expires_at) {
            return State::Ended { at: self.idle_expires_at, reason: EndReason::ExpiredIdle };
        }
        State::Live
    }

    /// Returns whether the session lives at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.state(now) == State::Live
    }

    /// The last instant at which the refresh token before the current one yields the current one.
    pub fn last_replay(&self) -> Timestamp {
        self.refreshed_at.plus(self.policy.replay_window())
    }

    /// Returns whether the request for this session is the one that created the earlier session,
    /// which has the same tenant and request id. A session without a fingerprint was created by a
    /// version that compared subject and client alone.
    pub fn has_same_request(&self, earlier: &Self) -> bool {
        match (self.request_fingerprint, earlier.request_fingerprint) {
            (Some(asked), Some(earlier)) => asked == earlier,
            _ => (&self.subject, &self.client_id) == (&earlier.subject, &earlier.client_id),
        }
    }

    /// The session after being ended.
    pub fn end(mut self, ended: Ended) -> Self {
        self.ended = Some(ended);
        self.revision = self.revision.saturating_add(1);
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::{
        super::policy::{OnRefresh, Replay},
        super::text::PolicyName,
        *,
    };

    pub(crate) const START: Timestamp = Timestamp::from_seconds(1_700_000_000);

    pub(crate) fn session() -> Session {
        Session {
            id: SessionId::new(START, [1; 10]),
            tenant: Tenant::default(),
            subject: Subject::try_from("alice".to_owned()).unwrap(),
            client_id: ClientId::default(),
            audience: vec![Audience::try_from("api".to_owned()).unwrap()],
            scopes: ["read", "write"]
                .map(|scope| Scope::try_from(scope.to_owned()).unwrap())
                .to_vec(),
            claims: CustomClaims::default(),
            authentication: Authentication { acr: Acr::default(), amr: vec![], at: START },
            device: Device::default(),
            policy: SessionPolicy {
                name: PolicyName::try_from("default".to_owned()).unwrap(),
                access_token_ttl: Duration::from_secs(60),
                idle_timeout: Duration::from_secs(600),
                refresh_grace: Duration::from_secs(10),
                replay: Replay::Grace,
                replay_limit: Duration::from_secs(300),
                on_refresh: OnRefresh::KeepAccessToken,
            },
            created_at: START,
            refreshed_at: START,
            idle_expires_at: START.plus(Duration::from_secs(600)),
            expires_at: START.plus(Duration::from_secs(1000)),
            lineage: Lineage {
                generation: 1,
                secret: LineageSecret([9; 16]),
                key: RefreshKeyId([1; 8]),
            },
            access_token_id: TokenId::new([3; 16]),
            request_id: None,
            request_fingerprint: None,
            ended: None,
            expiry_recorded: false,
            revision: 1,
        }
    }

    #[test]
    fn it_lives_up_to_the_last_microsecond_before_an_expiry() {
        let mut session = session();
        let edge = session.idle_expires_at;
        let tick = Duration::from_micros(1);
        assert_eq!(session.state(edge.minus(tick)), State::Live);
        assert_eq!(session.state(edge), State::Ended { at: edge, reason: EndReason::ExpiredIdle });

        session.idle_expires_at = session.expires_at;
        let edge = session.expires_at;
        assert_eq!(session.state(edge.minus(tick)), State::Live);
        assert_eq!(
            session.state(edge),
            State::Ended { at: edge, reason: EndReason::ExpiredAbsolute }
        );
    }

    #[test]
    fn the_first_expiry_is_the_reason_even_when_both_are_long_past() {
        let session = session();
        let state = session.state(session.expires_at.plus(Duration::from_secs(1)));
        assert_eq!(
            state,
            State::Ended { at: session.idle_expires_at, reason: EndReason::ExpiredIdle }
        );
    }

    #[test]
    fn a_session_whose_expiry_was_recorded_is_over_also_by_a_clock_that_went_back() {
        let expired = Session { expiry_recorded: true, ..session() };
        let reason = |session: &Session| match session.state(START) {
            State::Ended { reason, .. } => Some(reason),
            State::Live => None,
        };
        assert_eq!(reason(&expired), Some(EndReason::ExpiredIdle));
        let absolute = Session { idle_expires_at: expired.expires_at, ..expired };
        assert_eq!(reason(&absolute), Some(EndReason::ExpiredAbsolute));
    }

    #[test]
    fn an_ended_session_keeps_its_reason_after_its_expiry() {
        let session = session();
        let at = START.plus(Duration::from_secs(5));
        let ended =
            session.clone().end(Ended { at, reason: EndReason::SignedOut, note: Note::default() });
        let state = ended.state(session.expires_at.plus(Duration::from_secs(1)));
        assert_eq!(state, State::Ended { at, reason: EndReason::SignedOut });
    }

    #[test]
    fn fingerprints_tell_requests_apart_and_without_one_subject_and_client_do() {
        let with = |byte: u8| Session {
            request_fingerprint: Some(RequestFingerprint([byte; 32])),
            ..session()
        };
        let of_bob = |session: Session| Session {
            subject: Subject::try_from("bob".to_owned()).unwrap(),
            ..session
        };
        let of_app = |session: Session| Session {
            client_id: ClientId::try_from("app".to_owned()).unwrap(),
            ..session
        };
        assert!(with(1).has_same_request(&with(1)));
        assert!(!with(1).has_same_request(&with(2)));
        assert!(with(1).has_same_request(&session()), "a row of an older version");
        assert!(!of_bob(with(1)).has_same_request(&session()));
        assert!(!of_app(with(1)).has_same_request(&session()));
    }

    #[test]
    fn every_reason_has_one_name_of_its_own() {
        for reason in EndReason::ALL {
            assert_eq!(EndReason::from_name(reason.as_str()), Some(reason));
        }
    }
}
