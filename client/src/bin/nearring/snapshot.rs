//! `nearring snapshot`: create, list, download, restore, delete.
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use futures::StreamExt;
use nearring_client::snapshot::Restore;
use nearring_client::wire;
use serde_json::{Value, json};

use crate::Context;
use crate::output::Failure;

/// Bytes of the pieces that a file is sent in.
const PIECE: usize = 1 << 20;

#[derive(Subcommand)]
pub(crate) enum Snapshot {
    /// Write a snapshot of a collection into the router's directory.
    Create {
        /// The collection.
        collection: String,
    },
    /// List the snapshots of a collection, also of one that was deleted.
    List {
        /// The collection.
        collection: String,
    },
    /// Copy a snapshot to a file here.
    Download {
        /// The collection.
        collection: String,
        /// The snapshot.
        name: String,
        /// The file; without it, of the snapshot's name in the current folder.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make a collection of a snapshot; there must be none of this name, or an empty one.
    Restore {
        /// The collection that it becomes.
        collection: String,
        /// A file here, a name that `list` shows, or a URL (http://…, https://…, file:///… in the router's directory).
        snapshot: String,
        /// The collection that the name is listed for, where that is another one.
        #[arg(long, value_name = "COLLECTION")]
        of: Option<String>,
        /// Shards of the collection where it is created; 0 = as in the snapshot.
        #[arg(long, default_value_t = 0)]
        shards: u32,
        /// The SHA-256 that the snapshot must have, in hexadecimal.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "HEX")]
        sha256: String,
    },
    /// Delete a snapshot.
    Delete {
        /// The collection.
        collection: String,
        /// The snapshot.
        name: String,
    },
}

impl Snapshot {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let (client, output) = (&context.client, context.output);
        match self {
            Snapshot::Create { collection } => {
                let info = client.create_snapshot(&collection).await?;
                output.write(&info_json(&info), || format!("created {}", info_text(&info)))
            }
            Snapshot::List { collection } => {
                let listed = client.list_snapshots(&collection).await?;
                let value: Vec<Value> = listed.iter().map(info_json).collect();
                output.write(&value.into(), || match listed.as_slice() {
                    [] => "no snapshots".to_owned(),
                    some => some.iter().map(info_text).collect::<Vec<_>>().join("\n"),
                })
            }
            Snapshot::Download { collection, name, output: file } => {
                // The name is the router's; only its last part may name a file here.
                let own = Path::new(&name).file_name().map(PathBuf::from);
                let path = file.or(own).ok_or_else(|| Failure::new(format!("{name:?} is no name")))?;
                let bytes = download(&context, &collection, &name, &path).await?;
                let value = json!({ "file": path.display().to_string(), "bytes": bytes });
                output.write(&value, || format!("{bytes} bytes in {}", path.display()))
            }
            Snapshot::Restore { collection, snapshot, of, shards, sha256 } => {
                let restore = Restore { collection: collection.clone(), shard_count: shards, sha256 };
                let is_url = ["http://", "https://", "file://"].iter().any(|scheme| snapshot.starts_with(scheme));
                let reply = if is_url {
                    client.restore_from(restore, &snapshot).await?
                } else if of.is_none() && Path::new(&snapshot).is_file() {
                    client.restore_bytes(restore, pieces(Path::new(&snapshot))?).await?
                } else {
                    client.restore_listed(restore, &of.unwrap_or_else(|| collection.clone()), &snapshot).await?
                };
                let wire::RestoreSnapshotReply { points, shard_count } = reply;
                let value = json!({ "collection": collection, "points": points, "shards": shard_count });
                output.write(&value, || format!("restored {collection}: {points} points in {shard_count} shards"))
            }
            Snapshot::Delete { collection, name } => {
                if !client.delete_snapshot(&collection, &name).await? {
                    return Err(Failure::new(format!("there is no snapshot {name:?} of {collection:?}")));
                }
                output.write(&json!({ "deleted": name }), || format!("deleted {name}"))
            }
        }
    }
}

/// Writes the snapshot beside the file and gives it the name at the end, so that a file of that name is whole.
async fn download(context: &Context, collection: &str, name: &str, path: &Path) -> Result<u64, Failure> {
    let of = |error: std::io::Error| Failure::of(path.display(), error);
    let pieces = context.client.download_snapshot(collection, name).await?;
    let mut pieces = std::pin::pin!(pieces);
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = File::create(&partial).map_err(of)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.inspect_err(|_| drop(std::fs::remove_file(&partial)))?;
        file.write_all(&piece).map_err(of)?;
        bytes += piece.len() as u64;
    }
    file.sync_all().map_err(of)?;
    std::fs::rename(&partial, path).map_err(of)?;
    Ok(bytes)
}

/// A file's bytes. Where reading fails it ends early, which the router notices.
fn pieces(path: &Path) -> Result<impl futures::Stream<Item = Vec<u8>> + Send + use<>, Failure> {
    let file = File::open(path).map_err(|error| Failure::of(path.display(), error))?;
    Ok(futures::stream::unfold(file, async |mut file| {
        let mut piece = Vec::with_capacity(PIECE);
        match Read::by_ref(&mut file).take(PIECE as u64).read_to_end(&mut piece) {
            Ok(read) => (read > 0).then_some((piece, file)),
            Err(error) => {
                eprintln!("warning: the file cannot be read to its end: {error}");
                None
            }
        }
    }))
}

fn info_json(info: &wire::SnapshotInfo) -> Value {
    json!({ "name": info.name, "created_ms": info.created_ms, "bytes": info.bytes, "sha256": info.sha256 })
}

fn info_text(info: &wire::SnapshotInfo) -> String {
    format!("{}  {} bytes  sha256 {}", info.name, info.bytes, info.sha256)
}
