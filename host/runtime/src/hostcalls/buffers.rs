//! Buffers: bodies, configurations, a callout's answer.
//!
//! Quirks of Envoy kept: a stream's buffer outside of its phase reads as empty (not as NOT_FOUND), a start beyond the end reads as
//! empty, lengths are clamped. One not kept: buffer 8 showed the last bytes of whatever came before; here it is empty.

use bytes::Bytes;

use super::Call;
use crate::{
    abi::{BufferType, Callback, Failure, Status},
    body::Body,
    context::StreamContext,
    exchange::Direction,
    fields::Fields as _,
    limits::GRPC_MESSAGE_BYTES_MAX,
    state::Received,
    stream::Open,
};

/// A buffer that can be read now.
enum Readable {
    Whole(Bytes),
    Body(StreamContext, Direction),
    Empty,
}

impl Readable {
    fn len(&self) -> Result<usize, Failure> {
        Ok(match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Body(context, direction) => context
                .cell()?
                .body(*direction)
                .try_borrow()
                .map_err(|_| Status::InternalFailure)?
                .len(),
            Self::Empty => 0,
        })
    }
}

fn readable(call: &Call<'_>, buffer: u32) -> Result<Readable, Failure> {
    let state = call.state();
    let buffer = BufferType::from_u32(buffer).ok_or(Status::BadArgument)?;
    Ok(match buffer {
        BufferType::RequestBody
        | BufferType::ResponseBody
        | BufferType::DownstreamData
        | BufferType::UpstreamData => match body(call, buffer)? {
            Some((context, direction)) => Readable::Body(context, direction),
            None => Readable::Empty,
        },
        BufferType::CallData => Readable::Empty,
        BufferType::GrpcReceive => match &state.root.received {
            Received::Message(message) => Readable::Whole(message.clone()),
            _ => Readable::Empty,
        },
        // Unlike in Higress no buffer at all outside of its callback: so it is in Envoy, which knows none of this number.
        BufferType::RedisReply => match &state.root.received {
            Received::RedisReply(reply) => Readable::Whole(reply.clone()),
            _ => return Err(Status::BadArgument.into()),
        },
        BufferType::HttpCallResponseBody => Readable::Whole(
            state
                .root
                .answer
                .as_ref()
                .filter(|answer| !answer.headers.is_empty())
                .ok_or(Status::NotFound)?
                .body
                .clone(),
        ),
        BufferType::VmConfiguration => Readable::Whole(state.owner.spec.vm_configuration.clone()),
        BufferType::PluginConfiguration if configures(state.callback) => {
            Readable::Whole(state.owner.spec.configuration.clone())
        }
        BufferType::PluginConfiguration => return Err(Status::NotFound.into()),
    })
}

fn configures(callback: Callback) -> bool {
    matches!(
        callback,
        Callback::Configure | Callback::VmStart | Callback::ContextCreate
    )
}

/// The body of the stream acted on, while its phase lasts; of a TCP connection, what came from that side.
fn body(
    call: &Call<'_>,
    buffer: BufferType,
) -> Result<Option<(StreamContext, Direction)>, Failure> {
    let (direction, open) = match buffer {
        BufferType::RequestBody => (Direction::Request, Open::REQUEST_BODY),
        BufferType::DownstreamData => (Direction::Request, Open::DOWNSTREAM_DATA),
        BufferType::UpstreamData => (Direction::Response, Open::UPSTREAM_DATA),
        _ => (Direction::Response, Open::RESPONSE_BODY),
    };
    let Some(context) = call.stream() else {
        return Ok(None);
    };
    let is_open = context.cell()?.open.get().has(open);
    Ok(is_open.then_some((context, direction)))
}

pub(super) fn buffer_bytes(
    call: &mut Call<'_>,
    buffer: u32,
    start: u32,
    max: u32,
    out: u32,
    out_len: u32,
) -> Result<(), Failure> {
    let source = readable(call, buffer)?;
    let start = usize::try_from(start).map_err(|_| Status::BadArgument)?;
    let max = usize::try_from(max).map_err(|_| Status::BadArgument)?;
    let len = source.len()?.saturating_sub(start).min(max);
    match source {
        Readable::Whole(bytes) => {
            let part = bytes
                .get(start..)
                .and_then(|rest| rest.get(..len))
                .unwrap_or_default();
            call.give(part, out, out_len)
        }
        Readable::Body(context, direction) => {
            let body = context
                .cell()?
                .body(direction)
                .try_borrow()
                .map_err(|_| Status::InternalFailure)?;
            call.give_with(len, out, out_len, |place| {
                body.copy_to(start, place);
                Some(())
            })
        }
        Readable::Empty => call.give(&[], out, out_len),
    }
}

pub(super) fn buffer_status(
    call: &mut Call<'_>,
    buffer: u32,
    len: u32,
    flags: u32,
) -> Result<(), Failure> {
    let size =
        u32::try_from(readable(call, buffer)?.len()?).map_err(|_| Status::InternalFailure)?;
    call.check_out(len)?;
    call.check_out(flags)?;
    call.write_u32(len, size)?;
    call.write_u32(flags, 0)
}

pub(super) fn set_buffer_bytes(
    call: &mut Call<'_>,
    buffer: u32,
    start: u32,
    size: u32,
    data: u32,
    len: u32,
) -> Result<(), Failure> {
    let buffer = BufferType::from_u32(buffer).ok_or(Status::BadArgument)?;
    let body = match buffer {
        BufferType::RequestBody
        | BufferType::ResponseBody
        | BufferType::DownstreamData
        | BufferType::UpstreamData => body(call, buffer)?,
        BufferType::GrpcReceive => {
            let data = Bytes::copy_from_slice(call.bytes(data, len)?);
            return set_message(call, start, size, &data);
        }
        // Immutable where it can be read, unavailable elsewhere.
        _ => readable(call, buffer as u32).map(|_| None)?,
    };
    let data = call.bytes(data, len)?;
    let (context, direction) = body.ok_or(Status::BadArgument)?;
    let cell = context.cell()?;
    let mut body = cell
        .body(direction)
        .try_borrow_mut()
        .map_err(|_| Status::InternalFailure)?;
    let start = usize::try_from(start).map_err(|_| Status::BadArgument)?;
    let size = usize::try_from(size).map_err(|_| Status::BadArgument)?;
    let drained = if start == 0 { size.min(body.len()) } else { 0 };
    if body.len() - drained + data.len() > call.state().owner.spec.limits.body_bytes.max(body.len())
    {
        return Err(Status::InternalFailure.into());
    }
    Ok(body.write(start, size, data)?)
}

/// A gRPC message may be written while its callback runs; who reads it again sees that.
fn set_message(call: &mut Call<'_>, start: u32, size: u32, data: &[u8]) -> Result<(), Failure> {
    let start = usize::try_from(start).map_err(|_| Status::BadArgument)?;
    let size = usize::try_from(size).map_err(|_| Status::BadArgument)?;
    let Received::Message(message) = &mut call.state_mut().root.received else {
        return Err(Status::BadArgument.into());
    };
    if message.len().saturating_add(data.len()) > GRPC_MESSAGE_BYTES_MAX {
        return Err(Status::InternalFailure.into());
    }
    let mut body = Body::default();
    body.push(message.clone());
    body.write(start, size, data)?;
    *message = body.take();
    Ok(())
}

/// ABI 0.1.0 only.
pub(super) fn configuration(call: &mut Call<'_>, out: u32, out_len: u32) -> Result<(), Failure> {
    buffer_bytes(
        call,
        BufferType::PluginConfiguration as u32,
        0,
        u32::MAX,
        out,
        out_len,
    )
}
