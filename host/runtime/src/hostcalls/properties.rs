//! Properties: read under Envoy's names (`property.rs`), set for later filters of the same exchange.

use super::Call;
use crate::{
    abi::{Failure, Status},
    filter_state,
    limits::PROPERTY_PATH_BYTES_MAX,
    property,
    stream::Open,
};

pub(super) fn property(
    call: &mut Call<'_>,
    path: u32,
    path_len: u32,
    out: u32,
    out_len: u32,
) -> Result<(), Failure> {
    let context = call.stream();
    let spec = std::sync::Arc::clone(&call.state().owner.spec);
    let path = call.bytes(path, path_len)?;
    if path.len() > PROPERTY_PATH_BYTES_MAX {
        return Err(Status::NotFound.into());
    }
    let Some(context) = context else {
        let value = property::find(path, &spec, None, Open::default())?;
        return call.give(value.as_bytes(), out, out_len);
    };
    let exchange = context.exchange()?;
    match property::find(path, &spec, Some(&exchange), context.cell()?.open.get()) {
        Ok(value) => call.give(value.as_bytes(), out, out_len),
        Err(Status::NotFound) => {
            let properties = context
                .stream
                .properties
                .try_borrow()
                .map_err(|_| Status::InternalFailure)?;
            // Envoy's own objects stand under a path of two segments, what plugins set under one.
            let key = property::key(path).ok_or(Status::NotFound)?;
            let value = properties
                .get(key)
                .cloned()
                .or_else(|| exchange.info.connection.state.get(key))
                .ok_or(Status::NotFound)?;
            call.give(&value, out, out_len)
        }
        Err(status) => Err(status.into()),
    }
}

/// What a plugin sets in its own context under this prefix is meant for this host; see [`Plugin`](crate::Plugin).
const OWN_PREFIX: &[u8] = b"portcullis.";

/// Only a stream has properties that can be set, as in Envoy.
pub(super) fn set_property(
    call: &mut Call<'_>,
    path: u32,
    path_len: u32,
    value: u32,
    len: u32,
) -> Result<(), Failure> {
    let context = call.stream();
    let (memory, state) = call.parts();
    let path = crate::memory::slice(memory, path, path_len)?;
    let value = crate::memory::slice(memory, value, len)?;
    if path.len() > PROPERTY_PATH_BYTES_MAX {
        return Err(Status::BadArgument.into());
    }
    match context {
        Some(context) => filter_state::set(
            &context.stream.properties,
            &context.exchange()?.info.connection.state,
            path,
            value,
            state.root.declarations.of(path),
        )?,
        None if path.starts_with(OWN_PREFIX) => state.root.properties.set(path, value, false)?,
        None => return Err(Status::NotFound.into()),
    }
    Ok(())
}
