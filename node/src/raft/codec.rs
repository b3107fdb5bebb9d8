//! The bytes of everything Raft writes down or sends: votes, log ids, entries, memberships, requests and answers.
//!
//! ```text
//! message   = format u8 (1) · body                 all numbers little-endian
//! log id    = term u64 · index u64                 leader = term · node u64 · incarnation u64
//! vote      = leader · committed u8                option = 0 | 1 · value        list = count u32 · items
//! entry     = log id · 0 blank | 1 normal · bytes | 2 membership · membership    bytes = length u32 · bytes
//! ```
//! Tags are forever: they are in every log. Decoding never panics, whatever the input, allocates no more than the input
//! is long, and slices a proposal out of the message it came in instead of copying it.
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use nearring_proto::ids::{Incarnation, NodeId, ReplicaId};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use openraft::{BasicNode, EntryPayload};

use super::{Entry, LogId, Membership, Proposal, StoredMembership, TypeConfig, Vote};

/// The format written, and the newest that is understood.
pub const FORMAT: u8 = 1;

type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;

/// Bytes that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version.
    #[error("format {found} is newer than {FORMAT}, which this version understands; upgrade this node")]
    NewerFormat {
        /// The format found.
        found: u8,
    },
    /// Cut off, or not of this kind at all.
    #[error("{field}: {reason}")]
    Malformed {
        /// What was being read.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn malformed(field: &'static str, reason: &'static str) -> DecodeError {
    DecodeError::Malformed { field, reason }
}

/// A value with one byte form. Implemented here for everything Raft exchanges.
pub trait Wire: Sized {
    /// Appends the value's body.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads a body.
    ///
    /// # Errors
    /// Where the bytes are not such a body.
    fn read(from: &mut Reader) -> Result<Self, DecodeError>;
}

/// The message for `value`.
pub fn encode<T: Wire>(value: &T) -> Bytes {
    let mut out = vec![FORMAT];
    value.put(&mut out);
    Bytes::from(out)
}

/// The value of a whole message. What it holds of the message it shares with it.
///
/// # Errors
/// Newer format, cut off, malformed, or bytes left over.
pub fn decode<T: Wire>(message: Bytes) -> Result<T, DecodeError> {
    let mut reader = Reader(message);
    match reader.u8("format")? {
        FORMAT => {}
        0 => return Err(malformed("format", "0 is no format")),
        found => return Err(DecodeError::NewerFormat { found }),
    }
    let value = T::read(&mut reader)?;
    if reader.0.is_empty() { Ok(value) } else { Err(malformed("message", "bytes left over at the end")) }
}

/// What is left of a message.
#[derive(Debug)]
pub struct Reader(Bytes);

impl Reader {
    fn bytes_of(&mut self, len: usize, field: &'static str) -> Result<Bytes, DecodeError> {
        if self.0.len() < len { Err(malformed(field, "cut off")) } else { Ok(self.0.split_to(len)) }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes_of(N, field)?);
        Ok(array)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn bytes(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.u32(field)?;
        self.bytes_of(usize::try_from(len).unwrap_or(usize::MAX), field)
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // Longer than 4 GiB cannot be: proposals are refused long before.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        match from.u8("flag")? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed("flag", "neither 0 nor 1")),
        }
    }
}

impl Wire for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        from.u64("number")
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let bytes = from.bytes("text")?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| malformed("text", "not UTF-8"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        if bool::read(from)? { T::read(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u32::try_from(self.len()).unwrap_or(u32::MAX).to_le_bytes());
        for item in self {
            item.put(out);
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        // No reservation by the count: it may be a lie.
        let count = from.u32("count")?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::read(from)?);
        }
        Ok(items)
    }
}

impl Wire for ReplicaId {
    fn put(&self, out: &mut Vec<u8>) {
        self.node.0.put(out);
        self.incarnation.0.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { node: NodeId(u64::read(from)?), incarnation: Incarnation(u64::read(from)?) })
    }
}

impl Wire for Vote {
    fn put(&self, out: &mut Vec<u8>) {
        self.leader_id.term.put(out);
        self.leader_id.voted_for.put(out);
        self.committed.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let leader_id = LeaderId::new(u64::read(from)?, ReplicaId::read(from)?);
        Ok(Vote { leader_id, committed: bool::read(from)? })
    }
}

impl Wire for LogId {
    fn put(&self, out: &mut Vec<u8>) {
        self.leader_id.term.put(out);
        self.index.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        // What commits an entry is the term; which node led it is not in its id.
        let leader_id: CommittedLeaderId = LeaderId::new(u64::read(from)?, ReplicaId::default()).to_committed();
        Ok(LogId::new(leader_id, u64::read(from)?))
    }
}

impl Wire for Membership {
    fn put(&self, out: &mut Vec<u8>) {
        let configs: Vec<Vec<ReplicaId>> =
            self.get_joint_config().iter().map(|config| config.iter().copied().collect()).collect();
        configs.put(out);
        let nodes: Vec<(ReplicaId, String)> = self.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
        nodes.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let configs: Vec<BTreeSet<ReplicaId>> =
            Vec::<Vec<ReplicaId>>::read(from)?.into_iter().map(|config| config.into_iter().collect()).collect();
        let nodes: BTreeMap<ReplicaId, BasicNode> =
            Vec::<(ReplicaId, String)>::read(from)?.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes)
            .map_err(|_| malformed("membership", "names a voter without a node, or is empty"))
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok((A::read(from)?, B::read(from)?))
    }
}

impl Wire for StoredMembership {
    fn put(&self, out: &mut Vec<u8>) {
        (*self.log_id()).put(out);
        self.membership().put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(StoredMembership::new(Option::read(from)?, Membership::read(from)?))
    }
}

impl Wire for Entry {
    fn put(&self, out: &mut Vec<u8>) {
        self.log_id.put(out);
        match &self.payload {
            EntryPayload::Blank => out.push(0),
            EntryPayload::Normal(proposal) => {
                out.push(1);
                put_bytes(&proposal.0, out);
            }
            EntryPayload::Membership(membership) => {
                out.push(2);
                membership.put(out);
            }
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let log_id = LogId::read(from)?;
        let payload = match from.u8("entry kind")? {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Proposal(from.bytes("proposal")?)),
            2 => EntryPayload::Membership(Membership::read(from)?),
            _ => return Err(malformed("entry kind", "unknown")),
        };
        Ok(Entry { log_id, payload })
    }
}

impl Wire for AppendEntriesRequest<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        self.vote.put(out);
        self.prev_log_id.put(out);
        self.leader_commit.put(out);
        self.entries.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let (vote, prev_log_id, leader_commit) = (Vote::read(from)?, Option::read(from)?, Option::read(from)?);
        Ok(Self { vote, prev_log_id, leader_commit, entries: Vec::read(from)? })
    }
}

impl Wire for AppendEntriesResponse<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Success => out.push(0),
            Self::PartialSuccess(matching) => {
                out.push(1);
                matching.put(out);
            }
            Self::Conflict => out.push(2),
            Self::HigherVote(vote) => {
                out.push(3);
                vote.put(out);
            }
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        match from.u8("append answer")? {
            0 => Ok(Self::Success),
            1 => Ok(Self::PartialSuccess(Option::read(from)?)),
            2 => Ok(Self::Conflict),
            3 => Ok(Self::HigherVote(Vote::read(from)?)),
            _ => Err(malformed("append answer", "unknown")),
        }
    }
}

impl Wire for VoteRequest<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        self.vote.put(out);
        self.last_log_id.put(out);
        self.leadership_transfer.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let mut request = VoteRequest::new(Vote::read(from)?, Option::read(from)?);
        request.leadership_transfer = bool::read(from)?;
        Ok(request)
    }
}

impl Wire for VoteResponse<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        self.vote.put(out);
        self.vote_granted.put(out);
        self.last_log_id.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let (vote, granted, last) = (Vote::read(from)?, bool::read(from)?, Option::<LogId>::read(from)?);
        Ok(VoteResponse::new(vote, last, granted))
    }
}

impl Wire for SnapshotResponse<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        self.vote.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Vote::read(from).map(Self::new)
    }
}

impl Wire for TransferLeaderRequest<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        self.from_leader().put(out);
        self.to_node_id().put(out);
        self.last_log_id().copied().put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self::new(Vote::read(from)?, ReplicaId::read(from)?, Option::read(from)?))
    }
}

impl Wire for TransferLeaderResponse<TypeConfig> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Ok(()) => out.push(0),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                out.push(1);
                expected.put(out);
                actual.put(out);
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                out.push(2);
                expected.put(out);
                actual.put(out);
            }
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        match from.u8("transfer answer")? {
            0 => Ok(Ok(())),
            1 => {
                let (expected, actual) = <(Vote, Vote)>::read(from)?;
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            2 => {
                let (expected, actual) = <(Option<LogId>, Option<LogId>)>::read(from)?;
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            _ => Err(malformed("transfer answer", "unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    fn replica() -> impl Strategy<Value = ReplicaId> + Clone {
        (any::<u64>(), any::<u64>())
            .prop_map(|(node, life)| ReplicaId { node: NodeId(node), incarnation: Incarnation(life) })
    }

    fn vote() -> impl Strategy<Value = Vote> + Clone {
        (any::<u64>(), replica(), any::<bool>())
            .prop_map(|(term, node, committed)| Vote { leader_id: LeaderId::new(term, node), committed })
    }

    fn log_id() -> impl Strategy<Value = LogId> + Clone {
        (any::<u64>(), any::<u64>())
            .prop_map(|(term, index)| LogId::new(LeaderId::new(term, ReplicaId::default()).to_committed(), index))
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let nodes = prop::collection::btree_map(replica(), "[a-z]{0,8}:[0-9]{1,4}", 1..6);
        (nodes, 1..3usize, any::<bool>()).prop_map(|(nodes, configs, learners)| {
            let voters: BTreeSet<ReplicaId> =
                nodes.keys().copied().take(if learners { nodes.len().div_ceil(2) } else { nodes.len() }).collect();
            let nodes: BTreeMap<_, _> = nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
            Membership::new(vec![voters; configs], nodes).unwrap()
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|v| EntryPayload::Normal(Proposal(Bytes::from(v)))),
            membership().prop_map(EntryPayload::Membership),
        ];
        (log_id(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
    }

    /// The value survives, and no shortened message is taken for one.
    fn survives<T: Wire + Debug>(value: &T, same: impl Fn(&T, &T) -> bool) {
        let message = encode(value);
        assert!(same(&decode::<T>(message.clone()).unwrap(), value), "{value:?}");
        for len in 0..message.len() {
            assert!(decode::<T>(message.slice(..len)).is_err(), "cut to {len}: {value:?}");
        }
    }

    proptest! {
        #[test]
        fn everything_survives_and_nothing_shortened_does(
            votes in (vote(), vote()), ids in (prop::option::of(log_id()), prop::option::of(log_id())),
            entries in prop::collection::vec(entry(), 0..4), members in membership(), flag: bool, to in replica(),
        ) {
            survives(&votes.0, |a, b| a == b);
            survives(&StoredMembership::new(ids.0, members), |a, b| a == b);
            survives(&StoredMembership::default(), |a, b| a == b);
            let request = AppendEntriesRequest::<TypeConfig> {
                vote: votes.0, prev_log_id: ids.0, leader_commit: ids.1, entries,
            };
            survives(&request, |a, b| {
                (a.vote, a.prev_log_id, a.leader_commit, &a.entries) == (b.vote, b.prev_log_id, b.leader_commit, &b.entries)
            });
            for answer in [
                AppendEntriesResponse::<TypeConfig>::Success, AppendEntriesResponse::Conflict,
                AppendEntriesResponse::PartialSuccess(ids.0), AppendEntriesResponse::HigherVote(votes.1),
            ] {
                survives(&answer, |a, b| a == b);
            }
            let mut request = VoteRequest::<TypeConfig>::new(votes.0, ids.0);
            request.leadership_transfer = flag;
            survives(&request, |a, b| a == b);
            survives(&VoteResponse::<TypeConfig>::new(votes.0, ids.1, flag), |a, b| a == b);
            survives(&SnapshotResponse::<TypeConfig>::new(votes.0), |a, b| a == b);
            survives(&TransferLeaderRequest::<TypeConfig>::new(votes.0, to, ids.0), |a, b| a == b);
            let answers: [TransferLeaderResponse<TypeConfig>; 3] = [
                Ok(()), Err(TransferLeaderError::VoteChanged { expected: votes.0, actual: votes.1 }),
                Err(TransferLeaderError::LogNotFlushed { expected: ids.0, actual: ids.1 }),
            ];
            for answer in answers {
                survives(&answer, |a, b| a == b);
            }
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 1..200), valid: bool) {
            if valid {
                bytes[0] = FORMAT; // beyond the first check
            }
            let bytes = Bytes::from(bytes);
            let _ = decode::<Vote>(bytes.clone());
            let _ = decode::<StoredMembership>(bytes.clone());
            let _ = decode::<AppendEntriesRequest<TypeConfig>>(bytes.clone());
            let _ = decode::<AppendEntriesResponse<TypeConfig>>(bytes.clone());
            let _ = decode::<VoteRequest<TypeConfig>>(bytes.clone());
            let _ = decode::<VoteResponse<TypeConfig>>(bytes.clone());
            let _ = decode::<TransferLeaderRequest<TypeConfig>>(bytes.clone());
            let _ = decode::<TransferLeaderResponse<TypeConfig>>(bytes.clone());
            let _ = decode::<String>(bytes);
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut bytes = encode(&7u64).to_vec();
        bytes[0] = FORMAT + 1;
        assert_eq!(decode::<u64>(Bytes::from(bytes)), Err(DecodeError::NewerFormat { found: FORMAT + 1 }));
    }

    #[test]
    fn a_proposal_is_a_slice_of_its_message() {
        let log_id = LogId::new(LeaderId::new(1, ReplicaId::default()).to_committed(), 1);
        let payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"proposal")));
        let message = encode(&Entry { log_id, payload });
        let entry: Entry = decode(message.clone()).unwrap();
        let EntryPayload::Normal(proposal) = entry.payload else { unreachable!("a normal entry") };
        assert!(message.as_ptr_range().contains(&proposal.0.as_ptr()));
    }
}
