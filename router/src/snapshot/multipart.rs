//! A form's parts out of a body's pieces, however those are cut (RFC 7578, RFC 2046 §5.1). Pure.
//!
//! It holds no more than a piece, a delimiter and a part's head (`HEAD_BYTES_MAX`): a file of any length passes through. What it
//! deliberately does not read: transfer encodings (RFC 7578 §4.7 says not to send any), parts within parts.

/// The longest head of a part.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The longest delimiter (RFC 2046 §5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// A part begins, of this name.
    Part(String),
    /// Bytes of it.
    Data(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before the first delimiter.
    Preamble,
    /// Right behind a delimiter.
    Delimiter,
    Head,
    Body,
    End,
}

/// Takes a body apart.
#[derive(Debug)]
pub struct Multipart {
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    state: State,
}

impl Multipart {
    /// One for the body of this `Content-Type`.
    ///
    /// # Errors
    /// In words, where that is no form.
    pub fn new(content_type: &str) -> Result<Self, String> {
        let mut parameters = content_type.split(';').map(str::trim);
        let kind = parameters.next().unwrap_or_default();
        if !kind.eq_ignore_ascii_case("multipart/form-data") {
            return Err(format!("Content-Type is {kind:?}, must be multipart/form-data"));
        }
        let boundary = parameters.find_map(|parameter| value(parameter, "boundary"));
        let boundary = boundary.filter(|boundary| (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()));
        let boundary = boundary.ok_or("Content-Type has no boundary of 1 to 70 bytes")?;
        // The first delimiter may have no line before it: then it has this one.
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: b"\r\n".to_vec(),
            state: State::Preamble,
        })
    }

    /// Takes further bytes.
    ///
    /// # Errors
    /// In words, where it is no form.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, String> {
        if self.state == State::End {
            return Ok(Vec::new()); // an epilogue, which nobody reads
        }
        self.buffer.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        loop {
            match self.state {
                State::Preamble | State::Body => {
                    let found = find(&self.buffer, &self.delimiter);
                    // What may be the beginning of a delimiter waits for the rest.
                    let upto = found.unwrap_or_else(|| (self.buffer.len() + 1).saturating_sub(self.delimiter.len()));
                    let data: Vec<u8> = self.buffer.drain(..upto).collect();
                    if self.state == State::Body && !data.is_empty() {
                        pieces.push(Piece::Data(data));
                    }
                    if found.is_none() {
                        return Ok(pieces);
                    }
                    self.buffer.drain(..self.delimiter.len());
                    self.state = State::Delimiter;
                }
                State::Delimiter => {
                    let blanks = self.buffer.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
                    match self.buffer.get(blanks..blanks + 2) {
                        None if blanks > HEAD_BYTES_MAX => return Err("a delimiter does not end".to_owned()),
                        None => return Ok(pieces),
                        Some(b"--") if blanks == 0 => {
                            self.buffer.clear();
                            self.state = State::End;
                            return Ok(pieces);
                        }
                        Some(b"\r\n") => {
                            // The line's end stays: a part without a head begins with an empty line.
                            self.buffer.drain(..blanks);
                            self.state = State::Head;
                        }
                        Some(_) => return Err("something follows a delimiter".to_owned()),
                    }
                }
                State::Head => match find(&self.buffer, b"\r\n\r\n") {
                    None if self.buffer.len() > HEAD_BYTES_MAX => {
                        return Err(format!("a part's head is longer than {HEAD_BYTES_MAX} bytes"));
                    }
                    None => return Ok(pieces),
                    Some(at) => {
                        let head: Vec<u8> = self.buffer.drain(..at + 4).collect();
                        pieces.push(Piece::Part(part_name(&String::from_utf8_lossy(&head))?));
                        self.state = State::Body;
                    }
                },
                State::End => return Ok(pieces),
            }
        }
    }

    /// There is no more.
    ///
    /// # Errors
    /// In words, where the form is cut off.
    pub fn finish(self) -> Result<(), String> {
        if self.state == State::End { Ok(()) } else { Err("the form is cut off".to_owned()) }
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

/// The value of `name=value` or `name="value"`.
fn value(parameter: &str, name: &str) -> Option<String> {
    let (key, value) = parameter.split_once('=')?;
    if !key.trim().eq_ignore_ascii_case(name) {
        return None;
    }
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(quoted.map_or_else(|| value.to_owned(), |value| value.replace("\\\"", "\"")))
}

fn part_name(head: &str) -> Result<String, String> {
    let line = head.lines().find_map(|line| {
        let (name, rest) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(rest)
    });
    let line = line.ok_or("a part has no Content-Disposition")?;
    let name = line.split(';').skip(1).find_map(|parameter| value(parameter.trim(), "name"));
    name.ok_or_else(|| "a part has no name".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"a b\"";

    fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut form = Vec::new();
        for (name, body) in parts {
            form.extend_from_slice(
                format!("--a b\r\nContent-Type: x/y\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n")
                    .as_bytes(),
            );
            form.extend_from_slice(body);
            form.extend_from_slice(b"\r\n");
        }
        form.extend_from_slice(b"--a b--\r\nepilogue");
        form
    }

    /// The parts, whole.
    fn read(pieces: impl Iterator<Item = Vec<u8>>) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut multipart = Multipart::new(TYPE).unwrap();
        let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
        for bytes in pieces {
            for piece in multipart.feed(&bytes)? {
                match piece {
                    Piece::Part(name) => parts.push((name, Vec::new())),
                    Piece::Data(data) => parts.last_mut().unwrap().1.extend(data),
                }
            }
            assert!(multipart.buffer.len() <= bytes.len() + HEAD_BYTES_MAX + 64);
        }
        multipart.finish().map(|()| parts)
    }

    proptest! {
        #[test]
        fn parts_are_the_same_however_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(prop::sample::select(b"\r\n-a bx".to_vec()), 0..60), 0..4),
            size in 1_usize..40,
        ) {
            prop_assume!(bodies.iter().all(|body| find(body, b"\r\n--a b").is_none() && !body.starts_with(b"--a b")));
            let parts: Vec<(&str, &[u8])> = bodies.iter().map(|body| ("snapshot", body.as_slice())).collect();
            let bytes = form(&parts);
            let found = read(bytes.chunks(size).map(<[u8]>::to_vec)).unwrap();
            let wanted: Vec<(String, Vec<u8>)> = bodies.iter().map(|body| ("snapshot".to_owned(), body.clone())).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        assert!(Multipart::new("application/json").unwrap_err().contains("multipart/form-data"));
        assert!(Multipart::new("multipart/form-data").unwrap_err().contains("boundary"));
        let whole = form(&[("snapshot", b"abc")]);
        let end = whole.len() - b"--\r\nepilogue".len();
        for cut in 0..end {
            assert!(read([whole[..cut].to_vec()].into_iter()).is_err(), "{cut}");
        }
        let refused = |body: &str| read([body.as_bytes().to_vec()].into_iter()).unwrap_err();
        assert!(refused("--a bc\r\n").contains("follows"));
        assert!(refused("--a b\r\n\r\nx\r\n--a b--").contains("Content-Disposition"));
        assert!(refused("--a b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a b--").contains("name"));
        let long = format!("--a b\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        assert!(refused(&long).contains("longer"));
    }
}
