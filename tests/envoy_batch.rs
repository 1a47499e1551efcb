//! Many exports in one Envoy configuration: starting Envoy takes seconds, a listener more takes none.

use serde_json::{Value, json};

/// Two exports in one: the listeners and clusters of both.
pub(crate) fn beside(one: Option<Value>, mut other: Value) -> Value {
    let Some(mut one) = one else { return other };
    for list in ["/static_resources/listeners", "/static_resources/clusters"] {
        if let (Some(into), Some(from)) = (
            one.pointer_mut(list).and_then(Value::as_array_mut),
            other.pointer_mut(list).and_then(Value::as_array_mut),
        ) {
            into.append(from);
        }
    }
    one
}

/// The export with TLS 1.1 accepted, which no policy can ask for: only so does a control get to refuse it.
pub(crate) fn lowered(mut exported: Value) -> Value {
    fn lower(value: &mut Value) {
        match value {
            Value::Object(members) => {
                if members.contains_key("tls_minimum_protocol_version") {
                    members.insert("tls_minimum_protocol_version".into(), "TLSv1_1".into());
                    let ciphers = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA"];
                    members.insert("cipher_suites".into(), json!(ciphers));
                }
                members.values_mut().for_each(lower);
            }
            Value::Array(items) => items.iter_mut().for_each(lower),
            _ => {}
        }
    }
    if let Some(listeners) = exported.pointer_mut("/static_resources/listeners") {
        lower(listeners);
    }
    exported
}
