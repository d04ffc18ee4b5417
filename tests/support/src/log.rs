//! Captures the log of the services in this process, and looks for secrets in it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Everything that the services of all tests in this process have logged.
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

/// Begins to capture the log, at a more detailed level than any configuration.
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

/// Returns everything that has been logged.
pub fn logged() -> String {
    String::from_utf8(LOGGED.lock().unwrap().clone()).unwrap()
}

/// Checks that a text holds no twenty consecutive characters of a secret. A secret that is shorter
/// must not be in the text as a whole.
pub fn hidden(seen: &str, name: &str, secret: &str) {
    let characters: Vec<char> = secret.chars().collect();
    assert!(characters.len() >= 16, "{name} is too short to be looked for");
    for piece in characters.windows(characters.len().min(20)) {
        let piece: String = piece.iter().collect();
        assert!(!seen.contains(&piece), "{name} was leaked: {piece}");
    }
}

/// The number of consecutive characters of a token that must not be seen.
const PIECE: usize = 20;

/// Tokens that must not get into a log.
#[derive(Default)]
pub struct Secrets(HashMap<Vec<u8>, String>);

impl Secrets {
    /// Adds a token and the name of its sender. Only pieces that begin at multiples of [`PIECE`]
    /// are kept, so every leak of base64url text, such as a part of a token, is found if it is at
    /// least twice as long as a piece.
    pub fn keep(&mut self, name: &str, token: &str) {
        let runs = token.as_bytes().split(|byte| !is_of_token(*byte));
        for piece in runs.flat_map(|run| run.chunks_exact(PIECE)) {
            self.0.entry(piece.to_vec()).or_insert_with(|| name.to_owned());
        }
    }

    /// Returns the names of the senders whose tokens are in a log.
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
