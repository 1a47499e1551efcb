//! What a module says of itself.

/// What a control says of itself in the custom section `portcullis`: lines `key=value`, UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// The control's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether it authenticates or authorises: then it may not fail open.
    pub authenticates: bool,
    /// Whether it wants the request's body while it holds the headers.
    pub awaits_body: bool,
}

impl Metadata {
    pub(crate) const SECTION: &str = "portcullis";

    /// Unknown keys are let be: they are a newer SDK's.
    pub(crate) fn parse(data: &[u8]) -> Result<Self, String> {
        let bad = str::to_owned;
        let text = std::str::from_utf8(data).map_err(|_| bad("not utf-8"))?;
        let flag = |key: &str, value: &str| match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(format!("{key} is neither 0 nor 1")),
        };
        let (mut name, mut version) = (None, None);
        let (mut authenticates, mut awaits_body) = (false, false);
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.split_once('=') {
                Some(("name", value)) => name = Some(value.to_owned()),
                Some(("version", value)) => version = Some(value.to_owned()),
                Some((key @ "authenticates", value)) => authenticates = flag(key, value)?,
                Some((key @ "awaits_body", value)) => awaits_body = flag(key, value)?,
                Some(_) => {}
                None => return Err(bad("a line without =")),
            }
        }
        Ok(Self {
            name: name.ok_or_else(|| bad("no name"))?,
            version: version.ok_or_else(|| bad("no version"))?,
            authenticates,
            awaits_body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_parsed() {
        let good = Metadata {
            name: "jwt-auth".into(),
            version: "0.1.0".into(),
            authenticates: true,
            awaits_body: false,
        };
        assert_eq!(
            Metadata::parse(b"name=jwt-auth\nversion=0.1.0\nauthenticates=1\nnewer=x\n").unwrap(),
            good
        );
        for bad in [
            "name=x",
            "version=1",
            "name",
            "name=a\nversion=b\nauthenticates=yes",
        ] {
            assert!(Metadata::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Metadata::parse(b"\xff").is_err());
    }
}
