//! How a value gets from text or from the file into a type, and back into the file: the machinery
//! that all kinds of values share.
//!
//! It does not know which options there are.

use super::toml_text::quoted;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser, ValueParserFactory};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

/// A value that cannot be used: a sentence that says why, and how to write it right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub(crate) String);

/// An [`InvalidValue`] from a format string.
macro_rules! invalid {
    ($($text:tt)+) => { $crate::config::reader::InvalidValue(format!($($text)+)) };
}
pub(crate) use invalid;

/// A kind of value: how it is read, and how it is written.
pub(crate) trait ConfigValue: Clone + fmt::Debug + Send + Sync + 'static {
    /// What the configuration holds once the value has been read.
    type Resolved: Clone + fmt::Debug + PartialEq + Send + Sync + 'static;

    /// An example, for messages: `write it like {EXAMPLE}`.
    const EXAMPLE: &'static str;
    /// Whether the file holds it as a bare number.
    const NUMBER: bool = false;
    /// The keywords that can stand in a bare number's place, in quotes.
    const KEYWORDS: &'static [&'static str] = &[];
    /// Values that a shell offers: all that there are, or those that are typed most.
    const CHOICES: &'static [&'static str] = &[];
    /// Whether a range of numbers can stand in a bare number's place, in quotes.
    const RANGE: bool = false;

    /// Reads it, or says what is wrong with it.
    fn read(text: &str) -> Result<Self::Resolved, InvalidValue>;

    /// Writes it as the file has it: what [`read`](Self::read) reads, in quotes unless it is a
    /// number.
    fn write(value: &Self::Resolved) -> String;

    /// Reads one entry of a table.
    fn entry(_key: &str, _value: &str) -> Result<Self::Resolved, InvalidValue> {
        Err(invalid!("is a table here; write it like {}", Self::EXAMPLE))
    }

    /// Merges two layers. A list in an upper layer replaces the one below it, unless its values are
    /// entries of a table.
    fn over(upper: Vec<Parsed<Self>>, _lower: Vec<Parsed<Self>>) -> Vec<Parsed<Self>> {
        upper
    }
}

/// Implements [`ConfigValue`] for an enum whose values are keywords, and `as_str`, which names
/// them.
macro_rules! keywords {
    (
        $type:ident {
            $first:ident = $example:literal $(, $variant:ident = $keyword:literal)* $(,)?
        },
        $complaint:literal
    ) => {
        impl $type {
            /// Returns the keyword for it, as on the command line.
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::$first => $example,
                    $(Self::$variant => $keyword,)*
                }
            }
        }

        impl $crate::config::reader::ConfigValue for $type {
            type Resolved = Self;
            const EXAMPLE: &'static str = concat!("\"", $example, "\"");
            const CHOICES: &'static [&'static str] = &[$example $(, $keyword)*];

            fn read(text: &str) -> Result<Self, $crate::config::reader::InvalidValue> {
                match text {
                    $example => Ok(Self::$first),
                    $($keyword => Ok(Self::$variant),)*
                    _ => Err($crate::config::reader::invalid!("`{text}` {}", $complaint)),
                }
            }

            fn write(value: &Self) -> String {
                $crate::config::toml_text::quoted(value.as_str())
            }
        }
    };
}
pub(crate) use keywords;

/// Any text.
#[derive(Debug, Clone)]
pub(crate) struct Text;

impl ConfigValue for Text {
    type Resolved = String;
    const EXAMPLE: &'static str = "\"text\"";

    fn read(text: &str) -> Result<String, InvalidValue> {
        if text.contains('\0') {
            return Err(invalid!("holds a NUL byte, which no program can be given"));
        }
        Ok(text.to_owned())
    }

    fn write(value: &String) -> String {
        quoted(value)
    }
}

/// A value of one layer, as it stands in `Options`.
#[derive(Debug, Clone)]
pub(crate) struct Parsed<T: ConfigValue>(pub(crate) T::Resolved);

impl<T: ConfigValue> FromStr for Parsed<T> {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        T::read(text).map(Self)
    }
}

/// Reads an option's value on the command line.
#[derive(Debug, Clone)]
pub(crate) struct ValueParser<T>(PhantomData<T>);

impl<T: ConfigValue> ValueParserFactory for Parsed<T> {
    type Parser = ValueParser<T>;

    fn value_parser() -> ValueParser<T> {
        ValueParser(PhantomData)
    }
}

impl<T: ConfigValue> TypedValueParser for ValueParser<T> {
    type Value = Parsed<T>;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Parsed<T>, clap::Error> {
        StringValueParser::new()
            .try_map(|text| text.parse::<Parsed<T>>())
            .parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let choices = T::CHOICES;
        (!choices.is_empty()).then(|| -> Box<dyn Iterator<Item = _>> {
            Box::new(choices.iter().map(PossibleValue::new))
        })
    }
}

/// The value of one option in one layer: one [`Parsed`], or a list of them.
pub(crate) trait OptionValue: Sized {
    /// What the configuration holds.
    type Resolved;

    /// Reads it from an environment variable or from the table of defaults.
    fn from_text(text: &str) -> Result<Self, InvalidValue>;
    /// Reads it from the file.
    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error>;
    /// Lays it over the value of a lower layer.
    fn over(self, lower: Self) -> Self;
    /// Returns what the configuration holds. A list that is not set is empty; anything else has a
    /// default.
    fn resolve(value: Option<Self>) -> Self::Resolved;
    /// Writes what the configuration holds as the file has it.
    fn write(value: &Self::Resolved) -> String;
}

impl<T: ConfigValue> OptionValue for Parsed<T> {
    type Resolved = T::Resolved;

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        text.parse()
    }

    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error> {
        Self::deserialize(value)
    }

    fn over(self, _lower: Self) -> Self {
        self
    }

    fn resolve(value: Option<Self>) -> T::Resolved {
        value.expect("the table gives a default").0
    }

    fn write(value: &T::Resolved) -> String {
        T::write(value)
    }
}

impl<T: ConfigValue> OptionValue for Vec<Parsed<T>> {
    type Resolved = Vec<T::Resolved>;

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        text.split_whitespace().map(str::parse).collect()
    }

    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error> {
        Many::deserialize(value).map(|Many(list)| list)
    }

    fn over(self, lower: Self) -> Self {
        T::over(self, lower)
    }

    fn resolve(value: Option<Self>) -> Vec<T::Resolved> {
        let list = value.unwrap_or_default();
        list.into_iter().map(|Parsed(value)| value).collect()
    }

    fn write(list: &Vec<T::Resolved>) -> String {
        let list: Vec<_> = list.iter().map(T::write).collect();
        format!("[{}]", list.join(", "))
    }
}

impl<'de, T: ConfigValue> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(One(PhantomData))
    }
}

/// Reads a single value from the file.
struct One<T>(PhantomData<T>);

impl<'de, T: ConfigValue> Visitor<'de> for One<T> {
    type Value = Parsed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXAMPLE)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Parsed<T>, E> {
        if T::NUMBER && !T::KEYWORDS.contains(&text) && !(T::RANGE && text.contains("..")) {
            return Err(E::custom(format!(
                "is text here; write the number without quotes, like {}",
                T::EXAMPLE
            )));
        }
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Parsed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Parsed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Parsed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<Parsed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Parsed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Parsed<T>, E> {
        yes.to_string().parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Parsed<T>, A::Error> {
        Err(A::Error::custom(format!(
            "is a list here; write one value, like {}",
            T::EXAMPLE
        )))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Parsed<T>, A::Error> {
        // A date looks like a table to a visitor.
        Err(A::Error::custom(format!(
            "is a table or a date here; write one value, like {}",
            T::EXAMPLE
        )))
    }
}

/// Reads a value, a list of values or a table of entries from the file.
struct Many<T: ConfigValue>(Vec<Parsed<T>>);

impl<'de, T: ConfigValue> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ManyVisitor(PhantomData))
    }
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: ConfigValue> Visitor<'de> for ManyVisitor<T> {
    type Value = Many<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXAMPLE)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Many<T>, E> {
        One(PhantomData)
            .visit_str(text)
            .map(|value| Many(vec![value]))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Many<T>, E> {
        One(PhantomData)
            .visit_i64(number)
            .map(|value| Many(vec![value]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Many<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Many(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Many<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(key) = table.next_key::<String>()? {
            let Parsed::<Text>(value) = table.next_value()?;
            values.push(Parsed(T::entry(&key, &value).map_err(A::Error::custom)?));
        }
        Ok(Many(values))
    }
}
