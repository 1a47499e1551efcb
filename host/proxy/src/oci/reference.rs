//! `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]`: which image in which registry.
//!
//! Source: OCI distribution spec 1.1, "Pulling manifests", for the letters of repositories and tags. The host is always written: no registry is
//! the default.

use std::fmt;

use crate::digest::is_digest;

/// Before the host, as Istio writes it.
pub(crate) const SCHEME: &str = "oci://";

/// Letters of a repository's name: registries take no more.
const REPOSITORY_MAX: usize = 255;
/// Letters of a tag (OCI distribution spec).
const TAG_MAX: usize = 128;

/// An image by its place: host and repository, with a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// Lower case, with the port if one is written: `registry.example:5000`.
    host: String,
    repository: String,
    tag: Option<String>,
    /// SHA-256 of the image's manifest, lower-case hex.
    digest: Option<String>,
}

impl ImageReference {
    /// Reads a reference, with or without `oci://`. The reason repeats no credentials, should someone have written them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let (host, rest) = rest.split_once('/').ok_or_else(|| {
            "not an image such as registry.example/controls/jwt-auth:1.0.0".to_owned()
        })?;
        if host.contains('@') {
            return Err(
                "credentials do not belong here: `docker login` puts them into Docker's config.json"
                    .into(),
            );
        }
        let host = read_host(host)?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(read_digest(digest)?)),
            None => (rest, None),
        };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(read_tag(tag)?)),
            None => (name, None),
        };
        if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_component) {
            return Err(format!(
                "`{repository}` is not a repository: lower-case letters and digits, with single `.`, `_`, `-` between them, in parts separated by `/`"
            ));
        }
        Ok(Self {
            host,
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }

    /// As it is written.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The image with this digest, whatever its tag.
    pub(crate) fn pinned(&self, digest: &str) -> Self {
        Self {
            tag: None,
            digest: Some(digest.to_owned()),
            ..self.clone()
        }
    }

    /// A repository below this one.
    pub(crate) fn below(&self, name: &str) -> Result<Self, String> {
        Self::parse(&format!("{}/{}/{name}", self.host, self.repository))
    }

    /// The same repository with this tag.
    pub(crate) fn tagged(&self, tag: &str) -> Result<Self, String> {
        Ok(Self {
            tag: Some(read_tag(tag)?),
            digest: None,
            ..self.clone()
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@sha256:{digest}")?;
        }
        Ok(())
    }
}

/// `registry.example`, `localhost:5000`, `[::1]:5000`; a bare word is the beginning of a repository.
fn read_host(text: &str) -> Result<String, String> {
    let is_host = text.contains(['.', ':']) || text.eq_ignore_ascii_case("localhost");
    let letters = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    let authority = text.parse::<http::uri::Authority>().ok();
    let has_good_port = authority.is_some_and(|it| {
        let host = it.host().len();
        !it.host().is_empty() && (text.len() == host || it.port_u16().is_some_and(|port| port > 0))
    });
    if is_host && text.chars().all(letters) && has_good_port {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "`{text}` is not a registry's host: ghcr.io, registry.example:5000, localhost:5000"
    ))
}

fn read_digest(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").filter(|hex| is_digest(hex));
    hex.map(str::to_owned).ok_or_else(|| {
        format!("`{text}` is not a digest: `sha256:` and 64 lower-case hexadecimal digits")
    })
}

fn read_tag(text: &str) -> Result<String, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let starts = !text.starts_with(['.', '-']) && !text.is_empty();
    if starts && text.len() <= TAG_MAX && text.chars().all(letters) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not a tag: up to {TAG_MAX} letters, digits, `_`, `.` and `-`"
    ))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(letters).filter(|it| !it.is_empty());
    let mut separators = separators;
    text.starts_with(letters)
        && text.ends_with(letters)
        && separators.all(|it| matches!(it, "." | "_" | "__") || it.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_read_and_written() {
        let digest = format!("@sha256:{DIGEST}");
        for (text, written) in [
            (
                "ghcr.io/acme/jwt-auth:1.0.0",
                "oci://ghcr.io/acme/jwt-auth:1.0.0",
            ),
            ("oci://localhost:5000/a", "oci://localhost:5000/a"),
            (
                "oci://LOCALHOST/a/b_c/d--e:V_1",
                "oci://localhost/a/b_c/d--e:V_1",
            ),
            ("oci://[::1]:5000/a", "oci://[::1]:5000/a"),
        ] {
            let reference = ImageReference::parse(text).unwrap();
            assert_eq!(reference.to_string(), written);
            let pinned = ImageReference::parse(&format!("{text}{digest}")).unwrap();
            assert_eq!(pinned.digest(), Some(DIGEST));
            assert_eq!(pinned.tag(), reference.tag());
            assert_eq!(reference.pinned(DIGEST).tag(), None);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for (text, words) in [
            ("", "not an image"),
            ("oci://", "not an image"),
            ("oci://ghcr.io", "not an image"),
            ("oci://acme/jwt-auth:1", "not a registry's host"),
            ("oci:///a", "not a registry's host"),
            ("oci://host.example:0/a", "not a registry's host"),
            ("oci://host.example:x/a", "not a registry's host"),
            ("oci://host.example:99999/a", "not a registry's host"),
            ("oci://host.example:/a", "not a registry's host"),
            ("oci://host.example#/a", "not a registry's host"),
            ("oci://host.example/", "not a repository"),
            ("oci://host.example/A", "not a repository"),
            ("oci://host.example/a//b", "not a repository"),
            ("oci://host.example/a/../b", "not a repository"),
            ("oci://host.example/a..b", "not a repository"),
            ("oci://host.example/a?b", "not a repository"),
            ("oci://host.example/a b", "not a repository"),
            ("oci://host.example/a:", "not a tag"),
            ("oci://host.example/a:-1", "not a tag"),
            ("oci://host.example/a:b/c", "not a tag"),
            ("oci://host.example/a@", "not a digest"),
            ("oci://host.example/a@sha256:12", "not a digest"),
            ("oci://host.example/a@sha512:12", "not a digest"),
        ] {
            let reason = ImageReference::parse(text).expect_err(text);
            assert!(reason.contains(words), "{text}: {reason}");
        }
        let upper = format!("host.example/a@sha256:{}", DIGEST.to_uppercase());
        assert!(ImageReference::parse(&upper).is_err());
        let long = format!("host.example/{}", "a".repeat(REPOSITORY_MAX + 1));
        assert!(ImageReference::parse(&long).is_err());
        let secret = ImageReference::parse("oci://me:hunter2@host.example/a").unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
        assert!(secret.contains("docker login"), "{secret}");
    }
}
