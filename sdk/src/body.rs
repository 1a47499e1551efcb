//! A body as a control sees it, piece by piece.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::error::Error;
use crate::foreign::Foreign;
use crate::host::{ActiveHost, Buffer, Host, Level};
use crate::log::{self, Field};
use crate::request::exchange_functions;
use crate::shared_data::SharedData;

/// What the host holds of a body: the piece that just came, and the pieces that were [held](Body::hold) before it.
///
/// Headers have gone on before the first piece comes: a body can be changed, or its exchange ended, but a refusal in
/// the response's body is a reset of the stream.
#[derive(Debug)]
pub struct Body<'a> {
    host: &'a ActiveHost,
    control: &'static str,
    buffer: Buffer,
    size: usize,
    end_of_stream: bool,
    held: bool,
}

impl<'a> Body<'a> {
    pub(crate) fn new(
        host: &'a ActiveHost,
        control: &'static str,
        buffer: Buffer,
        size: usize,
        end_of_stream: bool,
    ) -> Self {
        Self {
            host,
            control,
            buffer,
            size,
            end_of_stream,
            held: false,
        }
    }

    /// Bytes held now.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the last piece.
    pub fn end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// At most `max` of the held bytes, from `start` on. One hostcall.
    pub fn read(&self, start: usize, max: usize) -> Result<Vec<u8>, Error> {
        self.host
            .buffer(self.buffer, start, max)
            .map_err(Error::host("proxy_get_buffer_bytes"))
    }

    /// Puts `bytes` in the place of all that is held. Where the message has a `content-length`, remove it in the
    /// headers phase first. One hostcall.
    pub fn replace(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let replaced = self.host.set_buffer(self.buffer, 0, self.size, bytes);
        replaced.map_err(Error::host("proxy_set_buffer_bytes"))?;
        self.size = bytes.len();
        Ok(())
    }

    /// Keeps the held bytes back until more have come; the next call sees them all. At the end of the stream it does
    /// nothing. The host bounds what it holds and ends the exchange beyond.
    pub fn hold(&mut self) {
        self.held = !self.end_of_stream;
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    exchange_functions!();
}
