//! cases.yaml, natively: no Wasm, no sockets.

use my_control::MyControl;
use portcullis_sdk::testing;

#[test]
fn cases() {
    testing::check::<MyControl>("cases.yaml");
}
