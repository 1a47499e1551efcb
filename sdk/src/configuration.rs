//! A control's configuration: JSON from the host into the control's own type, and what is wrong with it.

use std::borrow::Cow;
use std::fmt;

use serde::de::DeserializeOwned;

use crate::host::{ActiveHost, Buffer, Host};
use crate::json::{self, Json};

/// The key of the configuration that the SDK reads, for every control.
pub(crate) const SHADOW: &str = "shadow";

/// What is wrong with a configuration, and where. `portcullis check` puts the line of the policy file before it.
///
/// ```
/// use portcullis_sdk::ConfigError;
///
/// let error = ConfigError::new("limits[0].per", "must be at least 1s");
/// assert_eq!(error.to_string(), "configuration: limits[0].per: must be at least 1s");
/// ```
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

    /// The same fault, where this configuration is a part of another: below the path `root`.
    pub(crate) fn under(self, root: &str) -> Self {
        let key = match (&*self.key, root) {
            ("", root) => root.into(),
            (key, root) => [root, ".", key].concat(),
        };
        Self {
            key: key.into(),
            reason: self.reason,
        }
    }

    /// The path from the configuration's root; empty means the whole.
    ///
    /// ```
    /// let error = portcullis_sdk::ConfigError::new("keys[0].kid", "must not be empty");
    /// assert_eq!((error.key(), error.reason()), ("keys[0].kid", "must not be empty"));
    /// ```
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong there.
    ///
    /// ```
    /// let error = portcullis_sdk::ConfigError::new("", "has neither keys nor jwks");
    /// assert_eq!(error.reason(), "has neither keys nor jwks");
    /// ```
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

/// The plugin's configuration as the host hands it over; the error is the line to log.
pub(crate) fn tree(host: &ActiveHost) -> Result<Json, String> {
    let json = host
        .buffer(Buffer::Configuration, 0, usize::MAX)
        .map_err(|_| String::from("configuration: the host does not hand it over"))?;
    parse(&json).map_err(|error| error.line())
}

/// Reads a configuration, a mapping. None at all means `{}`; anything behind the value is refused.
pub(crate) fn parse(bytes: &[u8]) -> Result<Json, ConfigError> {
    let bytes = if bytes.trim_ascii().is_empty() {
        b"{}".as_slice()
    } else {
        bytes
    };
    let tree = json::parse(bytes).map_err(|reason| ConfigError::new("", reason))?;
    if !matches!(tree, Json::Object(_)) {
        return Err(ConfigError::new("", "must be a mapping"));
    }
    Ok(tree)
}

/// The key `shadow`, which every control has: whether it only logs and counts what it would refuse.
pub(crate) fn take_shadow(mut tree: Json) -> Result<(Json, bool), ConfigError> {
    let Json::Object(members) = &mut tree else {
        return Err(ConfigError::new("", "must be a mapping"));
    };
    let shadow = match members.iter().position(|(key, _)| key == SHADOW) {
        None => false,
        Some(at) => match members.remove(at).1 {
            Json::Bool(shadow) => shadow,
            _ => return Err(ConfigError::new(SHADOW, "must be true or false")),
        },
    };
    Ok((tree, shadow))
}

/// Fills a control's type from its configuration.
pub(crate) fn read<T: DeserializeOwned>(tree: &Json) -> Result<T, ConfigError> {
    T::deserialize(tree).map_err(|fault| ConfigError::new(fault.path(), fault.reason()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{ConfigError, DeserializeOwned, parse, read, take_shadow};
    use crate::json;
    use crate::random::Random;

    fn configured<T: DeserializeOwned>(json: &[u8]) -> Result<T, ConfigError> {
        read(&take_shadow(parse(json)?)?.0)
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        number: u8,
        text: Option<String>,
        keys: Vec<Key>,
        mode: Mode,
        either: Option<Either>,
        ratio: f64,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Key {
        kid: String,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Off,
        At(u32),
        Between {
            low: i64,
        },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Flag(bool),
        Words(Vec<String>),
    }

    #[test]
    fn reads_what_serde_can_say() {
        let check = |json: &str, expected: Config| {
            assert_eq!(
                configured::<Config>(json.as_bytes()),
                Ok(expected),
                "{json}"
            )
        };
        check("", Config::default());
        check(" \n", Config::default());
        check("{}", Config::default());
        check(
            r#"{"number": 255}"#,
            Config {
                number: 255,
                ..Config::default()
            },
        );
        let text = Some("aé😀\n".into());
        check(
            r#"{"text": "a\u00e9\ud83d\ude00\n"}"#,
            Config {
                text,
                ..Config::default()
            },
        );
        check(r#"{"text": null}"#, Config::default());
        let keys = vec![Key { kid: "a".into() }];
        check(
            r#"{"keys": [{"kid": "a"}]}"#,
            Config {
                keys,
                ..Config::default()
            },
        );
        check(r#"{"mode": "off"}"#, Config::default());
        check(
            r#"{"mode": {"at": 3}}"#,
            Config {
                mode: Mode::At(3),
                ..Config::default()
            },
        );
        let mode = Mode::Between { low: -3 };
        check(
            r#"{"mode": {"between": {"low": -3}}}"#,
            Config {
                mode,
                ..Config::default()
            },
        );
        check(
            r#"{"either": true}"#,
            Config {
                either: Some(Either::Flag(true)),
                ..Config::default()
            },
        );
        let either = Some(Either::Words(vec!["x".into()]));
        check(
            r#"{"either": ["x"]}"#,
            Config {
                either,
                ..Config::default()
            },
        );
        check(
            r#"{"ratio": 2.5e1}"#,
            Config {
                ratio: 25.0,
                ..Config::default()
            },
        );
        check(
            r#"{"ratio": 2}"#,
            Config {
                ratio: 2.0,
                ..Config::default()
            },
        );
    }

    #[test]
    fn a_fault_names_its_path() {
        for (json, line) in [
            ("[]", "must be a mapping"),
            ("{} x", "something stands behind the value (JSON, byte 3)"),
            (
                r#"{"number": 1, "number": 2}"#,
                "a key comes twice (JSON, byte 22)",
            ),
            (
                r#"{"x": 1}"#,
                "x: unknown field `x`, expected one of `number`, `text`, `keys`, `mode`, `either`, `ratio`",
            ),
            (r#"{"number": 256}"#, "number: expected u8, found 256"),
            (
                r#"{"number": "secret"}"#,
                "number: expected u8, found a text",
            ),
            (
                r#"{"number": 1.5}"#,
                "number: expected u8, found a number with a fraction",
            ),
            (
                r#"{"keys": [{"kid": "a"}, {"kid": 2}]}"#,
                "keys[1].kid: expected a string, found an integer",
            ),
            (r#"{"keys": [{}]}"#, "keys[0]: missing field `kid`"),
            (
                r#"{"keys": [["a"]]}"#,
                "keys[0]: expected struct Key, found a list",
            ),
            (
                r#"{"mode": {"between": {"low": "x"}}}"#,
                "mode.between.low: expected i64, found a text",
            ),
            (r#"{"mode": "at"}"#, "mode: `at` wants something under it"),
            (
                r#"{"mode": "maybe"}"#,
                "mode: unknown variant `maybe`, expected one of `off`, `at`, `between`",
            ),
        ] {
            let fault = configured::<Config>(json.as_bytes()).unwrap_err();
            assert_eq!(fault.line(), format!("configuration: {line}"), "{json}");
        }
    }

    /// What serde_json reads must come out the same, and what it refuses must be refused.
    #[test]
    fn agrees_with_serde_json_on_random_text() {
        let mut random = Random::new(1);
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\"a\"",
            "\"b\"",
            "1",
            "-1",
            "01",
            "0",
            "1.5",
            "1e3",
            "-",
            "true",
            "false",
            "null",
            " ",
            "\\",
            "\"\\u0041\"",
            "\"\\ud800\"",
            "\"\\n\"",
            "18446744073709551616",
            "\u{1}",
            "é",
            "tru",
            "{\"k\":",
            "[1,",
        ];
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200_000 {
            let text: String = (0..random.below(8))
                .map(|_| pieces[random.below(pieces.len())])
                .collect();
            let ours = json::parse(text.as_bytes());
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            let read = ours.and_then(|tree| {
                serde_json::Value::deserialize(&tree).map_err(|fault| fault.reason())
            });
            match (read, theirs) {
                (Ok(read), Ok(theirs)) => {
                    good += 1;
                    // serde_json takes -0 for a float.
                    assert!(
                        read == theirs || text.contains("-0"),
                        "{text:?}: {read} {theirs}"
                    );
                }
                (Err(_), Err(_)) => bad += 1,
                // Where we are stricter.
                (Err(reason), Ok(_)) if reason.starts_with("a key comes twice") => {}
                (Err(reason), Ok(_)) if reason.ends_with("too many digits") => {}
                (read, theirs) => panic!("{text:?}: {read:?} {theirs:?}"),
            }
        }
        assert!(
            good > 1000 && bad > 1000,
            "{good} good, {bad} bad: the texts are not random enough"
        );
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(json::parse(nested(64).as_bytes()).is_ok());
        assert!(json::parse(nested(66).as_bytes()).is_err());
        assert!(json::parse("[".repeat(1_000_000).as_bytes()).is_err());
    }
}
