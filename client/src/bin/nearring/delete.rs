//! `nearring delete`: points by id or filter, or a document with all its chunks.
use clap::{ArgGroup, Args};
use nearring_client::wire;
use nearring_proto::ids::PointId;

use crate::Context;
use crate::arguments::filter;
use crate::output::{Failure, written};

#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true).args(["ids", "filter", "document"]))]
pub(crate) struct Delete {
    /// The collection.
    #[arg(long, short)]
    collection: String,

    /// Ids of points.
    ids: Vec<String>,

    /// Every point that matches, in JSON.
    #[arg(long, value_name = "JSON", value_parser = filter)]
    filter: Option<wire::Filter>,

    /// A document.
    #[arg(long, value_name = "ID")]
    document: Option<String>,
}

impl Delete {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let client = &context.client;
        let reply = match (self.filter, self.document) {
            (Some(filter), _) => client.delete_by_filter(&self.collection, filter).await?,
            (None, Some(document)) => client.delete_document(&self.collection, &document).await?,
            (None, None) => {
                let ids = self.ids.iter().map(|id| PointId::parse(id).into()).collect();
                client.delete(&self.collection, ids).await?
            }
        };
        written(context.output, &reply, "deleted")
    }
}
