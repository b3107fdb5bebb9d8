//! The embedder that ships: text → WordPiece tokens → mean of the tokens' vectors → unit length.
//!
//! One int8 vector of 256 components and one f32 scale for each of 30,522 tokens, fitted to all-MiniLM-L6-v2; see
//! `data/static256/README.md`. Word order is lost, synonyms are not. An embedding costs microseconds, and the same text
//! gives the same bits everywhere: sums run in token order, multiplication before addition.

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use tokenizers::Tokenizer;

use super::{EmbedError, Embedder, npy};
use crate::failure::ModelFailure;

const NAME: &str = "static256";
const DIMENSION: usize = 256;
const TOKENS: usize = 30_522;
/// `[UNK]`: what the tokenizer says of a word it cannot spell.
const UNKNOWN: u32 = 100;

static VECTORS: &[u8] = include_bytes!("../../data/static256/vectors.i8.npy");
static SCALES: &[u8] = include_bytes!("../../data/static256/scales.f32.npy");
static TOKENIZER: &[u8] = include_bytes!("../../data/static256/tokenizer.json");

/// The built-in embedder; 256 components, made for cosine.
pub struct Static256 {
    tokenizer: Tokenizer,
    /// `TOKENS` rows of `DIMENSION` int8, read in place from the binary.
    vectors: &'static [u8],
    scales: Vec<f32>,
}

impl Static256 {
    /// Reads the tables that are part of the binary. Takes some tens of milliseconds; prefer [`Static256::shared`].
    ///
    /// # Errors
    /// [`EmbedError::Failed`] where a table is not the one this build expects.
    pub fn new() -> Result<Self, EmbedError> {
        let vectors = npy::elements(VECTORS, "|i1", &[TOKENS, DIMENSION], 1)
            .map_err(|error| failed(format!("vectors: {error}")))?;
        let scales = npy::elements(SCALES, "<f4", &[TOKENS], 4).map_err(|error| failed(format!("scales: {error}")))?;
        let scales = scales.chunks_exact(4).filter_map(|b| b.try_into().ok()).map(f32::from_le_bytes).collect();
        let mut tokenizer = Tokenizer::from_bytes(TOKENIZER).map_err(|error| failed(format!("tokenizer: {error}")))?;
        // The file says: 128 tokens, padded. A mean must see every token of the text, and no padding.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| failed(format!("tokenizer: {error}")))?;
        Ok(Self { tokenizer, vectors, scales })
    }

    /// The one of this process.
    ///
    /// # Errors
    /// As [`Static256::new`].
    pub fn shared() -> Result<Arc<Self>, EmbedError> {
        static SHARED: OnceLock<Result<Arc<Static256>, EmbedError>> = OnceLock::new();
        SHARED.get_or_init(|| Self::new().map(Arc::new)).clone()
    }

    /// The vector of one text, of unit length; `None` where it holds no known token.
    ///
    /// # Errors
    /// [`EmbedError::Failed`] where the tokenizer fails.
    pub fn embed_one(&self, text: &str) -> Result<Option<Vec<f32>>, EmbedError> {
        let tokens = self.tokenizer.encode_fast(text, false).map_err(|error| failed(format!("tokenizer: {error}")))?;
        let mut sum = vec![0.0_f32; DIMENSION];
        for &token in tokens.get_ids().iter().filter(|token| **token != UNKNOWN) {
            let row = token as usize;
            let values = self.vectors.get(row * DIMENSION..(row + 1) * DIMENSION);
            let (Some(values), Some(scale)) = (values, self.scales.get(row)) else {
                return Err(failed(format!("token {token} has no vector")));
            };
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += f32::from(value.cast_signed()) * scale;
            }
        }
        let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        if !length.is_normal() {
            return Ok(None);
        }
        sum.iter_mut().for_each(|x| *x /= length);
        Ok(Some(sum))
    }
}

impl Embedder for Static256 {
    fn name(&self) -> &str {
        NAME
    }

    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        let embed = |(index, text): (usize, &&str)| match self.embed_one(text) {
            Ok(Some(vector)) => Ok(vector),
            Ok(None) => Err(EmbedError::NothingKnown { text: index, embedder: NAME.to_owned() }),
            Err(error) => Err(error),
        };
        Box::pin(async move { texts.iter().enumerate().map(embed).collect() })
    }
}

impl std::fmt::Debug for Static256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Static256").finish_non_exhaustive()
    }
}

fn failed(reason: String) -> EmbedError {
    EmbedError::Failed { embedder: NAME.to_owned(), failure: ModelFailure::Broken, reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::cosine;
    use super::*;

    #[tokio::test]
    async fn it_reproduces_the_figures_it_was_published_with() {
        let embedder = Static256::shared().unwrap();
        let texts = ["A man is eating food.", "A man eats something.", "The stock market fell today."];
        let vectors = embedder.embed(&texts).await.unwrap();
        for (a, b, expected) in [(0, 1, 0.760), (0, 2, 0.151), (1, 2, 0.106)] {
            let got = cosine(&vectors[a], &vectors[b]);
            assert!((got - expected).abs() < 0.0006, "cosine of {a} and {b} is {got}, published {expected}");
        }
        assert!(vectors.iter().all(|v| v.len() == embedder.dimension() && (cosine(v, v) - 1.0).abs() < 1e-5));
    }

    #[tokio::test]
    async fn long_texts_are_read_to_their_end_and_are_not_padded() {
        let embedder = Static256::shared().unwrap();
        let once = embedder.embed_one("a quiet river").unwrap().unwrap();
        let often = embedder.embed_one(&"a quiet river ".repeat(400)).unwrap().unwrap();
        assert!((cosine(&once, &often) - 1.0).abs() < 1e-4);
        let tail = format!("{} volcano eruption", "a quiet river ".repeat(400));
        assert_ne!(embedder.embed_one(&tail).unwrap().unwrap(), often);
    }

    #[tokio::test]
    async fn a_text_without_any_known_token_is_named() {
        let embedder = Static256::shared().unwrap();
        let error = embedder.embed(&["words", " \n"]).await.unwrap_err();
        assert_eq!(error, EmbedError::NothingKnown { text: 1, embedder: "static256".into() });
    }
}
