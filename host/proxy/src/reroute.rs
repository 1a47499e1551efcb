//! Routing anew: a filter changed the request's path or authority, or cleared the route cache (`clear_route_cache`, a hostcall of ABI 0.1.0 and a
//! foreign function).
//!
//! As in Envoy, the request then goes where its headers lead now, and its answer passes the filters of the route that it came in by. Unlike Envoy, it
//! never reaches a route with a filter that it did not pass: what rewrites a path must be no way around the control on it.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use http::StatusCode;
use http::uri::PathAndQuery;

use crate::edition::RouteState;
use crate::fields::{HttpFields, Pseudo};
use crate::head::host_of;
use crate::local::Problem;
use crate::path;
use crate::stream::Stream;

/// The route of a request whose filters have all let it pass: the one it came in by, unless one of them had it chosen anew.
pub(crate) fn onward(stream: &Stream) -> Result<Rc<RouteState>, Problem> {
    match stream.with(|http| http.take_route_stale()) {
        Some(true) => reroute(stream),
        _ => Ok(Rc::clone(&stream.route)),
    }
}

fn reroute(stream: &Stream) -> Result<Rc<RouteState>, Problem> {
    let found = stream.with(|http| {
        let mut exchange = http.exchange_mut();
        let fields = exchange.request_headers.as_any_mut();
        let route = find(stream, fields.downcast_mut::<HttpFields>()?)?;
        exchange.info.route = Rc::clone(&route.info);
        Some(route)
    });
    let bad = Problem::new(StatusCode::BAD_REQUEST, "invalid path");
    let route = found.flatten().ok_or(bad)?;
    let passed = |plugin: &Rc<_>| {
        stream
            .route
            .chain
            .plugins()
            .any(|it| Rc::ptr_eq(it, plugin))
    };
    let missing = route.chain.plugins().find(|plugin| !passed(plugin));
    if let (Some(plugin), true) = (missing, route.upstream.is_some()) {
        let (from, to, filter) = (
            &stream.route.info.name,
            &route.info.name,
            &plugin.spec().name,
        );
        tracing::error!(
            from,
            to,
            filter,
            "a request was routed anew past a filter, and refused"
        );
        return Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "request cannot be routed",
        ));
    }
    stream.set_onward(&route);
    Ok(route)
}

/// A filter writes what it likes; a route is found by the normal form alone, and the upstream gets that very path.
fn find(stream: &Stream, fields: &mut HttpFields) -> Option<Rc<RouteState>> {
    let Pseudo::Request {
        authority, path, ..
    } = &mut fields.pseudo
    else {
        return None;
    };
    let normal = match path::normalise(path.as_str()).ok()? {
        Cow::Borrowed(_) => None,
        Cow::Owned(normal) => Some(PathAndQuery::from_maybe_shared(Bytes::from(normal)).ok()?),
    };
    if let Some(normal) = normal {
        *path = normal;
    }
    Some(stream.edition.route(&host_of(authority), path.path()))
}
