//! `Content-Security-Policy` (CSP level 3): whether a value does anything, and whether an operator's value does what it says.
//!
//! Several policies add up: a browser obeys each. So nothing is ever put beside an upstream's policy, and none is taken away.

/// Whether a browser would enforce something in `value`.
pub(crate) fn is_enforced(value: &[u8]) -> bool {
    value.is_ascii()
        && value.split(|byte| b";,".contains(byte)).any(|directive| {
            let name = directive
                .split(u8::is_ascii_whitespace)
                .find(|part| !part.is_empty());
            name.is_some_and(|name| {
                DIRECTIVES
                    .iter()
                    .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            })
        })
}

/// Refuses an operator's policy that browsers would silently read otherwise than it is meant.
pub(crate) fn check(policy: &str) -> Result<(), String> {
    let mut seen: Vec<String> = Vec::new();
    for directive in policy.split(';') {
        let mut words = directive.split_ascii_whitespace();
        let Some(name) = words.next() else { continue };
        let name = name.to_ascii_lowercase();
        if !DIRECTIVES.contains(&name.as_str()) {
            return Err(format!("`{name}` is not a directive"));
        }
        if seen.contains(&name) {
            return Err(format!("`{name}` comes twice: browsers ignore the second"));
        }
        let sources: Vec<&str> = words.collect();
        if sources.len() > 1
            && sources
                .iter()
                .any(|source| source.eq_ignore_ascii_case("'none'"))
        {
            return Err(format!("`{name}`: 'none' counts only when it stands alone"));
        }
        for source in sources {
            check_source(source).map_err(|reason| format!("`{name}`: {reason}"))?;
        }
        seen.push(name);
    }
    if seen.is_empty() {
        return Err("names no directive".to_owned());
    }
    Ok(())
}

fn check_source(source: &str) -> Result<(), String> {
    let lower = source.to_ascii_lowercase();
    let unquoted = lower.trim_matches('\'');
    let quoted = lower.len() > 1 && lower.starts_with('\'') && lower.ends_with('\'');
    let hashed = ["sha256-", "sha384-", "sha512-"]
        .iter()
        .any(|hash| unquoted.starts_with(hash));
    if source.contains(',') {
        return Err("a comma begins another policy: separate sources by spaces".to_owned());
    }
    if unquoted.starts_with("nonce-") {
        return Err(
            "a nonce must differ in every answer, so the application has to send it".to_owned(),
        );
    }
    if quoted && !hashed && !KEYWORDS.contains(&unquoted) {
        return Err(format!("{source} is not a keyword"));
    }
    if !quoted && (hashed || KEYWORDS.contains(&unquoted)) {
        return Err(format!(
            "`{source}` needs single quotes, else it names a host"
        ));
    }
    Ok(())
}

const KEYWORDS: [&str; 11] = [
    "inline-speculation-rules",
    "none",
    "report-sample",
    "script",
    "self",
    "strict-dynamic",
    "trusted-types-eval",
    "unsafe-eval",
    "unsafe-hashes",
    "unsafe-inline",
    "wasm-unsafe-eval",
];

/// CSP level 3 §6, Trusted Types, Mixed Content, Upgrade Insecure Requests.
const DIRECTIVES: [&str; 30] = [
    "base-uri",
    "block-all-mixed-content",
    "child-src",
    "connect-src",
    "default-src",
    "fenced-frame-src",
    "font-src",
    "form-action",
    "frame-ancestors",
    "frame-src",
    "img-src",
    "manifest-src",
    "media-src",
    "object-src",
    "plugin-types",
    "prefetch-src",
    "report-to",
    "report-uri",
    "require-trusted-types-for",
    "sandbox",
    "script-src",
    "script-src-attr",
    "script-src-elem",
    "style-src",
    "style-src-attr",
    "style-src-elem",
    "trusted-types",
    "upgrade-insecure-requests",
    "webrtc",
    "worker-src",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_policy_counts_when_a_browser_would_enforce_it() {
        let table: &[(&[u8], bool)] = &[
            (b"default-src 'self'", true),
            (b";; \tIMG-SRC *", true),
            (b"nonsense, default-src 'none'", true),
            (b"sandbox", true),
            (b"", false),
            (b" ; , ", false),
            (b"nonsense 'self'", false),
            (b"default-src: 'self'", false),
            (b"default-src \xff", false),
        ];
        for (value, expected) in table {
            assert_eq!(is_enforced(value), *expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn an_own_policy_says_what_it_means() {
        let table = [
            (
                "default-src 'self'; script-src 'self' https://cdn.test 'sha256-AAAA' 'strict-dynamic'; sandbox allow-forms",
                "",
            ),
            ("default-src 'none';", ""),
            (
                "require-trusted-types-for 'script'; trusted-types default",
                "",
            ),
            (" ; ", "names no directive"),
            ("default-src: 'self'", "`default-src:` is not a directive"),
            (
                "img-src a.test; IMG-SRC b.test",
                "`img-src` comes twice: browsers ignore the second",
            ),
            (
                "default-src self",
                "`default-src`: `self` needs single quotes, else it names a host",
            ),
            (
                "default-src 'none' a.test",
                "`default-src`: 'none' counts only when it stands alone",
            ),
            (
                "default-src 'sefl'",
                "`default-src`: 'sefl' is not a keyword",
            ),
            (
                "script-src 'nonce-abc'",
                "`script-src`: a nonce must differ in every answer, so the application has to send it",
            ),
            (
                "script-src sha256-AAAA",
                "`script-src`: `sha256-AAAA` needs single quotes, else it names a host",
            ),
            (
                "img-src a.test, b.test",
                "`img-src`: a comma begins another policy: separate sources by spaces",
            ),
        ];
        for (policy, expected) in table {
            let message = check(policy).err().unwrap_or_default();
            assert_eq!(message, expected, "{policy}");
        }
    }
}
