//! What stands beside the services on a router's gRPC port: health, reflection, compression, and the end of all of it. No node is
//! needed for that, so none is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::points_client::PointsClient;
use nearring_proto::qdrant::qdrant_client::QdrantClient;
use nearring_proto::qdrant::snapshots_client::SnapshotsClient;
use nearring_router::router::{RouterBuilder, RouterError};
use nearring_router::settings::Settings;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 6] = [
    "nearring.v1.Nearring",
    "qdrant.Qdrant",
    "qdrant.Collections",
    "qdrant.Points",
    "qdrant.Snapshots",
    "grpc.health.v1.Health",
];

struct Port {
    channel: Channel,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), RouterError>>,
}

async fn start() -> Port {
    with(|_| ()).await
}

async fn with(change: impl FnOnce(&mut Settings)) -> Port {
    let mut settings = Settings::new(vec!["127.0.0.1:1".to_owned()]);
    change(&mut settings);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = RouterBuilder::new(settings).seed(1).start().unwrap();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(router.serve(TcpListenerStream::new(listener), async { stopped.await.unwrap() }));
    Port { channel: Channel::from_shared(address).unwrap().connect().await.unwrap(), stop, served }
}

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn every_service_is_healthy_until_the_router_stops_and_watching_does_not_keep_it() {
    let Port { channel, stop, served } = start().await;
    let mut health = HealthClient::new(channel);
    for service in ["", "nearring.v1.Nearring", "qdrant.Qdrant", "qdrant.Collections", "qdrant.Points"] {
        assert_eq!(health.check(of(service)).await.unwrap().into_inner().status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(of("qdrant.Other")).await.unwrap_err().code(), Code::NotFound);
    let mut watched = health.watch(of("qdrant.Points")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    stop.send(()).unwrap();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let soon = Duration::from_secs(5);
    assert_eq!(tokio::time::timeout(soon, watched.message()).await.expect("the stream ends").unwrap(), None);
    tokio::time::timeout(soon, served).await.expect("the router stops").unwrap().unwrap();
}

#[tokio::test]
async fn reflection_tells_all_services_under_both_of_its_names() {
    let Port { channel, .. } = &start().await;
    let wanted: BTreeSet<String> = SERVICES.map(str::to_owned).into();
    let request = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { message_request: Some(request), ..Default::default() };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut told = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let told = told.message().await.unwrap().unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = told else { panic!("{told:?}") };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.is_superset(&wanted), "{names:?}");

    let request = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("qdrant.Points".to_owned());
    let request = v1alpha::ServerReflectionRequest { message_request: Some(request), ..Default::default() };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut told = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let told = told.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(file) = told else {
        panic!("{told:?}")
    };
    assert_eq!(file.file_descriptor_proto.len(), 1);
}

#[tokio::test]
async fn a_stream_that_nobody_ends_does_not_keep_the_router() {
    let short = Duration::from_millis(200);
    let Port { channel, stop, served } =
        with(|settings| (settings.deadlines.read, settings.deadlines.write) = (short, short)).await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let _open = client.server_reflection_info(tokio_stream::pending()).await.unwrap();
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("the router stops").unwrap().unwrap();
}

#[tokio::test]
async fn one_request_too_many_is_refused_at_once() {
    // A node that takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let port = with(|settings| (settings.nodes, settings.limits.in_flight) = (vec![address], 1)).await;
    let count = pb::CountPoints { collection_name: "a".to_owned(), ..Default::default() };
    let (mut first, mut second) = (PointsClient::new(port.channel.clone()), PointsClient::new(port.channel.clone()));
    let waits = first.count(count.clone());
    tokio::pin!(waits);
    tokio::time::timeout(Duration::from_millis(300), &mut waits).await.expect_err("the first waits for the node");
    let asked = std::time::Instant::now();
    let status = second.count(count).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn requests_may_be_compressed_and_what_is_not_there_says_so() {
    let Port { channel, .. } = &start().await;
    let mut client = QdrantClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    let told = client.health_check(pb::HealthCheckRequest {}).await.unwrap().into_inner();
    assert_eq!(told.version, nearring_router::gateway::qdrant::VERSION);
    let mut snapshots = SnapshotsClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    let status = snapshots.list_full(pb::ListFullSnapshotsRequest {}).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, "not supported: snapshots of the whole storage")
    );
    let status = snapshots.list(pb::ListSnapshotsRequest { collection_name: "a".to_owned() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("--snapshots"), "{status}");
}
