//! `countersign serve`

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use tokio::net::TcpListener;

use super::{Failure, Outcome, Settings, block_on};
use crate::{
    app::{self, System},
    clock::SystemClock,
    config::{Config, DatabaseFlags, Flags},
    rng::SystemRng,
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
    let address = config.listen.address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Failure::at_start(format!("cannot listen on {address}: {error} (setting listen)")))?;
    let shutdown = Shutdown::on_signals().map_err(Failure::at_start)?;
    let system = System { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng::default()) };
    app::serve(&config, listener, app::open_store(&config), system, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}
