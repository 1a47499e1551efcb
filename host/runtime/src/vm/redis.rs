//! The callback of Redis callouts.

use bytes::Bytes;

use super::{Broken, Vm};
use crate::{
    abi::{Callback, Status},
    callout::CalloutId,
    redis::RedisReply,
    state::Received,
};

/// Higress' two statuses of a callout; what Redis itself says stands in the reply.
const OK: u32 = 0;
const NETWORK_ERROR: u32 = 1;

impl Vm {
    /// A reply to a callout of another VM, or one that came twice, is dropped.
    pub(crate) fn redis_reply(&self, id: CalloutId, reply: RedisReply) -> Result<(), Broken> {
        let expected = self.root(|root| {
            let position = root.calls.iter().position(|(call, _)| *call == id.0);
            position.map(|position| root.calls.swap_remove(position))
        });
        if expected.flatten().is_none() {
            return Ok(());
        }
        let (status, reply) = match reply {
            RedisReply::Reply(reply) => (OK, reply),
            RedisReply::Failed => (NETWORK_ERROR, Bytes::new()),
        };
        let size = u32::try_from(reply.len()).unwrap_or(u32::MAX);
        self.enter(Callback::RedisCallResponse, None, |store, exports| {
            let Some(function) = &exports.redis_call_response else {
                return Ok(());
            };
            let root = &mut store.data_mut().root;
            root.received = Received::RedisReply(reply);
            if status != OK {
                root.status = (
                    Status::BrokenConnection as u32,
                    Bytes::from_static(b"reset"),
                );
            }
            let result = function.call(&mut *store, (self.root, id.0, status, size));
            let root = &mut store.data_mut().root;
            root.received = Received::Nothing;
            // As after other callouts: the number stays, the text goes.
            root.status.1.clear();
            result
        })
    }
}
