//! Watching what a plugin's VM does: how long each callback takes, which hostcalls it makes, what memory it is asked for.

use crate::abi::Callback;

/// Sees what a VM does; see [`Plugin::record`](crate::Plugin::record). Told on the worker's thread, while nothing else runs there.
pub trait Recorder {
    /// A callback returned, or broke. `ns` is how long it took, its hostcalls included, by the embedder's clock; `operators` how many Wasm
    /// operators it ran, where the runtime counts them ([`RuntimeOptions::count_operators`](crate::RuntimeOptions::count_operators)).
    fn callback(&self, callback: Callback, ns: u64, operators: Option<u64>);

    /// The guest made a hostcall, by its name in the ABI.
    fn hostcall(&self, name: &'static str);

    /// The guest was asked for this many bytes, to be handed a value in.
    fn allocation(&self, bytes: u32);
}
