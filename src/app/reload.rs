//! Reloads the parts of a running gate: validates all of them first, then applies what is valid.

use std::fmt;
use std::sync::Arc;

use super::build::ConnectedParts;
use crate::config::Config;
use crate::reload::Reload;

/// The most mistakes of one part to log. `loangate check` lists all of them.
const MAX_REPORTED_ERRORS: usize = 10;

/// Puts a validated version in use.
type Apply = Box<dyn FnOnce()>;
/// Validates one part. Returns none if the old version stays: the new one is invalid, or the part
/// needs a configuration and there is none.
type Validate = Box<dyn Fn(Option<&Config>) -> Option<Apply> + Send + Sync>;

/// The parts that can be reloaded.
#[derive(Default)]
pub(super) struct ReloadableParts(Vec<Validate>);

impl fmt::Debug for ReloadableParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReloadableParts({})", self.0.len())
    }
}

impl ReloadableParts {
    /// Lists the parts that implement [`Reload`].
    pub(super) fn of(parts: &ConnectedParts) -> ReloadableParts {
        let mut reloadable = ReloadableParts::default();
        for table in parts.catalog.title_tables() {
            reloadable.add(table, |_| Some(&()));
        }
        reloadable.add(parts.certificates.clone(), |config| Some(&config?.server));
        reloadable.add(parts.readers.clone(), |config| Some(&config?.readers));
        reloadable
    }

    /// Adds a part. `settings` selects its settings.
    fn add<P>(&mut self, part: Arc<P>, settings: fn(Option<&Config>) -> Option<&P::Settings>)
    where
        P: Reload<Settings: 'static, Version: 'static> + Send + Sync + 'static,
    {
        self.0.push(Box::new(move |config| validate(&part, settings(config)?)));
    }

    /// Reloads every part, or those that need no configuration.
    pub(super) fn reload(&self, config: Option<&Config>) {
        let valid: Vec<Apply> = self.0.iter().filter_map(|validate| validate(config)).collect();
        valid.into_iter().for_each(|apply| apply());
        if config.is_some() {
            tracing::info!(
                "a reload covers title tables, certificates, ticket keys and readers' keys; for \
                 other changes, restart"
            );
        }
    }
}

/// Validates a part, and logs its mistakes.
fn validate<P>(part: &Arc<P>, settings: &P::Settings) -> Option<Apply>
where
    P: Reload<Version: 'static> + 'static,
{
    match part.validate(settings) {
        Ok(version) => {
            let part = part.clone();
            Some(Box::new(move || part.apply(version)))
        }
        Err(errors) => {
            let mistakes = errors.len();
            for error in errors.iter().take(MAX_REPORTED_ERRORS) {
                tracing::error!(%error, mistakes, "{}", P::KEPT);
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A part that records what happens to all parts.
    struct Recorder {
        name: &'static str,
        is_valid: bool,
        steps: Arc<Mutex<Vec<String>>>,
    }

    impl Recorder {
        fn record(&self, step: &str) {
            self.steps.lock().unwrap().push(format!("{step} {}", self.name));
        }
    }

    impl Reload for Recorder {
        type Settings = ();
        type Version = ();
        type Error = &'static str;

        const KEPT: &str = "the old version stays";

        fn validate(&self, (): &()) -> Result<(), Vec<&'static str>> {
            self.record("validate");
            if self.is_valid { Ok(()) } else { Err(vec!["a mistake"]) }
        }

        fn apply(&self, (): ()) {
            self.record("apply");
        }
    }

    #[test]
    fn all_parts_validate_before_the_valid_ones_apply() {
        let steps = Arc::new(Mutex::new(Vec::new()));
        let mut reloadable = ReloadableParts::default();
        for (name, is_valid) in [("first", true), ("broken", false), ("last", true)] {
            let part = Arc::new(Recorder { name, is_valid, steps: steps.clone() });
            reloadable.add(part, |_| Some(&()));
        }
        let needs_config = Recorder { name: "config", is_valid: true, steps: steps.clone() };
        reloadable.add(Arc::new(needs_config), |config| config.map(|_| &()));
        reloadable.reload(None);
        let expected =
            ["validate first", "validate broken", "validate last", "apply first", "apply last"];
        assert_eq!(*steps.lock().unwrap(), expected);
    }
}
