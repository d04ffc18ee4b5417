//! What the services of this process log, and whether secrets are in it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Whatever the service of any test in this process has logged.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(vec![]);

struct Log(MutexGuard<'static, Vec<u8>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Writer;

impl MakeWriter<'_> for Writer {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        Log(LOGGED.lock().unwrap())
    }
}

/// Logs more than any configuration asks for.
pub fn capture() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let filter = EnvFilter::new("info,countersign=trace");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(Writer)
            .init();
    });
}

pub fn logged() -> String {
    String::from_utf8(LOGGED.lock().unwrap().clone()).unwrap()
}

/// No twenty characters of a secret stand in what was seen; of a short one, not the whole of it.
#[allow(dead_code)] // Not every binary of tests looks for single secrets.
pub fn hidden(seen: &str, name: &str, secret: &str) {
    let characters: Vec<char> = secret.chars().collect();
    assert!(characters.len() >= 16, "{name} is too short to be looked for");
    for piece in characters.windows(characters.len().min(20)) {
        let piece: String = piece.iter().collect();
        assert!(!seen.contains(&piece), "{name} has got out: {piece}");
    }
}

/// How much of a token must not be seen together.
const PIECE: usize = 20;

/// Tokens of which none may get into a log.
#[derive(Default)]
pub struct Secrets(HashMap<Vec<u8>, String>);

impl Secrets {
    /// One more, by the name of who sends it. Found is what is base64url, as every part of a token
    /// is, and at least twice as long as a piece: those that begin at each multiple of its length
    /// are looked for.
    pub fn keep(&mut self, name: &str, token: &str) {
        let runs = token.as_bytes().split(|byte| !is_of_token(*byte));
        for piece in runs.flat_map(|run| run.chunks_exact(PIECE)) {
            self.0.entry(piece.to_vec()).or_insert_with(|| name.to_owned());
        }
    }

    /// Whose tokens a log shows.
    pub fn found_in(&self, log: &str) -> Vec<&str> {
        let runs = log.as_bytes().split(|byte| !is_of_token(*byte));
        let mut found: Vec<_> = runs
            .flat_map(|run| run.windows(PIECE))
            .filter_map(|piece| self.0.get(piece))
            .map(String::as_str)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}
