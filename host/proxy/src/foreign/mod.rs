//! Foreign functions that plugins may call, in Envoy's protobuf shapes (source/extensions/common/wasm/foreign.cc, `ext/*.proto`) and with its
//! answers: signatures on aws-lc-rs, zlib on flate2. Those that concern an exchange are the runtime's own.

mod compression;
mod sign;
mod verify;

use portcullis_runtime::Status;

use verify::Verifier;

/// One worker's foreign functions and the keys they have parsed.
#[derive(Default)]
pub struct ForeignFunctions {
    verifier: Verifier,
}

impl ForeignFunctions {
    /// Calls one. `NotFound` where there is none of that name.
    pub fn call(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        match name {
            "verify_signature" => self.verifier.verify_signature(arguments),
            "sign" => sign::sign(arguments),
            "compress" => compression::compress(arguments),
            "uncompress" => compression::uncompress(arguments),
            // CEL's three as well: the runtime's `hostcalls/foreign.rs` says why.
            _ => Err(Status::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_called_by_name() {
        let functions = ForeignFunctions::default();
        let rows = [
            ("verify_signature", Err(Status::BadArgument)),
            ("sign", Err(Status::BadArgument)),
            ("compress", Ok(())),
            ("uncompress", Err(Status::SerializationFailure)),
            ("expr_create", Err(Status::NotFound)),
            ("", Err(Status::NotFound)),
        ];
        for (name, expected) in rows {
            assert_eq!(functions.call(name, b"").map(|_| ()), expected, "{name}");
        }
    }
}
