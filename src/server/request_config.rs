//! What the configuration says about requests: where their files are, and what limits them.
//!
//! A reload replaces it. Each request keeps the one that it began with, so that its route and its
//! origin belong together. `app` builds one for each worker, and one for the explainer.

use std::sync::{Arc, OnceLock};

use super::open_connections::OpenConnections;
use super::{Cors, Limits, SecurityHeaders};
use crate::catalog::Catalog;
use crate::delivery::{Delivery, Settings as DeliverySettings};
use crate::origin;
use crate::reload::Current;

/// The configuration of requests.
#[derive(Clone, Debug)]
pub(crate) struct RequestConfig {
    /// Resolves paths to files and titles.
    pub catalog: Arc<Catalog>,
    /// Delivers the files, over connections of one worker.
    pub delivery: Delivery,
    /// Adds the CORS fields to responses.
    pub cors: Cors,
    /// Adds the security fields to every response.
    pub security: SecurityHeaders,
    /// The limits of connections.
    pub limits: Arc<Limits>,
}

/// The configurations of all workers and of the explainer, as they are in use.
#[derive(Clone, Debug)]
pub(crate) struct RequestConfigs {
    pub(super) workers: Vec<Current<RequestConfig>>,
    /// That of the explainer.
    pub(crate) explainer: Current<RequestConfig>,
    /// The delivery that those of the workers are made from.
    base: Current<Delivery>,
    /// Those of the public listener, once it has started. Clones share it.
    open: Arc<OnceLock<OpenConnections>>,
}

/// Configurations that are valid but not in use.
pub(crate) struct NewRequestConfigs {
    workers: Vec<RequestConfig>,
    explainer: RequestConfig,
    base: Delivery,
}

impl RequestConfigs {
    /// Makes one for each of `workers`, and one for the explainer. `base` has the delivery that
    /// theirs are made from.
    ///
    /// # Errors
    /// As [`Delivery::for_worker`].
    pub(crate) fn new(
        base: RequestConfig,
        workers: usize,
    ) -> Result<RequestConfigs, origin::SetUpError> {
        let one = || {
            let delivery = base.delivery.for_worker()?;
            Ok(Current::new(RequestConfig { delivery, ..base.clone() }))
        };
        let workers = (0..workers).map(|_| one()).collect::<Result<_, _>>()?;
        let explainer = one()?;
        Ok(RequestConfigs {
            workers,
            explainer,
            base: Current::new(base.delivery),
            open: Arc::default(),
        })
    }

    /// Sets the connections that the limits apply to.
    pub(super) fn limit(&self, open: OpenConnections) {
        let _ = self.open.set(open);
    }

    /// Returns the number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Returns the routes in use.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.explainer.get().catalog.clone()
    }

    /// Returns how many connections of readers may be open.
    pub(crate) fn connections_limit(&self) -> usize {
        self.explainer.get().limits.connections
    }

    /// Keeps the addresses with headers of the PROXY protocol, which belong to the sockets, and
    /// perhaps the networks that send them.
    pub(crate) fn keep_proxied(&self, new: &mut Limits, with_networks: bool) {
        let current = &self.explainer.get().limits;
        new.proxy_protocol_at.clone_from(&current.proxy_protocol_at);
        if with_networks {
            new.proxy_protocol.clone_from(&current.proxy_protocol);
        }
    }

    /// Runs the stall monitor of all deliveries: see [`Delivery::run_stall_monitor`].
    pub(crate) fn run_stall_monitor(&self) -> impl Future<Output = ()> + Send + use<> {
        self.base.get().run_stall_monitor()
    }

    /// Makes configurations like `new`, whose delivery is made from this one. Nothing changes yet.
    ///
    /// # Errors
    /// As [`Delivery::with_settings`].
    pub(crate) fn prepare(
        &self,
        settings: DeliverySettings,
        origins: &[origin::Settings],
        new: impl Fn(Delivery) -> RequestConfig,
    ) -> Result<NewRequestConfigs, origin::SetUpError> {
        let base = self.base.get().with_settings(settings, origins)?;
        let one =
            |current: &Current<RequestConfig>| Ok(new(base.in_place_of(&current.get().delivery)?));
        let workers = self.workers.iter().map(one).collect::<Result<_, _>>()?;
        Ok(NewRequestConfigs { workers, explainer: one(&self.explainer)?, base })
    }

    /// Puts configurations in use for requests that begin later.
    pub(crate) fn apply(&self, new: NewRequestConfigs) {
        let NewRequestConfigs { workers, explainer, base } = new;
        if let Some(open) = self.open.get() {
            open.set_limits(&explainer.limits);
        }
        base.watch_origins();
        self.base.replace(base);
        self.explainer.replace(explainer);
        for (current, worker) in self.workers.iter().zip(workers) {
            current.replace(worker);
        }
    }
}
