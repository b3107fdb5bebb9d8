//! Strings, matched exactly: the index that serves `equals` and `in` on text.
use std::sync::Arc;

use nearring_proto::filter::{Bounds, Scalar};
use roaring::RoaringBitmap;
use serde_json::Value;

use super::Found;
use super::postings::Postings;

/// Every string of one field. Equal strings are held once.
#[derive(Clone, Default, Debug)]
pub(super) struct KeywordIndex {
    postings: Postings<Arc<str>>,
}

impl KeywordIndex {
    /// The key of a value this index holds.
    pub(super) fn key(value: &Value) -> Option<Arc<str>> {
        value.as_str().map(Arc::from)
    }

    pub(super) fn postings_mut(&mut self) -> &mut Postings<Arc<str>> {
        &mut self.postings
    }

    pub(super) fn equals(&self, wanted: &Scalar, found: &mut RoaringBitmap) -> Found {
        match wanted {
            Scalar::Text(text) => {
                self.postings.collect(text.as_str(), found);
                Found::All
            }
            _ => Found::MaybeOthers,
        }
    }

    /// Strings are not ordered as the datetimes they may spell, so a range learns only where strings stand.
    pub(super) fn range(&self, bounds: &Bounds) -> Found {
        match bounds {
            Bounds::Numbers(_) => Found::MaybeOthers,
            Bounds::Datetimes(_) => Found::MaybeAny,
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.postings.counts()
    }
}
