//! Plugins' Redis callouts: one connection a worker, plugin and cluster, on which commands go out as they come and replies come in their
//! order.
//!
//! As in Higress, a call has two ends: a reply, whatever Redis says in it, or none. The connection is opened with the first call, and again
//! with the next one after it broke. What was sent on a connection that breaks has failed, since nobody knows what Redis did with it; what
//! was not yet sent goes out on the next. A call that overruns its time takes its connection along: no later reply can come before its own.

mod reply;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};
use portcullis_runtime::{CalloutError, CalloutId, PluginId, RedisCall, RedisOptions, RedisReply};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits::{REDIS_CALLS_MAX, REDIS_READ_BYTES, REDIS_WRITE_BYTES};
use crate::upstream::{Duplex, OpenSeat, Upstream, UpstreamFault};
use reply::{Replies, ReplyFault};

/// Whom the end of a call is told to.
pub(crate) type Tell = Rc<dyn Fn(PluginId, CalloutId, RedisReply)>;

/// The Redis connections of one worker.
#[derive(Default)]
pub(crate) struct RedisConnections(RefCell<HashMap<(PluginId, String), Connection>>);

impl RedisConnections {
    /// Says how a plugin calls a cluster from now on. As in Higress, other options than before end the connection that there was, and saying the
    /// same again does nothing: each VM says it.
    pub(crate) fn set(
        &self,
        plugin: PluginId,
        cluster: String,
        upstream: &Rc<Upstream>,
        options: RedisOptions,
    ) {
        let mut all = self.0.borrow_mut();
        let key = (plugin, cluster);
        if all.get(&key).is_none_or(|known| known.options != options) {
            all.insert(key, Connection::new(upstream, options));
        }
    }

    /// Queues a call.
    ///
    /// # Errors
    ///
    /// Too many wait, those that nobody wants any more included.
    pub(crate) fn start(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: RedisCall,
        upstream: &Rc<Upstream>,
        tell: &Tell,
    ) -> Result<(), CalloutError> {
        let mut all = self.0.borrow_mut();
        all.entry((plugin, call.cluster))
            .or_insert_with(|| Connection::new(upstream, RedisOptions::default()))
            .start(plugin, id, call.query, tell)
    }

    /// Nobody wants this call's reply any more.
    pub(crate) fn cancel(&self, plugin: PluginId, id: CalloutId) {
        for ((owner, _), connection) in self.0.borrow().iter() {
            if *owner == plugin {
                connection.queue.cancel(|other| other == id);
            }
        }
    }

    /// Closes a plugin's connections; what was under way is told to nobody.
    pub(crate) fn cancel_all(&self, plugin: PluginId) {
        self.0.borrow_mut().retain(|(owner, _), connection| {
            let others = *owner != plugin;
            if !others {
                connection.queue.cancel(|_| true);
            }
            others
        });
    }

    /// Closes all connections; what was under way is told to nobody.
    pub(crate) fn stop(&self) {
        for (_, connection) in self.0.borrow_mut().drain() {
            connection.queue.cancel(|_| true);
        }
    }
}

/// A plugin's way to a cluster. Dropped, it is closed, and what was under way fails.
struct Connection {
    options: RedisOptions,
    upstream: Rc<Upstream>,
    queue: Rc<Queue>,
    /// Its task has been started.
    runs: Cell<bool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.queue.closed.notify_one();
    }
}

impl Connection {
    fn new(upstream: &Rc<Upstream>, options: RedisOptions) -> Self {
        Self {
            options,
            upstream: Rc::clone(upstream),
            queue: Rc::default(),
            runs: Cell::new(false),
        }
    }

    fn start(
        &self,
        plugin: PluginId,
        id: CalloutId,
        query: Bytes,
        tell: &Tell,
    ) -> Result<(), CalloutError> {
        self.queue.push(Call {
            id: Some(id),
            query,
            deadline: Instant::now() + self.options.timeout,
        })?;
        if !self.runs.replace(true) {
            let tell = Rc::clone(tell);
            let task = Task {
                queue: Rc::clone(&self.queue),
                upstream: Rc::clone(&self.upstream),
                options: self.options.clone(),
                tell: Box::new(move |id, reply| tell(plugin, id, reply)),
            };
            spawn_local(task.run());
        }
        Ok(())
    }
}

struct Call {
    /// `None` when nobody wants the reply any more.
    id: Option<CalloutId>,
    /// Until it is sent.
    query: Bytes,
    deadline: Instant,
}

/// Calls in the order in which they were made.
#[derive(Default)]
struct Queue {
    calls: RefCell<VecDeque<Call>>,
    /// How many of them, from the first on, have been sent.
    sent: Cell<usize>,
    /// There is a call more.
    grown: Notify,
    /// No more calls will come, and none is waited for.
    closed: Notify,
}

impl Queue {
    fn push(&self, call: Call) -> Result<(), CalloutError> {
        let mut calls = self.calls.borrow_mut();
        if calls.len() >= REDIS_CALLS_MAX {
            return Err(CalloutError::Overloaded);
        }
        calls.push_back(call);
        self.grown.notify_one();
        Ok(())
    }

    /// What was not sent is forgotten. What was sent keeps its place, for the reply that will come.
    fn cancel(&self, is_meant: impl Fn(CalloutId) -> bool) {
        let mut index = 0_usize;
        let sent = self.sent.get();
        self.calls.borrow_mut().retain_mut(|call| {
            let was_sent = index < sent;
            index = index.saturating_add(1);
            if call.id.is_some_and(&is_meant) {
                call.id = None;
                return was_sent;
            }
            true
        });
    }

    /// By when something must have come. Calls of one connection have equal time-outs, so that the first one's ends first.
    fn deadline(&self) -> Option<Instant> {
        self.calls.borrow().front().map(|call| call.deadline)
    }

    /// Moves queries into what is to be written, as far as it has room.
    fn fill(&self, outgoing: &mut BytesMut) {
        let mut calls = self.calls.borrow_mut();
        for call in calls.iter_mut().skip(self.sent.get()) {
            if outgoing.len() >= REDIS_WRITE_BYTES {
                return;
            }
            outgoing.extend_from_slice(&std::mem::take(&mut call.query));
            self.sent.set(self.sent.get().saturating_add(1));
        }
    }

    /// The call that the next reply is for, of those sent.
    fn take_answered(&self) -> Option<Call> {
        let left = self.sent.get().checked_sub(1)?;
        self.sent.set(left);
        self.calls.borrow_mut().pop_front()
    }

    /// The connection broke: those that were sent, and those whose time is over, leave the queue.
    fn take_failed(&self, now: Instant) -> VecDeque<Call> {
        let mut calls = self.calls.borrow_mut();
        let sent = self.sent.replace(0);
        let unsent = calls.iter().skip(sent);
        let overdue = unsent.take_while(|call| call.deadline <= now).count();
        let failed = sent.saturating_add(overdue).min(calls.len());
        let left = calls.split_off(failed);
        std::mem::replace(&mut calls, left)
    }

    fn take_all(&self) -> VecDeque<Call> {
        self.sent.set(0);
        self.calls.take()
    }
}

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
enum Break {
    #[error("{0}")]
    Connect(#[from] UpstreamFault),
    #[error("no reply in time")]
    Timeout,
    #[error("nothing to do for a while")]
    Idle,
    #[error("closed by the server")]
    Closed,
    #[error("a reply that nobody asked for")]
    Unasked,
    #[error("the server refuses the database")]
    Database,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Reply(#[from] ReplyFault),
}

/// What carries the calls of one connection.
struct Task {
    queue: Rc<Queue>,
    upstream: Rc<Upstream>,
    options: RedisOptions,
    tell: Box<dyn Fn(CalloutId, RedisReply)>,
}

impl Task {
    async fn run(self) {
        tokio::select! {
            never = self.serve() => match never {},
            () = self.queue.closed.notified() => self.fail(self.queue.take_all()),
        }
    }

    async fn serve(&self) -> Infallible {
        loop {
            let Some(deadline) = self.queue.deadline() else {
                self.queue.grown.notified().await;
                continue;
            };
            let broken = match timeout_at(deadline, self.connect()).await {
                Ok(Ok(wire)) => self.converse(wire).await,
                Ok(Err(broken)) => broken,
                Err(_) => Break::Timeout,
            };
            let cluster = &self.upstream.cluster.policy.name;
            tracing::debug!(cluster, error = %broken, "redis connection ends");
            let failed = match broken {
                // The next call would not fare better.
                Break::Connect(_) | Break::Database => self.queue.take_all(),
                _ => self.queue.take_failed(Instant::now()),
            };
            self.fail(failed);
        }
    }

    /// Tells of calls without a reply. The plugin may call out, and even end, meanwhile: nothing is borrowed.
    fn fail(&self, calls: VecDeque<Call>) {
        for id in calls.into_iter().filter_map(|call| call.id) {
            (self.tell)(id, RedisReply::Failed);
        }
    }

    /// A connection on which the user and the database are those of the options.
    async fn connect(&self) -> Result<Wire, Break> {
        let opened = self.upstream.open().await?;
        let mut wire = Wire::new(opened.io, opened.seat);
        let RedisOptions { user, password, .. } = &self.options;
        if !user.is_empty() {
            wire.outgoing.put(command(&[b"AUTH", user, password]));
        } else if !password.is_empty() {
            wire.outgoing.put(command(&[b"AUTH", password]));
        }
        if !wire.outgoing.is_empty() && is_error(&wire.ask().await?) {
            // Calls get Redis' own word for it.
            let cluster = &self.upstream.cluster.policy.name;
            tracing::warn!(cluster, "redis refuses the plugin's user or password");
        }
        if let Some(database) = self.options.database {
            let number = database.to_string();
            wire.outgoing.put(command(&[b"SELECT", number.as_bytes()]));
            let reply = wire.ask().await?;
            // A server that wants a password first refuses the calls, too. Any other would let them act on another database.
            if is_error(&reply) && !reply.starts_with(b"-NOAUTH") {
                return Err(Break::Database);
            }
        }
        Ok(wire)
    }

    /// Sends and receives until the connection ends.
    async fn converse(&self, mut wire: Wire) -> Break {
        let idle_timeout = self.upstream.cluster.policy.idle_timeout;
        let mut idle_since = Instant::now();
        loop {
            self.queue.fill(&mut wire.outgoing);
            let deadline = self.queue.deadline();
            let until = deadline.unwrap_or_else(|| idle_since + idle_timeout);
            tokio::select! {
                () = self.queue.grown.notified() => {}
                moved = wire.step() => if let Err(broken) = moved {
                    return broken;
                },
                () = sleep_until(until) => {
                    return if deadline.is_some() { Break::Timeout } else { Break::Idle };
                }
            }
            loop {
                let reply = match wire.replies.next(&mut wire.incoming) {
                    Ok(Some(reply)) => reply,
                    Ok(None) => break,
                    Err(fault) => return fault.into(),
                };
                let Some(call) = self.queue.take_answered() else {
                    return Break::Unasked;
                };
                idle_since = Instant::now();
                if let Some(id) = call.id {
                    (self.tell)(id, RedisReply::Reply(reply));
                }
                // A read may hold thousands of small replies; others' requests go on meanwhile.
                tokio::task::consume_budget().await;
            }
        }
    }
}

/// A connection's bytes.
struct Wire {
    reader: ReadHalf<Box<dyn Duplex>>,
    writer: WriteHalf<Box<dyn Duplex>>,
    incoming: BytesMut,
    replies: Replies,
    outgoing: BytesMut,
    /// Something was written that may still stand in a TLS record's buffer.
    is_flushed: bool,
    _seat: OpenSeat,
}

impl Wire {
    fn new(io: Box<dyn Duplex>, seat: OpenSeat) -> Self {
        let (reader, writer) = tokio::io::split(io);
        Self {
            reader,
            writer,
            incoming: BytesMut::new(),
            replies: Replies::default(),
            outgoing: BytesMut::new(),
            is_flushed: true,
            _seat: seat,
        }
    }

    /// Reads or writes something. Dropped half-way it loses nothing.
    async fn step(&mut self) -> Result<(), Break> {
        let has_work = !self.outgoing.is_empty() || !self.is_flushed;
        tokio::select! {
            read = read(&mut self.reader, &mut self.incoming) => read,
            wrote = write(&mut self.writer, &mut self.outgoing, &mut self.is_flushed), if has_work => Ok(wrote?),
        }
    }

    /// The reply to what is to be sent, on a connection where nothing else is under way.
    async fn ask(&mut self) -> Result<Bytes, Break> {
        loop {
            if let Some(reply) = self.replies.next(&mut self.incoming)? {
                return Ok(reply);
            }
            self.step().await?;
        }
    }
}

async fn read(reader: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> Result<(), Break> {
    incoming.reserve(REDIS_READ_BYTES);
    match reader.read_buf(incoming).await? {
        0 => Err(Break::Closed),
        _ => Ok(()),
    }
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    outgoing: &mut BytesMut,
    is_flushed: &mut bool,
) -> io::Result<()> {
    while !outgoing.is_empty() {
        *is_flushed = false;
        if writer.write_buf(outgoing).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await?;
    *is_flushed = true;
    Ok(())
}

/// A command as it goes over the wire.
fn command(words: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        bytes.put_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.put_slice(word);
        bytes.put_slice(b"\r\n");
    }
    bytes.freeze()
}

fn is_error(reply: &[u8]) -> bool {
    reply.starts_with(b"-") || reply.starts_with(b"!")
}
