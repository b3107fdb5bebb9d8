//! Names of a shard's files, and which may go.
//!
//! ```text
//! shards/<shard>/owner                        the replica (node, incarnation) whose state this is
//!                snapshot-<index>.nrs         complete; the highest counts
//!                store-<generation>/          the key-value store, a cache of snapshot and log
//!                segments/<number>-<hash>.seg
//!                incoming/                    unfinished; emptied at every start
//! ```
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nearring_proto::ids::ReplicaId;

use crate::machine::command::SegmentHash;

/// The directory of a shard.
pub fn shard_dir(data_dir: &Path, shard: u64) -> PathBuf {
    data_dir.join("shards").join(shard.to_string())
}

/// What the file `owner` holds.
pub fn owner_text(replica: ReplicaId) -> String {
    format!("nearring shard 1 {} {}\n", replica.node.0, replica.incarnation.0)
}

/// The name of a snapshot at a log index.
pub fn snapshot_name(index: u64) -> String {
    format!("snapshot-{index:020}.nrs")
}

/// The index in a snapshot's name.
pub fn snapshot_index(name: &str) -> Option<u64> {
    name.strip_prefix("snapshot-")?.strip_suffix(".nrs")?.parse().ok()
}

/// The directory of a store, by generation.
pub fn store_dir(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("store-{generation}"))
}

/// The generation in a store directory's name.
pub fn store_generation(name: &str) -> Option<u64> {
    name.strip_prefix("store-")?.parse().ok()
}

/// The name of a segment file.
pub fn segment_name(segment: u64, hash: &SegmentHash) -> String {
    format!("{segment:020}-{}.seg", hex(hash))
}

/// Number and hash in a segment file's name.
pub fn parse_segment_name(name: &str) -> Option<(u64, SegmentHash)> {
    let (number, hash) = name.strip_suffix(".seg")?.split_once('-')?;
    Some((number.parse().ok()?, unhex(hash)?))
}

/// Lower-case hexadecimal.
pub fn hex(hash: &SegmentHash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

fn unhex(text: &str) -> Option<SegmentHash> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}

/// Whether a segment file may be deleted. It must stay while the manifest names it, while a snapshot on disk names it (a
/// restart may begin there), and while its seal is undecided here: its builder may count on this copy.
pub fn is_garbage(
    number: u64,
    hash: &SegmentHash,
    manifest: &BTreeSet<SegmentHash>,
    snapshots: &BTreeSet<SegmentHash>,
    pending: &BTreeSet<u64>,
    applied: u64,
) -> bool {
    !manifest.contains(hash) && !snapshots.contains(hash) && !pending.contains(&number) && number <= applied
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_read_back() {
        let hash = [0xab; 32];
        assert_eq!(parse_segment_name(&segment_name(77, &hash)), Some((77, hash)));
        assert_eq!(snapshot_index(&snapshot_name(12)), Some(12));
        assert_eq!(parse_segment_name("77-zz.seg"), None);
        assert_eq!(snapshot_index("snapshot-1.nrs.tmp"), None);
        assert_eq!(store_generation("store-3"), Some(3));
    }

    #[test]
    fn a_file_stays_while_anything_may_need_it() {
        let (hash, other) = ([1; 32], [2; 32]);
        let set = |hashes: &[SegmentHash]| hashes.iter().copied().collect::<BTreeSet<_>>();
        let none = BTreeSet::new();
        assert!(is_garbage(5, &hash, &set(&[other]), &none, &BTreeSet::new(), 9));
        assert!(!is_garbage(5, &hash, &set(&[hash]), &none, &BTreeSet::new(), 9));
        assert!(!is_garbage(5, &hash, &none, &set(&[hash]), &BTreeSet::new(), 9));
        assert!(!is_garbage(5, &hash, &none, &none, &BTreeSet::from([5]), 9));
        assert!(!is_garbage(5, &hash, &none, &none, &BTreeSet::new(), 4), "its seal has not been applied here");
    }
}
