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
            "configuration: invalid value: string \"1.1\", expected minimum_version \"1.2\" or \"1.3\"",
        ),
        (
            r#"{"minimum_version": 1.1}"#,
            "configuration: invalid value: floating point `1.1`, expected minimum_version \"1.2\" or \"1.3\"",
        ),
        (
            r#"{"minimum_version": "TLSv1.4"}"#,
            "configuration: invalid value: string \"TLSv1.4\", expected minimum_version \"1.2\" or \"1.3\"",
        ),
        (
            r#"{"minimum_version": 1}"#,
            "configuration: invalid type: integer `1`, expected minimum_version \"1.2\" or \"1.3\"",
        ),
        (
            r#"{"minimum_version": null}"#,
            "configuration: invalid type: null, expected minimum_version \"1.2\" or \"1.3\"",
        ),
        (
            r#"{"minimum": "1.2"}"#,
            "configuration: unknown field `minimum`, expected one of `minimum_version`, `redirect_plaintext`, `redirect_port`",
        ),
        (
            r#"{"redirect_plaintext": "yes"}"#,
            "configuration: invalid type: string \"yes\", expected a boolean",
        ),
        (
            r#"{"redirect_plaintext": true, "redirect_port": 0}"#,
            "configuration: redirect_port: must be above 0",
        ),
        (
            r#"{"redirect_plaintext": true, "redirect_port": 65536}"#,
            "configuration: invalid value: integer `65536`, expected u16",
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
