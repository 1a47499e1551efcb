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
}

impl Metadata {
    pub(crate) const SECTION: &str = "portcullis";

    /// Unknown keys are let be: they are a newer SDK's.
    pub(crate) fn parse(data: &[u8]) -> Result<Self, String> {
        let bad = str::to_owned;
        let text = std::str::from_utf8(data).map_err(|_| bad("not utf-8"))?;
        let (mut name, mut version, mut authenticates) = (None, None, None);
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.split_once('=') {
                Some(("name", value)) => name = Some(value.to_owned()),
                Some(("version", value)) => version = Some(value.to_owned()),
                Some(("authenticates", "0")) => authenticates = Some(false),
                Some(("authenticates", "1")) => authenticates = Some(true),
                Some(("authenticates", _)) => return Err(bad("authenticates is neither 0 nor 1")),
                Some(_) => {}
                None => return Err(bad("a line without =")),
            }
        }
        Ok(Self {
            name: name.ok_or_else(|| bad("no name"))?,
            version: version.ok_or_else(|| bad("no version"))?,
            authenticates: authenticates.unwrap_or(false),
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
