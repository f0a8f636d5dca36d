//! A place that speaks HTTP or HTTPS.

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, IF_RANGE, RANGE};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use url::Url;

use super::Settings;
use super::ask::{Ask, Asked};
use super::body::Body;
use super::connections::Connections;
use crate::path::FilePath;

#[derive(Debug)]
pub(super) struct Http {
    base: Box<str>,
    connections: Connections,
}

impl Http {
    pub(super) fn new(settings: &Settings, url: &Url) -> Result<Http, String> {
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err("its url must start with http:// or https://".to_owned());
        }
        let mut base = url.as_str().trim_end_matches('/').to_owned();
        base.push('/');
        let connections = Connections::new(settings.connect_timeout, url.scheme() == "https")?;
        Ok(Http { base: base.into(), connections })
    }

    pub(super) async fn ask(&self, path: &FilePath, ask: &Ask) -> Result<Response<Body>, String> {
        let answer = self.connections.ask(self.request(path, ask)?).await?;
        Ok(answer.map(Body::from))
    }

    fn request(&self, path: &FilePath, ask: &Ask) -> Result<Request<Full<Bytes>>, String> {
        let mut address = String::with_capacity(self.base.len() + path.as_str().len());
        address.push_str(&self.base);
        address.push_str(path.as_str());
        let mut request = Request::new(Full::default());
        *request.method_mut() = if ask.head { Method::HEAD } else { Method::GET };
        *request.uri_mut() = Uri::try_from(address).map_err(|error| error.to_string())?;
        let fields = request.headers_mut();
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(range) = ask.range.and_then(Asked::field) {
            fields.insert(RANGE, range);
        }
        if let Some(tag) = &ask.only_if {
            fields.insert(IF_RANGE, tag.clone());
        }
        Ok(request)
    }
}
