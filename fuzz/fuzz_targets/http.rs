//! Fuzzes the HTTP server. Whatever bytes a client sends, the connection must end, each answer must
//! come from the routes or the parser, and no answer may contain a secret. The pieces in which the
//! bytes arrive may only affect how soon the connection ends.
//!
//! The input is the bytes that a client sends.
#![no_main]

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use axum::Router;
use countersign::{
    app::settings::settings,
    authority::{Authority, Dependencies, Settings, audit::Audit, ready::Ready},
    clock::{SettableClock, SharedClock},
    config::Config,
    domain::{
        key::{KeyAlgorithm, RingVersion},
        revocation::FeedPosition,
        time::Timestamp,
    },
    http::{
        check_head,
        health::{Phase, Readiness},
    },
    keys::{
        generate,
        keeper::Keeper,
        ring::KeyRing,
        sealing::{MasterKey, MasterKeys},
    },
    revocation::replica::Replica,
    rng::{Rng, RngFailed},
    store::{ring::SealedRing, sqlite::SqliteStore},
};
use countersign_fuzz::routes;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex, split},
    runtime::{Builder, Runtime},
    time::timeout,
};

/// The clock is paused, so it jumps to the next timer when there is nothing to do but wait.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
});
static SERVICE: LazyLock<Service> = LazyLock::new(Service::ready);

/// These limits are those of the server.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The time within which every connection has ended.
const LONG: Duration = Duration::from_secs(3600);

fuzz_target!(|data: &[u8]| {
    let answers = |piece| RUNTIME.block_on(converse(SERVICE.routes(), data, piece));
    let (whole, pieces) = (answers(data.len().max(1)), answers(1 + data.len() % 7));
    check(&whole);
    check(&pieces);
    let (whole, pieces) = (without_process(&whole), without_process(&pieces));
    // An unread body is only read to its end if it has already arrived. Otherwise the connection
    // ends, so the answers of one run may be the beginning of the other's.
    assert!(whole.starts_with(&pieces) || pieces.starts_with(&whole), "{whole:?}\n{pieces:?}");
});

/// Leaves out the metrics of this process, which differ from one scrape to the next, and the
/// lengths of answers.
fn without_process(answers: &str) -> String {
    let lines = answers
        .lines()
        .filter(|line| !line.starts_with("process_") && !line.starts_with("content-length"));
    lines.collect::<Vec<_>>().join("\n")
}

fn check(answers: &str) {
    assert!(answers.is_empty() || answers.starts_with("HTTP/1."), "{answers:?}");
    for (at, _) in answers.match_indices("HTTP/1.") {
        let status = answers[at..].get(8..12).unwrap_or_default();
        let is_known = [
            " 200", " 304", " 400", " 401", " 403", " 404", " 405", " 414", " 431", " 501", " 503",
        ]
        .contains(&status);
        assert!(is_known, "{answers:?}");
    }
    assert!(!answers.contains("\"d\":"), "{answers:?}");
}

/// Sends the bytes in pieces of this length, and returns the answers without their dates.
async fn converse(routes: Router, data: &[u8], piece: usize) -> String {
    let (client, server) = duplex(64 << 10);
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|request| {
        let refused = check_head(&request).err().map(|refusal| refusal.answer());
        let answering = refused.is_none().then(|| routes.call(request));
        async move {
            match (refused, answering) {
                (None, Some(answering)) => answering.await,
                (refused, _) => Ok(refused.unwrap_or_default()),
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(server), service);
    let (mut reader, mut writer) = split(client);
    let write = async {
        for piece in data.chunks(piece) {
            // The server may have ended the connection.
            if writer.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut answers = vec![];
    let all = async { tokio::join!(connection, write, reader.read_to_end(&mut answers)) };
    let (_, (), read) = timeout(LONG, all).await.expect("the connection ends");
    read.expect("what was answered");
    let answers = String::from_utf8(answers).expect("text");
    answers
        .split("\r\n")
        .filter(|line| !line.starts_with("date: "))
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// A service that is ready, with the same keys in each run. It has no lease, so it cannot validate
/// tokens.
struct Service {
    config: Config,
    clock: Arc<SettableClock>,
    replica: Arc<Replica>,
    readiness: Readiness,
    ready: Ready,
}

impl Service {
    /// Builds the routes of the service, with all counters at zero: an answer must not depend on
    /// earlier requests.
    fn routes(&self) -> Router {
        let Self { config, clock, replica, readiness, ready } = self;
        routes(config, clock.clone(), replica.clone(), readiness.clone(), ready.clone())
    }

    fn ready() -> Self {
        let config = Config::from_toml("issuer = 'https://issuer/path'").unwrap();
        let clock = Arc::new(SettableClock::at(Timestamp::from_seconds(1_800_000_000)));
        let rng = Arc::new(Counting::default());
        // The authority needs a store, but no route uses the store. The store's runtime is never
        // driven again, and the store's file is deleted.
        let folder = tempfile::tempdir().unwrap();
        let of_the_store =
            Box::leak(Box::new(Builder::new_current_thread().enable_all().build().unwrap()));
        let store = Arc::new(
            of_the_store
                .block_on(SqliteStore::open(&folder.path().join("countersign.db")))
                .unwrap(),
        );

        let master = MasterKey::new([7; 32]).unwrap();
        let keys = generate::first(
            &master,
            &*rng,
            KeyAlgorithm::EdDsa,
            Timestamp::from_seconds(1_700_000_000),
        )
        .unwrap();
        let sealed = SealedRing {
            version: RingVersion(1),
            keys,
            damaged: vec![],
            position: FeedPosition::default(),
        };
        let masters = MasterKeys { current: master, additional: None };
        let ring = KeyRing::open(&masters, sealed).unwrap();
        let keeper = Arc::new(Keeper::new(masters, ring));
        let replica = Arc::new(Replica::new(
            Arc::new(SharedClock::new(clock.clone())),
            config.lease,
            config.watch,
        ));
        let settings = Settings { token_cache_bytes: 0, ..settings(&config) };
        let audit = Audit::of_log(clock.clone(), [0; 6]);
        let ready = Ready::default();
        let dependencies = Dependencies {
            store,
            keeper,
            replica: replica.clone(),
            clock: clock.clone(),
            rng,
            audit,
        };
        ready.set(Arc::new(Authority::new(dependencies, settings)));
        let readiness = Readiness::new();
        readiness.set(Phase::Serving);
        Self { config, clock, replica, readiness, ready }
    }
}

/// A generator that yields consecutive bytes instead of random ones, so that a run can be repeated.
#[derive(Default)]
struct Counting(AtomicU8);

impl Rng for Counting {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngFailed> {
        buffer.iter_mut().for_each(|byte| *byte = self.0.fetch_add(1, Ordering::Relaxed));
        Ok(())
    }
}
