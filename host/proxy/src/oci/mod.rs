//! Modules as OCI images: pulled by digest for a policy, pushed by `portcullis push`.
//!
//! Trust comes from the digest alone: it names the manifest (or an index, which names it), the manifest names the layer, and all are checked wherever
//! they come from, registry or cache. What has been pulled is kept in the module cache and, for as long as the process runs, in memory, so that neither a
//! restart nor a reload asks a registry again; the files of modules in use are never evicted. A pull runs on a thread of its own; a proxy that reloads
//! goes on serving meanwhile.
//!
//! The client is our own on hyper and rustls, which are here anyway: the crate `oci-client` reads manifests, tokens and errors without a bound, so a
//! registry could fill the memory of a proxy that reloads.

mod challenge;
mod connection;
mod credentials;
mod image;
mod reference;
mod registry;
mod tunnel;
mod url;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::digest::digest;
use crate::limits::{PULLED_BYTES_HELD, REGISTRY_PULL_TIMEOUT, REGISTRY_PUSH_TIMEOUT};
use crate::module_cache::{DiskCache, Kept};

pub(crate) use image::Image;
pub use reference::ImageReference;
pub(crate) use reference::SCHEME;
use registry::Registry;

/// Modules by the digest of their images' manifests, the newest last.
static HELD: Mutex<Vec<(String, Bytes)>> = Mutex::new(Vec::new());

/// A module, and the files that it came from: they stay in the cache for as long as anybody has its bytes, a policy that runs, say.
struct Pulled {
    module: Vec<u8>,
    _files: Vec<Option<Kept>>,
}

impl AsRef<[u8]> for Pulled {
    fn as_ref(&self) -> &[u8] {
        &self.module
    }
}

/// The module of an image with a digest: held, cached, or pulled. The reason names what the registry said.
pub(crate) fn module(image: &ImageReference, module_bytes_max: u64) -> Result<Bytes, String> {
    let pinned = image.digest().ok_or("a digest is needed")?;
    if let Some(bytes) = held(pinned) {
        return Ok(bytes);
    }
    let cache = DiskCache::of_user();
    let module = match cached(&cache, pinned, module_bytes_max) {
        Some(module) => module,
        None => {
            tracing::info!(%image, "pulling");
            pull(image, pinned, &cache, module_bytes_max)?
        }
    };
    let module = Bytes::from_owner(module);
    hold(pinned, &module);
    Ok(module)
}

/// The digest (hex) of what the reference's tag, or `latest`, names now.
pub(crate) fn resolve(image: &ImageReference) -> Result<String, String> {
    blocking(REGISTRY_PULL_TIMEOUT, async {
        let mut registry = Registry::open(image, "pull").await?;
        let tag = image.tag().unwrap_or("latest");
        let (_, digest) = registry.manifest(tag).await?;
        Ok(digest)
    })
}

/// Puts an image into a registry under the reference's tag.
pub(crate) fn push(image: &Image, to: &ImageReference) -> Result<(), String> {
    let tag = to.tag().ok_or("a tag is needed")?;
    blocking(REGISTRY_PUSH_TIMEOUT, async {
        let mut registry = Registry::open(to, "pull,push").await?;
        registry.put(image, tag).await
    })
}

fn pull(
    image: &ImageReference,
    pinned: &str,
    cache: &DiskCache,
    module_bytes_max: u64,
) -> Result<Pulled, String> {
    let (manifests, descriptor, layer) = blocking(REGISTRY_PULL_TIMEOUT, async {
        let mut registry = Registry::open(image, "pull").await?;
        let (manifest, digest) = registry.manifest(&format!("sha256:{pinned}")).await?;
        let inner = image::in_index(&manifest)?;
        let mut manifests = vec![(digest, manifest)];
        if let Some(inner) = inner {
            let name = format!("sha256:{}", inner.sha256()?);
            let (manifest, digest) = registry.manifest(&name).await?;
            image::no_index(&manifest)?;
            manifests.push((digest, manifest));
        }
        let innermost = manifests.last().map_or(&[][..], |(_, manifest)| manifest);
        let descriptor = image::module_layer(innermost, module_bytes_max)?;
        let layer = registry.blob(&descriptor).await?;
        Ok((manifests, descriptor, layer))
    })?;
    let mut files: Vec<_> = manifests
        .iter()
        .map(|(digest, manifest)| cache.keep_blob(digest, manifest))
        .collect();
    files.push(cache.keep_blob(descriptor.sha256()?, &layer));
    Ok(Pulled {
        module: image::module_in(&descriptor, layer, module_bytes_max)?,
        _files: files,
    })
}

/// From the cache, if all of it is there and is what its digests say.
fn cached(cache: &DiskCache, pinned: &str, module_bytes_max: u64) -> Option<Pulled> {
    let read = |sha256: &str| {
        let found = cache.blob(sha256);
        found.filter(|(bytes, _)| digest(bytes) == sha256)
    };
    let (mut manifest, file) = read(pinned)?;
    let mut files = vec![file];
    if let Some(inner) = image::in_index(&manifest).ok()? {
        let (found, file) = read(inner.sha256().ok()?)?;
        image::no_index(&found).ok()?;
        manifest = found;
        files.push(file);
    }
    let descriptor = image::module_layer(&manifest, module_bytes_max).ok()?;
    let (layer, file) = read(descriptor.sha256().ok()?)?;
    files.push(file);
    Some(Pulled {
        module: image::module_in(&descriptor, layer, module_bytes_max).ok()?,
        _files: files,
    })
}

fn held(digest: &str) -> Option<Bytes> {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let found = held.iter().find(|(known, _)| known == digest);
    found.map(|(_, bytes)| bytes.clone())
}

fn hold(digest: &str, module: &Bytes) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|(known, _)| known != digest);
    held.push((digest.to_owned(), module.clone()));
    let bytes = |held: &[(String, Bytes)]| held.iter().map(|(_, it)| it.len()).sum::<usize>();
    while held.len() > 1 && bytes(&held) > PULLED_BYTES_HELD {
        held.remove(0);
    }
}

/// Runs on a thread of its own, so that it may be called from anywhere, and for so long at most.
fn blocking<T: Send>(
    longest: Duration,
    work: impl Future<Output = Result<T, String>> + Send,
) -> Result<T, String> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot ask a registry: {error}"))?;
        let done = runtime.block_on(async { tokio::time::timeout(longest, work).await });
        // A look-up of a name that hangs is not waited for.
        runtime.shutdown_background();
        done.unwrap_or_else(|_| Err(format!("the registry takes longer than {longest:?}")))
    };
    std::thread::scope(|scope| {
        let joined = scope.spawn(run).join();
        joined.unwrap_or_else(|_| Err("the registry could not be asked".into()))
    })
}
