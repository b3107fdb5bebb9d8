//! Sentences of a passage, fit to be quoted.

/// Beyond this, brackets no longer hold a sentence together: one that is never closed would swallow its paragraph.
const SENTENCE_BYTES_LONG: usize = 600;

/// Before a full stop that ends no sentence; lower case, without the last stop.
const ABBREVIATIONS: &[&str] = &[
    "al", "approx", "ca", "cf", "co", "corp", "dr", "e.g", "ed", "eds", "esp", "etc", "fig", "i.e", "inc", "jr", "lit",
    "ltd", "mr", "mrs", "ms", "no", "nos", "orig", "p", "poss", "pp", "prof", "ref", "sec", "sr", "st", "u.k", "u.s",
    "usu", "viz", "vol", "vs",
];

/// The sentences of a plain or Markdown text in reading order. Headings, code blocks and tables are left out; line
/// breaks become blanks, list and quote marks go.
pub(super) fn sentences(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for block in blocks(text) {
        for sentence in split(&block, true) {
            if sentence.len() > SENTENCE_BYTES_LONG {
                found.extend(split(sentence, false).into_iter().map(str::to_owned));
            } else {
                found.push(sentence.to_owned());
            }
        }
    }
    found
}

/// Paragraphs and list items, each on one line.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open = false; // whether the next line continues the last block
    let mut fenced = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") || line.starts_with("~~~") {
            (fenced, open) = (!fenced, false);
            continue;
        }
        let rule = line.len() >= 3 && line.bytes().all(|b| matches!(b, b'-' | b'=' | b'*' | b'_' | b' '));
        if fenced || line.is_empty() || rule || line.starts_with('|') || is_heading(line) {
            open = false;
            continue;
        }
        let (item, line) = without_mark(line);
        match blocks.last_mut().filter(|_| open && !item) {
            Some(block) => {
                block.push(' ');
                block.push_str(line);
            }
            None => blocks.push(line.to_owned()),
        }
        open = true;
    }
    for block in &mut blocks {
        *block = block.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    blocks
}

fn is_heading(line: &str) -> bool {
    let rest = line.trim_start_matches('#');
    (1..=6).contains(&(line.len() - rest.len())) && (rest.is_empty() || rest.starts_with(' '))
}

/// Whether the line begins a list item, and the line without its mark.
fn without_mark(line: &str) -> (bool, &str) {
    let line = line.strip_prefix('>').map_or(line, str::trim_start);
    for mark in ["- ", "* ", "+ ", "• "] {
        if let Some(rest) = line.strip_prefix(mark) {
            return (true, rest.trim_start());
        }
    }
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    match line.get(digits..).and_then(|rest| rest.strip_prefix(". ").or_else(|| rest.strip_prefix(") "))) {
        Some(rest) if (1..=3).contains(&digits) => (true, rest.trim_start()),
        _ => (false, line),
    }
}

/// Cuts after `.`, `!`, `?`, `…` (and closing marks) before a blank and something that can begin a sentence; never after
/// an abbreviation or an initial, and, where `whole_brackets`, never within brackets.
fn split(block: &str, whole_brackets: bool) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut depth) = (0, 0_i32);
    let mut chars = block.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = (depth - 1).max(0),
            '.' | '!' | '?' | '…' => {
                let mut end = at + c.len_utf8();
                while let Some(&(at, c)) = chars.peek() {
                    match c {
                        ')' | ']' => depth = (depth - 1).max(0),
                        '.' | '!' | '?' | '"' | '\'' | '”' | '’' | '»' | '*' | '_' => {}
                        _ => break,
                    }
                    end = at + c.len_utf8();
                    chars.next();
                }
                let (before, after) = (&block[start..at], &block[end..]);
                let begins = after.strip_prefix(' ').and_then(|rest| rest.chars().next());
                let begins = begins.is_none_or(|c| !c.is_lowercase() && !matches!(c, '—' | '–' | '-' | ',' | ';'));
                let ends = after.is_empty() || (after.starts_with(' ') && begins);
                if ends && (depth == 0 || !whole_brackets) && !(c == '.' && is_abbreviated(before)) {
                    found.push(block[start..end].trim());
                    start = end;
                }
            }
            _ => {}
        }
    }
    found.push(block[start..].trim());
    found.retain(|sentence| sentence.chars().any(char::is_alphanumeric));
    found
}

/// Whether a text that a full stop follows ends in an abbreviation or an initial.
fn is_abbreviated(before: &str) -> bool {
    let word = before.rsplit([' ', '(', '[', '“', '"', '/']).next().unwrap_or_default();
    let mut letters = word.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none() && word != "I";
    initial || ABBREVIATIONS.binary_search(&word.to_lowercase().as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_a_reader_would_end_them() {
        assert!(ABBREVIATIONS.is_sorted());
        let text = "# A heading\n\nDr. J. Smith came, e.g. by\ntrain. He (an Old man. Really!) left at 3.5 p.m. sharp! \
                    “Why?” she asked. It is the U.S. version.\n\n* first item. Second\n* other one\n\n```\ncode. Here.\n\
                    ```\n\n| a. | B. |\n\n12. Twelfth … and on. No";
        assert_eq!(
            sentences(text),
            [
                "Dr. J. Smith came, e.g. by train.",
                "He (an Old man. Really!) left at 3.5 p.m. sharp!",
                "“Why?” she asked.",
                "It is the U.S. version.",
                "first item.",
                "Second",
                "other one",
                "Twelfth … and on.",
                "No",
            ]
        );
    }

    #[test]
    fn an_unclosed_bracket_does_not_swallow_a_paragraph() {
        let text = format!("It began (so they say. {}", "And then it went on. ".repeat(40));
        assert!(sentences(&text).len() > 30);
        assert_eq!(sentences("..."), Vec::<String>::new());
    }
}
