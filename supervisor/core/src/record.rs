//! Records that may grow: how the state of a supervisor is written for another version of the program to read.
//!
//! bincode knows no field names, so a field more would make every byte after it mean something else. A record is
//! therefore written as its length and then its fields, in order. A reader takes the fields that it knows, gives a
//! default to those that are missing (an older version has written), and leaves what follows (a newer one has).
//! So both directions work as long as fields are only appended, each with a default that means "as before". What
//! cannot be said that way is a new format, which an older version refuses to read.
//!
//! An enum is as it is: variants are only appended, and none ever gets another field. An unknown one is an error.
//!
//! What is read here was written by a process that had this one's pid. Still it is bounded, and decoded without panic.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::{DecodeError, EncodeError};

/// What decoding may take up in memory, in bytes.
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

/// Writes and reads a struct as a record: `record!(Name { its, fields } added { later: default() })`. What was there in
/// the first release stands first; what came later follows under `added`, in the order in which it came.
#[macro_export]
macro_rules! record {
    ($name:ident { $($field:ident),+ $(,)? } $(added { $($(#[$meta:meta])* $new:ident: $default:expr),+ $(,)? })?) => {
        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                // A field that is missing below does not compile.
                let Self { $($field,)+ $($($(#[$meta])* $new,)+)? } = self;
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
                Ok(Self { $($field,)+ $($($(#[$meta])* $new,)+)? })
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
        // In a list, so that what follows a record is seen to be where it should be.
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
