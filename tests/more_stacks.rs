//! More stacks than `tests/stacks.rs`, which CI runs: `scripts/stacks` runs these, too, after
//! `scripts/peers stacks` has installed them.

use std::process::Command;
use testkit::Server;
use testkit::stack::{Speaks, Stack, compiled, needs, words};

fn stack(name: &'static str, body: &'static str) -> Stack {
    Stack::new(name, env!("CARGO_BIN_EXE_supervisor"), body)
}

fn file(name: &str) -> String {
    testkit::program("stacks").join(name).display().to_string()
}

/// The options of a program that begins to announce closes at SIGUSR1.
const AT_USR1: [&str; 2] = ["--stop-signal", "USR1"];
/// Those of a program that does so at SIGTERM.
const AT_TERM: [&str; 0] = [];
const UNREAD: &str = "it closes connections that it has accepted and not read yet";

#[test]
#[ignore = "scripts/stacks runs it"]
fn django() {
    let Some(gunicorn) = needs("Django", "gunicorn") else {
        return;
    };
    let words = words(
        gunicorn,
        [
            "--log-level",
            "warning",
            "--no-control-socket",
            "--worker-class",
            "gthread",
            "--threads",
            "8",
            "--chdir",
            &file(""),
            "django_app",
        ],
    );
    stack("Django, gunicorn `gthread`", "Hello from Django")
        .program(words)
        .speaks(Speaks::Early)
        .announces_closes()
        .measure();
}

/// A program of Python that is its own server.
fn python(name: &'static str, program: &str, body: &'static str) -> Option<Stack> {
    let python = needs(name, "python3")?;
    Some(stack(name, body).program(words(python, [&file(program)])))
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn waitress() {
    let Some(stack) = python("waitress", "waitress_app.py", "Hello from waitress") else {
        return;
    };
    stack.drops(UNREAD).announces_closes_with(AT_TERM).measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn aiohttp() {
    let Some(stack) = python("aiohttp", "aiohttp_app.py", "Hello from aiohttp") else {
        return;
    };
    stack.drops(UNREAD).announces_closes_with(AT_USR1).measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn tornado() {
    let Some(stack) = python("Tornado", "tornado_app.py", "Hello from Tornado") else {
        return;
    };
    stack.drops(UNREAD).announces_closes_with(AT_TERM).measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn sanic() {
    let Some(stack) = python("Sanic", "sanic_app.py", "Hello from Sanic") else {
        return;
    };
    stack.drops(UNREAD).announces_closes_with(AT_USR1).measure();
}

/// A program of Node, which finds packages in `target/node_modules`.
fn node(name: &'static str, program: &str, body: &'static str) -> Option<Stack> {
    let node = needs(name, "node")?;
    let modules = testkit::root().join("target/node_modules");
    let stack = stack(name, body).program(words(node, [&file(program)]));
    Some(stack.env("NODE_PATH", modules))
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn express() {
    let Some(stack) = node("Express", "express.js", "Hello from Express") else {
        return;
    };
    stack.announces_closes_with(AT_TERM).measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn fastify() {
    let Some(stack) = node("Fastify", "fastify.js", "Hello from Fastify") else {
        return;
    };
    stack.announces_closes_with(AT_TERM).measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn sinatra() {
    let Some(puma) = needs("Sinatra", "puma") else {
        return;
    };
    let words = words(
        puma,
        [
            "--silent",
            "--bind-to-activated-sockets=only",
            &file("sinatra.ru"),
        ],
    );
    let stack = stack("Sinatra, Puma", "Hello from Sinatra").program(words);
    stack
        .options(["--stop-signal", "INT"])
        .speaks(Speaks::InTime)
        .drops(UNREAD)
        .announces_closes_with(AT_USR1)
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn unicorn() {
    let Some(unicorn) = needs("unicorn", "unicorn") else {
        return;
    };
    let (config, app) = (file("unicorn.rb"), file("unicorn.ru"));
    let stack = stack("unicorn", "Hello from unicorn");
    stack
        .program(words(unicorn, ["--config-file", &config, &app]))
        .options(["--stop-signal", "QUIT"])
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn mojolicious() {
    let Some(perl) = needs("Mojolicious", "perl") else {
        return;
    };
    let words = words(perl, [&file("mojo.pl"), "daemon", "-l", "http://*?fd=3"]);
    let stack = stack("Mojolicious", "Hello from Mojolicious").program(words);
    stack
        .options(["--stop-signal", "QUIT"])
        .announces_closes()
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn gin() {
    let Some(go) = needs("Gin", "go") else {
        return;
    };
    let mut compiler = Command::new(go);
    compiler
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", testkit::root().join("target/go-cache"))
        .arg("build");
    let program = compiled(compiler, "gin", "stacks/gin.go");
    stack("Gin", "Hello from Gin")
        .program([program])
        .never_blocks()
        .announces_closes_with(AT_TERM)
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn jetty() {
    let Some(_) = needs("Jetty", "javac") else {
        return;
    };
    let classes = testkit::root().join("target/stacks");
    std::fs::create_dir_all(&classes).expect("target/ can be written");
    let path = format!(
        "{}:{}",
        classes.display(),
        ["server", "http", "io", "util"]
            .map(|jar| format!("/usr/share/java/jetty9-{jar}.jar:"))
            .concat()
            + "/usr/share/java/servlet-api.jar"
    );
    let status = Command::new("javac")
        .args(["-cp", &path, "-d"])
        .arg(classes)
        .arg(file("Jetty.java"))
        .status()
        .expect("javac");
    assert!(status.success(), "cannot compile Jetty.java");
    let line = "exec java -cp \"$0\" Jetty <&3";
    stack("Jetty", "Hello from Jetty")
        .program(["sh", "-c", line, &path])
        .never_blocks()
        .announces_closes_with(AT_TERM)
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn elixir() {
    let Some(elixir) = needs("Elixir", "elixir") else {
        return;
    };
    stack("Elixir, `gen_tcp`", "Hello from Elixir")
        .program(words(elixir, [&file("http.exs")]))
        .drops(UNREAD)
        .never_blocks()
        .announces_closes_with(AT_TERM)
        .measure();
}

/// An application at a Unix socket, for workers that are proxies.
fn backend() -> Server {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"));
    let in_flight = setup.path("in-flight");
    let program = testkit::program("minimal.py").into_os_string();
    setup
        .bind_unix()
        .workers(2)
        .args(["--ready", "notify"])
        .env("IN_FLIGHT", in_flight)
        .program(["python3".into(), program])
        .start()
}

fn proxy(name: &'static str, backend: &Server) -> Stack {
    stack(name, "Hello from Python")
        .env("BACKEND", backend.path("http.sock"))
        .in_flight(backend.path("in-flight"))
        .never_blocks()
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn nginx() {
    let Some(_) = needs("nginx", "nginx") else {
        return;
    };
    let backend = backend();
    proxy("nginx, as a proxy", &backend)
        .env("NGINX", "3;")
        .program([file("nginx.sh")])
        .options(["--stop-signal", "QUIT"])
        .drops(UNREAD)
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn haproxy() {
    let Some(_) = needs("HAProxy", "haproxy") else {
        return;
    };
    let backend = backend();
    // The directory has the file that spoils the configuration.
    let line = "sleep ${START_DELAY:-0}; exec haproxy -db -f \"$0\" -f .";
    proxy("HAProxy, as a proxy", &backend)
        .program(["sh", "-c", line, &file("haproxy.cfg")])
        .options(["--stop-signal", "USR1"])
        .announces_closes()
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn axum_with_listenfd() {
    let target = testkit::root().join("target/stacks/axum");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--manifest-path"])
        .arg(file("axum/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo");
    assert!(status.success(), "cannot compile stacks/axum");
    stack("axum, listenfd", "Hello from axum")
        .program([target.join("debug/stack-axum")])
        .drops(UNREAD)
        .announces_closes_with(AT_TERM)
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn starman() {
    let Some(starman) = needs("Starman", "starman") else {
        return;
    };
    let words = words(
        starman,
        [
            "--preload-app",
            "--workers",
            "8",
            "--env",
            "deployment",
            &file("starman.psgi"),
        ],
    );
    stack("Starman", "Hello from Starman")
        .program(words)
        .env("SERVER_STARTER_PORT", "127.0.0.1:8000=3")
        .options(["--stop-signal", "QUIT"])
        .drops(UNREAD)
        .never_blocks()
        .measure();
}

#[test]
#[ignore = "scripts/stacks runs it"]
fn php_fpm() {
    let Some(fpm) = ["php-fpm8.2", "php-fpm8.4"]
        .into_iter()
        .find_map(testkit::tool)
    else {
        testkit::skipped("PHP-FPM", "php-fpm is not installed");
        return;
    };
    // The server in front must know the port before there is a socket.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .expect("a free port")
        .to_string();
    let front = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(1)
        .args(["--ready", "listen", "--stop-signal", "QUIT"])
        .env("NGINX", "3;")
        .env("FASTCGI", &address)
        .env("SCRIPT", file("fpm.php"))
        .program([file("nginx.sh")])
        .start();
    stack("PHP-FPM, behind nginx", "Hello from PHP-FPM")
        .program([file("fpm.sh").into(), fpm.into_os_string()])
        .options(["--stop-signal", "QUIT", "--bind", &address])
        .behind(front.address())
        .speaks(Speaks::InTime)
        .never_blocks()
        .measure();
}
