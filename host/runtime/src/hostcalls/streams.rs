//! Streams: answer in place of the upstream, go on, or close.
//!
//! All take effect when the VM has returned. As in Envoy: the first local response of a stream is final, later ones answer OK and do
//! nothing; one sent where no stream is (configure, tick) answers OK and does nothing. Unlike Envoy: one sent from `proxy_on_log`
//! does nothing either (there it ends the process), and a status outside of 200..=599 or a malformed header is `BAD_ARGUMENT`.

use bytes::Bytes;

use super::{Call, http_fields::checked_pairs_or_none};
use crate::{
    abi::{Failure, Status, StreamType},
    exchange::Direction,
    fields::FieldList,
    limits::{LOCAL_BODY_BYTES_MAX, LOCAL_DETAILS_BYTES_MAX},
    local_response::LocalResponse,
    stream::{Asked, Open},
};

#[expect(clippy::too_many_arguments, reason = "the ABI's own shape")]
pub(super) fn send_local_response(
    call: &mut Call<'_>,
    code: u32,
    details: u32,
    details_len: u32,
    body: u32,
    body_len: u32,
    headers: u32,
    headers_len: u32,
    grpc_status: u32,
) -> Result<(), Failure> {
    let details = call.bytes(details, details_len)?;
    let body = call.bytes(body, body_len)?;
    let pairs = checked_pairs_or_none(call.bytes(headers, headers_len)?)?;
    let status = u16::try_from(code)
        .ok()
        .filter(|code| (200..=599).contains(code))
        .ok_or(Status::BadArgument)?;
    if body.len() > LOCAL_BODY_BYTES_MAX {
        return Err(Status::BadArgument.into());
    }
    let Some(context) = call.stream() else {
        return Ok(());
    };
    let cell = context.cell()?;
    let mut local = cell
        .local
        .try_borrow_mut()
        .map_err(|_| Status::InternalFailure)?;
    if local.is_some() || cell.open.get().has(Open::LOG) {
        return Ok(());
    }
    let mut headers = FieldList::new();
    for (name, value) in pairs {
        headers.push(Bytes::copy_from_slice(&name), Bytes::copy_from_slice(value));
    }
    let grpc_status = u8::try_from(grpc_status)
        .ok()
        .filter(|status| *status <= 16);
    *local = Some(LocalResponse {
        status,
        headers,
        body: Bytes::copy_from_slice(body),
        details: one_word(details),
        grpc_status,
    });
    call.state_mut().wake();
    Ok(())
}

/// Details are for logs, where a blank parts fields: as in Envoy it becomes an underscore.
fn one_word(details: &[u8]) -> Bytes {
    let kept = details.get(..LOCAL_DETAILS_BYTES_MAX).unwrap_or(details);
    let word = |byte: &u8| match byte {
        b' ' | b'\t'..=b'\r' => b'_',
        byte => *byte,
    };
    kept.iter().map(word).collect()
}

/// As in Envoy: what comes from an upstream cannot be resumed, and a type that the stream is not of does nothing.
pub(super) fn continue_stream(call: &mut Call<'_>, stream: u32) -> Result<(), Failure> {
    match StreamType::from_u32(stream).ok_or(Status::BadArgument)? {
        StreamType::Request => resume(call, Direction::Request, false),
        StreamType::Response => resume(call, Direction::Response, false),
        StreamType::Downstream => resume(call, Direction::Request, true),
        StreamType::Upstream => Err(Status::Unimplemented.into()),
    }
}

pub(super) fn continue_request(call: &mut Call<'_>) -> Result<(), Failure> {
    resume(call, Direction::Request, false)
}

pub(super) fn continue_response(call: &mut Call<'_>) -> Result<(), Failure> {
    resume(call, Direction::Response, false)
}

fn resume(call: &mut Call<'_>, direction: Direction, is_tcp: bool) -> Result<(), Failure> {
    let Some(context) = call.stream() else {
        return Ok(());
    };
    if context.stream.is_tcp != is_tcp {
        return Ok(());
    }
    let cell = context.cell()?;
    cell.asked
        .set(cell.asked.get().with_resume(direction, true));
    // Envoy shows nothing of the request from here on.
    cell.open.set(cell.open.get().without_request());
    call.state_mut().wake();
    Ok(())
}

pub(super) fn close_stream(call: &mut Call<'_>, stream: u32) -> Result<(), Failure> {
    let is_tcp = match StreamType::from_u32(stream).ok_or(Status::BadArgument)? {
        StreamType::Request | StreamType::Response => false,
        // Either closes the connection to the client, as in Envoy.
        StreamType::Downstream | StreamType::Upstream => true,
    };
    let Some(context) = call.stream() else {
        return Ok(());
    };
    if context.stream.is_tcp != is_tcp {
        return Ok(());
    }
    let cell = context.cell()?;
    cell.asked.set(Asked {
        close: true,
        ..cell.asked.get()
    });
    call.state_mut().wake();
    Ok(())
}

/// ABI 0.1.0, and the foreign function of the same name: the embedder is told to choose the route anew before it sends the request on.
pub(super) fn clear_route_cache(call: &mut Call<'_>) -> Result<(), Failure> {
    if let Some(context) = call.stream() {
        context.stream.route_stale.set(true);
    }
    Ok(())
}
