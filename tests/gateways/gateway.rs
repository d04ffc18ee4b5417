//! A gateway as a process, with its example configuration.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use countersign_test_support::{
    http_client as http,
    ports::free_address,
    venv::{GATEWAYS, venv},
};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Duration, sleep},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Envoy,
    Nginx,
    Caddy,
    Traefik,
    Haproxy,
}

/// The addresses at which the authority and the application listen.
pub struct Addresses {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub application: SocketAddr,
}

/// A text in an example, and its replacement.
pub type Edit = (String, String);

pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

/// Installs, once, the gateways that PyPI has, and returns their folder. The others are packages of
/// Debian, which scripts/test installs.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gateways");
        venv(&folder, GATEWAYS)
    })
}

impl Program {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Envoy => &["envoy.yaml"],
            Self::Nginx => &["nginx.conf", "countersign.conf"],
            Self::Caddy => &["Caddyfile"],
            Self::Traefik => &["traefik.yaml", "traefik-routes.yaml"],
            Self::Haproxy => &["haproxy.cfg", "countersign.lua"],
        }
    }

    /// Returns the edit that gives the gateway its key. It replaces a comment in the example.
    pub fn with_key(self, key: &str) -> Edit {
        let (comment, with_key) = match self {
            Self::Envoy => (
                "# initial_metadata: [{ key: authorization, value: \"Bearer cs_ck_…\" }]",
                "initial_metadata: [{ key: authorization, value: \"Bearer KEY\" }]",
            ),
            Self::Nginx => (
                "# proxy_set_header X-Countersign-Key \"cs_ck_…\";",
                "proxy_set_header X-Countersign-Key \"KEY\";",
            ),
            Self::Caddy => {
                ("# header_up X-Countersign-Key cs_ck_…", "header_up X-Countersign-Key KEY")
            }
            Self::Haproxy => ("local key = nil", "local key = \"KEY\""),
            Self::Traefik => panic!("Traefik authenticates by a certificate"),
        };
        (comment.to_owned(), with_key.replace("KEY", key))
    }

    fn command(self, folder: &Path) -> Command {
        let command = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        };
        match self {
            Self::Envoy => {
                let mut envoy = Command::new(installed().join("envoy"));
                envoy.args([
                    "-c",
                    "envoy.yaml",
                    "--disable-hot-restart",
                    "--concurrency",
                    "1",
                    "-l",
                    "warning",
                ]);
                envoy
            }
            Self::Nginx => {
                let folder = folder.to_str().unwrap();
                // With a single process, no workers are left when nginx is killed.
                let alone = "daemon off; master_process off;";
                command("nginx", &["-p", folder, "-c", "nginx.conf", "-e", "stderr", "-g", alone])
            }
            Self::Caddy => {
                command("caddy", &["run", "--config", "Caddyfile", "--adapter", "caddyfile"])
            }
            Self::Traefik => {
                let mut traefik = Command::new(installed().join("traefik"));
                traefik.arg("--configFile=traefik.yaml");
                traefik
            }
            Self::Haproxy => command("haproxy", &["-db", "-f", "haproxy.cfg"]),
        }
    }
}

impl Gateway {
    /// Runs a gateway with its example configuration changed by `edits`, and returns once it
    /// serves.
    pub async fn start(program: Program, addresses: &Addresses, edits: &[Edit]) -> Self {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateways");
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let ports = [
            ("8000", address),
            ("50051", addresses.grpc),
            ("8080", addresses.http),
            ("9000", addresses.application),
        ];
        let mut text: Vec<String> = program
            .files()
            .iter()
            .map(|file| fs::read_to_string(examples.join(file)).unwrap())
            .collect();
        for text in &mut text {
            // Ports are replaced by marks first, because a chosen port may be equal to one in the
            // example.
            for (mark, (port, _)) in ["@a@", "@b@", "@c@", "@d@"].into_iter().zip(ports) {
                *text = text.replace(port, mark);
            }
            for (mark, (_, address)) in ["@a@", "@b@", "@c@", "@d@"].into_iter().zip(ports) {
                *text = text.replace(mark, &address.port().to_string());
            }
        }
        for (original, edited) in edits {
            assert!(text.iter().any(|text| text.contains(original)), "{program:?}: {original}");
            text.iter_mut().for_each(|text| *text = text.replace(original, edited));
        }
        for (file, text) in program.files().iter().zip(text) {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = program.command(folder.path());
        command.current_dir(folder.path()).env("HOME", folder.path()).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("{command:?}: {error}: scripts/test installs what is missing")
        });
        let mut gateway = Self { child, address, folder };
        // Traefik listens before it knows its routes, and answers 404 until then.
        while TcpStream::connect(address).await.is_err()
            || http::get(address, "/").await.status == 404
        {
            assert!(gateway.child.try_wait().unwrap().is_none(), "{program:?} has ended");
            sleep(Duration::from_millis(20)).await;
        }
        gateway
    }
}
