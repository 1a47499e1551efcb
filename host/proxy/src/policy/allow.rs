//! A filter's `allow`: what of the host its plugin may use.

use std::collections::BTreeSet;

use portcullis_runtime::{Allow, PropertyPaths};

use super::limits::PROPERTY_PATH_BYTES_MAX;
use super::place::Place;
use super::reader::Field;

const KEYS: &[&str] = &["capabilities", "properties", "foreign_functions"];

/// What a filter may use, and where each capability was written: which names there are is for the runtime to say.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// The lists.
    pub lists: Allow,
    capabilities: Vec<(String, Place)>,
}

impl Allowed {
    pub(super) fn read(field: &Field<'_>) -> Option<Self> {
        let section = field.section(KEYS)?;
        let list = |key: &str, check: fn(&str) -> Result<String, String>| {
            let field = section.optional(key)?;
            let items = field.items();
            let items = items
                .iter()
                .map(|item| Some((item.parse(check)?, item.place())));
            Some(items.collect::<Option<Vec<_>>>())
        };
        let capabilities = list("capabilities", any);
        if let (Some(Some(names)), Some(field)) = (&capabilities, section.optional("capabilities"))
            && names.is_empty()
        {
            field.refuse("at least one is needed: Envoy reads an empty list as everything");
            return None;
        }
        let properties = list("properties", path);
        let functions = list("foreign_functions", any);
        let names = |list: Option<Vec<(String, Place)>>| {
            list.map(|list| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        let set = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
        let capabilities = capabilities.map_or(Some(None), |list| list.map(Some))?;
        let properties = names(properties.map_or(Some(None), |list| list.map(Some))?);
        let functions = names(functions.map_or(Some(None), |list| list.map(Some))?);
        Some(Self {
            lists: Allow {
                capabilities: names(capabilities.clone()).map(set),
                properties: properties.map(PropertyPaths::new),
                foreign_functions: functions.map(set),
            },
            capabilities: capabilities.unwrap_or_default(),
        })
    }

    /// Where a capability was written.
    #[must_use]
    pub fn place_of(&self, capability: &str) -> Option<&Place> {
        self.capabilities
            .iter()
            .find(|(name, _)| name == capability)
            .map(|(_, place)| place)
    }
}

fn any(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty name".into());
    }
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('\0') || text.split('.').any(str::is_empty) {
        return Err(format!(
            "`{text}` is not a property path such as request.headers.x-user"
        ));
    }
    if text.len() > PROPERTY_PATH_BYTES_MAX {
        return Err(format!("longer than {PROPERTY_PATH_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}
