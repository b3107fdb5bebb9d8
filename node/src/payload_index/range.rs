//! Ordered values: numbers, datetimes, booleans.
//!
//! Integer and float fields hold the same thing, every number of any spelling, compared exactly ([`Number`]): an integer
//! field in which somebody stored 2.5 still answers exactly. A datetime field holds every string that spells an instant,
//! by the instant. Two spellings of one instant are different strings, so `equals` on it narrows without being exact.
use std::ops::Bound;

use nearring_proto::filter::{Bounds, Interval, Number, Scalar, datetime_micros};
use roaring::RoaringBitmap;
use serde_json::Value;

use super::Found;
use super::postings::Postings;

/// Every number of one field.
#[derive(Clone, Default, Debug)]
pub(super) struct NumberIndex {
    postings: Postings<Number>,
}

impl NumberIndex {
    /// The key of a value this index holds.
    pub(super) fn key(value: &Value) -> Option<Number> {
        match value {
            Value::Number(number) => Number::from_json(number),
            _ => None,
        }
    }

    pub(super) fn postings_mut(&mut self) -> &mut Postings<Number> {
        &mut self.postings
    }

    pub(super) fn equals(&self, wanted: &Scalar, found: &mut RoaringBitmap) -> Found {
        match wanted {
            Scalar::Int(_) | Scalar::Float(_) => {
                if let Some(number) = wanted.number() {
                    self.postings.collect(&number, found);
                }
                Found::All // NaN equals nothing
            }
            Scalar::Bool(_) | Scalar::Text(_) => Found::MaybeOthers,
        }
    }

    pub(super) fn range(&self, bounds: &Bounds, found: &mut RoaringBitmap) -> Found {
        match bounds {
            Bounds::Numbers(interval) => {
                self.postings.collect_range(ends(interval), found);
                Found::All
            }
            Bounds::Datetimes(_) => Found::MaybeOthers,
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.postings.counts()
    }
}

/// Every instant of one field, in microseconds since 1970.
#[derive(Clone, Default, Debug)]
pub(super) struct DatetimeIndex {
    postings: Postings<i64>,
}

impl DatetimeIndex {
    /// The key of a value this index holds.
    pub(super) fn key(value: &Value) -> Option<i64> {
        value.as_str().and_then(datetime_micros)
    }

    pub(super) fn postings_mut(&mut self) -> &mut Postings<i64> {
        &mut self.postings
    }

    pub(super) fn equals(&self, wanted: &Scalar, found: &mut RoaringBitmap) -> Found {
        match wanted {
            // A string that spells an instant is held here, so it cannot be among the others, and the other way round.
            Scalar::Text(text) => match datetime_micros(text) {
                Some(micros) => {
                    self.postings.collect(&micros, found);
                    Found::Maybe
                }
                None => Found::MaybeOthers,
            },
            _ => Found::MaybeOthers,
        }
    }

    pub(super) fn range(&self, bounds: &Bounds, found: &mut RoaringBitmap) -> Found {
        match bounds {
            Bounds::Datetimes(interval) => {
                self.postings.collect_range(ends(interval), found);
                Found::All
            }
            Bounds::Numbers(_) => Found::MaybeOthers,
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.postings.counts()
    }
}

/// The booleans of one field.
#[derive(Clone, Default, Debug)]
pub(super) struct BoolIndex {
    postings: Postings<bool>,
}

impl BoolIndex {
    /// The key of a value this index holds.
    pub(super) fn key(value: &Value) -> Option<bool> {
        value.as_bool()
    }

    pub(super) fn postings_mut(&mut self) -> &mut Postings<bool> {
        &mut self.postings
    }

    pub(super) fn equals(&self, wanted: &Scalar, found: &mut RoaringBitmap) -> Found {
        match wanted {
            Scalar::Bool(wanted) => {
                self.postings.collect(wanted, found);
                Found::All
            }
            _ => Found::MaybeOthers,
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.postings.counts()
    }
}

/// The two ends that all bounds together make.
fn ends<T: Ord + Copy>(interval: &Interval<T>) -> (Bound<T>, Bound<T>) {
    let start = match (interval.gt, interval.gte) {
        (Some(gt), Some(gte)) if gte > gt => Bound::Included(gte),
        (Some(gt), _) => Bound::Excluded(gt),
        (None, Some(gte)) => Bound::Included(gte),
        (None, None) => Bound::Unbounded,
    };
    let end = match (interval.lt, interval.lte) {
        (Some(lt), Some(lte)) if lte < lt => Bound::Included(lte),
        (Some(lt), _) => Bound::Excluded(lt),
        (None, Some(lte)) => Bound::Included(lte),
        (None, None) => Bound::Unbounded,
    };
    (start, end)
}
