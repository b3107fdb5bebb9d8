//! Answers: questions to a collection of documents, and the vectors of texts.
use futures::stream::{self, Stream};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::wire;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// Asks a question. Stages, the passages with their numbers, the answer's text piece by piece with the numbers it
    /// cites, and a last event that says whether the passages held an answer.
    ///
    /// The whole call is repeated only until its first event; after that an error is the stream's last item. A pause
    /// longer than the client's deadline ends the stream.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the field,
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for the collection,
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) where it takes no documents.
    pub async fn ask(
        &self,
        mut request: wire::AskRequest,
    ) -> Result<impl Stream<Item = Result<wire::AnswerEvent, Error>> + Send + use<>, Error> {
        let collection = request.collection.clone();
        request.format = WIRE_FORMAT;
        request.read = Some(self.read(&collection, request.read));
        let events = self
            .call(true, request, async |mut rpc, mut request| {
                // An answer may take longer than one call's deadline, as long as it goes on.
                request.metadata_mut().remove("grpc-timeout");
                rpc.ask(request).await
            })
            .await?;
        Ok(stream::try_unfold((self.clone(), collection, events), async |(client, collection, mut events)| {
            let event = match tokio::time::timeout(client.patience(), events.message()).await {
                Ok(event) => event?,
                Err(_) => return Err(client.no_answer()),
            };
            if let Some(wire::AnswerEvent { event: Some(wire::answer_event::Event::Passages(passages)) }) = &event {
                client.observe_coverage(&collection, passages.coverage.as_ref());
            }
            Ok(event.map(|event| (event, (client, collection, events))))
        }))
    }

    /// The vectors of texts, one each, in order.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for the embedder,
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a text that has no vector.
    pub async fn embed(&self, embedder: &str, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let request = wire::EmbedRequest { format: WIRE_FORMAT, embedder: embedder.to_owned(), texts };
        let reply = self.call(true, request, async |mut rpc, request| rpc.embed(request).await).await?;
        Ok(reply.vectors.into_iter().map(|vector| vector.values).collect())
    }
}
