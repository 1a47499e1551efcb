//! The cases, natively.

use portcullis_sdk::testing;
use tls_policy::TlsPolicy;

#[test]
fn cases() {
    testing::check::<TlsPolicy>("cases.yaml");
}
