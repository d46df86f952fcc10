//! `supervisor top` in a real terminal (tmux), and its frames for others.

use nix::sys::signal::Signal::{SIGCONT, SIGTERM};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use testkit::load::{Plan, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

/// A terminal of its own, in which `top` runs.
struct Screen {
    socket: std::path::PathBuf,
}

impl Screen {
    /// `None` where there is no tmux.
    fn open(server: &Server, test: &str, columns: u32, lines: u32) -> Option<Self> {
        if testkit::tool("tmux").is_none() {
            testkit::skipped(test, "no tmux (scripts/peers installs it)");
            return None;
        }
        let screen = Self {
            socket: server.path("tmux"),
        };
        let control = server.control();
        let script = format!(
            "stty -g > {at}/before; {} top --control {} --interval 100ms; echo \"status $?\"; stty \
             -g > {at}/after; exec sleep 600",
            env!("CARGO_BIN_EXE_supervisor"),
            control.display(),
            at = server.directory().display(),
        );
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let size = ["-x", columns.as_str(), "-y", lines.as_str()];
        let output = screen.tmux(
            &[
                &["-f", "/dev/null", "new-session", "-d"][..],
                &size,
                &["sh", "-c", &script],
            ]
            .concat(),
        );
        assert!(output.status.success(), "{output:?}");
        Some(screen)
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S")
            .arg(&self.socket)
            .args(words)
            .env("TERM", "xterm-256color")
            .env_remove("TMUX")
            .env_remove("NO_COLOR");
        tmux.stdin(Stdio::null()).output().expect("tmux")
    }

    fn keys(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys"], keys].concat()).status.success());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str) -> String {
        let end = std::time::Instant::now() + LONG;
        wait_for(what, LONG * 2, || {
            let text = self.text();
            assert!(
                text.contains(what) || std::time::Instant::now() < end,
                "waited for `{what}` in vain:\n{text}"
            );
            text.contains(what).then_some(text)
        })
    }

    /// The process that shows it.
    fn top(&self) -> Process {
        let pid = self.tmux(&["display-message", "-p", "#{pane_pid}"]).stdout;
        let shell = Process(String::from_utf8_lossy(&pid).trim().parse().expect("a pid"));
        wait_for("top", LONG, || {
            shell
                .children()
                .into_iter()
                .find(|child| child.command_line().contains(" top "))
        })
    }

    /// The order of the slots in the table.
    fn slots(&self) -> Vec<u64> {
        let text = self.text();
        let body = text
            .lines()
            .skip_while(|line| !line.contains("WORKER"))
            .skip(1);
        body.map_while(|line| line.split_whitespace().next()?.parse().ok())
            .collect()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// The terminal is as it was before.
fn is_restored(server: &Server) -> bool {
    let read = |name: &str| std::fs::read_to_string(server.path(name)).unwrap_or_default();
    !read("after").is_empty() && read("before") == read("after")
}

#[test]
fn the_terminal_is_given_back_while_it_is_stopped() {
    let server = setup().workers(1).start();
    let Some(screen) = Screen::open(&server, "the_terminal_is_given_back", 100, 20) else {
        return;
    };
    screen.wait_for("serving");
    let top = screen.top();
    screen.keys(&["C-z"]);
    wait_until("it is stopped", LONG, || top.is_stopped());
    wait_until("the first screen", LONG, || {
        !screen.text().contains("serving")
    });
    top.signal(SIGCONT);
    screen.wait_for("serving");
    screen.keys(&["q"]);
    screen.wait_for("status 0");
    wait_until("the terminal is as it was", LONG, || is_restored(&server));
}

#[test]
fn it_shows_the_server_sorts_and_leaves_the_terminal_as_it_was() {
    let server = setup().workers(3).start();
    let Some(screen) = Screen::open(&server, "it_shows_the_server", 120, 30) else {
        return;
    };
    let text = screen.wait_for("serving");
    assert!(
        text.contains("supervisor  serving  generation 1")
            && text.contains(&server.address().to_string()),
        "{text}"
    );
    for worker in server.workers() {
        screen.wait_for(&worker.process.0.to_string());
    }
    wait_until("three slots", LONG, || screen.slots() == [0, 1, 2]);
    screen.keys(&["i"]);
    wait_until("the other way round", LONG, || screen.slots() == [2, 1, 0]);
    screen.keys(&["r"]);
    screen.wait_for("REQ/Sv");
    screen.keys(&["<"]);
    screen.wait_for("AGEv");
    screen.keys(&["?"]);
    screen.wait_for("each asks for confirmation");
    screen.keys(&["?"]);
    // Load is seen, and where it goes.
    let address = server.address();
    let load = start(Plan::kept_alive(&address, 2));
    wait_until("requests are counted", LONG, || {
        let text = screen.text();
        text.lines()
            .any(|line| line.starts_with("requests ") && !line.starts_with("requests 0/s"))
    });
    load.finish().assert_flawless();
    screen.keys(&["q"]);
    screen.wait_for("status 0");
    wait_until("the terminal is as it was", LONG, || is_restored(&server));
}

#[test]
fn its_keys_operate_the_server_after_a_y_and_only_then() {
    let server = setup().workers(2).start();
    let Some(screen) = Screen::open(&server, "its_keys_operate", 100, 24) else {
        return;
    };
    screen.wait_for("serving");
    screen.keys(&["R"]);
    screen.wait_for("reload configuration and program? [y/N]");
    screen.keys(&["n"]);
    screen.wait_for("cancelled");
    assert_eq!(server.generation(), 1);
    screen.keys(&["R", "y"]);
    screen.wait_for("done: generation 2 serves");
    screen.keys(&["S", "3", "Enter", "y"]);
    screen.wait_for("done: 3 workers (before: 2)");
    let old = server
        .workers()
        .into_iter()
        .find(|worker| worker.slot == 0)
        .expect("slot 0");
    screen.keys(&["Home", "Down", "x", "y"]);
    screen.wait_for("serves slot 0");
    assert_ne!(server.wait_for_replacement(0, old.process).id, old.id);
    // The verdict is there before the next look.
    wait_until("three slots on the screen", LONG, || {
        screen.slots() == [0, 1, 2]
    });
    screen.keys(&["Home", "Up", "d"]);
    screen.wait_for("drain slot 2 and hold it empty? [y/N]");
    screen.keys(&["y"]);
    screen.wait_for("done: slot 2 is empty");
    screen.wait_for("held");
    // What is refused is told with the reason.
    screen.keys(&["S", "9", "9", "9", "Enter", "y"]);
    screen.wait_for("not done: there can be 1 to");
}

#[test]
fn it_fits_any_screen_and_follows_a_new_size() {
    let server = setup().workers(2).start();
    let Some(screen) = Screen::open(&server, "it_fits_any_screen", 40, 10) else {
        return;
    };
    let text = screen.wait_for("serving");
    assert!(text.contains("STATE") && !text.contains("REQ/S"), "{text}");
    screen.tmux(&["resize-window", "-x", "132", "-y", "40"]);
    screen.wait_for("OLDEST");
    screen.tmux(&["resize-window", "-x", "20", "-y", "6"]);
    wait_until("what there is room for", LONG, || {
        screen.text().lines().next() == Some("supervisor  serving")
    });
}

#[test]
fn term_gives_the_terminal_back_and_a_server_that_is_away_is_waited_for() {
    let mut server = setup().workers(1).start();
    let Some(screen) = Screen::open(&server, "term_gives_the_terminal_back", 100, 24) else {
        return;
    };
    screen.wait_for("serving");
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    screen.wait_for("(still asking)");
    screen.top().signal(SIGTERM);
    screen.wait_for("status 0");
    wait_until("the terminal is as it was", LONG, || is_restored(&server));
}

#[test]
fn what_a_worker_says_does_not_command_the_terminal() {
    let program = "import os, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = os.environ['NOTIFY_SOCKET']
notify.connect('\\0' + address[1:] if address[0] == '@' else address)
notify.send(b'READY=1\\nSTATUS=evil\\x1b[2J\\x1b]0;title\\x07words')
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    client, _ = listener.accept()
    client.close()
";
    let server = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .program(["python3", "-c", program])
        .start();
    let Some(screen) = Screen::open(&server, "what_a_worker_says", 140, 24) else {
        return;
    };
    let text = screen.wait_for("evil");
    assert!(text.contains("serving") && text.contains("words"), "{text}");
    let title = screen
        .tmux(&["display-message", "-p", "#{pane_title}"])
        .stdout;
    assert_ne!(String::from_utf8_lossy(&title).trim(), "title");
}

fn top(server: &Server, words: &[&str]) -> Output {
    let words = [&["top", "--interval", "200ms"], words].concat();
    server.command(&words)
}

#[test]
fn frames_can_be_printed_as_text_and_as_json() {
    let server = setup().workers(2).start();
    let address = server.address();
    let load = start(Plan::kept_alive(&address, 2));
    let answered = |slot: usize| server.status()["slots"][slot]["totals"]["requests"].as_u64();
    wait_until("it is under load", LONG, || {
        answered(0).max(answered(1)) > Some(10)
    });
    let output = top(&server, &["--batch", "-n", "2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.matches("supervisor  serving").count() == 2,
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
    let output = top(&server, &["--json", "-n", "1"]);
    let frame: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(
        (&frame["version"], &frame["state"], &frame["generation"]),
        (&1.into(), &"serving".into(), &1.into())
    );
    assert_eq!(frame["slots"].as_array().map(Vec::len), Some(2));
    assert!(
        frame["rates"]["requests"].as_f64() > Some(1.0)
            && frame["rates"]["p99"].as_f64() > Some(0.0),
        "{frame}"
    );
    load.finish().assert_flawless();
}

#[test]
fn without_a_terminal_or_a_server_it_says_what_to_do() {
    let server = setup().workers(1).start();
    let output = top(&server, &[]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words.contains("top needs a terminal (--batch prints frames"),
        "{words}"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .args(["top", "--batch", "--control"])
        .arg(Path::new("/nowhere/x.sock"))
        .output()
        .expect("top");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("/nowhere/x.sock") && words.contains("--name names another one"),
        "{words}"
    );
}
