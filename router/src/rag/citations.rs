//! Finds `[n]` in a text that arrives in pieces.
//!
//! A generator's text cites with `[n]` or `[n, m]`. Markers may be cut anywhere between two pieces, and a language model
//! invents some; what leaves here is never cut within a marker and cites only passages that were given.

use std::collections::BTreeSet;

/// A piece of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cited {
    /// The text, markers as `[n]`.
    pub text: String,
    /// The passages it cites, in the order of the text.
    pub citations: Vec<u32>,
}

/// The citations of one answer.
#[derive(Clone, Debug)]
pub struct Citations {
    passages: u32,
    /// What may be the beginning of a marker; starts with `[`.
    held: String,
    cited: BTreeSet<u32>,
}

impl Citations {
    /// A marker longer than this is ordinary text, so that a lone `[` cannot hold the answer back.
    const MARKER_BYTES_MAX: usize = 32;

    /// For an answer whose passages are numbered 1 to `passages`.
    pub fn new(passages: u32) -> Self {
        Self { passages, held: String::new(), cited: BTreeSet::new() }
    }

    /// Takes a piece and returns what is ready, which may be nothing yet.
    pub fn push(&mut self, piece: &str) -> Cited {
        let mut ready = Cited::default();
        for c in piece.chars() {
            if self.held.is_empty() {
                if c == '[' {
                    self.held.push(c)
                } else {
                    ready.text.push(c)
                }
                continue;
            }
            match c {
                '0'..='9' | ',' | ' ' if self.held.len() < Self::MARKER_BYTES_MAX => self.held.push(c),
                ']' => {
                    self.held.push(c);
                    self.settle(&mut ready);
                }
                _ => {
                    ready.text.push_str(&std::mem::take(&mut self.held));
                    if c == '[' { self.held.push(c) } else { ready.text.push(c) }
                }
            }
        }
        ready
    }

    /// The end of the text: returns what was held back.
    pub fn finish(&mut self) -> Cited {
        Cited { text: std::mem::take(&mut self.held), citations: Vec::new() }
    }

    /// Every passage cited so far, ascending.
    pub fn cited(&self) -> Vec<u32> {
        self.cited.iter().copied().collect()
    }

    /// `held` is bracketed digits, commas and blanks.
    fn settle(&mut self, ready: &mut Cited) {
        let held = std::mem::take(&mut self.held);
        let numbers = held.trim_matches(['[', ']']).split(',').map(str::trim);
        let numbers: Vec<Option<u32>> = numbers.map(|number| number.parse().ok()).collect();
        if numbers.iter().any(Option::is_none) {
            ready.text.push_str(&held); // `[]`, `[ , ]`: not a marker
            return;
        }
        for number in numbers.into_iter().flatten().filter(|number| (1..=self.passages).contains(number)) {
            ready.text.push_str(&format!("[{number}]"));
            ready.citations.push(number);
            self.cited.insert(number);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn run(pieces: &[&str]) -> (String, Vec<u32>, Vec<u32>) {
        let mut citations = Citations::new(3);
        let mut all = Cited::default();
        for piece in pieces {
            let ready = citations.push(piece);
            all.text += &ready.text;
            all.citations.extend(ready.citations);
        }
        all.text += &citations.finish().text;
        (all.text, all.citations, citations.cited())
    }

    #[test]
    fn cutting_the_text_anywhere_changes_nothing() {
        let text = "Ants work [1]. Bees [3, 1] too [9], a[i] and [x [2] [] [";
        let expected =
            ("Ants work [1]. Bees [3][1] too , a[i] and [x [2] [] [".to_owned(), vec![1, 3, 1, 2], vec![1, 2, 3]);
        assert_eq!(run(&[text]), expected);
        for cut in 0..=text.len() {
            assert_eq!(run(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_lone_bracket_does_not_hold_the_answer_back() {
        let mut citations = Citations::new(3);
        assert_eq!(citations.push("see [").text, "see ");
        let ready = citations.push(&"1".repeat(60));
        assert!(ready.text.starts_with("[1111"), "{}", ready.text);
    }

    #[test]
    fn numbers_of_no_passage_are_dropped() {
        assert_eq!(run(&["[0][4][4294967296]"]), ("[4294967296]".to_owned(), vec![], vec![]));
    }
}
