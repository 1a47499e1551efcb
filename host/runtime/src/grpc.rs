//! gRPC callouts: what a plugin asks of a named cluster, what comes back, and how much of that a plugin is told.
//!
//! As in Envoy: a call tells of its success by its message alone, of its failure by its status alone, and is over with either; a stream
//! tells everything as it comes, and stays known after its end until the plugin has closed its own side, too.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    abi::Status,
    callout::{CalloutId, CalloutKind, Place},
    fields::FieldList,
    limits::{GRPC_ENDED_MAX, GRPC_STREAMS_MAX},
};

/// A call or a stream to start.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrpcCall {
    /// One of [`PluginSpec::clusters`](crate::PluginSpec::clusters).
    pub cluster: String,
    /// For `:authority`: the cluster's name, unless the plugin gave another.
    pub authority: String,
    /// `/service/method`; checked.
    pub path: String,
    /// Checked; no pseudo-headers.
    pub metadata: FieldList,
    /// A call's one message, after which this side is closed. `None` for a stream, which sends its messages later.
    pub message: Option<Bytes>,
    /// A call's: from start to the whole answer, and told to the cluster as `grpc-timeout`. Zero is told as well, as Envoy does, but sets no
    /// bound.
    pub timeout: Option<Duration>,
}

/// What happens to a call or a stream, in this order: at most one `InitialMetadata`, messages, at most one `TrailingMetadata`, and one
/// `Close`, which is the last. Report all of them for both; the runtime knows which a plugin is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GrpcEvent {
    /// The head of the answer, `:status` first.
    InitialMetadata(FieldList),
    /// A message, without its frame.
    Message(Bytes),
    /// The trailers, `grpc-status` among them; empty where the stream ended without.
    TrailingMetadata(FieldList),
    /// The end.
    Close(GrpcStatus),
}

/// How a call or a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcStatus {
    /// 0 is OK; see the gRPC project's `statuscodes.md`.
    pub code: u32,
    /// For people; may be empty.
    pub message: Bytes,
}

/// OK came without a message where a call must have one.
const INTERNAL: u32 = 13;

/// The gRPC callouts of one VM.
#[derive(Default)]
pub(crate) struct GrpcCallouts(Vec<GrpcCallout>);

struct GrpcCallout {
    id: CalloutId,
    /// A call's last message, until its status is known.
    message: Option<Bytes>,
    /// This side has sent its last message.
    is_sent: bool,
    /// The plugin closed its side.
    is_closed: bool,
    /// Its place among the plugin's callouts, until the other side is done.
    place: Option<Place>,
}

impl GrpcCallout {
    fn is_ended(&self) -> bool {
        self.place.is_none()
    }
}

/// What the embedder is to do about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Nothing,
    Send,
    Cancel,
}

impl GrpcCallouts {
    /// Whether one more may begin.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way().count() < GRPC_STREAMS_MAX
    }

    /// Those that have not ended.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = CalloutId> + '_ {
        let open = self.0.iter().filter(|callout| !callout.is_ended());
        open.map(|callout| callout.id)
    }

    /// Whether `id` is taken; ids come round after a billion callouts.
    pub(crate) fn is_known(&self, id: CalloutId) -> bool {
        self.0.iter().any(|callout| callout.id == id)
    }

    /// A callout began. Of streams that ended and were never closed, the oldest is forgotten.
    pub(crate) fn begin(&mut self, id: CalloutId, place: Place) {
        let mut ended = self.0.iter().filter(|callout| callout.is_ended());
        if ended.clone().count() >= GRPC_ENDED_MAX {
            let oldest = ended.next().map(|callout| callout.id);
            self.0.retain(|callout| Some(callout.id) != oldest);
        }
        self.0.push(GrpcCallout {
            id,
            message: None,
            is_sent: id.kind() == CalloutKind::GrpcCall,
            is_closed: false,
            place: Some(place),
        });
    }

    /// What the plugin is told of this event, if anything.
    pub(crate) fn admit(&mut self, id: CalloutId, event: GrpcEvent) -> Option<GrpcEvent> {
        let index = self.0.iter().position(|callout| callout.id == id)?;
        let callout = self
            .0
            .get_mut(index)
            .filter(|callout| !callout.is_ended())?;
        if id.kind() == CalloutKind::GrpcStream {
            if matches!(event, GrpcEvent::Close(_)) {
                callout.place = None;
                if callout.is_closed {
                    self.0.remove(index);
                }
            }
            return Some(event);
        }
        match event {
            GrpcEvent::Message(message) => {
                callout.message = Some(message);
                None
            }
            GrpcEvent::Close(status) => {
                let message = self.0.remove(index).message;
                Some(match (status.code, message) {
                    (0, Some(message)) => GrpcEvent::Message(message),
                    (0, None) => GrpcEvent::Close(GrpcStatus {
                        code: INTERNAL,
                        message: Bytes::new(),
                    }),
                    _ => GrpcEvent::Close(status),
                })
            }
            GrpcEvent::InitialMetadata(_) | GrpcEvent::TrailingMetadata(_) => None,
        }
    }

    /// Whether a message may be sent. On a stream that has ended, or after the last message, nothing is; Envoy says OK to that as well.
    pub(crate) fn may_send(&mut self, id: CalloutId) -> Result<Duty, Status> {
        if id.kind() != CalloutKind::GrpcStream {
            return Err(Status::BadArgument);
        }
        let callout = self.find(id)?;
        Ok(if callout.is_ended() || callout.is_sent {
            Duty::Nothing
        } else {
            Duty::Send
        })
    }

    /// The last message was sent.
    pub(crate) fn sent(&mut self, id: CalloutId) {
        if let Ok(callout) = self.find(id) {
            callout.is_sent = true;
        }
    }

    /// The plugin sends no more: the end of the stream is sent, or a call cancelled.
    pub(crate) fn close(&mut self, id: CalloutId) -> Result<Duty, Status> {
        if id.kind() != CalloutKind::GrpcStream {
            return self.cancel(id);
        }
        let callout = self.find(id)?;
        if callout.is_ended() {
            self.0.retain(|callout| callout.id != id);
            return Ok(Duty::Nothing);
        }
        callout.is_closed = true;
        Ok(if std::mem::replace(&mut callout.is_sent, true) {
            Duty::Nothing
        } else {
            Duty::Send
        })
    }

    /// The plugin wants to hear no more of it.
    pub(crate) fn cancel(&mut self, id: CalloutId) -> Result<Duty, Status> {
        if !matches!(id.kind(), CalloutKind::GrpcCall | CalloutKind::GrpcStream) {
            return Err(Status::BadArgument);
        }
        let is_ended = self.find(id)?.is_ended();
        self.0.retain(|callout| callout.id != id);
        Ok(if is_ended {
            Duty::Nothing
        } else {
            Duty::Cancel
        })
    }

    fn find(&mut self, id: CalloutId) -> Result<&mut GrpcCallout, Status> {
        self.0
            .iter_mut()
            .find(|callout| callout.id == id)
            .ok_or(Status::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callout::InFlight;

    const CALL: CalloutId = CalloutId(5);
    const STREAM: CalloutId = CalloutId(6);

    fn place() -> Place {
        InFlight::default().enter(1).unwrap()
    }

    fn close(code: u32) -> GrpcEvent {
        GrpcEvent::Close(GrpcStatus {
            code,
            message: Bytes::from_static(b"m"),
        })
    }

    /// What a plugin is told, in short.
    fn told(callouts: &mut GrpcCallouts, id: CalloutId, events: Vec<GrpcEvent>) -> String {
        let names = events
            .into_iter()
            .map(|event| match callouts.admit(id, event) {
                None => "-".to_owned(),
                Some(GrpcEvent::InitialMetadata(_)) => "initial".to_owned(),
                Some(GrpcEvent::Message(message)) => String::from_utf8_lossy(&message).into_owned(),
                Some(GrpcEvent::TrailingMetadata(_)) => "trailing".to_owned(),
                Some(GrpcEvent::Close(status)) => status.code.to_string(),
            });
        names.collect::<Vec<_>>().join(" ")
    }

    fn events(messages: &[&'static str], code: u32) -> Vec<GrpcEvent> {
        let mut events = vec![GrpcEvent::InitialMetadata(FieldList::new())];
        for message in messages {
            events.push(GrpcEvent::Message(Bytes::from_static(message.as_bytes())));
        }
        events.push(GrpcEvent::TrailingMetadata(FieldList::new()));
        events.push(close(code));
        // What comes after the end is nobody's.
        events.push(close(code));
        events
    }

    #[test]
    fn a_call_tells_one_thing_and_a_stream_all() {
        #[track_caller]
        fn check(id: CalloutId, messages: &[&'static str], code: u32, expected: &str) {
            let mut callouts = GrpcCallouts::default();
            callouts.begin(id, place());
            assert_eq!(told(&mut callouts, id, events(messages, code)), expected);
        }
        check(CALL, &["a"], 0, "- - - a -");
        check(CALL, &["a", "b"], 0, "- - - - b -");
        check(CALL, &[], 0, "- - 13 -");
        check(CALL, &["a"], 5, "- - - 5 -");
        check(CALL, &[], 5, "- - 5 -");
        check(STREAM, &["a", "b"], 0, "initial a b trailing 0 -");
        check(STREAM, &[], 5, "initial trailing 5 -");
        let mut none = GrpcCallouts::default();
        assert_eq!(told(&mut none, STREAM, events(&["a"], 0)), "- - - - -");
    }

    #[test]
    fn a_stream_is_known_until_both_sides_are_done() {
        use Duty::{Cancel, Nothing, Send};
        let mut callouts = GrpcCallouts::default();
        callouts.begin(STREAM, place());
        assert_eq!(callouts.may_send(STREAM), Ok(Send));
        callouts.sent(STREAM);
        assert_eq!(callouts.may_send(STREAM), Ok(Nothing), "after the last");
        assert_eq!(callouts.close(STREAM), Ok(Nothing), "the end was sent");
        callouts.admit(STREAM, close(0));
        assert_eq!(callouts.close(STREAM), Err(Status::NotFound));

        callouts.begin(STREAM, place());
        callouts.admit(STREAM, close(0));
        assert_eq!(callouts.may_send(STREAM), Ok(Nothing));
        assert_eq!(callouts.close(STREAM), Ok(Nothing));
        assert_eq!(callouts.may_send(STREAM), Err(Status::NotFound));

        callouts.begin(STREAM, place());
        assert_eq!(callouts.close(STREAM), Ok(Send));
        assert_eq!(callouts.may_send(STREAM), Ok(Nothing));
        assert_eq!(callouts.cancel(STREAM), Ok(Cancel));
        assert_eq!(callouts.cancel(STREAM), Err(Status::NotFound));
    }

    #[test]
    fn ids_of_other_kinds_are_bad() {
        let mut callouts = GrpcCallouts::default();
        callouts.begin(CALL, place());
        assert_eq!(callouts.may_send(CALL), Err(Status::BadArgument), "a call");
        for id in [CalloutId(8), CalloutId(7)] {
            assert_eq!(callouts.may_send(id), Err(Status::BadArgument));
            assert_eq!(callouts.close(id), Err(Status::BadArgument));
            assert_eq!(callouts.cancel(id), Err(Status::BadArgument));
        }
        assert_eq!(callouts.close(CALL), Ok(Duty::Cancel));
        assert_eq!(callouts.cancel(CALL), Err(Status::NotFound));
    }

    #[test]
    fn callouts_are_bounded() {
        let mut callouts = GrpcCallouts::default();
        let id = |number: usize| CalloutId(u32::try_from(number * 4 + 6).unwrap());
        for number in 0..GRPC_STREAMS_MAX {
            assert!(callouts.has_room());
            callouts.begin(id(number), place());
        }
        assert!(!callouts.has_room());
        callouts.admit(id(0), close(0));
        assert!(callouts.has_room(), "one has ended");
        let ended = GRPC_STREAMS_MAX..GRPC_STREAMS_MAX + 3 * GRPC_ENDED_MAX;
        for number in ended.clone() {
            callouts.begin(id(number), place());
            callouts.admit(id(number), close(0));
        }
        assert!(callouts.0.len() <= GRPC_STREAMS_MAX + GRPC_ENDED_MAX);
        assert!(
            !callouts.is_known(id(ended.start)),
            "the oldest is forgotten"
        );
        assert!(callouts.is_known(id(ended.end - 1)));
    }
}
