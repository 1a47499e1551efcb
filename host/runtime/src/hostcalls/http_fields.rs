//! HTTP fields: header and trailer maps, served in place from the map that the embedder lent.
//!
//! As in Envoy: names are case-insensitive and stored lower-case; a look-up gives the first value; a known map that is not open gives
//! `BAD_ARGUMENT` for values and an empty list for pairs; the size is that of names and values, and only of maps that can be changed.
//! Unlike Envoy: names and values that could split a message, and malformed pairs, are refused with `BAD_ARGUMENT`.

use std::{borrow::Cow, cell::Ref, rc::Rc};

use super::Call;
use crate::{
    abi::{AbiVersion, Failure, MapType, Status},
    callout::Answer,
    context::StreamContext,
    fields::{FieldList, Fields, check_name, check_value, lower},
    limits::{HEADER_BYTES_MAX, HEADERS_MAX},
    pairs,
    state::Received,
    stream::StreamCell,
};

/// Where a map stands. Holds the map's owner, so that the map can be lent while the guest allocates.
enum Source {
    Stream(StreamContext, MapType),
    Answer(Rc<Answer>, MapType),
    Metadata(Rc<FieldList>),
}

enum Lent<'a> {
    Stream(Ref<'a, dyn Fields>),
    Answer(&'a dyn Fields),
}

impl Lent<'_> {
    fn fields(&self) -> &dyn Fields {
        match self {
            Self::Stream(map) => &**map,
            Self::Answer(map) => *map,
        }
    }
}

impl Source {
    fn find(call: &Call<'_>, map: MapType) -> Result<Self, Status> {
        match map {
            MapType::HttpCallResponseHeaders | MapType::HttpCallResponseTrailers => {
                // A call that broke has neither, one answered seldom has trailers.
                let has_map = |answer: &&Rc<Answer>| match map {
                    MapType::HttpCallResponseHeaders => !answer.headers.is_empty(),
                    _ => !answer.trailers.is_empty(),
                };
                let answer = call.state().root.answer.as_ref();
                let answer = answer.filter(has_map).ok_or(Status::BadArgument)?;
                Ok(Self::Answer(Rc::clone(answer), map))
            }
            MapType::GrpcInitialMetadata | MapType::GrpcTrailingMetadata => {
                match (&call.state().root.received, map) {
                    (Received::InitialMetadata(fields), MapType::GrpcInitialMetadata)
                    | (Received::TrailingMetadata(fields), MapType::GrpcTrailingMetadata) => {
                        Ok(Self::Metadata(Rc::clone(fields)))
                    }
                    _ => Err(Status::BadArgument),
                }
            }
            _ => Ok(Self::Stream(call.stream().ok_or(Status::BadArgument)?, map)),
        }
    }

    fn lend(&self) -> Result<Lent<'_>, Status> {
        Ok(match self {
            Self::Stream(context, map) => Lent::Stream(context.map(*map)?),
            Self::Answer(answer, MapType::HttpCallResponseHeaders) => Lent::Answer(&answer.headers),
            Self::Answer(answer, _) => Lent::Answer(&answer.trailers),
            Self::Metadata(fields) => Lent::Answer(fields.as_ref()),
        })
    }
}

/// The name under which a map has a field: in lower case, and as in Envoy a request's `host` is its `:authority`.
pub(super) fn known_as(map: MapType, name: &[u8]) -> Cow<'_, [u8]> {
    match lower(name) {
        name if map == MapType::RequestHeaders && *name == *b"host" => Cow::Borrowed(b":authority"),
        name => name,
    }
}

fn known(map: u32) -> Result<MapType, Status> {
    MapType::from_u32(map).ok_or(Status::BadArgument)
}

pub(super) fn header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    out: u32,
    out_len: u32,
) -> Result<(), Failure> {
    let map = known(map)?;
    let source = Source::find(call, map);
    let name = call.bytes(key, key_len)?;
    let source = source?;
    let lent = source.lend()?;
    match lent.fields().get(&known_as(map, name)) {
        Some(value) => call.give(value, out, out_len),
        None if call.state().abi == AbiVersion::V0_1_0 => call.give(&[], out, out_len),
        None => Err(Status::NotFound.into()),
    }
}

pub(super) fn header_map_pairs(
    call: &mut Call<'_>,
    map: u32,
    out: u32,
    out_len: u32,
) -> Result<(), Failure> {
    let map = known(map)?;
    let source = Source::find(call, map);
    let lent = match &source {
        Ok(source) => source.lend(),
        Err(status) => Err(*status),
    };
    match lent {
        Ok(lent) if !lent.fields().is_empty() => {
            let fields = lent.fields();
            call.give_with(pairs::encoded_len(fields), out, out_len, |place| {
                pairs::encode(fields, place)
            })
        }
        Ok(_) | Err(Status::BadArgument) => call.give(&[], out, out_len),
        Err(status) => Err(status.into()),
    }
}

pub(super) fn header_map_size(call: &mut Call<'_>, map: u32, out: u32) -> Result<(), Failure> {
    let map = known(map)?;
    let size = call
        .stream()
        .ok_or(Status::BadArgument)?
        .map_mut(map)?
        .byte_size();
    call.write_u32(out, u32::try_from(size).unwrap_or(u32::MAX))
}

pub(super) fn add_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    len: u32,
) -> Result<(), Failure> {
    write(
        call,
        map,
        key,
        key_len,
        value,
        len,
        |fields, name, value| {
            // A pseudo-header stands once.
            if name.starts_with(b":") {
                fields.replace(name, value)
            } else {
                fields.add(name, value)
            }
        },
    )
}

pub(super) fn replace_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    len: u32,
) -> Result<(), Failure> {
    write(
        call,
        map,
        key,
        key_len,
        value,
        len,
        |fields, name, value| fields.replace(name, value),
    )
}

pub(super) fn remove_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
) -> Result<(), Failure> {
    change(call, map, key, key_len, |_, _, fields, name| {
        fields.remove(name);
        Ok(())
    })
}

/// Puts one field into a map, if it is valid and fits.
fn write<E>(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    len: u32,
    put: impl FnOnce(&mut dyn Fields, &[u8], &[u8]) -> Result<(), E>,
) -> Result<(), Failure> {
    change(call, map, key, key_len, |call, stream, fields, name| {
        let value = call.bytes(value, len)?;
        check(stream, fields, name, value)?;
        put(fields, name, value).map_err(|_| Status::BadArgument.into())
    })
}

fn change(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    act: impl FnOnce(&Call<'_>, &StreamCell, &mut dyn Fields, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let map = known(map)?;
    let name = known_as(map, call.bytes(key, key_len)?);
    let context = call.stream().ok_or(Status::BadArgument)?;
    let mut fields = context.map_mut(map)?;
    act(call, &context.stream, &mut *fields, &name)?;
    if map == MapType::RequestHeaders && matches!(&*name, b":path" | b":authority") {
        context.stream.route_stale.set(true);
    }
    Ok(())
}

/// Whether one more field is valid and fits.
fn check(
    stream: &StreamCell,
    fields: &dyn Fields,
    name: &[u8],
    value: &[u8],
) -> Result<(), Status> {
    check_name(name)
        .and_then(|()| check_value(name, value))
        .map_err(|_| Status::BadArgument)?;
    let fits = fields.len() < HEADERS_MAX && stream.measure(fields, name.len() + value.len());
    fits.then_some(()).ok_or(Status::BadArgument)
}

/// All or nothing: a map with one bad pair changes nothing.
pub(super) fn set_header_map_pairs(
    call: &mut Call<'_>,
    map: u32,
    pairs: u32,
    len: u32,
) -> Result<(), Failure> {
    let map = known(map)?;
    let pairs = checked_pairs(call.bytes(pairs, len)?)?;
    let context = call.stream().ok_or(Status::BadArgument)?;
    let mut fields = context.map_mut(map)?;
    fields.clear();
    for (name, value) in pairs {
        let added = match known_as(map, &name) {
            name if name.starts_with(b":") => fields.replace(&name, value),
            name => fields.add(&name, value),
        };
        added.map_err(|_| Status::BadArgument)?;
    }
    if map == MapType::RequestHeaders {
        context.stream.route_stale.set(true);
    }
    Ok(())
}

/// A name in lower case, and a value.
pub(super) type LowerPair<'a> = (Cow<'a, [u8]>, &'a [u8]);

/// Pairs from a guest, each name lower-cased, each name and value valid, all together within the bounds of a map.
pub(super) fn checked_pairs(bytes: &[u8]) -> Result<Vec<LowerPair<'_>>, Status> {
    check_pairs(
        pairs::decode(bytes).map_err(|_| Status::BadArgument)?,
        bytes,
    )
}

/// The same where bytes that are no pairs at all count as none, as in Envoy.
pub(super) fn checked_pairs_or_none(bytes: &[u8]) -> Result<Vec<LowerPair<'_>>, Status> {
    check_pairs(pairs::decode(bytes).unwrap_or_default(), bytes)
}

fn check_pairs<'a>(
    pairs: Vec<(&'a [u8], &'a [u8])>,
    bytes: &[u8],
) -> Result<Vec<LowerPair<'a>>, Status> {
    if pairs.len() > HEADERS_MAX || bytes.len() > HEADER_BYTES_MAX {
        return Err(Status::BadArgument);
    }
    let check = |(name, value)| {
        let name = lower(name);
        check_name(&name)
            .and_then(|()| check_value(&name, value))
            .ok()?;
        Some((name, value))
    };
    pairs
        .into_iter()
        .map(check)
        .collect::<Option<_>>()
        .ok_or(Status::BadArgument)
}
