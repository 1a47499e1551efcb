//! A filter that leaves properties for the filter behind it, as an earlier control would: a tiny guest, written
//! anew for each case, that sets the properties of the step that the request header [`STEP`] names, and removes
//! that header.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;

/// The header that says which step's properties to set: one letter, `A` for the first.
pub(crate) const STEP: &str = "x-case-step";

/// The value of [`STEP`] for a step.
pub(crate) fn letter(step: usize) -> u8 {
    b'A' + u8::try_from(step).unwrap_or(b'z' - b'A')
}

/// The module for a case whose steps have these properties.
pub(crate) fn module(steps: &[&BTreeMap<String, String>]) -> Result<Vec<u8>> {
    let mut data = String::new();
    let mut calls = String::new();
    // The first bytes hold the header's name, and what the host writes as results.
    let mut at = 64;
    let mut place = |text: &str| -> Result<(usize, usize)> {
        let bytes: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        writeln!(data, "  (data (i32.const {at}) \"{bytes}\")")?;
        let start = at;
        at += text.len();
        Ok((start, text.len()))
    };
    for (index, properties) in steps.iter().enumerate() {
        writeln!(
            calls,
            "    (if (i32.eq (local.get $step) (i32.const {})) (then",
            letter(index)
        )?;
        for (name, value) in *properties {
            let (name_at, name_size) = place(name)?;
            let (value_at, value_size) = place(value)?;
            writeln!(
                calls,
                "      (drop (call $set_property (i32.const {name_at}) (i32.const {name_size}) \
                 (i32.const {value_at}) (i32.const {value_size})))"
            )?;
        }
        writeln!(calls, "    ))")?;
    }
    let name_size = STEP.len();
    Ok(wat::parse_str(format!(
        r#"(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "{STEP}")
{data}
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $step i32)
    (if (call $get (i32.const 0) (i32.const 16) (i32.const {name_size}) (i32.const 0) (i32.const 4))
      (then (return (i32.const 0))))
    (local.set $step (i32.load8_u (i32.load (i32.const 0))))
    (drop (call $remove (i32.const 0) (i32.const 16) (i32.const {name_size})))
{calls}
    (i32.const 0)))
"#
    ))?)
}
