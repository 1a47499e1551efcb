//! The contexts of a module, by the host's ids: root contexts are [`Filter`]s, stream contexts their exchanges.
//!
//! Why not the dispatcher of the `proxy-wasm` crate: it finds a context through two hashed maps at each callback, puts
//! each exchange into a box and behind a table of methods, and exports every callback there is. Hosts count ids up, so
//! a table indexed by an id's low bits has it at the first look.

use crate::enforcement::Flow;
use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
use crate::host::{ActiveHost, Host};
use crate::id_table::IdTable;

/// Everything of a module.
pub struct Contexts<F: Filter> {
    host: ActiveHost,
    roots: Vec<(u32, F)>,
    streams: IdTable<Stream<F>>,
}

struct Stream<F: Filter> {
    root: u32,
    exchange: F::Exchange,
}

impl<F: Filter> Contexts<F> {
    /// None yet.
    pub const fn new(host: ActiveHost) -> Self {
        Self {
            host,
            roots: Vec::new(),
            streams: IdTable::new(),
        }
    }

    /// `parent` is 0 for a root context.
    pub fn create(&mut self, id: u32, parent: u32) {
        if parent == 0 {
            self.roots.push((id, F::new(self.host.clone())));
        } else {
            self.streams.insert(
                id,
                Stream {
                    root: parent,
                    exchange: F::Exchange::default(),
                },
            );
        }
    }

    /// Forgets a context, root or stream.
    pub fn delete(&mut self, id: u32) {
        match self.streams.remove(id) {
            Some(mut stream) => {
                if let Some(filter) = find(&mut self.roots, stream.root) {
                    filter.on_delete(&mut stream.exchange);
                }
            }
            None => self.roots.retain(|(root, _)| *root != id),
        }
    }

    /// Configures a root context.
    pub fn configure(&mut self, root: u32) -> bool {
        find(&mut self.roots, root).is_some_and(F::configure)
    }

    /// A root context's tick.
    pub fn on_tick(&mut self, root: u32) {
        let released = find(&mut self.roots, root).map(F::on_tick);
        self.release(root, released.unwrap_or_default());
    }

    /// An answer to a call of a root context, or of one of its streams.
    pub fn on_http_call_response(
        &mut self,
        root: u32,
        id: u32,
        header_count: usize,
        body_size: usize,
    ) {
        let answer = CallAnswer {
            id,
            header_count,
            body_size,
        };
        let released = find(&mut self.roots, root).map(|it| it.on_http_call_response(answer));
        self.release(root, released.unwrap_or_default());
    }

    /// An answer to a gRPC call: a message of so many bytes, or a status.
    pub fn on_grpc_call_response(&mut self, root: u32, id: u32, outcome: Result<usize, u32>) {
        let answer = GrpcAnswer { id, outcome };
        let released = find(&mut self.roots, root).map(|it| it.on_grpc_call_response(answer));
        self.release(root, released.unwrap_or_default());
    }

    /// Calls a stream's callback. A host that names a context that it never made, or has deleted, breaks the ABI: the
    /// module ends rather than guess.
    pub fn stream<T>(&mut self, id: u32, call: impl FnOnce(&mut F, &mut F::Exchange) -> T) -> T {
        let called = self.streams.at(id).and_then(|stream| {
            let filter = find(&mut self.roots, stream.root)?;
            Some(call(filter, &mut stream.exchange))
        });
        match called {
            Some(result) => result,
            None => self.host.trap(),
        }
    }

    /// Lets streams go on that were held; those that are gone by now are left alone.
    fn release(&mut self, root: u32, released: Vec<Release>) {
        for release in released {
            let context = release.context;
            let Some(stream) = self.streams.at(context) else {
                continue;
            };
            let Some(filter) = find(&mut self.roots, root) else {
                return;
            };
            // What the stream's hostcalls act on until the callback is over.
            if self.host.set_effective_context(context).is_err() {
                continue;
            }
            let flow = filter.release(&mut stream.exchange, release);
            if flow == Flow::Continue && self.host.continue_request().is_err() {
                self.host.trap();
            }
        }
    }
}

/// There are few root contexts: one for each configuration of the filter.
fn find<F>(roots: &mut [(u32, F)], id: u32) -> Option<&mut F> {
    roots
        .iter_mut()
        .find(|(root, _)| *root == id)
        .map(|(_, filter)| filter)
}
