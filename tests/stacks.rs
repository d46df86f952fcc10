//! Servers of many stacks under the supervisor, each by its own documentation's means: what they do
//! is a row of the table in docs/stacks.md, which `scripts/stacks` writes.

use std::path::Path;
use std::process::Command;
use testkit::stack::{Speaks, Stack, compiled, needs, words};

fn stack(name: &'static str, body: &'static str) -> Stack {
    Stack::new(name, env!("CARGO_BIN_EXE_supervisor"), body)
}

fn file(name: &str) -> String {
    testkit::program(name).display().to_string()
}

#[test]
fn bare_python() {
    let Some(python) = needs("bare python", "python3") else {
        return;
    };
    let stack = stack("Python, bare `socket`", "Hello from Python").speaks(Speaks::InTime);
    stack
        .program(words(python, [&file("minimal.py")]))
        .measure();
}

/// The directory of the applications.
fn applications() -> String {
    Path::new(&file("asgi.py"))
        .parent()
        .expect("it has one")
        .display()
        .to_string()
}

#[test]
fn uvicorn() {
    let Some(uvicorn) = needs("uvicorn", "uvicorn") else {
        return;
    };
    let words = words(
        uvicorn,
        [
            "--fd",
            "3",
            "--log-level",
            "warning",
            "--app-dir",
            &applications(),
            "asgi:app",
        ],
    );
    let stack = stack("uvicorn", "Hello from ASGI").program(words);
    let stack = stack.announces_closes_with(["--stop-signal", "USR1"]);
    stack
        .drops("it closes connections that it has accepted and not read yet")
        .measure();
}

#[test]
fn hypercorn() {
    let Some(hypercorn) = needs("hypercorn", "hypercorn") else {
        return;
    };
    let application = format!("{}:app", file("asgi"));
    // With any workers of its own it would be their master.
    let words = words(
        hypercorn,
        [
            "--workers",
            "0",
            "--bind",
            "fd://3",
            "--log-level",
            "warning",
            &application,
        ],
    );
    let stack = stack("hypercorn", "Hello from ASGI").program(words);
    let stack = stack.announces_closes_with(["--stop-signal", "USR1"]);
    stack
        .drops("it closes connections that it has accepted and not read yet")
        .measure();
}

#[test]
fn gunicorn() {
    let Some(gunicorn) = needs("gunicorn", "gunicorn") else {
        return;
    };
    // It takes systemd's sockets by itself; `--bind fd://3` besides would make it close them.
    let words = words(
        gunicorn,
        [
            "--log-level",
            "warning",
            "--no-control-socket",
            "--chdir",
            &applications(),
            "wsgi:app",
        ],
    );
    stack("gunicorn", "Hello from WSGI")
        .program(words)
        .speaks(Speaks::Early)
        .measure();
}

#[test]
fn node() {
    let Some(node) = needs("node", "node") else {
        return;
    };
    stack("Node", "Hello from Node")
        .program(words(node, [&file("http.js")]))
        .announces_closes_with::<&str>([])
        .measure();
}

#[test]
fn go() {
    let Some(go) = needs("go", "go") else { return };
    let mut compiler = Command::new(go);
    let cache = testkit::root().join("target/go-cache");
    compiler
        .env("GO111MODULE", "off")
        .env("GOCACHE", cache)
        .arg("build");
    let program = compiled(compiler, "http-go", "http.go");
    stack("Go, `net/http`", "Hello from Go")
        .program([program])
        .speaks(Speaks::InTime)
        .announces_closes_with::<&str>([])
        .measure();
}

#[test]
fn puma() {
    let Some(puma) = needs("puma", "puma") else {
        return;
    };
    let words = words(
        puma,
        [
            "--config",
            &file("puma.rb"),
            "--silent",
            "--bind-to-activated-sockets=only",
            &file("config.ru"),
        ],
    );
    // TERM would end it as gracefully, but not with status 0.
    let stack = stack("Puma", "Hello from Puma").options(["--stop-signal", "INT"]);
    stack.program(words).speaks(Speaks::InTime).measure();
}

#[test]
fn php() {
    let Some(php) = needs("php", "php") else {
        return;
    };
    stack("PHP, `stream_socket_accept`", "Hello from PHP")
        .program(words(php, [&file("http.php")]))
        .measure();
}

#[test]
fn c() {
    let Some(cc) = needs("c", "cc") else { return };
    let mut compiler = Command::new(cc);
    compiler.args(["-Wall", "-Wextra", "-O1"]);
    let program = compiled(compiler, "http-c", "http.c");
    stack("C", "Hello from C")
        .program([program])
        .speaks(Speaks::InTime)
        .measure();
}

#[test]
fn plain_rust() {
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    compiler.args(["--edition", "2024", "-O"]);
    let program = compiled(compiler, "plain", "plain.rs");
    stack("Rust, `std::net`", "Hello from Rust")
        .program([program])
        .measure();
}

#[test]
fn rust_with_the_prefork_crate() {
    let stack = stack("Rust, the `prefork` crate", "Block 0 ms\n").speaks(Speaks::Channel);
    // A class with one thread, so that one handler can block all of it.
    let stack = stack.options(["--app", "block", "--class", "sync"]);
    stack
        .paths("/?ms=1000", "/?ms=60000")
        .announces_closes()
        .measure();
}
