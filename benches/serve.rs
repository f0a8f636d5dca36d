//! What a warm gate costs: CPU seconds for 1,000 requests and for a gigabyte, beside nginx where it is installed.
//!
//! `cargo bench --bench serve`. nginx does half the job: TLS and proxying, and asks nobody. Both stand before the same
//! origin and are drawn from by the same clients in turn, in one run, since these machines are noisy: only the ratio
//! counts. All of it is on loopback, and bounded in count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(dead_code, unused_imports)] // of what tests share, it needs a part

mod shared;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::spent;
use support::{BOOK, File, Scene, Setting};

/// A kind of request: its name, the file's size, how many are sent, and how many at once.
const LOADS: [(&str, u64, usize, usize); 3] =
    [("1 KiB", 1 << 10, 20_000, 32), ("64 KiB", 64 << 10, 6_000, 32), ("100 MiB", 100 << 20, 12, 4)];
/// How often each is measured; the least is told, since noise only adds.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let config = vec![("[ledger]", "[log]\nlevel = \"warn\"\n\n[ledger]")];
    let mut scene = Scene::around(Setting { config, ..Setting::default() }).await;
    for (name, size, ..) in LOADS {
        scene.origin.put(&format!("{BOOK}/{}", file_of(name)), File::of(size));
    }
    // The gate as a process of its own, so that its time can be told from the clients'.
    let gate = scene.spawn_gate().await;
    let nginx = Nginx::start(&scene);
    println!("{:<10} {:<8} {:>14} {:>14} {:>8}", "file", "http", "loangate", "nginx", "ratio");
    for (name, size, count, at_once) in LOADS {
        for (version, client) in [("1.1", scene.http1()), ("2", scene.http2())] {
            let token = scene.token("kari");
            let path = format!("/files/{BOOK}/{}", file_of(name));
            let mut least = [f64::MAX; 2];
            for _ in 0..ROUNDS {
                let url = format!("{}{path}", scene.base);
                let spent = measured(gate.child.id(), draw(&client, &url, &token, count, at_once)).await;
                least[0] = least[0].min(spent);
                if let Some(nginx) = &nginx {
                    let url = format!("https://127.0.0.1:{}{path}", nginx.port);
                    let spent = measured(nginx.child.id(), draw(&client, &url, &token, count, at_once)).await;
                    least[1] = least[1].min(spent);
                }
            }
            let shown = |spent: f64| match spent {
                f64::MAX => "–".to_owned(),
                spent if size > 1 << 20 => {
                    format!("{:.3} s/GB", spent / (size as f64 * count as f64 / 1e9))
                }
                spent => format!("{:.1} µs/req", spent / count as f64 * 1e6),
            };
            let ratio =
                if nginx.is_some() { format!("{:.2}", least[0] / least[1]) } else { "–".to_owned() };
            println!("{name:<10} {version:<8} {:>14} {:>14} {ratio:>8}", shown(least[0]), shown(least[1]));
        }
    }
    drop((gate, nginx));
}

fn file_of(name: &str) -> String {
    name.replace(' ', "")
}

/// Sends so many requests, so many at once, and reads every body to its end.
async fn draw(client: &reqwest::Client, url: &str, token: &str, count: usize, at_once: usize) {
    let requests = stream::iter(0..count).map(|_| async {
        let mut answer = client.get(url).bearer_auth(token).send().await.unwrap();
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
        while answer.chunk().await.unwrap().is_some() {}
    });
    requests.buffer_unordered(at_once).collect::<Vec<()>>().await;
}

/// The CPU seconds that a process and its children spend meanwhile.
async fn measured(process: u32, work: impl Future<Output = ()>) -> f64 {
    let before = spent(process);
    work.await;
    spent(process) - before
}

/// nginx before the same origin; none where it is not installed.
struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    fn start(scene: &Scene) -> Option<Nginx> {
        let program =
            ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists())?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = scene.dir.path();
        let origin = scene.origin.url.trim_start_matches("http://");
        let config = format!(
            "daemon off; worker_processes 2; pid {0}/nginx.pid; error_log stderr crit;
             events {{ worker_connections 1024; }}
             http {{
               access_log off; proxy_temp_path {0}/t; client_body_temp_path {0}/b; fastcgi_temp_path {0}/f;
               uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
               upstream origin {{ server {origin}; keepalive 64; }}
               server {{
                 listen 127.0.0.1:{port} ssl http2; keepalive_requests 1000000;
                 ssl_certificate {0}/certs/server.pem; ssl_certificate_key {0}/certs/server.key;
                 location /files/ {{
                   proxy_pass http://origin/; proxy_http_version 1.1; proxy_set_header Connection \"\";
                   proxy_buffers 8 256k; proxy_buffer_size 256k; proxy_busy_buffers_size 512k; proxy_max_temp_file_size 0;
                 }}
               }}
             }}",
            dir.display()
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program).arg("-c").arg(&file).arg("-p").arg(dir).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "nginx did not start");
        }
        Some(Nginx { child, port })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
