//! Runs a sequence against a service and the model, and compares them.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use countersign::{
    app,
    authority::{Authority, Dependencies, audit::Audit},
    clock::{Clock, SharedClock},
    keys::keeper::Keeper,
    proto::{self, EndReason, revoke_request},
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
    commands::{self, Ago, Altered, Authenticated, Command, Pick, Sequence, Step, Token},
    messages::{self, Names, timestamp},
    model::{
        AccessToken, Authentication, Create, Demands, Factor, Micros, Model, Named, Reauthenticate,
        RefreshToken, SECOND, Scopes, Search, Settings, Target, Tokens, Update, Verified, Whom,
    },
    settings::{self, POLICIES},
};

/// All tokens and sessions are compared after every so many commands, which saves time.
const COMPARED: usize = 3;

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
            replica: Arc::new(Replica::new(shared, config.lease)),
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
            creations: vec![],
            reauthentications: vec![],
        };
        run.advance(SECOND - run.model.now.rem_euclid(SECOND) + sequence.begin);
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
            _ => {}
        }
        // All other commands need a session.
        if self.model.sessions.is_empty() {
            return Ok(());
        }
        match *command {
            Command::CreateAgain { request, altered } => {
                let mut request =
                    self.creations[usize::from(request) % self.creations.len()].clone();
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
            Command::Revoke { target, reason } => self.revoke(target, reason).await,
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
                Some(of_session[usize::from(pick.back) % of_session.len()].clone())
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
        let instant = |ago: Ago| ago.map(|ago| self.model.now - ago);
        Authentication { acr, amr, verified_at: verified.map(instant), at: instant(at) }
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

    async fn create(&mut self, request: Create) -> Result<(), Disagreement> {
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
            self.model.sessions[known].id.clone_from(&session.session_id);
            self.etags.push(BTreeMap::new());
        }
        self.compare_tokens(&tokens, answered.tokens.unwrap())?;
        self.compare_session(tokens.access.session, &session)
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

    async fn revoke(&mut self, target: commands::Target, reason: u8) -> Result<(), Disagreement> {
        use revoke_request::Target as Message;

        let reasons = [
            (EndReason::Unspecified, ""),
            (EndReason::SignedOut, "bye"),
            (EndReason::Compromised, ""),
        ];
        let (reason, note) = reasons[usize::from(reason)];
        let ids: Vec<_> = self.model.sessions.iter().map(|session| session.id.clone()).collect();
        let (target, message) = match target {
            commands::Target::AccessToken { token, only } => {
                let Some(index) = self.access_token(token) else { return Ok(()) };
                let token = self.model.access_tokens[index].clone();
                (
                    Target::AccessToken { token, only },
                    Message::Token(self.access_tokens[index].clone()),
                )
            }
            commands::Target::RefreshToken(token) => {
                let token = self.refresh_token(token);
                let text = self.refresh_text(token.as_ref()).await;
                (Target::RefreshToken(token), Message::Token(text))
            }
            commands::Target::Session(session) => {
                let session = self.index(session);
                (Target::Session(session), Message::SessionId(ids[session].clone()))
            }
            commands::Target::Subject { tenant, subject, except } => {
                let except = except.map(|session| self.index(session));
                let message = proto::SubjectTarget {
                    tenant: self.names.tenant(tenant),
                    subject: self.names.subject(subject),
                    except_session_id: except
                        .map(|session| ids[session].clone())
                        .unwrap_or_default(),
                };
                (Target::Subject { tenant, subject, except }, Message::Subject(message))
            }
            commands::Target::Tenant(tenant) => {
                (Target::Tenant(tenant), Message::Tenant(self.names.tenant(tenant)))
            }
        };
        let only = matches!(target, Target::AccessToken { only: true, .. });
        let extent =
            if only { proto::RevokeExtent::TokenOnly } else { proto::RevokeExtent::Session };
        let request = proto::RevokeRequest {
            target: Some(message),
            extent: extent.into(),
            reason: reason.into(),
            note: note.to_owned(),
            ..Default::default()
        };
        let predicted = self.model.revoke(&target, reason, note);
        let answered = answer(self.world.server.client().revoke(request).await);
        let Some((answered, ended)) = both(answered, predicted)? else { return Ok(()) };
        let has_progress = matches!(target, Target::Subject { .. } | Target::Tenant(_));
        same("revocations", &answered.revocation_ids.len(), &usize::from(has_progress))?;
        let expected = proto::RevokeResponse {
            revoked_sessions: i64::try_from(ended).unwrap(),
            effective_at: Some(timestamp(self.model.now)),
            revocation_ids: answered.revocation_ids.clone(),
            dry_run: None,
        };
        same("revocation", &answered, &expected)?;
        if let Target::Tenant(tenant) = target {
            self.await_the_end_of(tenant).await;
        }
        Ok(())
    }

    /// Waits until the rows of a revoked tenant have ended, which happens soon after the answer.
    async fn await_the_end_of(&self, tenant: u8) {
        let request = proto::CountSessionsRequest {
            tenant: self.names.tenant(tenant),
            state: proto::SessionState::Live.into(),
            ..Default::default()
        };
        eventually("the sessions of the tenant end", async || {
            let counted = self.world.server.client().count_sessions(request.clone()).await;
            (counted.unwrap().into_inner().sessions == 0).then_some(())
        })
        .await;
    }

    /// Compares the count and the pages of a search.
    async fn search(&mut self, search: &Search, page_size: i32) -> Result<(), Disagreement> {
        let request = self.names.list(search, page_size);
        let counting = proto::CountSessionsRequest {
            tenant: request.tenant.clone(),
            subject: request.subject.clone(),
            state: request.state,
            filter: request.filter.clone(),
        };
        let mut client = self.world.server.client();
        let counted = answer(client.count_sessions(counting).await);
        let Some((counted, found)) = both(counted, self.model.search(search))? else {
            let listed = answer(client.list_sessions(request).await);
            return both(listed, self.model.search(search)).map(drop);
        };
        let sessions = i64::try_from(found.len()).unwrap();
        let expected = proto::CountSessionsResponse { sessions, may_be_more: false };
        same("count", &counted, &expected)?;
        self.list(request, &found).await
    }

    /// Compares the pages of a list, which must have these sessions.
    async fn list(
        &mut self,
        request: proto::ListSessionsRequest,
        found: &[usize],
    ) -> Result<(), Disagreement> {
        let mut client = self.world.server.client();
        let page_size = usize::try_from(request.page_size).unwrap();
        let mut found = found;
        let mut page_token = String::new();
        loop {
            let request = proto::ListSessionsRequest { page_token, ..request.clone() };
            let listed =
                client.list_sessions(request).await.map_err(|status| status.to_string())?;
            let listed = listed.into_inner();
            let (page, rest) = found.split_at(found.len().min(page_size));
            let ids = |sessions: &[proto::Session]| -> Vec<String> {
                sessions.iter().map(|session| session.session_id.clone()).collect()
            };
            let expected: Vec<_> =
                page.iter().map(|index| self.model.sessions[*index].id.clone()).collect();
            same("page", &ids(&listed.sessions), &expected)?;
            for (index, session) in page.iter().zip(&listed.sessions) {
                self.compare_session(*index, session)?;
            }
            same("is the last page", &listed.next_page_token.is_empty(), &rest.is_empty())?;
            if rest.is_empty() {
                return Ok(());
            }
            (found, page_token) = (rest, listed.next_page_token);
        }
    }

    /// Compares a session as the service shows it. An etag must differ from all earlier ones of the
    /// session if and only if the session has changed.
    fn compare_session(
        &mut self,
        index: usize,
        shown: &proto::Session,
    ) -> Result<(), Disagreement> {
        let session = &self.model.sessions[index];
        let known = &mut self.etags[index];
        let is_new = known.values().all(|etag| *etag != shown.etag);
        let etag = match known.get(&session.revision) {
            Some(etag) => etag.clone(),
            None if is_new => shown.etag.clone(),
            None => "another one".to_owned(),
        };
        known.insert(session.revision, etag.clone());
        let expected = self.names.session(session, self.model.now, etag);
        same_message("session", "Session", shown, &expected)
    }

    /// Compares tokens. Their texts must be those of the same tokens that were issued before, or
    /// new ones.
    fn compare_tokens(
        &mut self,
        tokens: &Tokens,
        issued: proto::Tokens,
    ) -> Result<(), Disagreement> {
        fn text(known: &mut Vec<String>, index: Option<usize>, issued: &str) -> String {
            if index == Some(known.len()) && known.iter().all(|known| known != issued) {
                known.push(issued.to_owned());
            }
            index.and_then(|index| known.get(index)).cloned().unwrap_or_default()
        }
        let Model { access_tokens, refresh_tokens, .. } = &self.model;
        let access = access_tokens.iter().position(|token| *token == tokens.access);
        let refresh = refresh_tokens.iter().position(|token| *token == tokens.refresh);
        let texts = (
            text(&mut self.access_tokens, access, &issued.access_token),
            text(&mut self.refresh_tokens, refresh, &issued.refresh_token),
        );
        let expected = messages::tokens(&self.model, tokens, texts);
        same_message("tokens", "Tokens", &issued, &expected)
    }

    /// Compares what Validate says about some tokens.
    async fn validate(&self, tokens: &[usize], demands: &Demands) -> Result<(), Disagreement> {
        let requests: Vec<_> = tokens
            .iter()
            .map(|index| messages::validate(demands, self.access_tokens[*index].clone()))
            .collect();
        if requests.is_empty() {
            return Ok(());
        }
        let request = proto::BatchValidateRequest { requests };
        let answers = answer(self.world.server.client().batch_validate(request).await);
        let answers = answers.map_err(|refusal| format!("{refusal:?}"))?.responses;
        same("number of answers", &answers.len(), &tokens.len())?;
        for (index, answer) in tokens.iter().zip(answers) {
            let token: &AccessToken = &self.model.access_tokens[*index];
            let expected = match self.model.validate(token, demands) {
                Ok(()) => self.names.active(&self.model, token),
                Err(reason) => proto::ValidateResponse {
                    inactive_reason: reason.into(),
                    checked_at: Some(timestamp(self.model.now)),
                    ..Default::default()
                },
            };
            let what = format!("validity of {token:?}");
            same_message(&what, "ValidateResponse", &answer, &expected)?;
        }
        Ok(())
    }

    /// Compares the validity of every token, and all sessions. `singly` also lists the sessions that
    /// are recorded as ended, and gets each session by its identifier.
    async fn compare_all(&mut self, singly: bool) -> Result<(), Disagreement> {
        let tokens: Vec<_> = (0..self.access_tokens.len()).collect();
        self.validate(&tokens, &Demands::default()).await?;
        for tenant in 0..2 {
            for live in [None, Some(false)].into_iter().take(1 + usize::from(singly)) {
                let (subject, client) = (None, None);
                let search = Search { tenant, subject, client, live, oldest_first: false };
                let found = self.model.search(&search).unwrap();
                self.list(self.names.list(&search, 500), &found).await?;
            }
        }
        if !singly {
            return Ok(());
        }
        for index in 0..self.model.sessions.len() {
            let request =
                proto::GetSessionRequest { session_id: self.model.sessions[index].id.clone() };
            let answered = answer(self.world.server.client().get_session(request).await);
            let expected = self.model.row(index).map(drop).ok_or_else(crate::model::not_found);
            if let Some((answered, ())) = both(answered, expected)? {
                self.compare_session(index, &answered.session.unwrap())?;
            }
        }
        Ok(())
    }
}
