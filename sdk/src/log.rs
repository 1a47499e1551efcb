//! The log: lines that are JSON objects, so that a log store can read them. Tokens and secrets never go
//! into a line.

use crate::host::{ActiveHost, Host, Level};
use crate::limits;

/// A value in a log line.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// fn tell(request: &Request, tries: u64) {
///     let fields = [("tries", Field::Number(tries)), ("of", "sign-in".into())];
///     request.log(Level::Info, "tried", &fields);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// A number.
    Number(u64),
    /// Text; what is not UTF-8 is replaced.
    Text(&'a str),
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Field<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// Logs `{"control": …, "event": …, fields…}`.
pub(crate) fn event(
    host: &ActiveHost,
    control: &str,
    level: Level,
    event: &str,
    fields: &[(&str, Field<'_>)],
) {
    let mut line = String::with_capacity(128);
    line.push_str("{\"control\":");
    push_json_string(&mut line, control);
    line.push_str(",\"event\":");
    push_json_string(&mut line, event);
    push_fields(&mut line, fields);
    line.push('}');
    host.log(level, cut(&line));
}

/// Appends `,"key":value` for each field.
pub(crate) fn push_fields(line: &mut String, fields: &[(&str, Field<'_>)]) {
    for (key, value) in fields {
        line.push(',');
        push_json_string(line, key);
        line.push(':');
        match value {
            Field::Number(number) => push_number(line, *number),
            Field::Text(text) => push_json_string(line, text),
        }
    }
}

/// Appends `text` as a JSON string (RFC 8259 §7). What needs no escape is copied in runs: a refusal writes some 300
/// characters, and pushed one by one they were half of what it cost.
pub(crate) fn push_json_string(line: &mut String, text: &str) {
    let is_escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    line.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(is_escaped)
        && let Some((run, escaped)) = rest.split_at_checked(at)
        && let Some(byte) = escaped.bytes().next()
    {
        line.push_str(run);
        match byte {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            control => {
                line.push_str("\\u00");
                line.extend(char::from_digit(u32::from(control >> 4), 16));
                line.extend(char::from_digit(u32::from(control & 15), 16));
            }
        }
        // What is escaped is one byte long.
        rest = escaped.get(1..).unwrap_or_default();
    }
    line.push_str(rest);
    line.push('"');
}

/// Appends a number in decimal, without the formatting machinery.
pub(crate) fn push_number(line: &mut String, number: u64) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// At most [`limits::LOG_BYTES_MAX`] bytes, cut between characters.
pub(crate) fn cut(message: &str) -> &str {
    let end = message.floor_char_boundary(limits::LOG_BYTES_MAX);
    message.get(..end).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_a_json_string() {
        let all: String = (0..0x300_u32)
            .chain([0x2028, 0x1f600])
            .filter_map(char::from_u32)
            .collect();
        for text in ["", "plain", "a\"b\\c", &all] {
            let mut line = String::new();
            push_json_string(&mut line, text);
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 429, u64::MAX] {
            let mut line = String::from("x");
            push_number(&mut line, number);
            assert_eq!(line, format!("x{number}"));
        }
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let long = "é".repeat(limits::LOG_BYTES_MAX);
        assert_eq!(cut(&long).len(), limits::LOG_BYTES_MAX);
        let shifted = format!("a{long}");
        assert_eq!(cut(&shifted).len(), limits::LOG_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
