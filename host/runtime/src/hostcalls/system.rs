//! Log, clock, timer, effective context, foreign functions.

use std::{rc::Rc, time::Duration};

use super::Call;
use crate::{
    abi::{Failure, LogLevel, Status},
    context::ROOT_CONTEXT,
    limits::{FOREIGN_RESULT_BYTES_MAX, LOG_BYTES_MAX, TICK_PERIOD_MS_MIN},
    memory,
    state::Effective,
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

/// 0 ends the timer.
pub(super) fn set_tick_period_milliseconds(
    call: &mut Call<'_>,
    period: u32,
) -> Result<(), Failure> {
    let owner = &call.state().owner;
    let period =
        (period > 0).then(|| Duration::from_millis(u64::from(period.max(TICK_PERIOD_MS_MIN))));
    owner.embedder.set_tick_period(owner.id, period);
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
    let state = call.state_mut();
    state.effective = match context {
        0 => Effective::Current,
        ROOT_CONTEXT => Effective::Root,
        id => Effective::Stream(state.contexts.get(id).ok_or(Status::BadArgument)?.clone()),
    };
    Ok(())
}

pub(super) fn status(
    call: &mut Call<'_>,
    code: u32,
    message: u32,
    len: u32,
) -> Result<(), Failure> {
    let (number, text) = call
        .state()
        .root
        .answer
        .as_ref()
        .map_or((0, ""), |answer| answer.status);
    call.check_out(code)?;
    call.give(text.as_bytes(), message, len)?;
    call.write_u32(code, number)
}

/// Both places for the result may be null: then the guest does not want it.
pub(super) fn call_foreign_function(
    call: &mut Call<'_>,
    name: u32,
    name_len: u32,
    arguments: u32,
    arguments_len: u32,
    results: u32,
    results_len: u32,
) -> Result<(), Failure> {
    let embedder = Rc::clone(&call.state().owner.embedder);
    let name = call.bytes(name, name_len)?;
    let arguments = call.bytes(arguments, arguments_len)?;
    let name = std::str::from_utf8(name).map_err(|_| Status::NotFound)?;
    let answer = match embedder.foreign_function(name, arguments) {
        Err(Status::NotFound) => return Err(Status::NotFound.into()),
        Ok(result) if result.len() > FOREIGN_RESULT_BYTES_MAX => Err(Status::InternalFailure),
        answer => answer,
    };
    for place in [results, results_len] {
        if place != 0 {
            call.check_out(place)?;
        }
    }
    // As in Envoy, a function that fails has an empty result.
    let result = answer.as_deref().unwrap_or_default();
    let len = u32::try_from(result.len()).map_err(|_| Status::InternalFailure)?;
    if results != 0 {
        let pointer = if len == 0 { 0 } else { call.allocate(len)? };
        if len > 0 {
            call.write(pointer, result)?;
        }
        call.write_u32(results, pointer)?;
    }
    if results_len != 0 {
        call.write_u32(results_len, len)?;
    }
    answer.map(|_| ()).map_err(Failure::from)
}

/// What a guest wrote to its standard output or error, one line end removed.
pub(super) fn log_output(call: &mut Call<'_>, level: LogLevel, text: &[u8]) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    call.state_mut()
        .log(level, text.get(..LOG_BYTES_MAX).unwrap_or(text));
}
