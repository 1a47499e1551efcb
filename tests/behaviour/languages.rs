//! Guests in Rust and in text: each is loaded by both hosts and asked something. Those in other languages stand in `tests/languages.rs`;
//! the table in `docs/compatibility.md` is made of both.

use anyhow::Result;
use portcullis_tests::http1::{Answer, Request};
use serde_json::{Value, json};

use super::probe;
use crate::{example, hostile};

/// What a guest is to do with a request that it is asked.
pub(crate) struct Language {
    /// Its filter's and its route's name.
    pub(crate) name: &'static str,
    pub(crate) language: &'static str,
    /// The kit, or how it is built.
    pub(crate) kit: &'static str,
    /// From the root of the repository.
    pub(crate) source: &'static str,
    /// What a policy names as its module; a path, or a builtin. `folder` is for what is made for it.
    pub(crate) module: fn(folder: &std::path::Path) -> Result<Value>,
    /// What it is asked, and whether the answer is right.
    pub(crate) ask: fn(Request) -> Request,
    pub(crate) is_right: fn(&Answer) -> bool,
}

pub(crate) const LANGUAGES: &[Language] = &[
    Language {
        name: "in-rust",
        language: "Rust",
        kit: "portcullis-sdk, wasm32-wasip1",
        source: "plugins/security-headers",
        module: |_| Ok(json!("builtin:security-headers")),
        ask: |request| request,
        is_right: |answer| answer.header("x-content-type-options").as_deref() == Some("nosniff"),
    },
    Language {
        name: "in-rust-on-the-public-sdk",
        language: "Rust",
        kit: "the crate proxy-wasm 0.2, wasm32-wasip1",
        source: "sdk/examples/public_sdk.rs",
        module: |_| Ok(json!(example::build("portcullis-sdk", "public_sdk")?)),
        ask: |request| request,
        is_right: |answer| {
            answer
                .header("x-public-sdk")
                .is_some_and(|path| path.starts_with('/'))
        },
    },
    Language {
        name: "in-bare-rust",
        language: "Rust",
        kit: "no kit: rustc alone, wasm32-wasip1",
        source: "tests/guests/probe",
        module: |_| Ok(json!(probe::module()?)),
        ask: |request| {
            request.header(
                "x-in-bare-rust",
                "request_headers: send_local_response 203 '' 'bare' '' -1",
            )
        },
        is_right: |answer| answer.status == 203 && answer.text() == "bare",
    },
    Language {
        name: "in-wat",
        language: "WebAssembly text",
        kit: "no kit: wat",
        source: "tests/guests/innocent.wat",
        module: |folder| {
            let path = folder.join("innocent.wasm");
            std::fs::write(&path, hostile::guest("", "")?)?;
            Ok(json!(path))
        },
        ask: |request| request,
        is_right: |answer| answer.status == 200,
    },
];
