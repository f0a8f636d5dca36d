//! An open route never reaches a gated file, however its origin is written.

use std::path::Path;

use loangate::config;

use crate::support::{Scene, Setting};

/// A configuration with a gated route to the first origin and an open route to the second.
struct Case {
    gated: &'static str,
    to: &'static str,
    open: &'static str,
    open_to: &'static str,
}

const fn case(
    gated: &'static str,
    to: &'static str,
    open: &'static str,
    open_to: &'static str,
) -> Case {
    Case { gated, to, open, open_to }
}

/// Returns the configuration of `init` with other origins and routes.
fn text(scene: &Scene, case: &Case) -> String {
    let text = std::fs::read_to_string(scene.config_file()).unwrap();
    let (before, _) = text.split_once("[[origins]]").unwrap();
    format!(
        "{before}[[origins]]\nname = \"one\"\n{}\n\n[[origins]]\nname = \"two\"\n{}\n\n\
         [[routes]]\npath = \"/files/{{isbn}}/{{*file}}\"\norigin = \"one\"\nto = \"{}\"\n\n\
         [[routes]]\npath = \"/free/{{*file}}\"\norigin = \"two\"\nto = \"{}\"\nopen = true\n",
        case.gated, case.open, case.to, case.open_to
    )
}

const PLACE: &str = "url = \"https://files.example.no/books/\"";
const FILES: &str = "{isbn}/{file}";
const S3: &str = "url = \"s3://books/all\"\ns3 = { endpoint = \"https://s3.example.no:9000\" }";

#[tokio::test]
async fn open_route_to_gated_files_is_refused_with_both_lines() {
    let scene = Scene::without_gate(Setting::default()).await;
    for case in [
        case(PLACE, FILES, PLACE, "{file}"),
        case(PLACE, FILES, "url = \"https://FILES.example.no:443/b%6Foks\"", "{file}"),
        case(PLACE, FILES, "url = \"http://files.example.no./x/../books//\"", "{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/\"", "{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/\"", "books/{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/books/9780306406157/\"", "{file}"),
        case("url = \"https://files.example.no/\"", "books/{isbn}/{file}", PLACE, "{file}"),
        case(
            PLACE,
            FILES,
            "urls = [\"https://other.example.no/\", \"https://files.example.no/books\"]",
            "{file}",
        ),
        case(
            "urls = [\"https://a.example.no/\", \"https://b.example.no/\"]",
            FILES,
            "url = \"https://b.example.no/\"",
            "{file}",
        ),
        case(
            "url = \"http://127.0.0.1:9000/\"",
            FILES,
            "url = \"http://localhost:9000/\"",
            "{file}",
        ),
        case("url = \"http://127.0.0.1:9000/\"", FILES, "url = \"http://[::1]:9000/\"", "{file}"),
        case(S3, FILES, S3, "{file}"),
        case(
            S3,
            FILES,
            "url = \"s3://books\"\ns3 = { endpoint = \"https://S3.example.no:9000/\" }",
            "{file}",
        ),
        case(S3, FILES, "url = \"https://s3.example.no:9000/books/all/\"", "{file}"),
        case(
            "url = \"s3://books\"",
            FILES,
            "url = \"https://books.s3.eu-north-1.amazonaws.com/\"",
            "{file}",
        ),
        case(
            "url = \"gs://books\"",
            FILES,
            "url = \"https://storage.googleapis.com/books\"",
            "{file}",
        ),
        case("url = \"file:///srv/books\"", FILES, "url = \"file:///srv/x/../books/\"", "{file}"),
        case("url = \"file:///srv/books\"", FILES, "url = \"file:///srv\"", "{file}"),
    ] {
        let text = text(&scene, &case);
        let mistakes = config::read(&scene.config_file(), &text).unwrap_err();
        let [mistake] = mistakes.as_slice() else {
            panic!("{} and {}: {mistakes:?}", case.gated, case.open)
        };
        let line = |what: &str| text.lines().position(|line| line.contains(what)).unwrap();
        assert_eq!(mistake.key, "routes[1].to", "{mistake}");
        assert_eq!(mistake.line, line("/free/") + 3, "{mistake}");
        let gated = format!("starts in line {}", line("/files/{isbn}"));
        assert!(mistake.sentence.contains(&gated), "{mistake} lacks {gated}");
        assert!(mistake.sentence.contains("/files/{isbn}/{*file}"), "{mistake}");
        assert!(mistake.sentence.contains("origins two and one share a place"), "{mistake}");
    }
    scene.end().await;
}

#[tokio::test]
async fn open_route_to_other_files_is_allowed() {
    let scene = Scene::without_gate(Setting::default()).await;
    for case in [
        case(PLACE, FILES, "url = \"https://files.example.no/covers/\"", "{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/\"", "covers/{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/books/\"", "covers/{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no/books-of-ours/\"", "{file}"),
        case(PLACE, FILES, "url = \"https://files.example.no:8443/books/\"", "{file}"),
        case(PLACE, FILES, "url = \"https://open.example.no/books/\"", "{file}"),
        case(
            S3,
            FILES,
            "url = \"s3://covers\"\ns3 = { endpoint = \"https://s3.example.no:9000\" }",
            "{file}",
        ),
        case("url = \"s3://books\"", FILES, "url = \"gs://books\"", "{file}"),
        case("url = \"file:///srv/books\"", FILES, "url = \"file:///srv/covers\"", "{file}"),
    ] {
        let read = config::read(&scene.config_file(), &text(&scene, &case));
        assert!(read.is_ok(), "{} and {}: {:?}", case.gated, case.open, read.unwrap_err());
    }
    scene.end().await;
}

#[tokio::test]
async fn directory_behind_a_symlink_is_the_same_directory() {
    let scene = Scene::without_gate(Setting::default()).await;
    let books = scene.dir.path().join("books");
    std::fs::create_dir(&books).unwrap();
    std::os::unix::fs::symlink(&books, scene.dir.path().join("link")).unwrap();
    let url = |path: &Path| format!("url = \"file://{}\"", path.display());
    let (gated, open) = (url(&books).leak(), url(&scene.dir.path().join("link")).leak());
    let text = text(&scene, &case(gated, FILES, open, "{file}"));
    assert!(config::read(&scene.config_file(), &text).is_err());
    scene.end().await;
}
