//! Random hostcalls against a model of the stream.
//!
//! An [`Input`] is an exchange and, for each callback, a script of hostcalls. The guest (WAT, made here) is an interpreter: in each callback
//! it fetches its script, makes the calls in it, and tells the status of each. The model knows what a stream owes whatever a guest does:
//! callbacks come in their order and once, an answer that was taken is given, no byte of a body is lost or made, and the request's header map
//! changes by exactly what the guest was told that it changed. Nothing may panic.

mod guest;
mod model;
mod world;

use arbitrary::Arbitrary;
use bytes::Bytes;
use portcullis_runtime::{
    Chain, Direction, Exchange, FieldList, HttpStream, Plugin, Progress, StreamToken,
};

pub use guest::Call;
use model::Model;
use world::World;

/// An exchange, and what the guest does in it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    /// Sizes of the request body's chunks; none is a request without a body.
    request_body: Vec<u8>,
    request_trailers: bool,
    response_body: Vec<u8>,
    response_trailers: bool,
    /// A tick before each event whose bit is set.
    ticks: u16,
    scripts: Vec<Script>,
}

/// What the guest does in one callback.
#[derive(Arbitrary, Debug)]
pub struct Script {
    callback: u8,
    action: u8,
    calls: Vec<Call>,
}

/// Runs one input, in a plugin of its own and in one that serves all of them; panics where the host and the model part.
pub fn run(input: &Input) {
    run_in(World::fresh(input), input, input.ticks);
    // Ticks would have the plugin's own VM follow the script, too.
    run_in(World::lasting(input), input, 0);
}

fn run_in((world, plugin): (World, std::rc::Rc<Plugin>), input: &Input, ticks: u16) {
    world.begin();
    let mut run = Run {
        stream: HttpStream::new(
            &Chain::new(vec![plugin.clone()]),
            exchange(&world),
            StreamToken(1),
        ),
        plugin,
        world: &world,
        model: Model::new(&world.request_headers(), input),
        ticks,
        events: 0,
        over: false,
    };
    run.request(input);
    run.response(input);
    // A spare's start is no part of the exchange.
    world.end();
    run.plugin.tend();
    world.begin();
    run.stream.finish();
    run.model.finished(&world.take_told());
    world.end();
}

fn exchange(world: &World) -> Exchange {
    let mut headers = FieldList::new();
    for (name, value) in world.request_headers() {
        headers.push(name, value);
    }
    Exchange::new(Box::new(headers), world::info())
}

struct Run<'a> {
    stream: HttpStream,
    plugin: std::rc::Rc<Plugin>,
    world: &'a World,
    model: Model,
    /// As [`Input::ticks`].
    ticks: u16,
    events: u32,
    /// Answered or reset: nothing of the request and of the upstream's answer is fed any more.
    over: bool,
}

impl Run<'_> {
    fn request(&mut self, input: &Input) {
        let bodyless = input.request_body.is_empty() && !input.request_trailers;
        self.step(|stream| stream.request_headers(bodyless));
        self.model
            .check_request_headers(&*self.stream.exchange().request_headers);
        for (index, len) in input.request_body.iter().enumerate() {
            let is_last = index + 1 == input.request_body.len() && !input.request_trailers;
            let chunk = Bytes::from(vec![b'q'; usize::from(*len)]);
            self.model.fed(Direction::Request, chunk.len());
            self.step(|stream| stream.request_body(chunk, is_last));
            self.take(Direction::Request);
        }
        if input.request_trailers && !self.over {
            let mut trailers = FieldList::new();
            trailers.push("x-trailer", "1");
            self.stream.exchange_mut().request_trailers = Some(Box::new(trailers));
            self.step(HttpStream::request_trailers);
            self.take(Direction::Request);
        }
    }

    fn response(&mut self, input: &Input) {
        if self.over {
            return;
        }
        let mut headers = FieldList::new();
        headers.push(":status", "200");
        self.stream.exchange_mut().response_headers = Some(Box::new(headers));
        let bodyless = input.response_body.is_empty() && !input.response_trailers;
        self.step(|stream| stream.response_headers(bodyless));
        for (index, len) in input.response_body.iter().enumerate() {
            let is_last = index + 1 == input.response_body.len() && !input.response_trailers;
            let chunk = Bytes::from(vec![b's'; usize::from(*len)]);
            self.model.fed(Direction::Response, chunk.len());
            self.step(|stream| stream.response_body(chunk, is_last));
            self.take(Direction::Response);
        }
        if input.response_trailers && !self.over {
            let mut trailers = FieldList::new();
            trailers.push("x-trailer", "1");
            self.stream.exchange_mut().response_trailers = Some(Box::new(trailers));
            self.step(HttpStream::response_trailers);
            self.take(Direction::Response);
        }
    }

    /// What may go on of a body; nothing of the two that were on their way where an answer took their place.
    fn take(&mut self, direction: Direction) {
        if self.over {
            return;
        }
        let bytes = match direction {
            Direction::Request => self.stream.take_request_body(),
            Direction::Response => self.stream.take_response_body(),
        };
        self.model.took(direction, &bytes);
    }

    /// One event, what the plugin's timer does around it, and what follows.
    fn step(&mut self, event: impl FnOnce(&mut HttpStream) -> Progress) {
        if self.over {
            return;
        }
        let bit = self.events % 16;
        self.events += 1;
        if self.ticks >> bit & 1 == 1 {
            self.plugin.on_tick();
        }
        self.world.answer_calls(&self.plugin);
        let progress = event(&mut self.stream);
        let told = self.world.take_told();
        self.model.saw(progress, &told);
        self.follow(progress);
        // Woken, perhaps by itself: both directions are looked at, as an embedder must.
        while !self.over && self.world.take_wake() {
            for direction in [Direction::Request, Direction::Response] {
                let progress = self.stream.resume(direction);
                let told = self.world.take_told();
                self.model.saw(progress, &told);
                self.follow(progress);
            }
        }
    }

    fn follow(&mut self, progress: Progress) {
        match progress {
            Progress::Continue | Progress::Pause => {}
            Progress::Reset => self.over = true,
            Progress::Respond => {
                self.over = true;
                self.answer(false);
            }
        }
    }

    /// An answer that was made here passes the filters on its way out; the one at work may make another of it, once.
    fn answer(&mut self, is_second: bool) {
        let status = self
            .stream
            .exchange()
            .response_headers
            .as_ref()
            .and_then(|headers| headers.get(b":status").map(<[u8]>::to_vec));
        let status = status.expect("an answer without a status");
        assert!(status.len() == 3 && status.iter().all(u8::is_ascii_digit));
        let body = self.stream.take_local_body();
        let progress = self.stream.response_headers(body.is_empty());
        self.model.saw(progress, &self.world.take_told());
        if progress == Progress::Respond {
            assert!(!is_second, "answers without end");
            return self.answer(true);
        }
        if !body.is_empty() {
            let progress = self.stream.response_body(body.clone(), true);
            self.model.saw(progress, &self.world.take_told());
            self.model
                .answered(&body, &self.stream.take_response_body(), progress);
        }
    }
}
