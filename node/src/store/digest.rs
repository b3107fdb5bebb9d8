//! What replicas compare: one number for all records, independent of the order they were written in.
use nearring_proto::ids::PointId;

use crate::machine::record::Record;

/// A record's part of the digest: 16 bytes of blake3 over (length of the key u32 · key · record). The digest of a shard is
/// the wrapping sum over its records, so a change costs two hashes. It finds accidents, not forgeries.
pub fn digest_of(id: &PointId, record: &Record) -> u128 {
    digest_of_pair(&id.to_key(), &record.encode())
}

/// 16 bytes of blake3 over (length of the key u32 · key · value).
pub(super) fn digest_of_pair(key: &[u8], value: &[u8]) -> u128 {
    let mut bytes = u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    let hash = blake3::hash(&bytes);
    hash.as_bytes().first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}
