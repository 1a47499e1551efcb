//! The configuration as an operator writes it. The table in the crate's documentation is its reference.

use std::borrow::Cow;
use std::fmt;

use portcullis_sdk::TlsVersion;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// The configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The oldest TLS version that is let through.
    pub minimum_version: MinimumVersion,
    /// Whether plaintext `GET` and `HEAD` are sent to https instead of refused.
    pub redirect_plaintext: bool,
    /// The port of the https listener, as clients reach it.
    pub redirect_port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            minimum_version: MinimumVersion(TlsVersion::Tls13),
            redirect_plaintext: false,
            redirect_port: 443,
        }
    }
}

/// `"1.2"` or `"1.3"`: RFC 8996 forbids what is older.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MinimumVersion(pub(crate) TlsVersion);

impl<'de> Deserialize<'de> for MinimumVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MinimumVersionVisitor)
    }
}

struct MinimumVersionVisitor;

const OTHER: &str = "must be \"1.2\" or \"1.3\": RFC 8996 forbids what is older";

impl Visitor<'_> for MinimumVersionVisitor {
    type Value = MinimumVersion;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("\"1.2\" or \"1.3\"")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<MinimumVersion, E> {
        match value {
            "1.2" => Ok(MinimumVersion(TlsVersion::Tls12)),
            "1.3" => Ok(MinimumVersion(TlsVersion::Tls13)),
            _ => Err(E::custom(OTHER)),
        }
    }

    /// YAML reads a bare 1.3 as a number.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<MinimumVersion, E> {
        if value == 1.2 {
            Ok(MinimumVersion(TlsVersion::Tls12))
        } else if value == 1.3 {
            Ok(MinimumVersion(TlsVersion::Tls13))
        } else {
            Err(E::custom(OTHER))
        }
    }
}

impl JsonSchema for MinimumVersion {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("MinimumVersion")
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "the oldest TLS version that is let through; RFC 8996 forbids what is older than 1.2",
            "enum": ["1.2", "1.3", 1.2, 1.3],
        })
    }
}
