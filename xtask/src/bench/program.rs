//! The contestants' programs: whether they are there, and how each is told to do a job.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::tls::Identity;

/// What runs, and the name of its row.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) label: String,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// No proxy: the load talks to the backend. What the machine can do.
    Direct,
    /// A build of ours.
    Conncept(PathBuf),
    /// Another program that takes our JSON and `run --config FILE`: caddy-l4.
    Caddy(PathBuf),
    Haproxy(Splice),
    Nginx,
}

/// Whether HAProxy splices, and through which pipes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Splice {
    Off,
    Default,
    /// Of 1 MiB.
    Large,
}

/// What a proxy shall do.
pub(super) enum Job {
    /// Pass TCP connections on.
    Tcp,
    /// Pass datagrams on.
    Udp,
    /// Pass TLS connections on, choosing among so many names: `host0.example` and so on.
    Names(usize),
    /// Terminate TLS with this certificate.
    Tls(Identity),
}

/// The names that `--peers` takes.
pub(super) const PEERS: &[&str] = &[
    "direct",
    "haproxy",
    "haproxy-splice",
    "haproxy-splice-1m",
    "nginx",
    "caddy-l4",
];

impl Program {
    /// All that are there and asked for, the plain connection first, then HAProxy twice, ours last. Says which are not
    /// there, and how to get them.
    pub(super) fn all(binary: &Path, baseline: Option<&Path>, wanted: &[String]) -> Vec<Self> {
        let new = |label: &str, kind| Self {
            label: label.to_owned(),
            kind,
        };
        let mut all = vec![
            new("haproxy", Kind::Haproxy(Splice::Off)),
            // Twice: how far apart two measurements of one thing are says how much the others mean.
            new("haproxy again", Kind::Haproxy(Splice::Off)),
            new("haproxy, splice", Kind::Haproxy(Splice::Default)),
            new("haproxy, splice, 1 MiB pipes", Kind::Haproxy(Splice::Large)),
            new("nginx", Kind::Nginx),
        ];
        match std::env::var_os("CADDY_L4_BIN") {
            Some(path) => all.push(new("caddy-l4", Kind::Caddy(path.into()))),
            None => eprintln!(
                "without caddy-l4: build it with `xcaddy build --with github.com/mholt/caddy-l4` and name the file in CADDY_L4_BIN"
            ),
        }
        all.push(new("conncept", Kind::Conncept(binary.to_owned())));
        if let Some(baseline) = baseline {
            all.push(new(
                "conncept, baseline",
                Kind::Conncept(baseline.to_owned()),
            ));
        }
        all.push(new("no proxy", Kind::Direct));
        all.retain(|program| {
            let name = program.kind.peer_name();
            let wanted =
                wanted.is_empty() || name.is_none_or(|name| wanted.iter().any(|w| w == name));
            wanted && program.present()
        });
        all
    }

    /// Whether it can be run; if not, says how to get it.
    fn present(&self) -> bool {
        let (there, packages) = match &self.kind {
            Kind::Haproxy(_) => (runs("haproxy"), "haproxy"),
            Kind::Nginx => (
                runs("nginx") && Path::new(NGINX_STREAM).exists(),
                "nginx-light libnginx-mod-stream",
            ),
            Kind::Direct | Kind::Conncept(_) | Kind::Caddy(_) => (true, ""),
        };
        if !there {
            eprintln!("without {}: apt-get install {packages}", self.label);
        }
        there
    }

    /// Whether it can do the job at all.
    pub(super) fn does(&self, job: &Job) -> bool {
        match (&self.kind, job) {
            (_, Job::Tcp) | (Kind::Conncept(_) | Kind::Caddy(_) | Kind::Nginx, _) => true,
            (Kind::Direct, Job::Udp) => true,
            (Kind::Haproxy(splice), Job::Names(_) | Job::Tls(_)) => *splice == Splice::Off,
            (Kind::Haproxy(_), Job::Udp) | (Kind::Direct, _) => false,
        }
    }

    /// The text of a configuration: listen on `listen`, do `job`, go on to `backend`. `file` is where it will be.
    /// `reloads`: the program shall be able to.
    pub(super) fn config(
        &self,
        job: &Job,
        listen: SocketAddr,
        backend: SocketAddr,
        file: &Path,
        reloads: bool,
    ) -> Result<String> {
        match &self.kind {
            Kind::Direct => bail!("there is nothing to configure"),
            Kind::Caddy(_) if reloads => {
                let admin = format!(r#"{{"listen":"{}"}}"#, admin(file));
                Ok(json(job, listen, backend, &admin))
            }
            Kind::Conncept(_) | Kind::Caddy(_) => {
                Ok(json(job, listen, backend, r#"{"disabled":true}"#))
            }
            Kind::Haproxy(splice) => haproxy(*splice, job, listen, backend, file),
            Kind::Nginx => Ok(nginx(job, listen, backend, file)),
        }
    }

    /// The command that runs it in the foreground. `reloads`: it shall be able to.
    pub(super) fn command(&self, config: &Path, reloads: bool) -> Vec<String> {
        let config = config.display().to_string();
        let words: Vec<&str> = match &self.kind {
            Kind::Direct => Vec::new(),
            Kind::Conncept(_) => vec!["run", "--log-level", "warn", "--config", &config],
            Kind::Caddy(_) => vec!["run", "--config", &config],
            Kind::Haproxy(_) if reloads => vec!["-W", "-q", "-db", "-f", &config],
            Kind::Haproxy(_) => vec!["-q", "-db", "-f", &config],
            Kind::Nginx if reloads => vec!["-e", "/dev/null", "-g", "daemon off;", "-c", &config],
            Kind::Nginx => vec![
                "-e",
                "/dev/null",
                "-g",
                "daemon off; master_process off;",
                "-c",
                &config,
            ],
        };
        let program = match &self.kind {
            Kind::Direct => "",
            Kind::Conncept(path) | Kind::Caddy(path) => path.to_str().unwrap_or_default(),
            Kind::Haproxy(_) => "haproxy",
            Kind::Nginx => "nginx",
        };
        std::iter::once(program)
            .chain(words)
            .map(str::to_owned)
            .collect()
    }

    /// The command that makes process `pid`, started with `config` so that it [can](Self::command), load that anew. None:
    /// there is nothing to load.
    pub(super) fn reload(&self, pid: u32, config: &Path) -> Option<Command> {
        let signal = match &self.kind {
            Kind::Conncept(_) => "-USR1",
            Kind::Haproxy(_) => "-USR2",
            Kind::Nginx => "-HUP",
            Kind::Direct => return None,
            Kind::Caddy(program) => {
                let mut command = Command::new(program);
                command.args(["reload", "--force", "--address", &admin(config), "--config"]);
                command.arg(config);
                return Some(command);
            }
        };
        let mut command = Command::new("kill");
        command.args([signal, &pid.to_string()]);
        Some(command)
    }
}

impl Kind {
    /// What `--peers` calls it; none for ours, which always run.
    fn peer_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Direct => "direct",
            Self::Conncept(_) => return None,
            Self::Caddy(_) => "caddy-l4",
            Self::Haproxy(Splice::Off) => "haproxy",
            Self::Haproxy(Splice::Default) => "haproxy-splice",
            Self::Haproxy(Splice::Large) => "haproxy-splice-1m",
            Self::Nginx => "nginx",
        })
    }
}

/// Where Debian puts nginx's module for what is not HTTP.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn runs(program: &str) -> bool {
    Command::new(program).arg("-v").output().is_ok()
}

/// Where a Caddy that is to be reloaded listens for that.
fn admin(config: &Path) -> String {
    format!("unix/{}", config.with_extension("sock").display())
}

fn json(job: &Job, listen: SocketAddr, backend: SocketAddr, admin: &str) -> String {
    let network = if matches!(job, Job::Udp) { "udp/" } else { "" };
    let proxy = format!(r#"{{"handler":"proxy","upstreams":[{{"dial":["{network}{backend}"]}}]}}"#);
    let mut app = String::new();
    let routes = match job {
        Job::Tcp | Job::Udp => format!(r#"[{{"handle":[{proxy}]}}]"#),
        Job::Names(count) => {
            let routes: Vec<String> = (0..*count)
                .map(|i| {
                    format!(r#"{{"match":[{{"tls":{{"sni":["host{i}.example"]}}}}],"handle":[{proxy}]}}"#)
                })
                .collect();
            format!("[{}]", routes.join(","))
        }
        Job::Tls(identity) => {
            let (certificate, key) = (identity.certificate.display(), identity.key.display());
            app = format!(
                r#","tls":{{"certificates":{{"load_files":[{{"certificate":"{certificate}","key":"{key}"}}]}}}}"#
            );
            // `openssl s_time` names no server.
            let tls = r#"{"handler":"tls","connection_policies":[{"default_sni":"localhost"}]}"#;
            format!(r#"[{{"handle":[{tls},{proxy}]}}]"#)
        }
    };
    format!(
        r#"{{"admin":{admin},"apps":{{"layer4":{{"servers":{{"bench":{{"listen":["{network}{listen}"],"routes":{routes}}}}}}}{app}}}}}"#
    )
}

fn haproxy(
    splice: Splice,
    job: &Job,
    listen: SocketAddr,
    backend: SocketAddr,
    file: &Path,
) -> Result<String> {
    let mut text = "global\n  nbthread 1\n".to_owned();
    if splice == Splice::Large {
        text += "  tune.pipesize 1048576\n";
    }
    text += "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 300s\n  timeout server 300s\n";
    if splice != Splice::Off {
        // Not `splice-auto`: what it waits for, one connection of bulk does not give it.
        text += "  option splice-request\n  option splice-response\n";
    }
    let bind = match job {
        Job::Tls(identity) => format!("bind {listen} ssl crt {}", identity.both.display()),
        _ => format!("bind {listen}"),
    };
    write!(text, "frontend bench\n  {bind}\n")?;
    if let Job::Names(count) = job {
        let map = file.with_extension("map");
        let lines: String = (0..*count)
            .map(|i| format!("host{i}.example there\n"))
            .collect();
        std::fs::write(&map, lines).context("the map of names")?;
        write!(
            text,
            "  tcp-request inspect-delay 10s\n  tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
             use_backend %[req.ssl_sni,lower,map({})]\n",
            map.display()
        )?;
    } else {
        text += "  default_backend there\n";
    }
    write!(text, "backend there\n  server backend {backend}\n")?;
    Ok(text)
}

fn nginx(job: &Job, listen: SocketAddr, backend: SocketAddr, file: &Path) -> String {
    let mut before = String::new();
    let server = match job {
        Job::Tcp => format!("listen {listen}; proxy_pass {backend};"),
        Job::Udp => format!("listen {listen} udp; proxy_pass {backend}; proxy_timeout 20s;"),
        Job::Names(count) => {
            let lines: String = (0..*count)
                .map(|i| format!("host{i}.example {backend};\n"))
                .collect();
            before = format!(
                "map_hash_max_size 65536; map_hash_bucket_size 128;\nmap $ssl_preread_server_name $there {{\n{lines}}}\n"
            );
            format!("listen {listen}; ssl_preread on; proxy_pass $there;")
        }
        Job::Tls(identity) => format!(
            "listen {listen} ssl; ssl_certificate {}; ssl_certificate_key {}; \
             ssl_session_cache shared:bench:10m; ssl_protocols TLSv1.2 TLSv1.3; proxy_pass {backend};",
            identity.certificate.display(),
            identity.key.display()
        ),
    };
    format!(
        "load_module {NGINX_STREAM};\nworker_processes 1;\npid {};\nerror_log /dev/null;\n\
         events {{ worker_connections 50000; }}\nworker_rlimit_nofile 100000;\n\
         stream {{\n{before}server {{ {server} }}\n}}\n",
        file.with_extension("pid").display()
    )
}
