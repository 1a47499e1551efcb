//! Routes: whether a filter that authenticates runs on each, and stands behind security-headers.
//!
//! What authenticates is told by type: jwt_authn, ext_authz, oauth2, basic_auth, api_key_auth; and a Wasm filter whose name, root id or file speaks of
//! it (`jwt`, `auth`, `oidc`, `oauth`), since a configuration says no more of it; but where it lists `controls`, these count alone.

use super::Audit;
use super::tree::Item;
use crate::policy::Lint;

/// Messages of filters that authenticate or ask somebody who does.
const AUTHENTICATING: &[&str] = &[
    "JwtAuthentication",
    "ExtAuthz",
    "OAuth2",
    "BasicAuth",
    "ApiKeyAuth",
];

const WORDS: &[&str] = &["jwt", "auth", "oidc"];

/// Route configurations of a dump, by name.
pub(super) fn dumped<'n>(root: &Item<'n>) -> Vec<(String, Item<'n>)> {
    let configs = root.get("configs").map(|it| it.items()).unwrap_or_default();
    let mut found = Vec::new();
    for config in configs {
        for list in ["static_route_configs", "dynamic_route_configs"] {
            for entry in config.list(list) {
                if let Some(routes) = entry.get("route_config")
                    && let Some(name) = routes.text_of("name")
                {
                    found.push((name.to_owned(), routes));
                }
            }
        }
    }
    found
}

/// A filter of a connection manager.
struct Filter<'n> {
    name: &'n str,
    message: Option<Item<'n>>,
    is_on: bool,
    authenticates: bool,
}

impl<'n> Filter<'n> {
    fn new(item: &Item<'n>) -> Self {
        let config = item.get("typed_config");
        let kind = config.as_ref().and_then(|it| it.kind());
        let kind = kind.and_then(|it| it.rsplit('.').next());
        let message = config.map(|it| it.message());
        let authenticates = match kind {
            Some("Wasm") => message.as_ref().is_some_and(|it| speaks_of_it(item, it)),
            Some(kind) => AUTHENTICATING.contains(&kind),
            None => false,
        };
        Self {
            name: item.text_of("name").unwrap_or_default(),
            message,
            is_on: !item.is_true("disabled"),
            authenticates,
        }
    }
}

fn speaks_of_it(filter: &Item<'_>, wasm: &Item<'_>) -> bool {
    let config = wasm.get("config");
    let of_config = |names: &[&str]| config.as_ref().and_then(|it| it.at(names));
    let configuration = of_config(&["configuration", "value"]);
    if let Some(controls) = configuration.and_then(|it| controls(it.text()?)) {
        return controls
            .iter()
            .any(|name| WORDS.iter().any(|word| name.contains(word)));
    }
    let file = of_config(&["vm_config", "code", "local", "filename"]);
    let said = [
        filter.get("name"),
        of_config(&["name"]),
        of_config(&["root_id"]),
        file,
    ];
    let said = said.iter().flatten().filter_map(|it| it.text());
    said.map(|text| text.rsplit('/').next().unwrap_or_default().to_lowercase())
        .any(|text| WORDS.iter().any(|word| text.contains(word)))
}

/// What a module of several controls is told to run (`portcullis export envoy` makes one filter of neighbours).
fn controls(configuration: &str) -> Option<Vec<String>> {
    let configuration: serde_json::Value = serde_json::from_str(configuration).ok()?;
    let entries = configuration.get("controls")?.as_array()?.iter();
    entries
        .map(|entry| Some(entry.get("control")?.as_str()?.to_lowercase()))
        .collect()
}

impl<'n> Audit<'n> {
    pub(super) fn look_at_routes(&mut self, http: &Item<'n>) {
        let filters: Vec<_> = http.list("http_filters");
        self.look_at_order(&filters);
        let filters: Vec<_> = filters.iter().map(Filter::new).collect();
        let named = http.at(&["rds", "route_config_name"]);
        let dumped = named.and_then(|name| {
            let name = name.text()?;
            let mut all = self.dumped_routes.iter();
            all.find(|(other, _)| other == name)
                .map(|(_, routes)| routes.clone())
        });
        let Some(routes) = http.get("route_config").or(dumped) else {
            return;
        };
        for host in routes.list("virtual_hosts") {
            for route in host.list("routes") {
                // Nothing is behind what Envoy answers by itself.
                if route.get("direct_response").is_some() || route.get("redirect").is_some() {
                    continue;
                }
                let levels = [&route, &host, &routes];
                if let Some(why) = open_to_everybody(&filters, &levels) {
                    let name = route.text_of("name").map(str::to_owned);
                    let name = name.unwrap_or_else(|| prefix(&route).unwrap_or("?").to_owned());
                    let host = host.text_of("name").unwrap_or_default();
                    let reason = format!(
                        "route `{name}` of virtual host `{host}` is open to everybody: {why}"
                    );
                    self.warn(Lint::OpenRoute, &route, reason);
                }
            }
        }
    }

    fn look_at_order(&mut self, filters: &[Item<'n>]) {
        let name = |filter: &Item<'n>| {
            let config = filter.at(&["typed_config", "config", "name"]);
            let inner = config.and_then(|it| it.text());
            inner.or(filter.text_of("name")).unwrap_or_default()
        };
        let first = filters
            .iter()
            .position(|it| name(it).starts_with("security-headers"));
        if let Some((index, filter)) = first.and_then(|it| Some((it, filters.get(it)?)))
            && index > 0
        {
            let reason =
                "not the first filter: answers of the filters before it go out without its headers";
            self.warn(Lint::HeadersNotFirst, filter, reason);
        }
    }
}

/// What a route matches, where that is a prefix or a path.
fn prefix<'n>(route: &Item<'n>) -> Option<&'n str> {
    let matched = route.get("match")?;
    let keys = ["prefix", "path_separated_prefix", "path"];
    keys.iter().find_map(|key| matched.text_of(key))
}

/// Why nobody is asked who he is on a route; `levels` from the most specific. `None` where a filter does.
fn open_to_everybody(filters: &[Filter<'_>], levels: &[&Item<'_>]) -> Option<String> {
    let mut why = "no filter on it authenticates".to_owned();
    for filter in filters.iter().filter(|it| it.authenticates) {
        let own = levels
            .iter()
            .find_map(|level| level.get("typed_per_filter_config")?.get(filter.name));
        let is_on = match &own {
            Some(own) => !own.message().is_true("disabled"),
            None => filter.is_on,
        };
        if !is_on {
            why = format!("`{}` is off on it", filter.name);
            continue;
        }
        let names_requirement =
            own.is_some_and(|own| own.message().text_of("requirement_name").is_some());
        let jwt = filter
            .message
            .as_ref()
            .filter(|it| it.get("rules").is_some());
        let path = levels.first().and_then(|route| prefix(route));
        match (jwt, path) {
            (Some(jwt), Some(path)) if !names_requirement => match gap(jwt, path) {
                Some(gap) => why = gap,
                None => return None,
            },
            _ => return None,
        }
    }
    Some(why)
}

/// Why jwt_authn's rules let requests of this path by without a token; the first rule that matches decides.
fn gap(jwt: &Item<'_>, path: &str) -> Option<String> {
    for rule in jwt.list("rules") {
        let covers = match rule.get("match") {
            None => true,
            Some(matched) => match (prefix_of_rule(&matched), matched.text_of("path")) {
                (Some(prefix), _) => path.starts_with(prefix),
                (None, Some(exact)) => path == exact,
                (None, None) => true, // a pattern: taken to match
            },
        };
        if !covers {
            continue;
        }
        let requires = rule.get("requires");
        let lets_by = |it: &Item<'_>| {
            ["allow_missing", "allow_missing_or_failed"]
                .iter()
                .any(|key| it.get(key).is_some())
        };
        let any_lets_by = requires.as_ref().is_some_and(|requires| {
            let any = requires.at(&["requires_any", "requirements"]);
            let any = any.map(|it| it.items()).unwrap_or_default();
            lets_by(requires) || any.iter().any(lets_by)
        });
        return if requires.is_none() && rule.get("requirement_name").is_none() {
            Some("the rule of jwt_authn for it requires nothing".into())
        } else if any_lets_by {
            Some("the rule of jwt_authn for it lets requests without a token by".into())
        } else {
            None
        };
    }
    Some("no rule of jwt_authn matches it".into())
}

fn prefix_of_rule<'n>(matched: &Item<'n>) -> Option<&'n str> {
    let prefix = matched.text_of("prefix");
    prefix.or_else(|| matched.text_of("path_separated_prefix"))
}
