//! Reads: get, scroll, count, search. All carry the client's token unless they are `eventual`, and what they see is
//! added to it, so that later reads of this client never go back in time.
use std::collections::VecDeque;

use futures::stream::{self, Stream};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::wire;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// Points by id; those that do not exist are left out. `linearizable` unless `read` says otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for the collection, or a transient kind.
    pub async fn get(&self, mut request: wire::GetRequest) -> Result<wire::GetReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.get(request).await).await?;
        self.observe(&collection, &reply.positions);
        Ok(reply)
    }

    /// One page of points in id order; `next` of the reply is the `after` of the next page, absent at the end.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the field,
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for the collection, or a transient kind.
    pub async fn scroll(&self, mut request: wire::ScrollRequest) -> Result<wire::ScrollReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.scroll(request).await).await?;
        self.observe(&collection, &reply.positions);
        Ok(reply)
    }

    /// Every point from `request.after` on, in id order, read page by page (`request.limit` points each; 0 = 256). A
    /// point that exists throughout is seen once; one that is written or deleted meanwhile may or may not be seen.
    ///
    /// An error is the stream's last item; scrolling on after the last id received continues.
    pub fn scroll_all(
        &self,
        mut request: wire::ScrollRequest,
    ) -> impl Stream<Item = Result<wire::PointRecord, Error>> + Send + 'static {
        if request.limit == 0 {
            request.limit = 256;
        }
        let state = (self.clone(), Some(request), VecDeque::new());
        stream::try_unfold(state, async |(client, mut next, mut page)| {
            loop {
                if let Some(point) = page.pop_front() {
                    return Ok(Some((point, (client, next, page))));
                }
                let Some(request) = next.take() else { return Ok(None) };
                let reply = client.scroll(request.clone()).await?;
                page = reply.points.into();
                next = reply.next.map(|after| wire::ScrollRequest { after: Some(after), ..request });
            }
        })
    }

    /// How many points there are, or match.
    ///
    /// # Errors
    /// As [`Client::scroll`].
    pub async fn count(&self, mut request: wire::CountRequest) -> Result<wire::CountReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.count(request).await).await?;
        self.observe(&collection, &reply.positions);
        Ok(reply)
    }

    /// How many points have each of the values at a path, most frequent first.
    ///
    /// # Errors
    /// As [`Client::scroll`].
    pub async fn facet(&self, mut request: wire::FacetRequest) -> Result<wire::FacetReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.facet(request).await).await?;
        self.observe(&collection, &reply.positions);
        Ok(reply)
    }

    /// The nearest points, and which shards the answer rests on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the field,
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for the collection, or a transient kind.
    pub async fn search(&self, mut request: wire::SearchRequest) -> Result<wire::SearchReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.search(request).await).await?;
        self.observe_coverage(&collection, reply.coverage.as_ref());
        Ok(reply)
    }

    /// Several searches in one request; the replies stand in the order of the queries.
    ///
    /// # Errors
    /// As [`Client::search`], for the whole batch: one bad query refuses all.
    pub async fn search_batch(&self, mut request: wire::SearchBatchRequest) -> Result<wire::SearchBatchReply, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let reply = self.call(true, request, async |mut rpc, request| rpc.search_batch(request).await).await?;
        for reply in &reply.replies {
            self.observe_coverage(&collection, reply.coverage.as_ref());
        }
        Ok(reply)
    }

    pub(crate) fn observe_coverage(&self, collection: &str, coverage: Option<&wire::Coverage>) {
        let seen: Vec<wire::Position> = coverage
            .iter()
            .flat_map(|coverage| &coverage.shards)
            .filter(|shard| shard.state == wire::shard_coverage::State::Searched as i32)
            .map(|shard| wire::Position { shard: shard.shard, index: shard.index })
            .collect();
        self.observe(collection, &seen);
    }
}
