//! Why a module cannot be finished or read.

/// What is wrong with a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// It is no WebAssembly module, or a broken one.
    #[error("no WebAssembly module: {0}")]
    Malformed(String),
    /// It has no section `portcullis`.
    #[error(
        "no control in it (no section `portcullis`): the crate wants one `portcullis_sdk::export!(MyControl);`"
    )]
    NotExported,
    /// Its section `portcullis` cannot be read.
    #[error("its section `portcullis` {0}")]
    Section(String),
    /// Functions have no names.
    #[error(
        "its functions have no names, by which panics are found: build it with `strip = \"debuginfo\"` at most"
    )]
    Nameless,
    /// It uses standard output or error.
    #[error(
        "it prints: a control logs through the SDK (look for `println!`, `eprintln!` and `dbg!`)"
    )]
    Prints,
    /// The schema of its configuration cannot be made.
    #[error("the schema of its configuration cannot be made: {0}")]
    Schema(String),
}
