//! Compiled modules on disk: `$XDG_CACHE_HOME/portcullis` or `~/.cache/portcullis`, one file a module and engine.
//!
//! Loading compiled code trusts it wholly, so a file counts only if it and its folder belong to this user and nobody else may write them.
//! Writing is atomic (a temporary file, then a rename). Whatever fails here costs a compilation and nothing else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use portcullis_runtime::ModuleCache;

use crate::limits::MODULE_CACHE_BYTES_MAX;

/// The folder, or none where there is no home or it cannot be trusted.
#[derive(Debug)]
pub struct DiskCache {
    folder: Option<PathBuf>,
}

impl DiskCache {
    /// The cache of the user who runs this process.
    #[must_use]
    pub fn of_user() -> Self {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base =
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        match base {
            Some(base) => Self::at(&base.join("portcullis")),
            None => Self { folder: None },
        }
    }

    /// A cache in `folder`, which is made if it is not there.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        let folder = match made {
            Ok(()) if is_ours(folder) => Some(folder.to_owned()),
            Ok(()) => {
                tracing::warn!(folder = %folder.display(), "module cache is not used: others may write to it");
                None
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "module cache is not used");
                None
            }
        };
        Self { folder }
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        let plain = !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        let folder = self.folder.as_ref().filter(|_| plain)?;
        Some(folder.join(format!("{key}.cwasm")))
    }

    fn store(&self, file: &Path, compiled: &[u8]) -> std::io::Result<()> {
        let temporary =
            file.with_extension(format!("{}.{:016x}", std::process::id(), fastrand::u64(..)));
        let write = || {
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            out.write_all(compiled)?;
            // Not synced: a file cut short by a crash fails wasmtime's own check of its header and sections, and is compiled again.
            fs::rename(&temporary, file)
        };
        let written = write();
        if written.is_err() {
            fs::remove_file(&temporary).ok();
        }
        written
    }
}

impl ModuleCache for DiskCache {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        let file = self.file(key)?;
        let metadata = fs::symlink_metadata(&file).ok()?;
        if !metadata.is_file() || metadata.len() > MODULE_CACHE_BYTES_MAX || !is_ours(&file) {
            return None;
        }
        fs::read(&file).ok()
    }

    fn write(&self, key: &str, compiled: &[u8]) {
        let Some(file) = self.file(key) else { return };
        if let Err(error) = self.store(&file, compiled) {
            tracing::warn!(file = %file.display(), %error, "compiled module is not kept");
        }
    }
}

/// Whether `path` is this user's (or root's) and only its owner may write it. A symbolic link is judged by itself.
fn is_ours(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let owner = metadata.uid();
    let ours = owner == rustix::process::geteuid().as_raw() || owner == 0;
    ours && !metadata.is_symlink() && metadata.permissions().mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_nobody_else_can_write_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::at(&folder.path().join("cache"));
        let key = "0123abcd-engine";
        assert_eq!(cache.read(key), None);
        cache.write(key, b"compiled");
        assert_eq!(cache.read(key).as_deref(), Some(&b"compiled"[..]));

        let file = cache.file(key).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(cache.read(key), None, "group may write");
        fs::remove_file(&file).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, b"planted").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(cache.read(key), None, "a link");
        assert_eq!(cache.read("../elsewhere"), None, "a key that leads out");
    }

    #[test]
    fn a_folder_that_others_can_write_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let cache = DiskCache::at(folder.path());
        cache.write("key", b"compiled");
        assert_eq!(cache.read("key"), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
