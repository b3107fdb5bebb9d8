//! Collections: changes go to the meta group through any node, everything else is read from the table.
use std::collections::BTreeMap;
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::collection::{Collection, CollectionSpec, CollectionUpdate};
use nearring_proto::ids::CollectionId;
use nearring_proto::placement::table::{AliasAction, Change};
use nearring_proto::wire;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Pipeline, cluster_bytes, serves};
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::scatter::node_deadline_ms;

/// The least time for one node to bring a change to the leader.
const ATTEMPT_MIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

impl Pipeline {
    /// Creates a collection, and waits until all its shards serve.
    ///
    /// # Errors
    /// [`Kind::Deadline`] where it is created but does not serve in time; otherwise as the meta group says.
    pub async fn create_collection(&self, spec: CollectionSpec) -> Result<Collection, Error> {
        spec.check().map_err(|invalid| Error::invalid(format!("spec.{}", invalid.field), invalid.reason))?;
        if spec.documents.is_some() {
            // Told now rather than at the first document.
            self.check_documents(&spec).map_err(|error| Error::invalid("spec.documents", error.message))?;
        }
        let until = self.change_until();
        let (name, wanted) = (spec.name.clone(), spec.clone());
        let (reply, uncertain) = self.propose(Change::CreateCollection(spec), until).await;
        let epoch = match reply {
            Ok(reply) => reply.epoch,
            // An attempt whose answer was lost may have created it: then this is that attempt's success.
            Err(error) if error.kind == Kind::AlreadyExists && uncertain => {
                self.view().fetch(until).await;
                let found = self.described(&name, until).await?;
                if !is_as_wanted(&found.collection.spec, wanted) {
                    return Err(error);
                }
                found.table.epoch.0
            }
            Err(error) => return Err(error),
        };
        let ready = self.view().wait_for(until, |table| {
            let collection = table.collection(&name);
            match collection {
                Some(collection) if serves(table, collection) => Some(Some(collection.clone())),
                None if table.epoch.0 > epoch => Some(None),
                _ => None,
            }
        });
        match ready.await {
            Ok(Some(collection)) => Ok(collection),
            Ok(None) => Err(Error::new(Kind::NotFound, format!("collection {name:?} was created and deleted since"))),
            Err(_) => {
                let message =
                    format!("collection {name:?} is created, but not all its shards serve yet; use it in a moment");
                Err(Error::new(Kind::Deadline, message))
            }
        }
    }

    /// Changes a collection's settings.
    ///
    /// # Errors
    /// As the meta group says.
    pub async fn update_collection(&self, update: CollectionUpdate) -> Result<Collection, Error> {
        let until = self.change_until();
        let reply = self.propose(Change::UpdateCollection(update), until).await.0?;
        let message = reply.collection.ok_or_else(|| Error::new(Kind::Internal, "the reply lacks the collection"))?;
        let collection = Collection::try_from(message)?;
        self.seen(reply.epoch, until).await;
        Ok(collection)
    }

    /// Drops a collection; whether there was one.
    ///
    /// # Errors
    /// As the meta group says.
    pub async fn delete_collection(&self, name: &str) -> Result<bool, Error> {
        let until = self.change_until();
        let known = self.view().table().is_some_and(|table| table.named(name).is_some());
        let (reply, uncertain) = self.propose(Change::DeleteCollection(name.to_owned()), until).await;
        let reply = reply?;
        self.seen(reply.epoch, until).await;
        Ok(reply.existed || (uncertain && known))
    }

    /// Gives collections further names, all in one step or none, and returns every alias with its collection.
    ///
    /// # Errors
    /// As the meta group says. Where an attempt's answer was lost the next one finds a renamed alias gone: that is
    /// [`Kind::NotFound`], and the aliases tell.
    pub async fn change_aliases(&self, actions: Vec<AliasAction>) -> Result<BTreeMap<String, String>, Error> {
        let until = self.change_until();
        let reply = self.propose(Change::ChangeAliases(actions), until).await.0?;
        self.seen(reply.epoch, until).await;
        self.aliases().await
    }

    /// Every alias with its collection's name.
    ///
    /// # Errors
    /// [`Kind::NotDone`] where no node was reached yet.
    pub async fn aliases(&self) -> Result<BTreeMap<String, String>, Error> {
        let table = self.view().wait_for(self.read_until(None), |table| Some(table.clone())).await?;
        let name = |id: &CollectionId| table.collections.get(id).map(|collection| collection.spec.name.clone());
        Ok(table.aliases.iter().filter_map(|(alias, id)| Some((alias.clone(), name(id)?))).collect())
    }

    /// What a door keeps of a collection under a key; "" where it keeps nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub async fn attribute(&self, collection: &str, key: &str) -> Result<String, Error> {
        let found = self.described(collection, self.read_until(None)).await?;
        Ok(found.table.attribute(found.collection.id, key).to_owned())
    }

    /// Keeps something of a collection for a door; "" forgets it.
    ///
    /// # Errors
    /// As [`Pipeline::set_attributes`].
    pub async fn set_attribute(&self, collection: &str, key: &str, value: String) -> Result<(), Error> {
        self.set_attributes(collection, BTreeMap::from([(key.to_owned(), value)])).await
    }

    /// As [`Pipeline::set_attribute`], of several keys in one step; others stay. At most
    /// [`Table::ATTRIBUTE_BYTES_MAX`](nearring_proto::placement::table::Table::ATTRIBUTE_BYTES_MAX) together.
    ///
    /// # Errors
    /// As the meta group says.
    pub async fn set_attributes(&self, collection: &str, values: BTreeMap<String, String>) -> Result<(), Error> {
        let until = self.change_until();
        let reply = self.propose(Change::SetAttributes { collection: collection.to_owned(), values }, until).await.0?;
        self.seen(reply.epoch, until).await;
        Ok(())
    }

    /// One collection.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub async fn describe_collection(&self, name: &str) -> Result<Collection, Error> {
        Ok(self.described(name, self.read_until(None)).await?.collection)
    }

    /// Every collection, by name.
    ///
    /// # Errors
    /// [`Kind::NotDone`] where no node was reached yet.
    pub async fn list_collections(&self) -> Result<Vec<Collection>, Error> {
        let table = self.view().wait_for(self.read_until(None), |table| Some(table.clone())).await?;
        let mut collections: Vec<Collection> = table.collections.values().cloned().collect();
        collections.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(collections)
    }

    fn change_until(&self) -> Instant {
        Instant::now() + self.settings().deadlines.change
    }

    /// What this router changed, its next request sees; a table that is late is no error.
    async fn seen(&self, epoch: u64, until: Instant) {
        let until = until.min(Instant::now() + Duration::from_secs(2));
        let _late = self.view().wait_for(until, |table| (table.epoch.0 >= epoch).then_some(())).await;
    }

    /// Brings a change to the meta group through any node, and through another where that fails. The flag says whether
    /// an attempt before the last may have been carried out.
    async fn propose(&self, change: Change, until: Instant) -> (Result<wire::ProposeMetaReply, Error>, bool) {
        let cluster = match self.view().wait_for(until, |table| Some(table.cluster)).await {
            Ok(cluster) => cluster,
            Err(error) => return (Err(error), false),
        };
        let (mut uncertain, mut why) = (false, NodeFailure::new(Meaning::Late, "no node was asked in time"));
        loop {
            for address in self.view().addresses() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let kind = if uncertain { Kind::Unavailable } else { Kind::NotDone };
                    let known = if uncertain { "it may have happened" } else { "nothing was changed" };
                    return (Err(Error::new(kind, format!("the change was not confirmed: {why}; {known}"))), uncertain);
                }
                let patience = (left / 3).max(ATTEMPT_MIN).min(left);
                let message = wire::ProposeMetaRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    hops: 0,
                    deadline_ms: node_deadline_ms(patience),
                    change: Some(change.clone().into()),
                };
                let mut client = self.view().client_at(&address);
                why = match timeout(patience, client.propose_meta(message)).await {
                    Ok(Ok(reply)) => return (Ok(reply.into_inner()), uncertain),
                    Ok(Err(status)) => status.into(),
                    Err(_) => NodeFailure::new(Meaning::Late, format!("no answer of {address} within {patience:?}")),
                };
                if let Meaning::Refused(kind) = why.meaning {
                    return (Err(Error::new(kind, why.message)), uncertain);
                }
                uncertain |= !why.meaning.nothing_happened();
            }
            sleep_until(until.min(Instant::now() + PAUSE)).await;
        }
    }
}

/// Whether a collection is what `wanted` asked for, with 0 standing for any number of shards and replicas.
fn is_as_wanted(spec: &CollectionSpec, mut wanted: CollectionSpec) -> bool {
    if wanted.shard_count == 0 {
        wanted.shard_count = spec.shard_count;
    }
    if wanted.replication_factor == 0 {
        wanted.replication_factor = spec.replication_factor;
    }
    *spec == wanted
}
