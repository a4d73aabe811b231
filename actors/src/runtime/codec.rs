//! The one place where values become bytes: bincode with fixed-width integers. Whatever crosses from shard to
//! shard can pass through here, so that a shard could live in another process.

use bincode::config::{Configuration, Fixint, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

const CONFIG: Configuration<LittleEndian, Fixint> =
    bincode::config::standard().with_fixed_int_encoding();

/// A value that could not be encoded, or bytes that are not a value of the expected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("cannot encode a {what}: {cause}")]
    Encode { what: &'static str, cause: String },
    #[error("cannot decode a {what}: {cause}")]
    Decode { what: &'static str, cause: String },
    #[error("{left} bytes are left over after a {what}")]
    Trailing { what: &'static str, left: usize },
}

/// # Errors
/// What serde refused, for instance a sequence of unknown length.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, CONFIG).map_err(|e| CodecError::Encode {
        what: std::any::type_name::<T>(),
        cause: e.to_string(),
    })
}

/// # Errors
/// When the bytes are not exactly one value of type `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|e| CodecError::Decode {
            what,
            cause: e.to_string(),
        })?;
    if used != bytes.len() {
        return Err(CodecError::Trailing {
            what,
            left: bytes.len() - used,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(v: Vec<(u64, i32, Option<Box<[u8]>>, String)>) {
            let bytes = encode(&v).unwrap();
            prop_assert_eq!(decode::<Vec<(u64, i32, Option<Box<[u8]>>, String)>>(&bytes).unwrap(), v);
        }
    }

    #[test]
    fn integers_keep_their_width() {
        assert_eq!(encode(&(1u64, 2u32, 3u16)).unwrap().len(), 14);
    }

    #[test]
    fn cut_and_overlong_bytes_are_refused() {
        let bytes = encode(&(1u64, 2u64)).unwrap();
        assert!(matches!(
            decode::<(u64, u64)>(&bytes[..15]),
            Err(CodecError::Decode { .. })
        ));
        assert_eq!(
            decode::<u64>(&bytes),
            Err(CodecError::Trailing {
                what: "u64",
                left: 8
            }),
        );
    }
}
