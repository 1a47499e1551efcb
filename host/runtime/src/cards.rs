//! Cards: which pieces of its memory a VM has written, so that one made for an exchange can be made new for the next by copying those back.
//!
//! A module is rewritten: before each instruction that writes to linear memory stands one that marks the *card* (a piece of
//! [`CARD_BYTES`]) where the write begins, a byte for each card, in a second memory. No instruction of the guest names that memory, so no
//! guest, however broken, can hide what it wrote. What the host writes into a guest it marks itself (`hostcalls/mod.rs`).
//!
//! Invariants:
//! - An instruction that writes a single value marks but the card of its first byte. So whoever makes a card new makes the
//!   [`SPILL_BYTES`] behind it new as well.
//! - A mark comes before the write. Where the write would trap, the mark may be on a wrong card or trap itself, out of bounds like the write:
//!   a VM that trapped is never entered again.
//! - What else an instance keeps (WebAssembly core specification, "Runtime Structure") are globals, which are exported under the names that
//!   `wasmtime-wizer` gives them, tables and dropped segments. A module that can change its tables or drop segments is [`Unfit`].

use wasm_encoder::{
    BlockType, CodeSection, ExportKind, ExportSection, Function, FunctionSection, Instruction,
    MemArg, MemorySection, MemoryType, Module, TypeSection, ValType,
    reencode::{Error, Reencode, utils},
};
use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef, Validator, WasmFeatures};

use crate::{abi::Failure, limits::MEMORY_BYTES_MAX, memory};

/// Bytes of a card, as a power of two: 1 KiB. A small guest has a thousand, of which a request marks few; smaller ones take longer to look
/// through, larger ones longer to copy.
const CARD_SHIFT: u32 = 10;
/// Bytes of a card.
const CARD_BYTES: usize = 1 << CARD_SHIFT;
/// What a single value can reach into the next card.
const SPILL_BYTES: usize = 15;
/// Pages of the second memory: a byte for each card of the largest memory that a guest may have.
const TABLE_PAGES: u64 = (MEMORY_BYTES_MAX >> CARD_SHIFT >> 16) as u64;
/// What the table is exported as.
pub(crate) const TABLE: &str = "__wizer_cards";
/// The second memory.
const TABLE_INDEX: u32 = 1;

/// Why writes of a module cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unfit(&'static str);

/// What a module may use whose writes are to be followed: [`written`] knows every instruction of these that writes.
const FEATURES: WasmFeatures = WasmFeatures::WASM2.union(WasmFeatures::EXTENDED_CONST);

/// Whether `wasm` is a valid module that uses nothing else, whatever the engine would accept.
pub(crate) fn check(wasm: &[u8]) -> Result<(), wasmparser::BinaryReaderError> {
    let mut validator = Validator::new_with_features(FEATURES);
    validator.validate_all(wasm).map(drop)
}

/// `wasm`, which [`check`] has passed, with one memory, so that it marks what it writes.
pub(crate) fn track(wasm: &[u8]) -> Result<Vec<u8>, Unfit> {
    let mut tracking = Tracking::survey(wasm).map_err(unfit)?;
    let mut module = Module::new();
    tracking
        .parse_core_module(&mut module, Parser::new(0), wasm)
        .map_err(unfit)?;
    Ok(module.finish())
}

/// Marks a range that the host writes. A range beyond the table is one beyond every memory.
pub(crate) fn mark(table: &mut [u8], pointer: u32, len: u32) -> Result<(), Failure> {
    let Some(last) = len.checked_sub(1) else {
        return Ok(());
    };
    let card = |address: u32| address >> CARD_SHIFT;
    let (first, last) = (card(pointer), card(pointer.saturating_add(last)));
    memory::slice_mut(table, first, last - first + 1)?.fill(1);
    Ok(())
}

/// Takes the marks off the table, as far as a memory of `size` bytes has cards, and puts the cards that had one into `marked`.
pub(crate) fn collect(table: &mut [u8], size: usize, marked: &mut Vec<usize>) {
    marked.clear();
    let cards = size.div_ceil(CARD_BYTES);
    let table = table.get_mut(..cards).unwrap_or_default();
    let mut first = 0;
    for eight in table.chunks_mut(8) {
        if eight != [0; 8] {
            for (card, mark) in (first..).zip(eight.iter_mut()) {
                if std::mem::take(mark) != 0 {
                    marked.push(card);
                }
            }
        }
        first += 8;
    }
}

/// Makes these cards of `memory` what they were `initial`ly; both are of one size. `None` where they are not.
pub(crate) fn renew(memory: &mut [u8], initial: &[u8], marked: &[usize]) -> Option<()> {
    for card in marked {
        let start = card.checked_mul(CARD_BYTES)?;
        let end = (start + CARD_BYTES + SPILL_BYTES).min(initial.len());
        memory
            .get_mut(start..end)?
            .copy_from_slice(initial.get(start..end)?);
    }
    Some(())
}

type Failed = Error<Unfit>;

fn unfit(error: Failed) -> Unfit {
    match error {
        Error::UserError(unfit) => unfit,
        _ => Unfit("it cannot be walked through"),
    }
}

fn refused<T>(reason: &'static str) -> Result<T, Failed> {
    Err(Error::UserError(Unfit(reason)))
}

/// What the rewriting needs to know of the module as a whole.
#[derive(Default)]
struct Tracking {
    /// Parameters of each type.
    parameters: Vec<u32>,
    /// Types of the functions that it defines.
    functions: Vec<u32>,
    functions_imported: u32,
    globals_imported: u32,
    /// Indices of those that can change.
    globals: Vec<u32>,
    /// The function whose body comes next.
    next: usize,
}

/// What an instruction writes.
enum Write {
    Nothing,
    /// One value of this type, this far behind the address on the stack below it.
    Value(ValType, u64),
    /// As many bytes as the top of the stack says, from the address on that is the third.
    Range,
}

impl Tracking {
    fn survey(wasm: &[u8]) -> Result<Self, Failed> {
        let mut found = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(types) => {
                    for ty in types.into_iter_err_on_gc_types() {
                        found.parameters.push(count(ty?.params().len())?);
                    }
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import?.ty {
                            TypeRef::Func(_) => found.functions_imported += 1,
                            TypeRef::Global(_) => found.globals_imported += 1,
                            _ => return refused("it imports a memory or a table"),
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    found.functions = functions.into_iter().collect::<Result<_, _>>()?;
                }
                Payload::GlobalSection(globals) => {
                    for (index, global) in (found.globals_imported..).zip(globals) {
                        if global?.ty.mutable {
                            found.globals.push(index);
                        }
                    }
                }
                Payload::MemorySection(memories) if memories.count() != TABLE_INDEX => {
                    return refused("it has more than one memory");
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The type of [`Tracking::range_body`].
    fn range_type(&self) -> Result<u32, Failed> {
        count(self.parameters.len())
    }

    /// The function that marks a range.
    fn range_function(&self) -> Result<u32, Failed> {
        Ok(self.functions_imported + count(self.functions.len())?)
    }

    /// Parameters: where the range begins, and how long it is.
    fn range_body() -> Function {
        use Instruction as I;
        let (start, len, last, card) = (0, 1, 2, 3);
        let shift = CARD_SHIFT.cast_signed();
        let mut body = Function::new([(2, ValType::I32)]);
        for instruction in [
            I::LocalGet(len),
            I::I32Eqz,
            I::If(BlockType::Empty),
            I::Return,
            I::End,
            I::LocalGet(start),
            I::LocalGet(len),
            I::I32Add,
            I::I32Const(1),
            I::I32Sub,
            I::LocalTee(last),
            // Beyond 4 GiB: what is about to write will trap.
            I::LocalGet(start),
            I::I32LtU,
            I::If(BlockType::Empty),
            I::Return,
            I::End,
            I::LocalGet(start),
            I::I32Const(shift),
            I::I32ShrU,
            I::LocalTee(card),
            I::I32Const(1),
            I::LocalGet(last),
            I::I32Const(shift),
            I::I32ShrU,
            I::LocalGet(card),
            I::I32Sub,
            I::I32Const(1),
            I::I32Add,
            I::MemoryFill(TABLE_INDEX),
            I::End,
        ] {
            body.instruction(&instruction);
        }
        body
    }
}

impl Reencode for Tracking {
    type Error = Unfit;

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), Failed> {
        utils::parse_type_section(self, types, section)?;
        types.ty().function([ValType::I32, ValType::I32], []);
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), Failed> {
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.range_type()?);
        Ok(())
    }

    fn parse_memory_section(
        &mut self,
        memories: &mut MemorySection,
        section: wasmparser::MemorySectionReader<'_>,
    ) -> Result<(), Failed> {
        utils::parse_memory_section(self, memories, section)?;
        memories.memory(MemoryType {
            minimum: TABLE_PAGES,
            maximum: Some(TABLE_PAGES),
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<(), Failed> {
        utils::parse_export_section(self, exports, section)?;
        exports.export(TABLE, ExportKind::Memory, TABLE_INDEX);
        for index in &self.globals {
            exports.export(&global(*index), ExportKind::Global, *index);
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), Failed> {
        utils::parse_code_section(self, code, section)?;
        code.function(&Self::range_body());
        Ok(())
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: FunctionBody<'_>,
    ) -> Result<(), Failed> {
        let ty = self.functions.get(self.next).copied();
        self.next += 1;
        let parameters = ty
            .and_then(|ty| usize::try_from(ty).ok())
            .and_then(|ty| self.parameters.get(ty));
        let Some(mut locals) = parameters.copied() else {
            return refused("it has a function without a type");
        };
        let mut groups = Vec::new();
        for group in body.get_locals_reader()? {
            let (many, ty) = group?;
            locals = locals.saturating_add(many);
            groups.push((many, self.val_type(ty)?));
        }
        let scratch = Scratch(locals);
        groups.extend(Scratch::TYPES.map(|ty| (1, ty)));
        let mut function = Function::new(groups);
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let operator = operators.read()?;
            match written(&operator)? {
                Write::Nothing => {}
                Write::Value(ty, offset) => scratch.mark_value(&mut function, ty, offset),
                Write::Range => scratch.mark_range(&mut function, self.range_function()?),
            }
            function.instruction(&self.instruction(operator)?);
        }
        code.function(&function);
        Ok(())
    }
}

/// Locals for what stands on the stack meanwhile; this is the index of the first.
#[derive(Clone, Copy)]
struct Scratch(u32);

impl Scratch {
    const TYPES: [ValType; 7] = [
        ValType::I32,
        ValType::I32,
        ValType::I32,
        ValType::I64,
        ValType::F32,
        ValType::F64,
        ValType::V128,
    ];

    fn of(self, ty: ValType) -> u32 {
        self.0
            + match ty {
                ValType::I64 => 3,
                ValType::F32 => 4,
                ValType::F64 => 5,
                ValType::V128 => 6,
                // No other type is written.
                _ => 1,
            }
    }

    fn mark_value(self, function: &mut Function, ty: ValType, offset: u64) {
        use Instruction as I;
        let (address, value) = (self.0, self.of(ty));
        let table = MemArg {
            offset: 0,
            align: 0,
            memory_index: TABLE_INDEX,
        };
        // The offset of a memory of 32 bits; where the sum is beyond them, what is about to write will trap.
        let offset = u32::try_from(offset).unwrap_or(u32::MAX).cast_signed();
        for instruction in [
            I::LocalSet(value),
            I::LocalTee(address),
            I::LocalGet(address),
            I::I32Const(offset),
            I::I32Add,
            I::I32Const(CARD_SHIFT.cast_signed()),
            I::I32ShrU,
            I::I32Const(1),
            I::I32Store8(table),
            I::LocalGet(value),
        ] {
            function.instruction(&instruction);
        }
    }

    fn mark_range(self, function: &mut Function, mark: u32) {
        use Instruction as I;
        let (start, what, len) = (self.0, self.0 + 1, self.0 + 2);
        for instruction in [
            I::LocalSet(len),
            I::LocalSet(what),
            I::LocalTee(start),
            I::LocalGet(start),
            I::LocalGet(len),
            I::Call(mark),
            I::LocalGet(what),
            I::LocalGet(len),
        ] {
            function.instruction(&instruction);
        }
    }
}

/// As `wasmtime-wizer` names it in a module that is looked into.
fn global(index: u32) -> String {
    format!("__wizer_global_{index}")
}

fn count(of: usize) -> Result<u32, Failed> {
    u32::try_from(of).or_else(|_| refused("it is too large"))
}

/// What an instruction writes to memory. Those named are all that write among [`FEATURES`].
fn written(operator: &Operator<'_>) -> Result<Write, Failed> {
    use Operator as O;
    Ok(match operator {
        O::I32Store { memarg } | O::I32Store8 { memarg } | O::I32Store16 { memarg } => {
            Write::Value(ValType::I32, memarg.offset)
        }
        O::I64Store { memarg }
        | O::I64Store8 { memarg }
        | O::I64Store16 { memarg }
        | O::I64Store32 { memarg } => Write::Value(ValType::I64, memarg.offset),
        O::F32Store { memarg } => Write::Value(ValType::F32, memarg.offset),
        O::F64Store { memarg } => Write::Value(ValType::F64, memarg.offset),
        O::V128Store { memarg }
        | O::V128Store8Lane { memarg, .. }
        | O::V128Store16Lane { memarg, .. }
        | O::V128Store32Lane { memarg, .. }
        | O::V128Store64Lane { memarg, .. } => Write::Value(ValType::V128, memarg.offset),
        O::MemoryFill { .. } | O::MemoryCopy { .. } | O::MemoryInit { .. } => Write::Range,
        O::TableSet { .. }
        | O::TableGrow { .. }
        | O::TableFill { .. }
        | O::TableCopy { .. }
        | O::TableInit { .. } => return refused("it can change its tables"),
        O::ElemDrop { .. } | O::DataDrop { .. } => return refused("it can drop segments"),
        _ => Write::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_marked_is_found_once_and_made_new_with_what_it_spilled() {
        let initial: Vec<u8> = (0..5000u32).map(|at| at.to_le_bytes()[0]).collect();
        let mut table = vec![0; 64];
        for (pointer, len, cards) in [
            (0, 0, vec![]),
            (u32::MAX, 0, vec![]),
            (0, 1, vec![0]),
            (1023, 1, vec![0]),
            (1023, 2, vec![0, 1]),
            (1024, 1024, vec![1]),
            (100, 4900, vec![0, 1, 2, 3, 4]),
        ] {
            mark(&mut table, pointer, len).unwrap();
            let mut marked = vec![9];
            collect(&mut table, initial.len(), &mut marked);
            assert_eq!(marked, cards, "{pointer} + {len}");
            assert!(table.iter().all(|mark| *mark == 0));
            let mut memory = initial.clone();
            let at = pointer as usize % 5000;
            memory[at..at + len as usize].fill(0xff);
            if let Some(last) = marked.last() {
                let end = (last + 1) * CARD_BYTES;
                memory[end.min(5000)..(end + SPILL_BYTES).min(5000)].fill(0xff);
            }
            renew(&mut memory, &initial, &marked).unwrap();
            assert!(memory == initial, "{pointer} + {len}");
        }
        assert!(
            mark(&mut table, 64 << CARD_SHIFT, 1).is_err(),
            "no such card"
        );
        assert!(mark(&mut table, u32::MAX, u32::MAX).is_err());
        assert!(
            renew(&mut [0; 10], &initial, &[0]).is_none(),
            "another size"
        );
    }

    #[test]
    fn what_cards_do_not_follow_is_not_rewritten() {
        let table = "(table 2 funcref) (elem $passive func)";
        for (fields, reason) in [
            (
                "(func (table.set (i32.const 0) (ref.null func)))",
                "it can change its tables",
            ),
            (
                "(func (drop (table.grow (ref.null func) (i32.const 1))))",
                "it can change its tables",
            ),
            (
                "(func (table.fill (i32.const 0) (ref.null func) (i32.const 1)))",
                "it can change its tables",
            ),
            (
                "(func (table.copy (i32.const 0) (i32.const 1) (i32.const 1)))",
                "it can change its tables",
            ),
            (
                "(func (table.init $passive (i32.const 0) (i32.const 0) (i32.const 0)))",
                "it can change its tables",
            ),
            ("(func (elem.drop $passive))", "it can drop segments"),
            (
                r#"(data $data "d") (func (data.drop $data))"#,
                "it can drop segments",
            ),
            ("(memory 1)", "it has more than one memory"),
        ] {
            let wasm = wat::parse_str(format!("(module (memory 1) {table} {fields})")).unwrap();
            assert_eq!(track(&wasm), Err(Unfit(reason)), "{fields}");
        }
        let wasm = wat::parse_str(r#"(module (memory (import "m" "m") 1))"#).unwrap();
        assert_eq!(track(&wasm), Err(Unfit("it imports a memory or a table")));
        assert!(track(b"no module").is_err());
        for newer in [
            "(memory 1) (func (i32.atomic.store (i32.const 0) (i32.const 1)))",
            "(tag) (func (throw 0))",
            "(type (struct (field (mut i32)))) (memory 1)",
            "(memory i64 1)",
            r#"(import "m" "m" (tag))"#,
            "(memory 1) (memory 1)",
            "(func (return_call 0))",
        ] {
            let wasm = wat::parse_str(format!("(module {newer})")).unwrap();
            assert!(check(&wasm).is_err(), "{newer}");
        }
        let plain = "(memory 1) (func (v128.store (i32.const 0) (v128.const i64x2 1 2)))";
        check(&wat::parse_str(format!("(module {plain})")).unwrap()).unwrap();
    }
}
