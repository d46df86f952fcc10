//! Records that may grow: how the state of a supervisor is encoded for another version of the
//! program.
//!
//! bincode encodes no field names, so an additional field would shift the meaning of every byte
//! after it. A record is therefore written as its length followed by its fields, in order. A reader
//! takes the fields that it knows, uses defaults for those that are missing (written by an older
//! version), and skips what follows (written by a newer one). So both directions work as long as
//! fields are only appended, each with a default that means "as before". Anything else is a new
//! format, which an older version refuses to read.
//!
//! Enums are encoded as they are: variants are only appended, and none ever gets another field. An
//! unknown one is an error.
//!
//! The input was written by a process that had this one's pid. Still, decoding is bounded and does
//! not panic.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::{DecodeError, EncodeError};

/// The most memory that decoding may use, in bytes.
const MEMORY: usize = 64 << 20;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MEMORY>> =
    bincode::config::standard().with_limit();

/// Appends a value to a record's bytes.
pub fn append<T: bincode::Encode>(record: &mut Vec<u8>, value: &T) -> Result<(), EncodeError> {
    bincode::encode_into_std_write(value, record, CONFIG).map(drop)
}

/// Takes the next value from a record's bytes.
pub fn take<T: bincode::Decode<()>>(record: &mut &[u8]) -> Result<T, DecodeError> {
    let (value, used) = bincode::decode_from_slice(record, CONFIG)?;
    *record = record.get(used..).unwrap_or_default();
    Ok(value)
}

/// Writes and reads a struct as a record: `record!(Name { its, fields } added { later: default() }
/// skipped { rest: fresh() })`. Fields of the first release stand first; later ones follow under
/// `added`, in the order in which they came. Fields under `skipped` are not written and start
/// fresh.
#[macro_export]
macro_rules! record {
    (
        $name:ident { $($field:ident),+ $(,)? }
        $(added { $($(#[$meta:meta])* $new:ident: $default:expr),+ $(,)? })?
        $(skipped { $($skipped:ident: $fresh:expr),+ $(,)? })?
    ) => {
        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                // A missing field does not compile.
                let Self { $($field,)+ $($($(#[$meta])* $new,)+)? $($($skipped: _,)+)? } = self;
                let mut record: Vec<u8> = Vec::new();
                $($crate::record::append(&mut record, $field)?;)+
                $($($(#[$meta])* $crate::record::append(&mut record, $new)?;)+)?
                bincode::Encode::encode(&record, encoder)
            }
        }

        impl<Context> bincode::Decode<Context> for $name {
            fn decode<D: bincode::de::Decoder<Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                let record: Vec<u8> = bincode::Decode::decode(decoder)?;
                let rest = &mut record.as_slice();
                $(let $field = $crate::record::take(rest)?;)+
                $($($(#[$meta])* let $new = if rest.is_empty() { $default } else { $crate::record::take(rest)? };)+)?
                Ok(Self {
                    $($field,)+
                    $($($(#[$meta])* $new,)+)?
                    $($($skipped: $fresh,)+)?
                })
            }
        }

        bincode::impl_borrow_decode!($name);
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Old {
        number: u32,
        text: String,
    }
    record!(Old { number, text });

    #[derive(Debug, PartialEq)]
    struct New {
        number: u32,
        text: String,
        more: Option<u16>,
        most: Vec<u64>,
    }
    record!(New { number, text } added { more: Some(7), most: Vec::new() });

    fn bytes(value: &impl bincode::Encode) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, value).expect("it fits");
        bytes
    }

    #[test]
    fn a_field_more_is_read_by_both_versions() {
        let old = Old {
            number: 9,
            text: "nine".to_owned(),
        };
        let new = New {
            number: 9,
            text: "nine".to_owned(),
            more: None,
            most: vec![1, 2],
        };
        // In a list, to check that the next record starts where it should.
        let read: Vec<Old> =
            take(&mut bytes(&[&new, &new].to_vec()).as_slice()).expect("the old version reads it");
        assert_eq!(
            read,
            [
                Old {
                    number: 9,
                    text: "nine".to_owned()
                },
                old
            ]
        );
        let old = Old {
            number: 9,
            text: "nine".to_owned(),
        };
        let read: Vec<New> =
            take(&mut bytes(&vec![&old, &old]).as_slice()).expect("the new version reads it");
        assert_eq!(
            (read[1].number, read[1].more, read[1].most.len(), read.len()),
            (9, Some(7), 0, 2)
        );
        let same: New = take(&mut bytes(&new).as_slice()).expect("the new version reads its own");
        assert_eq!(same, new);
    }

    #[test]
    fn a_record_that_is_cut_or_lies_about_its_length_is_an_error() {
        let whole = bytes(&Old {
            number: 9,
            text: "nine".to_owned(),
        });
        for length in 0..whole.len() {
            assert!(
                take::<Old>(&mut &whole[..length]).is_err(),
                "{length} bytes"
            );
        }
        let mut long = vec![253];
        long.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(take::<Old>(&mut long.as_slice()).is_err());
    }
}
