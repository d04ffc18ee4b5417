//! A throw-away PostgreSQL server for the tests of one process, with a new database for each test.

use std::{
    env, fs,
    io::Write,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use countersign::store::postgres::connect::{Options, Password};
use tokio_postgres::NoTls;

/// The script that runs the server beside the tests. It runs until its standard input is closed,
/// which happens when this process ends in any way. It then stops the server, and deletes the
/// folder.
const KEEPER: &str = r#"
set -u
bin=$1 dir=$2 primary=$3
shift 3
serve() {
    "$bin/postgres" -D "$dir/data" -c unix_socket_directories="$dir" -c listen_addresses= \
        -c max_connections=1000 -c lc_messages=C "$@" >>"$dir/log" 2>&1 &
    server=$!
}
stop() {
    kill -CONT "$server" $(cat "/proc/$server/task/$server/children") 2>>"$dir/log"
    while kill -0 "$server" 2>/dev/null; do
        "$bin/pg_ctl" -D "$dir/data" -m immediate stop >>"$dir/log" 2>&1 || sleep 0.1
    done
}
if [ "$primary" ]; then
    "$bin/pg_basebackup" -h "$primary" -U postgres -D "$dir/data" -R --checkpoint=fast --no-sync \
        >"$dir/log" 2>&1
else
    "$bin/initdb" -D "$dir/data" -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync \
        >"$dir/log" 2>&1
fi
serve "$@"
while read -r order; do
    case $order in
    stop) stop ;;
    start) serve "$@" ;;
    # The copy gets its name only when it is complete.
    copy)
        rm -rf "$dir/copy" "$dir/copying"
        "$bin/pg_basebackup" -h "$dir" -U postgres -D "$dir/copying" --checkpoint=fast --no-sync \
            >>"$dir/log" 2>&1 &&
            mv "$dir/copying" "$dir/copy"
        ;;
    put_back) rm -rf "$dir/data" && mv "$dir/copy" "$dir/data" ;;
    promote) "$bin/pg_ctl" -D "$dir/data" -w promote >>"$dir/log" 2>&1 && touch "$dir/promoted" ;;
    esac
done
stop
rm -rf "$dir"
"#;

/// A locale whose messages are not English. It is for a test that the code does not depend on the
/// words of messages.
pub const GERMAN: &str = "de_DE.UTF-8";

/// The variable that names the locale of all servers' messages. `scripts/test` sets it to run the
/// tests of the store once more.
const LOCALE: &str = "COUNTERSIGN_TEST_LC_MESSAGES";

/// The longest time that the server may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// A running server.
pub struct Server {
    dir: PathBuf,
    keeper: Mutex<Child>,
}

/// Creates a database on the server of this process, and returns its URL.
pub async fn new_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = tokio::task::spawn_blocking(|| SERVER.get_or_init(Server::start)).await.unwrap();
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    execute(&server.url("postgres"), &format!("CREATE DATABASE {name}")).await;
    server.url(&name)
}

/// Returns the usual options for opening a store on a database.
pub fn options(url: &str) -> Options {
    Options {
        url: url.to_owned(),
        name: "postgres://test".to_owned(),
        password: Password::InUrl,
        migrate: true,
        max_connections: 16,
        connect_timeout: Duration::from_secs(3),
        acquire_timeout: Duration::from_secs(3),
        statement_timeout: Duration::from_secs(10),
        max_clock_skew: Duration::from_secs(5),
    }
}

/// Executes statements without the store.
pub async fn execute(url: &str, sql: &str) {
    try_execute(url, sql).await.unwrap();
}

/// Executes statements on a server that may be unavailable.
pub async fn try_execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let driver = tokio::spawn(connection);
    client.batch_execute(sql).await?;
    drop(client);
    driver.await.unwrap()
}

/// Returns the number that a query yields, without the store.
pub async fn number(url: &str, sql: &str) -> i64 {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let number = client.query_one(sql, &[]).await.unwrap().get(0);
    drop(client);
    driver.await.unwrap().unwrap();
    number
}

/// Returns the texts that a query yields, one for each row.
pub async fn texts(url: &str, sql: &str) -> Vec<String> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let texts = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    drop(client);
    driver.await.unwrap().unwrap();
    texts
}

/// Returns the folder of the server's programs: the one in the PATH, or else that of the newest
/// version that Debian's packages have installed.
fn binaries() -> PathBuf {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = debian.map(|entry| entry.path().join("bin")).collect();
    folders.sort_by_key(|folder| {
        let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        version.and_then(|name| name.parse::<u32>().ok())
    });
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let there = |folder: &&PathBuf| {
        ["initdb", "postgres", "pg_ctl", "pg_basebackup"]
            .iter()
            .all(|name| folder.join(name).exists())
    };
    folders.iter().rfind(there).cloned().expect(
        "these tests start a PostgreSQL server of their own, and there is none: install it \
         (Debian: `apt-get install postgresql`), or put initdb, postgres, pg_ctl and \
         pg_basebackup into the PATH",
    )
}

/// Returns the path of a program that comes with the server.
pub fn program(name: &str) -> PathBuf {
    binaries().join(name)
}

/// Returns the setting for the locale of a server's messages.
pub fn lc_messages(locale: &str) -> String {
    format!("lc_messages={locale}")
}

/// Compiles a locale into a folder. This needs no privileges, and does not change the machine.
fn make_locale(folder: &Path, locale: &str) {
    let (name, charset) = locale.split_once('.').expect("a locale such as de_DE.UTF-8");
    let made = Command::new("localedef")
        .args(["--no-archive", "-i", name, "-f", charset])
        .arg(folder.join(locale))
        .output();
    let made = made.expect("localedef, which is part of the C library");
    let problem = String::from_utf8_lossy(&made.stderr);
    assert!(
        made.status.success(),
        "no locale {locale} (Debian: `apt-get install locales`): {problem}"
    );
}

/// Returns the user and group to run PostgreSQL as, because PostgreSQL refuses to run as root.
/// Returns `None` if this process is not root, and can run PostgreSQL as its own user.
pub fn user() -> Option<(u32, u32)> {
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    Some(
        find("postgres")
            .or_else(|| find("nobody"))
            .expect("a user postgres or nobody, for the server to run as"),
    )
}

impl Server {
    /// Starts a server.
    pub fn start() -> Self {
        Self::start_with(|_| vec![])
    }

    /// Starts a server with further settings (`name=value`). The closure gets the server's folder,
    /// in which it may create files for them.
    pub fn start_with(settings: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::launch(Path::new(""), settings)
    }

    /// Starts a standby, which follows this server and can be read.
    pub fn start_standby(&self) -> Self {
        // The standby lets a query of a test finish, even if that delays the replay.
        Self::launch(&self.dir, |_| vec!["max_standby_streaming_delay=-1".to_owned()])
    }

    fn launch(primary: &Path, settings: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let bin = binaries();
        let user = user();
        let dir = tempfile::Builder::new().prefix("countersign-pg-").tempdir().unwrap().keep();
        let mut settings = settings(&dir);
        settings.extend(
            env::var(LOCALE).ok().filter(|name| !name.is_empty()).map(|name| lc_messages(&name)),
        );
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(&bin).arg(&dir).arg(primary).current_dir(&dir);
        if let Some(locale) =
            settings.iter().find_map(|setting| setting.strip_prefix("lc_messages="))
        {
            make_locale(&dir, locale);
            command.env("LOCPATH", &dir);
        }
        command.args(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).unwrap();
            for made in fs::read_dir(&dir).unwrap() {
                chown(made.unwrap().path(), Some(uid), Some(gid)).unwrap();
            }
            command.uid(uid).gid(gid);
        }
        let keeper = Mutex::new(command.spawn().unwrap());
        let server = Self { dir, keeper };
        server.wait();
        server
    }

    fn order(&self, order: &str) {
        let mut keeper = self.keeper.lock().unwrap();
        writeln!(keeper.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    /// Stops the server as a crash would.
    pub fn crash(&self) {
        let pid_file = self.dir.join("data/postmaster.pid");
        self.order("stop");
        while pid_file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Suspends all processes of the server, which still accepts connections, but never answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Resumes the processes of the server.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid_file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap();
        let postmaster = pid_file.lines().next().unwrap();
        // The postmaster gets the signal first, so that it starts no further processes meanwhile.
        let send = |pids: &[&str]| Command::new("kill").arg(signal).args(pids).status().unwrap();
        assert!(send(&[postmaster]).success());
        let children =
            fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        send(&children.split_whitespace().collect::<Vec<_>>());
    }

    /// Copies the server's files while it runs.
    pub fn copy(&self) {
        self.order("copy");
        self.await_file("copy");
    }

    /// Stops the server as a crash would, and starts it with the copied files, which are an earlier
    /// state of the same timeline.
    pub fn put_copy_back(&self) {
        self.crash();
        self.order("put_back");
        self.restart();
    }

    /// Promotes a standby. `pg_ctl` does this, and not a statement, because recovery may cancel any
    /// statement on a standby.
    pub fn promote(&self) {
        self.order("promote");
        self.await_file("promoted");
    }

    /// Starts the server again.
    pub fn restart(&self) {
        self.order("start");
        self.wait();
    }

    /// Waits until a file in the server's folder shows that an order has been carried out.
    fn await_file(&self, name: &str) {
        const STEP: Duration = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while !self.dir.join(name).exists() {
            assert!(waited <= START, "there is no `{name}` yet:\n{}", self.log());
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }

    /// Waits until the server accepts connections.
    fn wait(&self) {
        const STEP: Duration = Duration::from_millis(20);
        let mut waited = Duration::ZERO;
        let pid_file = self.dir.join("data/postmaster.pid");
        while !fs::read_to_string(&pid_file)
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|l| l.trim() == "ready"))
        {
            assert!(waited <= START, "PostgreSQL has not started:\n{}", self.log());
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }

    /// Returns everything that the server has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// Returns the URL of a database.
    pub fn url(&self, database: &str) -> String {
        Self::url_of(&[self], database)
    }

    /// Returns a URL that names all of these servers.
    pub fn url_of(servers: &[&Self], database: &str) -> String {
        let sockets: Vec<_> = servers
            .iter()
            .map(|server| server.dir.display().to_string().replace('/', "%2F"))
            .collect();
        format!("postgres://postgres@{}/{database}", sockets.join(","))
    }
}
