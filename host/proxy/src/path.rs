//! Paths as routes, filters and the upstream see them: one form, made before anything looks at it.
//!
//! The rules are those of Envoy with `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action: REJECT_REQUEST`, in its order:
//! 1. an escaped slash or backslash (`%2F`, `%5C`), an escaped control byte, or a broken escape is refused;
//! 2. `\` is `/`, escaped unreserved bytes are unescaped (RFC 3986 §6.2.2.2), other bytes outside ASCII are escaped;
//! 3. dot segments are resolved (RFC 3986 §5.2.4), and cannot climb above the root;
//! 4. runs of slashes become one.
//!
//! Stricter than Envoy: a dot segment with parameters (`..;`, `.;a=b`, `%2e%2e;`, `..%3B`) is refused, since servlet containers cut
//! parameters off and would climb, so that they and our routes would read two paths. Envoy 1.40 resolves the plain ones as a container
//! would, and leaves the escaped ones; the export has a route that refuses these.
//!
//! The query is not touched.

use std::borrow::Cow;

/// Why a path is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathFault {
    /// It does not begin with a slash.
    #[error("path does not begin with a slash")]
    NotAbsolute,
    /// `%2F` or `%5C`: a slash to some servers and not to others.
    #[error("escaped slash in path")]
    EscapedSlash,
    /// `%` without two hexadecimal digits.
    #[error("broken escape in path")]
    BrokenEscape,
    /// A control byte, plain or escaped.
    #[error("control byte in path")]
    Control,
    /// `..;` or its like: a file's name here, a step up to a servlet container.
    #[error("dot segment with parameters in path")]
    DotParameters,
}

impl PathFault {
    /// What the client is told.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::DotParameters => "dot segment with parameters in path",
            _ => "invalid path",
        }
    }
}

/// The normal form of a request target's path and query. Borrows where nothing has to change, which is the usual case.
pub(crate) fn normalise(target: &str) -> Result<Cow<'_, str>, PathFault> {
    let end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if !path.starts_with(['/', '\\']) {
        return Err(PathFault::NotAbsolute);
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(target));
    }
    let plain = unescape(path.as_bytes())?;
    let mut out = String::with_capacity(target.len());
    resolve(&plain, &mut out)?;
    out.push_str(query);
    Ok(Cow::Owned(out))
}

fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        let special = match byte {
            b'%' | b'\\' | 0..=0x20 | 0x7f.. => true,
            b'/' | b'.' => after_slash,
            _ => false,
        };
        if special {
            return false;
        }
        after_slash = byte == b'/';
    }
    true
}

/// Unescaped where that cannot change the meaning, with every backslash a slash. The result is ASCII.
fn unescape(path: &[u8]) -> Result<String, PathFault> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push('/'),
            b'%' => {
                let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else {
                    return Err(PathFault::BrokenEscape);
                };
                let (Some(h), Some(l)) = (hex(high), hex(low)) else {
                    return Err(PathFault::BrokenEscape);
                };
                match h << 4 | l {
                    b'/' | b'\\' => return Err(PathFault::EscapedSlash),
                    0..=0x1f | 0x7f => return Err(PathFault::Control),
                    plain if is_unreserved(plain) => out.push(char::from(plain)),
                    _ => out.extend(['%', char::from(high), char::from(low)]),
                }
            }
            0..=0x20 | 0x7f => return Err(PathFault::Control),
            0x80.. => {
                const DIGITS: [char; 16] = [
                    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
                ];
                let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
                out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

/// Dot segments resolved, then slashes merged: in this order, as Envoy has it (`/a//../b` is `/a/b`).
fn resolve(path: &str, out: &mut String) -> Result<(), PathFault> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ if is_dots_with_parameters(segment) => return Err(PathFault::DotParameters),
            _ => segments.push(segment),
        }
    }
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_slash || out.is_empty() {
        out.push('/');
    }
    Ok(())
}

/// Of an unescaped segment: a plain or an escaped semicolon behind one dot or two.
fn is_dots_with_parameters(segment: &str) -> bool {
    let Some(rest) = segment.strip_prefix('.') else {
        return false;
    };
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    rest.starts_with(';') || rest.starts_with("%3b") || rest.starts_with("%3B")
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_take_one_form() {
        use PathFault::{BrokenEscape, Control, DotParameters, EscapedSlash, NotAbsolute};
        let rows: &[(&str, Result<&str, PathFault>)] = &[
            ("/", Ok("/")),
            ("/a/b?c=/../d", Ok("/a/b?c=/../d")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../b", Ok("/b")),
            ("/../../etc/passwd", Ok("/etc/passwd")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/.", Ok("/a/")),
            ("/a/", Ok("/a/")),
            ("//a///b//", Ok("/a/b/")),
            ("/a//../b", Ok("/a/b")),
            ("/a\\b", Ok("/a/b")),
            ("/a\\..\\b", Ok("/b")),
            ("/%2e%2e/b", Ok("/b")),
            ("/a/.%2E/b", Ok("/b")),
            ("/%61dmin", Ok("/admin")),
            ("/%41%7e%20%3f", Ok("/A~%20%3f")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/a/...", Ok("/a/...")),
            ("/..a", Ok("/..a")),
            ("/\u{e9}", Ok("/%C3%A9")),
            ("/a?b=%2F%zz\\", Ok("/a?b=%2F%zz\\")),
            ("/a%2Fb", Err(EscapedSlash)),
            ("/a%2fb", Err(EscapedSlash)),
            ("/a%5Cb", Err(EscapedSlash)),
            ("/a%5cb", Err(EscapedSlash)),
            ("/a%", Err(BrokenEscape)),
            ("/a%2", Err(BrokenEscape)),
            ("/a%g0", Err(BrokenEscape)),
            ("/a%+1", Err(BrokenEscape)),
            ("/a%00", Err(Control)),
            ("/a%0d%0a", Err(Control)),
            ("/a%7f", Err(Control)),
            ("/a b", Err(Control)),
            ("/public/..;/x", Err(DotParameters)),
            ("/public/..;", Err(DotParameters)),
            ("/..;a=b/x?c", Err(DotParameters)),
            ("/.;/x", Err(DotParameters)),
            ("/a/.;a=b", Err(DotParameters)),
            ("/a/%2e%2e;/x", Err(DotParameters)),
            ("/a/.%2E;/x", Err(DotParameters)),
            ("/a/%2e;/x", Err(DotParameters)),
            ("/a/..%3b/x", Err(DotParameters)),
            ("/a/..%3Bb/x", Err(DotParameters)),
            ("/a/%2E%2e%3B", Err(DotParameters)),
            ("/a\\..;\\x", Err(DotParameters)),
            ("/a//..;//x", Err(DotParameters)),
            // A step up behind it would take it away, but not in Envoy.
            ("/a/..;/../x", Err(DotParameters)),
            ("/a/...;/x", Ok("/a/...;/x")),
            ("/a/..b;/x", Ok("/a/..b;/x")),
            ("/a;..;/x", Ok("/a;..;/x")),
            ("/a;b=c/x", Ok("/a;b=c/x")),
            ("/a?/..;/x", Ok("/a?/..;/x")),
            ("*", Err(NotAbsolute)),
            ("a/b", Err(NotAbsolute)),
            ("", Err(NotAbsolute)),
        ];
        for (target, expected) in rows {
            assert_eq!(
                normalise(target).as_deref(),
                expected.as_deref(),
                "{target:?}"
            );
            if let Ok(once) = normalise(target) {
                assert_eq!(normalise(&once).as_deref(), Ok(&*once), "twice: {target:?}");
            }
        }
    }
}
