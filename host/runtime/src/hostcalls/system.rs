//! Log, clock, timer, effective context.

use std::time::Duration;

use super::Call;
use crate::{
    abi::{Failure, LogLevel, Status},
    limits::{LOG_BYTES_MAX, TICK_PERIOD_MS_MIN},
    memory,
    state::Role,
};

pub(super) fn log(call: &mut Call<'_>, level: u32, message: u32, len: u32) -> Result<(), Failure> {
    let level = LogLevel::from_u32(level).ok_or(Status::BadArgument)?;
    let (memory, state) = call.parts();
    state.log(level, memory::slice(memory, message, len)?);
    Ok(())
}

pub(super) fn log_level(call: &mut Call<'_>, out: u32) -> Result<(), Failure> {
    let level = call.state().owner.embedder.log_level();
    call.write_u32(out, level as u32)
}

pub(super) fn current_time_nanoseconds(call: &mut Call<'_>, out: u32) -> Result<(), Failure> {
    let now = call.state().owner.embedder.unix_time_ns();
    call.write(out, &now.to_le_bytes())
}

/// 0 ends the timer. Only the plugin's standing VM has one that runs.
pub(super) fn set_tick_period_milliseconds(
    call: &mut Call<'_>,
    period: u32,
) -> Result<(), Failure> {
    let state = call.state_mut();
    let period =
        (period > 0).then(|| Duration::from_millis(u64::from(period.max(TICK_PERIOD_MS_MIN))));
    state.root.tick_period = period;
    if state.role == Role::Standing {
        state.owner.embedder.set_tick_period(state.owner.id, period);
    }
    Ok(())
}

/// Only of use to a plugin that said *not yet* when it was shut down.
pub(super) fn done(call: &mut Call<'_>) -> Result<(), Failure> {
    let state = call.state_mut();
    if state.stream().is_some() || !state.root.done_pending {
        return Err(Status::NotFound.into());
    }
    state.root.done = true;
    Ok(())
}

/// Holds until the callback returns. 0 means the callback's own context.
pub(super) fn set_effective_context(call: &mut Call<'_>, context: u32) -> Result<(), Failure> {
    Ok(call.state_mut().set_effective(context)?)
}

pub(super) fn status(
    call: &mut Call<'_>,
    code: u32,
    message: u32,
    len: u32,
) -> Result<(), Failure> {
    let (number, text) = call.state().root.status.clone();
    call.check_out(code)?;
    call.give(&text, message, len)?;
    call.write_u32(code, number)
}

/// What a guest wrote to its standard output or error, one line end removed.
pub(super) fn log_output(call: &mut Call<'_>, level: LogLevel, text: &[u8]) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    call.state_mut()
        .log(level, text.get(..LOG_BYTES_MAX).unwrap_or(text));
}
