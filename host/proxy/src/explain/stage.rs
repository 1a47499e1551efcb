//! A policy's plugins, started with no socket around them: what requests are asked of.

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderName;
use portcullis_runtime::{Chain, Plugin, PluginId, Recorder};

use super::explanation::Started;
use super::prepared::Answers;
use super::rehearsal::{Random, Rehearsal, Time};
use crate::canary;
use crate::modules::Modules;
use crate::policy::{FilterInstance, Policy, PolicyErrors, Route};

/// The plugins of a policy that see HTTP. They end when it goes.
pub(crate) struct Stage<'p> {
    pub(super) policy: &'p Policy,
    pub(super) rehearsal: Rc<Rehearsal>,
    /// By the index of their instance; TCP filters have no part in this.
    plugins: Vec<Option<Rc<Plugin>>>,
}

impl<'p> Stage<'p> {
    /// Starts every plugin; `answers` is what clusters will say to them.
    pub(crate) fn start(
        policy: &'p Policy,
        modules: &Modules,
        answers: Answers,
        time: Time,
        random: Random,
    ) -> Result<Self, PolicyErrors> {
        let names = policy.instances.iter().map(|it| it.name.clone()).collect();
        let rehearsal = Rehearsal::new(names, answers, time, random);
        let shared = Arc::default();
        let mut plugins: Vec<Option<Rc<Plugin>>> = Vec::new();
        let mut problems = Vec::new();
        for instance in &policy.instances {
            let module = modules.of(&instance.filter);
            let Some(module) = module.filter(|_| !instance.filter.is_tcp) else {
                plugins.push(None);
                continue;
            };
            let (id, spec) = (PluginId(instance.index), Arc::new(instance.spec()));
            let mut started = plugins.iter().flatten();
            let started = match started.find(|plugin| plugin.may_share(module, &spec)) {
                Some(neighbour) => Plugin::start_beside(neighbour, id, spec),
                None => {
                    let (module, shared) = (Arc::clone(module), Arc::clone(&shared));
                    let embedder = Rc::clone(&rehearsal);
                    Plugin::start(id, module, spec, shared, embedder)
                }
            };
            match started {
                Ok(plugin) => {
                    rehearsal.register(&plugin);
                    plugins.push(Some(plugin));
                }
                Err(error) => {
                    problems.extend(canary::start_problems(instance, &error));
                    plugins.push(None);
                }
            }
        }
        let stage = Self {
            policy,
            rehearsal,
            plugins,
        };
        match problems.is_empty() {
            true => Ok(stage),
            false => Err(PolicyErrors(problems)),
        }
    }

    /// Has `recorder` see what its plugins do from now on; whether all of them stand.
    pub(crate) fn record<R: Recorder + 'static>(&self, recorder: &Rc<R>) -> bool {
        let mut plugins = self.plugins.iter().flatten();
        plugins.all(|plugin| plugin.record(Rc::<R>::clone(recorder)))
    }

    /// What its plugins hold of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let plugins = self.plugins.iter().flatten();
        plugins.map(|plugin| plugin.stats().memory_bytes()).sum()
    }

    /// Runs every timer once, and answers the callouts that come of it.
    pub(super) fn settle(&self) {
        self.rehearsal.tick();
        while self.rehearsal.deliver() {}
    }

    /// What plugins did since they were last asked; those that did nothing worth telling are left out.
    pub(crate) fn started(&self) -> Vec<Started> {
        let mut started = Vec::new();
        for instance in &self.policy.instances {
            let said = self.rehearsal.take_said(&instance.name);
            if !said.is_nothing() {
                let filter = instance.name.clone();
                started.push(Started { filter, said });
            }
        }
        started
    }

    pub(super) fn chain(&self, instances: &[Arc<FilterInstance>]) -> Chain {
        let of = |instance: &Arc<FilterInstance>| self.plugin(instance);
        Chain::new(instances.iter().filter_map(of).collect())
    }

    fn plugin(&self, instance: &FilterInstance) -> Option<Rc<Plugin>> {
        let index = usize::try_from(instance.index).ok()?;
        self.plugins.get(index).cloned().flatten()
    }

    /// The request headers that belong to filters which are off on a route.
    pub(super) fn owned_elsewhere(&self, route: &Route) -> Vec<HeaderName> {
        let off = self.policy.off_on(route);
        let owned = off.filter_map(|instance| self.plugin(instance));
        owned
            .flat_map(|plugin| plugin.owned_request_headers())
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .collect()
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        for plugin in self.plugins.iter().flatten() {
            plugin.shut_down();
        }
    }
}
