//! `GET /openapi.json`: the readers' and the support API, described from the handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Description, SecurityRequirement};

use super::{
    App, accesses, balance, ends, explain, lending, links, loans, privacy, reload, reports, status,
    watch,
};
use crate::problem::Document;

#[derive(OpenApi)]
#[openapi(
    info(title = "loangate", description = "Files under loans that Bokbasen has accepted."),
    tags(
        (
            name = "reader",
            description = "On the public listener, with a reader token: the reader's own loans."
        ),
        (name = "support", description = "On the admin listener, with the admin token."),
        (name = "status", description = "On the admin listener, without a token."),
    ),
    paths(
        loans::list,
        loans::one,
        ends::end,
        accesses::list,
        links::mint,
        explain::explain,
        balance::balance,
        balance::last,
        reports::list,
        reports::one,
        reports::resolve,
        privacy::export,
        privacy::erase,
        lending::pauses,
        lending::pause,
        lending::resume,
        reload::reload,
        watch::problems,
        watch::now,
        status::status,
        watch::status
    ),
    components(schemas(Document<'static>))
)]
struct Support;

pub(super) async fn describe(State(app): State<Arc<App>>) -> Json<Description> {
    Json(app.description.clone())
}

/// Returns the description of both APIs, with the tokens that they require.
pub(super) fn description(readers: Description) -> Description {
    let bearer = |text: &str| {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text));
        SecurityScheme::Http(scheme.build())
    };
    let mut all = Support::openapi();
    all.merge(readers);
    let components = all.components.get_or_insert_default();
    components
        .add_security_scheme("reader", bearer("A reader's token: a JWT of the login service."));
    components.add_security_scheme("support", bearer("The admin token of the configuration."));
    for path in all.paths.paths.values_mut() {
        let operations = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete];
        for operation in operations.into_iter().flatten() {
            // Each tag has a security scheme of the same name.
            let scheme = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
            if scheme == "status" {
                continue;
            }
            operation.security =
                Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(scheme, [])]);
        }
    }
    all
}
