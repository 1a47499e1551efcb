//! What a VM can be called for: its callbacks, looked up once.

use wasmtime::{Instance, Store, TypedFunc, WasmParams, WasmResults};

use crate::{
    abi::{AbiVersion, Callback, Callbacks},
    state::VmState,
};

pub(crate) type One = TypedFunc<u32, ()>;
pub(crate) type Two = TypedFunc<(u32, u32), ()>;
pub(crate) type Three = TypedFunc<(u32, u32, u32), ()>;
type Four = TypedFunc<(u32, u32, u32, u32), ()>;
type Five = TypedFunc<(u32, u32, u32, u32, u32), ()>;

/// Callbacks that a module has.
pub(crate) struct Exports {
    pub(crate) context_create: Option<Two>,
    pub(crate) tick: Option<One>,
    pub(crate) http_call_response: Option<Five>,
    pub(crate) redis_call_response: Option<Four>,
    pub(crate) queue_ready: Option<Two>,
    pub(crate) log: Option<One>,
    pub(crate) done: Option<TypedFunc<u32, u32>>,
    pub(crate) delete: Option<One>,
    pub(crate) new_connection: Option<TypedFunc<u32, u32>>,
    downstream_data: Option<Phase>,
    upstream_data: Option<Phase>,
    downstream_connection_close: Option<Two>,
    upstream_connection_close: Option<Two>,
    grpc_receive_initial_metadata: Option<Three>,
    grpc_receive: Option<Three>,
    grpc_receive_trailing_metadata: Option<Three>,
    grpc_close: Option<Three>,
    request_headers: Option<Phase>,
    request_body: Option<Phase>,
    request_trailers: Option<Phase>,
    response_headers: Option<Phase>,
    response_body: Option<Phase>,
    response_trailers: Option<Phase>,
}

/// A phase callback: context, size or count, and the end of the stream for those who are told.
pub(crate) enum Phase {
    Three(TypedFunc<(u32, u32, u32), u32>),
    Two(TypedFunc<(u32, u32), u32>),
}

impl Exports {
    /// Those of `callbacks`.
    pub(crate) fn find(
        instance: &Instance,
        store: &mut Store<VmState>,
        abi: AbiVersion,
        callbacks: Callbacks,
    ) -> Self {
        let three = |store: &mut Store<VmState>, callback: Callback| {
            callback_of(instance, store, callbacks, callback).map(Phase::Three)
        };
        let two = |store: &mut Store<VmState>, callback: Callback| {
            callback_of(instance, store, callbacks, callback).map(Phase::Two)
        };
        let headers = |store: &mut Store<VmState>, callback| match abi {
            AbiVersion::V0_1_0 => two(store, callback),
            AbiVersion::V0_2_0 | AbiVersion::V0_2_1 | AbiVersion::V0_2_100 => {
                three(store, callback)
            }
        };
        Self {
            context_create: callback_of(instance, store, callbacks, Callback::ContextCreate),
            tick: callback_of(instance, store, callbacks, Callback::Tick),
            http_call_response: callback_of(instance, store, callbacks, Callback::HttpCallResponse),
            redis_call_response: callback_of(
                instance,
                store,
                callbacks,
                Callback::RedisCallResponse,
            ),
            queue_ready: callback_of(instance, store, callbacks, Callback::QueueReady),
            log: callback_of(instance, store, callbacks, Callback::Log),
            done: callback_of(instance, store, callbacks, Callback::Done),
            delete: callback_of(instance, store, callbacks, Callback::Delete),
            new_connection: callback_of(instance, store, callbacks, Callback::NewConnection),
            downstream_data: three(store, Callback::DownstreamData),
            upstream_data: three(store, Callback::UpstreamData),
            downstream_connection_close: callback_of(
                instance,
                store,
                callbacks,
                Callback::DownstreamConnectionClose,
            ),
            upstream_connection_close: callback_of(
                instance,
                store,
                callbacks,
                Callback::UpstreamConnectionClose,
            ),
            grpc_receive_initial_metadata: callback_of(
                instance,
                store,
                callbacks,
                Callback::GrpcReceiveInitialMetadata,
            ),
            grpc_receive: callback_of(instance, store, callbacks, Callback::GrpcReceive),
            grpc_receive_trailing_metadata: callback_of(
                instance,
                store,
                callbacks,
                Callback::GrpcReceiveTrailingMetadata,
            ),
            grpc_close: callback_of(instance, store, callbacks, Callback::GrpcClose),
            request_headers: headers(store, Callback::RequestHeaders),
            request_body: three(store, Callback::RequestBody),
            request_trailers: two(store, Callback::RequestTrailers),
            response_headers: headers(store, Callback::ResponseHeaders),
            response_body: three(store, Callback::ResponseBody),
            response_trailers: two(store, Callback::ResponseTrailers),
        }
    }

    pub(crate) fn connection_close(&self, callback: Callback) -> Option<&Two> {
        match callback {
            Callback::DownstreamConnectionClose => self.downstream_connection_close.as_ref(),
            Callback::UpstreamConnectionClose => self.upstream_connection_close.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn grpc(&self, callback: Callback) -> Option<&Three> {
        match callback {
            Callback::GrpcReceiveInitialMetadata => self.grpc_receive_initial_metadata.as_ref(),
            Callback::GrpcReceive => self.grpc_receive.as_ref(),
            Callback::GrpcReceiveTrailingMetadata => self.grpc_receive_trailing_metadata.as_ref(),
            Callback::GrpcClose => self.grpc_close.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn phase(&self, callback: Callback) -> Option<&Phase> {
        match callback {
            Callback::RequestHeaders => self.request_headers.as_ref(),
            Callback::RequestBody => self.request_body.as_ref(),
            Callback::RequestTrailers => self.request_trailers.as_ref(),
            Callback::ResponseHeaders => self.response_headers.as_ref(),
            Callback::ResponseBody => self.response_body.as_ref(),
            Callback::ResponseTrailers => self.response_trailers.as_ref(),
            Callback::DownstreamData => self.downstream_data.as_ref(),
            Callback::UpstreamData => self.upstream_data.as_ref(),
            _ => None,
        }
    }
}

/// A callback's function, if it is to be called.
pub(crate) fn callback_of<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<VmState>,
    callbacks: Callbacks,
    callback: Callback,
) -> Option<TypedFunc<P, R>> {
    if callbacks.contains(callback) {
        function(instance, store, callback.name())
    } else {
        None
    }
}

/// Signatures were checked when the module was loaded, so a missing function is one that the module does not export.
pub(crate) fn function<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<VmState>,
    name: &str,
) -> Option<TypedFunc<P, R>> {
    instance.get_typed_func(store, name).ok()
}

pub(crate) fn call_one(
    function: &Option<One>,
    store: &mut Store<VmState>,
    id: u32,
) -> wasmtime::Result<()> {
    match function {
        Some(function) => function.call(store, id),
        None => Ok(()),
    }
}
