//! Runs a sequence against a service and the model, and compares them.

mod compare;
mod import;
mod revoke;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use countersign::{
    app,
    authority::{Authority, Dependencies, audit::Audit},
    clock::{Clock, SharedClock},
    keys::keeper::Keeper,
    proto,
    revocation::replica::Replica,
    rng::SystemRng,
};
use countersign_test_support::{
    forge::Forge,
    refusal::{Refusal, refused},
    server::{Home, Server, eventually},
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tokio::sync::Mutex;
use tonic::{Response, Status};

use crate::{
    commands::{self, Ago, Altered, Authenticated, Command, Pick, Sequence, Step, Token, When},
    messages::{self, Names, timestamp},
    model::{
        Authentication, Create, Demands, Factor, MILLISECOND, Micros, Model, Named, Reauthenticate,
        RefreshToken, SECOND, Scopes, Search, Settings, Update, Verified, Whom,
    },
    settings::{self, POLICIES},
};

/// All tokens and sessions are compared after every so many commands, which saves time.
const COMPARED: usize = 3;

/// No session of a sequence lives for longer than this after the sequence.
const LONGEST_LIFETIME: Micros = 200 * SECOND;

/// The service remembers a revocation of many sessions for at least this long.
const REMEMBERED: Micros = 3600 * SECOND;

/// A quota may overlook an imported session for this long.
const OVERLOOKED: Micros = 30 * SECOND;

/// A disagreement of service and model.
pub type Disagreement = String;

/// A service for many sequences, each of which has tenants of its own.
pub struct World {
    server: Server,
    /// Another process on the same database, which sweeps whenever a sequence asks for it.
    sweeper: Authority,
    /// The keys of the service, for forged tokens.
    forge: Forge,
    /// The settings in force.
    settings: Mutex<Settings>,
}

impl World {
    /// Starts a service.
    pub async fn start() -> Self {
        let server = Home::new(&settings::text(Settings::Usual)).await.start().await;
        let Forge { ring, masters } = Forge::of(&server).await;
        let config = server.home.config();
        let shared = Arc::new(SharedClock::new(server.clock.clone()));
        let dependencies = Dependencies {
            store: server.store.clone(),
            keeper: Arc::new(Keeper::new(masters, ring)),
            replica: Arc::new(Replica::new(shared, config.lease, config.watch)),
            clock: server.clock.clone(),
            rng: Arc::new(SystemRng::default()),
            audit: Audit::of_log(server.clock.clone(), Default::default()),
        };
        let sweeper = Authority::new(dependencies, app::settings::settings(&config));
        Self { forge: Forge::of(&server).await, server, sweeper, settings: Mutex::default() }
    }

    /// Stops the service.
    pub async fn stop(self) {
        drop(self.sweeper);
        self.server.stop().await;
    }

    /// Puts settings in force.
    async fn configure(&self, settings: Settings) {
        let mut in_force = self.settings.lock().await;
        if *in_force == settings {
            return;
        }
        self.server.reload(&settings::text(settings));
        // Only by the usual settings, a session of this age is still live.
        let now = self.server.clock.now().micros();
        let probe = proto::ImportedSession {
            legacy_id: "probe".to_owned(),
            subject: "probe".to_owned(),
            policy: "living".to_owned(),
            created_at: Some(timestamp(now - 100 * SECOND)),
            refreshed_at: Some(timestamp(now)),
            ..Default::default()
        };
        let request = proto::ImportSessionsRequest { sessions: vec![probe], validate_only: true };
        let expected = match settings {
            Settings::Usual => proto::ImportStatus::Valid,
            Settings::Strict => proto::ImportStatus::Expired,
        };
        eventually("the settings are in force", async || {
            let checked = self.server.client().import_sessions(request.clone()).await;
            let results = checked.unwrap().into_inner().results;
            (results[0].status() == expected).then_some(())
        })
        .await;
        *in_force = settings;
    }

    /// Runs a sequence. `number` has not been used for another one.
    pub async fn run(&self, number: u64, sequence: &Sequence) -> Result<(), Disagreement> {
        self.configure(Settings::Usual).await;
        let mut run = Run {
            world: self,
            names: Names(number),
            model: Model::at(self.server.clock.now().micros()),
            access_tokens: vec![],
            refresh_tokens: vec![],
            forged: vec![],
            etags: vec![],
            last_scope: None,
            imported_at: BTreeMap::new(),
            creations: vec![],
            reauthentications: vec![],
        };
        // All sessions of earlier sequences have expired then.
        run.advance(LONGEST_LIFETIME + SECOND - run.model.now.rem_euclid(SECOND) + sequence.begin);
        let last = sequence.commands.len() - 1;
        for (index, command) in sequence.commands.iter().enumerate() {
            let outcome = async {
                run.step(command).await?;
                match index == last || matches!(command, Command::Sweep) {
                    false if index % COMPARED != 0 => Ok(()),
                    singly => run.compare_all(singly).await,
                }
            };
            outcome.await.map_err(|problem| format!("command {index}, {command:?}: {problem}"))?;
        }
        Ok(())
    }
}

/// A sequence that is being run.
struct Run<'a> {
    world: &'a World,
    names: Names,
    model: Model,
    /// The texts of the model's tokens.
    access_tokens: Vec<String>,
    refresh_tokens: Vec<String>,
    /// The tokens that were forged, with their texts.
    forged: Vec<(RefreshToken, String)>,
    /// The etag of each session by its revision.
    etags: Vec<BTreeMap<u32, String>>,
    /// The tenant and the client whose sessions were revoked last.
    last_scope: Option<(Option<u8>, Option<u8>)>,
    /// The instants at which sessions were imported.
    imported_at: BTreeMap<usize, Micros>,
    /// The requests that were sent.
    creations: Vec<Create>,
    reauthentications: Vec<Reauthenticate>,
}

/// Returns the answer of the service in the form of the model's.
fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Refusal> {
    answer.map(Response::into_inner).map_err(|status| refused::<()>(Err(status)))
}

/// Changes the time of the first method, or gives it one.
fn alter(times: &mut Verified) {
    let [first, _] = times;
    *first = first.map_or(Some(0), |at| Some(at - 1));
}

fn same<T: Debug + PartialEq>(what: &str, service: &T, model: &T) -> Result<(), Disagreement> {
    if service == model {
        return Ok(());
    }
    Err(format!("{what}:\n service: {service:?}\n   model: {model:?}"))
}

/// Compares two messages of this type. Their debug output would be redacted, so the fields that
/// differ are shown in JSON.
fn same_message<T: Message + PartialEq>(
    what: &str,
    name: &str,
    service: &T,
    model: &T,
) -> Result<(), Disagreement> {
    if service == model {
        return Ok(());
    }
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let descriptor = pool.get_message_by_name(&format!("countersign.v1.{name}")).unwrap();
    let json = |message: &T| {
        let bytes = message.encode_to_vec();
        let message = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
        serde_json::to_value(message).unwrap()
    };
    let (service, model) = (json(service), json(model));
    let mut problem = what.to_owned();
    for field in descriptor.fields() {
        let (name, unset) = (field.json_name(), serde_json::Value::Null);
        let [service, model] =
            [&service, &model].map(|message| message.get(name).unwrap_or(&unset));
        if service != model {
            problem += &format!("\n service: {name} = {service}\n   model: {name} = {model}");
        }
    }
    Err(problem)
}

/// Compares the outcomes of a call. Returns both answers if it succeeded.
fn both<S: Debug, M: Debug>(
    service: Result<S, Refusal>,
    model: Result<M, Refusal>,
) -> Result<Option<(S, M)>, Disagreement> {
    match (service, model) {
        (Ok(service), Ok(model)) => Ok(Some((service, model))),
        (Err(service), Err(model)) => same("refusal", &service, &model).map(|()| None),
        (service, model) => Err(format!("outcome:\n service: {service:?}\n   model: {model:?}")),
    }
}

impl Run<'_> {
    async fn step(&mut self, command: &Command) -> Result<(), Disagreement> {
        match command {
            Command::Advance(step) => {
                self.advance(self.span(*step));
                return Ok(());
            }
            Command::Configure(settings) => {
                self.world.configure(*settings).await;
                self.model.settings = *settings;
                return Ok(());
            }
            Command::Sweep => {
                self.world.sweeper.sweep().await.map_err(|error| error.to_string())?;
                self.model.sweep();
                return Ok(());
            }
            Command::List { tenant, subject, client, live, order, size } => {
                let (tenant, subject, client) = (*tenant, *subject, *client);
                let search = Search { tenant, subject, client, live: *live, oldest_first: *order };
                return self.search(&search, (*size).into()).await;
            }
            Command::Create { .. } => return self.create(self.creation(command)).await,
            Command::Import { .. } => return self.import(command).await,
            _ => {}
        }
        // All other commands need a session.
        if self.model.sessions.is_empty() {
            return Ok(());
        }
        match *command {
            Command::CreateAgain { request, altered } => {
                let sent = &self.creations;
                let Some(request) = sent.get(usize::from(request) % sent.len().max(1)) else {
                    return Ok(());
                };
                let mut request = request.clone();
                match altered {
                    Altered::Nothing => {}
                    Altered::Content => request.scopes ^= 1,
                    Altered::TimeOfMethod => alter(&mut request.authentication.verified_at),
                }
                self.create(request).await
            }
            Command::Refresh { token, scopes } => self.refresh(token, scopes).await,
            Command::Reauthenticate { .. } => {
                self.reauthenticate(self.reauthentication(command)).await
            }
            Command::ReauthenticateAgain { request, altered } => {
                let sent = &self.reauthentications;
                let Some(request) = sent.get(usize::from(request) % sent.len().max(1)) else {
                    return Ok(());
                };
                let mut request = request.clone();
                match altered {
                    Altered::Nothing => {}
                    Altered::Content => request.authentication.amr ^= 1,
                    Altered::TimeOfMethod => alter(&mut request.authentication.verified_at),
                }
                self.reauthenticate(request).await
            }
            Command::Validate { token, foreign_audience, scopes, acr, max_age, ref factors } => {
                let Some(token) = self.access_token(token) else { return Ok(()) };
                let factor = |&(method, max_age): &_| Factor { method, max_age };
                let factors = factors.iter().map(factor).collect();
                let demands = Demands { foreign_audience, scopes, acr, max_age, factors };
                self.validate(&[token], &demands).await
            }
            Command::Revoke { target, reason, dry_run, confirmed } => {
                let Some((target, message)) = self.target(target).await else { return Ok(()) };
                match dry_run {
                    true => self.dry_run(&target, message).await.map(drop),
                    false => self.revoke(&target, message, reason, confirmed).await,
                }
            }
            ref update => self.update(update).await,
        }
    }

    /// Moves the clocks forward.
    fn advance(&mut self, span: Micros) {
        self.model.now += span;
        let span = Duration::from_micros(u64::try_from(span).unwrap());
        self.world.server.clock.advance(span);
    }

    fn span(&self, step: Step) -> Micros {
        match step {
            Step::By(span) => span,
            Step::To { edge, ticks } => {
                let edges = self.model.edges();
                let edge = edges.get(usize::from(edge) % edges.len().max(1));
                edge.map_or(0, |edge| edge + ticks - self.model.now)
            }
        }
    }

    fn index(&self, session: u8) -> usize {
        usize::from(session) % self.model.sessions.len()
    }

    /// Returns an access token of a session; none if it has none.
    fn access_token(&self, pick: Pick) -> Option<usize> {
        let session = self.index(pick.session);
        let tokens = &self.model.access_tokens;
        let of_session: Vec<_> =
            (0..tokens.len()).rev().filter(|&index| tokens[index].session == session).collect();
        of_session.get(usize::from(pick.back) % of_session.len().max(1)).copied()
    }

    /// Returns a refresh token; none for a text that is not one.
    fn refresh_token(&self, token: Token) -> Option<RefreshToken> {
        match token {
            Token::Issued(pick) => {
                let session = self.index(pick.session);
                let of_session: Vec<_> = (self.model.refresh_tokens.iter().rev())
                    .filter(|token| token.session == session)
                    .collect();
                let token = of_session.get(usize::from(pick.back) % of_session.len().max(1));
                token.copied().cloned()
            }
            Token::Forged { session } => {
                let session = self.index(session);
                self.model.row(session).map(|_| self.model.forged(session))
            }
            Token::Garbage => None,
        }
    }

    /// Returns the text of a refresh token. A token that was not issued is forged.
    async fn refresh_text(&mut self, token: Option<&RefreshToken>) -> String {
        let Some(token) = token else { return "garbage".to_owned() };
        if let Some(index) = self.model.refresh_tokens.iter().position(|issued| issued == token) {
            return self.refresh_tokens[index].clone();
        }
        if let Some((_, text)) = self.forged.iter().find(|(forged, _)| forged == token) {
            return text.clone();
        }
        let (world, id) = (self.world, &self.model.sessions[token.session].id);
        let forging = world.forge.refresh_token(&world.server, id, |next| next.generation += 1);
        let text = forging.await;
        self.forged.push((token.clone(), text.clone()));
        text
    }

    fn authentication(&self, authentication: &Authenticated) -> Authentication {
        let Authenticated { acr, amr, verified, at } = *authentication;
        let verified_at = verified.map(|ago: Ago| ago.map(|ago| self.model.now - ago));
        Authentication { acr, amr, verified_at, at: at.map(|when| self.instant(when, true)) }
    }

    fn instant(&self, when: When, is_authentication: bool) -> Micros {
        let now = self.model.now;
        match when {
            When::Ago(ago) => now - ago,
            When::AtCutOff { back, ticks } => {
                let mut known = self.model.cut_offs(is_authentication);
                known.retain(|before| now - before < REMEMBERED);
                let index = usize::from(back) % known.len().max(1);
                known.iter().rev().nth(index).map_or(now, |before| before + ticks)
            }
        }
    }

    fn creation(&self, command: &Command) -> Create {
        let Command::Create { whom, policy, scopes, data, authentication, limits, request_id } =
            command
        else {
            unreachable!("{command:?} is no creation")
        };
        Create {
            whom: Whom { tenant: whom.0, subject: whom.1, client: whom.2 },
            policy: &POLICIES[*policy],
            scopes: *scopes,
            claims: data.0,
            metadata: data.1,
            authentication: self.authentication(authentication),
            access_token_ttl: limits.0,
            max_lifetime: limits.1,
            request_id: *request_id,
        }
    }

    /// Returns whether a quota may overlook imported sessions of the subject, as it does for some
    /// time (decision 33).
    fn may_overlook(&self, request: &Create) -> bool {
        let is_of_subject = |session: usize| {
            let whom = self.model.sessions[session].whom;
            (whom.tenant, whom.subject) == (request.whom.tenant, request.whom.subject)
        };
        let mut recent =
            self.imported_at.iter().filter(|(_, at)| self.model.now - **at <= OVERLOOKED);
        request.policy.max_sessions > 0 && recent.any(|(session, _)| is_of_subject(*session))
    }

    async fn create(&mut self, request: Create) -> Result<(), Disagreement> {
        if self.may_overlook(&request) {
            return Ok(());
        }
        self.creations.push(request.clone());
        let known = self.model.sessions.len();
        let predicted = self.model.create(&request);
        let message = self.names.create(&request);
        let answered = answer(self.world.server.client().create_session(message).await);
        let Some((answered, tokens)) = both(answered, predicted)? else { return Ok(()) };
        let session = answered.session.unwrap();
        if self.model.sessions.len() > known {
            let is_known = self.model.sessions.iter().any(|other| other.id == session.session_id);
            same("an identifier is new", &is_known, &false)?;
            self.name(known, &session.session_id)?;
        }
        self.compare_tokens(&tokens, answered.tokens.unwrap())?;
        self.compare_session(tokens.access.session, &session)
    }

    /// Gives a new session its identifier, which begins with a millisecond.
    fn name(&mut self, index: usize, id: &str) -> Result<(), Disagreement> {
        let session = &mut self.model.sessions[index];
        session.id = id.to_owned();
        self.etags.push(BTreeMap::new());
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        let millisecond = Micros::from_str_radix(&digits, 16).unwrap();
        same("millisecond", &millisecond, &(session.identified_at / MILLISECOND))
    }

    async fn refresh(&mut self, token: Token, scopes: Scopes) -> Result<(), Disagreement> {
        let token = self.refresh_token(token);
        let refresh_token = self.refresh_text(token.as_ref()).await;
        let predicted = self.model.refresh(token.as_ref(), scopes);
        let message = messages::refresh(refresh_token, scopes);
        let answered = answer(self.world.server.client().refresh(message).await);
        let Some((answered, tokens)) = both(answered, predicted)? else { return Ok(()) };
        same("replayed", &answered.replayed, &tokens.replayed)?;
        self.compare_tokens(&tokens, answered.tokens.unwrap())?;
        self.compare_session(tokens.access.session, &answered.session.unwrap())
    }

    fn reauthentication(&self, command: &Command) -> Reauthenticate {
        let Command::Reauthenticate {
            session,
            authentication,
            claims,
            scopes,
            allow_weaker,
            request_id,
        } = command
        else {
            unreachable!("{command:?} is no reauthentication")
        };
        let session = match session {
            commands::Named::ById(session) => Named::ById(self.index(*session)),
            commands::Named::ByToken(token) => Named::ByToken(self.refresh_token(*token)),
        };
        Reauthenticate {
            session,
            authentication: self.authentication(authentication),
            claims: *claims,
            scopes: *scopes,
            allow_weaker: *allow_weaker,
            request_id: *request_id,
        }
    }

    async fn reauthenticate(&mut self, request: Reauthenticate) -> Result<(), Disagreement> {
        use proto::reauthenticate_request::Session;

        self.reauthentications.push(request.clone());
        let session = match &request.session {
            Named::ById(session) => Session::SessionId(self.model.sessions[*session].id.clone()),
            Named::ByToken(token) => Session::RefreshToken(self.refresh_text(token.as_ref()).await),
        };
        let predicted = self.model.reauthenticate(&request);
        let message = messages::reauthenticate(&request, session);
        let answered = answer(self.world.server.client().reauthenticate(message).await);
        let Some((answered, tokens)) = both(answered, predicted)? else { return Ok(()) };
        self.compare_tokens(&tokens, answered.tokens.unwrap())?;
        self.compare_session(tokens.access.session, &answered.session.unwrap())
    }

    async fn update(&mut self, command: &Command) -> Result<(), Disagreement> {
        let Command::Update {
            session,
            etag,
            metadata,
            label,
            claims,
            scopes,
            revoke_access_tokens,
        } = *command
        else {
            unreachable!("{command:?} is no update")
        };
        let session = self.index(session);
        // The etags of the session, the latest first.
        let seen: Vec<_> = self.etags[session].iter().rev().collect();
        let sent = etag.map(|back| seen[usize::from(back) % seen.len()]);
        let (revision, etag) =
            sent.map_or((None, String::new()), |(revision, etag)| (Some(*revision), etag.clone()));
        let update =
            Update { session, revision, metadata, label, claims, scopes, revoke_access_tokens };
        let message = messages::update(&update, self.model.sessions[session].id.clone(), etag);
        let predicted = self.model.update(&update);
        let answered = answer(self.world.server.client().update_session(message).await);
        let Some((answered, ())) = both(answered, predicted)? else { return Ok(()) };
        self.compare_session(session, &answered.session.unwrap())
    }
}
