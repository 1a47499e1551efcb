//! serde over a [`Json`] tree: a configuration's type is filled from it, and a fault knows its path.
//!
//! Messages do not show the text of a value: it may be a secret in the wrong place.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use crate::json::{self, Json};

/// What is wrong in a tree, and where.
#[derive(Debug)]
pub(crate) struct Fault {
    /// From the value outwards: filled while the error travels up.
    path: Vec<Segment>,
    reason: String,
}

#[derive(Debug)]
enum Segment {
    Index(usize),
    Key(String),
}

impl Fault {
    /// `keys[0].kid`; empty means the whole.
    pub(crate) fn path(&self) -> String {
        let mut path = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Key(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Segment::Index(index) => {
                    path.push('[');
                    crate::log::push_number(&mut path, *index as u64);
                    path.push(']');
                }
            }
        }
        path
    }

    pub(crate) fn reason(self) -> String {
        self.reason
    }

    #[cold]
    fn mismatch(found: &str, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    #[cold]
    fn at_key(mut self, key: &str) -> Self {
        self.path.push(Segment::Key(key.into()));
        self
    }

    #[cold]
    fn at_index(mut self, index: usize) -> Self {
        self.path.push(Segment::Index(index));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self {
            path: Vec::new(),
            reason: reason.to_string(),
        }
    }

    #[cold]
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::mismatch(kind(found), expected)
    }

    #[cold]
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match found {
            Unexpected::Unsigned(number) => Self::mismatch(&number.to_string(), expected),
            Unexpected::Signed(number) => Self::mismatch(&number.to_string(), expected),
            other => Self::mismatch(kind(other), expected),
        }
    }
}

/// What kind of value it is; not serde's own words, which would print floats and texts.
fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Char(_) | Unexpected::Str(_) => "a text",
        Unexpected::Bytes(_) => "bytes",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "a list",
        Unexpected::Map | Unexpected::StructVariant => "an object",
        _ => "another kind of value",
    }
}

impl Json {
    #[cold]
    fn mismatch<'de, V: Visitor<'de>>(&self, visitor: &V) -> Fault {
        let found = match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        };
        Fault::mismatch(found, visitor)
    }

    fn integer<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Unsigned(number) => visitor.visit_u64(*number),
            Self::Signed(number) => visitor.visit_i64(*number),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn float<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Float(text) => match json::float(text) {
                Some(number) => visitor.visit_f64(number),
                None => Err(Fault::mismatch("a number of too many digits", &visitor)),
            },
            other => other.integer(visitor),
        }
    }

    fn text<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Text(text) => visitor.visit_borrowed_str(text),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn list<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        let Self::List(items) = self else {
            return Err(self.mismatch(&visitor));
        };
        let mut access = Items {
            items: items.iter(),
            index: 0,
        };
        let value = visitor.visit_seq(&mut access)?;
        match access.items.len() {
            0 => Ok(value),
            left => Err(Fault::custom(format_args!(
                "the list has {left} items too many"
            ))),
        }
    }

    fn object<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        let Self::Object(members) = self else {
            return Err(self.mismatch(&visitor));
        };
        visitor.visit_map(Members {
            members: members.iter(),
            member: None,
        })
    }
}

/// Methods that hand on to one of the kinds above.
macro_rules! read {
    ($kind:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.$kind(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &'de Json {
    type Error = Fault;

    read!(integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128);
    read!(integer: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    read!(float: deserialize_f32 deserialize_f64);
    read!(text: deserialize_char deserialize_str deserialize_string deserialize_identifier);
    read!(list: deserialize_seq);
    read!(object: deserialize_map);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Unsigned(_) | Json::Signed(_) => self.integer(visitor),
            Json::Float(_) => self.float(visitor),
            Json::Text(_) => self.text(visitor),
            Json::List(_) => self.list(visitor),
            Json::Object(_) => self.object(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Json::Bool(value) => visitor.visit_bool(*value),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Json::Text(text) => visitor.visit_borrowed_bytes(text.as_bytes()),
            other => other.list(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Json::Null => visitor.visit_none(),
            value => visitor.visit_some(value),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Json::Null => visitor.visit_unit(),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.object(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Json::Text(name) => visitor.visit_enum(Variant {
                name,
                content: None,
            }),
            Json::Object(members) => match members.as_slice() {
                [(name, content)] => visitor.visit_enum(Variant {
                    name,
                    content: Some(content),
                }),
                _ => Err(Fault::custom("expected an object with one key")),
            },
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

impl<'de> IntoDeserializer<'de, Fault> for &'de Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Json>,
    index: usize,
}

impl<'de> SeqAccess<'de> for &mut Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(item)
            .map(Some)
            .map_err(|fault| fault.at_index(index))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Members<'de> {
    members: std::slice::Iter<'de, (String, Json)>,
    member: Option<&'de (String, Json)>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.member = self.members.next();
        let Some((key, _)) = self.member else {
            return Ok(None);
        };
        let key_reader = BorrowedStrDeserializer::new(key);
        seed.deserialize(key_reader)
            .map(Some)
            .map_err(|fault: Fault| fault.at_key(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        match self.member {
            Some((key, value)) => seed.deserialize(value).map_err(|fault| fault.at_key(key)),
            None => Err(Fault::custom("a value was asked for before its key")),
        }
    }
}

/// A variant: its name alone, or with what stands under it.
struct Variant<'de> {
    name: &'de str,
    content: Option<&'de Json>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name: StrDeserializer<'de, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> Variant<'de> {
    fn content(&self) -> Result<&'de Json, Fault> {
        self.content
            .ok_or_else(|| Fault::custom(format_args!("`{}` wants something under it", self.name)))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content {
            None => Ok(()),
            Some(_) => Err(Fault::custom(format_args!(
                "`{}` has nothing under it",
                self.name
            ))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self.content()?)
            .map_err(|fault| fault.at_key(self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.content()?
            .list(visitor)
            .map_err(|fault| fault.at_key(self.name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.content()?
            .object(visitor)
            .map_err(|fault| fault.at_key(self.name))
    }
}
