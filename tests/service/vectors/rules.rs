//! Feeds about rules for tokens, keys, and each kind of revocation.

use std::time::Duration;

use countersign::{
    domain::time::Timestamp,
    proto::{
        WatchRevocations, WatchRules,
        revoked_sessions::{Instant, Where},
        watch_response::Event,
    },
};
use countersign_test_support::server::{START, at};
use serde_json::{Value, json};

use super::feed::{Feed, Site, id, session_at, sessions, usual_rules};

pub fn feeds(site: &Site) -> Vec<Value> {
    vec![
        changed_rules(site),
        changed_keys(site),
        single_revocations(site),
        sessions_by_creation(site),
        sessions_by_authentication(site),
        overlapping_revocations(site),
    ]
}

fn changed_rules(site: &Site) -> Value {
    let now = START.seconds();
    let mut feed = Feed::leased("tokens obey the latest rules", site);
    feed.token("acme", &site.token(json!({ "aud": ["a", "b"] })));
    feed.token("default tenant", &site.token(json!({ "tenant": null, "aud": "c" })));
    feed.token("other issuer", &site.token(json!({ "iss": "https://other.test" })));
    feed.token("ahead", &site.token(json!({ "iat": now + 5 })));
    feed.token("nbf ahead", &site.token(json!({ "nbf": now + 6 })));
    let mut with = |change: fn(&mut WatchRules), answers: [(&str, &str); 5]| {
        let mut rules = usual_rules();
        change(&mut rules);
        // Other tenants come only with a snapshot.
        if rules.tenants.is_empty() {
            feed.hear(Event::Rules(rules));
        } else {
            feed.snapshot_with(site, rules);
            feed.renew();
            feed.lease();
        }
        for (token, answer) in answers {
            feed.check(token, answer);
        }
    };
    let answers = |answers: [&'static str; 5]| {
        let names = ["acme", "default tenant", "other issuer", "ahead", "nbf ahead"];
        let mut answers = answers.into_iter();
        names.map(|name| (name, answers.next().unwrap()))
    };
    with(|_| (), answers(["ACTIVE", "ACTIVE", "WRONG_ISSUER", "ACTIVE", "NOT_YET_VALID"]));
    with(
        |rules| rules.audiences = vec!["b".to_owned(), "d".to_owned()],
        answers(["ACTIVE", "WRONG_AUDIENCE", "WRONG_ISSUER", "WRONG_AUDIENCE", "NOT_YET_VALID"]),
    );
    with(
        |rules| rules.issuer = "https://other.test".to_owned(),
        answers(["WRONG_ISSUER", "WRONG_ISSUER", "ACTIVE", "WRONG_ISSUER", "WRONG_ISSUER"]),
    );
    with(
        |rules| rules.leeway = Some(prost_types::Duration { seconds: 4, nanos: 0 }),
        answers(["ACTIVE", "ACTIVE", "WRONG_ISSUER", "NOT_YET_VALID", "NOT_YET_VALID"]),
    );
    // The token that was issued ahead lives five seconds less.
    with(
        |rules| rules.max_lifetime = Some(prost_types::Duration { seconds: 599, nanos: 0 }),
        answers(["MALFORMED", "MALFORMED", "WRONG_ISSUER", "ACTIVE", "MALFORMED"]),
    );
    with(|_| (), answers(["ACTIVE", "ACTIVE", "WRONG_ISSUER", "ACTIVE", "NOT_YET_VALID"]));
    with(
        |rules| rules.tenants = vec!["globex".to_owned(), "acme".to_owned()],
        answers(["ACTIVE", "FOREIGN_TENANT", "WRONG_ISSUER", "ACTIVE", "NOT_YET_VALID"]),
    );
    feed.end()
}

fn changed_keys(site: &Site) -> Value {
    let mut feed = Feed::leased("tokens are verified by the latest keys", site);
    feed.token("a", &site.token(json!({})));
    feed.check("a", "ACTIVE");
    let own = site.kid();
    let with = |change: fn(&mut Value)| {
        let mut jwks = site.jwks.clone();
        let keys = jwks["keys"].as_array_mut().unwrap();
        change(keys.iter_mut().find(|key| key["kid"] == *own).unwrap());
        jwks
    };
    // The key of RFC 8037, appendix A.1.
    let other = with(|key| key["x"] = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into());
    let without_alg = with(|key| drop(key.as_object_mut().unwrap().remove("alg")));
    let symmetric = with(|key| {
        *key = json!({ "kty": "oct", "alg": "HS256", "kid": key["kid"], "k": "c2VjcmV0" });
    });
    let unknown = with(|key| {
        *key = json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": key["kid"], "pub": "AA" });
    });
    let none = json!({ "keys": [] });
    for (jwks, revoked, answer) in [
        (&none, &[][..], "UNKNOWN_KEY"),
        (&site.jwks, &[], "ACTIVE"),
        (&other, &[], "BAD_SIGNATURE"),
        (&without_alg, &[], "UNKNOWN_KEY"),
        (&symmetric, &[], "UNKNOWN_KEY"),
        (&unknown, &[], "UNKNOWN_KEY"),
        (&site.jwks, &["other"], "ACTIVE"),
        (&none, &[&*own], "REVOKED"),
        (&site.jwks, &[&*own], "REVOKED"),
        (&site.jwks, &[], "ACTIVE"),
    ] {
        feed.keys(jwks, revoked);
        feed.check("a", answer);
    }
    feed.end()
}

fn single_revocations(site: &Site) -> Value {
    let [session, other] = [session_at(START, 1), session_at(START, 2)];
    let [first, second] =
        ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"];
    let authentication = "00000000-0000-4000-8000-0000000000a1";
    let mut feed = Feed::leased("an id stops a session, a token, or an authentication", site);
    let with = |sid: &str, jti: &str, authentication: Value| {
        let claims =
            json!({ "sid": sid, "jti": jti, "countersign_authentication_id": authentication });
        site.token(claims)
    };
    feed.token("first", &with(&session, first, Value::Null));
    feed.token("second", &with(&session, second, Value::Null));
    feed.token("reauthenticated", &with(&session, second, authentication.into()));
    feed.token("other", &with(&other, "00000000-0000-4000-8000-00000000000c", Value::Null));
    let mut check = |revoked: &str, answers: [&str; 4]| {
        if !revoked.is_empty() {
            feed.apply(Event::Revocations(id(revoked)));
            feed.renew();
        }
        for (token, answer) in
            ["first", "second", "reauthenticated", "other"].into_iter().zip(answers)
        {
            feed.check(token, answer);
        }
    };
    check("", ["ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"]);
    check(first, ["REVOKED", "ACTIVE", "ACTIVE", "ACTIVE"]);
    // The session's first authentication has the session's id with another version.
    let implicit = session.replacen("-7000-", "-8000-", 1);
    check(&implicit, ["REVOKED", "REVOKED", "ACTIVE", "ACTIVE"]);
    check(&implicit, ["REVOKED", "REVOKED", "ACTIVE", "ACTIVE"]);
    check(authentication, ["REVOKED", "REVOKED", "REVOKED", "ACTIVE"]);
    check(&other, ["REVOKED", "REVOKED", "REVOKED", "REVOKED"]);
    feed.end()
}

/// The instant up to which sessions are revoked, in whole milliseconds.
fn up_to() -> Timestamp {
    Timestamp::from_micros(START.micros() / 1000 * 1000)
}

fn sessions_by_creation(site: &Site) -> Value {
    let mut feed = Feed::leased("sessions are revoked by the millisecond of their creation", site);
    let later = up_to().plus(Duration::from_millis(1));
    let with = |changes: Value| site.token(changes);
    let (old, new) = (session_at(up_to(), 1), session_at(later, 1));
    let tokens = [
        ("alice", with(json!({ "sid": old }))),
        ("alice later", with(json!({ "sid": new }))),
        ("bob", with(json!({ "sid": old, "sub": "bob", "client_id": "app" }))),
        ("default tenant", with(json!({ "sid": old, "tenant": null, "client_id": "" }))),
        ("globex", with(json!({ "sid": old, "tenant": "globex", "sub": "carol" }))),
        ("spared", with(json!({ "sid": session_at(up_to(), 2) }))),
    ];
    let names = tokens.each_ref().map(|(name, _)| *name);
    for (name, token) in &tokens {
        feed.token(name, token);
    }
    // Each group follows a snapshot without revocations.
    let mut check = |revoked: WatchRevocations, stopped: &[&str]| {
        feed.snapshot(site);
        feed.apply(Event::Revocations(revoked));
        feed.renew();
        feed.lease();
        for name in names {
            feed.check(name, if stopped.contains(&name) { "REVOKED" } else { "ACTIVE" });
        }
    };
    let of = |tenant: &str, subject: &str, client_id: &str| {
        sessions(tenant, up_to(), |it| {
            (it.subject, it.client_id) = (subject.to_owned(), client_id.to_owned());
        })
    };
    check(of("acme", "", ""), &["alice", "bob", "spared"]);
    check(of("", "", ""), &["default tenant"]);
    check(of("acme", "alice", ""), &["alice", "spared"]);
    check(of("acme", "carol", ""), &[]);
    check(of("acme", "", "web"), &["alice", "spared"]);
    let sparing = sessions("acme", up_to(), |it| it.spared_session_id = session_at(up_to(), 2));
    check(sparing, &["alice", "bob"]);
    let everywhere = |client_id: &str| {
        sessions("", up_to(), |it| {
            it.r#where = Some(Where::AllTenants(true));
            client_id.clone_into(&mut it.client_id);
        })
    };
    check(everywhere(""), &["alice", "bob", "default tenant", "globex", "spared"]);
    check(everywhere("web"), &["alice", "globex", "spared"]);
    feed.end()
}

fn sessions_by_authentication(site: &Site) -> Value {
    let mut feed = Feed::leased("sessions are revoked by the second of their authentication", site);
    let second = START.seconds() - 10;
    let later = session_at(START.plus(Duration::from_secs(100)), 1);
    feed.token("at", &site.token(json!({ "auth_time": second, "sid": later })));
    feed.token("after", &site.token(json!({ "auth_time": second + 1 })));
    feed.token("globex", &site.token(json!({ "auth_time": second, "tenant": "globex" })));
    let up_to = at(Timestamp::from_seconds(second));
    let revoked =
        sessions("acme", START, |it| it.instant = Some(Instant::AuthenticatedUpTo(up_to)));
    feed.apply(Event::Revocations(revoked));
    feed.renew();
    for (token, answer) in [("at", "REVOKED"), ("after", "ACTIVE"), ("globex", "ACTIVE")] {
        feed.check(token, answer);
    }
    feed.end()
}

fn overlapping_revocations(site: &Site) -> Value {
    let mut feed = Feed::leased("each revocation stays in force beside later ones", site);
    let instants = [0, 10, 20, 30].map(|after| up_to().plus(Duration::from_millis(after)));
    for (name, created_at) in ["0", "10", "20", "30"].into_iter().zip(instants) {
        feed.token(name, &site.token(json!({ "sid": session_at(created_at, 1) })));
    }
    let mut check = |revoked: WatchRevocations, answers: [&str; 4]| {
        feed.apply(Event::Revocations(revoked));
        feed.renew();
        for (name, answer) in ["0", "10", "20", "30"].into_iter().zip(answers) {
            feed.check(name, answer);
        }
    };
    let [zero, ten, twenty, _] = instants;
    check(sessions("acme", ten, |_| ()), ["REVOKED", "REVOKED", "ACTIVE", "ACTIVE"]);
    check(sessions("acme", zero, |_| ()), ["REVOKED", "REVOKED", "ACTIVE", "ACTIVE"]);
    // A session that is spared by one revocation is not spared by another.
    let sparing = |created_at| {
        let spared = session_at(created_at, 1);
        sessions("acme", twenty, move |it| it.spared_session_id = spared)
    };
    check(sparing(zero), ["REVOKED", "REVOKED", "REVOKED", "ACTIVE"]);
    check(sparing(twenty), ["REVOKED", "REVOKED", "REVOKED", "ACTIVE"]);
    let of_alice = sessions("acme", START.plus(Duration::from_secs(1)), |it| {
        it.subject = "alice".to_owned();
    });
    check(of_alice, ["REVOKED"; 4]);
    feed.end()
}
