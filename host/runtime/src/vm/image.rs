//! What VMs for one exchange awake from, and the VMs that wait to serve one more.
//!
//! Invariant: a VM that waits is byte for byte what a fresh one is: its memory, its globals, and the host's state of it. It is made so when its
//! exchange ends, so that nothing of a request stays in memory. One that cannot be made so is dropped.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use wasmtime::{Global, Instance, InstancePre, Store, Val};

use super::Live;
use crate::{
    bounds::{IdlePlace, IdleRoom},
    cards,
    limits::{CARDS_RENEWED_MAX, IDLE_VMS_MAX},
    state::{Template, VmState},
};

/// A configured VM, from which others awake.
pub(crate) struct Image {
    pub(super) pre: InstancePre<VmState>,
    pub(super) template: Template,
    /// Absent where writes are not marked: there each VM serves but one exchange.
    pub(super) initial: Option<Initial>,
    idle: RefCell<Vec<(Live, IdlePlace)>>,
    /// The fewest that waited since [`Image::trim`].
    fewest: Cell<usize>,
    is_retired: Cell<bool>,
    room: Arc<IdleRoom>,
    /// Room for the cards that one VM marked.
    marked: RefCell<Vec<usize>>,
}

/// Memory and globals as they were when the snapshot was taken.
pub(crate) struct Initial {
    memory: Vec<u8>,
    globals: Vec<(String, Val)>,
}

impl Image {
    pub(crate) fn new(
        pre: InstancePre<VmState>,
        template: Template,
        initial: Option<Initial>,
        room: Arc<IdleRoom>,
    ) -> Self {
        Self {
            pre,
            template,
            initial,
            idle: RefCell::default(),
            fewest: Cell::new(0),
            is_retired: Cell::new(false),
            room,
            marked: RefCell::default(),
        }
    }

    /// A VM that waits.
    pub(super) fn take(&self) -> Option<Live> {
        let mut idle = self.idle.borrow_mut();
        let waiting = idle.pop();
        self.fewest.set(self.fewest.get().min(idle.len()));
        waiting.map(|(live, _)| live)
    }

    /// Lets go of those that nobody needed since the last time, but for one.
    pub(crate) fn trim(&self) {
        let unneeded = self.fewest.get().saturating_sub(1);
        let mut idle = self.idle.borrow_mut();
        let stay = idle.len().saturating_sub(unneeded);
        let gone = idle.split_off(stay);
        self.fewest.set(stay);
        drop(idle);
        drop(gone);
    }

    /// None waits any more: another plugin has taken the place of theirs.
    pub(crate) fn retire(&self) {
        self.is_retired.set(true);
        let gone = self.idle.take();
        drop(gone);
    }

    /// Makes a VM new and has it wait; drops it where that cannot be done, or enough wait.
    pub(super) fn keep(&self, mut live: Live) {
        if self.is_retired.get() || self.idle.borrow().len() >= IDLE_VMS_MAX {
            return;
        }
        let Some(place) = self.room.enter() else {
            return;
        };
        // What the old state lets go may be of other exchanges, and so of other VMs that come here: nothing is borrowed meanwhile.
        if self.renew(&mut live).is_some() {
            self.idle.borrow_mut().push((live, place));
        }
    }

    fn renew(&self, live: &mut Live) -> Option<()> {
        let initial = self.initial.as_ref()?;
        let state = live.store.data();
        let (memory, table) = (state.memory?, state.cards?);
        // Memory cannot shrink again, and fuel is not given back. What it waits for must not reach the next exchange.
        if memory.data_size(&live.store) != initial.memory.len()
            || live.store.get_fuel().is_ok()
            || state.root.callouts().next().is_some()
            || live.globals.len() != initial.globals.len()
        {
            return None;
        }
        let mut marked = self.marked.take();
        let size = initial.memory.len();
        cards::collect(table.data_mut(&mut live.store), size, &mut marked);
        if marked.len() > CARDS_RENEWED_MAX {
            return None;
        }
        cards::renew(memory.data_mut(&mut live.store), &initial.memory, &marked)?;
        self.marked.replace(marked);
        for (global, (_, value)) in live.globals.iter().zip(&initial.globals) {
            global.set(&mut live.store, *value).ok()?;
        }
        live.store.data_mut().renew(&self.template);
        if cfg!(any(debug_assertions, fuzzing)) {
            let same = *memory.data(&live.store) == *initial.memory;
            assert!(same, "an exchange wrote where nothing was marked");
            let is_clean = table.data(&live.store).iter().all(|mark| *mark == 0);
            assert!(is_clean, "a mark was left");
        }
        Some(())
    }
}

impl Initial {
    pub(crate) fn new(memory: Vec<u8>, globals: Vec<(String, Val)>) -> Self {
        Self { memory, globals }
    }

    /// The globals of a VM, with the table of its cards put into its state. `None` where one is missing, which no module of ours lacks.
    pub(super) fn find(
        &self,
        instance: &Instance,
        store: &mut Store<VmState>,
    ) -> Option<Vec<Global>> {
        store.data_mut().cards = instance.get_memory(&mut *store, cards::TABLE);
        let names = self.globals.iter().map(|(name, _)| name);
        names
            .map(|name| instance.get_global(&mut *store, name))
            .collect()
    }
}
