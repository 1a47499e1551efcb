//! Listeners, their TLS, and what connection managers make of a request before a filter sees it.

use super::Audit;
use super::tree::{self, Item};
use crate::policy::{Lint, NodeValue};

/// What may stand under `path_with_escaped_slashes_action`: the numbers are those of the enum in http_connection_manager.proto.
const SLASHES_ONE_FORM: &[&str] = &["REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "2", "3"];

impl<'n> Audit<'n> {
    pub(super) fn look_at_listener(&mut self, listener: &Item<'n>) {
        let Some(address) = tree::socket_address(listener) else {
            return;
        };
        let mut chains = listener.list("filter_chains");
        chains.extend(listener.get("default_filter_chain"));
        for chain in chains {
            let transport = chain.get("transport_socket");
            let raw = |it: &Item<'_>| {
                let kind = it.get("typed_config").and_then(|config| config.kind());
                kind.is_some_and(|kind| kind.ends_with("RawBuffer"))
            };
            let is_plain = transport.as_ref().is_none_or(raw);
            let is_http = chain.list("filters").iter().any(|filter| {
                let kind = filter.get("typed_config").and_then(|config| config.kind());
                kind.is_some_and(|kind| kind.ends_with("HttpConnectionManager"))
            });
            if is_plain && is_http && !tree::is_local(&address) {
                let reason = format!(
                    "plaintext HTTP on {address}: tokens and cookies cross the network unencrypted"
                );
                self.warn(Lint::PlaintextListener, &chain, reason);
            }
        }
    }

    pub(super) fn look_at_tls(&mut self, context: &Item<'n>) {
        let names = [
            "common_tls_context",
            "tls_params",
            "tls_minimum_protocol_version",
        ];
        let minimum = context.at(&names);
        let written = minimum.as_ref().map(|it| scalar(it));
        if matches!(written.as_deref(), Some("TLSv1_3" | "4")) {
            return;
        }
        let reason = match written {
            Some(written) => format!("{written} is accepted, the security policy asks for TLSv1_3"),
            None => "no `tls_minimum_protocol_version`: TLS 1.2 is accepted, the security policy asks for TLSv1_3".into(),
        };
        self.warn(Lint::TlsFloor, minimum.as_ref().unwrap_or(context), reason);
    }

    pub(super) fn look_at_http(&mut self, http: &Item<'n>) {
        for (flag, meaning) in [
            (
                "normalize_path",
                "dot segments reach routes and filters as they came",
            ),
            (
                "merge_slashes",
                "`//admin` is another path than `/admin` to routes and filters",
            ),
        ] {
            if !http.is_true(flag) {
                let reason = format!("`{flag}` is not set: {meaning}");
                self.warn(Lint::PathForms, http, reason);
            }
        }
        let action = http.get("path_with_escaped_slashes_action");
        let one_form = action
            .as_ref()
            .is_some_and(|it| SLASHES_ONE_FORM.contains(&scalar(it).as_str()));
        if !one_form {
            let reason = "`path_with_escaped_slashes_action` is not REJECT_REQUEST: `%2F` is a slash to some servers and not to others";
            self.warn(Lint::PathForms, action.as_ref().unwrap_or(http), reason);
        }
        if !http.is_true("use_remote_address") {
            let reason =
                "`use_remote_address` is not set: the client's own x-forwarded-for says who it is";
            self.warn(Lint::ClientAddress, http, reason);
        }
        self.look_at_routes(http);
    }
}

fn scalar(item: &Item<'_>) -> String {
    match &item.node().value {
        NodeValue::String(text) => text.clone(),
        NodeValue::Number(number) => number.to_string(),
        _ => String::new(),
    }
}
