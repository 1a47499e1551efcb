//! What is refused in a configuration, and with which words.

use std::time::SystemTime;

use portcullis_sdk::testing::Harness;
use security_headers::SecurityHeaders;

/// Expects `configuration` to be refused with exactly `message`, or accepted where that is empty.
fn check(configuration: &str, message: &str) {
    let mut harness = Harness::<SecurityHeaders>::new(SystemTime::UNIX_EPOCH);
    let refused = harness.configure(configuration).err().unwrap_or_default();
    assert_eq!(refused, message, "{configuration}");
}

#[test]
fn what_is_right_is_accepted() {
    for configuration in [
        "",
        "{}",
        r#"{"profile": "website"}"#,
        r#"{"x_frame_options": "off", "referrer_policy": false}"#,
        r#"{"x_frame_options": {"value": "SAMEORIGIN", "mode": "overwrite"}}"#,
        r#"{"x_frame_options": {"mode": "overwrite"}}"#,
        r#"{"x_frame_options": {}}"#,
        r#"{"strict_transport_security": "max-age=31536000; includeSubDomains; preload"}"#,
        r#"{"strict_transport_security": {"value": "max-age=0", "mode": "overwrite"}}"#,
        r#"{"referrer_policy": "no-referrer, strict-origin-when-cross-origin"}"#,
        r#"{"headers": {"X-A": "b", "x-c": {"value": "off"}}}"#,
        r#"{"headers": {"server": "edge"}, "keep": ["Server"]}"#,
        r#"{"headers": {"server": {"value": "edge", "mode": "overwrite"}}}"#,
        r#"{"remove": ["X-A", "server"], "keep": ["sourcemap"]}"#,
        r#"{"profile": "hsts", "strict_transport_security": "off"}"#,
    ] {
        check(configuration, "");
    }
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (configuration, message) in [
        ("[]", "configuration: must be a mapping"),
        (r#"{"hsts": true}"#, UNKNOWN_KEY),
        (
            r#"{"profile": "web"}"#,
            "configuration: profile: unknown variant `web`, expected one of `api`, `hsts`, `website`",
        ),
        (
            r#"{"x_frame_options": true}"#,
            "configuration: x_frame_options: expected `off`, a value, or a map of `value` and `mode`, found a boolean",
        ),
        (
            r#"{"x_frame_options": 1}"#,
            "configuration: x_frame_options: expected `off`, a value, or a map of `value` and `mode`, found an integer",
        ),
        (
            r#"{"x_frame_options": {"value": "DENY", "when": "always"}}"#,
            "configuration: x_frame_options.when: unknown field `when`, expected `value` or `mode`",
        ),
        (
            r#"{"x_frame_options": {"value": "DENY", "mode": "merge"}}"#,
            "configuration: x_frame_options.mode: unknown variant `merge`, expected `add` or `overwrite`",
        ),
        // Values that browsers do not obey.
        (
            r#"{"x_frame_options": "ALLOWALL"}"#,
            "configuration: x_frame_options: `ALLOWALL` means nothing to browsers: take one of DENY, SAMEORIGIN",
        ),
        (
            r#"{"x_content_type_options": "sniff"}"#,
            "configuration: x_content_type_options: `sniff` means nothing to browsers: take one of nosniff",
        ),
        (
            r#"{"cross_origin_resource_policy": "Same-Site"}"#,
            "configuration: cross_origin_resource_policy: `Same-Site` means nothing to browsers: \
             take one of same-origin, same-site, cross-origin",
        ),
        (
            r#"{"referrer_policy": ""}"#,
            "configuration: referrer_policy: is empty: write `off` to leave the header alone",
        ),
        (
            r#"{"referrer_policy": " same-origin"}"#,
            "configuration: referrer_policy: begins or ends with white space",
        ),
        (
            r#"{"permissions_policy": "camera 'none'"}"#,
            "configuration: permissions_policy: is malformed: write `feature=(), other=(self)`",
        ),
        (
            r#"{"permissions_policy": "camera=()\r\nset-cookie: a=b"}"#,
            "configuration: permissions_policy: holds the byte 0x0d, which no header may carry",
        ),
        (
            r#"{"content_security_policy": "default-src self"}"#,
            "configuration: content_security_policy: `default-src`: `self` needs single quotes, else it names a host",
        ),
        (
            r#"{"content_security_policy": "script-src 'nonce-abc'"}"#,
            "configuration: content_security_policy: `script-src`: \
             a nonce must differ in every answer, so the application has to send it",
        ),
        (
            r#"{"content_security_policy": {"mode": "overwrite"}}"#,
            "configuration: content_security_policy: has no value in this profile: give one",
        ),
        // HSTS.
        (
            r#"{"strict_transport_security": "includeSubDomains"}"#,
            HSTS_MALFORMED,
        ),
        (
            r#"{"strict_transport_security": "max-age=1y"}"#,
            HSTS_MALFORMED,
        ),
        (
            r#"{"strict_transport_security": "max-age=1; max-age=1"}"#,
            HSTS_MALFORMED,
        ),
        (
            r#"{"strict_transport_security": "max-age=1; includeSubdomain"}"#,
            HSTS_MALFORMED,
        ),
        (
            r#"{"strict_transport_security": "max-age=31535999; includeSubDomains; preload"}"#,
            HSTS_PRELOAD,
        ),
        (
            r#"{"strict_transport_security": "max-age=31536000; preload"}"#,
            HSTS_PRELOAD,
        ),
        (
            r#"{"strict_transport_security": "max-age=0"}"#,
            "configuration: strict_transport_security: \
             max-age=0 tells browsers to forget the site: it needs `mode: overwrite`",
        ),
        // Headers of the operator's own.
        (
            r#"{"headers": {"x y": "a"}}"#,
            "configuration: headers.x y: `x y` is not a header name",
        ),
        (
            r#"{"headers": {"": "a"}}"#,
            "configuration: headers.: `` is not a header name",
        ),
        (
            r#"{"headers": {":status": "200"}}"#,
            "configuration: headers.:status: `:status` is not a header name",
        ),
        (
            r#"{"headers": {"Content-Length": "0"}}"#,
            "configuration: headers.Content-Length: `content-length` belongs to the proxy, which frames the answer by it",
        ),
        (
            r#"{"headers": {"X-Frame-Options": "DENY"}}"#,
            "configuration: headers.X-Frame-Options: has a key of its own: write `x_frame_options`",
        ),
        (
            r#"{"headers": {"X-A": "1", "x-a": "2"}}"#,
            "configuration: headers.x-a: comes twice",
        ),
        (
            r#"{"headers": {"x-a": {}}}"#,
            "configuration: headers.x-a: has no value",
        ),
        (
            r#"{"headers": {"x-a": "off"}}"#,
            "configuration: headers.x-a: to send the word, write `{value: off}`",
        ),
        (
            r#"{"headers": {"x-a": "é"}}"#,
            "configuration: headers.x-a: holds the byte 0xc3, which no header may carry",
        ),
        (
            r#"{"headers": {"Server": "edge"}}"#,
            "configuration: headers.Server: an upstream's value would leak: write `mode: overwrite`, or `keep` it",
        ),
        // Removing and keeping.
        (
            r#"{"remove": ["a b"]}"#,
            "configuration: remove[0]: `a b` is not a header name",
        ),
        (
            r#"{"remove": ["x-a", "Transfer-Encoding"]}"#,
            "configuration: remove[1]: `transfer-encoding` belongs to the proxy, which frames the answer by it",
        ),
        (
            r#"{"remove": ["X-Frame-Options"]}"#,
            "configuration: remove[0]: `x-frame-options` protects: write its own key, with `mode: overwrite`, or `off`",
        ),
        (
            r#"{"headers": {"x-a": "1"}, "remove": ["X-A"]}"#,
            "configuration: remove[0]: `x-a` is in `headers` too",
        ),
        (
            r#"{"remove": ["server"], "keep": ["Server"]}"#,
            "configuration: keep[0]: is in `remove` too",
        ),
        (
            r#"{"keep": ["servers"]}"#,
            "configuration: keep[0]: is not among the headers that this profile removes",
        ),
        (
            r#"{"profile": "hsts", "keep": ["server"]}"#,
            "configuration: keep[0]: is not among the headers that this profile removes",
        ),
        (
            r#"{"keep": ["server", "server"]}"#,
            "configuration: keep[1]: is not among the headers that this profile removes",
        ),
    ] {
        check(configuration, message);
    }
}

#[test]
fn every_bound_is_obeyed_and_refused_beyond() {
    let headers = |count: usize| {
        let headers: Vec<String> = (0..count).map(|at| format!("\"x-{at}\": \"1\"")).collect();
        format!("{{\"headers\": {{{}}}}}", headers.join(","))
    };
    check(&headers(32), "");
    check(
        &headers(33),
        "configuration: headers: has more than 32 headers",
    );

    let removes = |count: usize| {
        let names: Vec<String> = (0..count).map(|at| format!("\"x-{at}\"")).collect();
        format!("{{\"remove\": [{}]}}", names.join(","))
    };
    check(&removes(512), "");
    check(
        &removes(513),
        "configuration: remove: has more than 512 names",
    );

    let name = |length: usize| format!("{{\"remove\": [\"{}\"]}}", "a".repeat(length));
    check(&name(128), "");
    check(
        &name(129),
        "configuration: remove[0]: is longer than 128 bytes",
    );

    let value = |length: usize| format!("{{\"headers\": {{\"x-a\": \"{}\"}}}}", "a".repeat(length));
    check(&value(4096), "");
    check(
        &value(4097),
        "configuration: headers.x-a: is longer than 4096 bytes",
    );
}

const UNKNOWN_KEY: &str = "configuration: hsts: unknown field `hsts`, expected one of `profile`, `strict_transport_security`, \
    `x_content_type_options`, `x_frame_options`, `referrer_policy`, `permissions_policy`, \
    `x_permitted_cross_domain_policies`, `content_security_policy`, `cross_origin_opener_policy`, \
    `cross_origin_embedder_policy`, `cross_origin_resource_policy`, `headers`, `remove`, `keep`";

const HSTS_MALFORMED: &str = "configuration: strict_transport_security: is malformed: \
    write `max-age=SECONDS`, then `; includeSubDomains` and `; preload` as wanted";

const HSTS_PRELOAD: &str = "configuration: strict_transport_security: \
    `preload` needs `includeSubDomains` and a max-age of at least 31536000";
