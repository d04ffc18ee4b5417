//! Feeds about leases, cursors, resets, and messages that a watcher cannot follow.

use std::time::Duration;

use countersign::proto::{
    RevokedId, RevokedSessions, WatchKeys, WatchLease, WatchReset, WatchResponse, WatchRevocations,
    WatchRules, watch_response::Event,
};
use countersign_test_support::server::{START, at};
use prost::Message;
use serde_json::{Value, json};

use super::feed::{Feed, MARGIN, Site, VALID_FOR, expiry, id, session_at, sessions, usual_rules};

const MILLISECOND: Duration = Duration::from_millis(1);
const SESSION: u8 = 1;

fn sid() -> String {
    session_at(START, SESSION)
}

/// Returns a feed that has a lease and the token `a`.
fn leased(name: &str, site: &Site) -> Feed {
    let mut feed = Feed::leased(name, site);
    feed.token("a", &site.token(json!({ "sid": sid() })));
    feed.check("a", "ACTIVE");
    feed
}

pub fn feeds(site: &Site) -> Vec<Value> {
    let mut feeds = vec![
        from_before_its_renewal(site),
        moved_wall_clock(site),
        reset(site),
        resumed(site),
        ended_within_a_snapshot(site),
        expired_up_to(site),
        other_time_of_the_service(site),
        earlier_renewal(site),
    ];
    feeds.extend(incomplete(site));
    feeds.extend(not_understood(site));
    feeds
}

fn from_before_its_renewal(site: &Site) -> Value {
    let mut feed = Feed::new("a lease is valid from the instant before its renewal was sent");
    feed.token("a", &site.token(json!({})));
    feed.check("a", "UNKNOWN");
    feed.open();
    feed.snapshot(site);
    feed.check("a", "UNKNOWN");
    feed.renew();
    feed.advance(VALID_FOR - Duration::from_millis(100));
    feed.lease();
    feed.check("a", "ACTIVE");
    feed.advance(Duration::from_millis(99));
    feed.check("a", "ACTIVE");
    feed.advance(MILLISECOND);
    feed.check("a", "UNKNOWN");
    feed.renew();
    feed.lease();
    feed.check("a", "ACTIVE");
    feed.end()
}

fn moved_wall_clock(site: &Site) -> Value {
    let mut feed =
        leased("a lease is void while the wall clock is off by more than the margin", site);
    let margin = i64::try_from(MARGIN.as_millis()).unwrap();
    for direction in [1, -1] {
        feed.set_wall_clock(direction * margin);
        feed.check("a", "ACTIVE");
        feed.set_wall_clock(direction);
        feed.check("a", "UNKNOWN");
        feed.renew();
        feed.lease();
        feed.check("a", "ACTIVE");
    }
    feed.end()
}

fn reset(site: &Site) -> Value {
    let mut feed = leased("a reset ends the lease, and drops all revocations", site);
    feed.token("b", &site.token(json!({ "sid": session_at(START, 2) })));
    feed.apply(Event::Revocations(id(&sid())));
    feed.renew();
    feed.check("a", "REVOKED");
    feed.hear(Event::Reset(WatchReset {}));
    feed.check("b", "UNKNOWN");
    feed.hear(Event::Rules(usual_rules()));
    feed.keys(&site.jwks, &[]);
    feed.hear(Event::Revocations(id(&session_at(START, 2))));
    feed.apply(Event::Revocations(WatchRevocations::default()));
    feed.check("b", "UNKNOWN");
    feed.renew();
    feed.lease();
    feed.check("b", "REVOKED");
    feed.check("a", "ACTIVE");
    feed.end()
}

fn resumed(site: &Site) -> Value {
    let mut feed =
        leased("the next stream begins with the last cursor, and the lease goes on", site);
    feed.apply(Event::Revocations(WatchRevocations::default()));
    feed.renew();
    feed.open();
    feed.check("a", "ACTIVE");
    feed.hear(Event::Rules(usual_rules()));
    feed.keys(&site.jwks, &[]);
    feed.apply(Event::Revocations(id(&sid())));
    feed.check("a", "REVOKED");
    feed.renew();
    feed.advance(VALID_FOR);
    feed.check("a", "UNKNOWN");
    feed.renew();
    feed.lease();
    feed.check("a", "REVOKED");
    feed.end()
}

fn ended_within_a_snapshot(site: &Site) -> Value {
    let mut feed = leased("a stream that ends within a snapshot leaves no cursor", site);
    feed.hear(Event::Reset(WatchReset {}));
    feed.hear(Event::Rules(usual_rules()));
    feed.hear(Event::Revocations(id(&sid())));
    feed.open();
    feed.check("a", "UNKNOWN");
    feed.snapshot(site);
    feed.renew();
    feed.lease();
    feed.check("a", "ACTIVE");
    feed.end()
}

fn expired_up_to(site: &Site) -> Value {
    let mut feed = leased("a token that the service calls expired stays so", site);
    feed.apply(Event::Revocations(id(&sid())));
    let until = |feed: &mut Feed, seconds: i64| {
        feed.renew();
        let instant = expiry().micros() / 1_000_000 + seconds;
        let expired_up_to = Some(prost_types::Timestamp { seconds: instant, nanos: 0 });
        feed.hear(Event::Lease(WatchLease { expired_up_to, ..feed.next_lease() }));
    };
    until(&mut feed, -1);
    feed.check("a", "REVOKED");
    until(&mut feed, 0);
    feed.check("a", "EXPIRED");
    until(&mut feed, -60);
    feed.check("a", "EXPIRED");
    feed.snapshot(site);
    feed.renew();
    feed.lease();
    feed.check("a", "EXPIRED");
    feed.end()
}

fn other_time_of_the_service(site: &Site) -> Value {
    let mut feed = Feed::new("no lease is taken if the clocks differ by more than five seconds");
    feed.token("a", &site.token(json!({})));
    feed.open();
    feed.snapshot(site);
    let mut of = |milliseconds: i64, answer: &str| {
        feed.renew();
        let now = START.micros() / 1000 + milliseconds;
        let nanos = i32::try_from(now % 1000 * 1_000_000).unwrap();
        let now = Some(prost_types::Timestamp { seconds: now / 1000, nanos });
        feed.hear(Event::Lease(WatchLease { now, ..feed.next_lease() }));
        feed.check("a", answer);
    };
    for direction in [1, -1] {
        of(direction * 5001, "UNKNOWN");
    }
    of(5000, "ACTIVE");
    feed.advance(VALID_FOR);
    feed.check("a", "UNKNOWN");
    feed.end()
}

fn earlier_renewal(site: &Site) -> Value {
    let mut feed = leased("a lease counts from the renewal that it names", site);
    feed.advance(Duration::from_secs(1));
    feed.renew();
    let lease = feed.next_lease();
    feed.advance(Duration::from_secs(1));
    feed.renew();
    feed.hear(Event::Lease(lease));
    feed.advance(VALID_FOR - Duration::from_millis(1001));
    feed.check("a", "ACTIVE");
    feed.advance(MILLISECOND);
    feed.check("a", "UNKNOWN");
    feed.lease();
    feed.check("a", "ACTIVE");
    feed.end()
}

/// Leases that the service never sends.
fn incomplete(site: &Site) -> Vec<Value> {
    let lease = |feed: &Feed, number| {
        WatchResponse {
            cursor: vec![],
            event: Some(Event::Lease(WatchLease { number, ..feed.next_lease() })),
        }
        .encode_to_vec()
    };
    let missing = ["rules", "keys", "the end of the snapshot"].map(|missing| {
        let mut feed = Feed::new(&format!("a lease without {missing} is refused"));
        feed.token("a", &site.token(json!({})));
        feed.open();
        feed.hear(Event::Reset(WatchReset {}));
        if missing != "rules" {
            feed.hear(Event::Rules(usual_rules()));
        }
        if missing != "keys" {
            feed.keys(&site.jwks, &[]);
        }
        if missing != "the end of the snapshot" {
            feed.apply(Event::Revocations(WatchRevocations::default()));
        }
        feed.renew();
        let message = lease(&feed, 1);
        feed.refuse("a lease that comes too early", &message);
        feed.check("a", "UNKNOWN");
        feed.end()
    });
    let not_asked = [0, 2, u64::MAX].map(|number| {
        let mut feed = Feed::new(&format!("the lease {number} is refused: only 1 was asked for"));
        feed.token("a", &site.token(json!({})));
        feed.open();
        feed.snapshot(site);
        feed.renew();
        let message = lease(&feed, number);
        feed.refuse("a lease that was not asked for", &message);
        feed.check("a", "UNKNOWN");
        feed.end()
    });
    let resumed = ["rules", "keys"].map(|missing| {
        let name = format!("a lease of a resumed stream without {missing} is refused");
        let mut feed = leased(&name, site);
        feed.open();
        match missing {
            "rules" => feed.keys(&site.jwks, &[]),
            _ => feed.hear(Event::Rules(usual_rules())),
        }
        feed.renew();
        let message = lease(&feed, 1);
        feed.refuse("a lease that comes too early", &message);
        feed.check("a", "UNKNOWN");
        feed.end()
    });
    missing.into_iter().chain(not_asked).chain(resumed).collect()
}

/// Messages of a later version, and malformed ones.
fn not_understood(site: &Site) -> Vec<Value> {
    let event = |event| WatchResponse { cursor: vec![9], event: Some(event) }.encode_to_vec();
    let revocations = |ids, sessions| {
        let revocations = WatchRevocations { ids, sessions, ..WatchRevocations::default() };
        event(Event::Revocations(revocations))
    };
    let of_sessions = |change: fn(&mut RevokedSessions)| {
        revocations(vec![], sessions("acme", START, change).sessions)
    };
    let expires_at = Some(at(expiry()));
    // A field of an unknown number, which holds one byte.
    let unknown_event = [WatchResponse::default().encode_to_vec(), vec![0x7a, 1, 0]].concat();
    let messages = [
        ("an event of an unknown kind", unknown_event),
        (
            "an event of an unknown kind with a cursor",
            [vec![0x0a, 1, 9], vec![0x7a, 1, 0]].concat(),
        ),
        ("an id of 15 bytes", revocations(vec![RevokedId { id: vec![1; 15], expires_at }], vec![])),
        (
            "an id without an expiry",
            revocations(vec![RevokedId { id: vec![1; 16], expires_at: None }], vec![]),
        ),
        ("sessions of an unknown place", of_sessions(|it| it.r#where = None)),
        ("sessions of an unknown time", of_sessions(|it| it.instant = None)),
        ("sessions without an expiry", of_sessions(|it| it.expires_at = None)),
        (
            "sessions that spare something unknown",
            of_sessions(|it| it.spared_session_id = "x".to_owned()),
        ),
        (
            "keys that are no JWK set",
            event(Event::Keys(WatchKeys { jwks: "[]".to_owned(), revoked: vec![] })),
        ),
        (
            "other tenants without a reset",
            event(Event::Rules(WatchRules { tenants: vec!["acme".to_owned()], ..usual_rules() })),
        ),
        (
            "rules without lifetimes",
            event(Event::Rules(WatchRules { max_lifetime: None, ..usual_rules() })),
        ),
    ];
    let feed = |(what, message): (&str, Vec<u8>)| {
        let mut feed = leased(&format!("{what}: the watcher ends its lease and the stream"), site);
        feed.refuse(what, &message);
        feed.check("a", "UNKNOWN");
        feed.end()
    };
    messages.into_iter().map(feed).collect()
}
