//! Content-Disposition: sent in every response about the file if the route configures it.

use http::StatusCode;

use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene};

const NAMED: &str = "attachment; filename=\"L_r deg _ lese.epub\"; \
                     filename*=UTF-8''L%C3%A6r%20deg%20%C3%A5%20lese.epub";

#[tokio::test]
async fn configured_route_names_the_file_in_every_response() {
    let config = vec![
        ("to = \"{isbn}/{file}\"", "to = \"{isbn}/{file}\"\ndisposition = \"attachment\""),
        ("open = true", "open = true\ndisposition = \"inline\""),
    ];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let file = File::of(1000).field("content-disposition", "inline; filename=\"../x\"");
    let name = "L%C3%A6r%20deg%20%C3%A5%20lese.epub";
    scene.origin.put(&format!("{BOOK}/{name}"), file.clone());
    scene.origin.put("covers/a.png", file);
    let (token, path) = (scene.token("kari"), format!("/files/{BOOK}/{name}"));
    let client = scene.http2();
    for (method, field, status) in [
        ("GET", None, StatusCode::OK),
        ("HEAD", None, StatusCode::OK),
        ("GET", Some(("range", "bytes=5-9")), StatusCode::PARTIAL_CONTENT),
        ("GET", Some(("range", "bytes=5-9,500-509")), StatusCode::PARTIAL_CONTENT),
        ("GET", Some(("if-none-match", "\"v1\"")), StatusCode::NOT_MODIFIED),
    ] {
        let mut request = client.request(method.parse().unwrap(), format!("{}{path}", scene.base));
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        let answer = request.bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["content-disposition"], NAMED, "{method} {field:?}");
        assert_eq!(answer.headers().get_all("content-disposition").iter().count(), 1);
    }
    let cover = client.get(format!("{}/covers/a.png", scene.base)).send().await.unwrap();
    assert_eq!(
        cover.headers()["content-disposition"],
        "inline; filename=\"a.png\"; filename*=UTF-8''a.png"
    );
    let refused = client.get(format!("{}{path}", scene.base)).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(!refused.headers().contains_key("content-disposition"));
    scene.end().await;
}
