//! Builds the configuration of requests: routes, origins, limits and response fields.

use std::path::Path;
use std::sync::Arc;

use super::StartError;
use crate::catalog::{Catalog, RouteError};
use crate::config::{Config, Loaded, Mistake};
use crate::delivery::Delivery;
use crate::server::{NewRequestConfigs, RequestConfig, RequestConfigs, SecurityHeaders, Settings};

/// Reads the routes and their title tables, at the start.
///
/// # Errors
/// Every mistake in them.
pub(super) fn catalog(config: &Config) -> Result<Arc<Catalog>, StartError> {
    let mut catalog = Catalog::new(&config.catalog).map_err(StartError::all)?;
    catalog.read_tables().map_err(StartError::all)?;
    Ok(Arc::new(catalog))
}

/// Builds the configurations of this number of workers, at the start.
///
/// # Errors
/// The first origin that cannot be used.
pub(super) fn build(
    config: &Config,
    catalog: Arc<Catalog>,
    delivery: Delivery,
    workers: usize,
) -> Result<RequestConfigs, StartError> {
    Ok(RequestConfigs::new(request_config(&config.server, catalog, delivery), workers)?)
}

/// Prepares other configurations for a reload. `file` is that of the configuration.
///
/// # Errors
/// Every mistake in the title tables, or the first origin that cannot be used.
pub(super) fn prepare(
    current: &RequestConfigs,
    file: &Path,
    loaded: &Loaded,
) -> Result<NewRequestConfigs, Vec<Mistake>> {
    let config = &loaded.config;
    let mut catalog = Catalog::new(&config.catalog).map_err(|errors| {
        let mistake = |error: &RouteError| loaded.mistake(file, "routes", error.to_string());
        errors.iter().map(mistake).collect::<Vec<_>>()
    })?;
    catalog.read_tables().map_err(|errors| {
        errors.into_iter().map(|error| loaded.table_mistake(file, error)).collect::<Vec<_>>()
    })?;
    let catalog = Arc::new(catalog);
    let one = |delivery| request_config(&config.server, catalog.clone(), delivery);
    let prepared = current.prepare(config.delivery, &config.origins, one);
    prepared.map_err(|error| vec![loaded.mistake(file, "origins", error.to_string())])
}

fn request_config(settings: &Settings, catalog: Arc<Catalog>, delivery: Delivery) -> RequestConfig {
    RequestConfig {
        catalog,
        delivery,
        cors: settings.cors.clone(),
        security: SecurityHeaders::new(settings.hsts),
        limits: Arc::new(settings.limits.clone()),
    }
}
