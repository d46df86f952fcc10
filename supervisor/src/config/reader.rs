//! How a value gets from text or from the file into a type: the machinery that all [words](super::words) share.

use super::words::Plain;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

/// A value that can be read from text.
pub(crate) trait Word: Clone + fmt::Debug + Send + Sync + 'static {
    /// An example, for messages: `write it like {LIKE}`.
    const LIKE: &'static str;
    /// Whether the file holds it as a bare number.
    const NUMBER: bool = false;
    /// What a bare number's place can also hold, in quotes.
    const WORDS: &'static [&'static str] = &[];

    /// Whether a bare number's place can also hold a range of them, in quotes.
    const DOTTED: bool = false;

    /// Reads it, or says what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;

    /// Reads one entry of a table. Only `env` is a table.
    fn entry(_key: &str, _value: &str) -> Result<Self, String> {
        Err(format!("is a table here; write it like {}", Self::LIKE))
    }

    /// A list in an upper layer replaces the one below it, unless its words are entries of a table.
    fn over(upper: Vec<Typed<Self>>, _lower: Vec<Typed<Self>>) -> Vec<Typed<Self>> {
        upper
    }
}

/// A [`Word`] as it stands in [`Options`](super::options::Options).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Typed<T>(pub(crate) T);

impl<T: Word> FromStr for Typed<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        T::read(text).map(Self)
    }
}

/// One setting's value in one layer.
pub(crate) trait Value: Sized {
    /// From an environment variable or the table of defaults.
    fn from_text(text: &str) -> Result<Self, String>;
    /// From the file.
    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error>;
    /// Laid over the value of a lower layer.
    fn over(self, lower: Self) -> Self;
}

impl<T: Word> Value for Typed<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error> {
        Self::deserialize(value)
    }

    fn over(self, _lower: Self) -> Self {
        self
    }
}

impl<T: Word> Value for Vec<Typed<T>> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split_whitespace().map(str::parse).collect()
    }

    fn from_toml(value: toml::de::ValueDeserializer<'_>) -> Result<Self, toml::de::Error> {
        Many::deserialize(value).map(|Many(list)| list)
    }

    fn over(self, lower: Self) -> Self {
        T::over(self, lower)
    }
}

impl<'de, T: Word> Deserialize<'de> for Typed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(One(PhantomData))
    }
}

/// Reads a single word from the file.
struct One<T>(PhantomData<T>);

impl<'de, T: Word> Visitor<'de> for One<T> {
    type Value = Typed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::LIKE)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Typed<T>, E> {
        if T::NUMBER && !T::WORDS.contains(&text) && !(T::DOTTED && text.contains("..")) {
            return Err(E::custom(format!(
                "is text here; write the number without quotes, like {}",
                T::LIKE
            )));
        }
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Typed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Typed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Typed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<Typed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Typed<T>, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Typed<T>, E> {
        yes.to_string().parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Typed<T>, A::Error> {
        Err(A::Error::custom(format!(
            "is a list here; write one value, like {}",
            T::LIKE
        )))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Typed<T>, A::Error> {
        // A date looks like a table to a visitor.
        Err(A::Error::custom(format!(
            "is a table or a date here; write one value, like {}",
            T::LIKE
        )))
    }
}

/// Reads a word, a list of words or a table of entries from the file.
struct Many<T>(Vec<Typed<T>>);

impl<'de, T: Word> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ManyVisitor(PhantomData))
    }
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: Word> Visitor<'de> for ManyVisitor<T> {
    type Value = Many<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::LIKE)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Many<T>, E> {
        One(PhantomData)
            .visit_str(text)
            .map(|word| Many(vec![word]))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Many<T>, E> {
        One(PhantomData)
            .visit_i64(number)
            .map(|word| Many(vec![word]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Many<T>, A::Error> {
        let mut words = Vec::new();
        while let Some(word) = list.next_element()? {
            words.push(word);
        }
        Ok(Many(words))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Many<T>, A::Error> {
        let mut words = Vec::new();
        while let Some(key) = table.next_key::<String>()? {
            let Typed(Plain(value)) = table.next_value()?;
            words.push(Typed(T::entry(&key, &value).map_err(A::Error::custom)?));
        }
        Ok(Many(words))
    }
}
