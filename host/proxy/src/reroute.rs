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
use portcullis_runtime::{Chain, Plugin};

use crate::edition::RouteState;
use crate::fields::{HttpFields, Pseudo};
use crate::head::host_of;
use crate::local::Problem;
use crate::path;
use crate::stream::Stream;

/// A filter wrote a path that has no normal form.
pub(crate) const NO_PATH: Problem = Problem::new(StatusCode::BAD_REQUEST, "invalid path");

/// A filter led the request past another.
pub(crate) const NO_WAY_AROUND: Problem = Problem::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "request cannot be routed",
);

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
    let route = found.flatten().ok_or(NO_PATH)?;
    let missing = passed_by(&stream.route.chain, &route.chain);
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
        return Err(NO_WAY_AROUND);
    }
    stream.set_onward(&route);
    Ok(route)
}

/// The first filter of `to` that a request which came in by `from` has not passed.
pub(crate) fn passed_by<'c>(from: &Chain, to: &'c Chain) -> Option<&'c Rc<Plugin>> {
    let passed = |plugin: &Rc<Plugin>| from.plugins().any(|it| Rc::ptr_eq(it, plugin));
    to.plugins().find(|plugin| !passed(plugin))
}

fn find(stream: &Stream, fields: &mut HttpFields) -> Option<Rc<RouteState>> {
    let (host, path) = leads_to(fields)?;
    Some(stream.edition.route(&host, path))
}

/// The host and the path by which a rewritten request is routed. A filter writes what it likes; a route is found by the normal form alone, and the
/// upstream gets that very path.
pub(crate) fn leads_to(fields: &mut HttpFields) -> Option<(Cow<'_, str>, &str)> {
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
    Some((host_of(authority), path.path()))
}
