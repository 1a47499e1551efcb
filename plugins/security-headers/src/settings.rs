//! The configuration as an operator writes it. The table in the crate's documentation is its reference.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

/// The configuration.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Which headers are on, and their values.
    pub profile: Profile,
    /// `Strict-Transport-Security`, on HTTPS answers only.
    pub strict_transport_security: Setting,
    /// `X-Content-Type-Options`.
    pub x_content_type_options: Setting,
    /// `X-Frame-Options`.
    pub x_frame_options: Setting,
    /// `Referrer-Policy`.
    pub referrer_policy: Setting,
    /// `Permissions-Policy`.
    pub permissions_policy: Setting,
    /// `X-Permitted-Cross-Domain-Policies`.
    pub x_permitted_cross_domain_policies: Setting,
    /// `Content-Security-Policy`.
    pub content_security_policy: Setting,
    /// `Cross-Origin-Opener-Policy`.
    pub cross_origin_opener_policy: Setting,
    /// `Cross-Origin-Embedder-Policy`.
    pub cross_origin_embedder_policy: Setting,
    /// `Cross-Origin-Resource-Policy`.
    pub cross_origin_resource_policy: Setting,
    /// Other headers to set, by name.
    pub headers: BTreeMap<String, Setting>,
    /// Names to remove beside those that the profile removes.
    pub remove: Vec<String>,
    /// Names that the profile would remove, to leave alone.
    pub keep: Vec<String>,
}

/// Which headers are on before any setting of their own.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// For services that answer programs: no policy that a document needs.
    #[default]
    Api,
    /// `Strict-Transport-Security` alone, and nothing removed.
    Hsts,
    /// For pages: a content security policy and cross-origin isolation too.
    Website,
}

/// What an operator says of one header: `off`, a value, or `{value, mode}`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Setting {
    /// As the profile has it.
    #[default]
    Unset,
    /// The header is neither set nor judged: an upstream's passes as it is.
    Off,
    /// A value, or the profile's own where none is given.
    On {
        /// The value.
        value: Option<String>,
        /// What becomes of an upstream's value.
        mode: Mode,
    },
}

/// What becomes of an upstream's value.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ours is a floor: an upstream's value stays where it is as strong.
    #[default]
    Add,
    /// Ours takes its place.
    Overwrite,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ValueAndMode {
    value: Option<String>,
    #[serde(default)]
    mode: Mode,
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SettingVisitor)
    }
}

struct SettingVisitor;

impl<'de> Visitor<'de> for SettingVisitor {
    type Value = Setting;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("`off`, a value, or a map of `value` and `mode`")
    }

    /// YAML 1.1 reads a bare `off` as false.
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Setting, E> {
        if value {
            return Err(E::invalid_value(de::Unexpected::Bool(true), &self));
        }
        Ok(Setting::Off)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Setting, E> {
        Ok(if value == "off" {
            Setting::Off
        } else {
            Setting::On {
                value: Some(value.to_owned()),
                mode: Mode::Add,
            }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Setting, A::Error> {
        let ValueAndMode { value, mode } =
            ValueAndMode::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Setting::On { value, mode })
    }
}

impl JsonSchema for Setting {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Setting")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value_and_mode = generator.subschema_for::<ValueAndMode>();
        json_schema!({
            "description": "off, a value, or a map of value and mode",
            "anyOf": [{ "const": false }, { "type": "string" }, value_and_mode],
        })
    }
}
