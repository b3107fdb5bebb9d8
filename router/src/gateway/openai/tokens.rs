//! Texts as OpenAI's clients cut them: tokens of `cl100k_base`, the encoding of all of OpenAI's embedding models.
//!
//! LangChain and others cut a text into tokens themselves and send their ids, whatever model is asked; so they are decoded
//! here, as of that encoding, before an embedder sees them. `usage` counts by it too, of what the caller sent and was sent: it
//! is a measure of length, and not what a model behind this store has counted.
//!
//! The tables take a moment to load when first used: call where work may take time.
use tiktoken_rs::cl100k_base_singleton;

/// A number that is no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is no token of cl100k_base")]
pub(super) struct UnknownToken(u32);

/// The text of these tokens. A character of which the list holds a part only, as at the edge of a piece, is replaced.
pub(super) fn decode(tokens: &[u32]) -> Result<String, UnknownToken> {
    let bytes = cl100k_base_singleton().decode_bytes(tokens).map_err(|error| UnknownToken(error.token))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How many tokens a text has. Blanks beyond a thousand in a row are counted by the thousand: the encoding's regular
/// expression goes back over all of them.
pub(super) fn count(text: &str) -> usize {
    pieces(text).map(|piece| cl100k_base_singleton().count_ordinary(piece)).sum()
}

const BLANKS_MAX: usize = 1_000;

/// The text, cut after each [`BLANKS_MAX`] blanks in a row.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut blanks = 0;
        let cut = rest.char_indices().find_map(|(at, c)| {
            blanks = if c.is_whitespace() { blanks + 1 } else { 0 };
            (blanks == BLANKS_MAX).then_some(at + c.len_utf8())
        });
        let (piece, after) = rest.split_at(cut.unwrap_or(rest.len()));
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_tokens_are_openais() {
        // As OpenAI's tokenizer gives them.
        assert_eq!(decode(&[15339, 1917]).unwrap(), "hello world");
        assert_eq!(count("hello world"), 2);
        assert_eq!(count(""), 0);
        assert_eq!(decode(&[100_256]), Err(UnknownToken(100_256)));
        // A smiling face is three tokens; two of them are no character.
        let face = cl100k_base_singleton().encode_ordinary("😀");
        assert!(face.len() > 1);
        assert_eq!(decode(&face[..face.len() - 1]).unwrap().trim_matches('\u{fffd}'), "");
    }

    #[test]
    fn endless_runs_are_counted_in_time() {
        let blanks = format!("a{}b", " ".repeat(3_000_000));
        assert!(count(&blanks) >= 3_000);
        assert_eq!(pieces(&blanks).collect::<String>(), blanks);
        assert!(count(&"x".repeat(300_000)) > 10_000);
        assert!(count(&"\u{3000}\n".repeat(100_000)) > 100);
    }
}
