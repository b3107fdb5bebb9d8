//! The client: one channel to a router, read tokens kept per collection, writes numbered by a session.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nearring_proto::ids::ShardId;
use nearring_proto::position::{Position, ReadToken};
use nearring_proto::wire::{self, nearring_client::NearringClient};
use nearring_proto::{WIRE_FORMAT, wire::Dial};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::retry::RetryPolicy;
use crate::session::Session;

/// Builds a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    router: String,
    retry: RetryPolicy,
    deadline: Duration,
    dial: Option<Dial>,
}

impl ClientBuilder {
    /// When failed calls are repeated; [`RetryPolicy::default`] unless set.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// How long one send may take, 1 ms to about 49 days; 10 s unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.max(Duration::from_millis(1));
        self
    }

    /// How to reach the router; TCP unless set.
    pub fn dial(mut self, dial: Dial) -> Self {
        self.dial = Some(dial);
        self
    }

    /// The client. It connects at its first call, and again whenever the connection is lost.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where the router's address is not `host:port`.
    pub fn build(self) -> Result<Client, Error> {
        let channel = match &self.dial {
            Some(dial) => dial(&self.router),
            None => Endpoint::from_shared(format!("http://{}", self.router))
                .map_err(|error| Error {
                    kind: ErrorKind::InvalidInput,
                    message: format!("router address {:?} is not host:port: {error}", self.router),
                })?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .connect_lazy(),
        };
        Ok(Client {
            rpc: NearringClient::new(channel).max_decoding_message_size(Client::MESSAGE_BYTES_MAX),
            retry: self.retry,
            deadline: self.deadline,
            shared: Arc::default(),
        })
    }
}

/// A handle to a nearring cluster. Cheap to clone; clones share connection, sessions and read tokens.
///
/// Reads that leave their level open are `session` reads: they see everything that this client has written or read.
#[derive(Clone)]
pub struct Client {
    rpc: NearringClient<Channel>,
    retry: RetryPolicy,
    deadline: Duration,
    shared: Arc<Shared>,
}

/// Small maps behind plain mutexes; none is held across an await.
#[derive(Default)]
struct Shared {
    tokens: Mutex<BTreeMap<String, ReadToken>>,
    sessions: Mutex<BTreeMap<String, Session>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// The largest answer accepted, in bytes.
    pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

    /// A builder for a client of the router at `host:port`.
    pub fn builder(router: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            router: router.into(),
            retry: RetryPolicy::default(),
            deadline: Duration::from_secs(10),
            dial: None,
        }
    }

    /// Creates a collection. Not repeated by itself: a second arrival would report that it exists.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the field, [`ErrorKind::AlreadyExists`], or a transient kind.
    pub async fn create_collection(&self, spec: wire::CollectionSpec) -> Result<wire::CollectionInfo, Error> {
        let request = wire::CreateCollectionRequest { format: WIRE_FORMAT, spec: Some(spec) };
        self.call(false, request, async |mut rpc, request| rpc.create_collection(request).await).await
    }

    /// What a collection is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or a transient kind.
    pub async fn describe_collection(&self, name: &str) -> Result<wire::CollectionInfo, Error> {
        let request = wire::DescribeCollectionRequest { format: WIRE_FORMAT, name: name.to_owned() };
        self.call(true, request, async |mut rpc, request| rpc.describe_collection(request).await).await
    }

    /// Deletes a collection with all its points; says whether it existed.
    ///
    /// # Errors
    /// A transient kind.
    pub async fn delete_collection(&self, name: &str) -> Result<bool, Error> {
        let request = wire::DeleteCollectionRequest { format: WIRE_FORMAT, name: name.to_owned() };
        let reply = self.call(false, request, async |mut rpc, request| rpc.delete_collection(request).await).await?;
        lock(&self.shared.tokens).remove(name);
        lock(&self.shared.sessions).remove(name);
        Ok(reply.existed)
    }

    /// Writes whole points. Shards commit separately: look at `errors` and `outcomes` of the reply.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the field of a bad point, in which case nothing was written.
    pub async fn upsert(&self, collection: &str, points: Vec<wire::UpsertPoint>) -> Result<wire::WriteReply, Error> {
        let session = self.session(collection).await?;
        let ticket = session.begin();
        let request = wire::UpsertRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            points,
            request: Some(ticket.request_id()),
            deadline_ms: self.deadline_ms(),
        };
        let reply = self.call(true, request, async |mut rpc, request| rpc.upsert(request).await).await?;
        self.observe(collection, &reply.positions);
        Ok(reply)
    }

    /// Deletes points by id. As [`Client::upsert`].
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn delete(&self, collection: &str, ids: Vec<wire::PointId>) -> Result<wire::WriteReply, Error> {
        let session = self.session(collection).await?;
        let ticket = session.begin();
        let request = wire::DeleteRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            ids,
            request: Some(ticket.request_id()),
            deadline_ms: self.deadline_ms(),
            ..Default::default()
        };
        let reply = self.call(true, request, async |mut rpc, request| rpc.delete(request).await).await?;
        self.observe(collection, &reply.positions);
        Ok(reply)
    }

    /// Points by id; those that do not exist are left out. `linearizable` unless `read` says otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the collection, or a transient kind.
    pub async fn get(&self, mut request: wire::GetRequest) -> Result<wire::GetReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.get(request).await).await?;
        self.observe(&collection, &reply.positions);
        Ok(reply)
    }

    /// The nearest points, and which shards the answer rests on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the field, [`ErrorKind::NotFound`] for the collection, or a transient kind.
    pub async fn search(&self, mut request: wire::SearchRequest) -> Result<wire::SearchReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.search(request).await).await?;
        let seen: Vec<wire::Position> = reply
            .coverage
            .iter()
            .flat_map(|coverage| &coverage.shards)
            .filter(|shard| shard.state == wire::shard_coverage::State::Searched as i32)
            .map(|shard| wire::Position { shard: shard.shard, index: shard.index })
            .collect();
        self.observe(&collection, &seen);
        Ok(reply)
    }

    /// Everything this client has seen of a collection, to hand to another one.
    pub fn token(&self, collection: &str) -> ReadToken {
        lock(&self.shared.tokens).get(collection).cloned().unwrap_or_default()
    }

    /// Takes over what another client has seen: later reads here see at least as much.
    pub fn observe_token(&self, collection: &str, token: &ReadToken) {
        let mut tokens = lock(&self.shared.tokens);
        let mine = tokens.entry(collection.to_owned()).or_default();
        token.positions().for_each(|position| mine.observe(position));
    }

    fn observe(&self, collection: &str, positions: &[wire::Position]) {
        let seen = positions.iter().map(|seen| Position { shard: ShardId(seen.shard), index: seen.index }).collect();
        self.observe_token(collection, &seen);
    }

    /// Adds this client's token to what the caller asked for.
    fn read(&self, collection: &str, asked: Option<wire::ReadOptions>) -> wire::ReadOptions {
        let mut read = asked.unwrap_or_default();
        let eventual = read.level == wire::ReadLevel::Eventual as i32;
        if !eventual {
            let token = self.token(collection);
            read.after.extend(token.positions().map(|at| wire::Position { shard: at.shard.0, index: at.index }));
        }
        if read.deadline_ms == 0 {
            read.deadline_ms = self.deadline_ms();
        }
        read
    }

    fn deadline_ms(&self) -> u32 {
        u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX)
    }

    /// The collection's session, opened at the first write.
    async fn session(&self, collection: &str) -> Result<Session, Error> {
        if let Some(session) = lock(&self.shared.sessions).get(collection) {
            return Ok(session.clone());
        }
        let session = Session::new(Uuid::from_u128(rand::random()));
        let opened_at_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let request = wire::OpenSessionRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            session: session.id().as_bytes().to_vec().into(),
            opened_at_ms,
        };
        self.call(true, request, async |mut rpc, request| rpc.open_session(request).await).await?;
        Ok(lock(&self.shared.sessions).entry(collection.to_owned()).or_insert(session).clone())
    }

    /// Sends until it succeeds or the policy gives up; every send has its own deadline.
    async fn call<Q: Clone, A>(
        &self,
        repeatable: bool,
        message: Q,
        send: impl AsyncFn(NearringClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let mut sent = 0;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(self.deadline);
            sent += 1;
            let error = match tokio::time::timeout(self.deadline, send(self.rpc.clone(), request)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => Error::from(status),
                Err(_) => Error {
                    kind: ErrorKind::DeadlineExceeded,
                    message: format!("no answer within {} ms", self.deadline.as_millis()),
                },
            };
            match self.retry.next_pause(sent, error.kind, repeatable, rand::random()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }
}
