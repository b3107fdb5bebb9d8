//! Answers with sentences of the passages.
//!
//! A sentence is worth the cosine of its vector to the question's, plus the share of the question's rare words that it
//! holds, plus something for the rank of its passage. Title and heading stand before every sentence when it is
//! compared, since "It disappears when watched" names its subject only there. The best sentences are given in reading
//! order. Where not even the best is close to the question, the answer says so and cites nothing.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;

use super::sentences::sentences;
use super::{GenerateError, GenerateRequest, Generated, Generator};
use crate::embed::{EmbedError, Embedder, cosine};
use crate::rag::context::Passage;
use crate::rag::prompt::without_markers;
use crate::rag::words::{Rarity, stems};

/// The built-in generator.
#[derive(Clone, Debug)]
pub struct Extractive {
    embedder: Arc<dyn Embedder>,
}

impl Extractive {
    /// What it is called in answers.
    pub const NAME: &'static str = "extractive";
    /// What it says when no passage answers.
    pub const NOTHING_FOUND: &'static str = "Nothing in the stored documents answers this question.";

    const SENTENCES_MAX: usize = 3;
    /// Of one passage, so that the second best passage is heard too.
    const PASSAGE_SENTENCES_MAX: usize = 2;
    /// Sentences compared; more than eight passages of the default length hold.
    const CANDIDATES_MAX: usize = 256;
    const SENTENCE_WORDS_MIN: usize = 5;
    /// The share of the best sentence's worth that a further sentence must have.
    const WORTH_SHARE: f32 = 0.7;
    const OVERLAP_WEIGHT: f32 = 0.5;
    const RANK_WEIGHT: f32 = 0.3;
    /// Below this the best sentence is taken to be about something else. Set on the sample collection between its 30
    /// questions and questions about other things (`tests/sample.rs` holds both).
    const CLOSENESS_MIN: f32 = 0.40;

    /// Compares with this embedder; it need not be the one that found the passages.
    pub fn new(embedder: Arc<dyn Embedder>) -> Self {
        Self { embedder }
    }

    async fn pieces(self, request: GenerateRequest) -> Result<Vec<String>, GenerateError> {
        let candidates = candidates(&request.passages);
        match self.choose(&request.question, candidates).await {
            Ok(chosen) if chosen.is_empty() => Ok(vec![Self::NOTHING_FOUND.to_owned()]),
            Ok(chosen) => Ok((0..)
                .zip(chosen)
                .map(|(nth, sentence)| {
                    let blank = if nth == 0 { "" } else { " " };
                    format!("{blank}{} [{}]", without_markers(&sentence.text), sentence.passage)
                })
                .collect()),
            // A question without a single known word is answered by nothing.
            Err(EmbedError::NothingKnown { .. }) => Ok(vec![Self::NOTHING_FOUND.to_owned()]),
            Err(ref error @ EmbedError::Failed { failure, .. }) => {
                Err(GenerateError { generator: Self::NAME.to_owned(), failure, reason: error.to_string() })
            }
        }
    }

    /// The sentences of the answer, in reading order.
    async fn choose(&self, question: &str, candidates: Vec<Candidate>) -> Result<Vec<Candidate>, EmbedError> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<&str> =
            std::iter::once(question).chain(candidates.iter().map(|c| c.compared.as_str())).collect();
        let vectors = self.embedder.embed(&texts).await?;
        let Some((question_vector, vectors)) = vectors.split_first() else { return Ok(Vec::new()) };
        let question = stems(question);
        let words: Vec<_> = candidates.iter().map(|c| stems(&c.compared)).collect();
        let rarity = Rarity::of(&words);

        let mut scored: Vec<(f32, f32, Candidate)> = Vec::with_capacity(candidates.len());
        for ((candidate, vector), words) in candidates.into_iter().zip(vectors).zip(&words) {
            let closeness = cosine(question_vector, vector) + Self::OVERLAP_WEIGHT * rarity.overlap(&question, words);
            let worth = closeness + Self::RANK_WEIGHT / candidate.passage as f32;
            scored.push((worth, closeness, candidate));
        }
        // Equal worth keeps reading order: the sort is stable.
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let closest = scored.iter().map(|(_, closeness, _)| *closeness).fold(f32::MIN, f32::max);
        if closest < Self::CLOSENESS_MIN {
            return Ok(Vec::new());
        }
        let least = scored.first().map_or(0.0, |best| best.0 * Self::WORTH_SHARE);
        let mut chosen: Vec<Candidate> = Vec::new();
        for (worth, _, candidate) in scored {
            if chosen.len() == Self::SENTENCES_MAX || worth < least {
                break;
            }
            // Chunks overlap, so a sentence can come twice.
            let from_here = chosen.iter().filter(|other| other.passage == candidate.passage).count();
            if from_here < Self::PASSAGE_SENTENCES_MAX && chosen.iter().all(|other| other.text != candidate.text) {
                chosen.push(candidate);
            }
        }
        chosen.sort_by_key(|candidate| (candidate.passage, candidate.place));
        Ok(chosen)
    }
}

impl Generator for Extractive {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn generate(&self, request: GenerateRequest) -> BoxStream<'static, Result<Generated, GenerateError>> {
        let pieces = futures::stream::once(self.clone().pieces(request));
        pieces
            .flat_map(|pieces| match pieces {
                Ok(pieces) => {
                    futures::stream::iter(pieces.into_iter().map(|text| Ok(Generated::Text(text))).collect::<Vec<_>>())
                }
                Err(error) => futures::stream::iter(vec![Err(error)]),
            })
            .boxed()
    }
}

/// A sentence that may be quoted.
#[derive(Clone, Debug)]
struct Candidate {
    passage: u32,
    place: usize,
    text: String,
    /// What is compared with the question.
    compared: String,
}

fn candidates(passages: &[Passage]) -> Vec<Candidate> {
    let mut all = Vec::new();
    for passage in passages {
        let heading = passage.heading.as_deref().unwrap_or_default();
        for (place, text) in sentences(&passage.text).into_iter().enumerate() {
            if text.split_whitespace().count() >= Extractive::SENTENCE_WORDS_MIN {
                let compared = format!("{} {heading} {text}", passage.title);
                all.push(Candidate { passage: passage.number, place, text, compared });
            }
        }
    }
    all.truncate(Extractive::CANDIDATES_MAX);
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use futures::TryStreamExt;

    use super::*;
    use crate::embed::Static256;
    use crate::generate::Sampling;
    use crate::rag::context::{Budget, pack, tests::passage};

    async fn answer(question: &str, passages: &[&str]) -> String {
        let passages = (0..).zip(passages).map(|(n, text)| passage(&format!("d{n}#0000"), text)).collect();
        let request = GenerateRequest {
            question: question.into(),
            passages: pack(passages, Budget::default()),
            turns: vec![],
            sampling: Sampling::default(),
        };
        let generator = Extractive::new(Static256::shared().unwrap());
        let text = |piece| match piece {
            Generated::Text(text) => text,
            Generated::Finished(finish) => panic!("{finish:?}"),
        };
        generator.generate(request).map_ok(text).try_collect::<Vec<_>>().await.unwrap().concat()
    }

    const TEXTS: [&str; 2] = [
        "# Ants\n\nAnts live in large colonies under the ground. The queen ant lays all the eggs of the colony [4].",
        "Ships are steered with a rudder. A sail catches the wind and drives the ship forward.",
    ];

    #[tokio::test]
    async fn it_quotes_the_sentence_that_answers_and_cites_its_passage() {
        let got = answer("Which ant lays the eggs?", &TEXTS).await;
        assert!(got.contains("The queen ant lays all the eggs of the colony (4). [1]"), "{got}");
        assert!(!got.contains("[2]"), "{got}");
        let got = answer("What drives a sailing ship forward?", &TEXTS).await;
        assert!(got.contains("A sail catches the wind and drives the ship forward. [2]"), "{got}");
    }

    #[tokio::test]
    async fn it_says_plainly_when_nothing_answers() {
        for (question, passages) in
            [("How is bread baked?", &TEXTS[..]), ("Which ant lays the eggs?", &[]), ("\u{200b}", &TEXTS[..])]
        {
            assert_eq!(answer(question, passages).await, Extractive::NOTHING_FOUND, "{question}");
        }
    }
}
