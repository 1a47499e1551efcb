//! Two policies compared by what they mean, and what a reload from the one to the other does.
//!
//! Layout, comments, the order of listeners, clusters and routes, and defaults written out make no difference. The order of filters does, and so do the bytes
//! of modules and certificates behind the same names.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde_json::Value;

use crate::policy::{Cluster, Listener, Place, Policy};

/// What differs, in the order of a policy's sections.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// None where the policies mean the same.
    pub(crate) differences: Vec<Difference>,
}

/// One thing that differs.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    change: Change,
    /// `route`, `filter`, …; a top-level key for what has no name.
    section: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `file:line` in the old policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<String>,
    /// The same in the new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<String>,
    /// Of what is in both.
    fields: Vec<FieldChange>,
    /// What a reload does about it.
    reload: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Added,
    Removed,
    Changed,
}

/// A value that differs; absent where it is not there.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FieldChange {
    key: String,
    old: Option<Value>,
    new: Option<Value>,
}

/// A named thing of a policy: as it is compared, and as it may be shown.
struct Named<'p> {
    name: &'p str,
    place: &'p Place,
    value: Value,
    shown: Value,
}

/// What a reload does where something comes, goes, or changes.
struct Effects {
    added: &'static str,
    removed: &'static str,
    changed: &'static str,
}

impl Comparison {
    /// Compares two policies.
    pub(crate) fn of(old: &Policy, new: &Policy) -> Self {
        let (old_view, new_view) = (View::of(old), View::of(new));
        let mut differences = Vec::new();
        let mut section = |section, effects: &Effects, old: Vec<Named<'_>>, new: Vec<Named<'_>>| {
            differences.extend(compare(section, effects, &old, &new));
        };
        section(
            "listener",
            &LISTENERS,
            old_view.listeners(),
            new_view.listeners(),
        );
        section(
            "cluster",
            &CLUSTERS,
            old_view.clusters(),
            new_view.clusters(),
        );
        section("filter", &FILTERS, old_view.filters(), new_view.filters());
        section("route", &ROUTES, old_view.routes(), new_view.routes());
        for difference in &mut differences {
            look_into_files(difference, old, new);
        }
        differences.extend(contents(old, new, &differences));
        differences.extend(order(old, new));
        for (key, effect) in [
            ("admin", "the admin page moves, comes or goes"),
            ("access_log", "lines go there from now on"),
            (
                "workers",
                "nothing: the number of workers is that of the start",
            ),
            ("drain_timeout", "it counts from now on"),
        ] {
            let (before, after) = (old_view.shown.get(key), new_view.shown.get(key));
            if before != after {
                differences.push(Difference {
                    change: Change::Changed,
                    section: key,
                    name: None,
                    old: None,
                    new: None,
                    fields: vec![FieldChange {
                        key: key.to_owned(),
                        old: before.cloned(),
                        new: after.cloned(),
                    }],
                    reload: vec![effect],
                });
            }
        }
        Self { differences }
    }
}

const LISTENERS: Effects = Effects {
    added: "a socket is bound for it",
    removed: "it accepts no more, its connections close after their requests",
    changed: "",
};
const CLUSTERS: Effects = Effects {
    added: "",
    removed: "connections to it close with the last request that has one",
    changed: "connections to it are made anew",
};
const FILTERS: Effects = Effects {
    added: "its plugin is tried out, then started on every worker",
    removed: "its plugin ends with the last request that runs through it; its shared data and queues are forgotten",
    changed: "its plugin is tried out, then started on every worker; shared data, queues and metrics stay",
};
const ROUTES: Effects = Effects {
    added: "",
    removed: "",
    changed: "requests that have begun end under the old one",
};

/// A policy as it is shown, secrets removed, with the policy itself beside it.
struct View<'p> {
    policy: &'p Policy,
    shown: Value,
}

impl<'p> View<'p> {
    fn of(policy: &'p Policy) -> Self {
        Self {
            policy,
            shown: policy.view(),
        }
    }

    fn items(
        &self,
        list: &str,
        names: impl Iterator<Item = (&'p str, &'p Place)>,
    ) -> Vec<Named<'p>> {
        let items = self.shown.get(list).and_then(Value::as_array);
        let items = items.into_iter().flatten().zip(names);
        let named = items.map(|(shown, (name, place))| Named {
            name,
            place,
            value: shown.clone(),
            shown: shown.clone(),
        });
        named.collect()
    }

    fn listeners(&self) -> Vec<Named<'p>> {
        let listeners = self.policy.listeners.iter();
        self.items(
            "listeners",
            listeners.map(|it| (it.name.as_str(), &it.place)),
        )
    }

    fn clusters(&self) -> Vec<Named<'p>> {
        let clusters = self.policy.clusters.iter();
        self.items("clusters", clusters.map(|it| (it.name.as_str(), &it.place)))
    }

    fn routes(&self) -> Vec<Named<'p>> {
        let routes = self.policy.routes.iter();
        let mut named = self.items("routes", routes.map(|it| (it.name.as_str(), &it.place)));
        // Their order is that of the filters, which is compared by itself.
        for item in &mut named {
            for list in ["filters", "off"] {
                if let Some(Value::Array(names)) = item.value.get_mut(list) {
                    names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
                }
            }
        }
        named
    }

    /// Compared with their configurations as they are, secrets included.
    fn filters(&self) -> Vec<Named<'p>> {
        let filters = self.policy.filters.iter();
        let mut named = self.items("filters", filters.map(|it| (it.name.as_str(), &it.place)));
        for item in &mut named {
            let Some(Value::Object(configurations)) = item.value.get_mut("configurations") else {
                continue;
            };
            for instance in &self.policy.instances {
                if let Some(value) = configurations.get_mut(&instance.name) {
                    *value = instance.configuration.to_json();
                }
            }
        }
        named
    }
}

fn compare(
    section: &'static str,
    effects: &Effects,
    old: &[Named<'_>],
    new: &[Named<'_>],
) -> Vec<Difference> {
    let make =
        |change, old: Option<&Named<'_>>, new: Option<&Named<'_>>, fields, effect| Difference {
            change,
            section,
            name: old.or(new).map(|it| it.name.to_owned()),
            old: old.map(|it| place(it.place)),
            new: new.map(|it| place(it.place)),
            fields,
            reload: Some(effect)
                .filter(|it: &&str| !it.is_empty())
                .into_iter()
                .collect(),
        };
    let mut differences = Vec::new();
    for before in old {
        match new.iter().find(|it| it.name == before.name) {
            None => {
                let effect = effects.removed;
                differences.push(make(
                    Change::Removed,
                    Some(before),
                    None,
                    Vec::new(),
                    effect,
                ));
            }
            Some(after) if before.value != after.value => {
                let fields = changes(before, after);
                let effect = effects.changed;
                differences.push(make(
                    Change::Changed,
                    Some(before),
                    Some(after),
                    fields,
                    effect,
                ));
            }
            Some(_) => {}
        }
    }
    let is_new = |it: &&Named<'_>| old.iter().all(|before| before.name != it.name);
    for after in new.iter().filter(is_new) {
        differences.push(make(
            Change::Added,
            None,
            Some(after),
            Vec::new(),
            effects.added,
        ));
    }
    differences
}

fn place(place: &Place) -> String {
    format!("{}:{}", place.file.display(), place.line)
}

/// The leaves that differ, shown without their secrets.
fn changes(old: &Named<'_>, new: &Named<'_>) -> Vec<FieldChange> {
    let leaves = |value: &Value| {
        let mut out = Vec::new();
        flatten("", "", value, &mut out);
        out
    };
    let (before, after) = (leaves(&old.value), leaves(&new.value));
    let mut fields = Vec::new();
    let find = |all: &[Leaf], key: &str| all.iter().find(|it| it.key == key).cloned();
    for leaf in &before {
        let other = find(&after, &leaf.key);
        if other.as_ref().map(|it| &it.value) != Some(&leaf.value) {
            fields.push(FieldChange {
                key: leaf.key.clone(),
                old: Some(leaf.shown_in(&old.shown)),
                new: other.map(|it| it.shown_in(&new.shown)),
            });
        }
    }
    for leaf in &after {
        if find(&before, &leaf.key).is_none() {
            fields.push(FieldChange {
                key: leaf.key.clone(),
                old: None,
                new: Some(leaf.shown_in(&new.shown)),
            });
        }
    }
    fields
}

/// A value that holds no other, and how to come to it.
#[derive(Clone)]
struct Leaf {
    key: String,
    /// RFC 6901.
    pointer: String,
    value: Value,
}

impl Leaf {
    /// As the view has it: a secret, or what holds one, is `[removed]` there.
    fn shown_in(&self, shown: &Value) -> Value {
        let mut pointer = self.pointer.as_str();
        loop {
            if let Some(found) = shown.pointer(pointer) {
                return found.clone();
            }
            match pointer.rsplit_once('/') {
                Some((above, _)) => pointer = above,
                None => return Value::Null,
            }
        }
    }
}

fn flatten(key: &str, pointer: &str, value: &Value, out: &mut Vec<Leaf>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let key = match key {
                    "" => name.clone(),
                    key => format!("{key}.{name}"),
                };
                let escaped = name.replace('~', "~0").replace('/', "~1");
                flatten(&key, &format!("{pointer}/{escaped}"), member, out);
            }
        }
        Value::Array(items) if items.iter().any(|it| it.is_object() || it.is_array()) => {
            for (index, item) in items.iter().enumerate() {
                let key = format!("{key}[{index}]");
                flatten(&key, &format!("{pointer}/{index}"), item, out);
            }
        }
        Value::Null => {}
        value => out.push(Leaf {
            key: key.to_owned(),
            pointer: pointer.to_owned(),
            value: value.clone(),
        }),
    }
}

/// What a listener's change does depends on what changed.
fn look_into_files(difference: &mut Difference, old: &Policy, new: &Policy) {
    if difference.section != "listener" || difference.change != Change::Changed {
        return;
    }
    let find = |policy: &Policy| {
        let mut listeners = policy.listeners.iter().cloned();
        listeners.find(|it| Some(&it.name) == difference.name.as_ref())
    };
    if let (Some(before), Some(after)) = (find(old), find(new)) {
        difference.reload = listener_effects(&before, &after);
    }
}

fn listener_effects(before: &Listener, after: &Listener) -> Vec<&'static str> {
    let mut effects = Vec::new();
    if before.address != after.address {
        effects.push("a socket is bound for the new address, the old one accepts no more");
    } else {
        effects.push("its socket stays");
    }
    match (&before.tls, &after.tls) {
        (Some(one), Some(other)) if !one.asks_the_same(other) => {
            effects.push(
                "connections whose clients might not be let in any more close after their requests",
            );
        }
        (Some(one), Some(other)) if !one.is_same(other) => {
            effects.push("the new certificate shows on new connections");
        }
        (None, None) | (Some(_), Some(_)) => {}
        _ => effects.push("connections close after their requests"),
    }
    effects
}

/// Files of the same name with other contents: certificates and authorities. Modules show by their digests.
fn contents(old: &Policy, new: &Policy, known: &[Difference]) -> Vec<Difference> {
    let is_known = |section: &str, name: &str| {
        known
            .iter()
            .any(|it| it.section == section && it.name.as_deref() == Some(name))
    };
    let make = |section, name: &str, before: &Place, after: &Place, key: &str, reload| Difference {
        change: Change::Changed,
        section,
        name: Some(name.to_owned()),
        old: Some(place(before)),
        new: Some(place(after)),
        fields: vec![FieldChange {
            key: key.to_owned(),
            old: Some("the same file".into()),
            new: Some("with other contents".into()),
        }],
        reload,
    };
    let mut differences = Vec::new();
    for before in &old.listeners {
        let after = new.listeners.iter().find(|it| it.name == before.name);
        let Some(after) = after.filter(|it| !is_known("listener", &it.name)) else {
            continue;
        };
        if let (Some(one), Some(other)) = (&before.tls, &after.tls)
            && !one.is_same(other)
        {
            let effects = listener_effects(before, after);
            let (name, old, new) = (&before.name, &before.place, &after.place);
            differences.push(make("listener", name, old, new, "tls", effects));
        }
    }
    for before in &old.clusters {
        let after = new.clusters.iter().find(|it| it.name == before.name);
        let after = after.filter(|it| !is_known("cluster", &it.name));
        if let Some(after) = after.filter(|after| !Cluster::is_same(before, after)) {
            let (name, old, new) = (&before.name, &before.place, &after.place);
            let effects = vec![CLUSTERS.changed];
            differences.push(make("cluster", name, old, new, "tls.ca", effects));
        }
    }
    differences
}

/// Filters that are in both policies, in another order.
fn order(old: &Policy, new: &Policy) -> Option<Difference> {
    let names = |of: &Policy, other: &Policy| -> Vec<Value> {
        let filters = of.filters.iter().filter(|it| !it.is_tcp);
        let common = filters.filter(|it| other.filters.iter().any(|other| other.name == it.name));
        common.map(|it| it.name.clone().into()).collect()
    };
    let (before, after) = (names(old, new), names(new, old));
    (before != after).then(|| Difference {
        change: Change::Changed,
        section: "filters",
        name: None,
        old: None,
        new: None,
        fields: vec![FieldChange {
            key: "order".into(),
            old: Some(before.into()),
            new: Some(after.into()),
        }],
        reload: vec!["requests that begin from now on pass them in the new order"],
    })
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.differences.iter().try_for_each(|it| it.fmt(f))
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        write!(f, "{sign} {}", self.section)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        let places: Vec<_> = self
            .old
            .iter()
            .chain(&self.new)
            .map(String::as_str)
            .collect();
        if !places.is_empty() {
            write!(f, " ({})", places.join(", "))?;
        }
        writeln!(f)?;
        for FieldChange { key, old, new } in &self.fields {
            if let Some(old) = old {
                writeln!(f, "    - {key}: {}", shown(old))?;
            }
            if let Some(new) = new {
                writeln!(f, "    + {key}: {}", shown(new))?;
            }
        }
        for effect in &self.reload {
            writeln!(f, "    reload: {effect}")?;
        }
        Ok(())
    }
}

/// Text without quotes where it cannot be mistaken for more than it is.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if !text.chars().any(char::is_control) => text.clone(),
        other => other.to_string(),
    }
}
