//! Guests by the language and the kit that they are written with: each is loaded by both hosts and asked something. The table in
//! `docs/compatibility.md` is made of this list: whoever adds a guest adds a line here.

use anyhow::Result;
use portcullis_tests::golang;
use portcullis_tests::http1::{Answer, Request};
use serde_json::{Value, json};

use super::probe;
use crate::hostile;

/// What a guest is to do with a request that it is asked.
pub(crate) struct Language {
    /// Its filter's and its route's name.
    pub(crate) name: &'static str,
    pub(crate) language: &'static str,
    /// The kit, or how it is built.
    pub(crate) kit: &'static str,
    /// From the root of the repository.
    pub(crate) source: &'static str,
    pub(crate) configuration: fn() -> Value,
    /// What a policy names as its module; a path, or a builtin. `folder` is for what is made for it.
    pub(crate) module: fn(folder: &std::path::Path) -> Result<Value>,
    /// Why it is left out, if the person who runs the tests said so.
    pub(crate) left_out: fn() -> Option<&'static str>,
    /// What it is asked, and whether the answer is right.
    pub(crate) ask: fn(Request) -> Request,
    pub(crate) is_right: fn(&Answer) -> bool,
}

fn never() -> Option<&'static str> {
    None
}

pub(crate) const LANGUAGES: &[Language] = &[
    Language {
        name: "in-rust",
        language: "Rust",
        kit: "portcullis-sdk on the proxy-wasm crate 0.2, wasm32-wasip1",
        source: "plugins/security-headers",
        configuration: || Value::Null,
        module: |_| Ok(json!("builtin:security-headers")),
        left_out: never,
        ask: |request| request,
        is_right: |answer| answer.header("x-content-type-options").as_deref() == Some("nosniff"),
    },
    Language {
        name: "in-bare-rust",
        language: "Rust",
        kit: "no kit: rustc alone, wasm32-wasip1",
        source: "tests/guests/probe",
        configuration: || Value::Null,
        module: |_| Ok(json!(probe::module()?)),
        left_out: never,
        ask: |request| {
            request.header(
                "x-in-bare-rust",
                "request_headers: send_local_response 203 '' 'bare' '' -1",
            )
        },
        is_right: |answer| answer.status == 203 && answer.text() == "bare",
    },
    Language {
        name: "in-go",
        language: "Go",
        kit: "Go 1.27, no kit: GOOS=wasip1 -buildmode=c-shared",
        source: "tests/guests/go",
        configuration: || json!({"greeting": "salve"}),
        module: |_| Ok(json!(golang::guest()?)),
        left_out: golang::left_out,
        ask: |request| request.header("x-name", "marcus"),
        is_right: |answer| answer.header("x-greeting").as_deref() == Some("salve marcus"),
    },
    Language {
        name: "in-wat",
        language: "WebAssembly text",
        kit: "no kit: wat",
        source: "tests/guests/innocent.wat",
        configuration: || Value::Null,
        module: |folder| {
            let path = folder.join("innocent.wasm");
            std::fs::write(&path, hostile::guest("", "")?)?;
            Ok(json!(path))
        },
        left_out: never,
        ask: |request| request,
        is_right: |answer| answer.status == 200,
    },
];
