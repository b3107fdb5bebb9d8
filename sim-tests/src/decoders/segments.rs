//! Segment files. A graph's insides are covered by the file's hash only, so a file whose hash is made right here carries none
//! that was changed.
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use nearring_node::index::change::{IndexChange, InstalledSegment};
use nearring_node::index::{GRAPH_FROM, Member, SealWork, Segment, ShardIndex};
use nearring_proto::collection::{CollectionSpec, IndexSpec, VectorSpec};
use nearring_proto::ids::{PointId, Version};
use nearring_proto::query::SearchQuery;
use nearring_proto::vector::{self, Metric, ScalarKind};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Burst, choice, chosen, done};

const HEADER: usize = 64;
const FOOTER: usize = 48;
const FLAGS: usize = 12;

/// A real file of `members` points in all directions.
fn build(members: usize, metric: Metric) -> Bytes {
    let index = IndexSpec { m: 8, ef_construction: 32, ..IndexSpec::default() };
    let spec = VectorSpec { dimension: 8, metric, scalar: ScalarKind::default_for(metric) };
    let mut rng = SmallRng::seed_from_u64(1);
    let member = |number: usize| {
        let id = match number % 7 {
            0 => PointId::Text(format!("doc#{number:06}")),
            1 => PointId::Uuid(uuid::Uuid::from_u128(number as u128)),
            _ => PointId::Number(number as u64),
        };
        let mut values: Vec<f32> = (0..8).map(|_| rng.random_range(-1.0..1.0)).collect();
        vector::normalize(&mut values);
        Member::new(id, Version { epoch: 1, index: number as u64 }, values)
    };
    let mut members: Vec<Member> = (0..members).map(member).collect();
    members.sort_by(|a, b| a.id.cmp(&b.id));
    let work = SealWork { segment: 9, vector: "title".to_owned(), spec, index, members };
    Bytes::from(done(Segment::build(&work)))
}

fn with_graph() -> &'static Bytes {
    static FILE: OnceLock<Bytes> = OnceLock::new();
    FILE.get_or_init(|| build(GRAPH_FROM, Metric::Cosine))
}

fn without_graph() -> &'static Bytes {
    static FILE: OnceLock<Bytes> = OnceLock::new();
    FILE.get_or_init(|| build(9, Metric::L2))
}

/// Any bytes; any content under a right footer; real files with and without a graph, damaged, which must be noticed. A file that
/// opens is whole: every member is found, has its row, and can be searched for.
pub fn segment_files(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    let file = match which % 4 {
        0 => Bytes::copy_from_slice(bytes),
        1 => with_footer(bytes),
        real => {
            let sound = if real == 2 { with_graph() } else { without_graph() };
            let Some(burst) = Burst::of(bytes) else { return false };
            let mut file = sound.to_vec();
            let at = burst.strike(&mut file);
            match bytes.get(Burst::BYTES).map_or(0, |more| more % 3) {
                0 => {}
                1 => file.truncate(at),
                // Another file's end, as where two were written over one another.
                _ => file.splice(at.., without_graph()[at % without_graph().len()..].iter().copied()).for_each(drop),
            }
            if file == *sound {
                return false;
            }
            // What another file was written over from its beginning is whole, and is not the one that is wanted.
            let wanted = Some(done(Segment::file_hash(sound)));
            assert!(Segment::open(Bytes::from(file), wanted).is_err(), "damage was not noticed");
            return true;
        }
    };
    let Ok(segment) = Segment::open(file.clone(), None) else { return false };
    assert_eq!(done(Segment::file_hash(&file)), segment.hash());
    let other = Some([!segment.hash()[0]; 32]);
    assert!(Segment::open(file, other).is_err());
    whole(segment);
    true
}

/// A file with this content, which owns up to no graph.
fn with_footer(content: &[u8]) -> Bytes {
    let mut file = content.to_vec();
    if file.len() >= HEADER {
        file[FLAGS..FLAGS + 4].fill(0);
    }
    let hash = blake3::hash(&file);
    let length = file.len() as u64;
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(b"NRSEGEND");
    file.extend_from_slice(hash.as_bytes());
    Bytes::from(file)
}

fn whole(segment: Segment) {
    let members: Vec<(PointId, Version)> = segment.members().collect();
    assert_eq!(members.len(), segment.len());
    let mut index = ShardIndex::new();
    let vectors = BTreeMap::from([(segment.vector().to_owned(), segment.spec().clone())]);
    index.apply(IndexChange::Configure(CollectionSpec { vectors, ..super::machine::spec() }));
    for (row, (id, stamp)) in (0_u32..).zip(&members) {
        assert_eq!(segment.row_of(id, *stamp), Some(row));
        assert_eq!(segment.row(row).len(), segment.spec().dimension as usize);
        let stamps = BTreeMap::from([(segment.vector().to_owned(), *stamp)]);
        index.restore_record(id.clone(), *stamp, &stamps, None);
    }
    let entry = InstalledSegment {
        segment: segment.number(),
        hash: segment.hash(),
        vector: segment.vector().to_owned(),
        sources: Vec::new(),
        members: members.len() as u64,
        bytes: segment.bytes(),
    };
    let query = SearchQuery {
        vector_name: segment.vector().to_owned(),
        target: vec![0.5; segment.spec().dimension as usize].into(),
        limit: 10,
        filter: None,
        exact: true,
        ef: None,
        with_payload: false,
        with_vectors: false,
        score_threshold: None,
    };
    let segment = Arc::new(segment);
    index.restore_manifest(&[entry], BTreeMap::from([(segment.hash(), segment.clone())]));
    assert!(index.wanted().is_empty(), "a member's components are not found");
    let found = done(index.search(&query, &|_| None));
    assert_eq!(found.len(), members.len().min(10));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let file = without_graph();
    vec![
        chosen(0, file),
        chosen(1, &file[..file.len() - FOOTER]),
        chosen(2, &[0, 1, 0, 0, 1, 0, 0, 0, 0]),
        chosen(2, &[200, 200, 1, 0, 1, 0, 0, 0, 0]),
        chosen(2, &[200, 200, 1, 0, 1, 0, 0, 0, 1]),
        chosen(3, &[70, 0, 0, 0, 1, 0, 0, 0, 2]),
    ]
}
