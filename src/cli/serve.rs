//! `countersign serve`

use std::process::ExitCode;

use clap::Args;
use tokio::net::TcpListener;

use super::{Failure, Outcome, Settings, block_on};
use crate::{
    app::{self, Listeners, System},
    config::{Config, DatabaseFlags, Flags, server::Listen},
    shutdown::Shutdown,
    telemetry,
};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// Leave the schema of the database as it is, and refuse to start if it is an older one.
    #[arg(long)]
    no_migrate: bool,
}

impl Serve {
    pub fn run(self) -> Outcome {
        let database = self.no_migrate.then_some(DatabaseFlags { migrate: false });
        let flags = Flags { database, ..self.settings.flags() };
        let config = Config::load(self.settings.database.config.as_deref(), &flags).map_err(Failure::at_start)?;
        telemetry::start(&config.log).map_err(Failure::at_start)?;
        block_on(serve(config))
    }
}

async fn serve(config: Config) -> Outcome {
    let listeners = Listeners {
        grpc: bind("listen", config.listen).await?,
        http: match config.http_listen {
            Some(listen) => Some(bind("http_listen", listen).await?),
            None => None,
        },
    };
    let shutdown = Shutdown::on_signals().map_err(Failure::at_start)?;
    let system = System::of_this_machine();
    app::serve(&config, listeners, app::open_store(&config), system, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

async fn bind(setting: &str, Listen { address }: Listen) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| Failure::at_start(format!("cannot listen on {address}: {error} (setting {setting})")))
}
