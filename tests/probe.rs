//! A guest that asks the host what a test tells it to, generated as WAT: the same questions in Portcullis and in Envoy.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

/// One hostcall. What it gives is written to address 8, since 0 would be null.
pub(crate) enum Ask<'a> {
    /// `proxy_call_foreign_function`.
    Foreign(&'a str, &'a [u8]),
    /// `proxy_get_property`; segments are joined by NUL.
    Property(&'a str),
    /// `proxy_set_property`.
    SetProperty(&'a str, &'a str),
    /// `proxy_replace_header_map_value` of a request header.
    SetHeader(&'a str, &'a str),
}

/// What a request with the header [`STEP`] makes the guest do.
pub(crate) struct Step<'a> {
    /// In this order.
    pub(crate) asks: Vec<Ask<'a>>,
    /// Whether the request goes on; otherwise what was answered is sent back as its body ([`answers`]).
    pub(crate) goes_on: bool,
}

/// The header that names the step: one letter, `A` for the first.
pub(crate) const STEP: &str = "x-step";

/// The value of [`STEP`] for a step.
pub(crate) fn letter(step: usize) -> char {
    char::from(b'A'.saturating_add(u8::try_from(step).unwrap_or_default()))
}

/// A status, and what came with it.
pub(crate) type Told = (u8, Vec<u8>);

/// What the guest sent back.
pub(crate) fn answers(mut body: &[u8]) -> Result<Vec<Told>> {
    let mut answers = Vec::new();
    while let Some((status, rest)) = body.split_first() {
        let (len, rest) = rest.split_first_chunk::<4>().context("cut short")?;
        let len = usize::try_from(u32::from_le_bytes(*len))?;
        let (bytes, rest) = rest.split_at_checked(len).context("cut short")?;
        answers.push((*status, bytes.to_vec()));
        body = rest;
    }
    Ok(answers)
}

/// The module: asks `configuring` when it is configured (their answers come first in each body), and a step's asks per request.
pub(crate) fn module(configuring: &[Ask<'_>], steps: &[Step<'_>]) -> Result<Vec<u8>> {
    let mut data = Data {
        text: String::new(),
        at: 64,
    };
    let name = data.place(STEP.as_bytes())?;
    let mut configure = String::new();
    for ask in configuring {
        configure += &data.call(ask)?;
    }
    let mut branches = String::new();
    for (index, step) in steps.iter().enumerate() {
        let mut calls = String::new();
        for ask in &step.asks {
            calls += &data.call(ask)?;
        }
        let end = if step.goes_on {
            "(return (i32.const 0))"
        } else {
            "(call $answer) (return (i32.const 1))"
        };
        let letter = u32::from(letter(index));
        writeln!(
            branches,
            "(if (i32.eq (local.get $step) (i32.const {letter})) (then {calls} {end}))"
        )?;
    }
    let Data { text, .. } = data;
    Ok(wat::parse_str(format!(
        r#"(module
  (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 64)
{text}
  (global $kept (mut i32) (i32.const 131072))
  (global $end (mut i32) (i32.const 131072))
  (global $heap (mut i32) (i32.const 1048576))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $len i32) (result i32)
    (global.get $heap)
    (global.set $heap (i32.add (global.get $heap) (local.get $len))))
  (func $clear (i64.store (i32.const 8) (i64.const 0)))
  (func $told (param $status i32) (local $len i32)
    (local.set $len (i32.load (i32.const 12)))
    (i32.store8 (global.get $end) (local.get $status))
    (i32.store offset=1 (global.get $end) (local.get $len))
    (memory.copy (i32.add (global.get $end) (i32.const 5)) (i32.load (i32.const 8)) (local.get $len))
    (global.set $end (i32.add (global.get $end) (i32.add (i32.const 5) (local.get $len)))))
  (func $answer
    (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0)
      (i32.const 131072) (i32.sub (global.get $end) (i32.const 131072)) (i32.const 0) (i32.const 0) (i32.const -1))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    {configure}
    (global.set $kept (global.get $end))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $step i32)
    (global.set $end (global.get $kept))
    (global.set $heap (i32.const 1048576))
    (if (call $header (i32.const 0) {name} (i32.const 8) (i32.const 12))
      (then (return (i32.const 0))))
    (local.set $step (i32.load8_u (i32.load (i32.const 8))))
{branches}
    (i32.const 0)))"#
    ))?)
}

/// Data segments, and what is written so far.
struct Data {
    text: String,
    at: usize,
}

impl Data {
    /// Places bytes and returns their address and length as two operands.
    fn place(&mut self, bytes: &[u8]) -> Result<String> {
        let escaped: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
        writeln!(self.text, "  (data (i32.const {}) \"{escaped}\")", self.at)?;
        let place = format!("(i32.const {}) (i32.const {})", self.at, bytes.len());
        self.at += bytes.len();
        Ok(place)
    }

    fn call(&mut self, ask: &Ask<'_>) -> Result<String> {
        let (call, results) = match ask {
            Ask::Foreign(name, arguments) => (
                format!(
                    "$foreign {} {}",
                    self.place(name.as_bytes())?,
                    self.place(arguments)?
                ),
                true,
            ),
            Ask::Property(path) => (format!("$property {}", self.place(path.as_bytes())?), true),
            Ask::SetProperty(path, value) => (
                format!(
                    "$set_property {} {}",
                    self.place(path.as_bytes())?,
                    self.place(value.as_bytes())?
                ),
                false,
            ),
            Ask::SetHeader(name, value) => (
                format!(
                    "$set_header (i32.const 0) {} {}",
                    self.place(name.as_bytes())?,
                    self.place(value.as_bytes())?
                ),
                false,
            ),
        };
        let results = if results {
            "(i32.const 8) (i32.const 12)"
        } else {
            ""
        };
        Ok(format!(
            "(call $clear) (call $told (call {call} {results}))\n"
        ))
    }
}
