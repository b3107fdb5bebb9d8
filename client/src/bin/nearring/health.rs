//! `nearring health`: whether one server, a node or a router, says that it serves. For the health checks of containers.
use std::time::Duration;

use clap::Args;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::output::{Failure, Output};

#[derive(Args)]
pub(crate) struct Health {
    /// The server, host:port; without it the router.
    #[arg(value_name = "HOST:PORT")]
    server: Option<String>,
}

impl Health {
    pub(crate) async fn run(self, router: &str, within: Duration, output: Output) -> Result<(), Failure> {
        let server = self.server.as_deref().unwrap_or(router);
        let asked = async {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{server}"))
                .map_err(|error| Failure::new(format!("{server}: {error}; give host:port")))?;
            let channel = endpoint.connect().await.map_err(|error| Failure::new(format!("{server}: {error}")))?;
            let reply = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
            let failed = |status: tonic::Status| Failure::new(format!("{server}: {}", status.message()));
            Ok::<_, Failure>(reply.map_err(failed)?.into_inner().status())
        };
        let late = |_| Failure::new(format!("{server}: no answer within {} ms", within.as_millis()));
        let status = tokio::time::timeout(within, asked).await.map_err(late)??;
        let word = status.as_str_name().to_lowercase();
        output.write(&serde_json::json!({"server": server, "status": word}), || word.clone())?;
        match status {
            ServingStatus::Serving => Ok(()),
            _ => Err(Failure::new(format!("{server} does not serve yet, or no longer"))),
        }
    }
}
