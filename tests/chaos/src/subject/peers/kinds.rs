//! What the peers are, how each is configured, and what it can be asked to do. Each is set up as
//! its documentation recommends for reloads that lose nothing.

use super::site::{KEYS, Site};
use crate::subject::{Broken, Offers};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::process::Command;
use testkit::process::Process;
use testkit::{Address, root, tool};

/// How the number of workers is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// By a changed configuration and a reload.
    Reload,
    /// By TTIN and TTOU.
    Signals,
    /// By a changed configuration, which this signal makes it read.
    Signal(Signal),
    Never,
}

/// How the supervisor's own program is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// USR2 starts a second supervisor; the first one is told to leave when the second one's
    /// workers are there.
    Second {
        /// The file that names the second supervisor.
        second: &'static str,
        /// The file that names the only one.
        only: &'static str,
        /// What tells the first one's workers to leave, if that comes before the first one itself.
        workers_first: Option<Signal>,
        leave: Signal,
    },
    /// The reload starts the program's file again.
    Reload,
    Never,
}

/// One peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The program, and how it tells its version.
    pub(super) program: &'static str,
    pub(super) version: &'static str,
    pub(super) offers: Offers,
    /// Listens on several addresses.
    pub(super) several: bool,
    /// Detaches, and writes this file.
    pub(super) daemon: Option<&'static str>,
    /// Makes or changes the configuration for this many workers, and tells how to start.
    pub(super) prepare: fn(&Site, usize) -> Result<Command, String>,
    /// The name of the configuration's file, for those that refuse a broken one.
    pub(super) file: Option<&'static str>,
    pub(super) worker: fn(Process) -> bool,
    /// There is one process that serves, whatever the number of workers; older ones are leaving.
    pub(super) one: bool,
    pub(super) heals: bool,
    /// What it logs when it begins to start a worker and when that runs, for those that hang when
    /// they are told to stop in between.
    pub(super) starting: Option<(&'static str, &'static str)>,
    pub(super) reload: Signal,
    pub(super) scale: Scale,
    pub(super) upgrade: Upgrade,
    /// Makes a worker finish and leave.
    pub(super) drain: Option<Signal>,
    pub(super) stop: Signal,
    /// The kinds of broken configuration that it is offered.
    pub(super) breaks: fn(Broken) -> bool,
}

const STATIC: Offers = Offers {
    echo: false,
    handlers: false,
    keys: Some(KEYS),
    pipelining: true,
};
const APP: Offers = Offers {
    echo: true,
    handlers: true,
    keys: Some(KEYS),
    pipelining: true,
};

const NGINX: Kind = Kind {
    name: "nginx",
    program: "nginx",
    version: "-v",
    offers: STATIC,
    several: true,
    daemon: Some("nginx.pid"),
    prepare: |site, workers| nginx(site, workers, ""),
    file: Some("nginx.conf"),
    worker: |process| process.command_line() == "nginx: worker process",
    one: false,
    heals: true,
    starting: None,
    reload: Signal::SIGHUP,
    scale: Scale::Reload,
    upgrade: Upgrade::Second {
        second: "nginx.pid",
        only: "nginx.pid",
        workers_first: Some(Signal::SIGWINCH),
        leave: Signal::SIGQUIT,
    },
    drain: Some(Signal::SIGQUIT),
    stop: Signal::SIGQUIT,
    breaks: |how| !matches!(how, Broken::Program(_) | Broken::Killed),
};

const GUNICORN: Kind = Kind {
    name: "gunicorn-gthread",
    program: "gunicorn",
    version: "--version",
    // It answers the first of several requests that come at once; the others wait for a byte that
    // never comes.
    offers: Offers {
        pipelining: false,
        ..APP
    },
    several: true,
    daemon: None,
    prepare: |site, workers| {
        gunicorn(
            site,
            workers,
            "worker_class = 'gthread'\nthreads = 8\nkeepalive = 75\n",
        )
    },
    file: None,
    worker: |_| true,
    one: false,
    heals: true,
    starting: None,
    reload: Signal::SIGHUP,
    scale: Scale::Signals,
    upgrade: Upgrade::Second {
        second: "gunicorn.pid.2",
        only: "gunicorn.pid",
        workers_first: None,
        leave: Signal::SIGTERM,
    },
    drain: Some(Signal::SIGTERM),
    stop: Signal::SIGTERM,
    breaks: |_| false,
};

/// Every peer.
pub(super) const KINDS: [Kind; 8] = [
    NGINX,
    Kind {
        name: "nginx-reuseport",
        prepare: |site, workers| nginx(site, workers, " reuseport"),
        ..NGINX
    },
    Kind {
        name: "haproxy",
        program: "haproxy",
        daemon: None,
        prepare: haproxy,
        file: Some("haproxy.cfg"),
        worker: |_| true,
        one: true,
        // The master leaves with its worker, and leaves it to systemd to start it again.
        heals: false,
        reload: Signal::SIGUSR2,
        upgrade: Upgrade::Reload,
        drain: None,
        stop: Signal::SIGUSR1,
        ..NGINX
    },
    Kind {
        name: "gunicorn-sync",
        prepare: |site, workers| gunicorn(site, workers, "worker_class = 'sync'\n"),
        ..GUNICORN
    },
    GUNICORN,
    Kind {
        name: "uvicorn",
        program: "uvicorn",
        offers: APP,
        several: false,
        prepare: uvicorn,
        worker: is_no_helper,
        upgrade: Upgrade::Never,
        ..GUNICORN
    },
    Kind {
        name: "granian",
        program: "granian",
        offers: APP,
        several: false,
        prepare: granian,
        starting: Some(("Spawning worker-", "Started worker-")),
        worker: is_no_helper,
        scale: Scale::Never,
        upgrade: Upgrade::Never,
        drain: None,
        ..GUNICORN
    },
    Kind {
        name: "node-cluster",
        program: "node",
        offers: APP,
        prepare: node,
        scale: Scale::Signal(Signal::SIGUSR2),
        upgrade: Upgrade::Never,
        ..GUNICORN
    },
];

/// Python's multiprocessing has helpers of its own beside the workers.
fn is_no_helper(process: Process) -> bool {
    !process.command_line().contains("resource_tracker")
}

fn found(name: &str) -> Result<PathBuf, String> {
    tool(name).ok_or_else(|| format!("{name} is not installed (scripts/peers installs it)"))
}

fn nginx(site: &Site, workers: usize, option: &str) -> Result<Command, String> {
    let listen = |address: &Address| match address {
        // A Unix socket cannot be shared by address.
        Address::Unix(_) => format!("        listen {address} backlog=4096;\n"),
        Address::Tcp(address) => format!("        listen {address} backlog=4096{option};\n"),
    };
    let listen: String = site.addresses.iter().map(listen).collect();
    let directory = site.text("");
    let user = if nix::unistd::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    site.write(
        "nginx.conf",
        format!(
            "{user}worker_processes {workers};
pid {directory}nginx.pid;
error_log stderr notice;
worker_rlimit_nofile 16384;
events {{
    worker_connections 8192;
}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 75s;
    client_body_temp_path {directory}temp;
    proxy_temp_path {directory}temp;
    fastcgi_temp_path {directory}temp;
    uwsgi_temp_path {directory}temp;
    scgi_temp_path {directory}temp;
    server {{
{listen}        root {directory}site;
        add_header x-chaos-request $http_x_chaos_request;
        add_header x-chaos-pid $pid;
    }}
}}
"
        ),
    )?;
    let mut command = Command::new(site.install(&found("nginx")?)?);
    command.args([
        "-e",
        "stderr",
        "-p",
        &directory,
        "-c",
        &site.text("nginx.conf"),
    ]);
    Ok(command)
}

/// In front of a server of files, which stays as it is: a proxy's clients meet only the proxy.
fn haproxy(site: &Site, workers: usize) -> Result<Command, String> {
    let bind = |address: &Address| match address {
        Address::Unix(path) => format!("    bind unix@{} backlog 4096\n", path.display()),
        Address::Tcp(address) => format!("    bind {address} backlog 4096\n"),
    };
    let bind: String = site.addresses.iter().map(bind).collect();
    site.write(
        "haproxy.cfg",
        format!(
            "global
    nbthread {workers}
    maxconn 8192
    stats socket {} mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 10s
    timeout client 75s
    timeout server 75s
    option idle-close-on-response
frontend web
{bind}    http-request set-var(txn.request) req.hdr(x-chaos-request)
    http-response set-header x-chaos-request %[var(txn.request)]
    http-response set-header x-chaos-pid %pid
    default_backend files
backend files
    server files unix@{}
",
            site.text("admin.sock"),
            site.text("behind.sock"),
        ),
    )?;
    let mut command = Command::new(site.install(&found("haproxy")?)?);
    command.args(["-W", "-f", &site.text("haproxy.cfg")]);
    Ok(command)
}

/// A command that finds the applications beside this crate.
fn python(program: &str, site: &Site) -> Result<Command, String> {
    let mut command = Command::new(found(program)?);
    let apps = root().join("tests/chaos/peers");
    command
        .env("CHAOS_SITE", site.path("site"))
        .env("PYTHONPATH", apps)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

fn gunicorn(site: &Site, workers: usize, class: &str) -> Result<Command, String> {
    let bind: Vec<String> = site.addresses.iter().map(ToString::to_string).collect();
    let pid = site.text("gunicorn.pid");
    let text =
        format!("bind = {bind:?}\nworkers = {workers}\npidfile = {pid:?}\nbacklog = 4096\n{class}");
    site.write("gunicorn.conf.py", text)?;
    let mut command = python("gunicorn", site)?;
    command.args([
        "--config",
        &site.text("gunicorn.conf.py"),
        "--no-control-socket",
        "wsgi:app",
    ]);
    Ok(command)
}

/// Host and port, or the path of a Unix socket, of the only address.
fn only(site: &Site, unix: &str) -> Result<Vec<String>, String> {
    match &site.addresses[..] {
        [Address::Tcp(address)] => {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            Ok(["--host", &host, "--port", &port]
                .map(str::to_owned)
                .to_vec())
        }
        [Address::Unix(path)] => Ok(vec![unix.to_owned(), path.display().to_string()]),
        _ => Err("it listens on one address only".to_owned()),
    }
}

fn uvicorn(site: &Site, workers: usize) -> Result<Command, String> {
    let mut command = python("uvicorn", site)?;
    command.args(only(site, "--uds")?).args([
        "--workers",
        &workers.to_string(),
        "--backlog",
        "4096",
    ]);
    command.args(["--timeout-keep-alive", "75", "--no-access-log", "asgi:app"]);
    Ok(command)
}

fn granian(site: &Site, workers: usize) -> Result<Command, String> {
    let mut command = python("granian", site)?;
    command.args(only(site, "--uds")?).args([
        "--workers",
        &workers.to_string(),
        "--backlog",
        "4096",
    ]);
    command.args([
        "--interface",
        "asgi",
        "--respawn-failed-workers",
        "--no-access-log",
        "asgi:app",
    ]);
    Ok(command)
}

fn node(site: &Site, workers: usize) -> Result<Command, String> {
    let place = |address: &Address| match address {
        Address::Unix(path) => serde_json::json!({ "path": path }),
        Address::Tcp(address) => {
            let (host, port) = (address.ip().to_string(), address.port());
            serde_json::json!({ "host": host, "port": port, "backlog": 4096 })
        }
    };
    let places: Vec<_> = site.addresses.iter().map(place).collect();
    let mut command = Command::new(found("node")?);
    command.arg(root().join("tests/chaos/peers/cluster.js"));
    site.write("workers", workers.to_string())?;
    command
        .env("CHAOS_SITE", site.path("site"))
        .env("CHAOS_WORKERS", site.path("workers"));
    command.env("CHAOS_BIND", serde_json::Value::from(places).to_string());
    Ok(command)
}
