//! The callbacks of gRPC callouts.

use std::rc::Rc;

use super::{Broken, Vm};
use crate::{
    abi::Callback, callout::CalloutId, fields::Fields as _, grpc::GrpcEvent, state::Received,
};

impl Vm {
    /// Tells the plugin what it is to know of an event. One of another VM's callouts, or after the end, is dropped.
    pub(crate) fn grpc_event(&self, id: CalloutId, event: GrpcEvent) -> Result<(), Broken> {
        let told = self.root(|root| root.grpc.admit(id, event));
        let Some(event) = told.flatten() else {
            return Ok(());
        };
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let (callback, number, received, status) = match event {
            GrpcEvent::InitialMetadata(fields) => (
                Callback::GrpcReceiveInitialMetadata,
                size(fields.len()),
                Received::InitialMetadata(Rc::new(fields)),
                None,
            ),
            GrpcEvent::Message(message) => (
                Callback::GrpcReceive,
                size(message.len()),
                Received::Message(message),
                None,
            ),
            GrpcEvent::TrailingMetadata(fields) => (
                Callback::GrpcReceiveTrailingMetadata,
                size(fields.len()),
                Received::TrailingMetadata(Rc::new(fields)),
                None,
            ),
            GrpcEvent::Close(status) => (
                Callback::GrpcClose,
                status.code,
                Received::Nothing,
                Some(status),
            ),
        };
        self.enter(callback, None, |store, exports| {
            let Some(function) = exports.grpc(callback) else {
                return Ok(());
            };
            let root = &mut store.data_mut().root;
            root.received = received;
            if let Some(status) = status {
                root.status = (status.code, status.message);
            }
            let result = function.call(&mut *store, (self.root, id.0, number));
            let root = &mut store.data_mut().root;
            root.received = Received::Nothing;
            // Envoy keeps the number and forgets the text.
            root.status.1.clear();
            result
        })
    }
}
