//! The programs of the client libraries that tests start.

use std::{fs, path::Path, process::Command};

use serde_json::{Map, Value};

use crate::process::executable;

/// A program of a client library.
#[derive(Clone)]
pub struct ClientProgram {
    /// The language of the library.
    pub language: String,
    words: Vec<String>,
}

impl ClientProgram {
    /// Returns a command that starts the program, in the root of the repository.
    pub fn command(&self) -> Command {
        let (program, arguments) = self.words.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root());
        command
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap()
}

/// Reads the table at this path, a JSON object with the words of a command for each language. Words
/// with a slash are paths from the root of the repository, where `{target}` is the folder of the
/// service's binary. The checks of the libraries build the programs.
pub fn client_programs(table: &str) -> Vec<ClientProgram> {
    let table = fs::read_to_string(root().join(table)).unwrap();
    let table: Map<String, Value> = serde_json::from_str(&table).unwrap();
    let target = executable().parent().unwrap().display().to_string();
    let program = |(language, words): (String, Value)| {
        let word = |word: &Value| {
            let word = word.as_str().unwrap().replace("{target}", &target);
            if !word.contains('/') {
                return word;
            }
            let path = root().join(word);
            assert!(path.exists(), "{language} is not built: there is no {}", path.display());
            path.display().to_string()
        };
        let words = words.as_array().unwrap().iter().map(word).collect();
        ClientProgram { language, words }
    };
    table.into_iter().map(program).collect()
}
