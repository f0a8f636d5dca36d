//! The measured proxies: the gate and its peers. Each is a separate process, restarted on request.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Process, Scene};

/// A kind of measured proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Gate,
    Nginx,
    Haproxy,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Gate, Kind::Nginx, Kind::Haproxy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Gate => "loangate",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
        }
    }

    /// Returns the program if it is installed.
    pub(crate) fn program(self) -> Option<PathBuf> {
        match self {
            Kind::Gate => Some(PathBuf::from(env!("CARGO_BIN_EXE_loangate"))),
            peer => ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"]
                .iter()
                .map(|directory| Path::new(directory).join(peer.name()))
                .find(|path| path.exists()),
        }
    }

    pub(crate) fn version(self) -> String {
        let Some(program) = self.program() else { return String::new() };
        let flag = if self == Kind::Gate { "--version" } else { "-v" };
        let told = Command::new(program).arg(flag).output().unwrap();
        let text = [told.stdout, told.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }
}

/// A running proxy, stopped when it is dropped.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    child: Running,
}

enum Running {
    Gate(Box<Process>),
    Peer(Child),
}

impl Proxy {
    /// Starts a proxy between this scene and this origin, with or without an access log file.
    pub(crate) async fn start(kind: Kind, scene: &mut Scene, origin: u16, lines: bool) -> Proxy {
        let program = kind.program().unwrap();
        match kind {
            Kind::Gate => gate(scene, lines).await,
            Kind::Nginx => nginx(&program, scene, origin, lines).await,
            Kind::Haproxy => haproxy(&program, scene, origin, lines).await,
        }
    }

    /// Returns the process ID; its children belong to it.
    pub(crate) fn process(&self) -> u32 {
        match &self.child {
            Running::Gate(process) => process.child.id(),
            Running::Peer(child) => child.id(),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Running::Peer(child) = &mut self.child {
            // SIGTERM, so that nginx stops its workers as well.
            if child.try_wait().is_ok_and(|ended| ended.is_none()) {
                let _ = Command::new("kill").arg(child.id().to_string()).status();
            }
            let _ = child.wait();
        }
    }
}

async fn gate(scene: &mut Scene, lines: bool) -> Proxy {
    let (from, to) = if lines {
        ("level = \"warn\"", "level = \"info\"")
    } else {
        ("level = \"info\"", "level = \"warn\"")
    };
    let file = scene.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(from, to)).unwrap();
    let process = scene.spawn_gate().await;
    let port = crate::environment::port_of(&scene.base);
    Proxy { port, child: Running::Gate(Box::new(process)) }
}

/// Returns a directory for one process, and a free port.
fn place(scene: &Scene, name: &str) -> (PathBuf, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = scene.dir.path().join(format!("{name}-{port}"));
    std::fs::create_dir(&dir).unwrap();
    (dir, port)
}

/// Starts nginx tuned for this work: cached auth_request responses per token, file heads in memory,
/// and buffers as large as the gate's reads.
async fn nginx(program: &Path, scene: &Scene, origin: u16, lines: bool) -> Proxy {
    let (dir, port) = place(scene, "nginx");
    let certs = scene.dir.path().join("certs");
    let (dir, certs) = (dir.display(), certs.display());
    let log = if lines { format!("{dir}/access.log") } else { "off".to_owned() };
    let user = if runs_as_root() { "user root;" } else { "" };
    let text = format!(
        "daemon off; {user} worker_processes 2; pid {dir}/pid; error_log stderr crit;
events {{ worker_connections 8000; }}
http {{
  access_log {log}; keepalive_requests 1000000000; keepalive_timeout 600s; open_file_cache max=1000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi; \
  proxy_cache_path {dir}/cache keys_zone=auth:1m;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=8192;
    ssl_certificate {certs}/server.pem; ssl_certificate_key {certs}/server.key;
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    proxy_http_version 1.1; proxy_set_header Connection \"\";
    location = /auth {{
      internal; proxy_pass http://origin/ok; proxy_pass_request_body off; \
      proxy_set_header Content-Length \"\";
      proxy_cache auth; proxy_cache_key $http_authorization; proxy_cache_valid 200 1h;
    }}
    location /files/ {{
      auth_request /auth; proxy_pass http://origin/;
      proxy_buffers 8 256k; proxy_buffer_size 256k; proxy_busy_buffers_size 512k; \
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"
    );
    let file = format!("{dir}/nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.args(["-c", &file, "-p", &dir.to_string()]).stdout(Stdio::null());
    started(command, port).await
}

/// Starts HAProxy with defaults: TLS and proxying, without authorization.
async fn haproxy(program: &Path, scene: &Scene, origin: u16, lines: bool) -> Proxy {
    let (dir, port) = place(scene, "haproxy");
    let certs = scene.dir.path().join("certs");
    let both =
        ["server.pem", "server.key"].map(|name| std::fs::read_to_string(certs.join(name)).unwrap());
    let pem = dir.join("both.pem");
    std::fs::write(&pem, both.concat()).unwrap();
    let (log, option) = if lines {
        ("log stdout format raw local0", "log global\n  option httplog")
    } else {
        ("", "no log")
    };
    let text = format!(
        "global
  nbthread 2
  maxconn 8000
  {log}
defaults
  mode http
  {option}
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend files
  bind 127.0.0.1:{port} ssl crt {} alpn h2,http/1.1 ssl-min-ver TLSv1.3 \
  ciphersuites TLS_AES_128_GCM_SHA256 backlog 8192
  http-request replace-path /files/(.*) /\\1
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin} pool-max-conn 64
",
        pem.display()
    );
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&file).stdout(File::create(dir.join("access.log")).unwrap());
    started(command, port).await
}

fn runs_as_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0)
}

async fn started(mut command: Command, port: u16) -> Proxy {
    let mut proxy =
        Proxy { port, child: Running::Peer(command.stdin(Stdio::null()).spawn().unwrap()) };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let Running::Peer(child) = &mut proxy.child else { return proxy };
        assert!(child.try_wait().unwrap().is_none(), "{command:?} ended at once");
        assert!(Instant::now() < deadline, "{command:?} did not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy
}
