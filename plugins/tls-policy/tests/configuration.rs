//! What is refused in a configuration, and with which words.

use std::time::SystemTime;

use portcullis_sdk::testing::Harness;
use tls_policy::TlsPolicy;

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (configuration, message) in [
        ("", ""),
        ("{}", ""),
        (r#"{"minimum_version": "1.2"}"#, ""),
        (r#"{"minimum_version": 1.3}"#, ""),
        (r#"{"redirect_plaintext": true, "redirect_port": 8443}"#, ""),
        (
            r#"{"redirect_plaintext": true, "redirect_port": 65535}"#,
            "",
        ),
        (
            r#"{"minimum_version": "1.1"}"#,
            "configuration: minimum_version: must be \"1.2\" or \"1.3\": RFC 8996 forbids what is older",
        ),
        (
            r#"{"minimum_version": 1.1}"#,
            "configuration: minimum_version: must be \"1.2\" or \"1.3\": RFC 8996 forbids what is older",
        ),
        (
            r#"{"minimum_version": "TLSv1.4"}"#,
            "configuration: minimum_version: must be \"1.2\" or \"1.3\": RFC 8996 forbids what is older",
        ),
        (
            r#"{"minimum_version": 1}"#,
            "configuration: minimum_version: expected \"1.2\" or \"1.3\", found an integer",
        ),
        (
            r#"{"minimum_version": null}"#,
            "configuration: minimum_version: expected \"1.2\" or \"1.3\", found null",
        ),
        (
            r#"{"minimum": "1.2"}"#,
            "configuration: minimum: unknown field `minimum`, expected one of `minimum_version`, `redirect_plaintext`, `redirect_port`",
        ),
        (
            r#"{"redirect_plaintext": "yes"}"#,
            "configuration: redirect_plaintext: expected a boolean, found a text",
        ),
        (
            r#"{"redirect_plaintext": true, "redirect_port": 0}"#,
            "configuration: redirect_port: must be above 0",
        ),
        (
            r#"{"redirect_plaintext": true, "redirect_port": 65536}"#,
            "configuration: redirect_port: expected u16, found 65536",
        ),
        (
            r#"{"redirect_port": 8443}"#,
            "configuration: redirect_port: has no effect without `redirect_plaintext`",
        ),
    ] {
        let mut harness = Harness::<TlsPolicy>::new(SystemTime::UNIX_EPOCH);
        let refused = harness.configure(configuration).err().unwrap_or_default();
        assert_eq!(refused, message, "{configuration}");
    }
}
