//! The built-in controls as Wasm modules, carried as bytes, so that a program needs no files beside it.
//!
//! The build script builds and finishes them (`portcullis-module`); what a module says of itself, in its custom
//! sections, is what [`Builtin`] says here.

/// A built-in control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// As in `builtin:NAME`.
    pub name: &'static str,
    /// Its crate's version.
    pub version: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Whether it authenticates or authorises: then it may not fail open.
    pub authenticates: bool,
    /// The callbacks that it implements, as hosts call them.
    pub callbacks: &'static [&'static str],
    /// All that it needs of its host, as a filter's `allow.capabilities` takes it.
    pub capabilities: &'static [&'static str],
    /// The JSON Schema of its configuration, compact.
    pub schema: &'static str,
    /// The module: Proxy-Wasm 0.2.1, for any host.
    pub module: &'static [u8],
}

/// Every built-in control, by name.
pub fn all() -> &'static [Builtin] {
    include!(concat!(env!("OUT_DIR"), "/builtins.rs"))
}

/// The built-in control of this name.
pub fn builtin(name: &str) -> Option<&'static Builtin> {
    all().iter().find(|builtin| builtin.name == name)
}

#[cfg(test)]
mod tests {
    use super::{all, builtin};

    #[test]
    fn every_module_is_wasm_and_found_by_its_name() {
        assert!(!all().is_empty());
        for control in all() {
            assert_eq!(&control.module[..8], b"\0asm\x01\0\0\0", "{}", control.name);
            assert_eq!(builtin(control.name), Some(control));
            assert!(control.schema.starts_with('{'), "{}", control.name);
            assert!(
                !control.summary.is_empty(),
                "{} has no description in its manifest",
                control.name
            );
        }
        assert!(all().is_sorted_by_key(|control| control.name));
        assert_eq!(builtin("no-such-control"), None);
    }
}
