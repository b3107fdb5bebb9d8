//! The gRPC service `Nearring`.
//!
//! Errors become statuses in one place, [`crate::failure::Error`]. Requests under way are bounded: one more is refused at
//! once rather than kept waiting with all its memory.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::collection::{CollectionSpec, CollectionUpdate};
use nearring_proto::convert::{DecodeError, check_format, payload_mode, precondition, read_level};
use nearring_proto::filter::Filter;
use nearring_proto::ids::{NodeId, PointId, RequestId, SessionId, Version};
use nearring_proto::order::Order;
use nearring_proto::placement::table::AliasAction;
use nearring_proto::position::Position;
use nearring_proto::query::SearchQuery;
use nearring_proto::wire::nearring_server::Nearring;
use nearring_proto::wire::{self, answer_event};
use nearring_proto::write::Point;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use super::native_snapshots as snapshots;
use crate::failure::{Error, Kind};
use crate::pipeline::{Pipeline, ScrollWanted, SearchAnswer, Wants, WriteAnswer};
use crate::plan::ReadOptions;
use crate::rag::answer::{AnswerEvent, Question};

/// The service. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Native {
    pipeline: Pipeline,
    in_flight: Arc<Semaphore>,
}

impl Native {
    /// Serves what `pipeline` can do.
    pub fn new(pipeline: Pipeline) -> Self {
        let in_flight = Arc::new(Semaphore::new(pipeline.settings().limits.in_flight));
        Self { pipeline, in_flight }
    }

    /// What it serves.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    fn admit(&self, format: u32) -> Result<OwnedSemaphorePermit, Error> {
        check_format(format)?;
        self.in_flight.clone().try_acquire_owned().map_err(|_| {
            let most = self.pipeline.settings().limits.in_flight;
            Error::new(Kind::Overloaded, format!("{most} requests are under way; slow down and repeat"))
        })
    }

    fn check_bytes(&self, message: &impl Message, field: &str) -> Result<(), Error> {
        let (bytes, most) = (message.encoded_len(), self.pipeline.settings().limits.batch_bytes);
        if bytes > most {
            let reason = format!("make a request of {bytes} bytes, at most {most} are allowed; split the batch");
            return Err(Error::invalid(field, reason));
        }
        Ok(())
    }
}

fn deadline(ms: u32) -> Option<Duration> {
    (ms != 0).then(|| Duration::from_millis(ms.into()))
}

fn missing(field: &str) -> Error {
    Error::invalid(field, "is missing")
}

fn options(message: Option<wire::ReadOptions>) -> Result<ReadOptions, Error> {
    let message = message.unwrap_or_default();
    Ok(ReadOptions {
        level: read_level(message.level).map_err(|error| error.within("read"))?,
        after: message.after.into(),
        deadline: deadline(message.deadline_ms),
        replica_node: (message.replica_node != 0).then_some(NodeId(message.replica_node)),
        full_coverage: message.full_coverage,
    })
}

fn request_id(message: Option<wire::RequestId>) -> Result<Option<RequestId>, Error> {
    let read = message.map(RequestId::try_from).transpose();
    Ok(read.map_err(|error| error.within("request"))?)
}

fn ids(messages: Vec<wire::PointId>) -> Result<Vec<PointId>, Error> {
    let read = |(at, id)| PointId::try_from(id).map_err(|error: DecodeError| error.within(format_args!("ids[{at}]")));
    Ok(messages.into_iter().enumerate().map(read).collect::<Result<_, _>>()?)
}

fn filter(message: Option<wire::Filter>) -> Result<Option<Filter>, Error> {
    Ok(message.map(Filter::try_from).transpose().map_err(|error| error.within("filter"))?)
}

fn positions(positions: Vec<Position>) -> Vec<wire::Position> {
    positions.into_iter().map(Into::into).collect()
}

fn search_reply(answer: SearchAnswer) -> wire::SearchReply {
    let hits = answer.hits.into_iter().map(Into::into).collect();
    wire::SearchReply { hits, coverage: Some(answer.coverage.into()) }
}

fn write_reply(answer: WriteAnswer) -> wire::WriteReply {
    let error = |error: crate::pipeline::ShardWriteError| wire::ShardWriteError {
        shard: error.shard.0,
        message: error.message,
        unknown_outcome: error.unknown_outcome,
        positions: error.places,
    };
    wire::WriteReply {
        positions: positions(answer.positions),
        outcomes: answer.outcomes.into_iter().map(Into::into).collect(),
        applied: answer.applied,
        errors: answer.errors.into_iter().map(error).collect(),
    }
}

fn answer_event(event: AnswerEvent) -> wire::AnswerEvent {
    use answer_event::{Delta, Done, Event, Passage, Passages, Stage};
    let event = match event {
        AnswerEvent::Stage { name, elapsed } => {
            let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            Event::Stage(Stage { name: name.to_owned(), elapsed_us })
        }
        AnswerEvent::Passages { passages, coverage } => {
            let passage = |passage: crate::rag::context::Passage| Passage {
                number: passage.number,
                id: Some(passage.id.into()),
                document: passage.document,
                text: passage.text,
                score: passage.score,
                version: Some(passage.version.into()),
                title: passage.title,
            };
            Event::Passages(Passages {
                passages: passages.into_iter().map(passage).collect(),
                coverage: Some(coverage.into()),
            })
        }
        AnswerEvent::Delta { text, citations } => Event::Delta(Delta { text, citations }),
        AnswerEvent::Done { cited, answered, generator, finish: _ } => Event::Done(Done { cited, answered, generator }),
    };
    wire::AnswerEvent { event: Some(event) }
}

#[tonic::async_trait]
impl Nearring for Native {
    async fn create_collection(
        &self,
        request: Request<wire::CreateCollectionRequest>,
    ) -> Result<Response<wire::CollectionInfo>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let spec = CollectionSpec::try_from(request.spec.ok_or_else(|| missing("spec"))?);
        let spec = spec.map_err(|error| Error::from(error.within("spec")))?;
        Ok(Response::new(self.pipeline.create_collection(spec).await?.into()))
    }

    async fn describe_collection(
        &self,
        request: Request<wire::DescribeCollectionRequest>,
    ) -> Result<Response<wire::CollectionInfo>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        Ok(Response::new(self.pipeline.describe_collection(&request.name).await?.into()))
    }

    async fn list_collections(
        &self,
        request: Request<wire::ListCollectionsRequest>,
    ) -> Result<Response<wire::ListCollectionsReply>, Status> {
        let _permit = self.admit(request.into_inner().format)?;
        let collections = self.pipeline.list_collections().await?.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::ListCollectionsReply { collections }))
    }

    async fn update_collection(
        &self,
        request: Request<wire::UpdateCollectionRequest>,
    ) -> Result<Response<wire::CollectionInfo>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let update = CollectionUpdate::try_from(request.update.ok_or_else(|| missing("update"))?);
        let update = update.map_err(|error| Error::from(error.within("update")))?;
        Ok(Response::new(self.pipeline.update_collection(update).await?.into()))
    }

    async fn delete_collection(
        &self,
        request: Request<wire::DeleteCollectionRequest>,
    ) -> Result<Response<wire::DeleteCollectionReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let existed = self.pipeline.delete_collection(&request.name).await?;
        Ok(Response::new(wire::DeleteCollectionReply { existed }))
    }

    async fn change_aliases(
        &self,
        request: Request<wire::ChangeAliasesRequest>,
    ) -> Result<Response<wire::ListAliasesReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let read = |(at, action)| {
            AliasAction::try_from(action)
                .map_err(|error: DecodeError| error.within(format_args!("change.actions[{at}]")))
        };
        let actions = request.change.ok_or_else(|| missing("change"))?.actions.into_iter().enumerate().map(read);
        let actions: Vec<AliasAction> = actions.collect::<Result<_, _>>().map_err(Error::from)?;
        Ok(Response::new(wire::ListAliasesReply { aliases: self.pipeline.change_aliases(actions).await? }))
    }

    async fn set_attributes(
        &self,
        request: Request<wire::SetAttributesRequest>,
    ) -> Result<Response<wire::SetAttributesReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let wire::SetAttributes { collection, values } = request.set.ok_or_else(|| missing("set"))?;
        self.pipeline.set_attributes(&collection, values.into_iter().collect()).await?;
        Ok(Response::new(wire::SetAttributesReply {}))
    }

    async fn list_aliases(
        &self,
        request: Request<wire::ListAliasesRequest>,
    ) -> Result<Response<wire::ListAliasesReply>, Status> {
        let _permit = self.admit(request.into_inner().format)?;
        Ok(Response::new(wire::ListAliasesReply { aliases: self.pipeline.aliases().await? }))
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let session = uuid::Uuid::from_slice(&request.session)
            .map_err(|_| Error::invalid("session", format!("has {} bytes, must have 16", request.session.len())))?;
        let opened = self.pipeline.open_session(&request.collection, SessionId(session), request.opened_at_ms).await?;
        let ttl_ms = u64::try_from(opened.0.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::OpenSessionReply { ttl_ms, positions: positions(opened.1) }))
    }

    async fn upsert(&self, request: Request<wire::UpsertRequest>) -> Result<Response<wire::WriteReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        self.check_bytes(&request, "points")?;
        let mut points = Vec::with_capacity(request.points.len());
        for (at, upsert) in request.points.into_iter().enumerate() {
            let field = format!("points[{at}]");
            let point = upsert.point.ok_or_else(|| missing(&format!("{field}.point")))?;
            let point = Point::try_from(point).map_err(|error| Error::from(error.within(&field)))?;
            let precondition = precondition(upsert.precondition);
            let precondition =
                precondition.map_err(|error| Error::from(error.within("precondition").within(&field)))?;
            points.push((point, precondition));
        }
        let id = request_id(request.request)?;
        let answer = self.pipeline.upsert(&request.collection, points, id, deadline(request.deadline_ms)).await?;
        Ok(Response::new(write_reply(answer)))
    }

    async fn set_payload(
        &self,
        request: Request<wire::SetPayloadRequest>,
    ) -> Result<Response<wire::WriteReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        self.check_bytes(&request, "ids")?;
        let mode = payload_mode(request.mode).map_err(Error::from)?;
        let precondition = precondition(request.precondition);
        let precondition = precondition.map_err(|error| Error::from(error.within("precondition")))?;
        let answer = self.pipeline.set_payload(
            &request.collection,
            ids(request.ids)?,
            request.payload_json,
            mode,
            precondition,
            request_id(request.request)?,
            deadline(request.deadline_ms),
        );
        Ok(Response::new(write_reply(answer.await?)))
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Result<Response<wire::WriteReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        self.check_bytes(&request, "ids")?;
        let (id, deadline) = (request_id(request.request)?, deadline(request.deadline_ms));
        let precondition = precondition(request.precondition);
        let precondition = precondition.map_err(|error| Error::from(error.within("precondition")))?;
        let answer = match filter(request.filter)? {
            None => self.pipeline.delete(&request.collection, ids(request.ids)?, precondition, id, deadline).await?,
            Some(_) if !request.ids.is_empty() => {
                return Err(Error::invalid("filter", "is given beside ids; give one of them").into());
            }
            Some(_) if precondition.is_some() => {
                return Err(
                    Error::invalid("precondition", "goes with ids only; put the condition into the filter").into()
                );
            }
            Some(filter) => self.pipeline.delete_by_filter(&request.collection, filter, id, deadline).await?,
        };
        Ok(Response::new(write_reply(answer)))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let wants = Wants { payload: request.with_payload, vectors: request.with_vectors };
        let answer = self.pipeline.get(&request.collection, ids(request.ids)?, wants, &options(request.read)?).await?;
        let points = answer.points.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::GetReply { points, positions: positions(answer.positions) }))
    }

    async fn scroll(&self, request: Request<wire::ScrollRequest>) -> Result<Response<wire::ScrollReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let after = request.after.map(PointId::try_from).transpose();
        let wanted = ScrollWanted {
            after: after.map_err(|error| Error::from(error.within("after")))?,
            limit: request.limit as usize,
            filter: filter(request.filter)?,
            wants: Wants { payload: request.with_payload, vectors: request.with_vectors },
            order: request
                .order
                .map(Order::try_from)
                .transpose()
                .map_err(|error| Error::from(error.within("order")))?,
        };
        let answer = self.pipeline.scroll(&request.collection, wanted, &options(request.read)?).await?;
        let points = answer.points.into_iter().map(Into::into).collect();
        let next = answer.next.map(Into::into);
        let order_values = answer.order_values.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::ScrollReply { points, next, positions: positions(answer.positions), order_values }))
    }

    async fn facet(&self, request: Request<wire::FacetRequest>) -> Result<Response<wire::FacetReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let filter = filter(request.filter)?;
        let limit = if request.limit == 0 { 10 } else { request.limit as usize };
        let options = options(request.read)?;
        let answer = self.pipeline.facet(&request.collection, request.path, limit, filter, &options).await?;
        let counts = answer.counts.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::FacetReply { counts, positions: positions(answer.positions) }))
    }

    async fn count(&self, request: Request<wire::CountRequest>) -> Result<Response<wire::CountReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let filter = filter(request.filter)?;
        let answer = self.pipeline.count(&request.collection, filter, &options(request.read)?).await?;
        Ok(Response::new(wire::CountReply { count: answer.count, positions: positions(answer.positions) }))
    }

    async fn search(&self, request: Request<wire::SearchRequest>) -> Result<Response<wire::SearchReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let query = SearchQuery::try_from(request.query.ok_or_else(|| missing("query"))?);
        let query = query.map_err(|error| Error::from(error.within("query")))?;
        let answer = self.pipeline.search(&request.collection, query, &options(request.read)?).await?;
        Ok(Response::new(search_reply(answer)))
    }

    async fn search_batch(
        &self,
        request: Request<wire::SearchBatchRequest>,
    ) -> Result<Response<wire::SearchBatchReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        self.check_bytes(&request, "queries")?;
        let mut queries = Vec::with_capacity(request.queries.len());
        for (at, query) in request.queries.into_iter().enumerate() {
            let query = SearchQuery::try_from(query);
            queries.push(query.map_err(|error| Error::from(error.within(format_args!("queries[{at}]"))))?);
        }
        let answers = self.pipeline.search_batch(&request.collection, queries, &options(request.read)?).await?;
        let replies = answers.into_iter().map(search_reply).collect();
        Ok(Response::new(wire::SearchBatchReply { replies }))
    }

    async fn put_document(
        &self,
        request: Request<wire::PutDocumentRequest>,
    ) -> Result<Response<wire::PutDocumentReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let written = self.pipeline.put_document(
            &request.collection,
            &request.document,
            &request.text,
            &request.content_type,
            &request.metadata_json,
            request_id(request.request)?,
            deadline(request.deadline_ms),
        );
        let written = written.await?;
        Ok(Response::new(wire::PutDocumentReply {
            chunks: u32::try_from(written.chunks).unwrap_or(u32::MAX),
            removed: u32::try_from(written.removed).unwrap_or(u32::MAX),
            positions: positions(written.positions),
            version: (written.version != Version::default()).then(|| written.version.into()),
        }))
    }

    async fn delete_document(
        &self,
        request: Request<wire::DeleteDocumentRequest>,
    ) -> Result<Response<wire::WriteReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let (id, deadline) = (request_id(request.request)?, deadline(request.deadline_ms));
        let answer = self.pipeline.delete_document(&request.collection, &request.document, id, deadline).await?;
        Ok(Response::new(write_reply(answer)))
    }

    async fn embed(&self, request: Request<wire::EmbedRequest>) -> Result<Response<wire::EmbedReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let vectors = self.pipeline.embed(&request.embedder, request.texts).await?;
        let vectors = vectors
            .into_iter()
            .map(|values| wire::NamedVector { name: String::new(), values, ..Default::default() })
            .collect();
        Ok(Response::new(wire::EmbedReply { vectors }))
    }

    type AskStream = Pin<Box<dyn Stream<Item = Result<wire::AnswerEvent, Status>> + Send>>;

    async fn ask(&self, request: Request<wire::AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        let request = request.into_inner();
        let permit = self.admit(request.format)?;
        let (filter, options) = (filter(request.filter)?, options(request.read)?);
        let answer = self.pipeline.ask(
            &request.collection,
            Question::from(request.question.as_str()),
            request.passages,
            filter,
            options,
        );
        let events = answer.await?.map(move |event| {
            let _held = &permit; // an answer counts as under way until its stream is dropped
            event.map(answer_event).map_err(Status::from)
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn cluster_status(
        &self,
        request: Request<wire::ClusterStatusRequest>,
    ) -> Result<Response<wire::ClusterStatusReply>, Status> {
        let _permit = self.admit(request.into_inner().format)?;
        let status = self.pipeline.cluster_status().await?;
        let table = wire::ClusterTable { format: WIRE_FORMAT, ..status.table.as_ref().clone().into() };
        Ok(Response::new(wire::ClusterStatusReply {
            table: Some(table),
            nodes: status.nodes,
            router_rss_bytes: status.rss_bytes,
            router_cpu_ms: status.cpu_ms,
        }))
    }

    async fn verify_replicas(
        &self,
        request: Request<wire::VerifyReplicasRequest>,
    ) -> Result<Response<wire::VerifyReplicasReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let verified = self.pipeline.verify_replicas(&request.collection, deadline(request.deadline_ms)).await?;
        Ok(Response::new(wire::VerifyReplicasReply {
            digests: verified.digests,
            equal: verified.equal,
            uncompared: verified.uncompared.into_iter().map(|shard| shard.0).collect(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<wire::CreateSnapshotRequest>,
    ) -> Result<Response<wire::SnapshotInfo>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let described = self.pipeline.create_snapshot(&request.collection).await.map_err(snapshots::refused)?;
        Ok(Response::new(snapshots::info(described)))
    }

    async fn list_snapshots(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::ListSnapshotsReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let listed = self.pipeline.list_snapshots(&request.collection).await.map_err(snapshots::refused)?;
        Ok(Response::new(wire::ListSnapshotsReply { snapshots: listed.into_iter().map(snapshots::info).collect() }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<wire::DeleteSnapshotRequest>,
    ) -> Result<Response<wire::DeleteSnapshotReply>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let existed = self.pipeline.delete_snapshot(&request.collection, &request.name).await;
        Ok(Response::new(wire::DeleteSnapshotReply { existed: existed.map_err(snapshots::refused)? }))
    }

    type DownloadSnapshotStream = snapshots::Download;

    async fn download_snapshot(
        &self,
        request: Request<wire::DownloadSnapshotRequest>,
    ) -> Result<Response<Self::DownloadSnapshotStream>, Status> {
        let request = request.into_inner();
        let _permit = self.admit(request.format)?;
        let pieces = snapshots::download(&self.pipeline, &request.collection, &request.name).await?;
        Ok(Response::new(pieces))
    }

    async fn restore_snapshot(
        &self,
        request: Request<tonic::Streaming<wire::RestoreSnapshotRequest>>,
    ) -> Result<Response<wire::RestoreSnapshotReply>, Status> {
        let mut messages = request.into_inner();
        let begin = snapshots::begin(messages.message().await?)?;
        let _permit = self.admit(begin.format)?;
        snapshots::restore(&self.pipeline, begin, messages).await.map(Response::new)
    }
}
