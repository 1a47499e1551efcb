//! Which VM serves a plugin now: the standing one, the spare that takes its place, or one for an exchange; and when a start is tried again.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use super::{Plugin, Slot};
use crate::{
    abi::LogLevel,
    callout::{CalloutId, CalloutIds},
    embedder::Embedder,
    limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN},
    spec::Isolation,
    state::{Owner, Role},
    vm::{Failed, Shell, StartFailure, Vm},
};

/// How long nothing is said of further exchanges without a VM.
const FULL_SILENCE_NS: u64 = 1_000_000_000;

/// Why there is no VM for an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoVm {
    /// The plugin does not start, or has ended: its failure policy says what happens.
    Down,
    /// There are as many as may be. Refused whatever the failure policy says: clients could bring this about.
    Full,
}

/// When a start that failed is tried again: after a wait that doubles with each failure, ± 25 % so that workers do not start in step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    until_ns: u64,
    failures: u32,
}

impl Backoff {
    fn is_over(self, now_ns: u64) -> bool {
        self.failures == 0 || now_ns >= self.until_ns
    }

    /// One more failure. `random` is any byte that nobody can foretell.
    fn after_failure(self, now_ns: u64, random: u8) -> (Self, u64) {
        let base_ms = BACKOFF_MS_MIN
            .saturating_mul(1 << self.failures.min(10))
            .min(BACKOFF_MS_MAX);
        let wait_ms = base_ms * (75 + u64::from(random) * 50 / 255) / 100;
        let next = Self {
            until_ns: now_ns.saturating_add(wait_ms.saturating_mul(1_000_000)),
            failures: self.failures.saturating_add(1),
        };
        (next, wait_ms)
    }
}

/// Plugins that stand in the same VM: those with [`Isolation::Shared`] and equal modules, one alone else.
#[derive(Default)]
pub(super) struct Group {
    standing: RefCell<Weak<Shell>>,
    spare: RefCell<Weak<Shell>>,
    /// See [`Owner`]: ids are told but once in a VM.
    pub(super) callout_ids: Rc<CalloutIds>,
}

impl Group {
    fn place(&self, role: Role) -> &RefCell<Weak<Shell>> {
        match role {
            Role::Standing | Role::Request => &self.standing,
            Role::Spare => &self.spare,
        }
    }

    /// The VM in this role, unless it broke.
    fn shell(&self, role: Role) -> Option<Rc<Shell>> {
        let shell = self.place(role).borrow().upgrade()?;
        let stands = shell.try_borrow().is_ok_and(|live| live.is_some());
        stands.then_some(shell)
    }

    fn set(&self, role: Role, vm: &Vm) {
        *self.place(role).borrow_mut() = Rc::downgrade(vm.shell());
    }
}

impl Plugin {
    /// A VM for an exchange that enters.
    pub(crate) fn vm(&self) -> Result<Rc<Vm>, NoVm> {
        match self.owner.spec.isolation {
            Isolation::Request => self.request_vm(),
            Isolation::Shared | Isolation::Plugin => self.standing_vm(),
        }
    }

    /// What is due off the request path: a VM in place of one that broke, the spare, the next snapshot. To be called every second or so, and
    /// soon after [`Embedder::tend_soon`](crate::Embedder::tend_soon).
    pub fn tend(&self) {
        let standing = self.standing_vm().ok();
        if self.is_retired.get() || !matches!(&*self.slot.borrow(), Slot::Standing(_)) {
            return;
        }
        if self.owner.spec.isolation == Isolation::Request {
            let mut snapshots = self.snapshots.borrow_mut();
            snapshots.tend(&self.module, standing.as_deref(), &self.owner);
        } else {
            self.tend_spare();
        }
    }

    fn tend_spare(&self) {
        let limits = &self.owner.spec.limits;
        let has_spare = |spare: &Option<Rc<Vm>>| spare.as_ref().is_some_and(|vm| !vm.is_broken());
        if has_spare(&self.spare.borrow()) {
            return;
        }
        *self.spare.borrow_mut() = None;
        let now_ns = self.owner.embedder.monotonic_ns();
        if limits.spare_vms == 0
            || self.owner.vms.get() >= limits.vms
            || !self.spare_backoff.get().is_over(now_ns)
        {
            return;
        }
        match self.start_vm(Role::Spare) {
            Ok(vm) => {
                self.spare_backoff.take();
                *self.spare.borrow_mut() = Some(vm);
            }
            Err((failure, _)) => {
                self.back_off(&self.spare_backoff, "no spare vm", &failure);
            }
        }
    }

    /// The VM that stands. Where the last one broke, the spare takes its place; without a spare one is started, unless starts failed a
    /// moment ago.
    pub(super) fn standing_vm(&self) -> Result<Rc<Vm>, NoVm> {
        let was_standing = match &*self.slot.borrow() {
            Slot::Standing(vm) | Slot::Ending(vm) if !vm.is_broken() => {
                return Ok(Rc::clone(vm));
            }
            Slot::Standing(_) => true,
            Slot::Down => false,
            Slot::Ending(_) | Slot::Ended => return Err(NoVm::Down),
        };
        self.snapshots.borrow_mut().mark_stale();
        if let Some(vm) = self.promoted() {
            return Ok(self.take_up(vm));
        }
        // A VM that broke says nothing about the next: only starts that failed are waited after.
        if was_standing {
            self.backoff.take();
        }
        if !self
            .backoff
            .get()
            .is_over(self.owner.embedder.monotonic_ns())
        {
            return Err(NoVm::Down);
        }
        match self.start_vm(Role::Standing) {
            Ok(vm) => Ok(self.take_up(vm)),
            Err((StartFailure::Instantiate(reason), _)) => {
                self.owner.set_waiting(!self.is_retired.get());
                Err(self.full(&reason))
            }
            Err((failure, _)) => {
                self.back_off(&self.backoff, "no vm", &failure);
                self.owner.set_waiting(!self.is_retired.get());
                *self.slot.borrow_mut() = Slot::Down;
                Err(NoVm::Down)
            }
        }
    }

    /// The spare as the standing VM, if there is one; but not beside the one that a neighbour has taken up.
    fn promoted(&self) -> Option<Rc<Vm>> {
        let mut place = self.spare.borrow_mut();
        let vm = place.as_ref().filter(|vm| !vm.is_broken())?;
        match self.group.shell(Role::Standing) {
            Some(standing) if !Rc::ptr_eq(&standing, vm.shell()) => return None,
            Some(_) => {}
            None => {
                self.group.set(Role::Standing, vm);
                // The next spare is another.
                *self.group.place(Role::Spare).borrow_mut() = Weak::new();
            }
        }
        vm.stand();
        place.take()
    }

    fn take_up(&self, vm: Rc<Vm>) -> Rc<Vm> {
        self.backoff.take();
        self.owner.stats.count_restart();
        self.owner.set_waiting(false);
        *self.slot.borrow_mut() = Slot::Standing(Rc::clone(&vm));
        self.owner.embedder.tend_soon(self.owner.id);
        vm
    }

    pub(super) fn start_vm(&self, role: Role) -> Result<Rc<Vm>, Failed> {
        let shell = match role {
            Role::Request => None,
            Role::Standing | Role::Spare => self.group.shell(role),
        };
        let vm = match shell {
            Some(shell) => Vm::join(&shell, &self.module, &self.owner)?,
            None => Vm::start(&self.module, &self.owner, role)?,
        };
        if role != Role::Request {
            self.group.set(role, &vm);
        }
        self.owner.stats.count_start();
        Ok(vm)
    }

    fn request_vm(&self) -> Result<Rc<Vm>, NoVm> {
        if matches!(&*self.slot.borrow(), Slot::Ending(_) | Slot::Ended) {
            return Err(NoVm::Down);
        }
        let image = self.snapshots.borrow().ready().map(Rc::clone);
        if let Some(vm) = image
            .as_ref()
            .and_then(|image| Vm::again(image, &self.owner))
        {
            self.note(&vm);
            return Ok(vm);
        }
        if self.owner.vms.get() >= self.owner.spec.limits.vms {
            return Err(self.full("as many as `limits.vms` says stand"));
        }
        let vm = match image {
            // Nothing of the guest has run: what fails are the pools.
            Some(image) => Vm::awaken(&image, &self.module, &self.owner)
                .map_err(|error| self.full(&format!("{error:#}")))?,
            None => self.configured_vm()?,
        };
        self.note(&vm);
        Ok(vm)
    }

    /// A VM for one exchange that starts from nothing.
    fn configured_vm(&self) -> Result<Rc<Vm>, NoVm> {
        let now_ns = self.owner.embedder.monotonic_ns();
        if !self.backoff.get().is_over(now_ns) {
            return Err(NoVm::Down);
        }
        match self.start_vm(Role::Request) {
            Ok(vm) => {
                self.backoff.take();
                Ok(vm)
            }
            Err((StartFailure::Instantiate(reason), _)) => Err(self.full(&reason)),
            Err((failure, _)) => {
                self.back_off(&self.backoff, "no vm for a request", &failure);
                Err(NoVm::Down)
            }
        }
    }

    /// There is no room for one more VM: counted each time, and said once a second at most.
    fn full(&self, reason: &str) -> NoVm {
        let Owner {
            spec,
            embedder,
            stats,
            ..
        } = &*self.owner;
        stats.count_vm_denial();
        let now_ns = embedder.monotonic_ns();
        if now_ns >= self.full_silent_until_ns.get() {
            self.full_silent_until_ns
                .set(now_ns.saturating_add(FULL_SILENCE_NS));
            let message = format!("no vm: {reason}");
            embedder.log(spec, LogLevel::Error, message.as_bytes());
        }
        NoVm::Full
    }

    /// Remembers an exchange's VM, for answers to its callouts.
    fn note(&self, vm: &Rc<Vm>) {
        let mut noted = self.noted.borrow_mut();
        if noted.len() >= noted.capacity() {
            noted.retain(|vm| vm.strong_count() > 0);
            let room = noted.len().max(16);
            noted.reserve(room);
        }
        noted.push(Rc::downgrade(vm));
    }

    /// The VM that waits for the answer to this callout.
    pub(super) fn caller(&self, id: CalloutId) -> Option<Rc<Vm>> {
        let standing = match &*self.slot.borrow() {
            Slot::Standing(vm) | Slot::Ending(vm) => Some(Rc::clone(vm)),
            Slot::Down | Slot::Ended => None,
        };
        let spare = self.spare.borrow().clone();
        let mut own = standing.into_iter().chain(spare);
        own.find(|vm| vm.awaits(id)).or_else(|| {
            let noted = self.noted.borrow();
            noted
                .iter()
                .filter_map(Weak::upgrade)
                .find(|vm| vm.awaits(id))
        })
    }

    fn back_off(&self, backoff: &Cell<Backoff>, what: &str, failure: &StartFailure) {
        let Owner {
            spec,
            embedder,
            stats,
            ..
        } = &*self.owner;
        stats.count_start_failure();
        let (next, wait_ms) = backoff
            .get()
            .after_failure(embedder.monotonic_ns(), random_byte(embedder.as_ref()));
        backoff.set(next);
        let message = format!("{what}: {failure}; next start in {wait_ms} ms");
        embedder.log(spec, LogLevel::Error, message.as_bytes());
    }
}

fn random_byte(embedder: &dyn Embedder) -> u8 {
    let mut byte = [0; 1];
    embedder.random(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound_and_are_not_in_step() {
        let mut waits = Vec::new();
        let mut backoff = Backoff::default();
        assert!(backoff.is_over(0), "nothing failed yet");
        for _ in 0..8 {
            let (next, wait_ms) = backoff.after_failure(5_000_000, 0x80);
            backoff = next;
            waits.push(wait_ms / 1_000);
            assert!(!backoff.is_over(4_000_000 + wait_ms * 1_000_000));
            assert!(backoff.is_over(5_000_000 + wait_ms * 1_000_000));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        let of = |random| Backoff::default().after_failure(0, random).1;
        assert_eq!((of(0), of(255)), (750, 1_250));
    }
}
