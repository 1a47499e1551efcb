//! The callbacks of TCP connections; their data goes through [`Vm::phase`].

use super::{Broken, Vm};
use crate::{
    abi::{Action, Callback},
    context::StreamContext,
};

impl Vm {
    /// A connection was accepted.
    pub(crate) fn new_connection(&self, context: &StreamContext) -> Result<Action, Broken> {
        let id = context.cell().map_or(0, |cell| cell.context.get());
        let callback = Callback::NewConnection;
        let number = self.enter(callback, Some(context), |store, exports| {
            match &exports.new_connection {
                Some(function) => function.call(store, id),
                None => Ok(0),
            }
        })?;
        Ok(Action::of_tcp(number))
    }

    /// One of a connection's two sides is closed.
    pub(crate) fn connection_closed(
        &self,
        callback: Callback,
        context: &StreamContext,
        peer: u32,
    ) -> Result<(), Broken> {
        let id = context.cell().map_or(0, |cell| cell.context.get());
        self.enter(callback, Some(context), |store, exports| {
            match exports.connection_close(callback) {
                Some(function) => function.call(store, (id, peer)),
                None => Ok(()),
            }
        })
    }
}
