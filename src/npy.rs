//! NumPy arrays from `.npy` files, plain or gzip: enough of the format (versions 1 to 3, C order, plain numbers) for tables
//! of expert loads and placements.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// An array of numbers in C order: the last index runs fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// Far above any table of experts: catches a wrong file before it takes memory.
const BYTES_MAX: u64 = 1 << 30;

/// Reads the array in `path`.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn read(path: &Path) -> Result<Array, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut raw = Vec::new();
    file.take(BYTES_MAX)
        .read_to_end(&mut raw)
        .map_err(|e| e.to_string())?;
    if raw.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        MultiGzDecoder::new(raw.as_slice())
            .take(BYTES_MAX)
            .read_to_end(&mut plain)
            .map_err(|e| format!("damaged gzip data ({e})"))?;
        raw = plain;
    }
    parse(&raw)
}

fn parse(raw: &[u8]) -> Result<Array, String> {
    let body = raw
        .strip_prefix(b"\x93NUMPY")
        .ok_or("not a NumPy array: it does not begin with \\x93NUMPY")?;
    let cut = || "the file ends inside its header".to_string();
    let (&version, body) = body.split_first().ok_or_else(cut)?;
    let body = body.get(1..).ok_or_else(cut)?;
    let (length, body) = match version {
        1 => {
            let b: [u8; 2] = body
                .get(..2)
                .ok_or_else(cut)?
                .try_into()
                .expect("two bytes");
            (usize::from(u16::from_le_bytes(b)), &body[2..])
        }
        2 | 3 => {
            let b: [u8; 4] = body
                .get(..4)
                .ok_or_else(cut)?
                .try_into()
                .expect("four bytes");
            (u32::from_le_bytes(b) as usize, &body[4..])
        }
        v => return Err(format!("version {v} of the format, expected 1 to 3")),
    };
    let header = body.get(..length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let data = &body[length..];
    if value_of(header, "fortran_order") != Some("False") {
        return Err("expected C order (fortran_order: False)".into());
    }
    let shape = shape(header)?;
    let count = shape
        .iter()
        .try_fold(1usize, |n, s| n.checked_mul(*s))
        .filter(|n| *n as u64 <= BYTES_MAX)
        .ok_or_else(|| format!("shape {shape:?} is too large"))?;
    let descr = value_of(header, "descr")
        .map(|d| d.trim_matches(['\'', '"']))
        .ok_or("its header names no descr")?;
    let values = numbers(descr, data)?;
    if values.len() != count {
        return Err(format!(
            "{} values, but shape {shape:?} has {count}",
            values.len()
        ));
    }
    Ok(Array { shape, values })
}

/// The text of a key's value in a header such as `{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }`.
fn value_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let at = header.find(&format!("'{key}'"))?;
    let rest = header[at..].split_once(':')?.1;
    let end = if rest.trim_start().starts_with('(') {
        rest.find(')')? + 1
    } else {
        rest.find([',', '}'])?
    };
    Some(rest[..end].trim())
}

fn shape(header: &str) -> Result<Vec<usize>, String> {
    let text = value_of(header, "shape").ok_or("its header names no shape")?;
    text.trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|n| !n.is_empty())
        .map(|n| n.parse().map_err(|_| format!("shape {text}")))
        .collect()
}

fn numbers(descr: &str, data: &[u8]) -> Result<Vec<f64>, String> {
    macro_rules! little {
        ($t:ty) => {{
            let (chunks, rest) = data.as_chunks::<{ size_of::<$t>() }>();
            if !rest.is_empty() {
                return Err("the file ends inside a value".into());
            }
            Ok(chunks
                .iter()
                .map(|c| <$t>::from_le_bytes(*c) as f64)
                .collect())
        }};
    }
    match descr {
        "|b1" | "|u1" => little!(u8),
        "|i1" => little!(i8),
        "<i2" => little!(i16),
        "<u2" => little!(u16),
        "<i4" => little!(i32),
        "<u4" => little!(u32),
        "<i8" => little!(i64),
        "<u8" => little!(u64),
        "<f4" => little!(f32),
        "<f8" => little!(f64),
        other => Err(format!(
            "values of type {other}, expected little-endian integers or floats"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut raw = b"\x93NUMPY\x01\x00".to_vec();
        raw.extend((header.len() as u16).to_le_bytes());
        raw.extend(header.as_bytes());
        raw.extend(data);
        raw
    }

    #[test]
    fn integers_and_floats_are_read_in_order() {
        let data: Vec<u8> = [1i32, -2, 3, 4, 5, 6]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let a = parse(&npy("<i4", "(2, 3)", &data)).unwrap();
        assert_eq!(a.shape, [2, 3]);
        assert_eq!(a.values, [1.0, -2.0, 3.0, 4.0, 5.0, 6.0]);
        let a = parse(&npy("<f4", "(1,)", &1.5f32.to_le_bytes())).unwrap();
        assert_eq!((a.shape, a.values), (vec![1], vec![1.5]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (raw, says) in [
            (b"PK\x03\x04".to_vec(), "not a NumPy array"),
            (npy(">i4", "(1,)", &[0; 4]), "type >i4"),
            (npy("<i4", "(2,)", &[0; 4]), "1 values, but shape [2] has 2"),
            (npy("<i4", "(1,)", &[0; 5]), "inside a value"),
            (npy("<i4", "(x,)", &[]), "shape (x,)"),
            (npy("<i4", "(1,)", &[])[..20].to_vec(), "inside its header"),
        ] {
            let why = parse(&raw).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }
}
