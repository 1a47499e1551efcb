//! Local responses: what a filter, or the runtime for a broken one, answers in place of the upstream.
//!
//! Shaped as Envoy does it: `content-length` always, `text/plain` where a body has no type, and trailers-only for gRPC requests. Our
//! own refusals are RFC 9457 problems that say no more than a decision id.

use bytes::Bytes;

use crate::{
    embedder::Embedder,
    exchange::Exchange,
    fields::{FieldList, Fields},
};

/// A response made here. The first one of an exchange's request phases is final.
#[derive(Clone, Debug)]
pub(crate) struct LocalResponse {
    pub(crate) status: u16,
    /// Checked.
    pub(crate) headers: FieldList,
    pub(crate) body: Bytes,
    /// Why, for property `response.code_details`.
    pub(crate) details: Bytes,
    /// 0..=16; `None` has it derived from the status.
    pub(crate) grpc_status: Option<u8>,
}

impl LocalResponse {
    /// The refusal of a request by the runtime itself.
    pub(crate) fn problem(
        status: u16,
        title: &str,
        details: &'static str,
        exchange: &Exchange,
        embedder: &dyn Embedder,
    ) -> Self {
        let id = decision_id(exchange, embedder);
        let body = format!(
            r#"{{"type":"about:blank","title":"{title}","status":{status},"decision_id":"{id}"}}"#
        );
        let mut headers = FieldList::new();
        headers.push("content-type", "application/problem+json");
        headers.push("cache-control", "no-store");
        headers.push("x-policy-decision-id", id);
        Self {
            status,
            headers,
            body: body.into(),
            details: Bytes::from_static(details.as_bytes()),
            grpc_status: None,
        }
    }

    /// Puts the response into the exchange and tells its body.
    pub(crate) fn apply(self, exchange: &mut Exchange) -> Bytes {
        let request = &exchange.request_headers;
        let is_grpc = request.get(b"content-type").is_some_and(is_grpc);
        let is_head = request.get(b":method") == Some(b"HEAD");
        let mut headers = FieldList::new();
        exchange.response_trailers = None;
        exchange.local_details = Some(self.details);
        exchange.info.response_code = Some(self.status);
        if is_grpc {
            headers.push(":status", "200");
            headers.push("content-type", "application/grpc");
            headers.push(
                "grpc-status",
                self.grpc_status
                    .unwrap_or_else(|| grpc_status(self.status))
                    .to_string(),
            );
            if !self.body.is_empty() {
                headers.push("grpc-message", percent_encoded(&self.body));
            }
            let own = |name: &Bytes| {
                matches!(
                    name.as_ref(),
                    b"content-type" | b"grpc-status" | b"grpc-message"
                )
            };
            extend(&mut headers, self.headers, own);
            *exchange.response_headers_mut() = Box::new(headers);
            return Bytes::new();
        }
        headers.push(":status", self.status.to_string());
        extend(&mut headers, self.headers, |_| false);
        if !self.body.is_empty() && headers.get(b"content-type").is_none() {
            headers.push("content-type", "text/plain");
        }
        // 204 and 304 have no body, hence no length.
        let has_body = !matches!(self.status, 204 | 304);
        if has_body {
            headers.push("content-length", self.body.len().to_string());
        }
        *exchange.response_headers_mut() = Box::new(headers);
        if is_head || !has_body {
            Bytes::new()
        } else {
            self.body
        }
    }
}

/// The length is ours to say, and so is how the message ends; pseudo-headers too.
fn extend(headers: &mut FieldList, more: FieldList, own: impl Fn(&Bytes) -> bool) {
    for (name, value) in more {
        let framing = matches!(
            name.as_ref(),
            b"content-length" | b"transfer-encoding" | b"connection" | b"upgrade" | b"keep-alive"
        );
        if !framing && !name.starts_with(b":") && !own(&name) {
            headers.push(name, value);
        }
    }
}

fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What a client of gRPC reads for an HTTP status, as Envoy maps it.
pub(crate) fn grpc_status(status: u16) -> u8 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Bytes other than printable ASCII, and `%`, as `%XX`; at most 1 KiB of text.
fn percent_encoded(text: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in text.iter().take(1024) {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(*byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The request's id where it is harmless in a header and in JSON, else one of our own.
fn decision_id(exchange: &Exchange, embedder: &dyn Embedder) -> String {
    let harmless = |id: &&[u8]| {
        (8..=64).contains(&id.len())
            && id
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
    };
    let id = exchange
        .request_headers
        .get(b"x-request-id")
        .filter(harmless)
        .and_then(|id| std::str::from_utf8(id).ok());
    id.map_or_else(
        || {
            let mut bytes = [0; 16];
            embedder.random(&mut bytes);
            format!("{:032x}", u128::from_be_bytes(bytes))
        },
        str::to_owned,
    )
}
