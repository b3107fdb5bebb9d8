//! `nearring get`: points by id.
use clap::Args;
use nearring_client::wire;
use nearring_proto::ids::PointId;
use serde_json::json;

use crate::Context;
use crate::arguments::Read;
use crate::output::{Failure, id_json, id_of, payload_json, vectors_json, version_json};

#[derive(Args)]
pub(crate) struct Get {
    /// The collection.
    #[arg(long, short)]
    collection: String,

    /// Ids: digits are a number, a hyphenated UUID a UUID, anything else text.
    #[arg(required = true)]
    ids: Vec<String>,

    /// Show vectors too.
    #[arg(long)]
    with_vectors: bool,

    #[command(flatten)]
    read: Read,
}

impl Get {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let ids: Vec<PointId> = self.ids.iter().map(|id| PointId::parse(id)).collect();
        let request = wire::GetRequest {
            collection: self.collection,
            ids: ids.iter().cloned().map(Into::into).collect(),
            with_payload: true,
            with_vectors: self.with_vectors,
            read: Some(self.read.options()),
            ..Default::default()
        };
        let reply = context.client.get(request).await?;
        let mut missing = ids;
        for point in reply.points {
            let id = id_of(point.id);
            missing.retain(|wanted| *wanted != id);
            let payload = payload_json(&point.payload_json);
            let version = version_json(point.version);
            let mut value = json!({ "id": id_json(&id), "version": version, "payload": payload });
            if self.with_vectors {
                value["vectors"] = vectors_json(&point.vectors);
            }
            context.output.write(&value, || {
                let vectors = value.get("vectors").map(|vectors| format!("\n  vectors {vectors}")).unwrap_or_default();
                format!("{id}  version {}\n  payload {payload}{vectors}", version.as_str().unwrap_or("?"))
            })?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        Err(Failure::new(format!("not found: {}", missing.join(", "))))
    }
}
