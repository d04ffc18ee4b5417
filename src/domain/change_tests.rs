//! Tests of the rules for reauthentications and updates.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use super::{
    super::{
        policy::{Policy, tests::policy},
        revocation::Revoked,
        session::{
            RequestFingerprint,
            tests::{START, session},
        },
    },
    *,
};

fn text<T: TryFrom<String, Error: std::fmt::Debug>>(text: &str) -> T {
    T::try_from(text.to_owned()).unwrap()
}

fn after(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn reauthentication() -> Reauthentication {
    Reauthentication {
        presented: None,
        acr: text("mfa"),
        amr: vec![],
        amr_verified_at: FactorTimes::default(),
        at: Some(after(5)),
        allow_weaker: false,
        acr_order: [text("pwd"), text("otp"), text("mfa")].into(),
        claims: None,
        scopes: vec![],
        device: None,
        request: None,
        next: NextTokens {
            access_token_id: TokenId::new([5; 16]),
            authentication_id: AuthenticationId::new([6; 16]),
            secret: LineageSecret([7; 16]),
            key: RefreshKeyId([8; 8]),
        },
    }
}

fn decide_at(now: Timestamp, session: &Session, kind: ChangeKind) -> ChangeDecision {
    decide_under(LivePolicies::default(), now, session, kind)
}

fn decide_under(
    live_policies: LivePolicies,
    now: Timestamp,
    session: &Session,
    kind: ChangeKind,
) -> ChangeDecision {
    let change = SessionChange {
        session_id: session.id,
        reach: Arc::default(),
        now,
        may_add: true,
        live_policies: Arc::new(live_policies),
        kind,
    };
    let Ok(decision) =
        change.decide(Some(session.clone()), |_: &Session| Ok::<_, Infallible>(false));
    decision
}

fn decide(session: &Session, change: Reauthentication) -> ChangeDecision {
    decide_at(after(10), session, ChangeKind::Reauthenticate(Box::new(change)))
}

fn decide_update(session: &Session, update: Update) -> ChangeDecision {
    decide_at(after(10), session, ChangeKind::Update(Box::new(update)))
}

fn changed(decision: ChangeDecision) -> (Session, Option<BlacklistEntry>) {
    match decision {
        ChangeDecision::Change { session, entry } => (*session, entry),
        other => panic!("{other:?}"),
    }
}

fn refused(decision: ChangeDecision) -> ChangeRefusal {
    match decision {
        ChangeDecision::Refuse(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reauthentication_renews_the_lineage_and_the_idle_time_and_stops_earlier_tokens() {
    let session = session();
    let (next, entry) = changed(decide(&session, reauthentication()));
    let lineage =
        Lineage { generation: 1, secret: LineageSecret([7; 16]), key: RefreshKeyId([8; 8]) };
    assert_eq!(next.lineage, lineage);
    assert_eq!((next.refreshed_at, next.idle_expires_at), (after(10), after(610)));
    assert_eq!(next.expires_at, session.expires_at, "the policy does not extend it");
    assert_eq!(next.authentication_id(), AuthenticationId::new([6; 16]));
    assert_eq!((&*next.authentication.acr, next.authentication.at), ("mfa", after(5)));
    let entry = entry.unwrap();
    let first = AuthenticationId::first_of(session.id);
    assert_eq!(entry.revoked, Revoked::Token(first.token_id()));
    assert_eq!(entry.expires_at, BlacklistEntry::expiry_for(&session, after(10)));

    let (again, entry) = changed(decide(&next, reauthentication()));
    let former = next.authentication_id().token_id();
    assert_eq!(entry.unwrap().revoked, Revoked::Token(former));
    assert_eq!(again.revision, session.revision + 2);
}

#[test]
fn a_reauthentication_extends_the_lifetime_only_if_the_policy_says_so() {
    let mut session = session();
    session.policy.reauthentication_lifetime = Some(Duration::from_secs(1000));
    let (next, _) = changed(decide(&session, reauthentication()));
    assert_eq!(next.expires_at, after(1010));
    // A session that would live longer without it is not shortened.
    session.policy.reauthentication_lifetime = Some(Duration::from_secs(1));
    let (next, _) = changed(decide(&session, reauthentication()));
    assert_eq!(next.expires_at, session.expires_at);
}

#[test]
fn stricter_limits_reach_the_session_when_its_user_authenticates_again() {
    let mut session = session();
    session.policy.reauthentication_lifetime = Some(Duration::from_secs(1000));
    let mut strict = policy(60, 100, 500, 10);
    strict.session.name = session.policy.name.clone();
    (strict.apply_to_live, strict.reauthentication_extends) = (true, true);
    let decide_at = |now, session: &Session, policy: &Policy| {
        let kind = ChangeKind::Reauthenticate(Box::new(reauthentication()));
        decide_under(LivePolicies::among([policy]), now, session, kind)
    };
    let (next, entry) = changed(decide_at(after(99), &session, &strict));
    assert_eq!(next.policy.idle_timeout, Duration::from_secs(100));
    assert_eq!((next.idle_expires_at, next.expires_at), (after(199), after(599)));
    assert_eq!(next.extended_at, Some(after(99)));
    // The entry stops tokens that were issued under the longer limits.
    assert_eq!(entry.unwrap().expires_at, BlacklistEntry::expiry_for(&session, after(99)));
    // From now on, the lifetime counts from the reauthentication.
    strict.absolute_lifetime = Duration::from_secs(400);
    let (next, _) = changed(decide_at(after(150), &next, &strict));
    assert_eq!(next.expires_at, after(550));

    let ChangeDecision::End { session: ended, .. } = decide_at(after(100), &session, &strict)
    else {
        panic!("the session has expired by the stricter limits")
    };
    assert_eq!(ended.ended.unwrap().reason, EndReason::ExpiredIdle);
}

#[test]
fn an_authentication_must_be_neither_older_nor_weaker_than_that_of_the_session() {
    let mut session = session();
    session.authentication.at = after(5);
    let at = |at| decide(&session, Reauthentication { at, ..reauthentication() });
    changed(at(Some(after(5))));
    let tick = Duration::from_micros(1);
    assert_eq!(refused(at(Some(after(5).minus(tick)))), ChangeRefusal::Older);
    assert_eq!(changed(at(None)).0.authentication.at, after(10));
    let mut ahead = session.clone();
    ahead.authentication.at = after(11);
    let just_now = Reauthentication { at: None, ..reauthentication() };
    assert_eq!(changed(decide(&ahead, just_now)).0.authentication.at, after(11));

    let weaker = |present: &str, acr: &str| {
        let mut session = session.clone();
        session.authentication.acr = text(present);
        let change = Reauthentication { acr: text(acr), ..reauthentication() };
        let allowed = Reauthentication { allow_weaker: true, ..change.clone() };
        changed(decide(&session, allowed));
        match decide(&session, change) {
            ChangeDecision::Refuse(ChangeRefusal::Weaker(named)) => {
                assert_eq!(named, session.authentication.acr);
                true
            }
            other => {
                changed(other);
                false
            }
        }
    };
    for (present, acr, expected) in [
        ("", "", false),
        ("", "unknown", false),
        ("otp", "pwd", true),
        ("otp", "otp", false),
        ("otp", "mfa", false),
        ("otp", "", true),
        ("unknown", "", true),
        ("unknown", "pwd", false),
        ("mfa", "unknown", false),
    ] {
        assert_eq!(weaker(present, acr), expected, "{present:?} to {acr:?}");
    }
}

#[test]
fn a_presented_refresh_token_is_judged_as_at_a_refresh() {
    let mut session = session();
    session.lineage.generation = 3;
    session.refreshed_at = START;
    let presenting = |generation, secret, now| {
        let presented = Some(Presented { generation, secret });
        let change = Reauthentication { presented, ..reauthentication() };
        decide_at(now, &session, ChangeKind::Reauthenticate(Box::new(change)))
    };
    let secret = session.lineage.secret;
    changed(presenting(3, secret, after(11)));
    changed(presenting(2, secret, after(10)));
    let never_issued = ChangeRefusal::NeverIssued { current: 3 };
    assert_eq!(refused(presenting(4, secret, after(10))), never_issued);
    let other = LineageSecret([0; 16]);
    assert_eq!(refused(presenting(3, other, after(10))), ChangeRefusal::Unknown);
    match presenting(2, secret, after(11)) {
        ChangeDecision::End { session, entry } => {
            assert_eq!(session.ended.unwrap().reason, EndReason::RefreshTokenReused);
            assert_eq!(entry.revoked, Revoked::Session(session.id));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_repeated_request_keeps_the_session_until_it_is_refreshed() {
    let request =
        |byte| IdentifiedRequest { id: text("once"), fingerprint: RequestFingerprint([byte; 32]) };
    let asking = |byte| Reauthentication {
        // The token is that of the session before the reauthentication.
        presented: Some(Presented { generation: 1, secret: LineageSecret([9; 16]) }),
        request: Some(request(byte)),
        ..reauthentication()
    };
    let (mut next, _) = changed(decide(&session(), asking(1)));
    let kept = decide(&next, asking(1));
    let expected = ChangeDecision::Keep { session: Box::new(next.clone()), may_have_entry: true };
    assert_eq!(kept, expected);
    assert_eq!(refused(decide(&next, asking(2))), ChangeRefusal::RequestIdReused);
    next.lineage.generation = 2;
    assert_eq!(refused(decide(&next, asking(1))), ChangeRefusal::RefreshedSince);
}

#[test]
fn no_change_of_a_session_that_has_ended_or_is_covered_or_out_of_reach() {
    let update = || ChangeKind::Update(Box::default());
    let reauthenticate = || ChangeKind::Reauthenticate(Box::new(reauthentication()));
    for kind in [update, reauthenticate as fn() -> ChangeKind] {
        let session = session();
        let refusal = |now, session: &Session| refused(decide_at(now, session, kind()));
        assert_eq!(refusal(after(600), &session), ChangeRefusal::ExpiredIdle);
        let whole = Session { idle_expires_at: session.expires_at, ..session.clone() };
        assert_eq!(refusal(after(1000), &whole), ChangeRefusal::ExpiredAbsolute);
        let ended = Ended { at: START, reason: EndReason::SignedOut, note: Note::default() };
        let ended = session.clone().end(ended);
        assert_eq!(refusal(after(1), &ended), ChangeRefusal::Ended);

        let reach = Reach { tenants: Some(BTreeSet::new()), audiences: None };
        let (now, reach) = (after(10), Arc::new(reach));
        let change = SessionChange {
            session_id: session.id,
            reach,
            now,
            may_add: true,
            live_policies: Arc::default(),
            kind: kind(),
        };
        let is_covered = |_: &Session| Ok::<_, Infallible>(true);
        let Ok(decision) = change.decide(Some(session.clone()), is_covered);
        assert_eq!(refused(decision), ChangeRefusal::Unknown);
        // Also if the blacklist has no room for the entry that another change would need.
        let change = SessionChange { reach: Arc::default(), may_add: false, ..change };
        let Ok(decision) = change.decide(Some(session), is_covered);
        assert_eq!(refused(decision), ChangeRefusal::Ended);
    }
}

#[test]
fn an_update_changes_only_the_given_data_at_the_demanded_revision() {
    let session = session();
    let label = Update { label: Some(text("phone")), ..Update::default() };
    let (next, entry) = changed(decide_update(&session, label.clone()));
    let expected = Session {
        device: Device { label: text("phone"), ..session.device.clone() },
        revision: session.revision + 1,
        ..session.clone()
    };
    assert_eq!((&next, entry), (&expected, None));
    let kept = ChangeDecision::Keep { session: Box::new(next.clone()), may_have_entry: false };
    assert_eq!(decide_update(&next, label.clone()), kept);

    let at = |revision| Update { revision: Some(revision), ..label.clone() };
    changed(decide_update(&session, at(session.revision)));
    let other = refused(decide_update(&session, at(session.revision + 1)));
    assert_eq!(other, ChangeRefusal::OtherRevision);

    let scopes = |scopes: &[&str]| Update {
        scopes: Some(scopes.iter().map(|scope| text(scope)).collect()),
        ..Update::default()
    };
    assert_eq!(changed(decide_update(&session, scopes(&["read"]))).0.scopes.len(), 1);
    assert!(changed(decide_update(&session, scopes(&[]))).0.scopes.is_empty());
    let added = refused(decide_update(&session, scopes(&["read", "admin"])));
    assert_eq!(added, ChangeRefusal::ScopeNotGranted(text("admin")));
}

#[test]
fn a_full_blacklist_refuses_only_changes_that_need_an_entry() {
    let session = session();
    let decide = |kind| {
        let change = SessionChange {
            session_id: session.id,
            reach: Arc::default(),
            now: after(10),
            may_add: false,
            live_policies: Arc::default(),
            kind,
        };
        let Ok(decision) =
            change.decide(Some(session.clone()), |_: &Session| Ok::<_, Infallible>(false));
        decision
    };
    let stopping =
        Update { revoke_access_tokens: Some(AuthenticationId::new([6; 16])), ..Update::default() };
    for kind in [
        ChangeKind::Reauthenticate(Box::new(reauthentication())),
        ChangeKind::Update(Box::new(stopping)),
    ] {
        assert_eq!(refused(decide(kind)), ChangeRefusal::BlacklistFull);
    }
    let label = Update { label: Some(text("phone")), ..Update::default() };
    changed(decide(ChangeKind::Update(Box::new(label))));
}

#[test]
fn an_update_can_stop_all_access_tokens_and_leaves_the_refresh_token() {
    let session = session();
    let update =
        Update { revoke_access_tokens: Some(AuthenticationId::new([6; 16])), ..Update::default() };
    let (next, entry) = changed(decide_update(&session, update));
    assert_eq!(next.lineage, session.lineage);
    let first = AuthenticationId::first_of(session.id);
    assert_eq!(entry.unwrap().revoked, Revoked::Token(first.token_id()));
    assert_eq!(next.authentication_id(), AuthenticationId::new([6; 16]));
}
