//! What the SDK sends, seen by a router that follows a script: repeats carry the same request id, imports stay within
//! their window, reads carry what was seen before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nearring_client::wire::nearring_server::{Nearring, NearringServer};
use nearring_client::{Client, ErrorKind, ImportOptions, RetryPolicy, wire};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

#[derive(Default)]
struct Script {
    /// Codes that the next upserts end in, first first; afterwards they succeed.
    upsert_errors: Mutex<VecDeque<Code>>,
    /// As `upsert_errors`, whole statuses, after them.
    upsert_statuses: Mutex<VecDeque<Status>>,
    /// Shard errors of the next upserts that succeed otherwise.
    upsert_partial: Mutex<VecDeque<wire::ShardWriteError>>,
    scrolls: Mutex<Vec<wire::ScrollRequest>>,
    upserts: Mutex<Vec<wire::UpsertRequest>>,
    gets: Mutex<Vec<wire::GetRequest>>,
    sessions: Mutex<Vec<Vec<u8>>>,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
}

#[derive(Clone, Default)]
struct Router(Arc<Script>);

/// The calls no test makes. Spelt as `async_trait` would, which expands before a macro inside its block does.
macro_rules! not_scripted {
    ($($name:ident($request:ty) -> $reply:ty;)*) => {
        $(fn $name<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$reply>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl Nearring for Router {
    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionReply>, Status> {
        self.0.sessions.lock().unwrap().push(request.into_inner().session.to_vec());
        Ok(Response::new(wire::OpenSessionReply { ttl_ms: 3_600_000, positions: vec![] }))
    }

    async fn upsert(&self, request: Request<wire::UpsertRequest>) -> Result<Response<wire::WriteReply>, Status> {
        let request = request.into_inner();
        let now = self.0.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.in_flight_max.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        let mut upserts = self.0.upserts.lock().unwrap();
        let (applied, index) = (request.points.len() as u64, upserts.len() as u64 + 1);
        upserts.push(request);
        let status = self.0.upsert_errors.lock().unwrap().pop_front().map(|code| Status::new(code, "scripted"));
        let status = status.or_else(|| self.0.upsert_statuses.lock().unwrap().pop_front());
        match status {
            Some(status) => Err(status),
            None => {
                let positions = vec![wire::Position { shard: 4, index }];
                let errors = self.0.upsert_partial.lock().unwrap().pop_front().into_iter().collect();
                Ok(Response::new(wire::WriteReply { positions, applied, errors, ..Default::default() }))
            }
        }
    }

    /// Points 0 to 6, in pages.
    async fn scroll(&self, request: Request<wire::ScrollRequest>) -> Result<Response<wire::ScrollReply>, Status> {
        let request = request.into_inner();
        let first = request.after.as_ref().map_or(0, |after| number(after) + 1);
        let last = (first + u64::from(request.limit)).min(7);
        let points =
            (first..last).map(|at| wire::PointRecord { id: Some(id(at)), ..Default::default() }).collect::<Vec<_>>();
        let next = (last < 7).then(|| id(last - 1));
        let index = 10 + self.0.scrolls.lock().unwrap().len() as u64;
        self.0.scrolls.lock().unwrap().push(request);
        let positions = vec![wire::Position { shard: 4, index }];
        Ok(Response::new(wire::ScrollReply { points, next, positions, order_values: Vec::new() }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetReply>, Status> {
        self.0.gets.lock().unwrap().push(request.into_inner());
        Ok(Response::new(wire::GetReply::default()))
    }

    type AskStream = Pin<Box<dyn futures::Stream<Item = Result<wire::AnswerEvent, Status>> + Send>>;
    async fn ask(&self, request: Request<wire::AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        use wire::answer_event::{Delta, Done, Event, Passages};
        let shard = wire::ShardCoverage { shard: 9, index: 33, ..Default::default() };
        let coverage = Some(wire::Coverage { shards: vec![shard] });
        let text = request.into_inner().question;
        let events = [
            Event::Passages(Passages { passages: vec![], coverage }),
            Event::Delta(Delta { text, citations: vec![1] }),
            Event::Done(Done { cited: vec![1], answered: true, generator: "scripted".into() }),
        ];
        let events = events.map(|event| Ok(wire::AnswerEvent { event: Some(event) }));
        let cut = Status::unavailable("cut off");
        Ok(Response::new(Box::pin(tokio_stream::iter(events.into_iter().chain([Err(cut)])))))
    }

    type DownloadSnapshotStream = Pin<Box<dyn futures::Stream<Item = Result<wire::SnapshotBytes, Status>> + Send>>;

    not_scripted! {
        create_collection(wire::CreateCollectionRequest) -> wire::CollectionInfo;
        describe_collection(wire::DescribeCollectionRequest) -> wire::CollectionInfo;
        list_collections(wire::ListCollectionsRequest) -> wire::ListCollectionsReply;
        update_collection(wire::UpdateCollectionRequest) -> wire::CollectionInfo;
        delete_collection(wire::DeleteCollectionRequest) -> wire::DeleteCollectionReply;
        change_aliases(wire::ChangeAliasesRequest) -> wire::ListAliasesReply;
        list_aliases(wire::ListAliasesRequest) -> wire::ListAliasesReply;
        set_attributes(wire::SetAttributesRequest) -> wire::SetAttributesReply;
        set_payload(wire::SetPayloadRequest) -> wire::WriteReply;
        delete(wire::DeleteRequest) -> wire::WriteReply;
        count(wire::CountRequest) -> wire::CountReply;
        facet(wire::FacetRequest) -> wire::FacetReply;
        search(wire::SearchRequest) -> wire::SearchReply;
        create_snapshot(wire::CreateSnapshotRequest) -> wire::SnapshotInfo;
        list_snapshots(wire::ListSnapshotsRequest) -> wire::ListSnapshotsReply;
        delete_snapshot(wire::DeleteSnapshotRequest) -> wire::DeleteSnapshotReply;
        download_snapshot(wire::DownloadSnapshotRequest) -> Self::DownloadSnapshotStream;
        restore_snapshot(tonic::Streaming<wire::RestoreSnapshotRequest>) -> wire::RestoreSnapshotReply;
        search_batch(wire::SearchBatchRequest) -> wire::SearchBatchReply;
        put_document(wire::PutDocumentRequest) -> wire::PutDocumentReply;
        delete_document(wire::DeleteDocumentRequest) -> wire::WriteReply;
        embed(wire::EmbedRequest) -> wire::EmbedReply;
        cluster_status(wire::ClusterStatusRequest) -> wire::ClusterStatusReply;
        verify_replicas(wire::VerifyReplicasRequest) -> wire::VerifyReplicasReply;
    }
}

async fn client(router: &Router) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = NearringServer::new(router.clone());
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let retry = RetryPolicy::OneEffect { attempts: 3, pause: Duration::from_millis(1) };
    Client::builder(address).retry(retry).build().unwrap()
}

fn id(number: u64) -> wire::PointId {
    wire::PointId { id: Some(wire::point_id::Id::Number(number)) }
}

fn number(id: &wire::PointId) -> u64 {
    match id.id {
        Some(wire::point_id::Id::Number(number)) => number,
        _ => u64::MAX,
    }
}

fn points(count: u64) -> Vec<wire::UpsertPoint> {
    let point = |number| wire::Point { id: Some(id(number)), ..Default::default() };
    (0..count).map(|id| wire::UpsertPoint { point: Some(point(id)), precondition: None }).collect()
}

fn session_expired() -> Status {
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert("nearring-reason", "session_expired".parse().unwrap());
    Status::with_metadata(Code::FailedPrecondition, "the session is unknown", metadata)
}

#[tokio::test]
async fn an_expired_session_is_opened_anew_and_the_refused_write_goes_out_under_it() {
    let router = Router::default();
    let client = client(&router).await;
    client.upsert("c", points(1)).await.unwrap();
    router.0.upsert_statuses.lock().unwrap().push_back(session_expired());
    client.upsert("c", points(2)).await.unwrap();
    let sessions = router.0.sessions.lock().unwrap().clone();
    let sent: Vec<_> = router.0.upserts.lock().unwrap().iter().map(|sent| sent.request.clone().unwrap()).collect();
    assert_eq!(sessions.len(), 2);
    assert_ne!(sessions[0], sessions[1]);
    assert_eq!(sent.iter().map(|id| id.session.to_vec()).collect::<Vec<_>>(), [0, 0, 1].map(|at| sessions[at].clone()));
    assert_eq!((sent[2].seq, sent[2].settled_below), (0, 0));

    // Refused twice in a row: the error comes out, after one renewal.
    router.0.upsert_statuses.lock().unwrap().extend([session_expired(), session_expired()]);
    assert_eq!(client.upsert("c", points(1)).await.unwrap_err().kind, ErrorKind::SessionExpired);
    assert_eq!(router.0.upserts.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_write_that_may_have_happened_under_an_expired_session_is_not_sent_under_another() {
    let router = Router::default();
    router.0.upsert_statuses.lock().unwrap().extend([Status::unavailable("gone"), session_expired()]);
    let client = client(&router).await;
    let error = client.upsert("c", points(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::UnknownOutcome);
    assert_eq!(router.0.upserts.lock().unwrap().len(), 2);
    client.upsert("c", points(1)).await.unwrap();
    assert_eq!(router.0.sessions.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_write_that_one_shard_did_not_take_is_repeated_under_its_number_until_the_policy_ends() {
    let router = Router::default();
    let failed =
        wire::ShardWriteError { shard: 5, message: "no leader".into(), unknown_outcome: true, positions: vec![0] };
    router.0.upsert_partial.lock().unwrap().extend(vec![failed; 4]);
    let client = client(&router).await;
    let reply = client.upsert("c", points(1)).await.unwrap();
    assert_eq!(reply.errors.len(), 1, "three sends, each refused by shard 5");
    assert!(client.upsert("c", points(1)).await.unwrap().errors.is_empty());
    let sent: Vec<_> = router.0.upserts.lock().unwrap().iter().map(|sent| sent.request.clone().unwrap().seq).collect();
    assert_eq!(sent, [0, 0, 0, 1, 1]);
    assert_eq!(client.token("c").index_of(nearring_proto::ids::ShardId(4)), 5);
}

#[tokio::test]
async fn scrolling_everything_sees_each_point_once_and_never_goes_back() {
    use futures::TryStreamExt;
    let router = Router::default();
    let client = client(&router).await;
    let request = wire::ScrollRequest { collection: "c".into(), limit: 3, ..Default::default() };
    let seen: Vec<_> = client.scroll_all(request).try_collect().await.unwrap();
    let seen: Vec<_> = seen.iter().map(|point| number(point.id.as_ref().unwrap())).collect();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    let scrolls = router.0.scrolls.lock().unwrap();
    let asked: Vec<_> = scrolls.iter().map(|scroll| scroll.read.as_ref().unwrap().after.clone()).collect();
    let at = |index| vec![wire::Position { shard: 4, index }];
    assert_eq!(asked, [vec![], at(10), at(11)]);
}

#[tokio::test]
async fn an_answer_arrives_event_by_event_and_what_it_saw_joins_the_token() {
    use futures::{StreamExt, TryStreamExt};
    let router = Router::default();
    let client = client(&router).await;
    let question = wire::AskRequest { collection: "c".into(), question: "why?".into(), ..Default::default() };
    let mut events = Box::pin(client.ask(question).await.unwrap());
    let read: Vec<_> = events.by_ref().take(3).try_collect().await.unwrap();
    assert!(matches!(&read[1].event, Some(wire::answer_event::Event::Delta(delta)) if delta.text == "why?"));
    assert_eq!(client.token("c").index_of(nearring_proto::ids::ShardId(9)), 33);
    assert_eq!(events.next().await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_repeated_write_keeps_its_request_id_and_the_next_one_has_another() {
    let router = Router::default();
    router.0.upsert_errors.lock().unwrap().extend([Code::Unavailable, Code::ResourceExhausted]);
    let client = client(&router).await;
    client.upsert("c", points(1)).await.unwrap();
    client.upsert("c", points(1)).await.unwrap();
    let upserts = router.0.upserts.lock().unwrap();
    let ids: Vec<_> = upserts.iter().map(|sent| sent.request.clone().unwrap()).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
    assert_eq!((ids[3].seq, ids[3].settled_below), (1, 1));
    assert_eq!(router.0.sessions.lock().unwrap().as_slice(), &[ids[0].session.to_vec()]);
}

#[tokio::test]
async fn bad_input_is_sent_once_and_keeps_its_message() {
    let router = Router::default();
    router.0.upsert_errors.lock().unwrap().push_back(Code::InvalidArgument);
    let error = client(&router).await.upsert("c", points(1)).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidInput, "scripted"));
    assert_eq!(router.0.upserts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_read_carries_what_the_client_has_written_unless_it_is_eventual() {
    let router = Router::default();
    let client = client(&router).await;
    client.upsert("c", points(1)).await.unwrap();
    let get = wire::GetRequest { collection: "c".into(), ..Default::default() };
    client.get(get.clone()).await.unwrap();
    let eventual = wire::ReadOptions { level: wire::ReadLevel::Eventual as i32, ..Default::default() };
    client.get(wire::GetRequest { read: Some(eventual), ..get }).await.unwrap();
    let gets = router.0.gets.lock().unwrap();
    assert_eq!(gets[0].read.as_ref().unwrap().after, vec![wire::Position { shard: 4, index: 1 }]);
    assert_eq!(gets[1].read.as_ref().unwrap().after, vec![]);
}

#[tokio::test]
async fn an_import_sends_every_point_once_in_bounded_batches_and_within_its_window() {
    let router = Router::default();
    let client = client(&router).await;
    let options = ImportOptions { batch_points: 7, batch_bytes: 1 << 20, in_flight: 3 };
    let mut seen = 0;
    let report = client.import("c", tokio_stream::iter(points(100)), options, |done| seen = done).await.unwrap();
    assert_eq!((report.read, report.applied, seen), (100, 100, 100));
    let upserts = router.0.upserts.lock().unwrap();
    assert!(upserts.iter().all(|batch| batch.points.len() <= 7));
    let mut sent: Vec<_> = upserts.iter().flat_map(|batch| batch.points.clone()).collect();
    sent.sort_by_key(|point| number(point.point.as_ref().unwrap().id.as_ref().unwrap()));
    assert_eq!(sent, points(100));
    let most = router.0.in_flight_max.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "{most} batches at once");
}

#[tokio::test]
async fn an_import_splits_by_bytes_and_stops_reading_at_the_first_failure() {
    let router = Router::default();
    let client = client(&router).await;
    let options = ImportOptions { batch_points: 1000, batch_bytes: 1, in_flight: 1 };
    client.import("c", tokio_stream::iter(points(5)), options, |_| ()).await.unwrap();
    assert_eq!(router.0.upserts.lock().unwrap().len(), 5);

    router.0.upsert_errors.lock().unwrap().push_back(Code::InvalidArgument);
    let read = AtomicUsize::new(0);
    let counted = futures::StreamExt::inspect(tokio_stream::iter(points(50)), |_| {
        read.fetch_add(1, Ordering::SeqCst);
    });
    let error = client.import("c", counted, options, |_| ()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidInput);
    assert!(read.load(Ordering::SeqCst) < 5, "read on after the failure");
}
