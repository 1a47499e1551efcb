//! The policy file that Portcullis serves and `export envoy` reads.

use crate::issuer::Issuer;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

/// Which filters a policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filters {
    /// None at all.
    None,
    /// security-headers, tls-policy, jwt-auth, rate-limit, a module each.
    Four,
    /// The same in one filter.
    Policy,
}

/// A policy of one worker, one TLS listener, and one route to one upstream, as JSON, which is YAML too.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// Where the listener is.
    pub address: SocketAddr,
    /// Where requests go, in plaintext.
    pub upstream: SocketAddr,
    /// Certificate chain and key, PEM.
    pub certificate: [&'a Path; 2],
    /// Whose tokens are good.
    pub issuer: &'a Issuer,
    /// Which filters.
    pub filters: Filters,
    /// What a user may ask for in a minute.
    pub requests_per_minute: u32,
}

/// The four controls with their configurations, in the order of a chain.
pub fn controls(issuer: &Issuer, requests_per_minute: u32) -> [(&'static str, Value); 4] {
    let limits =
        json!({"limits": [{"name": "load", "requests": requests_per_minute, "per": "60s"}]});
    [
        ("security-headers", json!({})),
        ("tls-policy", json!({})),
        ("jwt-auth", issuer.jwt_auth_configuration()),
        ("rate-limit", limits),
    ]
}

impl Policy<'_> {
    /// The file.
    pub fn text(&self) -> String {
        let [chain, key] = self.certificate;
        json!({
            "workers": 1,
            "listeners": [{
                "name": "https",
                "address": self.address.to_string(),
                "tls": {"certificate_chain": chain, "private_key": key},
            }],
            "clusters": [{"name": "upstream", "endpoints": [self.upstream.to_string()]}],
            "filters": self.filters(),
            "routes": [{"name": "all", "prefix": "/", "cluster": "upstream"}],
        })
        .to_string()
    }

    fn filters(&self) -> Vec<Value> {
        let controls = controls(self.issuer, self.requests_per_minute);
        match self.filters {
            Filters::None => Vec::new(),
            Filters::Four => controls
                .into_iter()
                .map(|(control, configuration)| {
                    json!({"name": control, "module": format!("builtin:{control}"), "configuration": configuration})
                })
                .collect(),
            Filters::Policy => {
                let controls: Vec<Value> = controls
                    .into_iter()
                    .map(|(control, configuration)| json!({"control": control, "configuration": configuration}))
                    .collect();
                vec![json!({"name": "policy", "module": "builtin:policy", "configuration": {"controls": controls}})]
            }
        }
    }
}
