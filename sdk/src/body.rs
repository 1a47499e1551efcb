//! A body as a control sees it, piece by piece.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::error::Error;
use crate::foreign::Foreign;
use crate::host::{Buffer, Host, Level};
use crate::log::{self, Field};
use crate::request::exchange_functions;
use crate::scope::Scope;
use crate::shared_data::SharedData;
use crate::verified_claims::VerifiedClaims;

/// What the host holds of a body: the piece that just came, and the pieces that were [held](Body::hold) before it.
///
/// Headers have gone on before the first piece comes: a body can be changed, or its exchange ended, but a refusal in
/// the response's body is a reset of the stream.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Takes the body's place once all of it is there.
/// fn upper_case(body: &mut Body) -> Result<Decision, Error> {
///     if body.end_of_stream() {
///         let text = body.read(0, body.size())?;
///         body.replace(&text.to_ascii_uppercase())?;
///     } else {
///         body.hold();
///     }
///     Ok(Decision::Continue)
/// }
/// ```
#[derive(Debug)]
pub struct Body<'a> {
    scope: &'a Scope,
    view: &'a mut View,
    end_of_stream: bool,
    held: bool,
    released: bool,
}

/// The part of a buffer that a control is shown.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) buffer: Buffer,
    /// What stands before it has been let pass by this control, and is held by another of the same module.
    pub(crate) from: usize,
    pub(crate) size: usize,
}

impl View {
    /// All that is held.
    pub(crate) fn whole(buffer: Buffer, size: usize) -> Self {
        Self {
            buffer,
            from: 0,
            size,
        }
    }
}

impl<'a> Body<'a> {
    pub(crate) fn new(scope: &'a Scope, view: &'a mut View, end_of_stream: bool) -> Self {
        Self {
            scope,
            view,
            end_of_stream,
            held: false,
            released: false,
        }
    }

    /// Bytes held now.
    pub fn size(&self) -> usize {
        self.view.size
    }

    /// Whether this is the last piece.
    pub fn end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// At most `max` of the held bytes, from `start` on. One hostcall.
    pub fn read(&self, start: usize, max: usize) -> Result<Vec<u8>, Error> {
        let max = max.min(self.view.size.saturating_sub(start));
        if max == 0 {
            return Ok(Vec::new());
        }
        let start = self.view.from.saturating_add(start);
        self.scope
            .host
            .buffer(self.view.buffer, start, max)
            .map_err(Error::host("proxy_get_buffer_bytes"))
    }

    /// Puts `bytes` in the place of all that is held. Where the message has a `content-length`, remove it in the
    /// headers phase first. One hostcall.
    pub fn replace(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let View { buffer, from, size } = *self.view;
        let host = &self.scope.host;
        let replaced = match from {
            0 => host.set_buffer(buffer, 0, size, bytes),
            // Hosts replace from the start only, so what is before it is written again.
            _ => {
                let mut whole = host
                    .buffer(buffer, 0, from)
                    .map_err(Error::host("proxy_get_buffer_bytes"))?;
                whole.extend_from_slice(bytes);
                host.set_buffer(buffer, 0, from.saturating_add(size), &whole)
            }
        };
        replaced.map_err(Error::host("proxy_set_buffer_bytes"))?;
        self.view.size = bytes.len();
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

    /// The headers, which this control held until the body was there, may go on.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    exchange_functions!();
}
