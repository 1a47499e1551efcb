//! What of a policy deserves a second look.

use std::net::SocketAddr;

use portcullis_runtime::{FailurePolicy, UnknownImports};

use super::filter::{Filter, FilterInstance};
use super::lint::{Lint, Warning};
use super::listener::{Listener, TlsVersion};
use super::module::ModuleSource;
use super::secret;
use super::{Policy, route::Route};

impl Policy {
    /// Everything, in the file's order; `now` is seconds since 1970.
    pub(super) fn find_warnings(&self, now: i64) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for listener in &self.listeners {
            warnings.extend(of_listener(listener, now));
        }
        for filter in &self.filters {
            warnings.extend(self.of_filter(filter));
        }
        for instance in &self.instances {
            warnings.extend(of_configuration(instance));
        }
        for (index, filter) in self.filters.iter().enumerate() {
            if index > 0 && filter.module.control.as_deref() == Some("security-headers") {
                let reason = "not the first filter: answers of the filters before it go out without its headers";
                let problem = filter.place.problem(reason);
                warnings.push(Warning::new(Lint::HeadersNotFirst, problem));
            }
        }
        warnings.extend(self.routes.iter().filter_map(|route| of_route(route)));
        warnings.sort_by_key(|warning| warning.problem.place.line);
        warnings
    }

    fn of_filter(&self, filter: &Filter) -> Vec<Warning> {
        let warn = |lint: Lint, reason: &str| Warning::new(lint, filter.place.problem(reason));
        let mut warnings = Vec::new();
        if filter.failure_policy == FailurePolicy::Open {
            let reason =
                "failure_policy is open: requests pass unchecked while the control is down";
            warnings.push(warn(Lint::FailOpen, reason));
        }
        if filter.unknown_imports == UnknownImports::Trap {
            let reason = "unknown_imports is trap: requests that come to such an import get 503";
            warnings.push(warn(Lint::UnknownImports, reason));
        }
        let is_foreign = matches!(filter.module.source, ModuleSource::File(_));
        if is_foreign && !filter.module.is_pinned {
            let reason =
                "neither `sha256` nor `signature`: whoever can write the file decides what runs";
            warnings.push(warn(Lint::UnpinnedModule, reason));
        }
        let runs = |route: &Route| {
            let mut chain = route.chain.iter();
            chain.any(|instance| instance.filter.name == filter.name)
        };
        if !filter.is_tcp && !self.routes.iter().any(|route| runs(route)) {
            let reason = format!("`{}` is off on every route", filter.name);
            warnings.push(warn(Lint::UnusedFilter, &reason));
        }
        warnings
    }
}

fn of_listener(listener: &Listener, now: i64) -> Vec<Warning> {
    let warn = |lint: Lint, reason: String| Warning::new(lint, listener.place.problem(reason));
    let Some(tls) = &listener.tls else {
        // What passes a TCP listener may be secured within.
        let is_open = listener.tcp.is_none() && !is_local(listener.address);
        let reason = "plaintext listener: tokens and cookies cross the network unencrypted";
        let warning = is_open.then(|| warn(Lint::PlaintextListener, reason.into()));
        return warning.into_iter().collect();
    };
    let mut warnings = Vec::new();
    if tls.minimum_version < TlsVersion::Tls13 {
        let reason = "TLS 1.2 is accepted, the security policy asks for 1.3";
        warnings.push(warn(Lint::TlsFloor, reason.into()));
    }
    if let Some(fault) = tls.validity_fault(now) {
        let file = tls.certificate_chain_file.display();
        let reason = format!("the certificate in {file} {fault}");
        warnings.push(warn(Lint::CertificateValidity, reason));
    }
    warnings
}

fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn of_configuration(instance: &FilterInstance) -> Vec<Warning> {
    let configuration = &instance.configuration;
    let json = configuration.to_json();
    let mut warnings = Vec::new();
    if json.get("shadow") == Some(&true.into()) {
        let place = configuration.place_of("shadow");
        let reason = "shadow mode: the control decides, and nothing comes of it";
        warnings.push(Warning::new(Lint::ShadowMode, place.problem(reason)));
    }
    for (path, reason) in secret::weak_in(&json) {
        let place = configuration.place_of(&path);
        warnings.push(Warning::new(Lint::WeakSecret, place.problem(reason)));
    }
    warnings
}

fn of_route(route: &Route) -> Option<Warning> {
    let mut chain = route.chain.iter();
    if chain.any(|instance| instance.filter.module.knows_the_caller()) {
        return None;
    }
    let reason = format!(
        "route `{}` is open to everybody, no filter on it authenticates",
        route.name
    );
    Some(Warning::new(Lint::OpenRoute, route.place.problem(reason)))
}
