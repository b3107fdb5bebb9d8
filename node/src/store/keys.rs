//! The keys of a shard's store, and the sealing of its values.
//!
//! ```text
//! m                    digest of all sessions u128 · the machine's meta
//! r · PointId::to_key  a point's record; keys sort as ids do
//! s · session          a session, 16 bytes
//! value = crc32 u32 of (key · bytes) · bytes
//! ```
//! The checksum covers the key, so that a value which turns up under another key is found out too.
use bytes::Bytes;
use nearring_proto::ids::{PointId, SessionId};
use uuid::Uuid;

/// Key of the machine's meta.
pub(super) const META: &[u8] = b"m";
/// What keys of records start with, and the first key after all of them.
pub(super) const RECORDS: (&[u8], &[u8]) = (b"r", b"s");
/// What keys of sessions start with, and the first key after all of them.
pub(super) const SESSIONS: (&[u8], &[u8]) = (b"s", b"t");
const TAG_TEXT: u8 = 3;

pub(super) fn record(id: &PointId) -> Vec<u8> {
    let mut key = vec![b'r'];
    key.extend_from_slice(&id.to_key());
    key
}

pub(super) fn point_id(key: &[u8]) -> Option<PointId> {
    PointId::from_key(key.strip_prefix(RECORDS.0)?)
}

pub(super) fn session(id: &SessionId) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(id.0.as_bytes());
    key
}

pub(super) fn session_id(key: &[u8]) -> Option<SessionId> {
    Uuid::from_slice(key.strip_prefix(SESSIONS.0)?).ok().map(SessionId)
}

/// From the first key of a text id that starts with `prefix` to the first key after all of them. Not for an empty prefix.
pub(super) fn texts(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let mut from = vec![b'r', TAG_TEXT];
    from.extend_from_slice(prefix.as_bytes());
    let mut until = from.clone();
    // UTF-8 has no byte 0xff, and the tag is no 0xff either: the last byte can always be counted up.
    if let Some(last) = until.last_mut() {
        *last = last.saturating_add(1);
    }
    (from, until)
}

pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(4 + value.len());
    sealed.extend_from_slice(&checksum(key, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

/// The bytes of a sealed value; `None` where the checksum does not hold.
pub(super) fn unseal(key: &[u8], sealed: &Bytes) -> Option<Bytes> {
    let (sum, value) = sealed.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*sum) == checksum(key, value)).then(|| sealed.slice(4..))
}

/// The sealed value of [`META`].
pub(super) fn head(sessions: u128, meta: &[u8]) -> Vec<u8> {
    seal(META, &[&sessions.to_le_bytes(), meta].concat())
}

/// Digest of the sessions, and the machine's meta, of an unsealed value of [`META`].
pub(super) fn read_head(value: &Bytes) -> Option<(u128, Bytes)> {
    let (sessions, _) = value.split_first_chunk::<16>()?;
    Some((u128::from_le_bytes(*sessions), value.slice(16..)))
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn text_prefix_range_holds_exactly_the_texts_with_that_prefix() {
        let (from, until) = texts("doc#");
        for (id, wanted) in
            [("doc#1", true), ("doc#", true), ("doc##", true), ("doc", false), ("doc$", false), ("dod", false)]
        {
            let key = record(&PointId::Text(id.to_owned()));
            assert_eq!(from <= key && key < until, wanted, "{id}");
        }
        assert!(record(&PointId::Number(7)) < from);
    }

    #[test]
    fn a_value_is_bound_to_its_key() {
        let sealed = Bytes::from(seal(b"a", b"value"));
        assert_eq!(unseal(b"a", &sealed).unwrap(), Bytes::from_static(b"value"));
        assert_eq!(unseal(b"b", &sealed), None);
    }
}
