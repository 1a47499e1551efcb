//! The policy as `/policy` of the admin listener shows it: everything that was decided, defaults included, without secrets.

use serde_json::{Value, json};

use super::{
    AccessLog, Cluster, Configuration, FailurePolicy, Filter, Isolation, Listener, Policy, Route,
    TlsVersion, TrustedCa, UpstreamProtocol,
};

/// What stands in place of a secret.
const REMOVED: &str = "[removed]";

/// Parts of names whose values are secrets, whatever plugin they configure.
const SECRET_PARTS: &[&str] = &[
    "secret",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "private_key",
    "api_key",
    "apikey",
];

/// Whole names whose values are secrets: the private members of a JWK (RFC 7518 §6), and bearer tokens.
const SECRET_NAMES: &[&str] = &[
    "d",
    "p",
    "q",
    "dp",
    "dq",
    "qi",
    "k",
    "token",
    "access_token",
    "refresh_token",
];

impl Policy {
    /// The policy as JSON. Certificates and keys appear as file names only, and what a configuration seems to keep secret not at all.
    #[must_use]
    pub fn view(&self) -> Value {
        let list = |values: Vec<Value>| Value::Array(values);
        json!({
            "file": self.file.display().to_string(),
            "sha256": self.sha256,
            "listeners": list(self.listeners.iter().map(listener).collect()),
            "clusters": list(self.clusters.iter().map(|it| cluster(it)).collect()),
            "filters": list(self.filters.iter().map(|it| filter(self, it)).collect()),
            "routes": list(self.routes.iter().map(|it| route(it)).collect()),
            "admin": self.admin.as_ref().map(|it| it.address.to_string()),
            "access_log": match &self.access_log {
                AccessLog::Off => "off".to_owned(),
                AccessLog::Stdout => "stdout".to_owned(),
                AccessLog::File(path) => path.display().to_string(),
            },
            "workers": self.workers,
            "drain_timeout": format!("{:?}", self.drain_timeout),
            "warnings": list(self.warnings.iter().map(|it| it.to_string().into()).collect()),
        })
    }
}

fn listener(listener: &Listener) -> Value {
    let tls = listener.tls.as_ref().map(|tls| {
        json!({
            "certificate_chain": tls.certificate_chain_file.display().to_string(),
            "private_key": tls.private_key_file.display().to_string(),
            "minimum_version": match tls.minimum_version {
                TlsVersion::Tls12 => "1.2",
                TlsVersion::Tls13 => "1.3",
            },
            "client_ca": tls.client_ca.as_ref().map(|ca| ca.file.display().to_string()),
            "require_client_certificate": tls.require_client_certificate,
        })
    });
    let tcp = listener.tcp.as_ref().map(|tcp| {
        json!({
            "cluster": tcp.cluster.name,
            "idle_timeout": format!("{:?}", tcp.idle_timeout),
            "filters": tcp.chain.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        })
    });
    json!({"name": listener.name, "address": listener.address.to_string(), "tls": tls, "tcp": tcp})
}

fn cluster(cluster: &Cluster) -> Value {
    let tls = cluster.tls.as_ref().map(|tls| {
        let ca = match &tls.ca {
            TrustedCa::System => "system".to_owned(),
            TrustedCa::File(certificates) => certificates.file.display().to_string(),
        };
        json!({"sni": tls.sni.as_ref(), "ca": ca})
    });
    json!({
        "name": cluster.name,
        "endpoints": cluster.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "protocol": match cluster.protocol {
            UpstreamProtocol::Http1 => "http1",
            UpstreamProtocol::Http2 => "http2",
        },
        "connect_timeout": format!("{:?}", cluster.connect_timeout),
        "request_timeout": cluster.request_timeout.map_or("off".to_owned(), |it| format!("{it:?}")),
        "idle_timeout": format!("{:?}", cluster.idle_timeout),
        "tls": tls,
    })
}

fn filter(policy: &Policy, filter: &Filter) -> Value {
    let instances = policy
        .instances
        .iter()
        .filter(|it| it.filter.name == filter.name);
    let configurations = instances.map(|it| (it.name.clone(), configuration(&it.configuration)));
    json!({
        "name": filter.name,
        "module": filter.module.source.to_string(),
        "sha256": filter.module.sha256,
        "signature": filter.module.signature.as_ref().map(|it| json!({
            "minisign_public_key": it.minisign_public_key,
            "file": it.file.display().to_string(),
        })),
        "authenticates": filter.module.authenticates,
        "failure_policy": match filter.failure_policy {
            FailurePolicy::Closed => "closed",
            FailurePolicy::Open => "open",
        },
        "isolation": match filter.isolation {
            Isolation::Shared => "shared",
            Isolation::Plugin => "plugin",
            Isolation::Request => "request",
        },
        "limits": {
            "memory_bytes": filter.limits.memory_bytes,
            "body_bytes": filter.limits.body_bytes,
            "callback_cpu_ms": filter.limits.callback_cpu_ms,
            "request_cpu_ms": filter.limits.request_cpu_ms,
            "start_cpu_ms": filter.limits.start_cpu_ms,
            "vms": filter.limits.vms,
            "spare_vms": filter.limits.spare_vms,
            "callouts_in_flight": filter.limits.callouts_in_flight,
            "log_lines_per_second": filter.limits.log_lines_per_second,
        },
        "allow": {
            "capabilities": filter.allow.lists.capabilities,
            "properties": filter.allow.lists.properties.as_ref().map(|it| it.iter().collect::<Vec<_>>()),
            "foreign_functions": filter.allow.lists.foreign_functions,
        },
        "allow_on_headers_stop_iteration": filter.allow_on_headers_stop_iteration,
        "clusters": filter.clusters.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        "configurations": Value::Object(configurations.collect()),
    })
}

fn route(route: &Route) -> Value {
    json!({
        "name": route.name,
        "host": route.host.to_string(),
        "prefix": route.prefix.as_str(),
        "cluster": route.cluster.name,
        "filters": route.chain.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        "off": route.off.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
    })
}

fn configuration(configuration: &Configuration) -> Value {
    let mut value = configuration.to_json();
    redact(&mut value);
    value
}

/// Removes what is named like a secret, whatever it holds.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.to_ascii_lowercase().replace('-', "_");
                let secret = SECRET_NAMES.contains(&key.as_str())
                    || SECRET_PARTS.iter().any(|part| key.contains(part));
                if secret
                    && (value.is_string()
                        || value.is_number()
                        || value.is_array()
                        || value.is_object())
                {
                    *value = REMOVED.into();
                } else {
                    redact(value);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::redact;
    use serde_json::json;

    #[test]
    fn secrets_are_removed_wherever_they_stand() {
        let mut value = json!({
            "issuer": "x",
            "jwks": {"keys": [{"kty": "oct", "k": "AyM1", "kid": "a"}, {"kty": "RSA", "n": "1", "e": "AQAB", "d": "2", "use": "sig"}]},
            "client-secret": "s", "nested": [{"db_password": 5, "hidden": {"apiKey": ["x"]}}], "strip_token": true, "secret_set": false,
        });
        redact(&mut value);
        assert_eq!(
            value,
            json!({
                "issuer": "x",
                "jwks": {"keys": [{"kty": "oct", "k": "[removed]", "kid": "a"}, {"kty": "RSA", "n": "1", "e": "AQAB", "d": "[removed]", "use": "sig"}]},
                "client-secret": "[removed]", "nested": [{"db_password": "[removed]", "hidden": {"apiKey": "[removed]"}}],
                "strip_token": true, "secret_set": false,
            })
        );
    }
}
