//! A second look at what a vector search found.
//!
//! A vector of a whole chunk blurs what it says; the words themselves tell chunks on one subject apart. So an answer's
//! search asks for more passages than it needs, and those that share the question's rare words move up.

use crate::rag::context::Passage;
use crate::rag::words::{Rarity, stems};

/// How much a full overlap of words is worth beside a cosine of 1.
const OVERLAP_WEIGHT: f32 = 0.5;

/// Orders passages by score plus the share of the question's words, weighted by rarity among these passages, that text,
/// title and heading hold. Scores are left as the search gave them; equal worth keeps the order given.
pub fn by_words(question: &str, passages: Vec<Passage>) -> Vec<Passage> {
    let question = stems(question);
    let all = |p: &Passage| stems(&format!("{} {} {}", p.title, p.heading.as_deref().unwrap_or_default(), p.text));
    let words: Vec<_> = passages.iter().map(all).collect();
    let rarity = Rarity::of(&words);
    let worth = |passage: &Passage, words| passage.score + OVERLAP_WEIGHT * rarity.overlap(&question, words);
    let mut ranked: Vec<(f32, Passage)> =
        passages.into_iter().zip(&words).map(|(passage, words)| (worth(&passage, words), passage)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().map(|(_, passage)| passage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::context::tests::passage;

    #[test]
    fn shared_rare_words_lift_a_passage_past_a_nearer_one() {
        let near = Passage { score: 0.6, ..passage("a", "Animals live in colonies.") };
        let named = Passage { score: 0.5, ..passage("b", "Naked mole rats live in colonies.") };
        let order = |question| -> Vec<String> {
            by_words(question, vec![near.clone(), named.clone()]).iter().map(|p| p.id.to_string()).collect()
        };
        assert_eq!(order("Do mole rats live together?"), ["b", "a"]);
        assert_eq!(order("Is it so?"), ["a", "b"]);
    }
}
