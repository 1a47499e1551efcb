//! HTTP callouts to the clusters that the operator allows. They belong to the plugin, whatever stream makes them.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Call,
    http_fields::{checked_pairs_or_none, known_as},
};
use crate::{
    abi::{Failure, MapType, Status},
    callout::{CalloutId, CalloutKind, HttpCall, is_complete},
    fields::FieldList,
    limits::{CALLOUT_BODY_BYTES_MAX, CALLOUT_TIMEOUT_MS_MAX},
    stats::DenialKind,
};

#[expect(clippy::too_many_arguments, reason = "the ABI's own shape")]
pub(super) fn http_call(
    call: &mut Call<'_>,
    cluster: u32,
    cluster_len: u32,
    headers: u32,
    headers_len: u32,
    body: u32,
    body_len: u32,
    trailers: u32,
    trailers_len: u32,
    timeout_ms: u32,
    out: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    let cluster = std::str::from_utf8(call.bytes(cluster, cluster_len)?)
        .map_err(|_| Status::BadArgument)?
        .to_owned();
    let headers = call.bytes(headers, headers_len)?;
    let body = Bytes::copy_from_slice(call.bytes(body, body_len)?);
    let trailers = call.bytes(trailers, trailers_len)?;
    let lists = list(headers).and_then(|headers| Ok((headers, list(trailers)?)));
    call.write_u32(out, 0)?;
    let (headers, trailers) = lists?;
    let state = call.state_mut();
    if !state.owner.spec.clusters.contains(&cluster) {
        state.deny(DenialKind::Cluster, cluster.as_bytes());
        return Err(Status::BadArgument.into());
    }
    if !is_complete(&headers)
        || body.len() > CALLOUT_BODY_BYTES_MAX
        || i32::try_from(timeout_ms).is_err()
    {
        return Err(Status::BadArgument.into());
    }
    let place = state.owner.place_for_callout()?;
    let id = state.owner.next_callout(CalloutKind::Http);
    if state.root.calls.iter().any(|(other, _)| *other == id) {
        return Err(Status::InternalFailure.into());
    }
    // 0 asks for no bound; it gets ours.
    let timeout_ms = match timeout_ms {
        0 => CALLOUT_TIMEOUT_MS_MAX,
        ms => ms.min(CALLOUT_TIMEOUT_MS_MAX),
    };
    let timeout = Duration::from_millis(u64::from(timeout_ms));
    let request = HttpCall {
        cluster,
        headers,
        body,
        trailers,
        timeout,
    };
    state
        .owner
        .embedder
        .start_http_call(state.owner.id, CalloutId(id), request)
        .map_err(Status::from)?;
    state.root.calls.push((id, place));
    call.write_u32(out, id)
}

/// As in Envoy, bytes that are no pairs count as none, and what no message can carry fails the call.
fn list(pairs: &[u8]) -> Result<FieldList, Status> {
    let mut list = FieldList::new();
    for (name, value) in checked_pairs_or_none(pairs).map_err(|_| Status::InternalFailure)? {
        let name = known_as(MapType::RequestHeaders, &name);
        list.push(Bytes::copy_from_slice(&name), Bytes::copy_from_slice(value));
    }
    Ok(list)
}
