//! A browser without a script, at the console of a gate.

use std::collections::BTreeMap;

use http::StatusCode;
use reqwest::redirect::Policy;

use super::Scene;

/// The name of the field with a form's token.
pub(crate) const TOKEN_FIELD: &str = "form-token";

/// A browser with its cookies.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) client: reqwest::Client,
    pub(crate) base: String,
    pub(crate) cookies: BTreeMap<String, String>,
}

/// A page, or a redirection.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    /// Returns where a redirection leads.
    pub(crate) fn location(&self) -> &str {
        let location = self.headers.get("location");
        location.unwrap_or_else(|| panic!("{self:?}")).to_str().unwrap()
    }

    /// Returns the token of the page's forms.
    pub(crate) fn token(&self) -> String {
        let field = format!("name=\"{TOKEN_FIELD}\" value=\"");
        let after = self.body.split_once(&field).unwrap_or_else(|| panic!("{self:?}")).1;
        after.split('"').next().unwrap().to_owned()
    }
}

impl Browser {
    /// Opens a browser at the console of this scene.
    pub(crate) fn at(scene: &Scene) -> Browser {
        Browser::new(&scene.admin)
    }

    /// Opens a browser at the console with this address.
    pub(crate) fn new(base: &str) -> Browser {
        let client = reqwest::Client::builder().no_proxy().redirect(Policy::none());
        let client = client.build().unwrap();
        Browser { client, base: base.to_owned(), cookies: BTreeMap::new() }
    }

    /// Sends a request with the cookies, and stores new ones.
    pub(crate) async fn send(&mut self, request: reqwest::RequestBuilder) -> Seen {
        let cookies: Vec<_> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        for field in answer.headers().get_all("set-cookie") {
            let pair = field.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match value {
                "" => self.cookies.remove(name),
                _ => self.cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        Seen { status, headers, body: answer.text().await.unwrap() }
    }

    /// Requests a page.
    pub(crate) async fn get(&mut self, path: &str) -> Seen {
        let request = self.client.get(format!("{}{path}", self.base));
        self.send(request).await
    }

    /// Sends a form with the token of the first page.
    pub(crate) async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Seen {
        let has_session = self.cookies.keys().any(|name| name.ends_with("loangate-session"));
        let token = self.get(if has_session { "/" } else { "/sign-in" }).await.token();
        self.post_with(path, &token, fields).await
    }

    /// Sends a form with this token.
    pub(crate) async fn post_with(
        &mut self,
        path: &str,
        token: &str,
        fields: &[(&str, &str)],
    ) -> Seen {
        let fields = [fields, &[(TOKEN_FIELD, token)]].concat();
        let request = self.client.post(format!("{}{path}", self.base)).form(&fields);
        self.send(request).await
    }

    /// Requests the page that a redirection leads to.
    pub(crate) async fn follow(&mut self, seen: Seen) -> Seen {
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{}", seen.body);
        let path = seen.location().to_owned();
        self.get(&path).await
    }

    /// Opens a browser and signs in.
    pub(crate) async fn sign_in(scene: &Scene) -> Browser {
        let mut browser = Browser::at(scene);
        browser.enter(&scene.admin_token()).await;
        browser
    }

    /// Signs in with this token.
    pub(crate) async fn enter(&mut self, token: &str) {
        let seen = self.post("/sign-in", &[("token", token), ("name", "Ida")]).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{}", seen.body);
    }

    /// Searches.
    pub(crate) async fn find(&mut self, query: &str, library: &str) -> Seen {
        let fields = [("query", query), ("library", library), ("purpose", "case 4711")];
        self.post("/find", &fields).await
    }
}
