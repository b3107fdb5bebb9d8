//! The outline of a Markdown text: front matter and headings. Splitting by structure is text-splitter's work; it does not
//! say under which heading a piece stands.

/// A heading and the byte at which its line begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Heading {
    pub(super) start: usize,
    pub(super) text: String,
}

/// All headings in order, those in fenced code left out.
pub(super) fn headings(text: &str) -> Vec<Heading> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    let mut paragraph: Option<(usize, &str)> = None; // the line above, where it can become a heading by underlining
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let at = start;
        start += line.len();
        let indent = line.len() - line.trim_start_matches(' ').len();
        let line = line.trim();
        if let Some(mark) = fence {
            if line.starts_with(mark) && line.trim_start_matches(mark).trim().is_empty() {
                fence = None;
            }
            continue;
        }
        if line.starts_with("```") || line.starts_with("~~~") {
            fence = line.get(..3);
            paragraph = None;
        } else if indent <= 3 && atx(line).is_some() {
            found.extend(atx(line).map(|text| Heading { start: at, text }));
            paragraph = None;
        } else if let Some((at, above)) = paragraph.filter(|_| indent <= 3 && is_underline(line)) {
            found.push(Heading { start: at, text: above.to_owned() });
            paragraph = None;
        } else {
            let plain = !line.is_empty() && indent <= 3 && !line.starts_with(['-', '*', '+', '>', '|']);
            // A paragraph of several lines makes a heading too, but such headings are accidents.
            paragraph = (plain && paragraph.is_none()).then_some((at, line));
        }
    }
    found
}

/// The title that a YAML front matter names, and the text after it.
pub(super) fn without_front_matter(text: &str) -> (Option<String>, &str) {
    let Some(inside) = text.strip_prefix("---\n") else { return (None, text) };
    let Some((front, rest)) = inside.split_once("\n---\n") else { return (None, text) };
    let title = front.lines().find_map(|line| line.strip_prefix("title:"));
    let title = title.map(|t| t.trim().trim_matches(['"', '\'']).to_owned()).filter(|t| !t.is_empty());
    (title, rest)
}

fn atx(line: &str) -> Option<String> {
    let rest = line.trim_start_matches('#');
    let level = line.len() - rest.len();
    if !(1..=6).contains(&level) || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    Some(rest.trim().trim_end_matches('#').trim_end().to_owned())
}

fn is_underline(line: &str) -> bool {
    line.len() >= 2 && (line.bytes().all(|b| b == b'=') || line.bytes().all(|b| b == b'-'))
}
