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
        match self.0.upsert_errors.lock().unwrap().pop_front() {
            Some(code) => Err(Status::new(code, "scripted")),
            None => {
                let positions = vec![wire::Position { shard: 4, index }];
                Ok(Response::new(wire::WriteReply { positions, applied, ..Default::default() }))
            }
        }
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetReply>, Status> {
        self.0.gets.lock().unwrap().push(request.into_inner());
        Ok(Response::new(wire::GetReply::default()))
    }

    type AskStream = tokio_stream::Empty<Result<wire::AnswerEvent, Status>>;
    async fn ask(&self, _: Request<wire::AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        Err(Status::unimplemented("ask"))
    }

    not_scripted! {
        create_collection(wire::CreateCollectionRequest) -> wire::CollectionInfo;
        describe_collection(wire::DescribeCollectionRequest) -> wire::CollectionInfo;
        list_collections(wire::ListCollectionsRequest) -> wire::ListCollectionsReply;
        update_collection(wire::UpdateCollectionRequest) -> wire::CollectionInfo;
        delete_collection(wire::DeleteCollectionRequest) -> wire::DeleteCollectionReply;
        set_payload(wire::SetPayloadRequest) -> wire::WriteReply;
        delete(wire::DeleteRequest) -> wire::WriteReply;
        scroll(wire::ScrollRequest) -> wire::ScrollReply;
        count(wire::CountRequest) -> wire::CountReply;
        search(wire::SearchRequest) -> wire::SearchReply;
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

fn points(count: u64) -> Vec<wire::UpsertPoint> {
    let point =
        |id| wire::Point { id: Some(wire::PointId { id: Some(wire::point_id::Id::Number(id)) }), ..Default::default() };
    (0..count).map(|id| wire::UpsertPoint { point: Some(point(id)), precondition: None }).collect()
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
    sent.sort_by_key(|point| match point.point.as_ref().unwrap().id.as_ref().unwrap().id {
        Some(wire::point_id::Id::Number(number)) => number,
        _ => u64::MAX,
    });
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
