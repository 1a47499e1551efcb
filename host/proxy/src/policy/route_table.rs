//! Finding a request's route, at much the same cost whether there are ten routes or ten thousand: hosts by their names, prefixes segment by
//! segment. Ordered maps: with the few routes of most policies they take a fraction of what hashing takes, and few comparisons with many.
//!
//! What a client sends bounds no loop alone: a host is looked up once whole and once for each label within the longest suffix of the policy, and a
//! path is walked as far as the policy's prefixes go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::route::{HostPattern, Route};

/// The routes as they are looked up.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    hosts: Vec<VirtualHost>,
    /// Places in `hosts`, by name.
    exact: BTreeMap<String, usize>,
    /// The same by suffix, `.example.com`.
    below: BTreeMap<String, usize>,
    /// Bytes of the longest suffix.
    below_longest: usize,
    any: Option<usize>,
}

/// The routes of one host.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Which hosts.
    pub host: HostPattern,
    /// Longest prefix first.
    pub routes: Vec<Arc<Route>>,
    prefixes: Prefixes,
}

/// The prefixes of one host as a tree of segments, the first of them the root: a list, since one within the other would be as deep as a prefix
/// is long.
#[derive(Clone, Debug)]
struct Prefixes(Vec<Segment>);

/// What stands at a prefix, and the places of the next segments by name.
#[derive(Clone, Debug, Default)]
struct Segment {
    route: Option<Arc<Route>>,
    next: BTreeMap<Box<str>, usize>,
}

impl Prefixes {
    fn new() -> Self {
        Self(vec![Segment::default()])
    }

    /// The first of equal prefixes stays.
    fn insert(&mut self, route: &Arc<Route>) {
        let mut at = 0;
        let prefix = route.prefix.as_str();
        for name in prefix.split('/').filter(|name| !name.is_empty()) {
            let new = self.0.len();
            let Some(segment) = self.0.get_mut(at) else {
                return;
            };
            at = *segment.next.entry(name.into()).or_insert(new);
            if at == new {
                self.0.push(Segment::default());
            }
        }
        if let Some(segment) = self.0.get_mut(at) {
            segment.route.get_or_insert_with(|| Arc::clone(route));
        }
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        let mut at = self.0.first()?;
        let mut found = at.route.as_ref();
        let Some(path) = path.strip_prefix('/') else {
            // `*` lies below nothing.
            return found.filter(|_| path.is_empty());
        };
        for name in path.split('/') {
            let Some(next) = at.next.get(name).and_then(|place| self.0.get(*place)) else {
                break;
            };
            at = next;
            found = at.route.as_ref().or(found);
        }
        found
    }
}

impl RouteTable {
    pub(crate) fn new(routes: &[Arc<Route>]) -> Self {
        let mut places: HashMap<&HostPattern, usize> = HashMap::new();
        let mut hosts: Vec<VirtualHost> = Vec::new();
        for route in routes {
            let place = *places.entry(&route.host).or_insert(hosts.len());
            match hosts.get_mut(place) {
                Some(host) => host.routes.push(Arc::clone(route)),
                None => hosts.push(VirtualHost {
                    host: route.host.clone(),
                    routes: vec![Arc::clone(route)],
                    prefixes: Prefixes::new(),
                }),
            }
        }
        for host in &mut hosts {
            host.routes
                .sort_by_key(|route| std::cmp::Reverse(route.prefix.as_str().len()));
            for route in &host.routes {
                host.prefixes.insert(route);
            }
        }
        // Exact names, then suffixes from the longest, then any.
        hosts.sort_by_key(|host| match &host.host {
            HostPattern::Exact(_) => (0, 0),
            HostPattern::Below(suffix) => (1, usize::MAX - suffix.len()),
            HostPattern::Any => (2, 0),
        });
        let mut table = Self::default();
        for (place, host) in hosts.iter().enumerate() {
            match &host.host {
                HostPattern::Exact(name) => {
                    table.exact.insert(name.clone(), place);
                }
                HostPattern::Below(suffix) => {
                    table.below_longest = table.below_longest.max(suffix.len());
                    table.below.insert(suffix.clone(), place);
                }
                HostPattern::Any => table.any = Some(place),
            }
        }
        Self { hosts, ..table }
    }

    /// The hosts, most specific first.
    #[must_use]
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// The route of a request. `host` is lower case, without a port; `path` is normalised, without a query.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let place = self.exact.get(host).or_else(|| self.below(host)).copied();
        let host = self.hosts.get(place.or(self.any)?)?;
        host.prefixes.find(path)
    }

    /// The longest suffix with at least one byte before it.
    fn below(&self, host: &str) -> Option<&usize> {
        if self.below.is_empty() {
            return None;
        }
        let longest = host.len().saturating_sub(self.below_longest);
        let tail = host.as_bytes().get(longest.max(1)..)?;
        let dots = tail.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        let mut suffixes = dots.filter_map(|(at, _)| host.get(longest.max(1) + at..));
        suffixes.find_map(|suffix| self.below.get(suffix))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::{folder, parse};
    use super::{HostPattern, RouteTable};

    /// As the contract says it: the first host that matches in `hosts`, the first of its routes whose prefix does.
    fn by_looking_at_each<'t>(table: &'t RouteTable, host: &str, path: &str) -> Option<&'t str> {
        let matches = |pattern: &HostPattern| match pattern {
            HostPattern::Exact(name) => name == host,
            HostPattern::Below(suffix) => {
                host.len() > suffix.len() && host.ends_with(suffix.as_str())
            }
            HostPattern::Any => true,
        };
        let found = table.hosts().iter().find(|it| matches(&it.host))?;
        let route = found.routes.iter().find(|it| it.prefix.matches(path))?;
        Some(&route.name)
    }

    #[test]
    fn the_table_finds_what_a_look_at_each_route_would() {
        const HOSTS: [&str; 8] = ["", "a", "b.a", "*.a", "*.b.a", "c.b.a", "*.c", "x.c"];
        const ASKED: [&str; 10] = [
            "a", ".a", "b.a", "c.b.a", "d.c.b.a", "x.c", "y.c", "c", "", "\u{e9}.a",
        ];
        const SEGMENTS: [&str; 5] = ["a", "b", "ab", "%2F", "\u{e9}"];
        let folder = folder();
        let mut random = fastrand::Rng::with_seed(9);
        let path = |random: &mut fastrand::Rng| -> String {
            let segments = (0..random.usize(0..4)).map(|_| random.choice(SEGMENTS).unwrap_or("a"));
            let path: String = segments.map(|it| format!("/{it}")).collect();
            if path.is_empty() {
                "/".to_owned()
            } else {
                path
            }
        };
        let mut found = 0;
        for _ in 0..200 {
            let routes: BTreeSet<_> = (0..random.usize(1..24))
                .map(|_| (random.choice(HOSTS).unwrap_or(""), path(&mut random)))
                .filter(|(_, prefix)| prefix.is_ascii() && !prefix.contains('%'))
                .collect();
            let mut text = "listeners: [{name: in, address: 127.0.0.1:8080}]\n\
                            clusters: [{name: up, endpoints: ['127.0.0.1:9000']}]\n\
                            routes:\n- {name: last, cluster: up, host: z}\n"
                .to_owned();
            for (number, (host, prefix)) in routes.iter().enumerate() {
                let host = if host.is_empty() {
                    String::new()
                } else {
                    format!(", host: '{host}'")
                };
                text.push_str(&format!(
                    "- {{name: r{number}, cluster: up, prefix: {prefix}{host}}}\n"
                ));
            }
            let table = parse(folder.path(), &text).unwrap().table;
            for _ in 0..100 {
                let host = random.choice(ASKED).unwrap_or("a");
                let mut path = path(&mut random);
                path.push_str(random.choice(["", "", "/", "//", "/a/b/c/d"]).unwrap_or(""));
                let name = table.find(host, &path).map(|it| it.name.as_str());
                assert_eq!(
                    name,
                    by_looking_at_each(&table, host, &path),
                    "{host} {path}\n{text}"
                );
                found += usize::from(name.is_some());
            }
        }
        assert!((2_000..18_000).contains(&found), "{found} of 20000");
    }
}
