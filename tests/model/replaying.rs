//! A model of replays. A client loses answers, a thief copies the client's refresh token, and the
//! service decides by its real rules (`Session::judge_refresh`). The model checks for how long a
//! client can lose answers without being signed out, and whether a thief is detected.

use std::{sync::Arc, time::Duration};

use countersign::domain::{
    claims::CustomClaims,
    factors::FactorTimes,
    ids::{SessionId, TokenId},
    key::RefreshKeyId,
    metadata::Metadata,
    policy::{OnRefresh, RefreshMode, Replay, SessionPolicy},
    refresh::{RefreshAttempt, RefreshVerdict},
    session::{Authentication, Device, Lineage, LineageSecret, Session},
    text::{Acr, ClientId, PolicyName, Subject, Tenant},
    time::Timestamp,
};
use stateright::{Model, Property};

const START: Timestamp = Timestamp::from_seconds(1_700_000_000);
/// The grace after a rotation, in seconds.
const GRACE: u8 = 1;
/// The limit of replays until used, in seconds.
const LIMIT: u8 = 4;
/// The largest number of rotations, which bounds the model.
const ROTATIONS: u8 = 4;

pub struct Replaying {
    pub replay: Replay,
    /// The time that the model covers, in seconds.
    pub lasts: u8,
    pub has_thief: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: u8,
    /// The generation of the current refresh token.
    generation: u8,
    refreshed_at: u8,
    /// The generation of the newest refresh token that the client has.
    client: u8,
    /// The generation of the newest refresh token that the thief has.
    thief: Option<u8>,
    has_ended: bool,
    /// True if the thief has obtained tokens with the stolen refresh token.
    thief_got_in: bool,
    /// True if a refresh token whose successor had been used has yielded tokens.
    yielded_used: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Tick,
    ClientRefreshes { answer_arrives: bool },
    Steal,
    ThiefRefreshes,
}

impl Replaying {
    fn session(&self, state: &State) -> Session {
        let at = |seconds: u8| START.plus(Duration::from_secs(seconds.into()));
        let end = START.plus(Duration::from_secs(1000));
        Session {
            id: SessionId::new(START, [1; 10]),
            tenant: Tenant::default(),
            subject: Subject::try_from("alice".to_owned()).unwrap(),
            client_id: ClientId::default(),
            audience: vec![],
            scopes: vec![],
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
                name: PolicyName::try_from("p".to_owned()).unwrap(),
                access_token_ttl: Duration::from_secs(2),
                idle_timeout: Duration::from_secs(1000),
                refresh: RefreshMode::Rotate,
                refresh_grace: Duration::from_secs(GRACE.into()),
                replay: self.replay,
                replay_limit: Duration::from_secs(LIMIT.into()),
                on_refresh: OnRefresh::KeepAccessToken,
                reauthentication_lifetime: None,
            },
            created_at: START,
            created_by: None,
            extended_at: None,
            refreshed_at: at(state.refreshed_at),
            idle_expires_at: end,
            expires_at: end,
            earlier_tokens_expire_at: None,
            lineage: Lineage {
                generation: state.generation.into(),
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

    /// Refreshes with the token of generation `presented`. Returns the generation of the refresh
    /// token in the answer.
    fn refresh(&self, state: &mut State, presented: u8) -> Option<u8> {
        if state.has_ended {
            return None;
        }
        let session = self.session(state);
        let attempt = RefreshAttempt {
            session_id: session.id,
            generation: presented.into(),
            secret: session.lineage.secret,
            scopes: vec![],
            device: None,
            reach: Arc::default(),
            now: START.plus(Duration::from_secs(state.now.into())),
            next_access_token_id: TokenId::new([4; 16]),
            next_key: session.lineage.key,
            live_policies: Arc::default(),
        };
        match session.judge_refresh(&attempt) {
            RefreshVerdict::Rotate(_) => {
                state.generation += 1;
                state.refreshed_at = state.now;
                Some(state.generation)
            }
            RefreshVerdict::Replay => {
                // The replay yields the current token, which must be the successor of the presented
                // one. If that successor had been used, the current token would be a later one.
                state.yielded_used |= presented + 1 != state.generation;
                Some(state.generation)
            }
            RefreshVerdict::Reuse => {
                state.has_ended = true;
                None
            }
            RefreshVerdict::Expire(reason) => panic!("{reason:?}"),
            RefreshVerdict::Refuse(refusal) => panic!("{refusal:?}"),
        }
    }
}

impl Model for Replaying {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            generation: 1,
            refreshed_at: 0,
            client: 1,
            thief: None,
            has_ended: false,
            thief_got_in: false,
            yielded_used: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        for answer_arrives in [true, false] {
            actions.push(Action::ClientRefreshes { answer_arrives });
        }
        if self.has_thief {
            actions.extend([Action::Steal, Action::ThiefRefreshes]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        let can = match action {
            Action::Tick => {
                next.now += 1;
                next.now <= self.lasts
            }
            Action::ClientRefreshes { answer_arrives } => {
                let answer = self.refresh(&mut next, state.client);
                if let (true, Some(generation)) = (answer_arrives, answer) {
                    next.client = generation;
                }
                true
            }
            Action::Steal => {
                next.thief = Some(state.client);
                state.thief.is_none()
            }
            Action::ThiefRefreshes => {
                let answer = state.thief.and_then(|token| self.refresh(&mut next, token));
                next.thief = answer.or(state.thief);
                next.thief_got_in |= answer.is_some();
                state.thief.is_some()
            }
        };
        (can && next != *state && next.generation <= 1 + ROTATIONS).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties =
            vec![Property::always("a used token yields nothing", |_, state: &State| {
                !state.yielded_used
            })];
        if self.has_thief {
            properties.push(Property::sometimes("a thief is detected", |_, state: &State| {
                state.has_ended && state.thief_got_in
            }));
            properties.push(Property::sometimes(
                "a thief that keeps up is not detected",
                |_, state: &State| {
                    let both_go_on =
                        state.client == 1 + ROTATIONS && state.thief == Some(1 + ROTATIONS);
                    both_go_on && !state.has_ended
                },
            ));
        } else {
            properties.push(Property::always(
                "a client alone is never signed out",
                |_, state: &State| !state.has_ended,
            ));
        }
        properties
    }
}
