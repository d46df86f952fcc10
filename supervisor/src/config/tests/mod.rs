//! The whole way from what was typed to what is true.
#![allow(clippy::unwrap_used)]

mod help;
mod hostile;
mod messages;

use super::command_line::{COMMON, command};
use super::error::{File, Place, Problem};
use super::options::{Applies, Preset, SETTINGS, Setting};
use super::*;
use clap_complete::Shell;
use nix::sys::signal::Signal;
use prefork_protocol::settings::Class;
use prefork_worker::apps::AppError;
use std::ffi::OsString;
use std::time::Duration;

/// A command line, an environment and a file, all made up.
#[derive(Default)]
struct Typed<'a> {
    args: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
    inherited: &'a [&'a str],
    linked: bool,
}

impl Typed<'_> {
    /// The configuration, or what the user reads; the file is called `app.toml` there.
    fn load(&self) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        let mut args = vec!["supervisor".to_owned()];
        if let Some(text) = self.file {
            std::fs::write(&path, text).unwrap();
            args.push(format!("--config={}", path.display()));
        }
        args.extend(self.args.iter().map(ToString::to_string));
        let invocation = Source::from_parts(&self.identity(), args, self.env.iter().copied())
            .map_err(|error| error.to_string())?;
        let inherited: Vec<_> = self.inherited.iter().map(ToString::to_string).collect();
        let around = Surroundings {
            cpus: 2,
            inherited: &inherited,
            check_app: &check_app,
        };
        let here = format!("{}/", dir.path().display());
        match invocation.source.load(&around) {
            Ok(mut config) => {
                config
                    .warnings
                    .iter_mut()
                    .for_each(|warning| *warning = warning.replace(&here, ""));
                Ok(config)
            }
            Err(error) => Err(error.to_string().replace(&here, "")),
        }
    }

    fn identity(&self) -> Identity {
        if self.linked {
            Identity::linked("myapp")
        } else {
            Identity::supervisor()
        }
    }
}

fn check_app(app: &str) -> Result<(), AppError> {
    if app == "hello" {
        Ok(())
    } else {
        Err(AppError::Unknown(app.to_owned()))
    }
}

fn args(args: &[&str]) -> Result<Config, String> {
    Typed {
        args,
        ..Typed::default()
    }
    .load()
}

fn env(env: &[(&str, &str)]) -> Result<Config, String> {
    Typed {
        env,
        ..Typed::default()
    }
    .load()
}

fn file(text: &str) -> Result<Config, String> {
    Typed {
        file: Some(text),
        ..Typed::default()
    }
    .load()
}

/// What the user reads about a file, without the lines that show it.
fn brief(text: &str) -> String {
    let error = file(text).unwrap_err();
    let shown = |line: &&str| line.starts_with("app.toml");
    error.lines().filter(shown).collect::<Vec<_>>().join("\n")
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file = Some("workers = 5\nthreads = 6\nclass = \"threads\"\nbacklog = 7\n");
    let env = &[("SUPERVISOR_WORKERS", "3"), ("SUPERVISOR_THREADS", "4")];
    let config = Typed {
        args: &["--workers=2"],
        env,
        file,
        ..Typed::default()
    }
    .load()
    .unwrap();
    assert_eq!((config.workers, config.threads, config.backlog), (2, 4, 7));
    assert_eq!(
        config.max_connections, 10_000,
        "the default, which nothing overrides"
    );
}

#[test]
fn nothing_typed_gives_the_documented_defaults() {
    let config = args(&[]).unwrap();
    assert_eq!(
        config.binds,
        [Bind::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 8000
        }]
    );
    assert_eq!(
        (config.workers, config.max_workers, config.backlog),
        (2, 8, 4096)
    );
    assert_eq!(config.program, Program::App("hello".to_owned()));
    assert_eq!(
        config.class(),
        Class {
            threads: 1,
            connections: 10_000
        }
    );
    assert_eq!(
        (config.start_timeout, config.hang_timeout),
        (seconds(60), Some(seconds(30)))
    );
    assert_eq!(
        (config.request_timeout, config.graceful_timeout),
        (None, seconds(30))
    );
    assert_eq!((config.surge, config.min_ready), (Surge::All, seconds(2)));
    assert_eq!(
        (config.stop_signal, config.ready),
        (Signal::SIGTERM, Ready::Auto)
    );
    assert_eq!(
        (config.control, config.warnings),
        (Control::Default, Vec::<String>::new())
    );
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Typed {
        env: &[("SUPERVISOR_WORKERS", "")],
        file: Some("workers = 5"),
        ..Typed::default()
    };
    assert_eq!(config.load().unwrap().workers, 5);
}

#[test]
fn a_list_in_an_upper_layer_replaces_the_lower_one_but_variables_add_up() {
    let file = Some("bind = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nenv = { A = 1, B = \" file \" }");
    let env = &[
        ("SUPERVISOR_BIND", "127.0.0.1:3 [::1]:3"),
        ("SUPERVISOR_ENV", "A=env C=env"),
    ];
    let config = Typed {
        args: &["--env=C=flag"],
        env,
        file,
        ..Typed::default()
    }
    .load()
    .unwrap();
    let binds: Vec<_> = config.binds.iter().map(ToString::to_string).collect();
    assert_eq!(binds, ["127.0.0.1:3", "[::1]:3"]);
    let env: Vec<_> = config
        .env
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(env, ["A=env", "B= file ", "C=flag"]);
}

#[test]
fn more_workers_than_eight_leave_room_to_scale() {
    assert_eq!(args(&["--workers=40"]).unwrap().max_workers, 80);
    assert_eq!(args(&["--workers=1000"]).unwrap().max_workers, 1024);
}

#[test]
fn a_range_of_workers_says_how_few_and_how_many_there_may_be() {
    let config = args(&["--workers=2..16", "--scale-up-memory=1GiB"]).unwrap();
    assert_eq!(
        (
            config.workers,
            config.max_workers,
            config.range,
            config.slots()
        ),
        (2, 16, true, 16)
    );
    assert_eq!(
        (config.scale_down_after, config.scale_up_memory),
        (seconds(60), Some(1 << 30))
    );
    assert_eq!(
        file("workers = \"3..4\"\nmax-workers = 4")
            .unwrap()
            .max_workers,
        4
    );
    let useless = args(&["--workers=4", "--scale-down-after=5s"]).unwrap();
    assert_eq!(
        useless.warnings,
        [
            "--scale-down-after: has no effect with a fixed number of workers (give a range, \
             like --workers 2..16)"
        ]
    );
    assert_eq!((useless.range, useless.slots()), (false, 4));
    let requests_per_worker = |words: &[&str]| args(words).unwrap().requests_per_worker();
    assert_eq!(requests_per_worker(&["--class=sync"]), Some(1));
    assert_eq!(
        requests_per_worker(&["--class=threads", "--threads=5"]),
        Some(5)
    );
    assert_eq!(
        (
            requests_per_worker(&[]),
            requests_per_worker(&["--class=sync", "--", "ls"])
        ),
        (None, None)
    );
}

#[test]
fn the_file_is_read_again_at_each_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    std::fs::write(&path, "workers = 3").unwrap();
    let args = ["supervisor".as_ref(), "--config".as_ref(), path.as_os_str()];
    let source = Source::from_parts(
        &Identity::supervisor(),
        args,
        Vec::<(OsString, OsString)>::new(),
    )
    .unwrap()
    .source;
    let around = Surroundings {
        cpus: 2,
        inherited: &[],
        check_app: &check_app,
    };
    assert_eq!(source.load(&around).unwrap().workers, 3);
    std::fs::write(&path, "workers = 4").unwrap();
    assert_eq!(source.load(&around).unwrap().workers, 4);
    std::fs::remove_file(&path).unwrap();
    let error = source.load(&around).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{}: cannot be opened: no such file or directory (check the path)",
            path.display()
        )
    );
}

#[test]
fn the_highest_layer_that_names_a_program_or_an_app_decides() {
    let file = Some("command = [\"python3\", \"app.py\"]");
    let command = |words: &[&str]| Program::Command(words.iter().map(OsString::from).collect());
    let program = |args, env| {
        Typed {
            args,
            env,
            file,
            ..Typed::default()
        }
        .load()
        .unwrap()
        .program
    };
    assert_eq!(program(&[], &[]), command(&["python3", "app.py"]));
    assert_eq!(
        program(&["--app=hello"], &[]),
        Program::App("hello".to_owned())
    );
    assert_eq!(
        program(&[], &[("SUPERVISOR_APP", "hello")]),
        Program::App("hello".to_owned())
    );
    assert_eq!(
        program(&["--", "ls", "--all"], &[("SUPERVISOR_APP", "x")]),
        command(&["ls", "--all"])
    );
}

#[test]
fn a_linked_service_refuses_an_app_and_a_program() {
    let refused = |args, file| {
        Typed {
            args,
            file,
            linked: true,
            ..Typed::default()
        }
        .load()
        .unwrap_err()
    };
    let why = "this program serves a service of its own (leave it out)";
    assert_eq!(refused(&["--app=hello"], None), format!("--app: {why}"));
    assert_eq!(refused(&["--", "ls"], None), format!("-- PROGRAM: {why}"));
    assert!(
        refused(&[], Some("command = [\"a\"]"))
            .starts_with(&format!("app.toml:1:11: command: {why}"))
    );
    let served = Typed {
        linked: true,
        ..Typed::default()
    }
    .load()
    .unwrap();
    assert_eq!(served.program, Program::Linked);
}

#[test]
fn inherited_sockets_replace_the_default_address_only() {
    let inherited = &["web", "admin", "web"];
    let binds = |args| {
        let config = Typed {
            args,
            inherited,
            ..Typed::default()
        }
        .load()
        .map(|config| config.binds);
        config.map(|binds| {
            binds
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(binds(&[]).unwrap(), "fd://admin fd://web");
    assert_eq!(
        binds(&["--bind=[::1]:1", "--bind=fd://web"]).unwrap(),
        "[::1]:1 fd://web"
    );
    assert_eq!(
        binds(&["--bind=fd://wed"]).unwrap_err(),
        "--bind: no inherited socket is named wed (inherited: web, admin, web)"
    );
}

#[test]
fn port_zero_may_be_bound_twice() {
    assert_eq!(
        args(&["--bind=127.0.0.1:0", "--bind=127.0.0.1:0"])
            .unwrap()
            .binds
            .len(),
        2
    );
    assert!(
        args(&["--bind=unix:/a", "--bind=unix:/a,mode=0600"])
            .unwrap_err()
            .contains("is named twice")
    );
}

#[test]
fn workers_are_told_in_milliseconds_and_beat_four_times_in_the_hang_timeout() {
    let beat = |timeout| {
        args(&["--hang-timeout", timeout])
            .unwrap()
            .worker_settings()
            .heartbeat_ms
    };
    assert_eq!(
        [beat("30s"), beat("2s"), beat("500ms"), beat("off")],
        [1000, 500, 125, 1000]
    );
    let told = args(&["--drain-idle=1s", "--max-body=1MB", "--log-level=debug"])
        .unwrap()
        .worker_settings();
    assert_eq!(
        (told.drain_idle_ms, told.max_body_bytes, told.log_level),
        (1000, 1_000_000, 4)
    );
    assert_eq!((told.app.as_str(), told.request_timeout_ms), ("hello", 0));
}

#[test]
fn what_is_rendered_gives_the_same_configuration_again() {
    let round = |typed: &[&str]| {
        let mut config = args(typed).unwrap();
        let mut again = file(&config.render()).unwrap();
        // A rendered file sets everything, also what has no effect.
        (config.warnings, again.warnings) = (Vec::new(), Vec::new());
        assert_eq!(again, config, "{}", config.render());
        config.render()
    };
    round(&["--", "python3", "a \"b\"\n\\é\u{7f}"]);
    let page = round(&[
        "--bind=[::1]:1",
        "--bind=unix:/a,mode=0660,owner=u,group=g",
        "--directory=/",
        "--preflight=true",
        "--surge=2",
        "--control=off",
        "--workers=2..16",
        "--scale-down-after=90s",
        "--scale-up-memory=3GiB",
        "--name=shop",
        "--control-readers=0",
        "--min-ready=1500ms",
        "--hang-timeout=off",
        "--max-body=1025",
        "--log-file=/x y",
        "--log-format=json",
        "--env=A= =\t",
        "--env=a.b=2",
        "--stop-signal=sigint",
        "--drain-idle=0s",
        "--log-level=off",
        "--sandbox=strict",
        "--read-only=/a b",
        "--writable=/c",
        "--tcp-bind=allow",
        "--seccomp=log",
        "--private-tmp=on",
        "--limit=nofile=1:unlimited",
        "--limit=as=1GiB",
        "--user=root",
        "--group=0",
        "--groups=7",
        "--keep-cap=all",
        "--no-new-privileges=off",
        "--core-dumps=abort",
        "--supervisor-user=0",
        "--admin=127.0.0.1:9000",
        "--agent=unix:/agent",
        "--admin-user=root",
        "--on-event=/bin/true",
    ]);
    for setting in SETTINGS.iter().map(Setting::name) {
        assert!(page.contains(&setting), "{setting} is missing in\n{page}");
    }
}

#[test]
fn the_running_server_is_found_although_the_rest_of_the_file_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    let control = |text: &str, args: &[&str], env: &[(&str, &str)]| {
        std::fs::write(&path, text).unwrap();
        let config = format!("--config={}", path.display());
        let args = ["supervisor", "status", &config]
            .into_iter()
            .chain(args.iter().copied());
        let source = Source::from_parts(&Identity::supervisor(), args, env.iter().copied())
            .unwrap()
            .source;
        source
            .reach()
            .map(|(control, _)| control)
            .map_err(|error| error.problems.len())
    };
    let at = |path: &str| Ok(Control::Path(path.into()));
    let wrong = "workers = 0\nwrokers = 1\ncontrol = \"/file\"";
    assert_eq!(control(wrong, &[], &[]), at("/file"));
    assert_eq!(
        control(wrong, &[], &[("SUPERVISOR_CONTROL", "/env")]),
        at("/env")
    );
    assert_eq!(
        control(
            wrong,
            &["--control=/flag"],
            &[("SUPERVISOR_CONTROL", "/env")]
        ),
        at("/flag")
    );
    assert_eq!(control("workers = 0", &[], &[]), Ok(Control::Default));
    assert_eq!(control("control = 3\ncontrol = 4", &[], &[]), Err(1));
    assert_eq!(control("control = \"/a/\"", &[], &[]), Err(1));
}

#[test]
fn stock_apps_are_sandboxed_and_others_only_when_a_part_is_asked_for() {
    let sandbox = |words: &[&str]| args(words).unwrap().sandbox;
    let stock = sandbox(&[]);
    assert_eq!(
        (stock.mode, stock.seccomp, stock.tcp_bind),
        (SandboxMode::BestEffort, Seccomp::Enforce, false)
    );
    assert_eq!(sandbox(&["--", "ls"]), Sandbox::OFF);
    assert_eq!(
        sandbox(&["--seccomp=off", "--tcp-bind=allow", "--", "ls"]),
        Sandbox::OFF
    );
    for asking in [
        "--read-only=/",
        "--writable=/",
        "--tcp-bind=deny",
        "--seccomp=log",
        "--private-tmp=on",
    ] {
        assert_eq!(
            sandbox(&[asking, "--", "ls"]).mode,
            SandboxMode::BestEffort,
            "{asking}"
        );
    }
    let config = args(&["--sandbox=off", "--seccomp=enforce", "--private-tmp=on"]).unwrap();
    assert_eq!(config.sandbox, Sandbox::OFF);
    let useless = [
        "--seccomp: has no effect with sandbox off",
        "--private-tmp: has no effect with sandbox off",
    ];
    assert_eq!(config.warnings, useless);
    let limits = args(&["--limit=core=0", "--limit=nofile=9", "--limit=core=1"])
        .unwrap()
        .limits;
    assert_eq!(
        limits.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["nofile=9:9", "core=1:1"]
    );
    assert_eq!(
        file("limit = { nofile = \"1:2\" }").unwrap().limits[0].to_string(),
        "nofile=1:2"
    );
}
