//! [`export!`]: makes a Proxy-Wasm module of a control, and writes its metadata into the module.
//!
//! The custom section `portcullis` is UTF-8 lines, `key=value`: `name`, `version`, `summary` (the crate's
//! description), `authenticates` (0 or 1), `callbacks` (exports, joined by commas). It is written at compile time, so a
//! host reads it without running anything. What is known only after linking (`capabilities`, and the schema of the
//! configuration in the section `portcullis.schema`) is added when the module is finished (`portcullis build`).

use crate::callbacks::Callbacks;
use crate::control::Metadata;

/// Exports a control as a Proxy-Wasm module. For a crate of type `cdylib`, built for `wasm32-wasip1`; on any other
/// target it exports nothing, so the same file also builds natively.
/// Used as `portcullis_sdk::export!(MyControl);`, once a crate; see `examples/smallest.rs`.
#[macro_export]
macro_rules! export {
    ($control:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            const METADATA: $crate::Metadata = <$control as $crate::Control>::METADATA;
            const SUMMARY: &str = env!("CARGO_PKG_DESCRIPTION");

            #[expect(unsafe_code, reason = "a section of its own holds data only")]
            #[used]
            #[unsafe(link_section = "portcullis")]
            static SECTION: [u8; $crate::export_parts::section_len(&METADATA, SUMMARY)] =
                $crate::export_parts::section(&METADATA, SUMMARY);
        };

        // Natively nothing is exported; that it is a control is checked all the same.
        #[cfg(not(target_arch = "wasm32"))]
        const _: &$crate::Metadata = &<$control as $crate::Control>::METADATA;

        /// Starts the module: hosts call it once, before anything else.
        #[cfg(target_arch = "wasm32")]
        #[expect(unsafe_code, reason = "hosts find the function by this name")]
        #[unsafe(no_mangle)]
        pub extern "C" fn _initialize() {
            $crate::export_parts::initialize::<$control>();
        }

        /// Makes the JSON Schema of the configuration; it is cut from the module that ships.
        #[cfg(target_arch = "wasm32")]
        #[expect(
            unsafe_code,
            reason = "who finishes the module finds the function by this name"
        )]
        #[unsafe(no_mangle)]
        pub extern "C" fn portcullis_schema() -> u64 {
            $crate::export_parts::schema::<$control>()
        }
    };
}

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
            callbacks: Callbacks::REQUEST_HEADERS.and(Callbacks::LOG),
        };
        const SECTION: [u8; section_len(&METADATA, "A floor")] = section(&METADATA, "A floor");
        assert_eq!(
            std::str::from_utf8(&SECTION),
            Ok(
                "name=tls-policy\nversion=1.2.3\nsummary=A floor\nauthenticates=0\n\
                callbacks=proxy_on_request_headers,proxy_on_log\n"
            )
        );
    }
}
