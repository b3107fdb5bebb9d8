//! The little of NumPy's file format that shipped tables use: version 1.0, C order, one known element type.

/// The elements' bytes of a file that holds exactly `descr` (as NumPy spells it, `|i1`) in exactly this shape.
pub(super) fn elements<'a>(file: &'a [u8], descr: &str, shape: &[usize], width: usize) -> Result<&'a [u8], NpyError> {
    let rest = file.strip_prefix(b"\x93NUMPY\x01\x00").ok_or(NpyError::NotNpy)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(NpyError::Truncated)?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (header, data) = rest.split_at_checked(length).ok_or(NpyError::Truncated)?;
    let header = std::str::from_utf8(header).map_err(|_| NpyError::NotNpy)?;
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let wanted = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    if header.trim_end() != wanted {
        return Err(NpyError::Header { got: header.trim_end().to_owned(), wanted });
    }
    let bytes = shape.iter().product::<usize>() * width;
    if data.len() != bytes {
        return Err(NpyError::Length { got: data.len(), wanted: bytes });
    }
    Ok(data)
}

/// What is wrong with a table.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NpyError {
    #[error("not a NumPy file of version 1.0")]
    NotNpy,
    #[error("ends within its header")]
    Truncated,
    #[error("header is {got}, expected {wanted}")]
    Header { got: String, wanted: String },
    #[error("holds {got} bytes of elements, expected {wanted}")]
    Length { got: usize, wanted: usize },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn a_table_is_read_only_when_it_is_the_one_expected() {
        let good = file("{'descr': '|i1', 'fortran_order': False, 'shape': (2, 3), }   \n", &[1, 2, 3, 4, 5, 6]);
        assert_eq!(elements(&good, "|i1", &[2, 3], 1), Ok(&[1, 2, 3, 4, 5, 6][..]));
        assert!(matches!(elements(&good, "|i1", &[3, 2], 1), Err(NpyError::Header { .. })));
        assert!(matches!(elements(&good, "<f4", &[2, 3], 4), Err(NpyError::Header { .. })));
        let short = &good[..good.len() - 1];
        assert_eq!(elements(short, "|i1", &[2, 3], 1), Err(NpyError::Length { got: 5, wanted: 6 }));
        assert_eq!(elements(&good[..20], "|i1", &[2, 3], 1), Err(NpyError::Truncated));
        assert_eq!(elements(b"PK", "|i1", &[2, 3], 1), Err(NpyError::NotNpy));
    }
}
