//! Resolution of routes, and their mistakes.

use super::*;

/// Returns settings with these routes and one origin.
fn settings(routes: Vec<Route>) -> Settings {
    let place = Location::http(&url::Url::parse("https://files.example.no/").unwrap());
    Settings { origins: vec![Storage { name: "files".into(), locations: vec![place] }], routes }
}

fn route(path: &str, to: &str, open: bool) -> Route {
    Route {
        path: path.into(),
        origin: "files".into(),
        to: to.into(),
        open,
        explicit: false,
        table: None,
        disposition: None,
        content_security_policy: None,
    }
}

fn catalog() -> Catalog {
    let routes = vec![
        route("/files/{isbn}/{*file}", "{isbn}/{file}", false),
        route("/covers/{*file}", "covers/{file}", true),
        route("/books/{isbn}", "books/{isbn}.epub", false),
    ];
    Catalog::new(&settings(routes)).unwrap()
}

#[test]
fn path_resolves_to_a_file_rebuilt_from_parameters() {
    let resolve = |path: &str| catalog().resolve(&RequestPath::parse(path).unwrap());
    for (path, at_origin) in [
        ("/files/9780306406157/part%201/b%C3%B8k.mp3", "9780306406157/part%201/b%C3%B8k.mp3"),
        ("/books/9780306406157", "books/9780306406157.epub"),
    ] {
        let Ok(Target::Loanable { titles, file, .. }) = resolve(path) else { panic!("{path}") };
        assert_eq!(titles, Titles::one("9780306406157".parse().unwrap()));
        assert_eq!(file.path.as_str(), at_origin);
    }
    assert!(matches!(resolve("/covers/a.png"), Ok(Target::Open(_))));
    for path in ["/files/9780306406158/a", "/files/x/a", "/files/9780306406157", "/other", "/"] {
        assert_eq!(resolve(path).unwrap_err(), Problem::TitleNotFound, "{path}");
    }
}

#[test]
fn only_the_path_of_an_open_page_ends_in_a_slash() {
    let pages = vec![route("/page/", "page.html", true), route("/page/{*file}", "p/{file}", true)];
    let catalog = Catalog::new(&settings(pages)).unwrap();
    let at_origin = |raw: &str| match catalog.resolve(&catalog.parse(raw).ok()?) {
        Ok(Target::Open(file)) => Some(file.file().path.as_str().to_owned()),
        other => panic!("{raw}: {other:?}"),
    };
    assert_eq!(at_origin("/page/").as_deref(), Some("page.html"));
    assert_eq!(at_origin("/page/a.css").as_deref(), Some("p/a.css"));
    for raw in ["/page//", "//page/", "/page/a/", "/pag%65/", "/./page/", "/page/?", "/other/"] {
        assert_eq!(at_origin(raw), None, "{raw}");
    }
    for (path, open) in [
        ("/page/", false),
        ("/files/{isbn}/", false),
        ("/", true),
        ("//", true),
        ("/a//", true),
        ("/{file}/", true),
        ("/./", true),
        ("/~token/", true),
        ("/loans/", true),
    ] {
        let mistakes = Catalog::new(&settings(vec![route(path, "page.html", open)])).err();
        assert!(mistakes.is_some_and(|all| all[0].key == "path") || path == "/", "{path}");
    }
}

#[test]
fn open_route_to_gated_files_is_rejected() {
    for (to, refused) in [
        ("{file}", true),
        ("9780306406157/{file}", true),
        ("97803064061{file}", true),
        ("covers/{file}", false),
        ("978/{file}", false),
        ("97803064061570/{file}", false),
    ] {
        let routes = vec![
            route("/files/{isbn}/{*file}", "{isbn}/{file}", false),
            route("/covers/{*file}", to, true),
        ];
        let built = Catalog::new(&settings(routes));
        assert_eq!(built.is_err(), refused, "{to}");
    }
}

#[test]
fn pattern_that_no_path_matches_is_rejected() {
    for path in ["/a/{isbn}/", "/a//{isbn}", "/a%20b/{isbn}", "/../{isbn}", "/a;b/{isbn}"] {
        let routes = vec![route(path, "{isbn}", false)];
        let mistakes = Catalog::new(&settings(routes)).unwrap_err();
        assert_eq!((mistakes[0].route, mistakes[0].key), (0, "path"), "{path}");
    }
    let routes = vec![route("/lydbøker og mer/{isbn}", "{isbn}", false)];
    assert!(Catalog::new(&settings(routes)).is_ok());
}

#[test]
fn file_name_of_dots_is_not_found() {
    let routes = vec![route("/files/{isbn}/{name}.epub", "{isbn}/{name}", false)];
    let Ok(catalog) = Catalog::new(&settings(routes)) else {
        return;
    };
    let path = RequestPath::parse("/files/9780306406157/..epub").unwrap();
    assert_eq!(catalog.resolve(&path).unwrap_err(), Problem::TitleNotFound);
}

#[test]
fn table_keeps_its_titles_if_it_cannot_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("titles.csv");
    let media =
        Route { table: Some(file.clone()), ..route("/my media/{*file}", "m/{file}", false) };
    let routes = vec![route("/files/{isbn}/{*file}", "{isbn}/{file}", false), media];
    let mut catalog = Catalog::new(&settings(routes)).unwrap();
    let path = RequestPath::parse("/my%20media/lyd/%C3%A5.mp3").unwrap();
    assert_eq!(catalog.resolve(&path).unwrap_err(), Problem::TitleNotFound);
    assert_eq!(catalog.read_tables().unwrap_err()[0].line, None);

    std::fs::write(&file, "lyd/å.mp3,9780306406157,9788299999014\n").unwrap();
    assert_eq!(catalog.read_tables(), Ok(vec![1]));
    std::fs::write(&file, "\nlyd/å.mp3,9780306406158\n").unwrap();
    let mistakes = catalog.read_tables().unwrap_err();
    assert_eq!((mistakes.len(), mistakes[0].route, mistakes[0].line), (1, 1, Some(2)));
    let Ok(Target::Loanable { titles, file, .. }) = catalog.resolve(&path) else { panic!() };
    assert_eq!(
        (titles.first().to_string().as_str(), titles.alternatives().len()),
        ("9780306406157", 1)
    );
    assert_eq!(file.path.as_str(), "m/lyd/%C3%A5.mp3");
    let files = |isbn: &str| catalog.files_of(isbn.parse().unwrap());
    assert_eq!(files("9788299999014"), ["/my%20media/lyd/%C3%A5.mp3", "/files/9788299999014/"]);
    assert_eq!(files("9788299999038"), ["/files/9788299999038/"]);
}

#[test]
fn table_needs_a_route_with_one_wildcard_parameter() {
    for (path, open, key) in [
        ("/files/{isbn}/{*file}", false, "title"),
        ("/media/{*file}", true, "title"),
        ("/media/{file}", false, "path"),
        ("/media/{shelf}/{*file}", false, "path"),
        ("/media", false, "path"),
    ] {
        let media = Route { table: Some("titles.csv".into()), ..route(path, "m", open) };
        let built = Catalog::new(&settings(vec![media]));
        let mistakes = built.unwrap_err();
        assert_eq!((mistakes.len(), mistakes[0].key), (1, key), "{path}");
    }
}

#[test]
fn every_mistake_in_every_route_is_reported() {
    let mut elsewhere = route("/a/{isbn}", "{isbn}", false);
    elsewhere.origin = "nowhere".into();
    let routes = vec![
        route("/files/{*file}", "{file}", false),
        route("/loans/{isbn}", "{isbn}", false),
        elsewhere,
        route("/b/{isbn}", "{isbn}/{name}", false),
        route("/c/{isbn}", "../{isbn}", false),
        route("/d/{isbn", "x", true),
    ];
    let mistakes = Catalog::new(&settings(routes)).unwrap_err();
    let places: Vec<_> = mistakes.iter().map(|mistake| (mistake.route, mistake.key)).collect();
    assert_eq!(
        places,
        [(0, "path"), (1, "path"), (2, "origin"), (3, "to"), (4, "to"), (5, "path")]
    );
}
