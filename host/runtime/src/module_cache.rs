//! Compiled code kept between runs.
//!
//! The only `unsafe` of the crate stands here: bytes from the embedder's cache are handed to wasmtime.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;

/// Where compiled code may be kept between runs. The embedder does the files: readable and writable by its own user alone, since
/// compiled code is trusted. The runtime checks what it reads for damage, and compiles again where there is any.
pub trait ModuleCache {
    /// What was written under `key`. A key is file-name safe: the module's SHA-256 and a hash of the engine.
    fn read(&self, key: &str) -> Option<Vec<u8>>;
    /// Keeps `compiled`. Failures are the embedder's to log.
    fn write(&self, key: &str, compiled: &[u8]);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl ModuleCache for NoCache {
    fn read(&self, _key: &str) -> Option<Vec<u8>> {
        None
    }

    fn write(&self, _key: &str, _compiled: &[u8]) {}
}

/// The module in `wasm`, whose SHA-256 is `digest`: from the cache, or compiled and put there.
pub(crate) fn compiled(
    engine: &Engine,
    wasm: &[u8],
    digest: &str,
    cache: &dyn ModuleCache,
) -> wasmtime::Result<wasmtime::Module> {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let key = format!("{digest}-{:016x}", hasher.finish());
    if let Some(entry) = cache.read(&key) {
        if let Some(module) = unseal(&entry).and_then(|compiled| deserialize(engine, compiled)) {
            return Ok(module);
        }
        tracing::warn!(key, "damaged entry in the module cache, compiling again");
    }
    let module = wasmtime::Module::new(engine, wasm)?;
    match module.serialize() {
        Ok(compiled) => cache.write(&key, &seal(&compiled)),
        Err(error) => tracing::warn!(%error, "compiled module cannot be serialized"),
    }
    Ok(module)
}

fn deserialize(engine: &Engine, compiled: &[u8]) -> Option<wasmtime::Module> {
    // SAFETY: `deserialize` asks for bytes that `Module::serialize` made. These were made by it, in `compiled` above, are whole (their
    // digest was checked by `unseal`), are of this very wasmtime and configuration (the key holds the engine's compatibility hash, and
    // wasmtime checks it again), and come from a place that only the embedder's user may write (the contract of `ModuleCache`).
    #[expect(
        unsafe_code,
        reason = "loading compiled code is what the module cache is for; see the safety comment"
    )]
    let module = unsafe { wasmtime::Module::deserialize(engine, compiled) };
    module
        .inspect_err(|error| tracing::warn!(%error, "compiled module refused"))
        .ok()
}

/// The digest of `compiled`, then `compiled`.
fn seal(compiled: &[u8]) -> Vec<u8> {
    let mut sealed = Sha256::digest(compiled).to_vec();
    sealed.extend_from_slice(compiled);
    sealed
}

fn unseal(entry: &[u8]) -> Option<&[u8]> {
    let (digest, compiled) = entry.split_first_chunk::<32>()?;
    (Sha256::digest(compiled)[..] == digest[..]).then_some(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_entry_is_whole_or_nothing() {
        let sealed = seal(b"code");
        assert_eq!(unseal(&sealed), Some(&b"code"[..]));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(unseal(&damaged), None, "byte {at}");
        }
        assert_eq!(unseal(&sealed[..31]), None);
    }
}
