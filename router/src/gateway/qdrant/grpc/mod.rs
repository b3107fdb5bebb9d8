//! Qdrant's gRPC services, over the handlers of the REST door.
//!
//! The problem: Qdrant's clients speak gRPC as well (`prefer_grpc=True` in Python, always in Rust and Go), and both doors must do
//! exactly the same. **Rules:**
//! - A request becomes the body that it is over REST (`request`), goes to the same handler, and what that answers becomes
//!   protobuf (`answer`). Nothing is decided here. Only points to be written go by the JSON, since they are what is large.
//! - Errors have the codes of the native service; what is not supported is `UNIMPLEMENTED`, with its name.
use std::collections::BTreeMap;

use axum::extract::{Path, State};
use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::collections_server::{Collections, CollectionsServer};
use nearring_proto::qdrant::points_server::{Points, PointsServer};
use nearring_proto::qdrant::qdrant_server::{Qdrant, QdrantServer};
use nearring_proto::qdrant::snapshots_server::SnapshotsServer;
use nearring_proto::qdrant::{collections_server, points_server, qdrant_server, snapshots_server};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::points::{How, Operation, UpdateVectors};
use super::{
    Asked, Body, Door, NOT_SUPPORTED, Parameters, Refused, Told, VERSION, cluster, collections, facets, groups, points,
    query,
};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;

mod answer;
mod plain;
mod request;
mod snapshots;

/// The services that answer.
pub const SERVICES: [&str; 4] = [
    qdrant_server::SERVICE_NAME,
    collections_server::SERVICE_NAME,
    points_server::SERVICE_NAME,
    snapshots_server::SERVICE_NAME,
];

/// Adds the services to those that a server has. Requests may be compressed, as clients can be told to; answers are not, since
/// clients say that they would take them so whether or not anybody asked for it.
pub fn add_to(routes: Routes, pipeline: Pipeline) -> Routes {
    let most = pipeline.settings().limits.message_bytes;
    let service = Service(Door::new(pipeline));
    let collections = CollectionsServer::new(service.clone()).max_decoding_message_size(most);
    let points = PointsServer::new(service.clone()).max_decoding_message_size(most).max_encoding_message_size(most);
    routes
        .add_service(QdrantServer::new(service.clone()).accept_compressed(Gzip))
        .add_service(collections.accept_compressed(Gzip))
        .add_service(points.accept_compressed(Gzip))
        .add_service(SnapshotsServer::new(service).accept_compressed(Gzip))
}

/// All the services.
#[derive(Clone)]
struct Service(Door);

type Answered<T> = Result<Response<T>, Status>;

/// What a handler answered, as JSON, and how long it took.
struct Outcome {
    result: Value,
    time: f64,
}

impl Service {
    /// One request under way, or one too many.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = || Error::new(Kind::Overloaded, "too many requests are under way; slow down and repeat");
        self.0.in_flight.clone().try_acquire_owned().map_err(|_| full().into())
    }

    fn door(&self) -> State<Door> {
        State(self.0.clone())
    }
}

impl From<Refused> for Status {
    fn from(Refused(error): Refused) -> Self {
        match error.message.strip_prefix(NOT_SUPPORTED) {
            Some(name) => Status::unimplemented(format!("{NOT_SUPPORTED}{name}")),
            // What a request lacks, Qdrant calls an invalid argument.
            None if error.kind == Kind::Precondition => Status::invalid_argument(error.message),
            None => error.into(),
        }
    }
}

fn not_supported(name: &str) -> Status {
    super::not_supported(name).into()
}

fn asked(timeout: Option<u64>, consistency: Option<pb::ReadConsistency>) -> Result<Asked, Status> {
    use pb::read_consistency::Value as Wanted;
    if timeout == Some(0) {
        return Err(Status::invalid_argument("timeout: must be at least 1 second"));
    }
    let consistency = consistency.and_then(|consistency| consistency.value).map(|wanted| match wanted {
        Wanted::Factor(replicas) => replicas.to_string(),
        Wanted::Type(kind) => match pb::ReadConsistencyType::try_from(kind) {
            Ok(kind) => kind.as_str_name().to_lowercase(),
            Err(_) => kind.to_string(),
        },
    });
    Ok(Asked { at: Instant::now(), parameters: Parameters { timeout, consistency, ..Parameters::default() } })
}

/// Reads what would be a body. An error names the place in it.
fn body<T: DeserializeOwned>(body: &Value) -> Result<Body<T>, Status> {
    let read: Result<T, _> = serde_path_to_error::deserialize(body);
    read.map(Body).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn outcome<T: Serialize>(answer: Result<Told<T>, Refused>) -> Result<Outcome, Status> {
    let Told(result, since) = answer?;
    let result = serde_json::to_value(result).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Outcome { result, time: since.elapsed().as_secs_f64() })
}

/// A write.
fn updated(answer: Result<Told<Value>, Refused>) -> Answered<pb::PointsOperationResponse> {
    let Outcome { result, time } = outcome(answer)?;
    Ok(Response::new(pb::PointsOperationResponse { result: Some(answer::updated(&result)), time, usage: None }))
}

/// A change of a collection.
fn changed(answer: Result<Told<bool>, Refused>) -> Answered<pb::CollectionOperationResponse> {
    let Outcome { result, time } = outcome(answer)?;
    Ok(Response::new(pb::CollectionOperationResponse { result: result == true, time }))
}

fn operation(of: pb::PointsUpdateOperation) -> Result<Operation, Status> {
    use pb::points_update_operation::Operation as Kind;
    #[allow(deprecated, reason = "older clients send them")]
    Ok(match of.operation {
        None => return Err(Error::invalid("operations.operation", "is missing").into()),
        Some(Kind::Upsert(of)) => {
            let how = how(of.shard_key_selector, of.update_filter, of.update_mode)?;
            Operation::Upsert(request::upsert(of.points, how)?)
        }
        Some(Kind::DeletePoints(of)) => {
            Operation::Delete(body(&request::selector(of.points, of.shard_key_selector))?.0)
        }
        Some(Kind::DeleteDeprecated(points)) => Operation::Delete(body(&request::selector(Some(points), None))?.0),
        Some(Kind::SetPayload(of)) => {
            let parts = payload(of.payload, of.key)?;
            let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
            Operation::SetPayload(body(&of)?.0)
        }
        Some(Kind::OverwritePayload(of)) => {
            let parts = payload(of.payload, of.key)?;
            let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
            Operation::OverwritePayload(body(&of)?.0)
        }
        Some(Kind::DeletePayload(of)) => {
            let parts = [("keys", Some(json!(of.keys)))];
            let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
            Operation::DeletePayload(body(&of)?.0)
        }
        Some(Kind::ClearPayload(of)) => {
            Operation::ClearPayload(body(&request::selector(of.points, of.shard_key_selector))?.0)
        }
        Some(Kind::ClearPayloadDeprecated(points)) => {
            Operation::ClearPayload(body(&request::selector(Some(points), None))?.0)
        }
        Some(Kind::UpdateVectors(of)) => {
            Operation::UpdateVectors(vectors(of.points, of.shard_key_selector, of.update_filter)?)
        }
        Some(Kind::DeleteVectors(of)) => {
            let parts = [("vector", Some(json!(of.vectors.unwrap_or_default().names)))];
            let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
            Operation::DeleteVectors(body(&of)?.0)
        }
    })
}

/// A payload, and where it is to stand.
fn payload(
    payload: BTreeMap<String, pb::Value>,
    key: Option<String>,
) -> Result<[(&'static str, Option<Value>); 2], Error> {
    let payload = Value::Object(request::payload(payload, "payload")?);
    Ok([("payload", Some(payload)), ("key", key.map(|key| json!(key)))])
}

fn how(
    shard_key: Option<pb::ShardKeySelector>,
    update_filter: Option<pb::Filter>,
    mode: Option<i32>,
) -> Result<How, Status> {
    let update_filter = match update_filter {
        Some(filter) => Some(body(&request::filter(filter))?.0),
        None => None,
    };
    Ok(How { shard_key: request::shard_key(shard_key), update_filter, update_mode: request::mode(mode)? })
}

fn vectors(
    points: Vec<pb::PointVectors>,
    shard_key: Option<pb::ShardKeySelector>,
    update_filter: Option<pb::Filter>,
) -> Result<UpdateVectors, Status> {
    let points = request::point_vectors(points)?;
    let How { shard_key, update_filter, .. } = how(shard_key, update_filter, None)?;
    Ok(UpdateVectors { points, shard_key, update_filter })
}

#[tonic::async_trait]
impl Qdrant for Service {
    async fn health_check(&self, _: Request<pb::HealthCheckRequest>) -> Answered<pb::HealthCheckReply> {
        let (title, version) = (super::TITLE.to_owned(), VERSION.to_owned());
        Ok(Response::new(pb::HealthCheckReply { title, version, commit: None }))
    }
}

#[tonic::async_trait]
impl Collections for Service {
    async fn get(&self, request: Request<pb::GetCollectionInfoRequest>) -> Answered<pb::GetCollectionInfoResponse> {
        let _permit = self.admit()?;
        let name = request.into_inner().collection_name;
        let Outcome { result, time } =
            outcome(collections::describe(self.door(), Path(name), asked(None, None)?).await)?;
        Ok(Response::new(pb::GetCollectionInfoResponse { result: Some(answer::collection(&result)), time }))
    }

    async fn list(&self, _: Request<pb::ListCollectionsRequest>) -> Answered<pb::ListCollectionsResponse> {
        let _permit = self.admit()?;
        let Outcome { result, time } = outcome(collections::list(self.door(), asked(None, None)?).await)?;
        Ok(Response::new(pb::ListCollectionsResponse { collections: answer::collections(&result), time }))
    }

    async fn create(&self, request: Request<pb::CreateCollection>) -> Answered<pb::CollectionOperationResponse> {
        let _permit = self.admit()?;
        let request = request.into_inner();
        let (name, asked) = (request.collection_name.clone(), asked(request.timeout, None)?);
        changed(collections::create(self.door(), Path(name), asked, Body(request::create(request)?)).await)
    }

    async fn update(&self, request: Request<pb::UpdateCollection>) -> Answered<pb::CollectionOperationResponse> {
        let _permit = self.admit()?;
        let request = request.into_inner();
        let (name, asked) = (request.collection_name.clone(), asked(request.timeout, None)?);
        changed(collections::update(self.door(), Path(name), asked, Body(request::update(request)?)).await)
    }

    async fn delete(&self, request: Request<pb::DeleteCollection>) -> Answered<pb::CollectionOperationResponse> {
        let _permit = self.admit()?;
        let request = request.into_inner();
        changed(collections::delete(self.door(), Path(request.collection_name), asked(request.timeout, None)?).await)
    }

    async fn update_aliases(&self, request: Request<pb::ChangeAliases>) -> Answered<pb::CollectionOperationResponse> {
        let _permit = self.admit()?;
        let request = request.into_inner();
        let asked = asked(request.timeout, None)?;
        changed(collections::change_aliases(self.door(), asked, body(&request::aliases(request))?).await)
    }

    async fn list_collection_aliases(
        &self,
        request: Request<pb::ListCollectionAliasesRequest>,
    ) -> Answered<pb::ListAliasesResponse> {
        let _permit = self.admit()?;
        let name = request.into_inner().collection_name;
        let Outcome { result, time } =
            outcome(collections::aliases_of(self.door(), Path(name), asked(None, None)?).await)?;
        Ok(Response::new(pb::ListAliasesResponse { aliases: answer::aliases(&result), time }))
    }

    async fn list_aliases(&self, _: Request<pb::ListAliasesRequest>) -> Answered<pb::ListAliasesResponse> {
        let _permit = self.admit()?;
        let Outcome { result, time } = outcome(collections::aliases(self.door(), asked(None, None)?).await)?;
        Ok(Response::new(pb::ListAliasesResponse { aliases: answer::aliases(&result), time }))
    }

    async fn collection_exists(
        &self,
        request: Request<pb::CollectionExistsRequest>,
    ) -> Answered<pb::CollectionExistsResponse> {
        let _permit = self.admit()?;
        let name = request.into_inner().collection_name;
        let Outcome { result, time } = outcome(collections::exists(self.door(), Path(name), asked(None, None)?).await)?;
        let exists = pb::CollectionExists { exists: result["exists"] == true };
        Ok(Response::new(pb::CollectionExistsResponse { result: Some(exists), time }))
    }

    async fn collection_cluster_info(
        &self,
        request: Request<pb::CollectionClusterInfoRequest>,
    ) -> Answered<pb::CollectionClusterInfoResponse> {
        let _permit = self.admit()?;
        let name = request.into_inner().collection_name;
        let Outcome { result, time } =
            outcome(cluster::of_collection(self.door(), Path(name), asked(None, None)?).await)?;
        Ok(Response::new(pb::CollectionClusterInfoResponse { time, ..answer::shards(&result) }))
    }

    async fn update_collection_cluster_setup(
        &self,
        _: Request<pb::UpdateCollectionClusterSetupRequest>,
    ) -> Answered<pb::UpdateCollectionClusterSetupResponse> {
        Err(not_supported("cluster"))
    }

    async fn create_shard_key(&self, _: Request<pb::CreateShardKeyRequest>) -> Answered<pb::CreateShardKeyResponse> {
        Err(not_supported("shard keys"))
    }

    async fn delete_shard_key(&self, _: Request<pb::DeleteShardKeyRequest>) -> Answered<pb::DeleteShardKeyResponse> {
        Err(not_supported("shard keys"))
    }

    async fn list_shard_keys(&self, _: Request<pb::ListShardKeysRequest>) -> Answered<pb::ListShardKeysResponse> {
        Err(not_supported("shard keys"))
    }
}

#[tonic::async_trait]
impl Points for Service {
    async fn upsert(&self, request: Request<pb::UpsertPoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let how = how(of.shard_key_selector, of.update_filter, of.update_mode)?;
        let points = request::upsert(of.points, how)?;
        updated(points::upsert(self.door(), name, asked, Body(points)).await)
    }

    async fn delete(&self, request: Request<pb::DeletePoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let selector = request::selector(of.points, of.shard_key_selector);
        updated(points::delete(self.door(), name, asked, body(&selector)?).await)
    }

    async fn get(&self, request: Request<pb::GetPoints>) -> Answered<pb::GetResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = points::retrieve(self.door(), name, asked, body(&request::retrieve(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::GetResponse { result: answer::all_retrieved(&result), time, usage: None }))
    }

    async fn update_vectors(&self, request: Request<pb::UpdatePointVectors>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let vectors = vectors(of.points, of.shard_key_selector, of.update_filter)?;
        updated(points::update_vectors(self.door(), name, asked, Body(vectors)).await)
    }

    async fn delete_vectors(&self, request: Request<pb::DeletePointVectors>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let parts = [("vector", Some(json!(of.vectors.unwrap_or_default().names)))];
        let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
        updated(points::delete_vectors(self.door(), name, asked, body(&of)?).await)
    }

    async fn set_payload(&self, request: Request<pb::SetPayloadPoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let parts = payload(of.payload, of.key)?;
        let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
        updated(points::set_payload(self.door(), name, asked, body(&of)?).await)
    }

    async fn overwrite_payload(&self, request: Request<pb::SetPayloadPoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let parts = payload(of.payload, of.key)?;
        let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
        updated(points::overwrite_payload(self.door(), name, asked, body(&of)?).await)
    }

    async fn delete_payload(&self, request: Request<pb::DeletePayloadPoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let parts = [("keys", Some(json!(of.keys)))];
        let of = request::selector_and(of.points_selector, of.shard_key_selector, parts);
        updated(points::delete_payload(self.door(), name, asked, body(&of)?).await)
    }

    async fn clear_payload(&self, request: Request<pb::ClearPayloadPoints>) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let selector = request::selector(of.points, of.shard_key_selector);
        updated(points::clear_payload(self.door(), name, asked, body(&selector)?).await)
    }

    async fn create_field_index(
        &self,
        request: Request<pb::CreateFieldIndexCollection>,
    ) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, None)?);
        updated(collections::create_index(self.door(), name, asked, Body(request::create_index(of))).await)
    }

    async fn delete_field_index(
        &self,
        request: Request<pb::DeleteFieldIndexCollection>,
    ) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (place, asked) = (Path((of.collection_name, of.field_name)), asked(of.timeout, None)?);
        updated(collections::delete_index(self.door(), place, asked).await)
    }

    async fn create_vector_name(
        &self,
        request: Request<pb::CreateVectorNameRequest>,
    ) -> Answered<pb::PointsOperationResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (path, asked) = (Path((of.collection_name, of.vector_name)), asked(of.timeout, None)?);
        let config = of.vector_config.map_or(Value::Null, request::add_vector);
        updated(collections::add_vector(self.door(), path, asked, Body(config)).await)
    }

    async fn delete_vector_name(
        &self,
        _: Request<pb::DeleteVectorNameRequest>,
    ) -> Answered<pb::PointsOperationResponse> {
        Err(not_supported("a vector taken from its collection"))
    }

    async fn search(&self, request: Request<pb::SearchPoints>) -> Answered<pb::SearchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::query(self.door(), name, asked, body(&request::search(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::SearchResponse { result: answer::hits(&result), time, usage: None }))
    }

    async fn search_batch(&self, request: Request<pb::SearchBatchPoints>) -> Answered<pb::SearchBatchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, of.read_consistency)?);
        let searches: Vec<Value> = of.search_points.into_iter().map(request::search).collect();
        let answer = query::query_batch(self.door(), name, asked, body(&json!({"searches": searches}))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::SearchBatchResponse { result: answer::batches(&result), time, usage: None }))
    }

    async fn search_groups(&self, request: Request<pb::SearchPointGroups>) -> Answered<pb::SearchGroupsResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = groups::query(self.door(), name, asked, body(&request::search_groups(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::SearchGroupsResponse { result: Some(answer::groups(&result)), time, usage: None }))
    }

    async fn scroll(&self, request: Request<pb::ScrollPoints>) -> Answered<pb::ScrollResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = points::scroll(self.door(), name, asked, body(&request::scroll(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::ScrollResponse {
            next_page_offset: answer::next_page(&result),
            result: answer::all_retrieved(&result["points"]),
            time,
            usage: None,
        }))
    }

    async fn recommend(&self, request: Request<pb::RecommendPoints>) -> Answered<pb::RecommendResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::query(self.door(), name, asked, body(&request::recommend(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::RecommendResponse { result: answer::hits(&result), time, usage: None }))
    }

    async fn recommend_batch(
        &self,
        request: Request<pb::RecommendBatchPoints>,
    ) -> Answered<pb::RecommendBatchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, of.read_consistency)?);
        let searches: Vec<Value> = of.recommend_points.into_iter().map(request::recommend).collect();
        let answer = query::query_batch(self.door(), name, asked, body(&json!({"searches": searches}))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::RecommendBatchResponse { result: answer::batches(&result), time, usage: None }))
    }

    async fn recommend_groups(
        &self,
        request: Request<pb::RecommendPointGroups>,
    ) -> Answered<pb::RecommendGroupsResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = groups::query(self.door(), name, asked, body(&request::recommend_groups(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::RecommendGroupsResponse { result: Some(answer::groups(&result)), time, usage: None }))
    }

    async fn discover(&self, request: Request<pb::DiscoverPoints>) -> Answered<pb::DiscoverResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::query(self.door(), name, asked, body(&request::discover(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::DiscoverResponse { result: answer::hits(&result), time, usage: None }))
    }

    async fn discover_batch(&self, request: Request<pb::DiscoverBatchPoints>) -> Answered<pb::DiscoverBatchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, of.read_consistency)?);
        let searches: Vec<Value> = of.discover_points.into_iter().map(request::discover).collect();
        let answer = query::query_batch(self.door(), name, asked, body(&json!({"searches": searches}))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::DiscoverBatchResponse { result: answer::batches(&result), time, usage: None }))
    }

    async fn count(&self, request: Request<pb::CountPoints>) -> Answered<pb::CountResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = points::count(self.door(), name, asked, body(&request::count(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        let count = pb::CountResult { count: result["count"].as_u64().unwrap_or_default() };
        Ok(Response::new(pb::CountResponse { result: Some(count), time, usage: None }))
    }

    async fn update_batch(&self, request: Request<pb::UpdateBatchPoints>) -> Answered<pb::UpdateBatchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, None)?);
        let operations = of.operations.into_iter().map(operation).collect::<Result<_, Status>>()?;
        let answer = points::batch(self.door(), name, asked, Body(points::Batch { operations })).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::UpdateBatchResponse { result: answer::all_updated(&result), time, usage: None }))
    }

    async fn query(&self, request: Request<pb::QueryPoints>) -> Answered<pb::QueryResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::query(self.door(), name, asked, body(&request::query_points(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::QueryResponse { result: answer::hits(&result), time, usage: None }))
    }

    async fn query_batch(&self, request: Request<pb::QueryBatchPoints>) -> Answered<pb::QueryBatchResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name), asked(of.timeout, of.read_consistency)?);
        let searches: Vec<Value> = of.query_points.into_iter().map(request::query_points).collect();
        let answer = query::query_batch(self.door(), name, asked, body(&json!({"searches": searches}))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::QueryBatchResponse { result: answer::batches(&result), time, usage: None }))
    }

    async fn query_groups(&self, request: Request<pb::QueryPointGroups>) -> Answered<pb::QueryGroupsResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = groups::query(self.door(), name, asked, body(&request::query_groups(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::QueryGroupsResponse { result: Some(answer::groups(&result)), time, usage: None }))
    }

    async fn facet(&self, request: Request<pb::FacetCounts>) -> Answered<pb::FacetResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = facets::facet(self.door(), name, asked, body(&request::facet(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::FacetResponse { hits: answer::facet(&result), time, usage: None }))
    }

    async fn search_matrix_pairs(
        &self,
        request: Request<pb::SearchMatrixPoints>,
    ) -> Answered<pb::SearchMatrixPairsResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::matrix::pairs(self.door(), name, asked, body(&request::matrix(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::SearchMatrixPairsResponse {
            result: Some(answer::matrix_pairs(&result)),
            time,
            usage: None,
        }))
    }

    async fn search_matrix_offsets(
        &self,
        request: Request<pb::SearchMatrixPoints>,
    ) -> Answered<pb::SearchMatrixOffsetsResponse> {
        let _permit = self.admit()?;
        let of = request.into_inner();
        let (name, asked) = (Path(of.collection_name.clone()), asked(of.timeout, of.read_consistency)?);
        let answer = query::matrix::offsets(self.door(), name, asked, body(&request::matrix(of))?).await;
        let Outcome { result, time } = outcome(answer)?;
        Ok(Response::new(pb::SearchMatrixOffsetsResponse {
            result: Some(answer::matrix_offsets(&result)),
            time,
            usage: None,
        }))
    }
}
