//! The glue to the `proxy-wasm` crate's dispatcher, which owns the exports and the objects behind the ABI's ids: a
//! root context is a [`Plugin`], an HTTP context is an [`Exchange`] with a handle to it.

use std::cell::RefCell;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::control::Control;
use crate::host::{ActiveHost, Host, construct};
use crate::plugin::{Exchange, Flow, Plugin};

/// Starts the module: runs its constructors and registers the control.
pub fn initialize<C: Control>() {
    construct();
    proxy_wasm::set_root_context(|_| {
        Box::new(Root::<C> {
            plugin: Rc::new(RefCell::new(Plugin::new(ActiveHost::new()))),
        })
    });
}

struct Root<C: Control> {
    plugin: Rc<RefCell<Plugin<C>>>,
}

struct Http<C: Control> {
    plugin: Rc<RefCell<Plugin<C>>>,
    exchange: Exchange<C>,
}

/// Calls into the plugin. A host that calls back into a plugin within its own callback breaks the ABI: the module
/// ends rather than guess.
fn enter<C: Control, T>(
    plugin: &Rc<RefCell<Plugin<C>>>,
    call: impl FnOnce(&mut Plugin<C>) -> T,
) -> T {
    match plugin.try_borrow_mut() {
        Ok(mut plugin) => call(&mut plugin),
        Err(_) => ActiveHost::new().trap(),
    }
}

impl<C: Control> Context for Root<C> {
    fn on_http_call_response(
        &mut self,
        id: u32,
        header_count: usize,
        body_size: usize,
        _trailer_count: usize,
    ) {
        enter(&self.plugin, |plugin| {
            plugin.on_http_call_response(id, header_count, body_size)
        });
    }
}

impl<C: Control> RootContext for Root<C> {
    fn on_configure(&mut self, _size: usize) -> bool {
        enter(&self.plugin, Plugin::configure)
    }

    fn on_tick(&mut self) {
        enter(&self.plugin, Plugin::on_tick);
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http {
            plugin: self.plugin.clone(),
            exchange: Exchange::default(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl<C: Control> Context for Http<C> {}

impl<C: Control> HttpContext for Http<C> {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        action(enter(&self.plugin, |plugin| {
            plugin.on_request_headers(&mut self.exchange, end_of_stream)
        }))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(enter(&self.plugin, |plugin| {
            plugin.on_request_body(&mut self.exchange, size, end_of_stream)
        }))
    }

    fn on_http_response_headers(&mut self, _count: usize, _end_of_stream: bool) -> Action {
        action(enter(&self.plugin, |plugin| {
            plugin.on_response_headers(&mut self.exchange)
        }))
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(enter(&self.plugin, |plugin| {
            plugin.on_response_body(&mut self.exchange, size, end_of_stream)
        }))
    }

    fn on_log(&mut self) {
        enter(&self.plugin, |plugin| plugin.on_log(&self.exchange));
    }
}

fn action(flow: Flow) -> Action {
    match flow {
        Flow::Continue => Action::Continue,
        Flow::Pause => Action::Pause,
    }
}
