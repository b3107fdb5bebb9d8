//! The client: one channel to a router, read tokens kept per collection, writes numbered by a session.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nearring_proto::clock::Clock;
use nearring_proto::ids::ShardId;
use nearring_proto::position::{Position, ReadToken};
use nearring_proto::wire::{self, nearring_client::NearringClient};
use nearring_proto::{WIRE_FORMAT, wire::Dial};
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, SESSION_EXPIRED};
use crate::retry::RetryPolicy;
use crate::session::Session;

/// Builds a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    router: String,
    retry: RetryPolicy,
    deadline: Duration,
    dial: Option<Dial>,
    clock: Clock,
    seed: Option<u64>,
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

    /// Wall time; the operating system's unless set. Sessions say when they began.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What session ids and pauses between repeats follow from; drawn unless set. Two clients of one seed would take each
    /// other's sessions for their own.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The client. It connects at its first call, and again whenever the connection is lost.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where the router's address is not `host:port`.
    #[allow(clippy::disallowed_methods, reason = "the seed of a client that is given none")]
    pub fn build(self) -> Result<Client, Error> {
        let channel = match &self.dial {
            Some(dial) => dial(&self.router),
            None => Endpoint::from_shared(format!("http://{}", self.router))
                .map_err(|error| {
                    let message = format!("router address {:?} is not host:port: {error}", self.router);
                    Error::new(ErrorKind::InvalidInput, message)
                })?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .connect_lazy(),
        };
        Ok(Client {
            rpc: NearringClient::new(channel).max_decoding_message_size(Client::MESSAGE_BYTES_MAX),
            retry: self.retry,
            deadline: self.deadline,
            clock: self.clock,
            shared: Arc::new(Shared {
                random: Mutex::new(self.seed.map_or_else(SmallRng::from_os_rng, SmallRng::seed_from_u64)),
                tokens: Mutex::default(),
                sessions: Mutex::default(),
            }),
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
    clock: Clock,
    shared: Arc<Shared>,
}

/// Small maps behind plain mutexes; none is held across an await.
struct Shared {
    random: Mutex<SmallRng>,
    tokens: Mutex<BTreeMap<String, ReadToken>>,
    sessions: Mutex<BTreeMap<String, Session>>,
}

/// A plain lock: what it guards is whole after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// The largest answer accepted, in bytes.
    pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
    const GRACE: Duration = Duration::from_millis(500);

    /// A builder for a client of the router at `host:port`.
    pub fn builder(router: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            router: router.into(),
            retry: RetryPolicy::default(),
            deadline: Duration::from_secs(10),
            dial: None,
            clock: Clock::system(),
            seed: None,
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
        let info = self.call(true, request, async |mut rpc, request| rpc.describe_collection(request).await).await?;
        // A name that was deleted and created again has other shards; what was seen of the old ones means nothing.
        if let Some(token) = lock(&self.shared.tokens).get_mut(name) {
            token.retain(|shard| info.shards.contains(&shard.0));
        }
        Ok(info)
    }

    /// Every collection, by name.
    ///
    /// # Errors
    /// A transient kind.
    pub async fn list_collections(&self) -> Result<Vec<wire::CollectionInfo>, Error> {
        let request = wire::ListCollectionsRequest { format: WIRE_FORMAT };
        let reply = self.call(true, request, async |mut rpc, request| rpc.list_collections(request).await).await?;
        Ok(reply.collections)
    }

    /// Adds or drops payload indexes and changes index settings; what `update` leaves out stays. Repeating it has the
    /// same effect, so a failed one is repeated.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the field, [`ErrorKind::NotFound`], or a transient kind.
    pub async fn update_collection(&self, update: wire::UpdateCollection) -> Result<wire::CollectionInfo, Error> {
        let request = wire::UpdateCollectionRequest { format: WIRE_FORMAT, update: Some(update) };
        self.call(true, request, async |mut rpc, request| rpc.update_collection(request).await).await
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

    /// Gives collections further names, all in one step or none; every alias with its collection. What is done stays done
    /// when an answer is lost: look at [`Client::list_aliases`] before a rename is repeated.
    ///
    /// # Errors
    /// `NotFound` where a collection or an alias to rename does not exist, `InvalidInput` for a name that is taken; a transient
    /// kind.
    pub async fn change_aliases(&self, actions: Vec<wire::AliasAction>) -> Result<BTreeMap<String, String>, Error> {
        let change = Some(wire::ChangeAliases { actions });
        let request = wire::ChangeAliasesRequest { format: WIRE_FORMAT, change };
        let reply = self.call(false, request, async |mut rpc, request| rpc.change_aliases(request).await).await?;
        Ok(reply.aliases)
    }

    /// Every alias with its collection.
    ///
    /// # Errors
    /// A transient kind.
    pub async fn list_aliases(&self) -> Result<BTreeMap<String, String>, Error> {
        let request = wire::ListAliasesRequest { format: WIRE_FORMAT };
        Ok(self.call(true, request, async |mut rpc, request| rpc.list_aliases(request).await).await?.aliases)
    }

    /// Keeps something of a collection by key, for programs that tell their own users of it: the store gives it no meaning.
    /// "" forgets a key; others stay. Repeating it has the same effect, so a failed one is repeated.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`] where it is too long, or a transient kind.
    pub async fn set_attributes(&self, collection: &str, values: BTreeMap<String, String>) -> Result<(), Error> {
        let set = wire::SetAttributes { collection: collection.to_owned(), values: values.into_iter().collect() };
        let request = wire::SetAttributesRequest { format: WIRE_FORMAT, set: Some(set) };
        self.call(true, request, async |mut rpc, request| rpc.set_attributes(request).await).await?;
        Ok(())
    }

    /// The placement table, and what every node says of itself.
    ///
    /// # Errors
    /// A transient kind.
    pub async fn cluster_status(&self) -> Result<wire::ClusterStatusReply, Error> {
        let request = wire::ClusterStatusRequest { format: WIRE_FORMAT };
        self.call(true, request, async |mut rpc, request| rpc.cluster_status(request).await).await
    }

    /// Compares the replicas' digests at equal log positions; `collection` "" means all. Reads every record of every
    /// replica: as long as the collections are large.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the collection, or a transient kind.
    pub async fn verify_replicas(&self, collection: &str) -> Result<wire::VerifyReplicasReply, Error> {
        let request = wire::VerifyReplicasRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            deadline_ms: self.deadline_ms(),
        };
        self.call(true, request, async |mut rpc, request| rpc.verify_replicas(request).await).await
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

    pub(crate) fn observe(&self, collection: &str, positions: &[wire::Position]) {
        let seen = positions.iter().map(|seen| Position { shard: ShardId(seen.shard), index: seen.index }).collect();
        self.observe_token(collection, &seen);
    }

    /// Adds this client's token to what the caller asked for.
    pub(crate) fn read(&self, collection: &str, asked: Option<wire::ReadOptions>) -> wire::ReadOptions {
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

    pub(crate) fn deadline_ms(&self) -> u32 {
        u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX)
    }

    /// The collection's session, opened at the first write.
    async fn session(&self, collection: &str) -> Result<Session, Error> {
        if let Some(session) = lock(&self.shared.sessions).get(collection) {
            return Ok(session.clone());
        }
        let session = Session::new(Uuid::from_u128(self.draw()));
        let opened_at_ms = self.clock.now_ms();
        let request = wire::OpenSessionRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            session: session.id().as_bytes().to_vec().into(),
            opened_at_ms,
        };
        self.call(true, request, async |mut rpc, request| rpc.open_session(request).await).await?;
        Ok(lock(&self.shared.sessions).entry(collection.to_owned()).or_insert(session).clone())
    }

    fn draw<T>(&self) -> T
    where
        StandardUniform: Distribution<T>,
    {
        lock(&self.shared.random).random()
    }

    /// Lets the next write open another session, unless a concurrent one has done so already.
    fn forget_session(&self, collection: &str, expired: &Session) {
        let mut sessions = lock(&self.shared.sessions);
        if sessions.get(collection).is_some_and(|current| current.id() == expired.id()) {
            sessions.remove(collection);
        }
    }

    /// One write with one effect. `message` makes the request for a request id; every repeat carries the same one, so
    /// shards that took their part already answer from their tables, and only those that did not do it now.
    ///
    /// Where the session has expired, nothing of that arrival was executed: the write goes out once more under a new
    /// session, but only if no earlier arrival of it may have been executed under the old one.
    pub(crate) async fn write<Q: Clone, A: WriteAnswer>(
        &self,
        collection: &str,
        message: impl Fn(wire::RequestId) -> Q,
        send: impl AsyncFn(NearringClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let mut renewed = false;
        let mut sent = 0;
        loop {
            let session = self.session(collection).await?;
            let ticket = session.begin();
            let mut uncertain = None;
            let error = loop {
                sent += 1;
                let (kind, outcome) = match self.send(message(ticket.request_id()), &send).await {
                    Ok(mut reply) => {
                        self.observe(collection, reply.positions());
                        if reply.errors().is_empty() {
                            return Ok(reply);
                        }
                        // Once an attempt has been uncertain, no later refusal makes it certain again.
                        if uncertain.is_some() {
                            reply.doubt();
                        }
                        if reply.errors().iter().any(|error| error.message.contains(SESSION_EXPIRED)) {
                            // Other shards have taken their part, so it must not go out under another number.
                            self.forget_session(collection, &session);
                            return Ok(reply);
                        }
                        (ErrorKind::Unavailable, Ok(reply))
                    }
                    Err(error) => (error.kind, Err(error)),
                };
                match (self.retry.next_pause(sent, kind, true, self.draw()), outcome) {
                    (Some(pause), outcome) => {
                        uncertain = Some(match outcome {
                            Ok(_) => "a part of its shards".to_owned(),
                            Err(error) => error.message,
                        });
                        tokio::time::sleep(pause).await;
                    }
                    (None, Ok(reply)) => return Ok(reply),
                    (None, Err(error)) => break error,
                }
            };
            if error.kind != ErrorKind::SessionExpired {
                return Err(error);
            }
            self.forget_session(collection, &session);
            if let Some(before) = uncertain {
                return Err(Error::new(
                    ErrorKind::UnknownOutcome,
                    format!(
                        "the write's outcome is unknown: an earlier attempt failed ({before}), and the session that \
                         would have made a repeat harmless has expired; read the points, then decide"
                    ),
                ));
            }
            if renewed {
                return Err(error);
            }
            renewed = true;
        }
    }

    /// Sends until it succeeds or the policy gives up; every send has its own deadline.
    pub(crate) async fn call<Q: Clone, A>(
        &self,
        repeatable: bool,
        message: Q,
        send: impl AsyncFn(NearringClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let mut sent = 0;
        loop {
            sent += 1;
            let error = match self.send(message.clone(), &send).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match self.retry.next_pause(sent, error.kind, repeatable, self.draw()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    /// Sends once. The transport gets a little longer than the servers, so that their answer to a deadline, which says
    /// what was waited for, arrives before this side gives up.
    async fn send<Q, A>(
        &self,
        message: Q,
        send: &impl AsyncFn(NearringClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let patience = self.deadline + Self::GRACE;
        let mut request = Request::new(message);
        request.set_timeout(patience);
        match tokio::time::timeout(patience, send(self.rpc.clone(), request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(Error::from(status)),
            Err(_) => Err(self.no_answer()),
        }
    }

    /// For calls that take as long as they take.
    pub(crate) fn rpc(&self) -> NearringClient<Channel> {
        self.rpc.clone()
    }

    pub(crate) fn no_answer(&self) -> Error {
        let message = format!("no answer within {} ms", self.deadline.as_millis());
        Error::new(ErrorKind::DeadlineExceeded, message)
    }

    /// How long to wait for one answer.
    pub(crate) fn patience(&self) -> Duration {
        self.deadline + Self::GRACE
    }
}

/// What every answer to a write tells.
pub(crate) trait WriteAnswer {
    /// Log positions reached, per shard.
    fn positions(&self) -> &[wire::Position];
    /// Shards that did not take their part.
    fn errors(&self) -> &[wire::ShardWriteError];
    /// Says of every shard that did not take its part that it may have done so all the same.
    fn doubt(&mut self);
}

impl WriteAnswer for wire::WriteReply {
    fn positions(&self) -> &[wire::Position] {
        &self.positions
    }

    fn errors(&self) -> &[wire::ShardWriteError] {
        &self.errors
    }

    fn doubt(&mut self) {
        self.errors.iter_mut().for_each(|error| error.unknown_outcome = true);
    }
}

impl WriteAnswer for wire::PutDocumentReply {
    fn positions(&self) -> &[wire::Position] {
        &self.positions
    }

    fn errors(&self) -> &[wire::ShardWriteError] {
        &[]
    }

    fn doubt(&mut self) {}
}
