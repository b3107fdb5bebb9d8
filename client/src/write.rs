//! Writes: points, payloads, deletions, documents. Each is numbered by the collection's session, so that it has one
//! effect however often the network makes the client send it.
//!
//! Shards commit separately. A write that some shards took and others did not is repeated under the same number while
//! the retry policy allows; what is left then stands in `errors` of the reply, with the positions it concerns and
//! whether it may have happened. It does not undo what was committed.
use nearring_proto::WIRE_FORMAT;
use nearring_proto::wire;

use crate::client::Client;
use crate::error::Error;

/// A change of the payloads of some points.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PayloadChange {
    /// The points; those that do not exist are reported as outcomes.
    pub ids: Vec<wire::PointId>,
    /// A JSON object, or for [`wire::PayloadMode::DeleteKeys`] an array of top-level keys.
    pub payload_json: Vec<u8>,
    /// Merge unless set.
    pub mode: wire::PayloadMode,
    /// Must hold for each point that changes.
    pub precondition: Option<wire::Precondition>,
}

/// A text to be stored as a document.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DocumentText {
    /// Its id; the chunks become points `id#0000`, `id#0001`, …
    pub id: String,
    /// The text.
    pub text: String,
    /// `text/plain` or `text/markdown`; "" means plain.
    pub content_type: String,
    /// A JSON object copied into every chunk's payload; empty means {}. `title` in it overrides the text's own.
    pub metadata_json: Vec<u8>,
}

impl Client {
    /// Writes whole points. Shards commit separately: look at `errors` and `outcomes` of the reply.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the field of a bad point, in which case nothing
    /// was written; [`ErrorKind::UnknownOutcome`](crate::ErrorKind::UnknownOutcome) where it can no longer be told.
    pub async fn upsert(&self, collection: &str, points: Vec<wire::UpsertPoint>) -> Result<wire::WriteReply, Error> {
        let message = |request| wire::UpsertRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            points: points.clone(),
            request: Some(request),
            deadline_ms: self.deadline_ms(),
        };
        self.write(collection, message, async |mut rpc, request| rpc.upsert(request).await).await
    }

    /// Changes payloads and leaves vectors as they are.
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn set_payload(&self, collection: &str, change: PayloadChange) -> Result<wire::WriteReply, Error> {
        let message = |request| wire::SetPayloadRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            ids: change.ids.clone(),
            payload_json: change.payload_json.clone().into(),
            mode: change.mode as i32,
            precondition: change.precondition,
            request: Some(request),
            deadline_ms: self.deadline_ms(),
        };
        self.write(collection, message, async |mut rpc, request| rpc.set_payload(request).await).await
    }

    /// Deletes points by id. As [`Client::upsert`].
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn delete(&self, collection: &str, ids: Vec<wire::PointId>) -> Result<wire::WriteReply, Error> {
        self.delete_if(collection, ids, None).await
    }

    /// Deletes points by id, each only where the precondition holds; the others are reported as outcomes.
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn delete_if(
        &self,
        collection: &str,
        ids: Vec<wire::PointId>,
        precondition: Option<wire::Precondition>,
    ) -> Result<wire::WriteReply, Error> {
        self.send_delete(wire::DeleteRequest {
            collection: collection.to_owned(),
            ids,
            precondition,
            ..Default::default()
        })
        .await
    }

    /// Deletes every point that matches. It is no snapshot: each point is judged once it is its turn, and points that
    /// came to their shard after the request did are left alone.
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn delete_by_filter(&self, collection: &str, filter: wire::Filter) -> Result<wire::WriteReply, Error> {
        self.send_delete(wire::DeleteRequest {
            collection: collection.to_owned(),
            filter: Some(filter),
            ..Default::default()
        })
        .await
    }

    async fn send_delete(&self, mut delete: wire::DeleteRequest) -> Result<wire::WriteReply, Error> {
        delete.format = WIRE_FORMAT;
        delete.deadline_ms = self.deadline_ms();
        let message = |request| wire::DeleteRequest { request: Some(request), ..delete.clone() };
        self.write(&delete.collection, message, async |mut rpc, request| rpc.delete(request).await).await
    }

    /// Stores a document: its chunks replace those it had, in one step.
    ///
    /// # Errors
    /// As [`Client::upsert`]; also [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) where the
    /// collection takes no documents.
    pub async fn put_document(
        &self,
        collection: &str,
        document: DocumentText,
    ) -> Result<wire::PutDocumentReply, Error> {
        let message = |request| wire::PutDocumentRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            document: document.id.clone(),
            text: document.text.clone(),
            content_type: document.content_type.clone(),
            metadata_json: document.metadata_json.clone().into(),
            request: Some(request),
            deadline_ms: self.deadline_ms(),
        };
        self.write(collection, message, async |mut rpc, request| rpc.put_document(request).await).await
    }

    /// Deletes a document with all its chunks.
    ///
    /// # Errors
    /// As [`Client::upsert`].
    pub async fn delete_document(&self, collection: &str, document: &str) -> Result<wire::WriteReply, Error> {
        let message = |request| wire::DeleteDocumentRequest {
            format: WIRE_FORMAT,
            collection: collection.to_owned(),
            document: document.to_owned(),
            request: Some(request),
            deadline_ms: self.deadline_ms(),
        };
        self.write(collection, message, async |mut rpc, request| rpc.delete_document(request).await).await
    }
}
