//! `countersign health`

use std::process::ExitCode;

use clap::Args;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{FAILED, Outcome, client::Server, output::line};

#[derive(Debug, Args)]
pub struct Health {
    /// Ask about one service, such as countersign.v1.SessionService, and not about the server as a
    /// whole.
    #[arg(long, default_value = "", hide_default_value = true)]
    service: String,
    #[command(flatten)]
    server: Server,
}

impl Health {
    pub async fn run(self) -> Outcome {
        let mut client = HealthClient::new(self.server.connect().await?);
        let request = HealthCheckRequest { service: self.service };
        let status = self.server.answer(client.check(request).await)?.status();
        if self.server.json {
            line!("{}", serde_json::json!({ "status": status.as_str_name() }));
        } else {
            line!("{}", status.as_str_name());
        }
        Ok(if status == ServingStatus::Serving {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(FAILED)
        })
    }
}
