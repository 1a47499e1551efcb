//! WASI preview 1, as far as a plugin has a world: output goes to the log, clocks and chance to the embedder, files and sockets do
//! not exist.
//!
//! The 45 functions that Envoy serves, under `wasi_snapshot_preview1` and the older `wasi_unstable`, with Envoy's answers: what Go's
//! runtime needs to start is among them (`poll_oneoff` answers at once with no events, `fd_prestat_get` ends the scan for
//! directories). Signatures are those of WASI, also where proxy-wasm-cpp-host lacks an argument (`path_link`, `path_symlink`).

use std::rc::Rc;

use wasmtime::Caller;

use super::{Call, Register, Reply, When, answer, system::log_output};
use crate::{
    abi::{Failure, LogLevel, Status, TrapKind},
    bounds::Ended,
    limits::{IOVECS_MAX, LOG_BYTES_MAX, RANDOM_BYTES_MAX},
    memory,
    state::{Mode, VmState},
};

/// WASI's error numbers.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Errno {
    Success = 0,
    BadFd = 8,
    NotDirectory = 20,
    Fault = 21,
    Invalid = 28,
    NoEntry = 44,
    NotImplemented = 52,
    NotSupported = 58,
}

use Errno::{BadFd, Fault, Invalid, NoEntry, NotDirectory, NotImplemented, NotSupported, Success};

impl Reply for Errno {
    fn number(self) -> u32 {
        self as u32
    }

    fn of_status(status: Status) -> u32 {
        match status {
            Status::InvalidMemoryAccess => Fault as u32,
            _ => Invalid as u32,
        }
    }
}

type Answer = Result<Errno, Failure>;

pub(super) fn register(linker: &mut Register<'_>) -> wasmtime::Result<()> {
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        table! { linker, module;
            Started "args_get" success2, (_argv: u32, _buffer: u32);
            Started "args_sizes_get" two_zeros, (count: u32, size: u32);
            Started "environ_get" success2, (_environ: u32, _buffer: u32);
            Started "environ_sizes_get" two_zeros, (count: u32, size: u32);
            Always  "clock_time_get" clock_time_get, (clock: u32, _precision: u64, out: u32);
            Started "clock_res_get" clock_res_get, (clock: u32, out: u32);
            Started "random_get" random_get, (buffer: u32, len: u32);
            Running "sched_yield" success0, ();
            Always  "poll_oneoff" poll_oneoff, (_in: u32, _out: u32, _subscriptions: u32, events: u32);
            Always  "fd_write" fd_write, (fd: u32, iovecs: u32, count: u32, written: u32);
            Started "fd_pwrite" fd_pwrite, (fd: u32, iovecs: u32, count: u32, _offset: u64, written: u32);
            Running "fd_read" fd_read, (_fd: u32, _iovecs: u32, _count: u32, _read: u32);
            Started "fd_pread" fd_pread, (_fd: u32, _iovecs: u32, _count: u32, _offset: u64, _read: u32);
            Running "fd_seek" fd_seek, (_fd: u32, _offset: u64, _whence: u32, _out: u32);
            Started "fd_tell" fd_tell, (fd: u32, out: u32);
            Running "fd_close" success1, (_fd: u32);
            Started "fd_sync" output1, (fd: u32);
            Started "fd_datasync" output1, (fd: u32);
            Started "fd_advise" fd_advise, (_fd: u32, _offset: u64, _len: u64, _advice: u32);
            Started "fd_allocate" output_2x64, (fd: u32, _offset: u64, _len: u64);
            Started "fd_fdstat_get" fd_fdstat_get, (fd: u32, out: u32);
            Started "fd_fdstat_set_flags" not_implemented2, (_fd: u32, _flags: u32);
            Started "fd_fdstat_set_rights" output_2x64, (fd: u32, _base: u64, _inheriting: u64);
            Started "fd_filestat_get" bad_fd2, (_fd: u32, _out: u32);
            Started "fd_filestat_set_size" output_1x64, (fd: u32, _size: u64);
            Started "fd_filestat_set_times" output_times, (fd: u32, _access: u64, _change: u64, _flags: u32);
            Started "fd_prestat_get" bad_fd2, (_fd: u32, _out: u32);
            Started "fd_prestat_dir_name" not_implemented3, (_fd: u32, _path: u32, _len: u32);
            Started "fd_readdir" fd_readdir, (_fd: u32, _buffer: u32, _len: u32, _cookie: u64, out: u32);
            Started "fd_renumber" fd_renumber, (fd: u32, to: u32);
            Running "path_open" path_open, (_fd: u32, _dirflags: u32, _path: u32, _len: u32, _oflags: u32, _base: u64, _inheriting: u64, _flags: u32, _out: u32);
            Started "path_create_directory" not_supported3, (_fd: u32, _path: u32, _len: u32);
            Started "path_filestat_get" not_supported5, (_fd: u32, _flags: u32, _path: u32, _len: u32, _out: u32);
            Started "path_filestat_set_times" path_filestat_set_times, (_fd: u32, _flags: u32, _path: u32, _len: u32, _access: u64, _change: u64, _fst: u32);
            Started "path_link" not_supported7, (_fd: u32, _flags: u32, _old: u32, _old_len: u32, _to: u32, _new: u32, _new_len: u32);
            Started "path_readlink" path_readlink, (_fd: u32, _path: u32, _len: u32, _buffer: u32, _buffer_len: u32, out: u32);
            Started "path_remove_directory" not_supported3, (_fd: u32, _path: u32, _len: u32);
            Started "path_rename" not_supported6, (_fd: u32, _old: u32, _old_len: u32, _to: u32, _new: u32, _new_len: u32);
            Started "path_symlink" not_supported5, (_old: u32, _old_len: u32, _fd: u32, _new: u32, _new_len: u32);
            Started "path_unlink_file" not_supported3, (_fd: u32, _path: u32, _len: u32);
            Started "sock_accept" sock_accept, (_fd: u32, _flags: u32, out: u32);
            Started "sock_recv" sock_recv, (_fd: u32, _data: u32, _len: u32, _flags: u32, out: u32, out_flags: u32);
            Started "sock_send" sock_send, (_fd: u32, _data: u32, _len: u32, _flags: u32, out: u32);
            Started "sock_shutdown" not_supported2, (_fd: u32, _how: u32);
        }
        linker.func_wrap(module, "proc_exit", proc_exit)?;
    }
    Ok(())
}

/// As in Envoy the call returns: what follows it is the guest's own end (`unreachable` in most languages), or not.
fn proc_exit(mut caller: Caller<'_, VmState>, code: u32) -> wasmtime::Result<()> {
    let state = caller.data_mut();
    if state.mode != Mode::Running {
        return Err(Ended(TrapKind::Restricted).into());
    }
    state.log(LogLevel::Error, format!("proc_exit({code})").as_bytes());
    Ok(())
}

macro_rules! constant {
    ($($name:ident($($argument:ident: $type:ty),*) = $errno:ident;)+) => {
        $(#[allow(clippy::too_many_arguments, reason = "WASI's own shape")]
        fn $name(_: &mut Call<'_>, $($argument: $type),*) -> Answer { Ok($errno) })+
    };
}

constant! {
    success0() = Success;
    success1(_0: u32) = Success;
    success2(_0: u32, _1: u32) = Success;
    bad_fd2(_0: u32, _1: u32) = BadFd;
    fd_read(_0: u32, _1: u32, _2: u32, _3: u32) = NotImplemented;
    fd_pread(_0: u32, _1: u32, _2: u32, _3: u64, _4: u32) = NotImplemented;
    fd_seek(_0: u32, _1: u64, _2: u32, _3: u32) = Success;
    fd_advise(_0: u32, _1: u64, _2: u64, _3: u32) = Success;
    not_implemented2(_0: u32, _1: u32) = NotImplemented;
    not_implemented3(_0: u32, _1: u32, _2: u32) = NotImplemented;
    path_open(_0: u32, _1: u32, _2: u32, _3: u32, _4: u32, _5: u64, _6: u64, _7: u32, _8: u32) = NoEntry;
    path_filestat_set_times(_0: u32, _1: u32, _2: u32, _3: u32, _4: u64, _5: u64, _6: u32) = NotSupported;
    not_supported2(_0: u32, _1: u32) = NotSupported;
    not_supported3(_0: u32, _1: u32, _2: u32) = NotSupported;
    not_supported5(_0: u32, _1: u32, _2: u32, _3: u32, _4: u32) = NotSupported;
    not_supported6(_0: u32, _1: u32, _2: u32, _3: u32, _4: u32, _5: u32) = NotSupported;
    not_supported7(_0: u32, _1: u32, _2: u32, _3: u32, _4: u32, _5: u32, _6: u32) = NotSupported;
}

/// Standard output and error, by what their lines are worth.
fn output(fd: u32) -> Option<LogLevel> {
    match fd {
        1 => Some(LogLevel::Info),
        2 => Some(LogLevel::Error),
        _ => None,
    }
}

/// Acts on nothing, for lack of files, but knows the two outputs.
fn output1(_: &mut Call<'_>, fd: u32) -> Answer {
    Ok(output(fd).map_or(BadFd, |_| Success))
}

fn output_1x64(call: &mut Call<'_>, fd: u32, _: u64) -> Answer {
    output1(call, fd)
}

fn output_2x64(call: &mut Call<'_>, fd: u32, _: u64, _: u64) -> Answer {
    output1(call, fd)
}

fn output_times(call: &mut Call<'_>, fd: u32, _: u64, _: u64, _: u32) -> Answer {
    output1(call, fd)
}

fn fd_renumber(_: &mut Call<'_>, fd: u32, to: u32) -> Answer {
    Ok(if output(fd).is_some() && output(to).is_some() {
        NotSupported
    } else {
        BadFd
    })
}

fn two_zeros(call: &mut Call<'_>, count: u32, size: u32) -> Answer {
    call.check_out(count)?;
    call.write_u32(size, 0)?;
    call.write_u32(count, 0)?;
    Ok(Success)
}

fn zero(call: &mut Call<'_>, out: u32, then: Errno) -> Answer {
    call.write_u32(out, 0)?;
    Ok(then)
}

fn fd_readdir(call: &mut Call<'_>, _: u32, _: u32, _: u32, _: u64, out: u32) -> Answer {
    zero(call, out, NotDirectory)
}

fn path_readlink(call: &mut Call<'_>, _: u32, _: u32, _: u32, _: u32, _: u32, out: u32) -> Answer {
    zero(call, out, NotSupported)
}

fn sock_accept(call: &mut Call<'_>, _: u32, _: u32, out: u32) -> Answer {
    zero(call, out, NotSupported)
}

fn sock_recv(
    call: &mut Call<'_>,
    _: u32,
    _: u32,
    _: u32,
    _: u32,
    out: u32,
    out_flags: u32,
) -> Answer {
    call.check_out(out)?;
    call.write(out_flags, &[0; 2])?;
    zero(call, out, NotSupported)
}

fn sock_send(call: &mut Call<'_>, _: u32, _: u32, _: u32, _: u32, out: u32) -> Answer {
    zero(call, out, NotSupported)
}

fn poll_oneoff(call: &mut Call<'_>, _: u32, _: u32, _: u32, events: u32) -> Answer {
    zero(call, events, Success)
}

fn fd_tell(call: &mut Call<'_>, fd: u32, out: u32) -> Answer {
    if output(fd).is_none() {
        return Ok(BadFd);
    }
    call.write(out, &[0; 8])?;
    Ok(Success)
}

/// A file that can only be written: the right `fd_write` (64) alone.
fn fd_fdstat_get(call: &mut Call<'_>, fd: u32, out: u32) -> Answer {
    if output(fd).is_none() {
        return Ok(BadFd);
    }
    let mut stat = [0; 24];
    stat[8] = 64;
    call.write(out, &stat)?;
    Ok(Success)
}

fn clock_time_get(call: &mut Call<'_>, clock: u32, _: u64, out: u32) -> Answer {
    let embedder = &call.state().owner.embedder;
    let now = match clock {
        0 => embedder.unix_time_ns(),
        1 => embedder.monotonic_ns(),
        _ => return Ok(NotSupported),
    };
    call.write(out, &now.to_le_bytes())?;
    Ok(Success)
}

fn clock_res_get(call: &mut Call<'_>, clock: u32, out: u32) -> Answer {
    if clock > 1 {
        return Ok(NotSupported);
    }
    call.write(out, &1u64.to_le_bytes())?;
    Ok(Success)
}

fn random_get(call: &mut Call<'_>, buffer: u32, len: u32) -> Answer {
    if len > RANDOM_BYTES_MAX {
        return Ok(Invalid);
    }
    let embedder = Rc::clone(&call.state().owner.embedder);
    embedder.random(call.memory_mut(buffer, len)?);
    call.state_mut().drew_random = true;
    Ok(Success)
}

fn fd_pwrite(
    call: &mut Call<'_>,
    fd: u32,
    iovecs: u32,
    count: u32,
    _: u64,
    written: u32,
) -> Answer {
    fd_write(call, fd, iovecs, count, written)
}

fn fd_write(call: &mut Call<'_>, fd: u32, iovecs: u32, count: u32, written: u32) -> Answer {
    let Some(level) = output(fd) else {
        return Ok(BadFd);
    };
    if count > IOVECS_MAX {
        return Ok(Invalid);
    }
    call.check_out(written)?;
    let memory = call.memory();
    let list = memory::slice(memory, iovecs, count * 8)?;
    let mut text = Vec::new();
    let mut total = 0u32;
    for entry in list.as_chunks::<8>().0 {
        let part = memory::slice(
            memory,
            memory::read_u32(entry, 0)?,
            memory::read_u32(entry, 4)?,
        )?;
        total = u32::try_from(part.len())
            .ok()
            .and_then(|len| total.checked_add(len))
            .ok_or(Status::BadArgument)?;
        let room = LOG_BYTES_MAX.saturating_sub(text.len()).min(part.len());
        text.extend_from_slice(part.get(..room).unwrap_or_default());
    }
    if total > 0 {
        log_output(call, level, &text);
    }
    call.write_u32(written, total)?;
    Ok(Success)
}
