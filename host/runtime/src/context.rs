//! Contexts: what a guest's context id stands for.
//!
//! As in Envoy: 0 is the VM, 1 the plugin (root), streams count from 2 and are never reused within a VM.

use std::{
    cell::{Ref, RefMut},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use crate::{
    abi::{MapType, Status},
    exchange::Exchange,
    fields::{FieldList, Fields},
    limits::CONTEXTS_MAX,
    stream::{FilterCell, Open, StreamCell},
};

/// The plugin's own context.
pub(crate) const ROOT_CONTEXT: u32 = 1;

/// One filter's context in one exchange.
#[derive(Clone)]
pub(crate) struct StreamContext {
    pub(crate) stream: Rc<StreamCell>,
    pub(crate) filter: usize,
}

impl StreamContext {
    /// Present by construction; a missing one is our own fault and fails the hostcall.
    pub(crate) fn cell(&self) -> Result<&FilterCell, Status> {
        self.stream
            .filters
            .get(self.filter)
            .ok_or(Status::InternalFailure)
    }

    /// The embedder holds a borrow only if it broke its contract; then the guest is told of a failure.
    pub(crate) fn exchange(&self) -> Result<Ref<'_, Exchange>, Status> {
        self.stream
            .exchange
            .try_borrow()
            .map_err(|_| Status::InternalFailure)
    }

    pub(crate) fn exchange_mut(&self) -> Result<RefMut<'_, Exchange>, Status> {
        self.stream
            .exchange
            .try_borrow_mut()
            .map_err(|_| Status::InternalFailure)
    }

    /// A map to read; `BadArgument` while it is not open. Trailers that were made at the end of a body can be read from then on.
    pub(crate) fn map(&self, map: MapType) -> Result<Ref<'_, dyn Fields>, Status> {
        let made = match map {
            MapType::RequestTrailers => Open::NEW_REQUEST_TRAILERS,
            MapType::ResponseTrailers => Open::NEW_RESPONSE_TRAILERS,
            _ => Open::LOG,
        };
        let open = open_for(map).ok_or(Status::BadArgument)?;
        if !self.cell()?.open.get().has(Open::LOG.with(made).with(open)) {
            return Err(Status::BadArgument);
        }
        let lent = Ref::filter_map(self.exchange()?, |exchange| match map {
            MapType::RequestHeaders => Some(exchange.request_headers.as_ref()),
            MapType::RequestTrailers => exchange.request_trailers.as_deref(),
            MapType::ResponseHeaders => exchange.response_headers.as_deref(),
            MapType::ResponseTrailers => exchange.response_trailers.as_deref(),
            _ => None,
        });
        lent.map_err(|_| Status::BadArgument)
    }

    /// A map to change; `BadArgument` while it is not open. At the end of a body, trailers are made on demand.
    pub(crate) fn map_mut(&self, map: MapType) -> Result<RefMut<'_, dyn Fields>, Status> {
        let open = self.cell()?.open.get();
        let creates = match map {
            MapType::RequestTrailers => open.has(Open::NEW_REQUEST_TRAILERS),
            MapType::ResponseTrailers => open.has(Open::NEW_RESPONSE_TRAILERS),
            _ => false,
        };
        if !creates && !open.has(open_for(map).ok_or(Status::BadArgument)?) {
            return Err(Status::BadArgument);
        }
        let lent = RefMut::filter_map(self.exchange_mut()?, |exchange| {
            let trailers = match map {
                MapType::RequestHeaders => return Some(exchange.request_headers.as_mut()),
                MapType::ResponseHeaders => return exchange.response_headers.as_deref_mut(),
                MapType::RequestTrailers => &mut exchange.request_trailers,
                MapType::ResponseTrailers => &mut exchange.response_trailers,
                _ => return None,
            };
            if creates && trailers.is_none() {
                *trailers = Some(Box::new(FieldList::new()));
            }
            trailers.as_deref_mut()
        });
        lent.map_err(|_| Status::BadArgument)
    }
}

fn open_for(map: MapType) -> Option<Open> {
    match map {
        MapType::RequestHeaders => Some(Open::REQUEST_HEADERS),
        MapType::RequestTrailers => Some(Open::REQUEST_TRAILERS),
        MapType::ResponseHeaders => Some(Open::RESPONSE_HEADERS),
        MapType::ResponseTrailers => Some(Open::RESPONSE_TRAILERS),
        _ => None,
    }
}

/// The stream contexts of a VM, by id.
pub(crate) struct Contexts {
    by_id: HashMap<u32, StreamContext, BuildHasherDefault<IdHasher>>,
    last: u32,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            by_id: HashMap::default(),
            last: ROOT_CONTEXT,
        }
    }
}

impl Contexts {
    /// Takes in a context and tells its id; `None` at the bound, or when all ids are used up.
    pub(crate) fn insert(&mut self, context: StreamContext) -> Option<u32> {
        if self.by_id.len() >= CONTEXTS_MAX {
            return None;
        }
        let id = self.last.checked_add(1)?;
        self.last = id;
        self.by_id.insert(id, context);
        Some(id)
    }

    /// An id for one more root context.
    pub(crate) fn next_root(&mut self) -> Option<u32> {
        self.last = self.last.checked_add(1)?;
        Some(self.last)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&StreamContext> {
        self.by_id.get(&id)
    }

    pub(crate) fn remove(&mut self, id: u32) {
        self.by_id.remove(&id);
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = StreamContext> + '_ {
        self.by_id.drain().map(|(_, context)| context)
    }
}

/// Ids are ours and count upwards, so nobody can choose colliding ones: a multiplication spreads them well enough.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
