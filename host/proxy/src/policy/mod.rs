//! The policy file: what an operator writes, parsed into types that cannot be wrong.
//!
//! Reading never stops at the first fault: [`Policy::load`] gives a policy, or every problem as `file:line: key: reason`. All that can be
//! checked without running a module or binding a port is checked here: names, references, addresses, bounds, certificates against their
//! keys, modules against their digests. What is known to be risky but allowed is a warning.
//!
//! Keys use Envoy's words where Envoy has one. `docs/policy.md` describes each, `docs/policies/` has examples.

mod allow;
mod chains;
mod cluster;
mod filter;
mod limits;
mod lint;
mod listener;
mod module;
mod node;
mod pem;
mod place;
mod reader;
mod route;
mod route_table;
mod scalar;
mod schema;
mod secret;
mod signature;
mod tcp;
#[cfg(test)]
mod tests;
mod view;
mod warnings;

use std::collections::hash_map::{self, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::oci::ImageReference;
pub use allow::Allowed;
pub use cluster::{Cluster, TrustedCa, UpstreamProtocol, UpstreamTls};
pub use filter::{Configuration, Filter, FilterInstance};
pub use lint::{Lint, Warning};
pub use listener::{DownstreamTls, Listener, TlsVersion};
pub use module::{ModuleSource, WasmModule};
pub(crate) use node::{Entry, Node, Value as NodeValue};
pub use pem::TrustedCertificates;
pub use place::{Place, PolicyErrors, Problem};
pub use portcullis_runtime::{FailurePolicy, Isolation};
pub use route::{HostPattern, PathPrefix, Route};
pub use route_table::{RouteTable, VirtualHost};
pub use scalar::{Endpoint, EndpointHost};
pub(crate) use secret::weak_in as weak_secrets_in;
pub use signature::ModuleSignature;
pub use tcp::TcpProxy;

use reader::{Field, Reader, Section};

/// A policy, complete and consistent.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The file as the operator named it.
    pub file: Arc<Path>,
    /// SHA-256 of its text, lower-case hex.
    pub sha256: String,
    /// At least one; no two overlap.
    pub listeners: Vec<Listener>,
    /// Unique names.
    pub clusters: Vec<Arc<Cluster>>,
    /// In the order in which requests pass them, then those of TCP listeners; unique names.
    pub filters: Vec<Arc<Filter>>,
    /// Every configured filter that some route runs: one plugin per worker each.
    pub instances: Vec<Arc<FilterInstance>>,
    /// In the file's order; at least one where there is an HTTP listener.
    pub routes: Vec<Arc<Route>>,
    /// The same routes as they are looked up.
    pub table: RouteTable,
    /// The admin listener, if any.
    pub admin: Option<Admin>,
    /// One JSON line a request.
    pub access_log: AccessLog,
    /// Worker threads; the number of CPUs if absent.
    pub workers: Option<NonZeroUsize>,
    /// How long a draining process waits for requests in flight; default 30 s.
    pub drain_timeout: Duration,
    /// What deserves a second look, in the file's order.
    pub warnings: Vec<Warning>,
}

/// Where `/ready`, `/metrics` and `/policy` are served.
#[derive(Clone, Debug)]
pub struct Admin {
    /// A loopback address.
    pub address: SocketAddr,
    /// The `address` key.
    pub place: Place,
}

/// Where access log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere; the default.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file; absolute path.
    File(PathBuf),
}

const KEYS: &[&str] = &[
    "listeners",
    "clusters",
    "filters",
    "routes",
    "admin",
    "access_log",
    "workers",
    "drain_timeout",
];

/// The bytes of a policy file; the reason names it.
pub(crate) fn read_text(path: &Path) -> Result<Vec<u8>, String> {
    read_bytes(path, limits::POLICY_BYTES_MAX)
}

/// The bytes of a file of at most `bytes_max`, which may be anything but what never ends; the reason names it.
pub(crate) fn read_bytes(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    reader::read_file(path, bytes_max)
}

impl Policy {
    /// How many workers a process with this policy starts.
    pub(crate) fn worker_count(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.workers.map_or_else(available, NonZeroUsize::get)
    }

    /// Reads and checks the policy at `path`, and every file it names.
    ///
    /// # Errors
    ///
    /// Every problem of the file, in its order.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PolicyErrors> {
        let path = path.as_ref();
        let whole = Place {
            file: path.into(),
            line: 1,
            key: "policy".into(),
        };
        let bytes = read_text(path).map_err(|reason| whole.problem(reason))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let before = error.as_bytes().get(..error.utf8_error().valid_up_to());
            let newlines = before.unwrap_or_default().iter().filter(|b| **b == b'\n');
            let place = Place {
                line: newlines.fold(1, |line, _| line + 1),
                ..whole.clone()
            };
            place.problem("not UTF-8")
        })?;
        let absolute =
            std::path::absolute(path).map_err(|error| whole.problem(reader::describe(&error)))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse(path, folder, &text)
    }

    /// Checks the policy in `text`; `file` is its name in messages, `folder` (absolute) is where relative paths start.
    ///
    /// # Errors
    ///
    /// Every problem of the text, in its order.
    pub fn parse(file: &Path, folder: &Path, text: &str) -> Result<Self, PolicyErrors> {
        let reader = Reader::new(file.into(), folder.to_owned());
        let tree =
            Node::parse(text).map_err(|(line, reason)| reader.place(line, "").problem(reason))?;
        let policy = reader.root(&tree).section(KEYS).and_then(|section| {
            let sha256 = crate::digest::digest(text.as_bytes());
            read(&reader, &section).map(|policy| Self { sha256, ..policy })
        });
        match (policy, reader.into_problems()) {
            (Some(policy), problems) if problems.is_empty() => Ok(policy),
            (_, problems) => Err(PolicyErrors(problems)),
        }
    }
}

fn read(reader: &Reader, section: &Section<'_>) -> Option<Policy> {
    let listener_fields = required_list(section, "listeners");
    let cluster_fields = section.list("clusters");
    let clusters = all(&cluster_fields, |field| cluster::read(field).map(Arc::new));
    let cluster_names = names(&cluster_fields);
    let known_clusters: Vec<_> = clusters.iter().flatten().cloned().collect();

    let listeners = all(&listener_fields, |field| {
        listener::read(field, &known_clusters, &cluster_names)
    });
    let is_http = |field: &Field<'_>| {
        let members = field.members();
        members.iter().all(|(key, _)| *key != "tcp")
    };
    let has_http = listener_fields.is_empty() || listener_fields.iter().any(is_http);
    let admin = match section.optional("admin") {
        Some(field) => read_admin(field).map(Some),
        None => Some(None),
    };
    let bound = listeners
        .iter()
        .flatten()
        .map(|(it, _)| (it.address, it.place.clone()));
    let bound = bound.chain(
        admin
            .iter()
            .flatten()
            .map(|it| (it.address, it.place.clone())),
    );
    listener::refuse_overlaps(&bound.collect::<Vec<_>>(), |problem| reader.refuse(problem));

    let mut filter_fields = section.list("filters");
    let tcp_filter_fields: Vec<_> = listener_fields
        .iter()
        .flat_map(tcp::filter_fields)
        .collect();
    let all_filter_fields = [filter_fields.clone(), tcp_filter_fields].concat();
    if let Some(field) = all_filter_fields.get(limits::FILTERS_MAX) {
        field.refuse(format!("more than {} filters", limits::FILTERS_MAX));
        filter_fields.truncate(limits::FILTERS_MAX);
    }
    let filters = all(&filter_fields, |field| {
        let (filter, configuration) = filter::read(field, &known_clusters, &cluster_names)?;
        Some((Arc::new(filter), configuration))
    });
    for fields in [&listener_fields, &cluster_fields, &all_filter_fields] {
        refuse_duplicates(fields);
    }

    let route_fields = if has_http {
        required_list(section, "routes")
    } else {
        section.list("routes")
    };
    refuse_duplicates(&route_fields);
    let filter_names = names(&filter_fields);
    let route_parts = all(&route_fields, |field| {
        chains::read_route(field, &known_clusters, &cluster_names, &filter_names)
    });

    let access_log = match section.optional("access_log") {
        None => Some(AccessLog::Off),
        Some(field) if field.is_off() => Some(AccessLog::Off),
        Some(field) if field.string() == Some("stdout") => Some(AccessLog::Stdout),
        Some(field) => field.path().map(AccessLog::File),
    };
    let workers = match section.optional("workers") {
        None => Some(None),
        Some(field) => field
            .integer(limits::WORKERS)
            .map(|n| usize::try_from(n).ok().and_then(NonZeroUsize::new)),
    };
    let drain_timeout = match section.optional("drain_timeout") {
        None => Some(Duration::from_secs(30)),
        Some(field) => field.duration(limits::TIMEOUT),
    };

    let (mut filters, configurations): (Vec<_>, Vec<_>) = complete(filters)?.into_iter().unzip();
    let (mut instances, routes) = chains::build(&filters, configurations, complete(route_parts)?);
    let listeners = complete(listeners)?.into_iter().map(|(listener, parts)| {
        let tcp = parts.map(|parts| tcp::build(parts, &mut filters, &mut instances));
        Listener { tcp, ..listener }
    });
    let listeners = listeners.collect();
    chains::refuse_equal_matches(reader, &routes);
    let mut policy = Policy {
        file: section.field().place().file,
        sha256: String::new(),
        listeners,
        clusters: complete(clusters)?,
        filters,
        instances,
        table: RouteTable::new(&routes),
        routes,
        admin: admin?,
        access_log: access_log?,
        workers: workers?,
        drain_timeout: drain_timeout?,
        warnings: Vec::new(),
    };
    policy.warnings = policy.find_warnings(now());
    Some(policy)
}

fn read_admin(field: &Field<'_>) -> Option<Admin> {
    let section = field.section(&["address"])?;
    let field = section.required("address")?;
    let address = field.parse(scalar::socket_address)?;
    if !address.ip().is_loopback() {
        field.refuse(format!(
            "{address} is not a loopback address: admin answers anyone who can reach it"
        ));
        return None;
    }
    Some(Admin {
        address,
        place: field.place(),
    })
}

/// The items of a list that must hold at least one.
fn required_list<'r>(section: &Section<'r>, key: &str) -> Vec<Field<'r>> {
    let Some(field) = section.required(key) else {
        return Vec::new();
    };
    let items = field.items();
    if matches!(&field.node().value, node::Value::Sequence(items) if items.is_empty()) {
        field.refuse("at least one is needed");
    }
    items
}

fn all<'r, T>(fields: &[Field<'r>], read: impl Fn(&Field<'r>) -> Option<T>) -> Vec<Option<T>> {
    fields.iter().map(read).collect()
}

fn complete<T>(items: Vec<Option<T>>) -> Option<Vec<T>> {
    items.into_iter().collect()
}

/// The names that items claim, whether or not the items are otherwise right.
fn names<'r>(fields: &[Field<'r>]) -> Vec<&'r str> {
    fields
        .iter()
        .filter_map(|field| Some(field.name()?.0))
        .collect()
}

fn refuse_duplicates(fields: &[Field<'_>]) {
    let named: Vec<_> = fields.iter().filter_map(Field::name).collect();
    let mut known = HashMap::new();
    for (name, field) in named {
        let line = field.place().line;
        match known.entry(name) {
            hash_map::Entry::Vacant(new) => {
                new.insert(line);
            }
            hash_map::Entry::Occupied(first) => field.refuse(format!(
                "`{name}` is already the name of the one on line {}",
                first.get()
            )),
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map(|since| since.as_secs());
    seconds
        .ok()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .unwrap_or(0)
}
