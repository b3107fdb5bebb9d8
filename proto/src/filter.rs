//! Filters: what a payload condition means. Every index and every plan must reproduce [`Filter::matches`] exactly.
//!
//! Rules: a path that names several values (through arrays) satisfies a condition when *any* of them does; a missing
//! path satisfies nothing but a `Not`. `Equals` and `In` compare strings exactly, booleans exactly, and numbers by
//! value (an integer 3 equals 3.0). A range compares numbers, or RFC 3339 datetimes when its bounds are text.
//! `Exists` wants at least one value that is not null; `IsNull` wants a null.
use serde::{Deserialize, Serialize};

use crate::ids::PointId;

/// A value that a condition compares with.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// Exactly this boolean.
    Bool(bool),
    /// Exactly this integer (or a float of the same value).
    Int(i64),
    /// Exactly this float (or an integer of the same value). Never NaN.
    Float(f64),
    /// Exactly this string.
    Text(String),
}

/// Bounds of a range; absent ones do not constrain. All given bounds are numbers, or all are RFC 3339 texts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Greater than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<Scalar>,
    /// Greater than or equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gte: Option<Scalar>,
    /// Less than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<Scalar>,
    /// Less than or equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lte: Option<Scalar>,
}

/// A condition over id and payload. As JSON (in the command line): `{"equals":{"path":"lang","value":"en"}}`,
/// `{"all":[…]}`, `{"any":[…]}`, `{"not":…}`, `{"in":{"path":…,"values":[…]}}`, `{"range":{"path":…,"gte":1}}`,
/// `{"exists":"path"}`, `{"is_null":"path"}`, `{"ids":[…]}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Filter {
    /// Every one of them; an empty list matches everything.
    All(Vec<Filter>),
    /// At least one of them; an empty list matches nothing.
    Any(Vec<Filter>),
    /// Not this.
    Not(Box<Filter>),
    /// A value at `path` equals `value`.
    Equals {
        /// Dotted path.
        path: String,
        /// What to equal.
        value: Scalar,
    },
    /// A value at `path` equals one of `values`.
    In {
        /// Dotted path.
        path: String,
        /// The candidates.
        values: Vec<Scalar>,
    },
    /// A value at `path` lies within the range.
    Range {
        /// Dotted path.
        path: String,
        /// The bounds.
        #[serde(flatten)]
        range: Range,
    },
    /// A value other than null stands at the path.
    Exists(String),
    /// A null stands at the path.
    IsNull(String),
    /// The id is one of these.
    Ids(Vec<PointId>),
}
