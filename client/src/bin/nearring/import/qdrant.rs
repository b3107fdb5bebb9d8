//! `nearring import --from`: the collections of a running Qdrant, read over its REST API and written through the SDK.
//!
//! The problem: a copy takes long, and what takes long is interrupted. **Rules:**
//! - Everything is looked at before anything is written: a collection that cannot be had here, or that is here already with
//!   other vectors, ends the command with nothing changed.
//! - Points come page by page, by id, and are written by id, so writing one again is harmless. How far it got is kept in a
//!   small file ([`State`]) once a page is acknowledged: the same command goes on from there. The file names the source, this
//!   cluster and the collections here, so that it never speaks of others.
//! - At the end both sides are counted. Where the counts differ the ids are compared, the difference is told, the command
//!   fails, and the next run reads that collection from its beginning.
//! - Aliases are given last, to collections that were counted. One that means another collection here is left alone, and told.
//!
//! What it deliberately does not do: follow writes at the source that go on meanwhile (stop them, or run it again: counts
//! differ until both are the same), compare vectors and payloads, copy collections with shard keys.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::pin;

use futures::stream::{self, StreamExt};
use indicatif::ProgressBar;
use nearring_client::{Client, ErrorKind, ImportOptions, wire};
use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::PointId;
use nearring_router::gateway::qdrant::copy::{self, Copied};
use nearring_router::model_server::{ApiKey, Failed};
use nearring_router::qdrant_server::{PointsPage, QdrantServer, QdrantServerSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Import, bar};
use crate::Context;
use crate::output::{Failure, hex, id_of};

/// The variable with the source's key. There is no flag: every user of a machine can read a program's flags.
const KEY: &str = "NEARRING_IMPORT_KEY";
/// The state file's format.
const FORMAT: u32 = 1;
/// Ids in one page where ids are compared.
const IDS: usize = 10_000;
/// Ids that are named of those that one side lacks.
const NAMED: usize = 5;

/// How far a copy is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct State {
    format: u32,
    /// Where it is copied from.
    source: String,
    /// The cluster that it is copied to.
    cluster: String,
    collections: BTreeMap<String, Progress>,
}

/// How far one collection is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Progress {
    /// The collection here: one that was deleted and created again is another.
    id: u64,
    /// The source's id from which points are still to come; `None` = from the first.
    next: Option<Value>,
    /// Points written.
    written: u64,
    /// All of them are.
    complete: bool,
}

impl State {
    /// What was kept, if it is of this source and this cluster.
    fn read(path: &Path, source: &str, cluster: &str) -> Result<Self, Failure> {
        let fresh =
            || Self { format: FORMAT, source: source.to_owned(), cluster: cluster.to_owned(), collections: [].into() };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(fresh()),
            Err(error) => return Err(Failure::of(path.display(), error)),
        };
        let other = |what: &str| {
            let advice = "name another file with --state, or remove this one to begin anew";
            Err(Failure::of(path.display(), Failure::new(format!("{what}; {advice}"))))
        };
        let kept: Self = match serde_json::from_str(&text) {
            Ok(kept) => kept,
            Err(error) => return other(&format!("is no state of an import ({error})")),
        };
        if kept.format != FORMAT {
            return other(&format!("has format {}, this version knows {FORMAT}", kept.format));
        }
        if (kept.source.as_str(), kept.cluster.as_str()) != (source, cluster) {
            return other(&format!("belongs to an import from {} into cluster {}", kept.source, kept.cluster));
        }
        Ok(kept)
    }

    /// Replaces the file: whole, or not at all.
    fn write(&self, path: &Path) -> Result<(), Failure> {
        let beside = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(self).map_err(|error| Failure::new(error.to_string()))?;
        std::fs::write(&beside, text + "\n").map_err(|error| Failure::of(beside.display(), error))?;
        std::fs::rename(&beside, path).map_err(|error| Failure::of(path.display(), error))
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Failure::new(failed.to_string())
    }
}

/// One collection, as it is there and as it will be here.
struct Planned {
    name: String,
    copied: Copied,
    /// What is here already.
    here: Option<wire::CollectionInfo>,
}

/// How a collection's copy ended.
struct Ended {
    name: String,
    source: u64,
    target: u64,
    /// Where they differ.
    difference: Option<String>,
}

pub(super) async fn run(import: &Import, url: &str, context: &Context) -> Result<(), Failure> {
    let there = |failed: Failed| Failure::of(url, Failure::from(failed));
    let settings = QdrantServerSettings {
        key: std::env::var(KEY).ok().as_deref().and_then(ApiKey::new),
        ..QdrantServerSettings::new(url)
    };
    let source = QdrantServer::new(settings, rand::random())
        .map_err(|error| Failure::new(format!("--from {}", error.to_string().trim_start_matches("url: "))))?;
    let client = &context.client;
    let status = client.cluster_status().await?;
    let cluster = hex(&status.table.unwrap_or_default().cluster_id);
    let mut state = State::read(&import.state, url, &cluster)?;

    let names = picked(source.collections().await.map_err(there)?, &import.collection)?;
    let mut planned = Vec::new();
    for name in names {
        let of = |failure: Failure| Failure::of(format!("collection {name:?}"), failure);
        // Before it is asked for: names go into addresses as they are.
        nearring_proto::collection::check_name(&name, "name").map_err(|error| of(Failure::new(error.to_string())))?;
        let told = source.collection(&name).await.map_err(there)?;
        let mut copied = copy::collection(&name, &told).map_err(|error| of(Failure::new(error.to_string())))?;
        let mut spec = wire::CollectionSpec::from(copied.spec);
        import.layout.over(&mut spec);
        copied.spec = CollectionSpec::try_from(spec).map_err(|error| of(Failure::new(error.to_string())))?;
        let here = match client.describe_collection(&name).await {
            Ok(here) => Some(here),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(here) = &here {
            let spec = CollectionSpec::try_from(here.spec.clone().unwrap_or_default());
            let spec = spec.map_err(|error| of(Failure::new(error.to_string())))?;
            if spec.name != name {
                return Err(of(Failure::new(format!("is an alias of {:?} here; remove it first", spec.name))));
            }
            if let Some(vector) = unlike(&copied.spec, &spec) {
                let reason = format!("exists here with another vector {vector:?}; delete it or copy it elsewhere");
                return Err(of(Failure::new(reason)));
            }
        }
        planned.push(Planned { name, copied, here });
    }
    let aliases = wanted_aliases(&source, &planned).await.map_err(there)?;

    let mut ended = Vec::new();
    for planned in planned {
        let name = planned.name.clone();
        let id =
            create(client, planned).await.map_err(|failure| Failure::of(format!("collection {name:?}"), failure))?;
        copy_points(import, &source, client, (&name, id), &mut state).await.map_err(|failure| {
            let how = "the same command goes on where this one ended";
            Failure::of(format!("collection {name:?}"), Failure::new(format!("{failure}\n  {how}")))
        })?;
        ended.push(verify(&source, client, name).await?);
    }
    let alike: BTreeSet<&str> =
        ended.iter().filter(|ended| ended.difference.is_none()).map(|ended| ended.name.as_str()).collect();
    let (given, left) = give_aliases(client, aliases, &alike).await?;
    let told = json!({
        "collections": ended.iter().map(|ended| json!({
            "collection": ended.name, "source": ended.source, "target": ended.target,
            "equal": ended.difference.is_none(), "difference": ended.difference,
        })).collect::<Vec<_>>(),
        "aliases": given,
    });
    context.output.write(&told, || {
        let mut text = Vec::new();
        for ended in ended.iter().filter(|ended| ended.difference.is_none()) {
            text.push(format!("{}: {} points, as many as there", ended.name, ended.target));
        }
        text.extend(given.iter().map(|(alias, collection)| format!("alias {alias}: {collection}")));
        text.join("\n")
    })?;
    let mut failures: Vec<String> = Vec::new();
    for Ended { name, difference, .. } in &ended {
        if let Some(difference) = difference {
            state.collections.remove(name);
            failures.push(format!("collection {name:?} differs: {difference}"));
        }
    }
    failures.extend(left);
    if failures.is_empty() {
        return match std::fs::remove_file(&import.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::of(import.state.display(), error))
            }
            _ => Ok(()),
        };
    }
    state.write(&import.state)?;
    Err(Failure::new(failures.join("\n")))
}

/// The collections that are copied: those that were named, or all.
fn picked(there: Vec<String>, wanted: &[String]) -> Result<Vec<String>, Failure> {
    if let Some(missing) = wanted.iter().find(|name| !there.contains(name)) {
        return Err(Failure::new(format!("the source has no collection {missing:?}; it has {}", there.join(", "))));
    }
    Ok(there.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

/// A vector that two collections do not have alike. What the graph stores of it may differ.
fn unlike(wanted: &CollectionSpec, here: &CollectionSpec) -> Option<String> {
    let names: BTreeSet<&str> = wanted.vector_names().chain(here.vector_names()).collect();
    let dense = |spec: &CollectionSpec, name: &str| spec.vectors.get(name).map(|v| (v.dimension, v.metric));
    let differs = |name: &&str| {
        dense(wanted, name) != dense(here, name)
            || wanted.sparse_vectors.get(*name) != here.sparse_vectors.get(*name)
            || wanted.multi_vectors.get(*name) != here.multi_vectors.get(*name)
    };
    names.into_iter().find(differs).map(str::to_owned)
}

async fn wanted_aliases(source: &QdrantServer, planned: &[Planned]) -> Result<BTreeMap<String, String>, Failed> {
    let mut aliases = source.aliases().await?;
    aliases.retain(|_, collection| planned.iter().any(|planned| planned.name == *collection));
    Ok(aliases)
}

/// The collection here, with all that is told of it; its id.
async fn create(client: &Client, planned: Planned) -> Result<u64, Failure> {
    let Planned { name, copied: Copied { spec, attributes }, here } = planned;
    let id = match here {
        Some(here) => {
            let known = here.spec.unwrap_or_default().payload_indexes;
            let missing = spec.payload_indexes.into_iter().filter(|(path, _)| !known.contains_key(path));
            let add: BTreeMap<String, i32> =
                missing.map(|(path, kind)| (path, wire::FieldKind::from(kind) as i32)).collect();
            if !add.is_empty() {
                let add_payload_indexes = add.into_iter().collect();
                let update = wire::UpdateCollection { name: name.clone(), add_payload_indexes, ..Default::default() };
                client.update_collection(update).await?;
            }
            here.id
        }
        None => match client.create_collection(spec.into()).await {
            Ok(info) => info.id,
            // An attempt whose answer was lost.
            Err(error) if error.kind == ErrorKind::AlreadyExists => client.describe_collection(&name).await?.id,
            Err(error) => return Err(error.into()),
        },
    };
    if !attributes.is_empty() {
        client.set_attributes(&name, attributes).await?;
    }
    Ok(id)
}

async fn copy_points(
    import: &Import,
    source: &QdrantServer,
    client: &Client,
    (name, id): (&str, u64),
    state: &mut State,
) -> Result<(), Failure> {
    let begin = Progress { id, next: None, written: 0, complete: false };
    let mut progress = state.collections.get(name).cloned().filter(|kept| kept.id == id).unwrap_or(begin);
    if progress.complete {
        return Ok(());
    }
    if let Some(next) = &progress.next {
        eprintln!("{name}: going on from point {next}, after {} points", progress.written);
    }
    let shown = bar(Some(source.count(name).await?), "points");
    shown.set_position(progress.written);
    let page_points = import.batch_points.max(1);
    let in_flight = import.in_flight.max(1);
    let options = ImportOptions { batch_points: page_points.div_ceil(in_flight), in_flight, ..Default::default() };
    let copied = async {
        let mut page = source.scroll(name, progress.next.as_ref(), page_points, false).await?;
        loop {
            let PointsPage { points, next } = page;
            let points = points.into_iter().map(upsert).collect::<Result<Vec<_>, Failure>>()?;
            let count = points.len() as u64;
            let written = progress.written;
            let write = client.import(name, stream::iter(points), options, |done| shown.set_position(written + done));
            // The next page is read while this one is written.
            let read = async {
                match &next {
                    Some(next) => source.scroll(name, Some(next), page_points, false).await.map(Some),
                    None => Ok(None),
                }
            };
            let (report, following) = futures::join!(write, read);
            let report = report?;
            if report.applied != count {
                return Err(Failure::new(format!("{} of {count} points were not written", count - report.applied)));
            }
            progress.written += count;
            progress.complete = next.is_none();
            progress.next = next;
            state.collections.insert(name.to_owned(), progress.clone());
            state.write(&import.state)?;
            match following? {
                Some(following) => page = following,
                None => return Ok(()),
            }
        }
    };
    let ended = copied.await;
    ProgressBar::finish_and_clear(&shown);
    ended
}

fn upsert(told: Value) -> Result<wire::UpsertPoint, Failure> {
    let point = copy::point(told).map_err(|error| Failure::new(error.to_string()))?;
    Ok(wire::UpsertPoint { point: Some(point.into()), precondition: None })
}

/// Counts both sides, and says which points they differ in.
async fn verify(source: &QdrantServer, client: &Client, name: String) -> Result<Ended, Failure> {
    let there = source.count(&name).await?;
    let request = wire::CountRequest { collection: name.clone(), ..Default::default() };
    let here = client.count(request).await?.count;
    let difference = match there == here {
        true => None,
        false => Some(format!("{there} points there, {here} here{}", compared(source, client, &name).await?)),
    };
    Ok(Ended { name, source: there, target: here, difference })
}

/// The ids that only one side has, as an end of a sentence.
async fn compared(source: &QdrantServer, client: &Client, name: &str) -> Result<String, Failure> {
    let there = stream::try_unfold(Some(None::<Value>), async |at| {
        let Some(from) = at else { return Ok::<_, Failure>(None) };
        let page = source.scroll(name, from.as_ref(), IDS, true).await?;
        let ids = page.points.iter().map(|point| copy::id(&point["id"]));
        let ids = ids.collect::<Result<Vec<_>, _>>().map_err(|error| Failure::new(error.to_string()))?;
        Ok(Some((stream::iter(ids.into_iter().map(Ok::<_, Failure>)), page.next.map(Some))))
    });
    let there = futures::TryStreamExt::try_flatten(there);
    let limit = u32::try_from(IDS).unwrap_or(u32::MAX);
    let request = wire::ScrollRequest { collection: name.to_owned(), limit, ..Default::default() };
    let here = client.scroll_all(request).map(|point| Ok::<_, Failure>(id_of(point?.id)));
    let Some(Differences { only_there, only_here }) = differences(there, here).await? else {
        return Ok("; the source does not list its points by id, so they were not compared".to_owned());
    };
    let told = |(count, named): &(u64, Vec<PointId>), side: &str| {
        let named: Vec<String> = named.iter().map(PointId::to_string).collect();
        let more = if *count > named.len() as u64 { ", …" } else { "" };
        (*count > 0).then(|| format!("; {count} only {side}: {}{more}", named.join(", ")))
    };
    let sides = [told(&only_there, "there"), told(&only_here, "here")];
    let advice = match only_here.0 {
        0 => "; run the same command again once nobody writes to the source",
        _ => "; delete what is only here, or import into a collection that does not exist",
    };
    Ok(sides.into_iter().flatten().collect::<String>() + advice)
}

/// Ids that only one of two sides has: how many, and the first few.
#[derive(Default, PartialEq, Debug)]
struct Differences {
    only_there: (u64, Vec<PointId>),
    only_here: (u64, Vec<PointId>),
}

/// Compares two listings in ascending order; `None` where the first is not.
async fn differences(
    there: impl stream::Stream<Item = Result<PointId, Failure>>,
    here: impl stream::Stream<Item = Result<PointId, Failure>>,
) -> Result<Option<Differences>, Failure> {
    let (mut there, mut here) = (pin!(there), pin!(here));
    let mut found = Differences::default();
    let note = |side: &mut (u64, Vec<PointId>), id: &PointId| {
        side.0 += 1;
        if side.1.len() < NAMED {
            side.1.push(id.clone());
        }
    };
    let (mut left, mut right) = (there.next().await.transpose()?, here.next().await.transpose()?);
    loop {
        let (take_left, take_right) = match (&left, &right) {
            (None, None) => return Ok(Some(found)),
            (Some(l), Some(r)) => (l <= r, l >= r),
            (left, _) => (left.is_some(), left.is_none()),
        };
        match (&left, &right, take_left, take_right) {
            (Some(l), _, true, false) => note(&mut found.only_there, l),
            (_, Some(r), false, true) => note(&mut found.only_here, r),
            _ => {}
        }
        if take_left {
            let next = there.next().await.transpose()?;
            if next.as_ref().is_some_and(|next| Some(next) <= left.as_ref()) {
                return Ok(None);
            }
            left = next;
        }
        if take_right {
            right = here.next().await.transpose()?;
        }
    }
}

/// Gives the aliases of collections that were copied whole; the others, with why they were not given.
async fn give_aliases(
    client: &Client,
    wanted: BTreeMap<String, String>,
    alike: &BTreeSet<&str>,
) -> Result<(BTreeMap<String, String>, Vec<String>), Failure> {
    let here = client.list_aliases().await?;
    let (mut given, mut left, mut actions) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (alias, collection) in wanted {
        match here.get(&alias) {
            _ if !alike.contains(collection.as_str()) => {
                left.push(format!("alias {alias:?} was not given: its collection differs"));
                continue;
            }
            Some(other) if *other != collection => {
                left.push(format!("alias {alias:?} means {other:?} here, and {collection:?} there; it was left alone"));
                continue;
            }
            Some(_) => {}
            None => {
                let assign = wire::alias_action::Assign { alias: alias.clone(), collection: collection.clone() };
                actions.push(wire::AliasAction { kind: Some(wire::alias_action::Kind::Assign(assign)) });
            }
        }
        given.insert(alias, collection);
    }
    if !actions.is_empty() {
        client.change_aliases(actions).await?;
    }
    Ok((given, left))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_state_speaks_only_of_its_source_and_cluster_and_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut state = State::read(&path, "http://a", "c1").unwrap();
        assert!(state.collections.is_empty());
        let progress = Progress { id: 7, next: Some(json!("0b6c…")), written: 2048, complete: false };
        state.collections.insert("books".into(), progress);
        state.write(&path).unwrap();
        assert_eq!(State::read(&path, "http://a", "c1").unwrap(), state);
        for (source, cluster) in [("http://b", "c1"), ("http://a", "c2")] {
            let error = State::read(&path, source, cluster).unwrap_err().to_string();
            assert!(error.contains("belongs to an import from http://a"), "{error}");
        }
        std::fs::write(&path, "{\"format\": 1").unwrap();
        assert!(State::read(&path, "http://a", "c1").unwrap_err().to_string().contains("--state"));
    }

    #[tokio::test]
    async fn what_only_one_side_has_is_counted_and_named() {
        let ids = |numbers: &[u64]| {
            let ids: Vec<_> = numbers.iter().map(|number| Ok(PointId::Number(*number))).collect();
            stream::iter(ids)
        };
        let found = differences(ids(&[1, 2, 3, 5, 6]), ids(&[2, 3, 4, 6, 7, 8])).await.unwrap().unwrap();
        let named = |(count, ids): &(u64, Vec<PointId>)| {
            (*count, ids.iter().map(PointId::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(named(&found.only_there), (2, "1 5".into()));
        assert_eq!(named(&found.only_here), (3, "4 7 8".into()));
        let all: Vec<u64> = (0..100).collect();
        let found = differences(ids(&all), ids(&[])).await.unwrap().unwrap();
        assert_eq!((found.only_there.0, found.only_there.1.len()), (100, NAMED));
        assert_eq!(differences(ids(&all), ids(&all)).await.unwrap(), Some(Differences::default()));
        assert_eq!(differences(ids(&[1, 3, 2]), ids(&[1])).await.unwrap(), None);
    }

    #[test]
    fn only_collections_of_the_source_can_be_picked() {
        let there = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(picked(there(), &[]).unwrap(), ["a", "b"]);
        assert_eq!(picked(there(), &["b".to_owned()]).unwrap(), ["b"]);
        assert!(picked(there(), &["c".to_owned()]).unwrap_err().to_string().contains("it has a, b"));
    }
}
