//! The cases, natively.

use portcullis_sdk::testing;
use security_headers::SecurityHeaders;

#[test]
fn cases() {
    testing::check::<SecurityHeaders>("cases.yaml");
}
