//! The commands of a sequence, as proptest generates and shrinks them. Whatever refers to an
//! earlier result is a small number, which is taken modulo the number of results there are.

use proptest::{collection::vec, option, prelude::*};

use crate::{
    model::{Micros, SECOND, Settings},
    settings::POLICIES,
};

/// The longest sequence.
const LONGEST: usize = 40;

/// The second of a sequence's beginning is this far advanced, in microseconds.
const FRACTIONS: [Micros; 4] = [250_000, 0, 1, 999_999];

/// A sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The time at which it begins, within its second.
    pub begin: Micros,
    pub commands: Vec<Command>,
}

/// A token of a session: 0 is the latest one, 1 the one before, and so on.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    pub session: u8,
    pub back: u8,
}

/// The instant of an event, compared with the present.
pub type Ago = Option<Micros>;

/// The instant of an authentication or of a creation in the past.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Ago(Micros),
    /// So many ticks after the instant of a revocation by such an instant. 0 is the latest
    /// revocation.
    AtCutOff {
        back: u8,
        ticks: Micros,
    },
}

/// An authentication.
#[derive(Clone, Copy, Debug)]
pub struct Authenticated {
    pub acr: u8,
    /// The number of methods.
    pub amr: u8,
    /// The times of the first two methods.
    pub verified: [Ago; 2],
    pub at: Option<When>,
}

/// The part of a repeated request that differs from the earlier one.
#[derive(Clone, Copy, Debug)]
pub enum Altered {
    Nothing,
    Content,
    TimeOfMethod,
}

/// A command.
#[derive(Clone, Debug)]
pub enum Command {
    Create {
        /// Tenant, subject and client.
        whom: (u8, u8, u8),
        policy: usize,
        scopes: u8,
        /// Claims and metadata.
        data: (u8, u8),
        authentication: Authenticated,
        /// The lifetimes of access tokens and of the session.
        limits: (Option<Micros>, Option<Micros>),
        request_id: u8,
    },
    /// Sends an earlier request for a session again, possibly with other scopes or times.
    CreateAgain {
        request: u8,
        altered: Altered,
    },
    Refresh {
        token: Token,
        scopes: u8,
    },
    Reauthenticate {
        session: Named,
        authentication: Authenticated,
        claims: Option<u8>,
        scopes: u8,
        allow_weaker: bool,
        request_id: u8,
    },
    /// Sends an earlier reauthentication again, possibly with other methods or times.
    ReauthenticateAgain {
        request: u8,
        altered: Altered,
    },
    Update {
        session: u8,
        /// How many changes ago the etag was read.
        etag: Option<u8>,
        metadata: Option<u8>,
        label: Option<u8>,
        claims: Option<u8>,
        scopes: Option<u8>,
        revoke_access_tokens: bool,
    },
    Validate {
        token: Pick,
        foreign_audience: bool,
        scopes: u8,
        acr: Option<u8>,
        max_age: Option<Micros>,
        /// Methods, each with an age.
        factors: Vec<(u8, Option<Micros>)>,
    },
    Revoke {
        target: Target,
        reason: u8,
        dry_run: bool,
        confirmed: bool,
    },
    List {
        tenant: u8,
        subject: Option<u8>,
        client: Option<u8>,
        live: Option<bool>,
        order: bool,
        size: u8,
    },
    Import {
        /// Tenant, subject and client.
        whom: (u8, u8, u8),
        policy: usize,
        scopes: u8,
        /// Claims and metadata.
        data: (u8, u8),
        authentication: Authenticated,
        created: When,
        refreshed: Ago,
        expires: Ago,
        /// The identifier and the refresh token in the other system.
        legacy: (u8, u8),
        validate_only: bool,
    },
    /// Puts settings in force.
    Configure(Settings),
    Advance(Step),
    Sweep,
}

/// A refresh token.
#[derive(Clone, Copy, Debug)]
pub enum Token {
    Issued(Pick),
    /// An authentic token that was never issued to this session.
    Forged {
        session: u8,
    },
    Garbage,
}

/// The session of a reauthentication.
#[derive(Clone, Copy, Debug)]
pub enum Named {
    ById(u8),
    ByToken(Token),
}

/// The target of a revocation.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AccessToken {
        token: Pick,
        only: bool,
    },
    RefreshToken(Token),
    Session(u8),
    Subject {
        tenant: u8,
        subject: u8,
        except: Option<u8>,
    },
    /// The subjects of a tenant, one bit for each.
    Subjects {
        tenant: u8,
        subjects: u8,
    },
    Tenant(u8),
    Sessions {
        tenant: Option<u8>,
        client: Option<u8>,
        boundary: Boundary,
    },
    /// The tenant and the client of the last target of this kind.
    SessionsAgain {
        boundary: Boundary,
    },
}

/// The instant before which sessions are revoked: that of a session, so many units later.
#[derive(Clone, Copy, Debug)]
pub enum Boundary {
    Now,
    /// In milliseconds, or in ticks.
    Created {
        session: u8,
        units: i64,
        is_fine: bool,
    },
    /// In seconds.
    Authenticated {
        session: u8,
        units: i64,
    },
}

/// A step of the clock.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    By(Micros),
    /// To an instant at which some rule changes its answer, or to the tick before or after it.
    To {
        edge: u8,
        ticks: Micros,
    },
}

fn pick() -> impl Strategy<Value = Pick> {
    (0..4_u8, prop_oneof![4 => Just(0), 3 => Just(1), 2 => 2..6_u8])
        .prop_map(|(session, back)| Pick { session, back })
}

fn token() -> impl Strategy<Value = Token> {
    prop_oneof![
        30 => pick().prop_map(Token::Issued),
        2 => (0..4_u8).prop_map(|session| Token::Forged { session }),
        1 => Just(Token::Garbage),
    ]
}

fn named() -> impl Strategy<Value = Named> {
    prop_oneof![(0..4_u8).prop_map(Named::ById), token().prop_map(Named::ByToken)]
}

/// A tenant, most often the first one.
fn tenant() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0), 1 => Just(1)]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => (pick(), any::<bool>())
            .prop_map(|(token, only)| Target::AccessToken { token, only }),
        2 => token().prop_map(Target::RefreshToken),
        2 => (0..4_u8).prop_map(Target::Session),
        2 => (tenant(), 0..3_u8, option::of(0..4_u8))
            .prop_map(|(tenant, subject, except)| Target::Subject { tenant, subject, except }),
        1 => (tenant(), 1..8_u8)
            .prop_map(|(tenant, subjects)| Target::Subjects { tenant, subjects }),
        1 => tenant().prop_map(Target::Tenant),
        6 => (option::weighted(0.6, tenant()), option::weighted(0.3, 0..2_u8), boundary())
            .prop_map(|(tenant, client, boundary)| Target::Sessions { tenant, client, boundary }),
        3 => boundary().prop_map(|boundary| Target::SessionsAgain { boundary }),
    ]
}

fn boundary() -> impl Strategy<Value = Boundary> {
    prop_oneof![
        1 => Just(Boundary::Now),
        2 => (0..4_u8, -1..=1_i64, proptest::bool::weighted(0.1))
            .prop_map(|(session, units, is_fine)| Boundary::Created { session, units, is_fine }),
        2 => (0..4_u8, -1..=1_i64)
            .prop_map(|(session, units)| Boundary::Authenticated { session, units }),
    ]
}

fn revoke() -> impl Strategy<Value = Command> {
    let dry_run = proptest::bool::weighted(0.1);
    let confirmed = proptest::bool::weighted(0.9);
    (target(), 0..3_u8, dry_run, confirmed).prop_map(|(target, reason, dry_run, confirmed)| {
        Command::Revoke { target, reason, dry_run, confirmed }
    })
}

/// An instant that is given in one of three requests.
fn ago() -> impl Strategy<Value = Ago> + Clone {
    let ago = [0, 1, SECOND, 20 * SECOND, -SECOND, -5 * SECOND, -5 * SECOND - 1];
    prop_oneof![2 => Just(None), 1 => proptest::sample::select(ago.to_vec()).prop_map(Some)]
}

fn at_cut_off() -> impl Strategy<Value = When> {
    (0..3_u8, -1..=1_i64).prop_map(|(back, ticks)| When::AtCutOff { back, ticks })
}

/// The times of two methods. Most often the later one is not after the authentication.
fn verified() -> impl Strategy<Value = [Ago; 2]> {
    let early = proptest::sample::select(vec![SECOND, 20 * SECOND, 20 * SECOND + 1]);
    let time = prop_oneof![4 => Just(None), 2 => early.prop_map(Some), 1 => ago()];
    [time.clone(), time]
}

/// An authentication with this `acr`, most often by this number of methods.
fn authenticated(acr: impl Strategy<Value = u8>, amr: u8) -> impl Strategy<Value = Authenticated> {
    let at = prop_oneof![
        5 => ago().prop_map(|ago| ago.map(When::Ago)),
        1 => at_cut_off().prop_map(Some),
    ];
    (acr, prop_oneof![3 => Just(amr), 1 => 1..4_u8], verified(), at)
        .prop_map(|(acr, amr, verified, at)| Authenticated { acr, amr, verified, at })
}

fn again() -> impl Strategy<Value = (u8, Altered)> {
    let altered = prop_oneof![
        8 => Just(Altered::Nothing),
        1 => Just(Altered::Content),
        1 => Just(Altered::TimeOfMethod),
    ];
    (0..4_u8, altered)
}

/// A lifetime that a request asks for. Some are too short or too long.
fn lifetime() -> impl Strategy<Value = Option<Micros>> {
    let spans = [10 * SECOND, 40 * SECOND, 15_500_000, SECOND, SECOND - 1, 900 * SECOND];
    prop_oneof![5 => Just(None), 1 => proptest::sample::select(spans.to_vec()).prop_map(Some)]
}

/// A set of scopes, most often all of them.
fn scopes() -> impl Strategy<Value = u8> {
    prop_oneof![Just(7), 0..8_u8]
}

fn request_id() -> impl Strategy<Value = u8> {
    prop_oneof![2 => Just(0), 1 => 1..3_u8]
}

fn create() -> impl Strategy<Value = Command> {
    let whom = (tenant(), prop_oneof![3 => Just(0), 1 => 1..3_u8], 0..2_u8);
    (
        whom,
        0..POLICIES.len(),
        scopes(),
        (0..3_u8, 0..2_u8),
        authenticated(0..4_u8, 2),
        (lifetime(), lifetime()),
        request_id(),
    )
        .prop_map(|(whom, policy, scopes, data, authentication, limits, request_id)| {
            Command::Create { whom, policy, scopes, data, authentication, limits, request_id }
        })
}

fn import() -> impl Strategy<Value = Command> {
    let whom = (tenant(), prop_oneof![3 => Just(0), 1 => 1..3_u8], 0..2_u8);
    // Some of these sessions have just ended, and others are about to.
    let ages = [0, 1, SECOND, 20 * SECOND, 60 * SECOND - 1, 60 * SECOND, 150 * SECOND - 1];
    let others = [150 * SECOND, -SECOND, -5 * SECOND, -5 * SECOND - 1];
    let created = prop_oneof![
        2 => proptest::sample::select(vec![0, 1, SECOND, 20 * SECOND]).prop_map(When::Ago),
        1 => proptest::sample::select([&ages[..], &others].concat()).prop_map(When::Ago),
        1 => at_cut_off(),
    ];
    let refreshed = prop_oneof![
        3 => proptest::sample::select(vec![0, 1, SECOND]),
        1 => proptest::sample::select(ages.to_vec()),
    ];
    let expires = proptest::sample::select(vec![0, -1, -10 * SECOND, -40 * SECOND, SECOND]);
    let legacy_id = prop_oneof![1 => Just(0), 15 => 1..4_u8];
    let legacy = (legacy_id, prop_oneof![1 => Just(0), 3 => 1..4_u8]);
    (
        (whom, 0..POLICIES.len(), scopes()),
        (0..3_u8, 0..2_u8),
        authenticated(0..4_u8, 2),
        (created, option::weighted(0.3, refreshed), option::weighted(0.2, expires)),
        legacy,
        proptest::bool::weighted(0.1),
    )
        .prop_map(|(content, data, authentication, times, legacy, validate_only)| {
            let ((whom, policy, scopes), (created, refreshed, expires)) = (content, times);
            Command::Import {
                whom,
                policy,
                scopes,
                data,
                authentication,
                created,
                refreshed,
                expires,
                legacy,
                validate_only,
            }
        })
}

fn reauthenticate() -> impl Strategy<Value = Command> {
    let claims = option::weighted(0.2, 0..3_u8);
    let scopes = prop_oneof![3 => Just(0), 1 => 0..8_u8];
    let acr = prop_oneof![2 => Just(2), 1 => 0..4_u8];
    (named(), authenticated(acr, 2), claims, scopes, any::<bool>(), request_id()).prop_map(
        |(session, authentication, claims, scopes, allow_weaker, request_id)| {
            Command::Reauthenticate {
                session,
                authentication,
                claims,
                scopes,
                allow_weaker,
                request_id,
            }
        },
    )
}

fn update() -> impl Strategy<Value = Command> {
    let some = || option::weighted(0.3, 0..3_u8);
    let etag = option::weighted(0.3, 0..3_u8);
    let scopes = option::weighted(0.3, 0..8_u8);
    (0..4_u8, etag, some(), some(), some(), scopes, any::<bool>()).prop_map(
        |(session, etag, metadata, label, claims, scopes, revoke_access_tokens)| Command::Update {
            session,
            etag,
            metadata,
            label,
            claims,
            scopes,
            revoke_access_tokens,
        },
    )
}

fn validate() -> impl Strategy<Value = Command> {
    let foreign = proptest::bool::weighted(0.1);
    let demanded = prop_oneof![2 => Just(0), 1 => 0..8_u8];
    let age =
        || option::of(proptest::sample::select(vec![0, SECOND, 20 * SECOND, 20 * SECOND - 1]));
    let acr = option::weighted(0.3, 0..4_u8);
    let max_age = prop_oneof![2 => Just(None), 1 => age()];
    let factors = vec((0..3_u8, age()), 0..3);
    (pick(), foreign, demanded, acr, max_age, factors).prop_map(
        |(token, foreign_audience, scopes, acr, max_age, factors)| Command::Validate {
            token,
            foreign_audience,
            scopes,
            acr,
            max_age,
            factors,
        },
    )
}

fn list() -> impl Strategy<Value = Command> {
    let live = option::of(any::<bool>());
    let of = || option::weighted(0.3, 0..2_u8);
    (0..2_u8, of(), of(), live, any::<bool>(), 1..4_u8).prop_map(
        |(tenant, subject, client, live, order, size)| Command::List {
            tenant,
            subject,
            client,
            live,
            order,
            size,
        },
    )
}

fn step() -> impl Strategy<Value = Command> {
    let spans = vec![1, SECOND, 3 * SECOND, 11 * SECOND, 61 * SECOND, 1000 * SECOND];
    let by = proptest::sample::select(spans).prop_map(Step::By);
    let to = (0..6_u8, -1..=1_i64).prop_map(|(edge, ticks)| Step::To { edge, ticks });
    prop_oneof![1 => by, 2 => to].prop_map(Command::Advance)
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => create(),
        5 => import(),
        2 => again()
            .prop_map(|(request, altered)| Command::CreateAgain { request, altered }),
        12 => (token(), prop_oneof![3 => Just(0), 1 => 0..8_u8])
            .prop_map(|(token, scopes)| Command::Refresh { token, scopes }),
        5 => reauthenticate(),
        2 => again()
            .prop_map(|(request, altered)| Command::ReauthenticateAgain { request, altered }),
        4 => update(),
        2 => validate(),
        7 => revoke(),
        2 => list(),
        2 => prop_oneof![2 => Just(Settings::Strict), 1 => Just(Settings::Usual)]
            .prop_map(Command::Configure),
        8 => step(),
        2 => Just(Command::Sweep),
    ]
}

/// Generates sequences.
pub fn sequence() -> impl Strategy<Value = Sequence> {
    (proptest::sample::select(FRACTIONS.to_vec()), create(), vec(command(), 1..LONGEST)).prop_map(
        |(begin, first, mut commands)| {
            commands.insert(0, first);
            Sequence { begin, commands }
        },
    )
}
