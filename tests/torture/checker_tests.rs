//! Tests of the checker on hand-written histories. The checker must find each violation, and must
//! not report anything that is allowed.

use std::time::Duration;

use countersign::proto::InactiveReason;
use countersign_test_support::{
    workload::checker::{Rule, check},
    workload::history::{
        Answer, Ask, Call, Healed, History, Moment, Outage, Session, SessionNumber, SetBack,
        Target, TokenNumber,
    },
};

const S: SessionNumber = SessionNumber(0);
const T: TokenNumber = TokenNumber(0);
const REVOKED: Answer = Answer::Inactive(InactiveReason::Revoked);

fn at(millis: u64) -> Moment {
    Duration::from_millis(millis)
}

fn call(begin: u64, end: u64, ask: Ask, answer: Answer) -> Call {
    Call { replica: 0, begin: at(begin), end: at(end), ask, answer, count: 1 }
}

fn validate(begin: u64, end: u64, answer: Answer) -> Call {
    call(begin, end, Ask::Validate(T), answer)
}

fn revoke(begin: u64, end: u64, target: Target, answer: Answer) -> Call {
    call(begin, end, Ask::Revoke(target), answer)
}

fn refresh(begin: u64, end: u64, answer: Answer) -> Call {
    call(begin, end, Ask::Refresh { session: S, is_reuse: false, supersedes: None }, answer)
}

fn refused(reason: &str) -> Answer {
    Answer::Refused(reason.to_owned())
}

fn not_now() -> Answer {
    Answer::NotNow("NOT_CURRENT".to_owned())
}

fn client() -> Target {
    Target::Client { tenant: "acme".to_owned(), client_id: "alice".to_owned() }
}

fn subject() -> Target {
    Target::Subject { tenant: "acme".to_owned(), subject: "alice".to_owned() }
}

/// Returns a history of one session, which was known to exist at 2 ms, with two tokens and these
/// calls. No replica has to answer at the end of the run.
fn history(calls: impl Into<Vec<Call>>) -> History {
    let session = Session {
        tenant: "acme".to_owned(),
        subject: "alice".to_owned(),
        asked: at(1),
        known: at(2),
    };
    History {
        sessions: vec![session],
        tokens: vec![S, S],
        calls: calls.into(),
        healed: Some(Healed::default()),
        ..Default::default()
    }
}

fn rules(history: &History) -> Vec<Rule> {
    check(history).into_iter().map(|violation| violation.rule).collect()
}

#[track_caller]
fn fine(calls: impl Into<Vec<Call>>) {
    assert_eq!(check(&history(calls)), []);
}

#[track_caller]
fn broken(rule: Rule, calls: impl Into<Vec<Call>>) {
    assert_eq!(rules(&history(calls)), [rule]);
}

#[test]
fn an_active_answer_is_wrong_for_a_call_that_began_after_the_acknowledgement() {
    for target in
        [Target::Session(S), Target::Token(T), subject(), Target::Tenant("acme".to_owned())]
    {
        let revoked = revoke(10, 20, target, Answer::Done);
        broken(Rule::ActiveAfterRevoked, [revoked.clone(), validate(21, 30, Answer::Active)]);
        fine([revoked.clone(), validate(19, 30, Answer::Active), validate(21, 30, REVOKED)]);
        fine([revoked.clone(), validate(11, 12, REVOKED), validate(13, 14, Answer::Active)]);
        fine([revoked, validate(21, 30, not_now()), validate(21, 30, Answer::GivenUp)]);
    }
}

#[test]
fn a_violation_reports_the_revocation_and_the_contradicting_call() {
    let calls =
        [revoke(10, 20, Target::Session(S), Answer::Done), validate(21, 30, Answer::Active)];
    assert_eq!(check(&history(calls.clone()))[0].story[..2], calls.map(|call| call.to_string()));
}

#[test]
fn the_earliest_acknowledgement_counts() {
    let late = revoke(10, 50, Target::Session(S), Answer::Done);
    let early = revoke(11, 20, subject(), Answer::Done);
    broken(Rule::ActiveAfterRevoked, [late, early, validate(30, 40, Answer::Active)]);
}

#[test]
fn a_token_may_be_active_or_inactive_after_a_revocation_that_was_not_acknowledged() {
    for answer in [not_now(), Answer::GivenUp] {
        for target in
            [Target::Session(S), Target::Token(T), subject(), Target::Tenant("acme".to_owned())]
        {
            let revoked = revoke(10, 20, target, answer.clone());
            fine([revoked.clone(), validate(21, 30, Answer::Active), validate(31, 40, REVOKED)]);
            broken(Rule::InactiveWithoutRevocation, [revoked, validate(5, 9, REVOKED)]);
        }
    }
}

#[test]
fn an_inactive_answer_is_wrong_for_a_token_that_nobody_revoked() {
    broken(Rule::InactiveWithoutRevocation, [validate(5, 9, REVOKED)]);
    broken(
        Rule::InactiveWithoutRevocation,
        [validate(5, 9, Answer::Inactive(InactiveReason::Expired))],
    );
    broken(
        Rule::InactiveWithoutRevocation,
        [validate(5, 9, Answer::Inactive(InactiveReason::UnknownKey))],
    );
    let other = revoke(1, 2, Target::Token(TokenNumber(1)), Answer::Done);
    broken(Rule::InactiveWithoutRevocation, [other, validate(5, 9, REVOKED)]);
}

#[test]
fn an_expired_answer_is_right_if_tokens_expire_but_a_revoked_token_is_never_active_again() {
    let expired = validate(5, 9, Answer::Inactive(InactiveReason::Expired));
    let revoked = revoke(10, 20, Target::Token(T), Answer::Done);
    let tokens_expire = true;
    assert_eq!(rules(&History { tokens_expire, ..history([expired.clone()]) }), []);
    let calls = [revoked, expired, validate(21, 22, Answer::Active)];
    assert_eq!(rules(&History { tokens_expire, ..history(calls) }), [Rule::ActiveAfterRevoked]);
}

#[test]
fn a_revocation_of_a_subject_client_or_tenant_covers_the_sessions_known_before_it() {
    for target in [subject(), client(), Target::Tenant("acme".to_owned())] {
        let while_created = revoke(1, 20, target.clone(), Answer::Done);
        fine([while_created.clone(), validate(21, 30, Answer::Active)]);
        fine([while_created, validate(21, 30, REVOKED)]);
        let before = |begin, end, answer| {
            let mut history =
                history([revoke(begin, end, target.clone(), answer), validate(50, 60, REVOKED)]);
            history.sessions[0] =
                Session { asked: at(30), known: at(31), ..history.sessions[0].clone() };
            rules(&history)
        };
        assert_eq!(before(10, 20, Answer::Done), [Rule::InactiveWithoutRevocation]);
        assert_eq!(
            before(10, 20, Answer::GivenUp),
            [],
            "the revocation may have been carried out later"
        );
    }
    let others = [
        Target::Subject { tenant: "acme".to_owned(), subject: "bob".to_owned() },
        Target::Subject { tenant: "other".to_owned(), subject: "alice".to_owned() },
        Target::Client { tenant: "acme".to_owned(), client_id: "bob".to_owned() },
        Target::Client { tenant: "other".to_owned(), client_id: "alice".to_owned() },
        Target::Tenant("other".to_owned()),
    ];
    for other in others {
        fine([revoke(10, 20, other.clone(), Answer::Done), validate(21, 30, Answer::Active)]);
        broken(
            Rule::InactiveWithoutRevocation,
            [revoke(10, 20, other, Answer::Done), validate(21, 30, REVOKED)],
        );
    }
}

#[test]
fn a_revocation_of_a_tenant_may_cover_later_sessions_created_with_a_clock_behind() {
    let calls = [
        revoke(10, 20, Target::Tenant("acme".to_owned()), Answer::Done),
        validate(50, 60, REVOKED),
    ];
    let mut history = history(calls);
    history.sessions[0] = Session { asked: at(30), known: at(31), ..history.sessions[0].clone() };
    history.skew = at(11);
    assert_eq!(rules(&history), []);
    history.skew = at(9);
    assert_eq!(rules(&history), [Rule::InactiveWithoutRevocation]);
}

#[test]
fn a_session_can_be_refreshed_until_it_is_revoked_and_not_afterwards() {
    let revoked = revoke(10, 20, Target::Session(S), Answer::Done);
    fine([refresh(5, 9, Answer::Done), revoked.clone(), refresh(15, 25, Answer::Done)]);
    fine([revoked.clone(), refresh(15, 18, refused("SESSION_REVOKED"))]);
    broken(Rule::RefreshedAfterRevoked, [revoked.clone(), refresh(21, 25, Answer::Done)]);
    broken(Rule::RefusedWithoutCause, [revoked, refresh(5, 9, refused("SESSION_REVOKED"))]);
    for reason in ["REFRESH_TOKEN_INVALID", "REFRESH_TOKEN_REUSED", "SESSION_EXPIRED_IDLE"] {
        broken(Rule::RefusedWithoutCause, [refresh(5, 9, refused(reason))]);
    }
    let token_only = revoke(10, 20, Target::Token(T), Answer::Done);
    fine([token_only.clone(), refresh(21, 25, Answer::Done)]);
    broken(Rule::RefusedWithoutCause, [token_only, refresh(21, 25, refused("SESSION_REVOKED"))]);
}

#[test]
fn a_refusal_of_a_reuse_acknowledges_the_revocation_of_the_session() {
    let reuse = |answer| {
        call(10, 20, Ask::Refresh { session: S, is_reuse: true, supersedes: None }, answer)
    };
    let reused = || reuse(refused("REFRESH_TOKEN_REUSED"));
    broken(Rule::ActiveAfterRevoked, [reused(), validate(21, 30, Answer::Active)]);
    broken(Rule::RefreshedAfterRevoked, [reused(), refresh(21, 30, Answer::Done)]);
    fine([reused(), validate(21, 30, REVOKED), refresh(21, 30, refused("SESSION_REVOKED"))]);
    fine([reuse(Answer::GivenUp), validate(21, 30, Answer::Active), validate(31, 40, REVOKED)]);
}

#[test]
fn a_refresh_that_supersedes_a_token_is_a_revocation_of_that_token() {
    let superseding = |answer| {
        call(10, 20, Ask::Refresh { session: S, is_reuse: false, supersedes: Some(T) }, answer)
    };
    broken(Rule::ActiveAfterRevoked, [superseding(Answer::Done), validate(21, 30, Answer::Active)]);
    fine([superseding(Answer::Done), validate(21, 30, REVOKED), refresh(21, 30, Answer::Done)]);
    fine([superseding(not_now()), validate(21, 30, REVOKED), validate(31, 40, Answer::Active)]);
    let next = call(21, 30, Ask::Validate(TokenNumber(1)), REVOKED);
    broken(Rule::InactiveWithoutRevocation, [superseding(Answer::Done), next]);
}

#[test]
fn a_revocation_of_a_created_session_must_not_be_refused() {
    broken(
        Rule::RefusedWithoutCause,
        [revoke(10, 20, Target::Session(S), refused("SESSION_NOT_FOUND"))],
    );
}

#[test]
fn a_lost_connection_is_allowed_only_during_an_outage_of_its_replica() {
    let outage =
        |replica, from, to: Option<u64>| Outage { replica, from: at(from), to: to.map(at) };
    let with = |outages: &[Outage]| {
        rules(&History {
            outages: outages.to_vec(),
            ..history([validate(10, 20, Answer::Disconnected)])
        })
    };
    assert_eq!(with(&[]), [Rule::WrongError]);
    assert_eq!(
        with(&[outage(1, 5, Some(30)), outage(0, 1, Some(9)), outage(0, 21, None)]),
        [Rule::WrongError]
    );
    assert_eq!(with(&[outage(0, 15, Some(16))]), []);
    assert_eq!(with(&[outage(0, 5, None)]), []);
}

#[test]
fn an_error_that_no_caller_may_see_is_reported() {
    broken(Rule::WrongError, [call(5, 9, Ask::Create, Answer::Wrong("INTERNAL".to_owned()))]);
    fine([call(5, 9, Ask::Create, not_now()), call(5, 9, Ask::Create, Answer::GivenUp)]);
}

#[test]
fn a_process_that_ends_by_itself_is_reported() {
    assert_eq!(rules(&History { fallen: vec![1], ..history([]) }), [Rule::ProcessEnded]);
}

#[test]
fn after_the_last_fault_every_replica_must_revoke_and_answer_for_every_token() {
    let ask = |replica, ask, answer| Call { replica, ..call(50, 60, ask, answer) };
    let answered = |replica, token| ask(replica, Ask::Validate(TokenNumber(token)), Answer::Active);
    let revoked =
        |replica| ask(replica, Ask::Revoke(Target::Tenant("other".to_owned())), Answer::Done);
    let all =
        [answered(0, 0), answered(0, 1), revoked(0), answered(1, 0), answered(1, 1), revoked(1)];
    let with = |calls: &[Call], healed| rules(&History { healed, ..history(calls) });
    let healed = |millis, replicas: &[usize]| {
        Some(Healed { at: at(millis), replicas: replicas.to_vec(), tokens: 2, ..Healed::default() })
    };
    assert_eq!(with(&all, healed(50, &[0, 1])), []);
    assert_eq!(with(&all[3..], healed(50, &[1])), []);
    assert_eq!(with(&all[1..], healed(50, &[0, 1])), [Rule::Unanswered]);
    assert_eq!(with(&all[..5], healed(50, &[0, 1])), [Rule::Unanswered]);
    assert_eq!(with(&all, healed(51, &[1])), [Rule::Unanswered, Rule::Unanswered]);
    assert_eq!(with(&all, None), [Rule::Unanswered]);
    let unsure = [&all[1..], &[ask(0, Ask::Validate(T), not_now())]].concat();
    assert_eq!(with(&unsure, healed(50, &[0, 1])), [Rule::Unanswered]);
}

#[test]
fn after_the_last_fault_every_watcher_must_answer_for_every_token_and_need_not_revoke() {
    let answered = |token| Call {
        replica: 5,
        ..call(50, 60, Ask::Validate(TokenNumber(token)), Answer::Active)
    };
    let healed = Some(Healed { at: at(50), watchers: vec![5], tokens: 2, ..Healed::default() });
    let with = |calls: &[Call]| rules(&History { healed: healed.clone(), ..history(calls) });
    assert_eq!(with(&[answered(0), answered(1)]), []);
    assert_eq!(with(&[answered(0)]), [Rule::Unanswered]);
}

/// Returns a history in which the database was set back between 40 and 50 ms to its state at `kept`
/// ms, and everything works from 90 ms on.
fn set_back(kept: u64, calls: impl Into<Vec<Call>>) -> History {
    History {
        set_backs: vec![SetBack { kept: at(kept), from: at(40), to: at(50) }],
        healed: Some(Healed { at: at(90), ..Default::default() }),
        ..history(calls)
    }
}

#[test]
fn a_revocation_may_be_undone_only_between_a_set_back_and_the_end_of_the_run() {
    let revoked = || revoke(10, 20, Target::Session(S), Answer::Done);
    assert_eq!(
        check(&set_back(
            5,
            [revoked(), validate(51, 60, Answer::Active), refresh(61, 70, Answer::Done)]
        )),
        []
    );
    for (begin, end) in [(21, 39), (90, 95)] {
        let active = set_back(5, [revoked(), validate(begin, end, Answer::Active)]);
        assert_eq!(rules(&active), [Rule::ActiveAfterRevoked]);
    }
}

#[test]
fn a_revocation_by_session_or_subject_after_a_set_back_holds_only_for_a_kept_session() {
    for (kept, target, is_promised) in [
        (5, Target::Session(S), true),
        (5, subject(), true),
        (1, Target::Session(S), false),
        (1, subject(), false),
        (1, Target::Token(T), true),
        (1, Target::Tenant("acme".to_owned()), true),
    ] {
        let calls =
            [revoke(51, 60, target.clone(), Answer::Done), validate(61, 70, Answer::Active)];
        let expected = if is_promised { vec![Rule::ActiveAfterRevoked] } else { vec![] };
        assert_eq!(rules(&set_back(kept, calls)), expected, "{target:?}");
    }
}

#[test]
fn a_session_may_be_unknown_after_a_set_back() {
    let calls = |after: u64| {
        [
            refresh(after, after + 1, refused("REFRESH_TOKEN_INVALID")),
            revoke(after + 2, after + 3, Target::Session(S), refused("SESSION_NOT_FOUND")),
        ]
    };
    assert_eq!(check(&set_back(1, calls(51))), []);
    assert_eq!(rules(&set_back(1, calls(10))), [Rule::RefusedWithoutCause; 2]);
}
