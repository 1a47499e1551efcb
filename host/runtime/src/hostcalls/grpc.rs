//! gRPC callouts: calls with one message each way, and streams. As HTTP callouts, they belong to the plugin, whatever stream makes them.
//!
//! Statuses as Envoy gives them, since the Rust SDK panics at others: a start that cannot be is `PARSE_FAILURE` (an unknown cluster first of
//! all) or `INTERNAL_FAILURE` (a bound). Unlike Envoy: malformed metadata and a path that could split a message are refused.

use std::time::Duration;

use bytes::Bytes;

use super::{Call, http_fields::checked_pairs};
use crate::{
    abi::{Failure, Status},
    callout::{CalloutError, CalloutId, CalloutKind},
    fields::{FieldList, check_name, check_value, lower},
    grpc::{Duty, GrpcCall},
    grpc_service::GrpcService,
    limits::{CALLOUT_TIMEOUT_MS_MAX, GRPC_MESSAGE_BYTES_MAX},
    stats::DenialKind,
};

#[expect(clippy::too_many_arguments, reason = "the ABI's own shape")]
pub(super) fn grpc_call(
    call: &mut Call<'_>,
    service: u32,
    service_len: u32,
    name: u32,
    name_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    message: u32,
    message_len: u32,
    timeout_ms: u32,
    out: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    let message = call.bytes(message, message_len)?;
    if message.len() > GRPC_MESSAGE_BYTES_MAX {
        return Err(Status::InternalFailure.into());
    }
    let message = Bytes::copy_from_slice(message);
    let timeout_ms = timeout_ms.min(CALLOUT_TIMEOUT_MS_MAX);
    let request = GrpcCall {
        message: Some(message),
        timeout: Some(Duration::from_millis(u64::from(timeout_ms))),
        ..request(
            call,
            (service, service_len),
            (name, name_len),
            (method, method_len),
            (metadata, metadata_len),
        )?
    };
    start(call, CalloutKind::GrpcCall, request, out)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's own shape")]
pub(super) fn grpc_stream(
    call: &mut Call<'_>,
    service: u32,
    service_len: u32,
    name: u32,
    name_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    out: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    let request = request(
        call,
        (service, service_len),
        (name, name_len),
        (method, method_len),
        (metadata, metadata_len),
    )?;
    start(call, CalloutKind::GrpcStream, request, out)
}

/// A pointer and a length.
type Place = (u32, u32);

/// What calls and streams have in common.
fn request(
    call: &Call<'_>,
    service: Place,
    name: Place,
    method: Place,
    metadata: Place,
) -> Result<GrpcCall, Failure> {
    // All of them, before any is judged.
    let service = call.bytes(service.0, service.1)?;
    let name = call.bytes(name.0, name.1)?;
    let method = call.bytes(method.0, method.1)?;
    let pairs = call.bytes(metadata.0, metadata.1)?;
    let target = target(call, service)?;
    let path = [b"/", name, b"/", method].concat();
    check_value(b":path", &path).map_err(|_| Status::ParseFailure)?;
    let text = |bytes: &[u8]| {
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Status::ParseFailure)
    };
    let authority = if target.authority.is_empty() {
        target.cluster
    } else {
        target.authority
    };
    check_value(b":authority", authority).map_err(|_| Status::ParseFailure)?;
    let mut list = FieldList::new();
    for (name, value) in target.metadata {
        let name = lower(name);
        check_name(&name)
            .and_then(|()| check_value(&name, value))
            .map_err(|_| Status::ParseFailure)?;
        push(&mut list, &name, value);
    }
    for (name, value) in checked_pairs(pairs).map_err(|_| Status::ParseFailure)? {
        push(&mut list, &name, value);
    }
    Ok(GrpcCall {
        cluster: text(target.cluster)?,
        authority: text(authority)?,
        path: text(&path)?,
        metadata: list,
        message: None,
        timeout: None,
    })
}

fn push(list: &mut FieldList, name: &[u8], value: &[u8]) {
    // The message's own frame is the host's.
    if !name.starts_with(b":") {
        list.push(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
    }
}

/// Whom the guest wants to call: a cluster that it may, by name or in a `GrpcService`. Unlike in Envoy a name goes first: none is taken for
/// a message by chance.
fn target<'a>(call: &Call<'_>, service: &'a [u8]) -> Result<GrpcService<'a>, Status> {
    let clusters = &call.state().owner.spec.clusters;
    let is_allowed = |name: &[u8]| clusters.iter().any(|cluster| cluster.as_bytes() == name);
    if is_allowed(service) {
        return Ok(GrpcService {
            cluster: service,
            ..GrpcService::default()
        });
    }
    let target = GrpcService::parse(service).ok_or_else(|| {
        // What is no message may be a name.
        let is_name = |name: &str| !name.contains(char::is_control);
        if std::str::from_utf8(service).is_ok_and(is_name) {
            call.state().deny(DenialKind::Cluster, service);
        }
        Status::ParseFailure
    })?;
    if target.is_foreign || target.cluster.is_empty() {
        return Err(Status::BadArgument);
    }
    if !is_allowed(target.cluster) {
        call.state().deny(DenialKind::Cluster, target.cluster);
        return Err(Status::InternalFailure);
    }
    Ok(target)
}

fn start(
    call: &mut Call<'_>,
    kind: CalloutKind,
    request: GrpcCall,
    out: u32,
) -> Result<(), Failure> {
    let state = call.state_mut();
    if !state.root.grpc.has_room() {
        return Err(Status::InternalFailure.into());
    }
    let place = state.owner.place_for_callout()?;
    let id = CalloutId(state.owner.next_callout(kind));
    if state.root.grpc.is_known(id) {
        return Err(Status::InternalFailure.into());
    }
    let owner = &state.owner;
    owner
        .embedder
        .start_grpc(owner.id, id, request)
        .map_err(|error| match error {
            CalloutError::UnknownCluster => Status::ParseFailure,
            CalloutError::Overloaded => Status::InternalFailure,
        })?;
    state.root.grpc.begin(id, place);
    call.write_u32(out, id.0)
}

pub(super) fn grpc_send(
    call: &mut Call<'_>,
    id: u32,
    message: u32,
    len: u32,
    end_of_stream: u32,
) -> Result<(), Failure> {
    let message = call.bytes(message, len)?;
    if message.len() > GRPC_MESSAGE_BYTES_MAX {
        return Err(Status::BadArgument.into());
    }
    let message = Bytes::copy_from_slice(message);
    let id = CalloutId(id);
    let is_last = end_of_stream != 0;
    let state = call.state_mut();
    if state.root.grpc.may_send(id)? == Duty::Send {
        let owner = &state.owner;
        // A stream that takes no more now may do so later: the plugin keeps its message.
        owner
            .embedder
            .send_grpc(owner.id, id, Some(message), is_last)
            .map_err(|_| Status::BadArgument)?;
        if is_last {
            state.root.grpc.sent(id);
        }
    }
    Ok(())
}

pub(super) fn grpc_close(call: &mut Call<'_>, id: u32) -> Result<(), Failure> {
    let id = CalloutId(id);
    let duty = call.state_mut().root.grpc.close(id)?;
    follow(call, id, duty);
    Ok(())
}

pub(super) fn grpc_cancel(call: &mut Call<'_>, id: u32) -> Result<(), Failure> {
    let id = CalloutId(id);
    let duty = call.state_mut().root.grpc.cancel(id)?;
    follow(call, id, duty);
    Ok(())
}

fn follow(call: &mut Call<'_>, id: CalloutId, duty: Duty) {
    let owner = &call.state().owner;
    match duty {
        Duty::Nothing => {}
        // An end that cannot be sent belongs to a stream that is gone; the embedder says so on its own.
        Duty::Send => drop(owner.embedder.send_grpc(owner.id, id, None, true)),
        Duty::Cancel => owner.embedder.cancel_call(owner.id, id),
    }
}
