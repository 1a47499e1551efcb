//! The modules of a policy: compiled once for each digest, linked once for each set of allow-lists, and kept from one policy to the next.

use std::collections::HashMap;
use std::sync::Arc;

use portcullis_runtime::{
    Allow, Isolation, LoadError, Module, ModuleCache, Runtime, UnknownImports,
};

use crate::canary;
use crate::policy::{Filter, Policy, Problem};

/// Digest, what becomes of unknown imports, whether snapshots are made of its VMs, allow-lists.
type Key = (String, UnknownImports, bool, Allow);

/// By what they were made from.
#[derive(Default)]
pub(crate) struct Modules(HashMap<Key, Arc<Module>>);

impl Modules {
    /// Those that the policy runs; what `earlier` has is taken from there. Which of them cannot be had, or see nothing of what they are to
    /// filter, stands in the problems.
    pub(crate) fn load(
        policy: &Policy,
        runtime: &Runtime,
        cache: &dyn ModuleCache,
        earlier: &Self,
    ) -> (Self, Vec<Problem>) {
        let mut modules = Self::default();
        let mut problems = Vec::new();
        // A filter's own configuration comes first among its instances.
        let mut filters: Vec<&Filter> = Vec::new();
        for instance in &policy.instances {
            if !filters.iter().any(|it| it.name == instance.filter.name) {
                filters.push(&instance.filter);
            }
        }
        for filter in filters {
            match modules.add(filter, runtime, cache, earlier) {
                Ok(module) => problems.extend(canary::unfit(filter, &module)),
                Err(error) => {
                    let place = match &error {
                        LoadError::UnknownCapability(name) => filter.allow.place_of(name),
                        _ => None,
                    };
                    let place = place.unwrap_or(&filter.place);
                    problems.push(place.problem(error.to_string()));
                }
            }
        }
        (modules, problems)
    }

    fn add(
        &mut self,
        filter: &Filter,
        runtime: &Runtime,
        cache: &dyn ModuleCache,
        earlier: &Self,
    ) -> Result<Arc<Module>, LoadError> {
        let unknown = filter.unknown_imports;
        let restricted = key(filter);
        let snapshots = restricted.2;
        let whole = (restricted.0.clone(), unknown, snapshots, Allow::default());
        let module = match self.0.get(&whole).or_else(|| earlier.0.get(&whole)) {
            Some(module) => Arc::clone(module),
            None => {
                let wasm = &filter.module.bytes;
                let module = if snapshots {
                    runtime.load_for_snapshots(wasm, cache, unknown)?
                } else {
                    runtime.load_with(wasm, cache, unknown)?
                };
                warn_of_imports(&filter.name, &module);
                module
            }
        };
        self.0.insert(whole, Arc::clone(&module));
        let known = self
            .0
            .get(&restricted)
            .or_else(|| earlier.0.get(&restricted));
        let module = match known {
            Some(module) => Arc::clone(module),
            None => runtime.restrict(&module, &filter.allow.lists)?,
        };
        self.0.insert(restricted, Arc::clone(&module));
        Ok(module)
    }

    /// The module of a filter; `None` where it could not be had.
    pub(crate) fn of(&self, filter: &Filter) -> Option<&Arc<Module>> {
        self.0.get(&key(filter))
    }
}

fn key(filter: &Filter) -> Key {
    (
        filter.module.sha256.clone(),
        filter.unknown_imports,
        filter.isolation == Isolation::Request,
        filter.allow.lists.clone(),
    )
}

/// One line, for all that a plugin may ask in vain.
fn warn_of_imports(filter: &str, module: &Module) {
    let unserved: Vec<_> = module.unserved_imports().collect();
    if !unserved.is_empty() {
        let imports = unserved.join(", ");
        tracing::warn!(filter, imports, "imports that answer UNIMPLEMENTED here");
    }
    if !module.unknown_imports().is_empty() {
        let imports = module.unknown_imports().join(", ");
        tracing::warn!(
            filter,
            imports,
            "unknown imports, which trap when they are called"
        );
    }
}
