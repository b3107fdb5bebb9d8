//! Server-sent events, as far as model servers use them: the data of each event. [core]
//!
//! Lines end with LF or CRLF; `event`, `id`, `retry` and comments carry nothing here; an event that the stream's end cuts is
//! dropped, as the HTML standard says. Own code because the crates for it hold whatever comes, and what comes from a broken
//! server has no end.

/// The longest event.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// An event that is too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its reply holds an event of more than {EVENT_BYTES_MAX} bytes")]
pub(super) struct TooLong;

/// What has come of an event so far.
#[derive(Default, Debug)]
pub(super) struct Events {
    line: Vec<u8>,
    data: Option<String>,
}

impl Events {
    /// Takes bytes, and returns the data of the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut complete = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                complete.extend(self.take(&line));
            }
        }
        Ok(complete)
    }

    /// Takes a whole line; an empty one ends the event.
    fn take(&mut self, line: &[u8]) -> Option<String> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return self.data.take();
        }
        if let Some(value) = text.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn cutting_the_stream_anywhere_changes_nothing() {
        let stream =
            ": hello\n\ndata: {\"a\":\"ü\"}\n\nevent: x\r\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\ndata: cut";
        let expected = ["{\"a\":\"ü\"}", "one\ntwo", "[DONE]"];
        for cut in 0..=stream.len() {
            let mut events = Events::default();
            let mut all = events.push(&stream.as_bytes()[..cut]).unwrap();
            all.extend(events.push(&stream.as_bytes()[cut..]).unwrap());
            assert_eq!(all, expected, "cut at {cut}");
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut events = Events::default();
        let endless = (0..100).find_map(|_| events.push(&[b'x'; 100_000]).err());
        assert_eq!(endless, Some(TooLong));
        let mut events = Events::default();
        let line = format!("data: {}\n", "y".repeat(100_000));
        assert_eq!((0..100).find_map(|_| events.push(line.as_bytes()).err()), Some(TooLong));
    }
}
