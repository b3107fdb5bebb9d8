//! Words as retrieval compares them: lower case, without inflection, without those that say nothing.

use std::collections::{BTreeMap, BTreeSet};

/// Words that occur in any question or text, whatever it is about; sorted.
const STOP: &[&str] = &[
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been", "before",
    "being", "but", "by", "can", "could", "did", "do", "does", "doing", "for", "from", "get", "had", "has", "have",
    "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "just", "like", "may", "me", "might", "my",
    "no", "not", "of", "on", "one", "or", "our", "out", "s", "she", "should", "so", "some", "such", "t", "than",
    "that", "the", "their", "them", "then", "there", "these", "they", "this", "to", "up", "was", "we", "were", "what",
    "when", "where", "which", "while", "who", "whom", "why", "will", "with", "would", "you", "your",
];

/// The distinct words of a text that carry meaning, as stems.
pub fn stems(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .filter(|word| STOP.binary_search(&word.as_str()).is_err())
        .map(|word| stem(&word))
        .collect()
}

/// How rare words are among some texts.
#[derive(Clone, Debug, Default)]
pub struct Rarity {
    texts: usize,
    holding: BTreeMap<String, usize>,
}

impl Rarity {
    /// Counts over these texts' stems.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a BTreeSet<String>>) -> Self {
        let mut rarity = Self::default();
        for stems in texts {
            rarity.texts += 1;
            for stem in stems {
                *rarity.holding.entry(stem.clone()).or_default() += 1;
            }
        }
        rarity
    }

    /// `ln(1 + texts / holding)`, as if one more text held every word: finite and positive also for an unseen word.
    pub fn weight(&self, stem: &str) -> f32 {
        let holding = self.holding.get(stem).copied().unwrap_or(0);
        ((self.texts + 1) as f32 / (holding + 1) as f32).ln_1p()
    }

    /// The share of the question's weight that the text's words hold, 0 to 1.
    pub fn overlap(&self, question: &BTreeSet<String>, text: &BTreeSet<String>) -> f32 {
        let all: f32 = question.iter().map(|stem| self.weight(stem)).sum();
        let held: f32 = question.intersection(text).map(|stem| self.weight(stem)).sum();
        if all > 0.0 { held / all } else { 0.0 }
    }
}

/// Cuts English inflection where enough of the word stays; both sides of a comparison are cut alike, so a stem need not
/// be a word.
fn stem(word: &str) -> String {
    let cut = ["ing", "ies", "ied", "ed", "es", "s", "y", "e"].iter().find_map(|ending| {
        let rest = word.strip_suffix(ending)?;
        let doubled = *ending == "s" && rest.ends_with('s');
        (rest.chars().count() >= 3 && !doubled).then_some(rest)
    });
    let rest = cut.unwrap_or(word);
    let mut last = rest.chars().rev();
    match (cut, last.next(), last.next()) {
        // "running" → "run", as "runs" → "run"
        (Some(_), Some(a), Some(b)) if a == b && !matches!(a, 's' | 'l') && rest.chars().count() > 3 => {
            rest[..rest.len() - a.len_utf8()].to_owned()
        }
        _ => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflections_of_a_word_meet() {
        assert!(STOP.is_sorted());
        for words in ["running runs run", "computers computer", "copies copied copy", "places placed placing place"] {
            assert_eq!(stems(words).len(), 1, "{words}: {:?}", stems(words));
        }
        assert_eq!(stems("What is the bus?"), BTreeSet::from(["bus".to_owned()]));
    }

    #[test]
    fn rare_words_weigh_more() {
        let texts = [stems("red ant"), stems("red bee"), stems("red fox")];
        let rarity = Rarity::of(&texts);
        assert!(rarity.weight("ant") > rarity.weight("red"));
        let question = stems("red ant");
        assert!(rarity.overlap(&question, &texts[0]) > 0.999);
        let bee = rarity.overlap(&question, &texts[1]);
        assert!(bee > 0.0 && bee < 0.5);
        assert!(rarity.overlap(&BTreeSet::new(), &texts[0]) < f32::EPSILON);
    }
}
