//! The service `Snapshots`. It has no call to download or restore: Qdrant's clients do that over REST.
use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::snapshots_server::Snapshots;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Answered, Service, not_supported};
use crate::failure::{Error, Kind};
use crate::gateway::native_snapshots::refused;
use crate::gateway::qdrant::snapshots::seconds;
use crate::snapshot::Described;

const WHOLE: &str = "snapshots of the whole storage";

fn told(described: Described) -> pb::SnapshotDescription {
    let at = seconds(&described);
    let creation_time = prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() };
    pb::SnapshotDescription {
        name: described.name,
        creation_time: Some(creation_time),
        size: i64::try_from(described.bytes).unwrap_or(i64::MAX),
        checksum: described.sha256,
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn create(&self, request: Request<pb::CreateSnapshotRequest>) -> Answered<pb::CreateSnapshotResponse> {
        let (_permit, at) = (self.admit()?, Instant::now());
        let described =
            self.0.pipeline.create_snapshot(&request.into_inner().collection_name).await.map_err(refused)?;
        let (snapshot_description, time) = (Some(told(described)), at.elapsed().as_secs_f64());
        Ok(Response::new(pb::CreateSnapshotResponse { snapshot_description, time }))
    }

    async fn list(&self, request: Request<pb::ListSnapshotsRequest>) -> Answered<pb::ListSnapshotsResponse> {
        let (_permit, at) = (self.admit()?, Instant::now());
        let listed = self.0.pipeline.list_snapshots(&request.into_inner().collection_name).await.map_err(refused)?;
        let (snapshot_descriptions, time) = (listed.into_iter().map(told).collect(), at.elapsed().as_secs_f64());
        Ok(Response::new(pb::ListSnapshotsResponse { snapshot_descriptions, time }))
    }

    async fn delete(&self, request: Request<pb::DeleteSnapshotRequest>) -> Answered<pb::DeleteSnapshotResponse> {
        let (_permit, at) = (self.admit()?, Instant::now());
        let pb::DeleteSnapshotRequest { collection_name, snapshot_name } = request.into_inner();
        if !self.0.pipeline.delete_snapshot(&collection_name, &snapshot_name).await.map_err(refused)? {
            let message = format!("Not found: Snapshot {snapshot_name:?} not found");
            return Err(Status::from(Error::new(Kind::NotFound, message)));
        }
        Ok(Response::new(pb::DeleteSnapshotResponse { time: at.elapsed().as_secs_f64() }))
    }

    async fn create_full(&self, _: Request<pb::CreateFullSnapshotRequest>) -> Answered<pb::CreateSnapshotResponse> {
        Err(not_supported(WHOLE))
    }

    async fn list_full(&self, _: Request<pb::ListFullSnapshotsRequest>) -> Answered<pb::ListSnapshotsResponse> {
        Err(not_supported(WHOLE))
    }

    async fn delete_full(&self, _: Request<pb::DeleteFullSnapshotRequest>) -> Answered<pb::DeleteSnapshotResponse> {
        Err(not_supported(WHOLE))
    }
}
