//! The session: who is signed in on which device, its limits, and whether it is live.

use std::fmt;

use super::{
    claims::CustomClaims,
    factors::FactorTimes,
    ids::{AuthenticationId, SessionId, TokenId},
    key::RefreshKeyId,
    metadata::Metadata,
    policy::SessionPolicy,
    text::{
        Acr, Amr, Audience, ClientId, DeviceId, DeviceLabel, IpAddress, Note, RequestId, Scope,
        Subject, Tenant, UserAgent,
    },
    time::Timestamp,
    who::Who,
};

/// One sign-in of one subject on one device. The fields are the content of its row in the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// The `sid`.
    pub id: SessionId,
    /// The subject's tenant.
    pub tenant: Tenant,
    /// The user who is signed in.
    pub subject: Subject,
    /// The OAuth client.
    pub client_id: ClientId,
    /// The audience of the access tokens.
    pub audience: Vec<Audience>,
    /// The scopes granted.
    pub scopes: Vec<Scope>,
    /// The custom claims.
    pub claims: CustomClaims,
    /// The data that callers keep with the session, and that no token carries.
    pub metadata: Metadata,
    /// The authentication of the user.
    pub authentication: Authentication,
    /// The device, as a caller described it last.
    pub device: Device,
    /// The limits of the session. They never become looser.
    pub policy: SessionPolicy,
    /// The instant of the session's creation.
    pub created_at: Timestamp,
    /// The party that created the session; none if an older version created it.
    pub created_by: Option<Who>,
    /// The instant of the last reauthentication that began the session's lifetime anew, if there
    /// was one.
    pub extended_at: Option<Timestamp>,
    /// The instant of the last rotation of the refresh token, or of the session's creation if there
    /// was no rotation.
    pub refreshed_at: Timestamp,
    /// The instant at which the session expires unless it is refreshed before.
    pub idle_expires_at: Timestamp,
    /// The instant at which the session expires even if it is refreshed.
    pub expires_at: Timestamp,
    /// The instant from which no access token is valid that was issued before stricter limits
    /// reached the session; none if none have. The limits in force now do not bound such a token.
    pub earlier_tokens_expire_at: Option<Timestamp>,
    /// The values that the current refresh token is computed from.
    pub lineage: Lineage,
    /// The `jti` of the access token issued at creation or at the last rotation.
    pub access_token_id: TokenId,
    /// The idempotency key of the request that created the session.
    pub request_id: Option<RequestId>,
    /// Distinguishes the request that created the session from other requests with the same
    /// idempotency key. It is missing if the request had no key, and in rows that were written by
    /// older versions, which had no fingerprints.
    pub request_fingerprint: Option<RequestFingerprint>,
    /// The request for the last reauthentication, if it had an idempotency key.
    pub reauthentication: Option<IdentifiedRequest>,
    /// Present if the session was ended before its expiry.
    pub ended: Option<Ended>,
    /// True if the session's expiry has been recorded. From then on, the session counts as expired,
    /// even if the clock is set back.
    pub expiry_recorded: bool,
    /// The version number of the row, which starts at 1.
    pub revision: u32,
}

/// The authentication of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// The identifier; none for the authentication with which the session was created.
    pub id: Option<AuthenticationId>,
    /// Authentication context class reference.
    pub acr: Acr,
    /// Authentication methods references.
    pub amr: Vec<Amr>,
    /// The times at which the methods were verified, as far as they are known.
    pub amr_verified_at: FactorTimes,
    /// The instant at which the user authenticated.
    pub at: Timestamp,
}

/// The data of a device, as the caller sent it. Nobody has verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The User-Agent header.
    pub user_agent: UserAgent,
    /// The IP address.
    pub ip_address: IpAddress,
    /// The name that the user gave to the device.
    pub label: DeviceLabel,
    /// The caller's own identifier of the device.
    pub id: DeviceId,
}

/// The values that the current refresh token is computed from, besides the session's id and the
/// key's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The number of the refresh token, which starts at 1 and grows by 1 with each rotation.
    pub generation: u32,
    /// The secret that ties every refresh token of the session to its row, so that a leaked refresh
    /// key is not enough to forge a refresh token.
    pub secret: LineageSecret,
    /// The refresh key of the current generation. It is stored so that a replay after a key
    /// rotation yields the same token.
    pub key: RefreshKeyId,
}

/// Sixteen random bytes that every refresh token of a session carries.
///
/// Two secrets need not be compared in constant time. Only tokens whose MAC is right reach the
/// comparison, so nobody can use its duration to guess a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LineageSecret(pub [u8; 16]);

impl fmt::Debug for LineageSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A digest of all fields of a request for a session, and of its caller. Two requests have the same
/// fingerprint only if they are equal and come from the same caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFingerprint(pub [u8; 32]);

/// A request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifiedRequest {
    /// The idempotency key.
    pub id: RequestId,
    /// Distinguishes the request from others with the same key.
    pub fingerprint: RequestFingerprint,
}

/// The end of a session before its expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The instant at which the session ended.
    pub at: Timestamp,
    /// The reason.
    pub reason: EndReason,
    /// The note of the caller that ended the session; may be empty.
    pub note: Note,
}

/// The reason why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// No reason was given.
    Unspecified,
    /// The user signed out.
    SignedOut,
    /// An administrator or a support agent ended the session.
    Administrative,
    /// The session is believed to be in the wrong hands.
    Compromised,
    /// A credential was changed.
    CredentialsChanged,
    /// The account was disabled.
    AccountDisabled,
    /// A refresh token was used again after its grace period.
    RefreshTokenReused,
    /// The session was one of the oldest when its subject had reached the quota, and was ended to
    /// make room for a new one.
    QuotaEvicted,
    /// The session was not refreshed in time.
    ExpiredIdle,
    /// The session reached the end of its lifetime.
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

    /// Returns the name under which the reason is stored.
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

    /// Returns the reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Returns whether a caller of Revoke may give this reason. The other reasons are given only by
    /// the service itself.
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

/// The state of a session at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The session is live.
    Live,
    /// The session has ended.
    Ended {
        /// The instant at which it ended.
        at: Timestamp,
        /// The reason why it ended.
        reason: EndReason,
    },
}

impl Session {
    /// Returns the state of the session at `now`. At the exact instant of its expiry, the session
    /// has already ended.
    pub fn state(&self, now: Timestamp) -> State {
        if let Some(ended) = &self.ended {
            return State::Ended { at: ended.at, reason: ended.reason };
        }
        let has_expired = |at: Timestamp| now >= at || self.expiry_recorded;
        // The idle expiry is never later than the absolute one, so the session reached its absolute
        // expiry only if both are the same instant.
        if has_expired(self.expires_at) && self.idle_expires_at == self.expires_at {
            return State::Ended { at: self.expires_at, reason: EndReason::ExpiredAbsolute };
        }
        if has_expired(self.idle_expires_at) {
            return State::Ended { at: self.idle_expires_at, reason: EndReason::ExpiredIdle };
        }
        State::Live
    }

    /// Returns the identifier of the authentication that new access tokens rest on.
    pub fn authentication_id(&self) -> AuthenticationId {
        self.authentication.id.unwrap_or_else(|| AuthenticationId::first_of(self.id))
    }

    /// Returns whether the session is live at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.state(now) == State::Live
    }

    /// Returns the last instant at which the previous refresh token yields the current one.
    pub fn last_replay(&self) -> Timestamp {
        self.refreshed_at.plus(self.policy.replay_window())
    }

    /// Returns the instant from which the session's lifetime is counted.
    pub fn lifetime_began_at(&self) -> Timestamp {
        self.extended_at.unwrap_or(self.created_at)
    }

    /// Returns the instant from which no access token of the session is valid that was issued up to
    /// `now`, or, if the clock has been set back since the last refresh, up to the end of the
    /// replay window.
    pub fn last_token_expiry(&self, now: Timestamp) -> Timestamp {
        let last_issue = now.max(self.last_replay());
        let last_expiry = self.policy.access_token_expiry(last_issue, self.idle_expires_at);
        self.earlier_tokens_expire_at.map_or(last_expiry, |earlier| earlier.max(last_expiry))
    }

    /// Returns whether the request for this session is the same as the request that created
    /// `earlier`, which has the same tenant and request id. If one of the two has no fingerprint,
    /// only the subject and the client are compared, because an older version, which compared
    /// nothing else, created that session.
    pub fn has_same_request(&self, earlier: &Self) -> bool {
        match (self.request_fingerprint, earlier.request_fingerprint) {
            (Some(asked), Some(earlier)) => asked == earlier,
            _ => (&self.subject, &self.client_id) == (&earlier.subject, &earlier.client_id),
        }
    }

    /// Returns the session in its ended state.
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
        super::policy::{OnRefresh, RefreshMode, Replay},
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
            metadata: Metadata::default(),
            authentication: Authentication {
                id: None,
                acr: Acr::default(),
                amr: vec![],
                amr_verified_at: FactorTimes::default(),
                at: START,
            },
            device: Device::default(),
            policy: SessionPolicy {
                name: PolicyName::try_from("default".to_owned()).unwrap(),
                access_token_ttl: Duration::from_secs(60),
                idle_timeout: Duration::from_secs(600),
                refresh: RefreshMode::Rotate,
                refresh_grace: Duration::from_secs(10),
                replay: Replay::Grace,
                replay_limit: Duration::from_secs(300),
                on_refresh: OnRefresh::KeepAccessToken,
                reauthentication_lifetime: None,
            },
            created_at: START,
            created_by: None,
            extended_at: None,
            refreshed_at: START,
            idle_expires_at: START.plus(Duration::from_secs(600)),
            expires_at: START.plus(Duration::from_secs(1000)),
            earlier_tokens_expire_at: None,
            lineage: Lineage {
                generation: 1,
                secret: LineageSecret([9; 16]),
                key: RefreshKeyId([1; 8]),
            },
            access_token_id: TokenId::new([3; 16]),
            request_id: None,
            request_fingerprint: None,
            reauthentication: None,
            ended: None,
            expiry_recorded: false,
            revision: 1,
        }
    }

    #[test]
    fn a_session_is_live_until_the_last_microsecond_before_an_expiry() {
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
    fn the_earlier_expiry_is_the_reason_even_after_both_have_passed() {
        let session = session();
        let state = session.state(session.expires_at.plus(Duration::from_secs(1)));
        assert_eq!(
            state,
            State::Ended { at: session.idle_expires_at, reason: EndReason::ExpiredIdle }
        );
    }

    #[test]
    fn a_session_whose_expiry_was_recorded_stays_expired_if_the_clock_goes_back() {
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
    fn requests_without_a_fingerprint_are_compared_by_subject_and_client_alone() {
        let with_fingerprint = |byte: u8| Session {
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
        assert!(with_fingerprint(1).has_same_request(&with_fingerprint(1)));
        assert!(!with_fingerprint(1).has_same_request(&with_fingerprint(2)));
        assert!(with_fingerprint(1).has_same_request(&session()), "a row of an older version");
        assert!(!of_bob(with_fingerprint(1)).has_same_request(&session()));
        assert!(!of_app(with_fingerprint(1)).has_same_request(&session()));
    }

    #[test]
    fn every_end_reason_is_read_back_from_its_name() {
        for reason in EndReason::ALL {
            assert_eq!(EndReason::from_name(reason.as_str()), Some(reason));
        }
    }
}
