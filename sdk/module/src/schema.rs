//! The schema of a control's configuration, made by the module's own generator.
//!
//! The SDK's `export!` exports the generator as [`GENERATOR`]: no parameters, and a result with the address of the JSON
//! in its upper 32 bits and its length in the lower ones. It is run here once, in an interpreter, since compiling a
//! module for one call takes longer, and wasmtime in a build script longer still. It asks nothing of a host.

use wasmi::{
    Caller, Config, Engine, Error, ExternType, Linker, Memory, Module, Store, StoreLimits,
    StoreLimitsBuilder, Val,
};

use crate::error::ModuleError;
use crate::limits::{SCHEMA_BYTES_MAX, SCHEMA_FUEL_MAX, SCHEMA_MEMORY_BYTES_MAX};

/// The export that makes the schema; it does not ship.
const GENERATOR: &str = "portcullis_schema";

/// The schema, compact; `None` if the module has no generator.
pub(crate) fn generate(twin: &[u8]) -> Result<Option<String>, ModuleError> {
    let mut config = Config::default();
    config.consume_fuel(true);
    let engine = Engine::new(&config);
    let module =
        Module::new(&engine, twin).map_err(|error| ModuleError::Malformed(error.to_string()))?;
    if !module.exports().any(|export| export.name() == GENERATOR) {
        return Ok(None);
    }
    let json = run(&engine, &module).map_err(ModuleError::Schema)?;
    if json.is_empty() {
        return Err(ModuleError::Schema(
            "its generator is empty; the twin wants the SDK's feature `schema`".into(),
        ));
    }
    match serde_json::from_slice::<serde_json::Value>(&json) {
        // Through the tree: one form, whatever the generator writes.
        Ok(schema @ serde_json::Value::Object(_)) => Ok(Some(schema.to_string())),
        _ => Err(ModuleError::Schema("it is no JSON object".into())),
    }
}

fn run(engine: &Engine, module: &Module) -> Result<Vec<u8>, String> {
    let told = |error: Error| error.to_string();
    let limits = StoreLimitsBuilder::new()
        .memory_size(SCHEMA_MEMORY_BYTES_MAX)
        .build();
    let mut store = Store::new(engine, limits);
    store.limiter(|limits| limits);
    store.set_fuel(SCHEMA_FUEL_MAX).map_err(told)?;

    let mut linker = Linker::new(engine);
    for import in module.imports() {
        let (from, name) = (import.module(), import.name());
        let ExternType::Func(ty) = import.ty() else {
            return Err(format!("the module imports {from}.{name}, no function"));
        };
        let random = name == "random_get";
        let asked = format!("{from}.{name}");
        linker
            .func_new(
                from,
                name,
                ty.clone(),
                move |caller, arguments, results| match results {
                    [result] if random => {
                        *result = Val::I32(0);
                        no_random(caller, arguments)
                    }
                    _ => Err(Error::new(format!(
                        "its generator panics, or asks the host ({asked})"
                    ))),
                },
            )
            .map_err(|error| error.to_string())?;
    }
    let instance = linker
        .instantiate_and_start(&mut store, module)
        .map_err(told)?;
    let generator = instance
        .get_typed_func::<(), u64>(&store, GENERATOR)
        .map_err(told)?;
    let packed = generator.call(&mut store, ()).map_err(told)?;

    let memory: Memory = instance
        .get_memory(&store, "memory")
        .ok_or("the module has no memory")?;
    let half = |bits: u64| usize::try_from(bits & u64::from(u32::MAX)).unwrap_or(usize::MAX);
    let (start, len) = (half(packed >> 32), half(packed));
    if len > SCHEMA_BYTES_MAX {
        return Err(format!("it has {len} bytes, more than {SCHEMA_BYTES_MAX}"));
    }
    let bytes = memory
        .data(&store)
        .get(start..start.saturating_add(len))
        .ok_or("its generator points outside of the memory")?;
    Ok(bytes.to_vec())
}

/// Answers a hash map's wish for a seed, always the same: a schema does not depend on chance.
fn no_random(mut caller: Caller<'_, StoreLimits>, arguments: &[Val]) -> Result<(), Error> {
    let outside = || Error::new("random_get points outside of the memory");
    let memory = caller.get_export("memory").and_then(|e| e.into_memory());
    let memory = memory.ok_or_else(outside)?;
    let number = |value: Option<&Val>| match value {
        Some(Val::I32(number)) => usize::try_from(number.cast_unsigned()).ok(),
        _ => None,
    };
    let start = number(arguments.first()).ok_or_else(outside)?;
    let len = number(arguments.get(1)).ok_or_else(outside)?;
    memory
        .data_mut(&mut caller)
        .get_mut(start..start.saturating_add(len))
        .ok_or_else(outside)?
        .fill(0);
    Ok(())
}
