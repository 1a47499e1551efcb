//! What goes when the folder is full: files used longest ago, never one that a process uses.
//!
//! A file's time of modification is that of its last use. Whoever uses a file has it locked (`flock`, shared) until they drop it or end, however
//! they end, and other processes see that. Where the file system has no locks, nothing goes.

use std::fs::File;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat, unlinkat};

/// A file that is in use: it does not go.
#[derive(Debug)]
pub(crate) struct Kept {
    locked: File,
}

impl Kept {
    /// Marks a file as used now. `None` where it is gone, or goes this moment.
    pub(super) fn take(file: File) -> Option<Self> {
        file.try_lock_shared().ok()?;
        if rustix::fs::fstat(&file).is_ok_and(|it| it.st_nlink == 0) {
            return None;
        }
        // Root's files may be read and not be touched: those of an image, say.
        file.set_modified(SystemTime::now()).ok();
        Some(Self { locked: file })
    }
}

impl Drop for Kept {
    /// At once, also where a program that is started this moment has the file open until it runs.
    fn drop(&mut self) {
        self.locked.unlock().ok();
    }
}

/// Removes what was used longest ago until the files of the cache have `bytes_max` at most, or the rest is in use.
pub(super) fn evict(folder: &File, bytes_max: u64) -> rustix::io::Result<()> {
    let mut files = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        // Another process may have removed it.
        let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if is_ours(name) && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            files.push((last_use(&stat), bytes(&stat), name.to_owned()));
        }
    }
    let mut left: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    if left <= bytes_max {
        return Ok(());
    }
    files.sort();
    for (_, bytes, name) in files {
        if left <= bytes_max {
            return Ok(());
        }
        if remove_unused(folder, &name) {
            tracing::debug!(name, bytes, "evicted from the module cache");
            left = left.saturating_sub(bytes);
        }
    }
    tracing::warn!(
        bytes = left,
        bytes_max,
        "the module cache has more than it may, and all of it is in use"
    );
    Ok(())
}

/// Removes a file, unless somebody has it locked. Whoever opens it in between finds that it has no name any more.
fn remove_unused(folder: &File, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(folder, name, flags, Mode::empty()).map(File::from) else {
        return false;
    };
    file.try_lock().is_ok() && unlinkat(folder, name, AtFlags::empty()).is_ok()
}

/// What this cache has written, with what a crash left half written.
fn is_ours(name: &str) -> bool {
    let is_digest = |name: &str| name.get(..64).is_some_and(crate::digest::is_digest);
    match name.strip_prefix("sha256-") {
        Some(rest) => is_digest(rest) && rest.contains(".blob"),
        None => is_digest(name) && name.contains(".cwasm"),
    }
}

/// Nanoseconds since 1970; what the numbers are made of differs between machines.
fn last_use(stat: &Stat) -> i128 {
    i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)
}

fn bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use portcullis_runtime::ModuleCache as _;

    use crate::module_cache::DiskCache;

    /// The digest of nothing in particular: 64 times a digit.
    fn digest(digit: char) -> String {
        String::from_iter([digit; 64])
    }

    fn used(folder: &Path, name: &str, hours_ago: u64) {
        let file = fs::File::open(folder.join(name)).unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours_ago * 3600);
        file.set_modified(then).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }

    fn blob(digit: char) -> String {
        format!("sha256-{}.blob", digest(digit))
    }

    fn compiled(digit: char) -> String {
        format!("{}-e.cwasm", digest(digit))
    }

    /// Two blobs and a compiled module, 90 of 100 bytes, the first used longest ago.
    fn nearly_full() -> (tempfile::TempDir, DiskCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::with_room(folder.path(), 100);
        drop(cache.keep_blob(&digest('a'), &[0; 30]));
        drop(cache.keep_blob(&digest('b'), &[0; 30]));
        cache.write(&format!("{}-e", digest('c')), &[0; 30]);
        for (name, hours_ago) in [(blob('a'), 3), (blob('b'), 2), (compiled('c'), 1)] {
            used(folder.path(), &name, hours_ago);
        }
        (folder, cache)
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_no_more_than_has_to() {
        let (folder, cache) = nearly_full();
        drop(cache.keep_blob(&digest('d'), &[0; 10]));
        assert_eq!(names(folder.path()).len(), 4, "100 bytes have room");
        drop(cache.keep_blob(&digest('e'), &[0; 10]));
        assert_eq!(
            names(folder.path()),
            [compiled('c'), blob('b'), blob('d'), blob('e')]
        );
        // Compiled modules go like others.
        drop(cache.keep_blob(&digest('f'), &[0; 60]));
        assert_eq!(names(folder.path()), [blob('d'), blob('e'), blob('f')]);
    }

    #[test]
    fn reading_is_using() {
        let (folder, cache) = nearly_full();
        assert_eq!(cache.blob(&digest('a')).unwrap().0, [0; 30]);
        drop(cache.keep_blob(&digest('d'), &[0; 30]));
        assert_eq!(names(folder.path()), [compiled('c'), blob('a'), blob('d')]);
        used(folder.path(), &blob('a'), 1);
        used(folder.path(), &blob('d'), 2);
        assert!(cache.read(&format!("{}-e", digest('c'))).is_some());
        drop(cache.keep_blob(&digest('e'), &[0; 70]));
        assert_eq!(names(folder.path()), [compiled('c'), blob('e')]);
    }

    #[test]
    fn what_is_in_use_stays_past_the_bound_and_goes_after_it() {
        let (folder, cache) = nearly_full();
        let running = cache.blob(&digest('a')).unwrap().1;
        let modules = cache.compiled_of(&digest('c'));
        assert_eq!(modules.len(), 1);
        for name in [blob('a'), compiled('c')] {
            used(folder.path(), &name, 9);
        }
        // As another process would fill it.
        let other = DiskCache::with_room(folder.path(), 100);
        let manifest = other.keep_blob(&digest('d'), &[0; 60]);
        let layer = other.keep_blob(&digest('e'), &[0; 60]);
        let all = [compiled('c'), blob('a'), blob('d'), blob('e')];
        assert_eq!(names(folder.path()), all, "180 bytes, all in use");
        drop((running, modules, manifest, layer));
        drop(other.keep_blob(&digest('f'), &[0; 40]));
        assert_eq!(names(folder.path()), [blob('e'), blob('f')]);
    }

    #[test]
    fn files_of_others_stay_and_what_a_crash_left_goes() {
        let (folder, cache) = nearly_full();
        let left = format!("{}.77.0123456789abcdef", blob('a'));
        for name in ["notes.txt", "x.blob", "sha256-a.blob", left.as_str()] {
            fs::write(folder.path().join(name), [0; 90]).unwrap();
            used(folder.path(), name, 9);
        }
        std::os::unix::fs::symlink("notes.txt", folder.path().join(blob('0'))).unwrap();
        drop(cache.keep_blob(&digest('d'), &[0; 10]));
        assert_eq!(
            names(folder.path()),
            [
                compiled('c'),
                "notes.txt".into(),
                blob('0'),
                "sha256-a.blob".into(),
                blob('a'),
                blob('b'),
                blob('d'),
                "x.blob".into()
            ]
        );
    }
}
