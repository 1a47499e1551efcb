//! Metrics that plugins define. Ids are per VM; as in Envoy the low two bits tell the kind, and each definition gives a new id.

use std::{rc::Rc, sync::Arc};

use super::Call;
use crate::{
    abi::{Failure, MetricKind, Status},
    limits::METRIC_IDS_MAX,
    metrics::Metric,
};

pub(super) fn define_metric(
    call: &mut Call<'_>,
    kind: u32,
    name: u32,
    len: u32,
    out: u32,
) -> Result<(), Failure> {
    let kind = MetricKind::from_u32(kind).ok_or(Status::BadArgument)?;
    call.check_out(out)?;
    if call.state().metrics.len() >= METRIC_IDS_MAX {
        return Err(Status::InternalFailure.into());
    }
    let owner = &call.state().owner;
    let metric = owner
        .shared
        .metrics
        .define(&owner.spec.vm_id, kind, call.bytes(name, len)?)?;
    let metrics = Rc::make_mut(&mut call.state_mut().metrics);
    metrics.push(metric);
    let number = u32::try_from(metrics.len()).map_err(|_| Status::InternalFailure)?;
    call.write_u32(out, number << 2 | kind as u32)
}

fn find<'a>(call: &'a Call<'_>, id: u32) -> Result<&'a Arc<Metric>, Status> {
    let index = usize::try_from(id >> 2)
        .ok()
        .and_then(|number| number.checked_sub(1));
    index
        .and_then(|index| call.state().metrics.get(index))
        .ok_or(Status::NotFound)
}

/// Histograms, and what the low bits know as no kind at all, have no one value. Envoy looks at these bits first.
fn check_has_value(id: u32) -> Result<(), Status> {
    match id & 3 {
        0 | 1 => Ok(()),
        _ => Err(Status::BadArgument),
    }
}

pub(super) fn increment_metric(call: &mut Call<'_>, id: u32, delta: i64) -> Result<(), Failure> {
    check_has_value(id)?;
    Ok(find(call, id)?.increment(delta)?)
}

pub(super) fn record_metric(call: &mut Call<'_>, id: u32, value: u64) -> Result<(), Failure> {
    find(call, id)?.record(value);
    Ok(())
}

pub(super) fn metric(call: &mut Call<'_>, id: u32, out: u32) -> Result<(), Failure> {
    check_has_value(id)?;
    let value = find(call, id)?.value()?;
    call.write(out, &value.to_le_bytes())
}
