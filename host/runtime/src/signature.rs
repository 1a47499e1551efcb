//! The signatures under which the ABI's callbacks must be exported.

use wasmtime::{FuncType, ValType};

use crate::abi::AbiVersion;

/// Known exports and their signatures, as letters: `i` is i32; what follows `>` is the result.
const SIGNATURES: &[(&str, &str)] = &[
    ("_initialize", ">"),
    ("_start", ">"),
    ("main", "ii>i"),
    ("__main_void", ">i"),
    ("malloc", "i>i"),
    ("proxy_on_memory_allocate", "i>i"),
    ("proxy_on_context_create", "ii>"),
    ("proxy_on_vm_start", "ii>i"),
    ("proxy_on_configure", "ii>i"),
    ("proxy_validate_configuration", "ii>i"),
    ("proxy_on_tick", "i>"),
    ("proxy_on_done", "i>i"),
    ("proxy_on_log", "i>"),
    ("proxy_on_delete", "i>"),
    ("proxy_on_request_body", "iii>i"),
    ("proxy_on_request_trailers", "ii>i"),
    ("proxy_on_request_metadata", "ii>i"),
    ("proxy_on_response_body", "iii>i"),
    ("proxy_on_response_trailers", "ii>i"),
    ("proxy_on_response_metadata", "ii>i"),
    ("proxy_on_new_connection", "i>i"),
    ("proxy_on_downstream_data", "iii>i"),
    ("proxy_on_upstream_data", "iii>i"),
    ("proxy_on_downstream_connection_close", "ii>"),
    ("proxy_on_upstream_connection_close", "ii>"),
    ("proxy_on_http_call_response", "iiiii>"),
    ("proxy_on_grpc_receive_initial_metadata", "iii>"),
    ("proxy_on_grpc_receive", "iii>"),
    ("proxy_on_grpc_receive_trailing_metadata", "iii>"),
    ("proxy_on_grpc_close", "iii>"),
    ("proxy_on_queue_ready", "ii>"),
    ("proxy_on_redis_call_response", "iiii>"),
];

/// The signature of a known export; `None` for names that are the module's own.
pub(crate) fn expected(name: &str, abi: AbiVersion) -> Option<&'static str> {
    match name {
        // 0.1.0 does not tell the end of the stream.
        "proxy_on_request_headers" | "proxy_on_response_headers" if abi == AbiVersion::V0_1_0 => {
            Some("ii>i")
        }
        "proxy_on_request_headers" | "proxy_on_response_headers" => Some("iii>i"),
        "proxy_on_foreign_function" if abi > AbiVersion::V0_1_0 => Some("iii>"),
        _ => SIGNATURES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, signature)| *signature),
    }
}

/// The names of all callbacks that any ABI version has.
pub(crate) fn callbacks() -> impl Iterator<Item = &'static str> {
    let of_versions = [
        "proxy_on_request_headers",
        "proxy_on_response_headers",
        "proxy_on_foreign_function",
    ];
    SIGNATURES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| name.starts_with("proxy_") && *name != "proxy_on_memory_allocate")
        .chain(of_versions)
}

/// A function's type in letters.
pub(crate) fn found(ty: &FuncType) -> String {
    ty.params()
        .map(letter)
        .chain(['>'])
        .chain(ty.results().map(letter))
        .collect()
}

fn letter(ty: ValType) -> char {
    match ty {
        ValType::I32 => 'i',
        ValType::I64 => 'I',
        ValType::F32 => 'f',
        ValType::F64 => 'F',
        _ => '?',
    }
}

/// `ii>i` as `(i32, i32) -> (i32)`.
pub(crate) fn readable(letters: &str) -> String {
    let list = |letters: &str| {
        let names = letters.chars().map(|letter| match letter {
            'i' => "i32",
            'I' => "i64",
            'f' => "f32",
            'F' => "f64",
            _ => "other",
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let (params, results) = letters.split_once('>').unwrap_or((letters, ""));
    format!("({}) -> ({})", list(params), list(results))
}
