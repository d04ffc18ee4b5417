use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use super::*;

const START: Timestamp = Timestamp::from_seconds(1_700_000_000);

fn session_at(millis: u64) -> SessionId {
    SessionId::new(START.plus(Duration::from_millis(millis)), [0xff; 10])
}

fn up_to(micros: u64, spared: Option<u64>) -> CutOff {
    CutOff { up_to: START.plus(Duration::from_micros(micros)), spared: spared.map(session_at) }
}

/// A session that the later cut-off spares is still covered if the earlier one covers it.
#[test]
fn the_union_of_two_cut_offs_covers_exactly_what_either_of_them_covers() {
    let spared = [None, Some(1), Some(3), Some(5), Some(9)];
    let cut_offs = || {
        [0, 2_000, 4_000, 6_000]
            .into_iter()
            .flat_map(|micros| spared.map(|spared| up_to(micros, spared)))
    };
    for one in cut_offs() {
        for other in cut_offs() {
            for session in (0..10).map(session_at) {
                let either = one.covers_created(session) || other.covers_created(session);
                assert_eq!(
                    one.union(other).covers_created(session),
                    either,
                    "{one:?} {other:?} {session:?}"
                );
            }
            assert_eq!(
                one.union(other).union(other),
                one.union(other),
                "applying it twice changes nothing"
            );
        }
    }
}

fn session() -> Coverable<'static> {
    Coverable {
        id: session_at(0),
        tenant: "acme",
        subject: "alice",
        client_id: "web",
        authenticated_at: START,
    }
}

fn keys() -> Vec<CutOffKey> {
    let tenant = || Tenant::try_from("acme".to_owned()).unwrap();
    let client_id = || ClientId::try_from("web".to_owned()).unwrap();
    let wide = [
        Scope::Everywhere,
        Scope::Tenant(tenant()),
        Scope::Client(tenant(), client_id()),
        Scope::ClientEverywhere(client_id()),
    ];
    let subject = Scope::Subject(tenant(), Subject::try_from("alice".to_owned()).unwrap());
    assert_eq!(CutOffKey::authenticated(subject.clone()), Err(NoSuchKind));
    let by_authentication =
        wide.clone().into_iter().map(|scope| CutOffKey::authenticated(scope).unwrap());
    wide.into_iter().chain([subject]).map(CutOffKey::created).chain(by_authentication).collect()
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn every_kind_has_a_key_that_is_read_back_and_that_a_session_finds() {
    let keys = keys();
    assert_eq!(keys.len(), CutOffKind::ALL.len());
    for (index, kind) in CutOffKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index, "counters are found by the discriminant");
        assert_eq!(CutOffKind::from_name(kind.as_str()), Some(kind));
        let key = keys.iter().find(|key| key.kind() == kind).unwrap();
        assert_eq!(key.basis(), kind.basis());
        assert_eq!(CutOffKey::read(kind, &key.borrowed().text()).as_ref(), Ok(key));
        assert_eq!(session().key(kind), key.borrowed());
        assert_eq!(hash_of(key), hash_of(&key.borrowed()));
    }
}

/// An access token has whole seconds, and the session's row has fractions of a second. Both must be
/// covered alike.
#[test]
fn a_cut_off_by_authentication_covers_a_session_exactly_if_it_covers_its_tokens() {
    let before = START.plus(Duration::from_secs(10));
    let cut_off = CutOff::up_to(before.minus(Duration::from_micros(1)));
    for (micros, is_covered) in
        [(0, true), (9_000_000, true), (9_999_999, true), (10_000_000, false), (10_000_001, false)]
    {
        let at = START.plus(Duration::from_micros(micros));
        for authenticated_at in [at, at.floor_to_second()] {
            let session = Coverable { authenticated_at, ..session() };
            let covers = cut_off.covers(CutOffKind::AuthenticatedTenant, &session);
            assert_eq!(covers, is_covered, "{micros}");
        }
    }
}
