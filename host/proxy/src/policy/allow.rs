//! A filter's `allow`: what of the host its plugin may use.

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
        let capabilities = match section.optional("capabilities") {
            Some(field) => capabilities(field).map(Some),
            None => Some(None),
        };
        let properties = match section.optional("properties") {
            Some(field) => names(field, path).map(|paths| Some(PropertyPaths::new(paths))),
            None => Some(None),
        };
        let foreign_functions = match section.optional("foreign_functions") {
            Some(field) => names(field, any).map(|names| Some(names.into_iter().collect())),
            None => Some(None),
        };
        // After all have been read, so that each says what is wrong with it.
        let capabilities = capabilities?;
        let all = |list: &Vec<(String, Place)>| list.iter().map(|(name, _)| name.clone()).collect();
        Some(Self {
            lists: Allow {
                capabilities: capabilities.as_ref().map(all),
                properties: properties?,
                foreign_functions: foreign_functions?,
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

fn capabilities(field: &Field<'_>) -> Option<Vec<(String, Place)>> {
    let items = field.items();
    let items = items
        .iter()
        .map(|item| Some((item.parse(any)?, item.place())));
    let named = items.collect::<Option<Vec<_>>>()?;
    if named.is_empty() {
        field.refuse("at least one is needed: Envoy reads an empty list as everything");
        return None;
    }
    Some(named)
}

fn names(field: &Field<'_>, check: fn(&str) -> Result<String, String>) -> Option<Vec<String>> {
    field.items().iter().map(|item| item.parse(check)).collect()
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
