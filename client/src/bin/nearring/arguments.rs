//! Values on the command line that several commands read.
use clap::{Args, ValueEnum};
use nearring_client::wire;
use nearring_proto::filter::Filter;

/// How fresh a read is.
#[derive(Args, Clone)]
pub(crate) struct Read {
    /// How fresh the answer must be. Without it: the operation's default.
    #[arg(long, value_enum)]
    level: Option<Level>,

    /// Only this node's replicas may answer.
    #[arg(long, value_name = "NODE")]
    replica: Option<u64>,
}

#[derive(ValueEnum, Clone, Copy)]
enum Level {
    Eventual,
    Session,
    Linearizable,
}

impl Read {
    /// With `--replica` and no `--level`, what that node holds right now: the point of naming it.
    pub(crate) fn options(&self) -> wire::ReadOptions {
        let level = match (self.level, self.replica) {
            (Some(Level::Eventual), _) | (None, Some(_)) => wire::ReadLevel::Eventual,
            (Some(Level::Session), _) => wire::ReadLevel::Session,
            (Some(Level::Linearizable), _) => wire::ReadLevel::Linearizable,
            (None, None) => wire::ReadLevel::Unspecified,
        };
        wire::ReadOptions { level: level as i32, replica_node: self.replica.unwrap_or(0), ..Default::default() }
    }
}

/// A filter in JSON, as `{"equals":{"path":"lang","value":"en"}}`.
pub(crate) fn filter(text: &str) -> Result<wire::Filter, String> {
    let filter: Filter = serde_json::from_str(text).map_err(|error| {
        format!("{error}; write it as {{\"equals\":{{\"path\":\"lang\",\"value\":\"en\"}}}}, or with all, any, not, in, range, exists, is_null, ids, has_vector")
    })?;
    filter.check().map_err(|error| error.to_string())?;
    Ok(filter.into())
}

/// Components as `[0.1, 0.2]` or `0.1,0.2`.
pub(crate) fn vector(text: &str) -> Result<Vec<f32>, String> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    inner
        .split([',', ' '])
        .filter(|part| !part.is_empty())
        .map(|part| part.parse::<f32>().map_err(|_| format!("{part:?} is not a number")))
        .collect()
}

/// What nearness means.
#[derive(ValueEnum, Clone, Copy)]
pub(crate) enum Metric {
    Cosine,
    Dot,
    L2,
    L1,
}

impl Metric {
    pub(crate) fn wire(self) -> wire::Metric {
        match self {
            Metric::Cosine => wire::Metric::Cosine,
            Metric::Dot => wire::Metric::Dot,
            Metric::L2 => wire::Metric::L2,
            Metric::L1 => wire::Metric::L1,
        }
    }
}

/// What the index's graph stores of a vector.
#[derive(ValueEnum, Clone, Copy)]
pub(crate) enum Scalar {
    F32,
    F16,
    I8,
}

impl Scalar {
    pub(crate) fn wire(self) -> wire::ScalarKind {
        match self {
            Scalar::F32 => wire::ScalarKind::F32,
            Scalar::F16 => wire::ScalarKind::F16,
            Scalar::I8 => wire::ScalarKind::I8,
        }
    }
}

/// `path=kind` of a payload index.
pub(crate) fn payload_index(text: &str) -> Result<(String, wire::FieldKind), String> {
    let (path, kind) = text.split_once('=').ok_or("write it as path=kind, for example lang=keyword")?;
    let kind = match kind {
        "keyword" => wire::FieldKind::Keyword,
        "integer" => wire::FieldKind::Integer,
        "float" => wire::FieldKind::Float,
        "bool" => wire::FieldKind::Bool,
        "datetime" => wire::FieldKind::Datetime,
        other => return Err(format!("{other:?} is not keyword, integer, float, bool or datetime")),
    };
    Ok((path.to_owned(), kind))
}

/// `name` or `name=idf` of a sparse vector.
pub(crate) fn sparse(text: &str) -> Result<(String, wire::SparseSpec), String> {
    let (name, modifier) = match text.split_once('=') {
        None => (text, wire::Modifier::None),
        Some((name, "idf")) => (name, wire::Modifier::Idf),
        Some((_, other)) => return Err(format!("{other:?} is no modifier; idf is one")),
    };
    Ok((name.to_owned(), wire::SparseSpec { modifier: modifier.into() }))
}

/// `name=dimension` of a multi-vector.
pub(crate) fn multi(text: &str) -> Result<(String, u32), String> {
    let (name, dimension) = text.split_once('=').ok_or("write it as name=dimension, for example colbert=128")?;
    Ok((name.to_owned(), dimension.parse().map_err(|_| format!("{dimension:?} is no number of components"))?))
}

/// How a new collection is laid out.
#[derive(Args, Clone)]
pub(crate) struct Layout {
    /// Shards; 0 = the default.
    #[arg(long, default_value_t = 0)]
    shards: u32,

    /// Replicas of each shard; 0 = 3, or 1 with fewer than three nodes.
    #[arg(long, default_value_t = 0)]
    replication: u32,

    /// What the index's graph stores; scores always come from full precision. Without it: i8 for cosine, f16 otherwise.
    #[arg(long, value_enum)]
    scalar: Option<Scalar>,

    /// A payload field to index, as path=keyword|integer|float|bool|datetime; may be repeated.
    #[arg(long = "index", value_name = "PATH=KIND", value_parser = payload_index)]
    indexes: Vec<(String, wire::FieldKind)>,

    /// Graph neighbours of a point; 0 = the default.
    #[arg(long, default_value_t = 0)]
    m: u32,

    /// Breadth of the walk that builds a graph; 0 = the default.
    #[arg(long, default_value_t = 0)]
    ef_construction: u32,

    /// Breadth of the walk that searches one; 0 = the default.
    #[arg(long, default_value_t = 0)]
    ef_search: u32,

    /// Vectors in the tail at which a segment is built at once; 0 = the default.
    #[arg(long, default_value_t = 0)]
    seal_points: u32,
}

impl Layout {
    /// Lays what was given over what a collection has elsewhere. A lone shard or replica there says only that it is a lone
    /// machine: here the cluster's defaults take their place.
    pub(crate) fn over(&self, spec: &mut wire::CollectionSpec) {
        let several =
            |given: u32, there: u32| if given > 0 { given } else { Some(there).filter(|n| *n > 1).unwrap_or(0) };
        spec.shard_count = several(self.shards, spec.shard_count);
        spec.replication_factor = several(self.replication, spec.replication_factor);
        if let Some(scalar) = self.scalar {
            spec.vectors.values_mut().for_each(|vector| vector.scalar = scalar.wire() as i32);
        }
        spec.payload_indexes.extend(self.indexes.iter().map(|(path, kind)| (path.clone(), *kind as i32)));
        let index = spec.index.get_or_insert_default();
        let given = |given: u32, there: &mut u32| *there = if given > 0 { given } else { *there };
        given(self.m, &mut index.m);
        given(self.ef_construction, &mut index.ef_construction);
        given(self.ef_search, &mut index.ef_search);
        given(self.seal_points, &mut index.seal_points);
    }

    /// A collection's specification with one vector more than none: `name` of `dimension` components.
    pub(crate) fn spec(&self, collection: &str, name: &str, dimension: u32, metric: Metric) -> wire::CollectionSpec {
        let scalar = self.scalar.map_or(wire::ScalarKind::Unspecified, Scalar::wire) as i32;
        let vector = wire::VectorSpec { dimension, metric: metric.wire() as i32, scalar };
        wire::CollectionSpec {
            name: collection.to_owned(),
            vectors: [(name.to_owned(), vector)].into(),
            payload_indexes: self.indexes.iter().map(|(path, kind)| (path.clone(), *kind as i32)).collect(),
            shard_count: self.shards,
            replication_factor: self.replication,
            index: Some(wire::IndexSpec {
                m: self.m,
                ef_construction: self.ef_construction,
                ef_search: self.ef_search,
                seal_points: self.seal_points,
            }),
            ..Default::default()
        }
    }
}

/// What makes a collection take documents: an embedder, the vector it writes, the field of the text, and `#` between a
/// document's id and a chunk's number, so that its chunks share a home.
pub(crate) fn for_documents(spec: &mut wire::CollectionSpec, embedder: &str, vector: &str) {
    spec.routing_separator = "#".to_owned();
    spec.documents = Some(wire::DocumentSpec {
        embedder: embedder.to_owned(),
        vector: vector.to_owned(),
        text_field: "text".to_owned(),
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_lone_replica_elsewhere_becomes_the_default_and_flags_go_over_everything() {
        use clap::Parser;
        #[derive(Parser)]
        struct Program {
            #[command(flatten)]
            layout: Layout,
        }
        let over = |flags: &[&str], shards, replicas| {
            let mut spec = wire::CollectionSpec {
                vectors: [("v".to_owned(), wire::VectorSpec::default())].into(),
                shard_count: shards,
                replication_factor: replicas,
                index: Some(wire::IndexSpec { m: 24, ef_construction: 200, ef_search: 0, seal_points: 0 }),
                ..Default::default()
            };
            Program::try_parse_from([&["p"], flags].concat()).unwrap().layout.over(&mut spec);
            spec
        };
        let plain = over(&[], 1, 1);
        assert_eq!((plain.shard_count, plain.replication_factor, plain.index.unwrap().m), (0, 0, 24));
        let several = over(&[], 4, 3);
        assert_eq!((several.shard_count, several.replication_factor), (4, 3));
        let given =
            over(&["--shards", "6", "--replication", "1", "--scalar", "f32", "--m", "32", "--index", "a=bool"], 4, 3);
        assert_eq!((given.shard_count, given.replication_factor, given.index.unwrap().m), (6, 1, 32));
        assert_eq!(given.vectors["v"].scalar(), wire::ScalarKind::F32);
        assert!(given.payload_indexes.contains_key("a"));
    }

    #[test]
    fn vectors_and_filters_are_read_as_they_are_usually_typed() {
        assert_eq!(vector("[0.5, -1,2e1]"), Ok(vec![0.5, -1.0, 20.0]));
        assert_eq!(vector("1 2"), Ok(vec![1.0, 2.0]));
        assert!(vector("1,x").unwrap_err().contains("\"x\""));
        assert!(filter(r#"{"not":{"equals":{"path":"a","value":1}}}"#).is_ok());
        assert!(filter(r#"{"equal":{"path":"a","value":1}}"#).unwrap_err().contains("equals"));
        assert_eq!(sparse("words=idf").unwrap().1.modifier(), wire::Modifier::Idf);
        assert!(sparse("words=bm25").unwrap_err().contains("idf"));
        assert_eq!(multi("tokens=128"), Ok(("tokens".to_owned(), 128)));
        assert!(multi("tokens").is_err() && multi("tokens=x").is_err());
        assert!(payload_index("a=int").unwrap_err().contains("integer"));
    }
}
