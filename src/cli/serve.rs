//! `countersign serve`

use std::{io, net::SocketAddr, process::ExitCode};

use clap::Args;
use tokio::net::{TcpListener, TcpSocket};

use super::{Failure, Outcome, Settings, block_on};
use crate::{
    app::{self, Listeners, System},
    config::{Config, DatabaseFlags, Flags, server::Listen},
    shutdown::Shutdown,
    telemetry::{self, Telemetry},
};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// Do not migrate the schema of the database, and refuse to start if migrations are pending.
    #[arg(long)]
    no_migrate: bool,
}

impl Serve {
    pub fn run(self) -> Outcome {
        let database = self.no_migrate.then_some(DatabaseFlags { migrate: false });
        let flags = Flags { database, ..self.settings.flags() };
        let config = Config::load(self.settings.database.config.as_deref(), &flags)
            .map_err(Failure::at_start)?;
        block_on(async {
            let collector = config.otlp.as_ref();
            let telemetry =
                telemetry::start_with_export(&config.log, collector, &config.replica.name)
                    .map_err(Failure::at_start)?;
            let outcome = serve(config, &telemetry).await;
            telemetry.end().await;
            outcome
        })
    }
}

async fn serve(config: Config, telemetry: &Telemetry) -> Outcome {
    let backlog = config.limits.listen_backlog;
    let listeners = Listeners {
        grpc: bind("listen", config.listen, backlog)?,
        http: config
            .http_listen
            .map(|address| bind("http_listen", address, backlog))
            .transpose()?,
    };
    let shutdown = Shutdown::on_signals().map_err(Failure::at_start)?;
    let system = System {
        log_level: Some(telemetry.level()),
        metric_export: telemetry.metric_export(),
        dropped_spans: telemetry.dropped_spans(),
        ..System::of_this_machine()
    };
    app::serve(&config, listeners, app::await_store(&config), system, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

fn bind(setting: &str, Listen { address }: Listen, backlog: u32) -> Result<TcpListener, Failure> {
    listen(address, backlog).map_err(|error| {
        Failure::at_start(format!("cannot listen on {address}: {error} (setting {setting})"))
    })
}

/// Listens with a queue for `backlog` connections that wait to be accepted. The operating system
/// may limit the queue to fewer (`net.core.somaxconn`). The default of the libraries is 128
/// connections. In a larger burst, the other clients would wait for a second or longer, until their
/// systems retry.
fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted process must be able to listen while connections of the previous process are
    // still in TIME_WAIT. On Windows the option has another meaning.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    #[tokio::test]
    async fn the_backlog_is_as_long_as_configured() {
        let allowed = fs::read_to_string("/proc/sys/net/core/somaxconn")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let count = allowed.unwrap_or(128_usize).min(300);
        let listener = listen("127.0.0.1:0".parse().unwrap(), 300).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = vec![];
        for _ in 0..count {
            let connected = timeout(Duration::from_secs(60), TcpStream::connect(address)).await;
            waiting.push(connected.unwrap().unwrap());
        }
        // A second socket cannot listen on the same address.
        assert!(listen(address, 1).is_err());
    }
}
