//! Vectors and metrics.
//!
//! A named vector is of one of three kinds, which its collection fixes. **Dense**: a row of components. **Sparse**: values at
//! some of 2^32 indices, compared by inner product; two vectors that share no index have nothing to do with each other, so
//! such a point is no hit at all. **Multi**: several rows of one dimension, compared by max_sim (ColBERT's late interaction:
//! Khattab and Zaharia, 2020): the sum over the query's rows of the best similarity to any row of the point.
use serde::{Deserialize, Serialize};

/// How nearness is measured.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Cosine similarity, in [−1, 1]; vectors are stored at unit length, and must not be zero.
    Cosine,
    /// Inner product; higher is nearer.
    Dot,
    /// Euclidean distance; lower is nearer.
    L2,
    /// Manhattan distance, the sum of absolute differences; lower is nearer.
    L1,
}

impl Metric {
    /// Whether a larger score is a nearer hit.
    pub fn higher_is_nearer(self) -> bool {
        !matches!(self, Metric::L2 | Metric::L1)
    }
}

/// What a segment's graph stores per component. Scores always come from the f32 values beside it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ScalarKind {
    /// 32-bit float; the only one for L1.
    F32,
    /// 16-bit float; the default for dot and L2.
    F16,
    /// 8-bit integer over [−1, 1]; the default for cosine, refused for others.
    I8,
}

impl ScalarKind {
    /// The default for a metric (measured in the storage notes: i8 halves the build at equal re-scored recall).
    pub fn default_for(metric: Metric) -> Self {
        match metric {
            Metric::Cosine => ScalarKind::I8,
            Metric::Dot | Metric::L2 => ScalarKind::F16,
            Metric::L1 => ScalarKind::F32,
        }
    }
}

/// A vector of any kind.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub enum Vector {
    /// A row of components.
    Dense(Vec<f32>),
    /// Values at some indices.
    Sparse(SparseVector),
    /// Several rows.
    Multi(MultiVector),
}

impl Vector {
    /// What it is called in messages: dense, sparse or multi.
    pub fn kind(&self) -> &'static str {
        match self {
            Vector::Dense(_) => "dense",
            Vector::Sparse(_) => "sparse",
            Vector::Multi(_) => "multi",
        }
    }

    /// The components of a dense one.
    pub fn dense(&self) -> Option<&[f32]> {
        match self {
            Vector::Dense(values) => Some(values),
            _ => None,
        }
    }
}

impl From<Vec<f32>> for Vector {
    fn from(values: Vec<f32>) -> Self {
        Vector::Dense(values)
    }
}

impl From<SparseVector> for Vector {
    fn from(vector: SparseVector) -> Self {
        Vector::Sparse(vector)
    }
}

impl From<MultiVector> for Vector {
    fn from(vector: MultiVector) -> Self {
        Vector::Multi(vector)
    }
}

/// Values at distinct indices, in the order of the indices. It may have none at all: then it is like no other.
#[derive(Clone, PartialEq, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct SparseVector {
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl SparseVector {
    /// The most indices of one vector.
    pub const ENTRIES_MAX: usize = 65_536;

    /// A vector of these entries, given in any order.
    ///
    /// # Errors
    /// [`VectorError`] where there are more values than indices or fewer, an index comes twice, a value is not finite, or
    /// there are more than [`SparseVector::ENTRIES_MAX`].
    pub fn new(indices: Vec<u32>, values: Vec<f32>) -> Result<Self, VectorError> {
        let sorted = indices.windows(2).all(|pair| pair[0] < pair[1]);
        let mut vector = Self { indices, values };
        if !sorted && vector.indices.len() == vector.values.len() {
            let mut entries: Vec<(u32, f32)> = vector.entries().collect();
            entries.sort_by_key(|(index, _)| *index);
            (vector.indices, vector.values) = entries.into_iter().unzip();
        }
        vector.check()?;
        Ok(vector)
    }

    /// Checks one that was read from bytes.
    ///
    /// # Errors
    /// As [`SparseVector::new`], which makes only such as pass; also where the indices are out of order.
    pub fn check(&self) -> Result<(), VectorError> {
        let (indices, values) = (self.indices.len(), self.values.len());
        if indices != values {
            return Err(VectorError::Lengths { indices, values });
        }
        if indices > Self::ENTRIES_MAX {
            return Err(VectorError::TooLong { got: indices, most: Self::ENTRIES_MAX });
        }
        if let Some(pair) = self.indices.windows(2).find(|pair| pair[0] >= pair[1]) {
            let index = pair[1];
            return Err(if pair[0] == index { VectorError::Twice { index } } else { VectorError::Order { index } });
        }
        match self.values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(VectorError::NotFinite { at }),
            None => Ok(()),
        }
    }

    /// Its indices, ascending.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The value of each index.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Index and value, by index.
    pub fn entries(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.indices.iter().copied().zip(self.values.iter().copied())
    }

    /// The inner product, products added up in the order of their indices; `None` where no index is in both.
    pub fn dot(&self, other: &Self) -> Option<f32> {
        let (mut sum, mut met) = (0.0_f32, false);
        let mut others = other.entries().peekable();
        for (index, value) in self.entries() {
            while others.next_if(|(other, _)| *other < index).is_some() {}
            if let Some((_, other)) = others.next_if(|(other, _)| *other == index) {
                sum += value * other;
                met = true;
            }
        }
        met.then_some(sum)
    }

    /// The same indices with other values. Values that are not finite become the largest that is.
    #[must_use]
    pub fn map_values(&self, mut value: impl FnMut(usize, u32, f32) -> f32) -> Self {
        let entries = self.entries().enumerate();
        let bounded = |value: f32| if value.is_nan() { 0.0 } else { value.clamp(f32::MIN, f32::MAX) };
        let values = entries.map(|(at, (index, old))| bounded(value(at, index, old))).collect();
        Self { indices: self.indices.clone(), values }
    }
}

/// One row or more of one dimension.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct MultiVector {
    dimension: u32,
    components: Vec<f32>,
}

impl MultiVector {
    /// The most components of all rows together.
    pub const COMPONENTS_MAX: usize = 1 << 20;

    /// Rows of `dimension` components each, one after the other.
    ///
    /// # Errors
    /// [`VectorError`] where there is no row, or the components are no whole number of rows, or more than
    /// [`MultiVector::COMPONENTS_MAX`].
    pub fn new(dimension: u32, components: Vec<f32>) -> Result<Self, VectorError> {
        let vector = Self { dimension, components };
        vector.check_form()?;
        Ok(vector)
    }

    /// Rows of equal length.
    ///
    /// # Errors
    /// As [`MultiVector::new`], and where the rows' lengths differ.
    pub fn from_rows(rows: &[Vec<f32>]) -> Result<Self, VectorError> {
        let want = rows.first().map_or(0, Vec::len);
        if let Some((row, values)) = rows.iter().enumerate().find(|(_, values)| values.len() != want) {
            let why = Box::new(VectorError::Dimension { got: values.len(), want });
            return Err(VectorError::Row { row, why });
        }
        Self::new(u32::try_from(want).unwrap_or(u32::MAX), rows.concat())
    }

    fn check_form(&self) -> Result<(), VectorError> {
        let (components, dimension) = (self.components.len(), self.dimension as usize);
        if components > Self::COMPONENTS_MAX {
            return Err(VectorError::TooLong { got: components, most: Self::COMPONENTS_MAX });
        }
        if components == 0 || dimension == 0 || !components.is_multiple_of(dimension) {
            return Err(VectorError::Rows { components, dimension });
        }
        Ok(())
    }

    /// Checks form and dimension, and every row as [`check`] does.
    ///
    /// # Errors
    /// [`VectorError`] saying which rule it breaks.
    pub fn check(&self, dimension: usize, metric: Metric) -> Result<(), VectorError> {
        self.check_form()?;
        for (row, values) in self.rows().enumerate() {
            check(values, dimension, metric).map_err(|why| VectorError::Row { row, why: Box::new(why) })?;
        }
        Ok(())
    }

    /// Components of a row.
    pub fn dimension(&self) -> u32 {
        self.dimension
    }

    /// All components, row after row.
    pub fn components(&self) -> &[f32] {
        &self.components
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.components.chunks_exact((self.dimension as usize).max(1))
    }

    /// Scales every row to unit length.
    pub fn normalize(&mut self) {
        self.components.chunks_exact_mut((self.dimension as usize).max(1)).for_each(normalize);
    }
}

/// Why a vector cannot be stored or searched with.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum VectorError {
    /// Its length is not the collection's.
    #[error("has {got} components, the collection wants {want}")]
    Dimension {
        /// Components given.
        got: usize,
        /// Components wanted.
        want: usize,
    },
    /// It holds a NaN or an infinity.
    #[error("component {at} is not finite")]
    NotFinite {
        /// The first such component.
        at: usize,
    },
    /// Cosine has no meaning for it.
    #[error("is zero, which has no direction for cosine")]
    Zero,
    /// It is of another kind.
    #[error("is a {got} vector, the collection wants a {want} one")]
    Kind {
        /// The kind given.
        got: &'static str,
        /// The kind wanted.
        want: &'static str,
    },
    /// A sparse vector's lists do not belong together.
    #[error("has {indices} indices and {values} values; give one value for each index")]
    Lengths {
        /// Indices given.
        indices: usize,
        /// Values given.
        values: usize,
    },
    /// A sparse vector names an index twice.
    #[error("names the index {index} twice")]
    Twice {
        /// Which.
        index: u32,
    },
    /// A sparse vector's indices are out of order.
    #[error("has the index {index} after a larger one")]
    Order {
        /// Which.
        index: u32,
    },
    /// It is too long.
    #[error("has {got} values, at most {most} are allowed")]
    TooLong {
        /// Values given.
        got: usize,
        /// Values allowed.
        most: usize,
    },
    /// A multi-vector does not consist of rows.
    #[error("has {components} components, which are not one or more rows of {dimension}")]
    Rows {
        /// Components given.
        components: usize,
        /// Components of a row.
        dimension: usize,
    },
    /// A row of a multi-vector is refused.
    #[error("row {row} {why}")]
    Row {
        /// Which, from 0.
        row: usize,
        /// Why.
        why: Box<VectorError>,
    },
}

/// Checks a vector against dimension and metric: right length, all finite, not zero for cosine. A cosine vector whose
/// squared length underflows to zero or overflows counts as zero or not finite.
///
/// # Errors
/// [`VectorError`] saying which rule it breaks.
pub fn check(values: &[f32], dimension: usize, metric: Metric) -> Result<(), VectorError> {
    if values.len() != dimension {
        return Err(VectorError::Dimension { got: values.len(), want: dimension });
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(VectorError::NotFinite { at });
    }
    if metric == Metric::Cosine {
        let length: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        if length < f64::from(f32::MIN_POSITIVE) {
            return Err(VectorError::Zero);
        }
    }
    Ok(())
}

/// Scales to unit length, in f64 and in order, so that every replica and every client gets the same bits.
pub fn normalize(values: &mut [f32]) {
    let length = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in values {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_vector_is_refused_with_its_reason() {
        let sparse =
            |indices: &[u32], values: &[f32]| SparseVector::new(indices.to_vec(), values.to_vec()).unwrap_err();
        assert_eq!(sparse(&[1, 2], &[1.0]), VectorError::Lengths { indices: 2, values: 1 });
        assert_eq!(sparse(&[2, 1], &[1.0]), VectorError::Lengths { indices: 2, values: 1 });
        assert_eq!(sparse(&[7, 1, 7], &[1.0, 2.0, 3.0]), VectorError::Twice { index: 7 });
        assert_eq!(sparse(&[7, 1], &[1.0, f32::NAN]), VectorError::NotFinite { at: 0 }, "in the order of indices");
        let long: Vec<u32> = (0..=SparseVector::ENTRIES_MAX as u32).collect();
        let values = vec![1.0; long.len()];
        assert!(matches!(sparse(&long, &values), VectorError::TooLong { .. }));
        assert!(SparseVector::new(vec![], vec![]).is_ok());
        let unsorted = SparseVector { indices: vec![2, 1], values: vec![1.0, 1.0] };
        assert_eq!(unsorted.check(), Err(VectorError::Order { index: 1 }));

        let multi = |dimension, components: &[f32]| MultiVector::new(dimension, components.to_vec());
        assert_eq!(multi(2, &[1.0; 3]), Err(VectorError::Rows { components: 3, dimension: 2 }));
        assert_eq!(multi(2, &[]), Err(VectorError::Rows { components: 0, dimension: 2 }));
        assert_eq!(multi(0, &[1.0]), Err(VectorError::Rows { components: 1, dimension: 0 }));
        let two = multi(2, &[1.0, 0.0, 0.0, 0.0]).unwrap();
        assert_eq!(two.check(2, Metric::Dot), Ok(()));
        let zero = VectorError::Row { row: 1, why: Box::new(VectorError::Zero) };
        assert_eq!(two.check(2, Metric::Cosine), Err(zero));
        assert_eq!(
            two.check(3, Metric::Dot).unwrap_err().to_string(),
            "row 0 has 2 components, the collection wants 3"
        );
        assert!(MultiVector::from_rows(&[vec![1.0, 2.0], vec![3.0]]).is_err());
        assert_eq!(MultiVector::from_rows(&[vec![1.0, 0.0], vec![0.0, 0.0]]).unwrap(), two);
    }

    fn sparse() -> impl Strategy<Value = BTreeMap<u32, f32>> {
        prop::collection::btree_map(0_u32..12, -4_i8..5, 0..8)
            .prop_map(|entries| entries.into_iter().map(|(index, value)| (index, f32::from(value))).collect())
    }

    proptest! {
        #[test]
        fn the_order_of_entries_is_nobodys_business_and_the_product_is_the_definitions(
            a in sparse(), b in sparse(), reversed: bool,
        ) {
            let vector = |entries: &BTreeMap<u32, f32>| {
                let (mut indices, mut values): (Vec<u32>, Vec<f32>) = entries.iter().map(|(i, v)| (*i, *v)).unzip();
                if reversed {
                    indices.reverse();
                    values.reverse();
                }
                SparseVector::new(indices, values).unwrap()
            };
            prop_assert!(vector(&a).indices().is_sorted());
            let shared: Vec<f32> = a.iter().filter_map(|(index, value)| Some(value * b.get(index)?)).collect();
            let wanted = (!shared.is_empty()).then(|| shared.iter().fold(0.0_f32, |sum, product| sum + product));
            prop_assert_eq!(vector(&a).dot(&vector(&b)), wanted);
        }
    }
}
