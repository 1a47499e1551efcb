//! The configuration: as written, and as checked.

use core::fmt;

use portcullis_sdk::ConfigError;
use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::gcra::Limit;
use crate::key::{Key, Source};
use crate::limits::{
    KEY_SOURCES_MAX, KEYS_DEFAULT, KEYS_MAX, KEYS_MIN, LIMITS_MAX, NAME_BYTES_MAX, REQUESTS_MAX,
    SLOTS, SLOTS_PER_KEY, WINDOW_SECONDS_MAX,
};
use crate::siphash::SipKey;

/// What an operator may write; the table stands in the crate's documentation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The limits; a request must pass all of them, and counts against all of them or none.
    pub limits: Vec<LimitConfig>,
    /// Whom requests are counted for: one source, or a list of which the first that is present counts.
    pub key: KeyOrder,
    /// What becomes of a request in which no source of `key` is present.
    pub key_missing: KeyMissing,
    /// Leading bits of an IPv6 client address that make one client, 32 to 128. An IPv4 address counts whole.
    pub ipv6_prefix: u8,
    /// Sets the counters apart from those of an instance with the same limits, key and size under the same `vm_id`.
    pub scope: String,
    /// How many requests one request counts for, at least 1.
    pub cost: u32,
    /// Keys with debt that the table has room for. A full shard refuses new keys.
    pub max_keys: u32,
    /// On which answers `RateLimit` and `RateLimit-Policy` are sent.
    pub fields: Fields,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: vec![LimitConfig {
                name: "peruser".into(),
                requests: 100,
                per: "60s".into(),
                burst: None,
            }],
            key: KeyOrder::One(KeySource::Property("jwt.sub".into())),
            key_missing: KeyMissing::Address,
            ipv6_prefix: 64,
            scope: String::new(),
            cost: 1,
            max_keys: KEYS_DEFAULT,
            fields: Fields::Always,
        }
    }
}

/// One limit.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// What clients see it called: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Requests a window.
    pub requests: u32,
    /// The window, in whole `s`, `m`, `h` or `d`: `60s`.
    #[schemars(regex(pattern = "^[0-9]+[smhd]$"))]
    pub per: String,
    /// Requests that may come at once after a rest, from 1 to `requests`, which is the default.
    #[serde(default)]
    pub burst: Option<u32>,
}

/// Where a key is read from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// A property by name: what an earlier filter left (`jwt.sub`), or an attribute of the proxy
    /// (`connection.uri_san_peer_certificate`).
    Property(String),
    /// A request header. A client can write what it likes there, unless a trusted proxy in front sets it.
    Header(String),
    /// The client's address.
    Address,
}

/// One source, or several in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOrder {
    /// This one, and no other.
    One(KeySource),
    /// The first of these that is there.
    List(Vec<KeySource>),
}

/// What becomes of a request without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyMissing {
    /// It counts for the client's address.
    Address,
    /// It is refused with 403, reason `key_missing`.
    Refuse,
}

/// On which answers the fields are sent. `Retry-After` is on every refusal, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fields {
    /// On all answers.
    Always,
    /// On refusals of this control only: the limit stays unknown until it is met, and passing requests need no
    /// response phase.
    OnRefusal,
    /// On none.
    Never,
}

/// By hand, since an untagged enum would answer a mistake with "did not match any variant".
impl<'de> Deserialize<'de> for KeyOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Order;

        impl<'de> Visitor<'de> for Order {
            type Value = KeyOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`address`, `{property: …}`, `{header: …}` or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<KeyOrder, E> {
                // A bare `property` would be called an "invalid type: unit variant".
                if word == "address" {
                    KeySource::deserialize(StrDeserializer::new(word)).map(KeyOrder::One)
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(word), &self))
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeyOrder, A::Error> {
                KeySource::deserialize(MapAccessDeserializer::new(map)).map(KeyOrder::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<KeyOrder, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(KeyOrder::List)
            }
        }

        deserializer.deserialize_any(Order)
    }
}

impl JsonSchema for KeyOrder {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KeyOrder".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let source = generator.subschema_for::<KeySource>();
        schemars::json_schema!({
            "anyOf": [source, { "type": "array", "items": source, "minItems": 1, "maxItems": KEY_SOURCES_MAX }]
        })
    }
}

/// A configuration that is known to be good.
pub(crate) struct Checked {
    pub(crate) limits: Vec<Limit>,
    pub(crate) key: Key,
    pub(crate) cost: u64,
    pub(crate) shards: u32,
    /// What the names of the table's shards in shared data begin with. It names everything that two instances must
    /// have in common to count together: scope, key, limits and size. `cost` is not among them, so that a dear route
    /// can draw on the same quota.
    pub(crate) prefix: String,
    pub(crate) fields: Fields,
}

impl Config {
    /// All that can be wrong with a configuration is found here.
    pub(crate) fn check(self) -> Result<Checked, ConfigError> {
        let limits = limits(&self.limits)?;
        for limit in &limits {
            within("cost", self.cost, 1, limit.burst)?;
        }
        within("max_keys", self.max_keys, KEYS_MIN, KEYS_MAX)?;
        within("ipv6_prefix", self.ipv6_prefix, 32, 128)?;
        if !self.scope.is_empty() {
            name("scope", &self.scope)?;
        }
        let sources = sources(&self.key, self.key_missing)?;

        let slots = u32::try_from(SLOTS / SLOTS_PER_KEY).unwrap_or(1);
        let shards = self.max_keys.div_ceil(slots);
        let identity = format!("{:?} {:?} {} {shards}", limits, sources, self.ipv6_prefix);
        // Not a secret: the same on every worker, and short.
        let (digest, _) = SipKey::new([0; 16]).hash(identity.as_bytes());
        Ok(Checked {
            prefix: format!("portcullis.rate-limit/{}/{digest:016x}/", self.scope),
            key: Key::new(sources, self.ipv6_prefix),
            cost: u64::from(self.cost),
            limits,
            shards,
            fields: self.fields,
        })
    }
}

fn limits(written: &[LimitConfig]) -> Result<Vec<Limit>, ConfigError> {
    within("limits", written.len(), 1, LIMITS_MAX).map_err(|_| {
        ConfigError::new("limits", format!("must hold from 1 to {LIMITS_MAX} limits"))
    })?;
    let mut limits: Vec<Limit> = Vec::with_capacity(written.len());
    for (index, limit) in written.iter().enumerate() {
        let at = |field: &str| format!("limits[{index}].{field}");
        name(&at("name"), &limit.name)?;
        if limits.iter().any(|other| other.name == limit.name) {
            return Err(ConfigError::new(
                at("name"),
                format!("`{}` is taken by another limit", limit.name),
            ));
        }
        within(&at("requests"), limit.requests, 1, REQUESTS_MAX)?;
        let window = window_seconds(&limit.per).ok_or_else(|| {
            ConfigError::new(
                at("per"),
                "must be whole seconds, minutes, hours or days from 1s to 31d, such as 60s",
            )
        })?;
        let burst = limit.burst.unwrap_or(limit.requests);
        if burst < 1 || burst > limit.requests {
            return Err(ConfigError::new(
                at("burst"),
                format!("must be from 1 to requests, which is {}", limit.requests),
            ));
        }
        limits.push(Limit::new(
            limit.name.clone(),
            limit.requests,
            window,
            burst,
        ));
    }
    Ok(limits)
}

fn sources(order: &KeyOrder, missing: KeyMissing) -> Result<Vec<Source>, ConfigError> {
    let (written, is_list) = match order {
        KeyOrder::One(source) => (std::slice::from_ref(source), false),
        KeyOrder::List(list) => (list.as_slice(), true),
    };
    within("key", written.len(), 1, KEY_SOURCES_MAX).map_err(|_| {
        ConfigError::new(
            "key",
            format!("must name from 1 to {KEY_SOURCES_MAX} sources"),
        )
    })?;
    let mut sources = Vec::with_capacity(written.len() + 1);
    for (index, source) in written.iter().enumerate() {
        let at = if is_list {
            format!("key[{index}]")
        } else {
            "key".to_owned()
        };
        if sources.contains(&Source::Address) {
            return Err(ConfigError::new(
                at,
                "is never reached: a client always has an address",
            ));
        }
        sources.push(match source {
            KeySource::Property(name) => Source::property(name).ok_or_else(|| {
                let reason = "must be the name of a property: 1 to 128 bytes of visible ASCII";
                ConfigError::new(at + ".property", reason)
            })?,
            KeySource::Header(name) => Source::header(name).ok_or_else(|| {
                let reason = "must be the name of a header: 1 to 128 letters, digits, `-` and `_`";
                ConfigError::new(at + ".header", reason)
            })?,
            KeySource::Address => Source::Address,
        });
    }
    if missing == KeyMissing::Address && !sources.contains(&Source::Address) {
        sources.push(Source::Address);
    }
    Ok(sources)
}

fn name(field: &str, name: &str) -> Result<(), ConfigError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(ConfigError::new(
            field.to_owned(),
            format!("must be from 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
        ))
    }
}

fn within<N: PartialOrd + fmt::Display>(
    field: &str,
    number: N,
    least: N,
    most: N,
) -> Result<(), ConfigError> {
    if number < least || number > most {
        Err(ConfigError::new(
            field.to_owned(),
            format!("must be from {least} to {most}, is {number}"),
        ))
    } else {
        Ok(())
    }
}

/// `60s`, `1m`, `2h` or `1d` in seconds, within the bound.
fn window_seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    // `parse` would take a sign.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (1..=WINDOW_SECONDS_MAX)
        .contains(&seconds)
        .then_some(seconds)
}

#[cfg(test)]
mod tests;
