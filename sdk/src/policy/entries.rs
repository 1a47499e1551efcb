//! The configuration of a policy: which controls it runs, in which order, and each one's own.

use super::measure::Measure;
use super::{ControlSet, Member};
use crate::configuration::ConfigError;
use crate::json::Json;
use crate::log;

/// The key that says of how many exchanges one is measured.
pub(crate) const MEASURE: &str = "measure_one_in";

/// One entry of the configuration's `controls`.
pub(super) struct Entry {
    pub(super) member: &'static Member,
    pub(super) filter: String,
    pub(super) configuration: Json,
}

/// Reads `{"controls": [{"control": NAME, "filter": NAME, "configuration": {…}}, …], "measure_one_in": NUMBER}`.
pub(super) fn entries<S: ControlSet>(tree: Json) -> Result<(Vec<Entry>, Measure), ConfigError> {
    let Json::Object(members) = tree else {
        return Err(ConfigError::new("", "must be a mapping"));
    };
    let (mut list, mut measure) = (None, Measure::default());
    for (key, value) in members {
        match (key.as_str(), value) {
            ("controls", Json::List(entries)) => list = Some(entries),
            ("controls", _) => return Err(ConfigError::new("controls", "must be a list")),
            (MEASURE, value) => {
                let one_in = match value {
                    Json::Unsigned(number) => u32::try_from(number).ok().filter(|it| *it > 0),
                    _ => None,
                };
                let reason = "must be a whole number from 1 to 4294967295";
                measure = Measure::one_in(one_in.ok_or_else(|| ConfigError::new(key, reason))?);
            }
            _ => {
                let reason = "unknown field, expected `controls` or `measure_one_in`";
                return Err(ConfigError::new(key, reason));
            }
        }
    }
    let list = list.filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| ConfigError::new("controls", "must name at least one control"))?;
    let mut entries: Vec<Entry> = Vec::with_capacity(list.len());
    for (index, entry) in list.into_iter().enumerate() {
        let entry = entry_of::<S>(entry).map_err(|error| error.under(&under(index, "")))?;
        if entries.iter().any(|known| known.filter == entry.filter) {
            let reason = ["`", &entry.filter, "` comes twice"].concat();
            return Err(ConfigError::new("filter", reason).under(&under(index, "")));
        }
        entries.push(entry);
    }
    Ok((entries, measure))
}

fn entry_of<S: ControlSet>(entry: Json) -> Result<Entry, ConfigError> {
    let Json::Object(members) = entry else {
        return Err(ConfigError::new("", "must be a mapping"));
    };
    let (mut member, mut filter) = (None, None);
    let mut configuration = Json::Object(Vec::new());
    for (key, value) in members {
        match (key.as_str(), value) {
            ("control", Json::Text(name)) => {
                let found = S::MEMBERS.iter().find(|it| it.metadata.name == name);
                member = Some(found.ok_or_else(|| unknown_control::<S>(&name))?);
            }
            ("filter", Json::Text(name)) => filter = Some(name),
            ("control" | "filter", _) => return Err(ConfigError::new(key, "must be a name")),
            ("configuration", value) => configuration = value,
            _ => {
                let reason = "unknown field, expected one of `control`, `filter`, `configuration`";
                return Err(ConfigError::new(key, reason));
            }
        }
    }
    let member = member.ok_or_else(|| ConfigError::new("control", "is missing"))?;
    Ok(Entry {
        member,
        filter: filter.unwrap_or_else(|| member.metadata.name.into()),
        configuration,
    })
}

#[cold]
fn unknown_control<S: ControlSet>(name: &str) -> ConfigError {
    let known: Vec<&str> = S::MEMBERS.iter().map(|it| it.metadata.name).collect();
    let reason = [
        "`",
        name,
        "` is not in this module; it has ",
        &known.join(", "),
    ]
    .concat();
    ConfigError::new("control", reason)
}

/// `controls[3]` and what follows.
pub(super) fn under(index: usize, rest: &str) -> String {
    let mut path = String::from("controls[");
    log::push_number(&mut path, index as u64);
    path.push(']');
    path.push_str(rest);
    path
}
