//! A control's configuration: JSON from the host into the control's own type, and what is wrong with it.

use std::borrow::Cow;
use std::fmt;

use serde::de::DeserializeOwned;

/// What is wrong with a configuration, and where. `portcullis check` puts the line of the policy file before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    key: Cow<'static, str>,
    reason: Cow<'static, str>,
}

impl ConfigError {
    /// `key` is the path from the configuration's root, as in `keys[0].kid`; empty means the whole. The reason is in
    /// lower case, without a full stop: `must be below 300`.
    pub fn new(key: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            key: key.into(),
            reason: reason.into(),
        }
    }

    /// The path from the configuration's root; empty means the whole.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong there.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// `configuration: KEY.PATH: reason`, as it is logged.
    pub(crate) fn line(&self) -> String {
        if self.key.is_empty() {
            ["configuration: ", &self.reason].concat()
        } else {
            ["configuration: ", &self.key, ": ", &self.reason].concat()
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration, a mapping. None at all means `{}`; anything behind the value is refused.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ConfigError> {
    let json = if json.trim_ascii().is_empty() {
        b"{}".as_slice()
    } else {
        json
    };
    if !json.trim_ascii_start().starts_with(b"{") {
        // serde would read an array as the fields in their order, and let no key be unknown.
        return Err(ConfigError::new("", "must be a mapping"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = T::deserialize(&mut deserializer).map_err(|error| reason(String::new(), &error))?;
    deserializer
        .end()
        .map_err(|error| reason(String::new(), &error))?;
    Ok(value)
}

/// serde_json's message without its line and column: they are those of the JSON that the host made, not of the file
/// that the operator wrote.
fn reason(key: String, error: &serde_json::Error) -> ConfigError {
    let mut message = error.to_string();
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    ConfigError::new(key, message)
}
