//! [`export!`]: makes a Proxy-Wasm module of a control, and writes its metadata into the module.
//!
//! The custom section `portcullis` is UTF-8 lines, `key=value`: `name`, `version`, `summary` (the crate's
//! description), `authenticates` and `awaits_body` (0 or 1), `callbacks` (exports, joined by commas). It is written at
//! compile time, so a host reads it without running anything. What is known only after linking (`capabilities`, and the
//! schema of the configuration in the section `portcullis.schema`) is added when the module is finished (`portcullis build`).

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::callbacks::Callbacks;
use crate::contexts::Contexts;
use crate::control::Metadata;
use crate::enforcement::Flow;
use crate::filter::Filter;
#[cfg(target_arch = "wasm32")]
use crate::host::ActiveHost;

/// Exports a control as a Proxy-Wasm module. For a crate of type `cdylib`, built for `wasm32-wasip1`; on any other
/// target it exports nothing, so the same file also builds natively.
/// Used as `portcullis_sdk::export!(MyControl);`, once a crate; see `examples/smallest.rs`.
///
/// ```
/// use portcullis_sdk::prelude::*;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// struct MyControl;
///
/// impl Control for MyControl {
///     const METADATA: Metadata = Metadata::new("my-control", "1.0.0", Callbacks::REQUEST_HEADERS);
///     type Config = Config;
///     type State = ();
///
///     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
///         Ok(Self)
///     }
/// }
///
/// portcullis_sdk::export!(MyControl);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export {
    ($control:ty) => {
        $crate::export_filter!(
            $crate::export_parts::Plugin<$control>,
            <$control as $crate::Control>::METADATA
        );
    };
}

/// Exports several controls as one Proxy-Wasm module, which runs those that its configuration names, in its order, as a
/// proxy runs a chain of filters: `portcullis_sdk::policy!(SecurityHeaders, JwtAuth, MyControl);`, once a crate. The
/// module is called as the crate is. At most 16.
///
/// Its configuration: `{"controls": [{"control": NAME, "filter": NAME, "configuration": {…}}, …]}`. `filter` is unique
/// and keeps the control's shared data apart; left out, it is the control's name. `"measure_one_in": 100` beside it
/// measures the time of each control's callbacks in one exchange of a hundred.
///
/// ```
/// use portcullis_sdk::prelude::*;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// # struct First;
/// #
/// # impl Control for First {
/// #     const METADATA: Metadata = Metadata::new("first", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// # }
/// # struct Second;
/// #
/// # impl Control for Second {
/// #     const METADATA: Metadata = Metadata::new("second", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// # }
///
/// // Two controls, each as for `export!`.
/// portcullis_sdk::policy!(First, Second);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! policy {
    ($($control:ty),+ $(,)?) => {
        $crate::export_filter!(
            $crate::export_parts::Policy<($($control,)+)>,
            $crate::export_parts::metadata::<($($control,)+)>(
                env!("CARGO_PKG_NAME"),
                env!("CARGO_PKG_VERSION"),
            )
        );
    };
}

/// What [`export!`] and [`policy!`](crate::policy!) have in common: the section, and every callback of a filter. Those
/// that its metadata does not list are cut from the linked module.
#[doc(hidden)]
#[macro_export]
macro_rules! export_filter {
    ($filter:ty, $metadata:expr) => {
        // Natively nothing is exported; that it is a control is checked all the same.
        #[cfg(not(target_arch = "wasm32"))]
        const _: &$crate::Metadata = &$metadata;

        #[cfg(target_arch = "wasm32")]
        #[allow(
            unsafe_code,
            reason = "hosts find functions and sections by their names"
        )]
        const _: () = {
            use $crate::export_parts::{self as parts, Contexts, Filter, Flow};

            const METADATA: $crate::Metadata = $metadata;
            const SUMMARY: &str = env!("CARGO_PKG_DESCRIPTION");

            #[used]
            #[unsafe(link_section = "portcullis")]
            static SECTION: [u8; parts::section_len(&METADATA, SUMMARY)] =
                parts::section(&METADATA, SUMMARY);

            ::std::thread_local! {
                static CONTEXTS: ::std::cell::RefCell<Contexts<$filter>> =
                    const { ::std::cell::RefCell::new(Contexts::new(parts::HOST)) };
            }

            fn enter<T>(call: impl FnOnce(&mut Contexts<$filter>) -> T) -> T {
                parts::enter(&CONTEXTS, call)
            }

            fn action(
                id: u32,
                call: impl FnOnce(&mut $filter, &mut <$filter as Filter>::Exchange) -> Flow,
            ) -> u32 {
                enter(|contexts| parts::action(contexts.stream(id, call)))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            extern "C" fn _initialize() {
                parts::construct();
            }

            // Makes the JSON Schema of the configuration; it is cut from the module that ships.
            #[unsafe(no_mangle)]
            extern "C" fn portcullis_schema() -> u64 {
                parts::schema::<$filter>()
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
                parts::allocate(size)
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
                enter(|contexts| contexts.create(id, parent));
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_configure(root: u32, _size: usize) -> u32 {
                enter(|contexts| u32::from(contexts.configure(root)))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_tick(root: u32) {
                enter(|contexts| contexts.on_tick(root));
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_http_call_response(
                root: u32,
                call: u32,
                header_count: usize,
                body_size: usize,
                _trailer_count: usize,
            ) {
                enter(|contexts| {
                    contexts.on_http_call_response(root, call, header_count, body_size)
                });
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_receive(root: u32, call: u32, size: usize) {
                enter(|contexts| contexts.on_grpc_call_response(root, call, Ok(size)));
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_close(root: u32, call: u32, status: u32) {
                enter(|contexts| contexts.on_grpc_call_response(root, call, Err(status)));
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_headers(id: u32, _count: usize, end: u32) -> u32 {
                action(id, |filter, exchange| {
                    filter.on_request_headers(exchange, id, end != 0)
                })
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_body(id: u32, size: usize, end: u32) -> u32 {
                action(id, |filter, exchange| {
                    filter.on_request_body(exchange, size, end != 0)
                })
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_headers(id: u32, _count: usize, _end: u32) -> u32 {
                action(id, Filter::on_response_headers)
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_body(id: u32, size: usize, end: u32) -> u32 {
                action(id, |filter, exchange| {
                    filter.on_response_body(exchange, size, end != 0)
                })
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_log(id: u32) {
                enter(|contexts| contexts.stream(id, |filter, exchange| filter.on_log(exchange)));
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_delete(id: u32) {
                enter(|contexts| contexts.delete(id));
            }
        };
    };
}

/// Enters the module. A host that calls back into a module within its own callback breaks the ABI: the module ends
/// rather than guess.
pub fn enter<F: Filter, T>(
    contexts: &'static LocalKey<RefCell<Contexts<F>>>,
    call: impl FnOnce(&mut Contexts<F>) -> T,
) -> T {
    contexts.with(|contexts| match contexts.try_borrow_mut() {
        Ok(mut contexts) => call(&mut contexts),
        Err(_) => std::process::abort(),
    })
}

/// The ABI's action: 0 goes on, 1 holds the stream.
pub fn action(flow: Flow) -> u32 {
    u32::from(flow != Flow::Continue)
}

/// The host that runs this module.
#[cfg(target_arch = "wasm32")]
pub const HOST: ActiveHost = ActiveHost::new();

/// Bytes of the section.
pub const fn section_len(metadata: &Metadata, summary: &str) -> usize {
    let mut counter = Writer::<0> { bytes: [], at: 0 };
    counter.metadata(metadata, summary);
    counter.at
}

/// The section itself; `N` is [`section_len`].
pub const fn section<const N: usize>(metadata: &Metadata, summary: &str) -> [u8; N] {
    let mut writer = Writer {
        bytes: [0; N],
        at: 0,
    };
    writer.metadata(metadata, summary);
    writer.bytes
}

/// Writes what fits and counts all of it; in constants there is neither `Vec` nor iterator.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn metadata(&mut self, metadata: &Metadata, summary: &str) {
        self.line("name=", metadata.name);
        self.line("version=", metadata.version);
        self.line("summary=", summary);
        self.line(
            "authenticates=",
            if metadata.authenticates { "1" } else { "0" },
        );
        self.line("awaits_body=", if metadata.awaits_body { "1" } else { "0" });
        self.text("callbacks=");
        let mut index = 0;
        let mut first = true;
        while index < Callbacks::EXPORTS.len() {
            #[expect(
                clippy::indexing_slicing,
                reason = "bounded by the loop, and run by the compiler"
            )]
            let (callback, export) = Callbacks::EXPORTS[index];
            if metadata.callbacks.contains(callback) {
                if !first {
                    self.text(",");
                }
                self.text(export);
                first = false;
            }
            index += 1;
        }
        self.text("\n");
    }

    const fn line(&mut self, key: &str, value: &str) {
        self.text(key);
        self.text(value);
        self.text("\n");
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "bounded by the loop, and run by the compiler"
    )]
    const fn text(&mut self, text: &str) {
        let text = text.as_bytes();
        let mut index = 0;
        while index < text.len() {
            if self.at < N {
                self.bytes[self.at] = text[index];
            }
            self.at += 1;
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{section, section_len};
    use crate::{Callbacks, Metadata};

    #[test]
    fn writes_one_line_a_key() {
        const METADATA: Metadata = Metadata {
            name: "tls-policy",
            version: "1.2.3",
            authenticates: false,
            awaits_body: false,
            callbacks: Callbacks::REQUEST_HEADERS.and(Callbacks::LOG),
        };
        const SECTION: [u8; section_len(&METADATA, "A floor")] = section(&METADATA, "A floor");
        assert_eq!(
            std::str::from_utf8(&SECTION),
            Ok(
                "name=tls-policy\nversion=1.2.3\nsummary=A floor\nauthenticates=0\nawaits_body=0\n\
                callbacks=proxy_on_request_headers,proxy_on_log\n"
            )
        );
    }
}
