//! gRPC over simulated connections: what nodes, routers and clients are given in place of TCP.
//!
//! turmoil's connections have no retransmission: a segment dropped by a partition is lost for good, and the connection it
//! belonged to never recovers, as if a middlebox had forgotten it. So a simulated partition also tests that both sides give
//! up on a dead connection; `turmoil::hold` is the gentler fault, where everything arrives late.
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::TokioIo;
use nearring_proto::wire::Dial;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

use crate::knobs::{Carried, Knobs};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection is asked whether it lives, and how long it may take to answer: as over TCP.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Opens lazy channels through the simulated network, to `host:port` where the host is one of the simulation.
///
/// # Panics
/// Where the address is not one.
pub fn dial() -> Dial {
    dial_as(&Knobs::default())
}

/// Likewise, for a host that faults can reach by `knobs`.
///
/// # Panics
/// As [`dial`].
pub fn dial_as(knobs: &Knobs) -> Dial {
    let knobs = knobs.clone();
    Arc::new(move |address: &str| {
        let knobs = knobs.clone();
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.unwrap_or_else(|error| panic!("{address:?} is no host:port to dial: {error}"));
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let knobs = knobs.clone();
                async move {
                    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no host"))?;
                    running(&knobs).await;
                    knobs.effect()?;
                    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
                    Ok::<_, io::Error>(TokioIo::new(Connection::new(stream, &knobs)))
                }
            }))
    })
}

/// Listens on `port` of the host that runs this; each item is a connection that tonic can serve.
///
/// # Errors
/// Where the port is taken.
pub async fn listen(port: u16, knobs: &Knobs) -> io::Result<impl Stream<Item = io::Result<Connection>> + Send + Unpin> {
    let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await?;
    Ok(Box::pin(futures::stream::unfold((listener, knobs.clone()), |(listener, knobs)| async {
        running(&knobs).await;
        let accepted = listener.accept().await.map(|(stream, _)| Connection::new(stream, &knobs));
        Some((accepted, (listener, knobs)))
    })))
}

/// Waits while the host is stopped.
async fn running(knobs: &Knobs) {
    std::future::poll_fn(|cx| if knobs.is_stopped(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// One connection of a host, as long as faults leave it alone.
pub struct Connection {
    /// `None`: it was cut.
    stream: Option<TcpStream>,
    knobs: Knobs,
    sent: Carried,
    received: Carried,
}

impl Connection {
    fn new(stream: TcpStream, knobs: &Knobs) -> Self {
        let (sent, received) = (Carried::default(), Carried::default());
        Self { stream: Some(stream), knobs: knobs.clone(), sent, received }
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection was cut (simulated)")
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.knobs.is_stopped(cx) {
            return Poll::Pending;
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(Err(cut_off())) };
        let before = buf.filled().len();
        std::task::ready!(Pin::new(stream).poll_read(cx, buf))?;
        let came = buf.filled().len() - before;
        if let Some(kept) = this.knobs.cut(&mut this.received, false, came) {
            this.stream = None;
            buf.set_filled(before + kept);
            if kept == 0 {
                return Poll::Ready(Err(cut_off()));
            }
        }
        this.received.add(came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.knobs.is_stopped(cx) {
            return Poll::Pending;
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(Err(cut_off())) };
        this.knobs.effect()?;
        let Some(kept) = this.knobs.cut(&mut this.sent, true, buf.len()) else {
            let written = std::task::ready!(Pin::new(stream).poll_write(cx, buf))?;
            this.sent.add(written);
            return Poll::Ready(Ok(written));
        };
        // What does not fit into the socket's buffer is lost with the rest.
        let written = if kept > 0 { Pin::new(stream).poll_write(cx, &buf[..kept]) } else { Poll::Ready(Ok(0)) };
        this.stream = None;
        match written {
            Poll::Ready(Ok(written)) if written > 0 => Poll::Ready(Ok(written)),
            _ => Poll::Ready(Err(cut_off())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Err(cut_off())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::entropy;
    use crate::history::History;
    use futures::StreamExt;
    use futures::stream::BoxStream;
    use nearring_proto::wire;
    use nearring_proto::wire::node_peer_client::NodePeerClient;
    use nearring_proto::wire::node_peer_server::{NodePeer, NodePeerServer};
    use std::future::Future;
    use tonic::{Request, Response, Status, Streaming};

    /// Sends back what it gets.
    struct Echo;

    #[tonic::async_trait]
    impl NodePeer for Echo {
        type RaftStream = BoxStream<'static, Result<wire::RaftBatch, Status>>;
        type PullSegmentStream = BoxStream<'static, Result<wire::FileChunk, Status>>;

        async fn raft(
            &self,
            request: Request<Streaming<wire::RaftBatch>>,
        ) -> Result<Response<Self::RaftStream>, Status> {
            Ok(Response::new(request.into_inner().boxed()))
        }

        async fn hello(&self, _: Request<wire::HelloRequest>) -> Result<Response<wire::HelloReply>, Status> {
            Ok(Response::new(wire::HelloReply::default()))
        }

        async fn install_snapshot(
            &self,
            _: Request<Streaming<wire::SnapshotChunk>>,
        ) -> Result<Response<wire::SnapshotReply>, Status> {
            Err(Status::unimplemented("echo"))
        }

        async fn pull_segment(
            &self,
            _: Request<wire::PullSegmentRequest>,
        ) -> Result<Response<Self::PullSegmentStream>, Status> {
            Err(Status::unimplemented("echo"))
        }

        async fn push_segment(
            &self,
            _: Request<Streaming<wire::PushSegmentChunk>>,
        ) -> Result<Response<wire::PushSegmentReply>, Status> {
            Err(Status::unimplemented("echo"))
        }

        async fn read_index(
            &self,
            _: Request<wire::ReadIndexRequest>,
        ) -> Result<Response<wire::ReadIndexReply>, Status> {
            Err(Status::unimplemented("echo"))
        }
    }

    /// One stream, then calls before, during and after a partition, and across a crash of the server. Returns when each was
    /// answered, and how.
    fn run(seed: u64) -> (Vec<(String, bool)>, blake3::Hash) {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(120))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .build();
        sim.host("server", || async {
            let incoming = listen(7000, &Knobs::default()).await?;
            tonic::transport::Server::builder()
                .add_service(NodePeerServer::new(Echo))
                .serve_with_incoming(incoming)
                .await?;
            Ok(())
        });
        let history = History::new();
        let results = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (crash, crashed) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (client_history, client_results) = (history.clone(), results.clone());
        let (ask_crash, was_crashed) = (crash.clone(), crashed.clone());
        sim.client("client", async move {
            let mut peer = NodePeerClient::new(dial()("server:7000"));
            let batches =
                futures::stream::iter((0..5).map(|from_node| wire::RaftBatch { from_node, ..Default::default() }));
            let echoed: Vec<_> =
                peer.raft(batches).await?.into_inner().map(|batch| batch.map(|b| b.from_node)).collect().await;
            assert_eq!(echoed.into_iter().collect::<Result<Vec<_>, _>>()?, [0, 1, 2, 3, 4]);
            for phase in ["before", "parted", "healed", "crashed"] {
                match phase {
                    "parted" => turmoil::partition("client", "server"),
                    "healed" => turmoil::repair("client", "server"),
                    "crashed" => {
                        ask_crash.notify_one();
                        was_crashed.notified().await;
                    }
                    _ => {}
                }
                let mut answered = false;
                for _ in 0..20 {
                    let call = peer.hello(wire::HelloRequest::default());
                    answered =
                        tokio::time::timeout(Duration::from_secs(1), call).await.is_ok_and(|reply| reply.is_ok());
                    client_history.note(format_args!("{phase}: {answered}"));
                    if answered {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                client_results.lock().unwrap().push((phase.to_owned(), answered));
            }
            Ok(())
        });
        let mut crashing = Box::pin(crash.notified());
        while !sim.step().unwrap() {
            let waker = futures::task::noop_waker();
            if crashing.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                sim.crash("server");
                sim.bounce("server");
                crashing = Box::pin(crash.notified());
                crashed.notify_one();
            }
        }
        let results = results.lock().unwrap().clone();
        (results, history.digest())
    }

    #[test]
    fn calls_fail_while_parted_and_recover_and_a_seed_repeats_itself() {
        let runs: Vec<_> = (0..3).map(|seed| entropy::on_thread(seed, move || run(seed))).collect();
        for (results, _) in &runs {
            let expected = [("before", true), ("parted", false), ("healed", true), ("crashed", true)];
            assert_eq!(*results, expected.map(|(phase, answered)| (phase.to_owned(), answered)));
        }
        assert_eq!(runs[1].1, entropy::on_thread(1, || run(1)).1);
        assert!(runs[0].1 != runs[1].1 && runs[1].1 != runs[2].1);
    }
}
