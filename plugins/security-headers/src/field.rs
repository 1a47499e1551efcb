//! Field names and values as RFC 9110 §5.1 and §5.5 write them. Only an operator's own fields are checked here: what an
//! upstream sent was checked by the proxy, and is judged by its header's rule.

/// Whether `name` is a lower-case field name that a control may set or remove.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        return Err(format!("`{name}` is not a header name"));
    }
    if FRAMING.contains(&name) {
        return Err(format!(
            "`{name}` belongs to the proxy, which frames the answer by it"
        ));
    }
    Ok(())
}

/// Whether `value` can stand in a field: printable ASCII, spaces and tabs inside only.
pub(crate) fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("is empty: write `off` to leave the header alone".to_owned());
    }
    if value.trim_matches([' ', '\t']) != value {
        return Err("begins or ends with white space".to_owned());
    }
    match value
        .bytes()
        .find(|byte| !matches!(byte, b'\t' | 0x20..=0x7e))
    {
        Some(byte) => Err(format!(
            "holds the byte 0x{byte:02x}, which no header may carry"
        )),
        None => Ok(()),
    }
}

/// `value` without optional white space around it.
pub(crate) fn trim(value: &[u8]) -> &[u8] {
    let mut value = value;
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 §5.6.2 `tchar`.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What the proxy alone decides: to change one of these is to change where an answer ends (RFC 9112 §6).
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
