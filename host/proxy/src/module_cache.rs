//! Compiled modules on disk: `$XDG_CACHE_HOME/portcullis` or `~/.cache/portcullis`, one file a module and engine; and what was pulled from registries, one
//! file a blob.
//!
//! Loading compiled code trusts it wholly, so a file counts only if nobody but this user (or root) could have put it there: the file and its
//! folder belong to them and only they may write them, neither is a symbolic link, and no folder above lets others put something else in
//! place. What is checked is what is opened, not a name. Writing is atomic (a temporary file, then a rename). Whatever fails here costs a
//! compilation and nothing else. The folder has a bound: what was used longest ago goes first ([`eviction`]).

mod eviction;

use std::fs::{self, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use portcullis_runtime::ModuleCache;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};

use crate::limits::{MODULE_CACHE_BYTES_MAX, MODULE_CACHE_FOLDER_BYTES_MAX};

pub(crate) use eviction::Kept;

/// The folder, or none where there is no home or it cannot be trusted.
#[derive(Debug)]
pub struct DiskCache {
    folder: Option<PathBuf>,
    bytes_max: u64,
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
            None => Self {
                folder: None,
                bytes_max: 0,
            },
        }
    }

    /// A cache in `folder`, which is made if it is not there.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self::with_room(folder, MODULE_CACHE_FOLDER_BYTES_MAX)
    }

    /// The same with a bound on the bytes of all files together.
    fn with_room(folder: &Path, bytes_max: u64) -> Self {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| error.to_string());
        let folder = match made.and_then(|()| trusted(folder)) {
            Ok(folder) => Some(folder),
            Err(reason) => {
                tracing::warn!(folder = %folder.display(), reason, "module cache is not used");
                None
            }
        };
        Self { folder, bytes_max }
    }

    /// The folder as it is now: it may have been opened to others since.
    fn open(&self) -> Option<File> {
        let folder = self.folder.as_deref()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = File::from(rustix::fs::open(folder, flags, Mode::empty()).ok()?);
        let metadata = opened.metadata().ok()?;
        if let Some(fault) = fault(&Facts::of(&metadata), user()) {
            tracing::warn!(folder = %folder.display(), reason = fault, "module cache is not used");
            return None;
        }
        Some(opened)
    }

    /// A file's bytes; it is in use until what comes with them is dropped, and has been used if that is nothing.
    fn load(&self, name: &str) -> Option<(Vec<u8>, Option<Kept>)> {
        let file = open_in(&self.open()?, name)?;
        let metadata = file.metadata().ok()?;
        if let Some(fault) = fault(&Facts::of(&metadata), user()) {
            tracing::warn!(name, reason = fault, "file of the module cache is not used");
            return None;
        }
        if !metadata.is_file() || metadata.len() > MODULE_CACHE_BYTES_MAX {
            return None;
        }
        let mut bytes = Vec::new();
        (&file)
            .take(MODULE_CACHE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .ok()?;
        Some((bytes, Kept::take(file)))
    }

    /// Writes a file; it is in use until what comes back is dropped. Nothing comes back where there is no folder, or are no locks.
    fn store(&self, name: &str, compiled: &[u8]) -> std::io::Result<Option<Kept>> {
        let Some(folder) = self.open() else {
            return Ok(None);
        };
        let temporary = format!("{name}.{}.{:016x}", std::process::id(), fastrand::u64(..));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let write = || {
            let mode = Mode::RUSR | Mode::WUSR;
            let mut out = File::from(openat(&folder, &temporary, flags, mode)?);
            out.write_all(compiled)?;
            // In use from here on, also for those that make room meanwhile.
            let kept = Kept::take(out);
            // Not synced: a file cut short by a crash fails the runtime's check of its digest, and is compiled again.
            renameat(&folder, &temporary, &folder, name)?;
            Ok(kept)
        };
        let written = write();
        if written.is_err() {
            unlinkat(&folder, &temporary, AtFlags::empty()).ok();
        }
        if let Err(error) = eviction::evict(&folder, self.bytes_max) {
            tracing::warn!(%error, "no room can be made in the module cache");
        }
        written
    }
}

/// A file of the folder, opened for reading: no link, and no pipe that would have to be waited for.
fn open_in(folder: &File, name: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
        .map(File::from)
        .ok()
}

impl DiskCache {
    /// What was kept under this digest (hex), and what keeps it on. It is for the caller to check that it is that.
    pub(crate) fn blob(&self, sha256: &str) -> Option<(Vec<u8>, Option<Kept>)> {
        self.load(&blob_name(sha256)?)
    }

    /// Keeps a blob by its digest (hex), for as long as what comes back is there at least.
    pub(crate) fn keep_blob(&self, sha256: &str, bytes: &[u8]) -> Option<Kept> {
        let name = blob_name(sha256)?;
        let stored = self.store(&name, bytes);
        let warn = |error| tracing::warn!(name, %error, "pulled module is not kept");
        stored.map_err(warn).ok().flatten()
    }

    /// The compiled forms of a module, by its digest (hex), used from now on: they stay for as long as what comes back is there.
    pub(crate) fn compiled_of(&self, sha256: &str) -> Vec<Kept> {
        let Some(folder) = self.open() else {
            return Vec::new();
        };
        let begin = format!("{sha256}-");
        let entries = Dir::read_from(&folder).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let compiled = named.filter(|it| it.starts_with(&begin) && it.ends_with(".cwasm"));
        let kept = |name: String| Kept::take(open_in(&folder, &name)?);
        compiled.filter_map(kept).collect()
    }
}

fn blob_name(sha256: &str) -> Option<String> {
    crate::digest::is_digest(sha256).then(|| format!("sha256-{sha256}.blob"))
}

/// The file's name for a key; `None` where the key could lead out of the folder.
fn file_name(key: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (!key.is_empty() && key.bytes().all(plain)).then(|| format!("{key}.cwasm"))
}

impl ModuleCache for DiskCache {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        let (bytes, _used) = self.load(&file_name(key)?)?;
        Some(bytes)
    }

    fn write(&self, key: &str, compiled: &[u8]) {
        let Some(name) = file_name(key) else { return };
        if let Err(error) = self.store(&name, compiled) {
            tracing::warn!(name, %error, "compiled module is not kept");
        }
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What decides whether a file or folder is to be trusted.
#[derive(Clone, Copy, Debug)]
struct Facts {
    owner: u32,
    mode: u32,
    is_link: bool,
}

impl Facts {
    fn of(metadata: &Metadata) -> Self {
        Self {
            owner: metadata.uid(),
            mode: metadata.mode(),
            is_link: metadata.is_symlink(),
        }
    }
}

/// Why a file or a folder is not to be trusted by `user`.
fn fault(facts: &Facts, user: u32) -> Option<&'static str> {
    if facts.is_link {
        return Some("it is a symbolic link");
    }
    if facts.owner != user && facts.owner != 0 {
        return Some("somebody else owns it");
    }
    (facts.mode & 0o022 != 0).then_some("others may write to it")
}

/// Why a folder above is not to be trusted: whoever may write there can put another folder in place. In a sticky folder (`/tmp`) they cannot.
fn fault_above(facts: &Facts, user: u32) -> Option<&'static str> {
    if facts.owner != user && facts.owner != 0 {
        return Some("somebody else owns a folder above it");
    }
    (facts.mode & 0o022 != 0 && facts.mode & 0o1000 == 0)
        .then_some("others may write to a folder above it")
}

/// The path of a folder that may be trusted, with no symbolic link in it. Or the reason why not.
fn trusted(folder: &Path) -> Result<PathBuf, String> {
    let look = |path: &Path| {
        fs::symlink_metadata(path)
            .map(|metadata| Facts::of(&metadata))
            .map_err(|error| error.to_string())
    };
    let found = |fault: Option<&'static str>| fault.map_or(Ok(()), |fault| Err(fault.to_owned()));
    found(fault(&look(folder)?, user()))?;
    let absolute = std::path::absolute(folder).map_err(|error| error.to_string())?;
    let real = fs::canonicalize(&absolute).map_err(|error| error.to_string())?;
    // The folders that the links on the way lie in, and those they lead to.
    for above in absolute.ancestors().chain(real.ancestors()) {
        let facts = look(above)?;
        // A link's own owner and mode say nothing: who may change it is who may write its folder.
        if above != absolute && above != real && !facts.is_link {
            found(fault_above(&facts, user()))?;
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const KEY: &str = "0123abcd-engine";

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A folder of this test's own, with a cache that has one entry; and the path of that.
    fn one_entry() -> (tempfile::TempDir, DiskCache, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::at(&folder.path().join("a/cache"));
        assert_eq!(cache.read(KEY), None);
        cache.write(KEY, b"compiled");
        assert_eq!(cache.read(KEY).as_deref(), Some(&b"compiled"[..]));
        let file = folder.path().join(format!("a/cache/{KEY}.cwasm"));
        (folder, cache, file)
    }

    #[test]
    fn who_may_write_decides() {
        type Row<'a> = (u32, u32, bool, Option<&'a str>, Option<&'a str>);
        let rows: &[Row<'_>] = &[
            (7, 0o600, false, None, None),
            (7, 0o755, false, None, None),
            (0, 0o644, false, None, None),
            (
                8,
                0o600,
                false,
                Some("somebody else owns it"),
                Some("somebody else owns a folder above it"),
            ),
            (
                7,
                0o620,
                false,
                Some("others may write to it"),
                Some("others may write to a folder above it"),
            ),
            (
                7,
                0o602,
                false,
                Some("others may write to it"),
                Some("others may write to a folder above it"),
            ),
            (0, 0o1777, false, Some("others may write to it"), None),
            (
                8,
                0o1777,
                false,
                Some("somebody else owns it"),
                Some("somebody else owns a folder above it"),
            ),
            (
                7,
                0o777,
                true,
                Some("it is a symbolic link"),
                Some("others may write to a folder above it"),
            ),
        ];
        for (owner, mode, is_link, own, above) in rows {
            let facts = Facts {
                owner: *owner,
                mode: *mode,
                is_link: *is_link,
            };
            assert_eq!(fault(&facts, 7), *own, "{facts:?}");
            assert_eq!(fault_above(&facts, 7), *above, "{facts:?}");
        }
        // For root, what another user owns is that user's.
        let facts = Facts {
            owner: 7,
            mode: 0o600,
            is_link: false,
        };
        assert_eq!(fault(&facts, 0), Some("somebody else owns it"));
    }

    #[test]
    fn a_file_that_others_may_write_is_not_read() {
        let (_folder, cache, file) = one_entry();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        for mode in [0o620, 0o602, 0o666] {
            set_mode(&file, mode);
            assert_eq!(cache.read(KEY), None, "{mode:o}");
        }
        set_mode(&file, 0o644);
        assert!(cache.read(KEY).is_some(), "others may read");
    }

    #[test]
    fn a_link_a_folder_and_a_pipe_are_not_read() {
        let (folder, cache, file) = one_entry();
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert_eq!(cache.read(KEY), None, "a link");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(cache.read(KEY), None, "a folder");
        fs::remove_dir(&file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file).status();
        assert!(made.unwrap().success());
        assert_eq!(cache.read(KEY), None, "a pipe, without waiting");
        cache.write(KEY, b"again");
        assert_eq!(
            cache.read(KEY).as_deref(),
            Some(&b"again"[..]),
            "put in its place"
        );
        for key in ["../elsewhere", "a/b", "", ".", "a.b", "a\0"] {
            assert_eq!(cache.read(key), None, "{key:?} leads out");
        }
    }

    #[test]
    fn a_folder_that_others_may_write_is_not_used() {
        for mode in [0o770, 0o707, 0o777, 0o1777] {
            let folder = tempfile::tempdir().unwrap();
            set_mode(folder.path(), mode);
            let cache = DiskCache::at(folder.path());
            cache.write(KEY, b"compiled");
            assert_eq!(cache.read(KEY), None, "{mode:o}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{mode:o}");
        }
    }

    #[test]
    fn a_folder_opened_to_others_later_is_not_used_any_more() {
        let (folder, cache, file) = one_entry();
        set_mode(file.parent().unwrap(), 0o777);
        assert_eq!(cache.read(KEY), None);
        set_mode(file.parent().unwrap(), 0o700);
        assert!(cache.read(KEY).is_some());
        // Another folder in its place by a link.
        fs::rename(folder.path().join("a/cache"), folder.path().join("b")).unwrap();
        symlink(folder.path().join("b"), folder.path().join("a/cache")).unwrap();
        assert_eq!(cache.read(KEY), None);
    }

    #[test]
    fn a_folder_under_one_that_others_may_write_is_not_used() {
        let (folder, cache, file) = one_entry();
        drop(cache);
        let above = folder.path().join("a");
        let cache = || DiskCache::at(file.parent().unwrap());
        set_mode(&above, 0o777);
        assert_eq!(cache().read(KEY), None);
        set_mode(&above, 0o1777);
        assert!(cache().read(KEY).is_some(), "sticky, like /tmp");
        set_mode(&above, 0o755);
        assert!(cache().read(KEY).is_some());

        // Links on the way are followed, if those who could change them or what they lead to are trusted.
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        symlink(&above, open.join("link")).unwrap();
        let linked = || DiskCache::at(&open.join("link/cache"));
        assert!(linked().read(KEY).is_some());
        set_mode(&open, 0o777);
        assert_eq!(linked().read(KEY), None, "the link may be changed");
        set_mode(&open, 0o755);
        set_mode(&above, 0o777);
        assert_eq!(linked().read(KEY), None, "what it leads to may be changed");
        set_mode(&above, 0o755);
        symlink(file.parent().unwrap(), open.join("cache")).unwrap();
        assert_eq!(
            DiskCache::at(&open.join("cache")).read(KEY),
            None,
            "the folder is a link itself"
        );
    }
}
