//! What a case's connection speaks below HTTP.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The TLS version of a case's connection; `None` is plaintext.
///
/// ```
/// # use portcullis_cases::*;
/// assert_eq!(serde_json::from_str::<Tls>("\"none\"").unwrap(), Tls(None));
/// assert_eq!(serde_json::from_str::<Tls>("\"TLSv1.2\"").unwrap(), Tls(Some(TlsVersion::Tls12)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls(pub Option<TlsVersion>);

/// A TLS version; the order is the order of age. The SDK's own stands apart, since that one runs in modules.
///
/// ```
/// # use portcullis_cases::*;
/// assert!(TlsVersion::Tls12 < TlsVersion::Tls13);
/// assert_eq!(TlsVersion::ALL.map(TlsVersion::as_str), ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.0.
    Tls10,
    /// TLS 1.1.
    Tls11,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// All, the oldest first.
    pub const ALL: [Self; 4] = [Self::Tls10, Self::Tls11, Self::Tls12, Self::Tls13];

    /// As Envoy writes it in `connection.tls_version`, and as a case does: `TLSv1.3`; 1.0 is `TLSv1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls10 => "TLSv1",
            Self::Tls11 => "TLSv1.1",
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

impl<'de> Deserialize<'de> for Tls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(Self(None));
        }
        let mut known = TlsVersion::ALL.into_iter();
        match known.find(|version| version.as_str() == text) {
            Some(version) => Ok(Self(Some(version))),
            None => Err(D::Error::custom(format!(
                "{text:?} is neither none nor one of TLSv1, TLSv1.1, TLSv1.2 and TLSv1.3"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written() {
        for version in TlsVersion::ALL {
            let quoted = format!("{:?}", version.as_str());
            assert_eq!(
                serde_json::from_str::<Tls>(&quoted).unwrap(),
                Tls(Some(version))
            );
        }
        assert_eq!(serde_json::from_str::<Tls>("\"none\"").unwrap(), Tls(None));
        let error = serde_json::from_str::<Tls>("\"TLSv1.4\"").unwrap_err();
        assert!(error.to_string().contains("one of TLSv1,"), "{error}");
    }
}
