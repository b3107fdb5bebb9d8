//! An archive into a collection.
//!
//! **Rules:**
//! - Nothing is changed before the whole archive has been read and found to be as it was written.
//! - It goes into a collection that is missing, which is created with the archive's settings, or into an empty one whose vectors
//!   are the archive's; that one may have another number of shards. There is no switch from an old content to a new one in one step,
//!   so a collection with points is refused.
//! - Points are written as any others are, in batches that are repeated until they are acknowledged. They keep ids, payloads and
//!   vectors, and get new versions.
//! - As long as it is under way the collection has an attribute ([`MARK`]) that names the archive. One that did not end left the
//!   collection with the mark and a part of the points: the same archive goes on there, another is refused.
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nearring_proto::collection::{Collection, CollectionSpec, CollectionUpdate};
use nearring_proto::position::ReadLevel;
use nearring_proto::write::Point;
use tokio::time::sleep;

use super::archive::{ArchiveError, Part, Reader, Verified, hex};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;
use crate::plan::ReadOptions;

/// The attribute of a collection that is being restored: what stands for the archive.
pub const MARK: &str = "restoring";
/// Batches that are written at once.
const WIDTH: usize = 4;
/// Points of a batch. Small ones keep a busy node from answering late.
const BATCH: usize = 500;
/// How long one batch may take.
const BATCH_WITHIN: Duration = Duration::from_secs(60);
/// How often a batch is written before the restore gives up.
const ATTEMPTS: u32 = 12;
/// Between two attempts: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What was restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Points of the archive.
    pub points: u64,
    /// The collection's shards.
    pub shards: u32,
}

impl From<ArchiveError> for Error {
    fn from(error: ArchiveError) -> Self {
        let kind = match error {
            ArchiveError::Io(_) => Kind::Internal,
            ArchiveError::Newer { .. } | ArchiveError::NotOne | ArchiveError::Damaged { .. } => Kind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

/// What is to be done with the collection that there is, or is not. [core]
#[derive(Clone, PartialEq, Debug)]
enum Way {
    /// It is missing.
    Create,
    /// It is empty; these settings are to be changed.
    Fill(CollectionUpdate),
    /// It holds a part of this archive.
    GoOn,
}

/// Decides it. `there` is the collection, its mark and its points.
///
/// # Errors
/// [`Kind::AlreadyExists`] with what to do.
fn way(
    name: &str,
    archived: &CollectionSpec,
    mark: &str,
    there: Option<(&CollectionSpec, &str, u64)>,
) -> Result<Way, Error> {
    let refuse = |why: String| Err(Error::new(Kind::AlreadyExists, format!("collection {name:?} {why}")));
    let Some((spec, marked, points)) = there else { return Ok(Way::Create) };
    if marked == mark {
        return Ok(Way::GoOn);
    }
    if !marked.is_empty() {
        return refuse(
            "holds a part of another snapshot, whose restore did not end; repeat that one, or delete the collection"
                .into(),
        );
    }
    if points > 0 {
        return refuse(format!(
            "has {points} points; a snapshot is restored into a collection that is missing or empty. Delete it first, or restore under another name and move an alias"
        ));
    }
    let kept = |spec: &CollectionSpec| {
        let CollectionSpec { vectors, sparse_vectors, multi_vectors, routing_separator, documents, .. } = spec;
        let sparse: Vec<String> = sparse_vectors.keys().cloned().collect();
        (vectors.clone(), sparse, multi_vectors.clone(), routing_separator.clone(), documents.clone())
    };
    if kept(spec) != kept(archived) {
        return refuse(
            "has other vectors or settings than the snapshot; delete it first, or restore under another name".into(),
        );
    }
    let other = spec.payload_indexes.iter().filter(|(path, kind)| archived.payload_indexes.get(*path) != Some(*kind));
    Ok(Way::Fill(CollectionUpdate {
        name: name.to_owned(),
        add_payload_indexes: archived.payload_indexes.clone(),
        drop_payload_indexes: other.map(|(path, _)| path.clone()).collect(),
        m: archived.index.m,
        ef_construction: archived.index.ef_construction,
        ef_search: archived.index.ef_search,
        seal_points: archived.index.seal_points,
        sparse_vectors: archived.sparse_vectors.clone(),
        ..Default::default()
    }))
}

/// Restores an archive as the collection `name`, which is created with `shards` shards (0 = as archived) where it is missing. Blocks
/// between its awaits, as long as reading does.
///
/// # Errors
/// [`Kind::Invalid`] where the archive is not whole: nothing was changed. [`Kind::AlreadyExists`] where the collection is not empty.
/// Others where not everything could be written: then the same archive can be restored again.
pub async fn restore(
    pipeline: &Pipeline,
    name: &str,
    archive: &mut (impl Read + Seek),
    shards: u32,
) -> Result<Restored, Error> {
    let read_error = |error| Error::from(ArchiveError::Io(error));
    archive.seek(SeekFrom::Start(0)).map_err(read_error)?;
    let verified = Reader::open(std::io::BufReader::new(&mut *archive))?.verify()?;
    let mark = hex(&verified.check);
    let collection = prepare(pipeline, name, &verified, &mark, shards).await?;
    archive.seek(SeekFrom::Start(0)).map_err(read_error)?;
    let mut reader = Reader::open(std::io::BufReader::new(archive))?;
    let mut writes = FuturesUnordered::new();
    while let Some(part) = reader.next_part()? {
        let Part::Points(points) = part else { continue };
        let most = pipeline.settings().limits.batch_points.min(BATCH);
        let mut points = points.into_iter().peekable();
        while points.peek().is_some() {
            let batch: Vec<Point> = points.by_ref().take(most).collect();
            if writes.len() >= WIDTH
                && let Some(written) = writes.next().await
            {
                written?;
            }
            writes.push(write(pipeline, name, batch));
        }
    }
    while let Some(written) = writes.next().await {
        written?;
    }
    let all = ReadOptions { level: Some(ReadLevel::Linearizable), full_coverage: true, ..Default::default() };
    let count = pipeline.count(name, None, &all).await?.count;
    if count < verified.points {
        let message =
            format!("{count} of {} points are there after all were written; restore it again", verified.points);
        return Err(Error::new(Kind::Unavailable, message));
    }
    pipeline.set_attribute(name, MARK, String::new()).await?;
    Ok(Restored { points: verified.points, shards: u32::try_from(collection.shards.len()).unwrap_or(u32::MAX) })
}

/// The collection, marked as being restored.
async fn prepare(
    pipeline: &Pipeline,
    name: &str,
    verified: &Verified,
    mark: &str,
    shards: u32,
) -> Result<Collection, Error> {
    let archived = &verified.header.spec;
    let there = match pipeline.describe_collection(name).await {
        Ok(collection) => Some(collection),
        Err(error) if error.kind == Kind::NotFound => None,
        Err(error) => return Err(error),
    };
    let way = match &there {
        None => way(name, archived, mark, None)?,
        Some(there) => {
            let marked = pipeline.attribute(name, MARK).await?;
            let all = ReadOptions { level: Some(ReadLevel::Linearizable), full_coverage: true, ..Default::default() };
            let points = pipeline.count(name, None, &all).await?.count;
            way(name, archived, mark, Some((&there.spec, &marked, points)))?
        }
    };
    let collection = match (way, there) {
        (Way::GoOn, Some(there)) => return Ok(there),
        (Way::Fill(update), _) => pipeline.update_collection(update).await?,
        _ => {
            let shard_count = if shards > 0 { shards } else { archived.shard_count };
            let spec = CollectionSpec { name: name.to_owned(), shard_count, ..archived.clone() };
            match pipeline.create_collection(spec.clone()).await {
                // There may be fewer nodes here than there were.
                Err(error) if error.kind == Kind::Precondition => {
                    pipeline.create_collection(CollectionSpec { replication_factor: 0, ..spec }).await?
                }
                created => created?,
            }
        }
    };
    let mut attributes: BTreeMap<String, String> = verified.header.attributes.clone();
    attributes.insert(MARK.to_owned(), mark.to_owned());
    pipeline.set_attributes(name, attributes).await?;
    Ok(collection)
}

/// Writes a batch until all of it is acknowledged. Whole points written again are the same points.
async fn write(pipeline: &Pipeline, name: &str, batch: Vec<Point>) -> Result<(), Error> {
    let mut attempt = 0;
    loop {
        let points = batch.iter().cloned().map(|point| (point, None)).collect();
        let error = match pipeline.upsert_stored(name, points, BATCH_WITHIN).await {
            Ok(answer) => match answer.errors.into_iter().next() {
                None => return Ok(()),
                Some(error) => Error::new(Kind::Unavailable, error.message),
            },
            Err(error) => error,
        };
        attempt += 1;
        let passing = matches!(error.kind, Kind::Overloaded | Kind::Deadline | Kind::Unavailable | Kind::NotDone);
        if !passing || attempt == ATTEMPTS {
            let message = format!(
                "the restore of {name:?} did not end, restore the same snapshot again to go on: {}",
                error.message
            );
            return Err(Error::new(error.kind, message));
        }
        sleep((PAUSE.0 * (1 << attempt.min(6))).min(PAUSE.1)).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::collection::{FieldKind, VectorSpec};
    use nearring_proto::vector::{Metric, ScalarKind};

    use super::*;

    #[test]
    fn only_what_is_missing_empty_or_half_restored_from_the_same_is_restored_into() {
        let vector = VectorSpec { dimension: 3, metric: Metric::Dot, scalar: ScalarKind::F16 };
        let spec = CollectionSpec {
            name: "books".into(),
            vectors: [(String::new(), vector.clone())].into(),
            payload_indexes: [("lang".into(), FieldKind::Keyword)].into(),
            shard_count: 2,
            replication_factor: 3,
            routing_separator: String::new(),
            index: Default::default(),
            documents: None,
            sparse_vectors: Default::default(),
            multi_vectors: Default::default(),
        };
        let way = |there| way("b", &spec, "aa", there);
        assert_eq!(way(None).unwrap(), Way::Create);
        assert_eq!(way(Some((&spec, "aa", 9))).unwrap(), Way::GoOn);
        let refused = |there| {
            let error = way(Some(there)).unwrap_err();
            assert_eq!(error.kind, Kind::AlreadyExists);
            error.message
        };
        assert!(refused((&spec, "bb", 0)).contains("another snapshot"));
        assert!(refused((&spec, "", 9)).contains("9 points"));
        let other = CollectionSpec {
            shard_count: 5,
            payload_indexes: [("year".into(), FieldKind::Integer)].into(),
            ..spec.clone()
        };
        let Way::Fill(update) = way(Some((&other, "", 0))).unwrap() else { panic!("another way") };
        assert_eq!(update.drop_payload_indexes, ["year"]);
        assert!(update.add_payload_indexes.contains_key("lang"));
        let different = VectorSpec { dimension: 4, ..vector };
        let different = CollectionSpec { vectors: [(String::new(), different)].into(), ..spec.clone() };
        assert!(refused((&different, "", 0)).contains("other vectors"));
    }
}
