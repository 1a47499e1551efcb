//! Who we are to a registry: what `docker login` wrote into `config.json`, under `DOCKER_CONFIG` or `~/.docker`. They are in no policy and in no log.
//!
//! Source: docker/cli, cli/config/configfile (`auths`, `credHelpers`, `credsStore`), and docker-credential-helpers for the helpers' protocol.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::limits::{CREDENTIAL_HELPER_TIMEOUT, REGISTRY_ANSWER_BYTES_MAX};

/// Docker's own registry goes by this name there.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// More is no file that Docker wrote.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// How often a helper is looked at.
const PERIOD: std::time::Duration = std::time::Duration::from_millis(10);

/// What one registry is shown. No `Debug`: it would be logged some day.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth 2 refresh token.
    Identity(String),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    username: String,
    secret: String,
}

impl Credentials {
    /// Of the user who runs this process, for a registry's host; none where nobody has logged in.
    pub(super) fn of_user(host: &str) -> Result<Option<Self>, String> {
        let variable = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty());
        let folder = variable("DOCKER_CONFIG").map(PathBuf::from);
        let folder =
            folder.or_else(|| variable("HOME").map(|it| PathBuf::from(it).join(".docker")));
        let Some(folder) = folder else {
            return Ok(None);
        };
        let path = folder.join("config.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = crate::policy::read_bytes(&path, CONFIG_BYTES_MAX)?;
        // What is wrong with it is told without what it says.
        let config: Config = serde_json::from_slice(&text).map_err(|error| {
            format!(
                "{} is not a Docker configuration: line {}",
                path.display(),
                error.line()
            )
        })?;
        config
            .credentials(host)
            .map_err(|reason| format!("{}: {reason}", path.display()))
    }
}

impl Config {
    fn credentials(&self, host: &str) -> Result<Option<Credentials>, String> {
        let names = names(host);
        let helper = names.iter().find_map(|name| self.cred_helpers.get(name));
        if let Some(helper) = helper.or(self.creds_store.as_ref())
            && let Some(found) = ask(helper, &names)?
        {
            return Ok(Some(found));
        }
        let found = names.iter().find_map(|name| {
            let entries = self.auths.iter();
            let mut same = entries.filter(|(key, _)| *key == name || host_of(key) == name);
            same.next()
        });
        match found {
            Some((key, auth)) => auth
                .read()
                .map_err(|reason| format!("auths.{key}: {reason}")),
            None => Ok(None),
        }
    }
}

/// What the configuration may call a host.
fn names(host: &str) -> Vec<String> {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
            vec![
                DOCKER_HUB.to_owned(),
                host.to_owned(),
                "docker.io".to_owned(),
            ]
        }
        host => vec![host.to_owned()],
    }
}

/// Older entries are URLs.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    key.split('/').next().unwrap_or_default()
}

impl Auth {
    fn read(&self) -> Result<Option<Credentials>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let is_there = !self.username.is_empty();
            return Ok(is_there.then(|| Credentials::Password {
                user: self.username.clone(),
                password: self.password.clone(),
            }));
        }
        let text = STANDARD.decode(self.auth.trim_end_matches('\0')).ok();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) =
            pair.ok_or("`auth` is not base64 of a user, a colon and a password")?;
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            // Docker pads it so.
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Asks `docker-credential-NAME get`; none where it knows nothing of the host.
fn ask(helper: &str, names: &[String]) -> Result<Option<Credentials>, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if helper.is_empty() || !helper.chars().all(is_name) {
        return Err("the name of a credential helper has letters, digits, `-`, `_` and `.`".into());
    }
    let program = format!("docker-credential-{helper}");
    for name in names {
        let told = run(&program, name).map_err(|error| format!("`{program} get`: {error}"))?;
        let Some(told) = told else { continue };
        let told: Told = serde_json::from_slice(&told)
            .map_err(|_| format!("`{program} get` does not print what it should"))?;
        return Ok(Some(match told.username.as_str() {
            // The protocol's word for a refresh token.
            "<token>" => Credentials::Identity(told.secret),
            _ => Credentials::Password {
                user: told.username,
                password: told.secret,
            },
        }));
    }
    Ok(None)
}

/// What it prints; none where it ends with another code than 0, as it does for hosts that it does not know.
fn run(program: &str, host: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing says so by what it prints.
        stdin.write_all(host.as_bytes()).ok();
    }
    let stdout = child.stdout.take();
    let read = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.map(|it| it.take(REGISTRY_ANSWER_BYTES_MAX).read_to_end(&mut bytes));
        read.transpose().map(|_| bytes)
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > CREDENTIAL_HELPER_TIMEOUT {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other("it does not answer in time"));
        }
        std::thread::sleep(PERIOD);
    };
    let bytes = read
        .join()
        .map_err(|_| std::io::Error::other("its answer cannot be read"))??;
    Ok(status.success().then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: serde_json::Value, host: &str) -> Result<Option<(String, String)>, String> {
        let config: Config = serde_json::from_value(config).unwrap();
        Ok(config.credentials(host)?.map(|it| match it {
            Credentials::Password { user, password } => (user, password),
            Credentials::Identity(token) => ("<token>".into(), token),
        }))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.into(), password.into()))
    }

    #[test]
    fn what_docker_wrote_is_read() {
        let auth = STANDARD.encode("me:a:b");
        let config = serde_json::json!({
            "auths": {
                "registry.example:5000": {"auth": auth},
                "https://old.example/v1/": {"username": "you", "password": "p"},
                "https://index.docker.io/v1/": {"identitytoken": "t"},
                "empty.example": {},
                "bad.example": {"auth": "!"},
            },
            "HttpHeaders": {"x": "y"},
        });
        for (host, expected) in [
            ("registry.example:5000", pair("me", "a:b")),
            ("old.example", pair("you", "p")),
            ("docker.io", pair("<token>", "t")),
            ("empty.example", None),
            ("registry.example", None),
            ("example", None),
        ] {
            assert_eq!(found(config.clone(), host).unwrap(), expected, "{host}");
        }
        let reason = found(config, "bad.example").unwrap_err();
        assert!(reason.contains("auths.bad.example"), "{reason}");
    }

    #[test]
    fn helpers_that_are_not_there_or_lead_elsewhere_are_refused() {
        for helper in ["../x", "a b", "", "x;y"] {
            let config = serde_json::json!({"credsStore": helper});
            let reason = found(config, "registry.example").unwrap_err();
            assert!(reason.contains("credential helper"), "{reason}");
        }
        let config = serde_json::json!({"credHelpers": {"registry.example": "portcullis-none"}});
        let reason = found(config.clone(), "registry.example").unwrap_err();
        assert!(
            reason.contains("docker-credential-portcullis-none"),
            "{reason}"
        );
        assert_eq!(found(config, "other.example").unwrap(), None);
    }
}
