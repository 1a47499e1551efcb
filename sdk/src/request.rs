//! The request as a control sees it in the request phase.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::error::Error;
use crate::fields::{self, CheckedHeader, FieldPairs};
use crate::foreign::Foreign;
use crate::host::{ActiveHost, Host, Level, Map};
use crate::log::{self, Field};
use crate::shared_data::SharedData;

/// The functions that requests and responses share; every one is one hostcall.
macro_rules! field_functions {
    ($map:expr) => {
        /// The first value of a header; `None` if it is not there.
        pub fn header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
            self.host
                .field($map, name)
                .map_err(Error::host("proxy_get_header_map_value"))
        }

        /// Every value of a header, in order. For more than one header take [`all_headers`](Self::all_headers) once.
        pub fn headers(&self, name: &str) -> Result<Vec<Vec<u8>>, Error> {
            Ok(self.all_headers()?.all(name).map(<[u8]>::to_vec).collect())
        }

        /// All headers at once, read in place.
        pub fn all_headers(&self) -> Result<FieldPairs, Error> {
            let bytes = self
                .host
                .field_pairs($map)
                .map_err(Error::host("proxy_get_header_map_pairs"))?;
            FieldPairs::parse(bytes)
        }

        /// Puts one value in the place of all that the header has. A name that is no token, or a value with CR, LF or
        /// NUL, is an error.
        pub fn set_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let replaced = self.host.replace_field($map, name, value.as_ref());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// Adds a value to those that the header has; bounds as for [`set_header`](Self::set_header).
        pub fn add_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let added = self.host.add_field($map, name, value.as_ref());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// As [`set_header`](Self::set_header), for a header that was checked before.
        pub fn set_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let replaced = self.host.replace_field($map, header.name(), header.value());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// As [`add_header`](Self::add_header), for a header that was checked before.
        pub fn add_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let added = self.host.add_field($map, header.name(), header.value());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// Removes every value of a header; it need not be there.
        pub fn remove_header(&mut self, name: &str) -> Result<(), Error> {
            self.host
                .remove_field($map, name)
                .map_err(Error::host("proxy_remove_header_map_value"))
        }
    };
}
/// The functions that everything in an exchange shares.
macro_rules! exchange_functions {
    () => {
        /// The downstream connection.
        pub fn connection(&self) -> Connection<'_> {
            Connection::new(self.host)
        }

        /// A property of the host, by its path: `["request", "url_path"]`. A property that an earlier filter set has
        /// one segment: `["jwt.sub"]`. `None` where the host does not know it. One hostcall.
        pub fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Error> {
            let found = match path {
                [one] => self.host.property(one.as_bytes()),
                path => self.host.property(path.join("\0").as_bytes()),
            };
            found.map_err(Error::host("proxy_get_property"))
        }

        /// Leaves a property for this exchange's later callbacks and filters; they read it as the one segment `name`.
        /// One hostcall.
        pub fn set_property(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
            self.host
                .set_property(name, value)
                .map_err(Error::host("proxy_set_property"))
        }

        /// The host's clock. One hostcall.
        pub fn now(&self) -> SystemTime {
            UNIX_EPOCH + Duration::from_nanos(self.host.now_ns())
        }

        /// Logs `{"control": …, "event": …, fields…}`; no token, no secret. One hostcall.
        pub fn log(&self, level: Level, event: &str, fields: &[(&str, Field<'_>)]) {
            log::event(self.host, self.control, level, event, fields);
        }

        /// Fills `out` with random bytes from the host. One hostcall.
        pub fn random(&self, out: &mut [u8]) {
            self.host.random(out);
        }

        /// Values shared by all VMs of this plugin.
        pub fn shared(&self) -> SharedData {
            SharedData::new(self.host)
        }

        /// The host's foreign functions.
        pub fn foreign(&self) -> Foreign {
            Foreign::new(self.host)
        }
    };
}
pub(crate) use {exchange_functions, field_functions};

/// The request, while its headers are looked at. Whatever is set here is what later filters and the upstream see.
#[derive(Debug)]
pub struct Request<'a> {
    host: &'a ActiveHost,
    control: &'static str,
    end_of_stream: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(host: &'a ActiveHost, control: &'static str, end_of_stream: bool) -> Self {
        Self {
            host,
            control,
            end_of_stream,
        }
    }

    /// The method. One hostcall.
    pub fn method(&self) -> Result<Vec<u8>, Error> {
        self.header(":method")?.ok_or(Error::Missing(":method"))
    }

    /// The path with its query, as the host normalised it. One hostcall.
    pub fn path(&self) -> Result<Vec<u8>, Error> {
        self.header(":path")?.ok_or(Error::Missing(":path"))
    }

    /// The host that the client named, port included. One hostcall.
    pub fn authority(&self) -> Result<Vec<u8>, Error> {
        self.header(":authority")?
            .ok_or(Error::Missing(":authority"))
    }

    /// The scheme that the host derived. Not a proof of TLS: ask the [`connection`](Self::connection). One hostcall.
    pub fn scheme(&self) -> Result<Vec<u8>, Error> {
        self.header(":scheme")?.ok_or(Error::Missing(":scheme"))
    }

    /// Whether the request has no body.
    pub fn end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    field_functions!(Map::Request);
    exchange_functions!();
}
