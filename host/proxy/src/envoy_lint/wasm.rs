//! Wasm filters: whether they fail open, what pins their code, what stands in their configurations.

use serde_json::Value;

use super::Audit;
use super::tree::Item;
use crate::policy::{self, Lint};

impl<'n> Audit<'n> {
    pub(super) fn look_at_wasm(&mut self, wasm: &Item<'n>) {
        let Some(config) = wasm.get("config") else {
            return;
        };
        let name = config.text_of("name").unwrap_or("a Wasm plugin");
        let open = config
            .get("failure_policy")
            .filter(|it| matches!(it.text(), Some("FAIL_OPEN")));
        let open = open.or_else(|| {
            config
                .get("fail_open")
                .filter(|_| config.is_true("fail_open"))
        });
        if let Some(open) = open {
            let reason = format!("`{name}` fails open: requests pass unchecked while it is down");
            self.warn(Lint::FailOpen, &open, reason);
        }
        if let Some(remote) = config.at(&["vm_config", "code", "remote"]) {
            let digest = remote.text_of("sha256").unwrap_or_default();
            if digest.is_empty() {
                let reason = format!(
                    "`{name}` is fetched without `sha256`: whoever answers for its address decides what runs"
                );
                self.warn(Lint::UnpinnedModule, &remote, reason);
            }
        }
        if let Some(configuration) = config.get("configuration") {
            self.look_at_configuration(name, &configuration);
        }
    }

    /// A `StringValue` with JSON, as most plugins want it, or a `Struct`.
    fn look_at_configuration(&mut self, name: &str, configuration: &Item<'n>) {
        let value = configuration.get("value");
        let json = match value.as_ref().and_then(|it| it.text()) {
            Some(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            None => value.as_ref().unwrap_or(configuration).node().to_json(),
        };
        if json.get("shadow") == Some(&Value::Bool(true)) {
            let reason = format!("`{name}` is in shadow mode: it decides, and nothing comes of it");
            self.warn(Lint::ShadowMode, configuration, reason);
        }
        for (path, reason) in policy::weak_secrets_in(&json) {
            let reason = format!("`{path}` of `{name}`: {reason}");
            self.warn(Lint::WeakSecret, configuration, reason);
        }
    }
}
