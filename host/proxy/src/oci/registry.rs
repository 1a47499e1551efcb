//! A registry's API: manifests and blobs, there and back.
//!
//! Source: OCI distribution spec 1.1. What comes is checked against the digest that was asked for; nothing of any size is read beyond its bound.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;

use crate::digest::digest;
use crate::limits::{
    REGISTRY_ANSWER_BYTES_MAX, REGISTRY_MANIFEST_BYTES_MAX, REGISTRY_REDIRECTS_MAX,
};

use super::challenge::Challenge;
use super::connection::{Answer, Dialler};
use super::credentials::Credentials;
use super::image::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Image, MANIFEST};
use super::reference::ImageReference;
use super::url::{Scheme, Url, form};

/// Letters of a registry's words that are repeated.
const WORDS_MAX: usize = 300;

/// One repository of a registry, and what it lets us do.
pub(super) struct Registry {
    dialler: Dialler,
    root: Url,
    repository: String,
    /// Whose registry it is, as Docker's configuration knows it.
    host: String,
    /// What every request to it carries once it has asked.
    authorization: Option<HeaderValue>,
    /// `pull` or `pull,push`.
    actions: &'static str,
}

/// A request that can be sent again.
struct Asked<'a> {
    method: Method,
    url: Url,
    headers: &'a [(http::HeaderName, &'a str)],
    body: Bytes,
    bytes_max: u64,
}

impl Registry {
    pub(super) async fn open(
        image: &ImageReference,
        actions: &'static str,
    ) -> Result<Self, String> {
        // Docker's registry listens elsewhere than its name says, and its own images are in a folder.
        let (host, repository) = match (image.host(), image.repository()) {
            ("docker.io" | "index.docker.io", name) if !name.contains('/') => {
                ("registry-1.docker.io", format!("library/{name}"))
            }
            ("docker.io" | "index.docker.io", name) => ("registry-1.docker.io", name.to_owned()),
            (host, name) => (host, name.to_owned()),
        };
        let dialler = Dialler::new()?;
        let scheme = dialler.scheme_of(host).await?;
        Ok(Self {
            root: Url::new(scheme, host, "/v2/")?,
            dialler,
            repository,
            host: image.host().to_owned(),
            authorization: None,
            actions,
        })
    }

    /// The manifest that a tag or a digest (`sha256:…`) names, and its digest.
    pub(super) async fn manifest(&mut self, name: &str) -> Result<(Vec<u8>, String), String> {
        let accepted = format!("{MANIFEST}, {DOCKER_MANIFEST}, {INDEX}, {DOCKER_INDEX}");
        let path = format!("manifests/{name}");
        let bytes_max = REGISTRY_MANIFEST_BYTES_MAX;
        let bytes = self.read(&path, &[(ACCEPT, &accepted)], bytes_max).await?;
        let found = digest(&bytes);
        match name.strip_prefix("sha256:") {
            Some(expected) if expected != found => Err(format!(
                "{} answers another manifest than was asked for: sha256:{found}",
                self.root.authority()
            )),
            _ => Ok((bytes, found)),
        }
    }

    /// A blob, of the size and digest that the manifest says.
    pub(super) async fn blob(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        let expected = descriptor.sha256()?;
        let path = format!("blobs/sha256:{expected}");
        let bytes = self.read(&path, &[], descriptor.size()).await?;
        let found = digest(&bytes);
        if bytes.len() as u64 != descriptor.size() || found != expected {
            return Err(format!(
                "{} answers another layer than the manifest names: {} bytes, sha256:{found}",
                self.root.authority(),
                bytes.len()
            ));
        }
        Ok(bytes)
    }

    /// Puts an image there under a tag; blobs that are there stay.
    pub(super) async fn put(&mut self, image: &Image, tag: &str) -> Result<(), String> {
        for (digest, bytes) in &image.blobs {
            self.put_blob(digest, bytes).await?;
        }
        let asked = Asked {
            method: Method::PUT,
            url: self.url(&format!("manifests/{tag}"))?,
            headers: &[(CONTENT_TYPE, MANIFEST)],
            body: image.manifest.clone().into(),
            bytes_max: REGISTRY_ANSWER_BYTES_MAX,
        };
        let (parts, _) = self.expect(&asked, &[StatusCode::CREATED]).await?;
        let told = parts.headers.get("docker-content-digest");
        let told = told.and_then(|value| value.to_str().ok());
        match told.and_then(|told| told.strip_prefix("sha256:")) {
            Some(told) if told != image.digest => Err(format!(
                "{} has made another image of it: sha256:{told}",
                self.root.authority()
            )),
            _ => Ok(()),
        }
    }

    async fn put_blob(&mut self, digest: &str, bytes: &[u8]) -> Result<(), String> {
        let mut asked = Asked {
            method: Method::HEAD,
            url: self.url(&format!("blobs/sha256:{digest}"))?,
            headers: &[],
            body: Bytes::new(),
            bytes_max: REGISTRY_ANSWER_BYTES_MAX,
        };
        let (parts, _) = self.ask(&asked).await?;
        if parts.status == StatusCode::OK {
            return Ok(());
        }
        asked.method = Method::POST;
        asked.url = self.url("blobs/uploads/")?;
        let (parts, _) = self.expect(&asked, &[StatusCode::ACCEPTED]).await?;
        let location = parts.headers.get(LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| format!("{} does not say where to", asked.url))?;
        let url = asked.url.follow(location)?;
        let name = format!("sha256:{digest}");
        let asked = Asked {
            method: Method::PUT,
            url: url.with_query(&[("digest", &name)]),
            headers: &[(CONTENT_TYPE, "application/octet-stream")],
            body: bytes.to_vec().into(),
            bytes_max: REGISTRY_ANSWER_BYTES_MAX,
        };
        self.expect(&asked, &[StatusCode::CREATED]).await?;
        Ok(())
    }

    fn url(&self, path: &str) -> Result<Url, String> {
        let path = format!("/v2/{}/{path}", self.repository);
        self.root.follow(&path)
    }

    /// Gets what may lie elsewhere: registries send to where they store things.
    async fn read(
        &mut self,
        path: &str,
        headers: &[(http::HeaderName, &str)],
        bytes_max: u64,
    ) -> Result<Vec<u8>, String> {
        let mut asked = Asked {
            method: Method::GET,
            url: self.url(path)?,
            headers,
            body: Bytes::new(),
            // An error's text may be longer than what is asked for.
            bytes_max: bytes_max.max(REGISTRY_ANSWER_BYTES_MAX),
        };
        for _ in 0..=REGISTRY_REDIRECTS_MAX {
            let (parts, body) = self.ask(&asked).await?;
            let location = parts.headers.get(LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            match (parts.status.as_u16(), location) {
                (200, _) => return Ok(body),
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    let next = asked.url.follow(location);
                    asked.url =
                        next.map_err(|reason| format!("{} redirects: {reason}", asked.url))?;
                }
                (_, _) => return Err(refusal(&asked, parts.status, &body)),
            }
        }
        Err(format!("{} redirects without end", asked.url))
    }

    async fn expect(&mut self, asked: &Asked<'_>, good: &[StatusCode]) -> Result<Answer, String> {
        let (parts, body) = self.ask(asked).await?;
        if good.contains(&parts.status) {
            return Ok((parts, body));
        }
        Err(refusal(asked, parts.status, &body))
    }

    /// Asks; and once more, with what the registry then wants to be shown.
    async fn ask(&mut self, asked: &Asked<'_>) -> Result<Answer, String> {
        let answer = self.send(asked).await?;
        let is_ours = asked.url.is_same_server(&self.root);
        if answer.0.status != StatusCode::UNAUTHORIZED || !is_ours {
            return Ok(answer);
        }
        let Some(challenge) = Challenge::of(&answer.0.headers) else {
            return Ok(answer);
        };
        match self.authorize(&challenge).await? {
            Some(authorization) => self.authorization = Some(authorization),
            None => return Ok(answer),
        }
        self.send(asked).await
    }

    async fn send(&self, asked: &Asked<'_>) -> Result<Answer, String> {
        let mut request = Request::new(Full::new(asked.body.clone()));
        *request.method_mut() = asked.method.clone();
        let agent = concat!("portcullis/", env!("CARGO_PKG_VERSION"));
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in asked.headers {
            let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
            headers.insert(name.clone(), value);
        }
        // Nobody else is shown what is for this registry.
        if let (Some(authorization), true) =
            (&self.authorization, asked.url.is_same_server(&self.root))
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.dialler
            .exchange(&asked.url, request, asked.bytes_max)
            .await
    }

    /// What to show for this challenge; none where there is nothing.
    async fn authorize(&self, challenge: &Challenge) -> Result<Option<HeaderValue>, String> {
        // Not before: a credential helper may ask its user.
        let credentials = Credentials::of_user(&self.host)?;
        match (challenge, &credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                basic(user, password).map(Some)
            }
            (Challenge::Basic, _) => Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credentials,
            ) => {
                let own = format!("repository:{}:{}", self.repository, self.actions);
                let scope = scope.as_deref().unwrap_or(&own);
                let service = service.as_deref().unwrap_or_default();
                let token = self
                    .token(realm, service, scope, credentials.as_ref())
                    .await;
                let token = token.map_err(|reason| format!("no token: {reason}"))?;
                secret(format!("Bearer {token}")).map(Some)
            }
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Told {
            token: Option<String>,
            access_token: Option<String>,
        }
        let url = Url::parse(realm)?;
        if self.root.scheme == Scheme::Https && url.scheme == Scheme::Http {
            return Err(format!("{url} is not asked: TLS is needed there, too"));
        }
        let mut request = Request::new(Full::default());
        let url = match credentials {
            Some(Credentials::Identity(token)) => {
                let form = form(&[
                    ("grant_type", "refresh_token"),
                    ("client_id", "portcullis"),
                    ("service", service),
                    ("scope", scope),
                    ("refresh_token", token),
                ]);
                *request.method_mut() = Method::POST;
                *request.body_mut() = Full::new(form.into());
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                request.headers_mut().insert(CONTENT_TYPE, kind);
                url
            }
            Some(Credentials::Password { user, password }) => {
                let value = basic(user, password)?;
                request.headers_mut().insert(AUTHORIZATION, value);
                url.with_query(&[("service", service), ("scope", scope)])
            }
            None => url.with_query(&[("service", service), ("scope", scope)]),
        };
        let bytes_max = REGISTRY_ANSWER_BYTES_MAX;
        let (parts, body) = self.dialler.exchange(&url, request, bytes_max).await?;
        if parts.status != StatusCode::OK {
            return Err(format!("{url} answers {}{}", parts.status, words(&body)));
        }
        let told = serde_json::from_slice::<Told>(&body).ok();
        told.and_then(|told| told.token.or(told.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| format!("{url} gives none"))
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    secret(format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

fn secret(text: String) -> Result<HeaderValue, String> {
    let value = HeaderValue::try_from(text);
    let mut value = value.map_err(|_| "credentials that no header can carry".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// What was asked for, and what the registry says to that.
fn refusal(asked: &Asked<'_>, status: StatusCode, body: &[u8]) -> String {
    let login = match status {
        StatusCode::UNAUTHORIZED => {
            format!("; `docker login {}` lets you in", asked.url.authority())
        }
        _ => String::new(),
    };
    let (method, url) = (&asked.method, &asked.url);
    format!("{method} {url} answers {status}{}{login}", words(body))
}

/// A registry's errors, as the distribution spec has them; nothing of what is none.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Told {
        errors: Vec<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        code: String,
        #[serde(default)]
        message: String,
    }
    let told = serde_json::from_slice::<Told>(body);
    let faults = told.map(|told| told.errors).unwrap_or_default();
    let faults: Vec<_> = faults
        .iter()
        .map(|fault| format!(": {} {}", fault.code, fault.message))
        .collect();
    let plain = |c: &char| !c.is_control();
    let text: String = faults
        .concat()
        .chars()
        .filter(plain)
        .take(WORDS_MAX)
        .collect();
    text.trim_end().to_owned()
}
