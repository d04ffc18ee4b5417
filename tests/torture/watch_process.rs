//! A process that watches a replica, and verifies tokens for the test. `watcher/watcher.py`
//! describes the lines that the test writes to it and reads from it. A watcher in another language
//! only needs to speak them.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use countersign::proto::InactiveReason;
use countersign_test_support::{venv::with_protocol, workload::history::Answer};
use tokio::sync::mpsc;

/// The number of lines that are kept of the log.
const LOG: usize = 40;

/// Returns a command for a watcher of the replicas at these addresses.
pub type Program = Arc<dyn Fn(&[SocketAddr]) -> Command + Send + Sync>;

/// Returns the watcher in Python, which breaks this rule (`watcher/altered.py`).
pub fn python(rule: &'static str) -> Program {
    // The first call installs it, which takes long.
    let (python, folder) = python_watcher();
    Arc::new(move |addresses| {
        let mut command = Command::new(python);
        command.arg("altered.py").arg(rule).current_dir(folder);
        command.args(addresses.iter().map(SocketAddr::to_string));
        command
    })
}

/// Installs the libraries of the watcher in Python, and generates the code of its protocol. Returns
/// the interpreter, and the folder of the watcher.
fn python_watcher() -> &'static (String, String) {
    static WATCHER: OnceLock<(String, String)> = OnceLock::new();
    WATCHER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = root.join("tests/torture/watcher");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture-watcher");
        fs::create_dir_all(&folder).unwrap();
        for file in ["altered.py", "tokens.py", "watcher.py"] {
            fs::copy(sources.join(file), folder.join(file)).unwrap();
        }
        let packages = fs::read_to_string(sources.join("requirements.txt")).unwrap();
        // The watcher knows no other file of the protocol.
        let proto = "countersign/v1/revocation_service.proto";
        let python = with_protocol(&folder, &packages, &[proto]);
        (python.display().to_string(), folder.display().to_string())
    })
}

/// Equal answers for a token, one after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Streak {
    pub count: usize,
    /// The time at which the check began that promises most, by the system's monotonic clock. This
    /// is the last check if the token is active, and the first one otherwise.
    pub begin: Duration,
    /// The time at which this check ended.
    pub end: Duration,
    pub answer: Answer,
}

impl Streak {
    fn parse(text: &str) -> Self {
        let words: Vec<_> = text.split(' ').collect();
        let answer = match words[5..] {
            ["active"] => Answer::Active,
            ["inactive", reason] => {
                let reason = InactiveReason::from_str_name(&format!("INACTIVE_REASON_{reason}"));
                Answer::Inactive(reason.unwrap_or_else(|| panic!("{text}")))
            }
            ["unknown", reason] => Answer::NotNow(reason.to_owned()),
            _ => panic!("{text}"),
        };
        let [first_begin, first_end, last_begin, last_end] =
            [1, 2, 3, 4].map(|place| Duration::from_nanos(words[place].parse().unwrap()));
        let (begin, end) = match answer {
            Answer::Active => (last_begin, last_end),
            _ => (first_begin, first_end),
        };
        Self { count: words[0].parse().unwrap(), begin, end, answer }
    }
}

/// Parses the answer to a question: its number, and streaks.
fn parse(line: &str) -> (usize, Vec<Streak>) {
    let (number, streaks) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
    (number.parse().unwrap(), streaks.split("; ").map(Streak::parse).collect())
}

/// A watcher. Dropping this value kills it.
pub struct Process {
    child: Mutex<Child>,
    questions: Mutex<ChildStdin>,
    answers: tokio::sync::Mutex<mpsc::UnboundedReceiver<(usize, Vec<Streak>)>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts a watcher.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, answers) = mpsc::unbounded_channel();
        thread::spawn(move || {
            // The watcher in Rust is a test program, which writes lines of its own as well.
            let is_answer = |line: &String| line.starts_with(|first: char| first.is_ascii_digit());
            let lines = stdout.lines().map_while(Result::ok).filter(is_answer);
            lines.map(|line| parse(&line)).try_for_each(|answer| sender.send(answer))
        });
        let log = Arc::<Mutex<VecDeque<_>>>::default();
        let kept = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > LOG {
                    kept.pop_front();
                }
            }
        });
        Self {
            questions: Mutex::new(child.stdin.take().unwrap()),
            child: Mutex::new(child),
            answers: answers.into(),
            log,
        }
    }

    /// Sends a signal: `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let id = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Makes the wall clock of the process ahead by so many nanoseconds, and both of its clocks
    /// behind by this time.
    pub fn set_clocks(&self, ahead: i64, lost: Duration) {
        let line = format!("clock {ahead} {}\n", lost.as_nanos());
        let _ = self.questions.lock().unwrap().write_all(line.as_bytes());
    }

    /// Asks about tokens, and waits for the answers for each. Returns `None` if the process ends
    /// before.
    pub async fn ask(&self, tokens: &[String]) -> Option<Vec<Vec<Streak>>> {
        let mut answers = self.answers.lock().await;
        // The pipe is large enough for these lines, so a process that is stopped holds up nobody.
        let numbered = tokens.iter().enumerate();
        let lines: String = numbered.map(|(number, token)| format!("{number} {token}\n")).collect();
        self.questions.lock().unwrap().write_all(lines.as_bytes()).ok()?;
        let mut replies = vec![];
        for number in 0..tokens.len() {
            let (answered, streaks) = answers.recv().await?;
            assert_eq!(answered, number, "an answer to another question");
            replies.push(streaks);
        }
        Some(replies)
    }

    /// Returns the last lines that the process has logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_streak_has_the_times_of_the_check_that_promises_most() {
    let (number, streaks) = parse("7 3 10 11 20 22 active; 2 30 31 40 42 inactive REVOKED");
    let at = Duration::from_nanos;
    let active = Streak { count: 3, begin: at(20), end: at(22), answer: Answer::Active };
    let revoked = Answer::Inactive(InactiveReason::Revoked);
    let revoked = Streak { count: 2, begin: at(30), end: at(31), answer: revoked };
    assert_eq!((number, streaks), (7, vec![active, revoked]));
}
