//! Redis callouts, Higress' own chapter (higress-group/proxy-wasm-cpp-host `include/proxy-wasm/exports.h`), offered whatever a module's ABI
//! version. As HTTP callouts, they belong to the plugin, whatever stream makes them.

use std::time::Duration;

use bytes::Bytes;

use super::Call;
use crate::{
    abi::{Failure, Status},
    callout::{CalloutId, CalloutKind},
    limits::{CALLOUT_BODY_BYTES_MAX, CALLOUT_TIMEOUT_MS_MAX, REDIS_SECRET_BYTES_MAX},
    redis::{RedisCall, RedisOptions, is_one_command, target},
    stats::DenialKind,
};

#[expect(clippy::too_many_arguments, reason = "the ABI's own shape")]
pub(super) fn redis_init(
    call: &mut Call<'_>,
    service: u32,
    service_len: u32,
    user: u32,
    user_len: u32,
    password: u32,
    password_len: u32,
    timeout_ms: u32,
) -> Result<(), Failure> {
    let service = call.bytes(service, service_len)?;
    let user = call.bytes(user, user_len)?;
    let password = call.bytes(password, password_len)?;
    let (cluster, database) = allowed(call, service)?;
    if user.len() > REDIS_SECRET_BYTES_MAX
        || password.len() > REDIS_SECRET_BYTES_MAX
        || i32::try_from(timeout_ms).is_err()
    {
        return Err(Status::BadArgument.into());
    }
    // 0 asks for no bound; it gets ours.
    let timeout_ms = match timeout_ms {
        0 => CALLOUT_TIMEOUT_MS_MAX,
        ms => ms.min(CALLOUT_TIMEOUT_MS_MAX),
    };
    let options = RedisOptions {
        user: Bytes::copy_from_slice(user),
        password: Bytes::copy_from_slice(password),
        database,
        timeout: Duration::from_millis(u64::from(timeout_ms)),
    };
    let owner = &call.state().owner;
    Ok(owner
        .embedder
        .set_redis(owner.id, cluster, options)
        .map_err(Status::from)?)
}

pub(super) fn redis_call(
    call: &mut Call<'_>,
    service: u32,
    service_len: u32,
    query: u32,
    query_len: u32,
    out: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    let service = call.bytes(service, service_len)?;
    let query = call.bytes(query, query_len)?;
    let (cluster, _) = allowed(call, service)?;
    if query.len() > CALLOUT_BODY_BYTES_MAX || !is_one_command(query) {
        return Err(Status::BadArgument.into());
    }
    let query = Bytes::copy_from_slice(query);
    let state = call.state_mut();
    let place = state.owner.place_for_callout()?;
    let id = state.owner.next_callout(CalloutKind::Redis);
    if state.root.calls.iter().any(|(other, _)| *other == id) {
        return Err(Status::InternalFailure.into());
    }
    let owner = &state.owner;
    owner
        .embedder
        .start_redis(owner.id, CalloutId(id), RedisCall { cluster, query })
        .map_err(Status::from)?;
    state.root.calls.push((id, place));
    call.write_u32(out, id)
}

/// A cluster that the plugin may call, and the database named with it.
fn allowed(call: &Call<'_>, service: &[u8]) -> Result<(String, Option<u32>), Status> {
    let (cluster, database) = target(service)?;
    let state = call.state();
    if !state.owner.spec.clusters.iter().any(|own| own == cluster) {
        state.deny(DenialKind::Cluster, cluster.as_bytes());
        return Err(Status::BadArgument);
    }
    Ok((cluster.to_owned(), database))
}
