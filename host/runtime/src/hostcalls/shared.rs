//! Shared data and shared queues.

use std::sync::Arc;

use super::Call;
use crate::{
    abi::{Failure, Status},
    memory,
};

pub(super) fn shared_data(
    call: &mut Call<'_>,
    key: u32,
    key_len: u32,
    out: u32,
    out_len: u32,
    cas: u32,
) -> Result<(), Failure> {
    let (value, number) = call
        .state()
        .owner
        .namespace
        .get(call.bytes(key, key_len)?)?;
    call.check_out(cas)?;
    call.give(&value, out, out_len)?;
    call.write_u32(cas, number)
}

pub(super) fn set_shared_data(
    call: &mut Call<'_>,
    key: u32,
    key_len: u32,
    value: u32,
    len: u32,
    cas: u32,
) -> Result<(), Failure> {
    let (memory, state) = call.parts();
    let key = memory::slice(memory, key, key_len)?;
    let value = memory::slice(memory, value, len)?;
    Ok(state.owner.namespace.set(key, value, cas)?)
}

pub(super) fn register_shared_queue(
    call: &mut Call<'_>,
    name: u32,
    len: u32,
    out: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    let owner = &call.state().owner;
    let name = call.bytes(name, len)?;
    let id =
        owner
            .shared
            .queues
            .register(&owner.spec.vm_id, name, owner.embedder.worker(), owner.id)?;
    call.write_u32(out, id)
}

/// An empty `vm_id` is one's own.
pub(super) fn resolve_shared_queue(
    call: &mut Call<'_>,
    vm_id: u32,
    vm_id_len: u32,
    name: u32,
    len: u32,
    out: u32,
) -> Result<(), Failure> {
    let owner = &call.state().owner;
    let name = call.bytes(name, len)?;
    let vm_id = match call.bytes(vm_id, vm_id_len)? {
        b"" => owner.spec.vm_id.as_str(),
        other => std::str::from_utf8(other).map_err(|_| Status::NotFound)?,
    };
    let id = owner.shared.queues.resolve(vm_id, name)?;
    call.write_u32(out, id)
}

pub(super) fn enqueue_shared_queue(
    call: &mut Call<'_>,
    queue: u32,
    data: u32,
    len: u32,
) -> Result<(), Failure> {
    let owner = &call.state().owner;
    let target = owner.shared.queues.enqueue(queue, call.bytes(data, len)?)?;
    owner.embedder.notify_queue(target);
    Ok(())
}

pub(super) fn dequeue_shared_queue(
    call: &mut Call<'_>,
    queue: u32,
    out: u32,
    out_len: u32,
) -> Result<(), Failure> {
    call.check_out(out)?;
    call.check_out(out_len)?;
    let shared = Arc::clone(&call.state().owner.shared);
    let entry = shared.queues.dequeue(queue)?;
    call.give(&entry, out, out_len)
}
